"""The public functions `predict`, `explain` and `evaluate`: of a model, or of what `load` takes."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import nn

from convatlas.core.preprocessing import TTA
from convatlas.data.readers.memory import Data
from convatlas.errors import InputError
from convatlas.explanation.explanation import Explanation
from convatlas.explanation.page import Explanations
from convatlas.inference.collect import Collection
from convatlas.inference.evaluation import Evaluation
from convatlas.inference.load import load
from convatlas.inference.model import Ensemble, Model
from convatlas.inference.predictor import Predictor
from convatlas.tasks.prediction import Predictions


def predict(
    model: str | os.PathLike[str] | Predictor, images: Collection, *, top: int | None = None,
    threshold: float | None = None, tta: TTA = "none", batch: int | None = None, fetch: bool = False,
    classes: Sequence[str] = (), nms: float | None = None, tile: int | None = None, overlap: float = 0.2,
    every: float | None = None, module: nn.Module | None = None,
) -> Predictions:  # fmt: skip
    """Predict images or videos with a model, or with what `load` takes; see `Model.predict`. module: see `load`."""
    predictor = model if isinstance(model, Predictor) else load(model, module=module)
    return predictor.predict(
        images, top=top, threshold=threshold, tta=tta, batch=batch, fetch=fetch, classes=classes, nms=nms, tile=tile,
        overlap=overlap, every=every,
    )  # fmt: skip


def explain(
    model: str | os.PathLike[str] | Model, images: Collection, *, label: str | None = None, against: str | None = None,
    method: str = "auto", layer: str | Sequence[str] = (), object: int = 0, faithfulness: bool = True,
    randomize: bool = False, steps: int = 32, batch: int | None = None, fetch: bool = False,
    module: nn.Module | None = None,
) -> Explanation | Explanations:  # fmt: skip
    """Explain predictions of a model, or of what `load` takes; see `Model.explain`. module: see `load`."""
    return _single(model, "explain", module).explain(
        images, label=label, against=against, method=method, layer=layer, object=object, faithfulness=faithfulness,
        randomize=randomize, steps=steps, batch=batch, fetch=fetch,
    )  # fmt: skip


def evaluate(
    model: str | os.PathLike[str] | Model, data: Data, *, split: str | None = None, module: nn.Module | None = None
) -> Evaluation:  # fmt: skip
    """Measure a model, or what `load` takes, on a data set; see Model.evaluate. module: see `load`."""
    return _single(model, "evaluate", module).evaluate(data, split=split)


def _single(model: str | os.PathLike[str] | Model, function: str, module: nn.Module | None) -> Model:
    """Return a model, or what `load` opens. Raises InputError for an ensemble."""
    if isinstance(model, Ensemble):
        raise InputError(f"{function}: must be a single model, got an Ensemble; {function} each of its models")
    return model if isinstance(model, Model) else load(model, module=module)
