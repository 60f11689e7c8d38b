"""A model: a network with its task, preprocessing and calibration, on the engine of choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from convatlas.core.cost import totals_of
from convatlas.core.network import Network
from convatlas.core.table import Table
from convatlas.data.dataset import Dataset
from convatlas.data.open import open_for_evaluation
from convatlas.data.readers.memory import Data
from convatlas.engines.engine import Engine
from convatlas.engines.evaluation import compute_outputs
from convatlas.engines.network_engine import EngineConfig, NetworkEngine
from convatlas.engines.select import EngineChoice, choose_engine
from convatlas.errors import DataError, EngineError
from convatlas.explanation.explanation import Explanation
from convatlas.explanation.feature_view import FeatureView
from convatlas.explanation.options import ExplainOptions
from convatlas.explanation.page import Explanations
from convatlas.inference.collect import Collection
from convatlas.inference.evaluation import Evaluation
from convatlas.inference.explanations import explain_collection
from convatlas.inference.features import FeatureOptions, view_features
from convatlas.inference.options import PredictOptions
from convatlas.inference.predict import check_finite
from convatlas.inference.predictor import Predictor
from convatlas.inference.splits import load_source
from convatlas.system.progress import Progress
from convatlas.weights.describe import describe_header
from convatlas.weights.modelfile import Header


@dataclass(frozen=True, repr=False, eq=False)
class Model(Predictor):
    """A network and its header. An exported file has an engine instead of a network.

    A model never changes its network, and always predicts with the present weights. It can be copied, pickled, used
    from several threads, and is equal only to itself.
    engine_override: the engine; by default torch with folded norms.
    """

    network: Network | None
    header: Header
    engine_override: Engine | None = None

    def __repr__(self) -> str:
        return repr(self._table())

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()

    def _table(self) -> Table:
        """Return the model in a few lines."""
        engine = "" if self.engine_override is None else str(self.engine_override)
        return Table.of_pairs(describe_header(self.header) | {"engine": engine})

    @property
    def classes(self) -> tuple[str, ...]:
        return self.header.classes

    @property
    def members(self) -> tuple[Model, ...]:
        return (self,)

    @cached_property
    def engine(self) -> Engine:
        """The engine that runs the network."""
        return self.engine_override or NetworkEngine(EngineConfig(), self.module, self.header, batch=1)

    @property
    def module(self) -> Network:
        """The network as a torch module; raises EngineError for an exported file, which has none."""
        if self.network is None:
            raise EngineError(
                f"{self.header.name}: an exported file contains no network; use the model file it came from"
            )
        return self.network

    def choose(
        self, engine: str = "auto", *, batch: int = 16, count: int | None = None,
        log: Callable[[str], None] | None = None,
    ) -> EngineChoice:  # fmt: skip
        """Return the fastest engine for batches of `batch` images, measured on this machine or read from the cache.

        engine: "auto" for the fastest installed one, or torch, compile, onnxruntime or openvino. count: the number of
        images to predict, if it is known: for a few, nothing is measured. log: called with one line before a
        measurement.
        Raises EngineError, in one line, if the engine is not installed or cannot run the network.
        """
        macs = totals_of(self.module).macs
        return choose_engine(engine, self.module, self.header, batch=batch, macs=macs, count=count, log=log)

    def using(self, engine: str = "auto", *, batch: int = 16) -> Model:
        """Return the model on the engine that `choose` returns."""
        return replace(self, engine_override=self.choose(engine, batch=batch).engine)

    def explain(
        self, images: Collection, *, label: str | None = None, against: str | None = None, method: str = "auto",
        layer: str | Sequence[str] = (), object: int = 0, faithfulness: bool = True, randomize: bool = False,
        steps: int = 32, batch: int | None = None, fetch: bool = False,
    ) -> Explanation | Explanations:  # fmt: skip
        """Return the explanation of the prediction for one image or video, or those for many, in order.

        images: as for `predict`. label: the class to explain; by default the most probable one. against: why the
        class and not this one: the difference of their logits is explained. object: of detectors, the number of the
        object among those of `label`, or of all, the most probable one first. method: "grad-cam", "hires-cam",
        "layer-cam", "integrated-gradients" or "occlusion"; by default Grad-CAM where global average pooling follows the
        layer, else HiResCAM. layer: taps such as "stages.3", of CAMs; the maps of several are averaged; by default the
        last one with a map. faithfulness: insertion and deletion curves, about 90 forward passes. randomize: the sanity
        check by random weights. steps: of integrated gradients. batch, fetch: as for `predict`.

        Raises DataError if a single image has no explanation, because it is unreadable for example. Of many images,
        such an image gives an explanation with an `error`. Raises DataError for a class that is not there, SpecError
        for a layer, EngineError for an exported file and a method other than occlusion.
        """
        options = ExplainOptions.from_plain(
            {
                "method": method, "label": label, "against": against, "object": object, "steps": steps,
                "layers": [layer] if isinstance(layer, str) else layer, "faithfulness": faithfulness,
                "randomize": randomize,
            },
            where="explain",
        )  # fmt: skip
        return explain_collection(self, images, options, PredictOptions(batch=batch, fetch=fetch))

    def features(
        self, image: Collection, *, layer: str | None = None, channel: int | None = None,
        unit: Sequence[int] | None = None, data: Data | None = None, maximize: bool = False, label: str | None = None,
        maps: int = 8, top: int = 9, steps: int = 256, seed: int = 0, batch: int | None = None, fetch: bool = False,
        progress: Progress | None = None,
    ) -> FeatureView:  # fmt: skip
        """Return what the network computes inside for one image or video; of a video, for its middle clip.

        That is the filters of the first convolution, the `maps` strongest feature maps of each stage, and the receptive
        field of a unit on the image.
        layer: a tap such as "stages.3"; by default the last one with a map. channel: by default the strongest one of
        the layer on this image. unit: its position in the map, (y, x), of clips (frame, y, x); by default that of the
        largest value. data: a data set, a folder or images, of which the `top` regions that excite the channel most are
        returned. maximize: also compute an image for which the channel is large, or, with `label`, the logit of that
        class, by `steps` steps from random pixels of `seed`. batch: of `data`. fetch: as for `predict`.

        Raises DataError for an unreadable image, SpecError for a layer, InputError for a channel, unit or class that is
        not there, and EngineError for an exported file.
        """
        options = FeatureOptions.from_plain(
            {
                "layer": layer, "channel": channel, "unit": None if unit is None else list(unit), "maps": maps,
                "top": top, "maximize": maximize, "label": label, "steps": steps, "seed": seed,
            },
            where="features",
        )  # fmt: skip
        return view_features(self, image, options, data, PredictOptions(batch=batch, fetch=fetch), progress)

    def evaluate(
        self,
        data: Data,
        *,
        split: str | None = None,
        max_unreadable: float | None = None,
        progress: Progress | None = None,
    ) -> Evaluation:
        """Measure the model on a data set.

        split: "train", "val", "test" or "all"; by default the test split, or else val. Data without splits is
        evaluated as a whole, unless it is the training data: then on its val split.
        max_unreadable: maximum share of unreadable images, which are skipped and listed; by default that of training.
        The data may have some of the model's classes; they are matched by name, and metrics are those of the classes
        that have images. Raises DataError if the data is of another task or has other classes.
        """
        dataset, split = self.load_split(data, split=split, max_unreadable=max_unreadable, progress=progress)
        images = dataset.whole if split == "all" else dataset.splits[split]
        outputs = compute_outputs(self.engine.outputs, images, collect=self.header.task.collect, progress=progress)
        check_finite(outputs, self.header.name, self.header.task.noun)
        result = self.header.task.evaluate(outputs, images.targets, self.header.calibration)
        baseline = self.header.task.baseline(images.targets)
        return Evaluation(
            split, result, dataset.unreadable, dataset.remarks, baseline, self.header, dataset.name, images
        )

    def load_split(
        self, data: Data, *, split: str | None = None, max_unreadable: float | None = None,
        progress: Progress | None = None,
    ) -> tuple[Dataset, str]:  # fmt: skip
        """Return data prepared for this model, with targets in the order of its classes, and the split to evaluate."""
        training, steps, task = self.header.training, self.header.preprocessing, self.header.task
        try:
            source = open_for_evaluation(
                data, reads=steps.reads, group_pattern=training.group_pattern, progress=progress
            )
        except DataError as error:
            if error.kind != "few_classes":
                raise
            raise DataError(f"{error}; to classify {task.noun}s without labels, use `convatlas predict`") from error
        if source.task.predicts != task.predicts:
            source = source.for_task(task.short_name)
        aligned = {
            name: replace(samples, targets=task.align(samples.targets, source.task, source.location))
            for name, samples in source.splits.items()
        }
        source = replace(source, task=task, splits=aligned)
        dataset = load_source(source, self.header, max_unreadable=max_unreadable, progress=progress)
        names = (*dataset.splits, "all")
        if split is None:
            split = next(name for name in ("test", "val", "all") if name in names)
        if split not in names:
            raise DataError(f"{source.location}: split must be one of {', '.join(names)}, got {split!r}")
        return dataset, split


@dataclass(frozen=True)
class Ensemble(Predictor):
    """Several models of the same task and classes, whose predictions are averaged."""

    models: tuple[Model, ...]

    @property
    def members(self) -> tuple[Model, ...]:
        return self.models

    @property
    def classes(self) -> tuple[str, ...]:
        return self.models[0].classes
