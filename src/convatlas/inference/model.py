"""A network with everything that is needed to use it: from its sealed file to answers, on the engine of choice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convatlas.core.cost import cost
from convatlas.core.network import Network
from convatlas.core.preprocessing import Views
from convatlas.data.dataset import Dataset, UnreadableImage, check_same_classes
from convatlas.data.open import find
from convatlas.engines import onnx_graph, openvino_files
from convatlas.engines.engine import Engine
from convatlas.engines.onnxruntime import OnnxRuntime
from convatlas.engines.openvino import OpenVino
from convatlas.engines.select import Chosen, choose
from convatlas.engines.torch import Torch
from convatlas.errors import DataError, EngineError, ModelFileError, WeightsError
from convatlas.inference.predict import EncodedImage, ImageLike, Prediction, PredictOptions, stream
from convatlas.models.catalog import CATALOG, reads_clips, variant
from convatlas.system.devices import device_named
from convatlas.system.progress import Progress
from convatlas.tasks.classification.evaluate import evaluate as run_through
from convatlas.tasks.classification.losses import CRITERIA
from convatlas.tasks.classification.results import Result
from convatlas.weights import modelfile
from convatlas.weights.build import build
from convatlas.weights.modelfile import Header
from convatlas.weights.pretrained import Weights, find_weights


class Evaluation(NamedTuple):
    """The result on one split, and the images of the data that could not be read."""

    split: str
    result: Result
    unreadable: tuple[UnreadableImage, ...]


class Predictor:
    """What models and ensembles have in common: they answer about images."""

    @property
    def members(self) -> tuple[Model, ...]:
        raise NotImplementedError

    def predict(
        self, images: ImageLike | Iterable[ImageLike], *, batch: int = 16, views: Views = "one",
        threshold: float | None = None, fetch: bool = False,
    ) -> list[Prediction]:  # fmt: skip
        """Return one prediction for each image, in order; an image that cannot be read gives one with an `error`.

        views: "flip" and "ten" look at mirror images and crops, too, and average. threshold: the probability below
        which an image is said to be of no class. fetch: whether http:// and https:// are fetched.
        """
        if isinstance(images, str | Path | EncodedImage | Image.Image | np.ndarray | Tensor):
            images = [images]
        return list(self.stream(images, PredictOptions(batch, views, threshold, fetch)))

    def stream(self, images: Iterable[ImageLike], options: PredictOptions | None = None) -> Iterator[Prediction]:
        """Yield predictions in order while the next batch is read; the images may be without end."""
        return stream(self.members, images, options or PredictOptions())


@dataclass(frozen=True)
class Model(Predictor):
    """A network that was loaded from its sealed file, ready to answer; that of an exported file is in its engine.

    given: the engine; torch with folded norms where left out.
    """

    network: Network | None
    header: Header
    given: Engine | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.header.classes

    @property
    def members(self) -> tuple[Model, ...]:
        return (self,)

    @cached_property
    def engine(self) -> Engine:
        """What runs the network."""
        return self.given or Torch(self.own, self.header)

    @property
    def own(self) -> Network:
        """The network as a torch module; raises EngineError for an exported file, which has none."""
        if self.network is None:
            raise EngineError(f"{self.header.name}: an exported file holds no network; use the model file it came from")
        return self.network

    def choose(self, engine: str = "auto", *, batch: int = 16, count: int | None = None) -> Chosen:
        """Return the fastest engine for `batch` images at once, measured on this machine or remembered.

        engine: "auto" for the best of those that are installed, or one of torch, compile, onnxruntime, openvino.
        count: how many there will be, if it is known: for a few, nothing is measured.
        Raises EngineError, in one line, if it is not installed or cannot run the network.
        """
        return choose(engine, self.own, self.header, batch=batch, macs=cost(self.own).macs, count=count)

    def using(self, engine: str = "auto", *, batch: int = 16) -> Model:
        """Return the model on the engine that `choose` finds."""
        return replace(self, given=self.choose(engine, batch=batch).engine)

    def evaluate(
        self,
        data: str | Path,
        *,
        split: str | None = None,
        max_unreadable: float | None = None,
        progress: Progress | None = None,
    ) -> Evaluation:
        """Measure the network on a data set.

        split: "train", "val", "test" or "all". Where left out, the test split, or else val. Data without splits is
        measured whole, unless it is the data of the training: then on the images that were set aside for val.
        max_unreadable: share of unreadable images that is left out and listed; as in the training where left out.
        Raises DataError if the classes are not the ones the network knows; they are matched by name.
        """
        dataset, split, labels = self.split_of(data, split=split, max_unreadable=max_unreadable, progress=progress)
        images = dataset.whole if split == "all" else dataset.splits[split]
        result = run_through(
            self.engine.outputs, replace(images, labels=labels), CRITERIA[self.header.criterion],
            temperature=self.header.temperature, thresholds=self.header.thresholds, progress=progress,
        )  # fmt: skip
        return Evaluation(split, result, dataset.unreadable)

    def split_of(
        self, data: str | Path, *, split: str | None = None, max_unreadable: float | None = None,
        progress: Progress | None = None,
    ) -> tuple[Dataset, str, Tensor]:  # fmt: skip
        """Return data as this network reads it, the split that `evaluate` means, and its labels among the classes."""
        if max_unreadable is None:
            max_unreadable = self.header.training.get("max_unreadable", 0.01)
        source = find(data, progress=progress)
        check_same_classes(self.classes, source.classes, split="data", where=data)
        training = self.header.training
        fold, steps = training.get("fold"), self.header.preprocessing
        try:
            dataset = source.load(
                steps, seed=training.get("seed", 0), val_share=training.get("val_share", 0.0),
                fold=tuple(fold) if fold else None, max_unreadable=max_unreadable, progress=progress,
            )  # fmt: skip
        except DataError:  # other images than those of the training may be too few to be split
            dataset = source.load(steps, max_unreadable=max_unreadable, progress=progress)
        if "val" not in source.listings and dataset.fingerprint() != training.get("fingerprint"):
            dataset = dataset.without_val()  # not the data of the training
        names = (*dataset.splits, "all")
        if split is None:
            split = next(name for name in ("test", "val", "all") if name in names)
        if split not in names:
            raise DataError(f"{data}: there is no split {split!r}; there are {', '.join(names)}")
        of_split = dataset.whole if split == "all" else dataset.splits[split]
        several = CRITERIA[self.header.criterion].several
        if source.several != several:
            held = "any number of classes" if source.several else "one class"
            raise DataError(f"{data}: its images are of {held}, the network was not trained for that")
        if several:
            labels = of_split.labels[:, [source.classes.index(name) for name in self.classes]]
        else:
            labels = torch.tensor([self.classes.index(name) for name in source.classes])[of_split.labels]
        return dataset, split, labels


@dataclass(frozen=True)
class Ensemble(Predictor):
    """Several models of the same classes, whose probabilities are averaged."""

    models: tuple[Model, ...]

    @property
    def members(self) -> tuple[Model, ...]:
        return self.models

    @property
    def classes(self) -> tuple[str, ...]:
        return self.models[0].classes


def load(path: str | Path, *, device: str = "cpu") -> Model:
    """Open a sealed model file, an exported one, or published weights by name ("resnet50@torchvision:IMAGENET1K_V2").

    Published weights are fetched if they are not at hand. Raises ModelFileError or WeightsError, in one line, for what
    cannot be used.
    """
    if str(path).partition("@")[0] in CATALOG and not Path(path).exists():
        model = from_weights(find_weights(str(path)))
    elif Path(path).suffix.lower() in EXPORTED:
        return _exported(Path(path))
    else:
        model = Model(*modelfile.load(path))
        check_answers(path, model.header)
    model.own.to(device_named(device))
    return model


BATCH = 16
"""Images at once for which an exported file is prepared."""

EXPORTED = (".onnx", ".xml", ".pt2")
"""How exported files end."""


def _exported(path: Path) -> Model:
    """Open an exported file: its own runtime is the engine."""
    if path.suffix.lower() == ".pt2":
        raise ModelFileError(f"{path}: reading it could run code that is hidden in it; use the model file it came from")
    engine: Engine
    if path.suffix.lower() == ".onnx":
        header, graph = onnx_graph.opened(path)
        engine = OnnxRuntime(graph.SerializeToString())
    else:
        header, ir_model = openvino_files.opened(path)
        engine = OpenVino(ir_model, batch=BATCH)
    check_answers(path, header)
    return Model(None, header, engine)


def check_answers(path: str | Path, header: Header) -> None:
    """Raise ModelFileError for a file of a task that this version does not know."""
    if header.task not in ("classification", "tagging"):
        raise ModelFileError(f"{path}: unknown task {header.task!r}; upgrade convatlas")
    if header.criterion not in CRITERIA:
        raise ModelFileError(f"{path}: unknown criterion {header.criterion!r}; upgrade convatlas")


def from_weights(weights: Weights, *, file: Path | None = None) -> Model:
    """Return the model of published weights, read from `file` if they are somewhere else than in the cache."""
    row = variant(weights.network)
    spec = row.spec.scaled(resolution=weights.preprocessing.size)
    if reads_clips(spec):
        raise WeightsError(f"{weights.name}: reads clips; images cannot be given to it")
    source = f"{weights.library}:{weights.tag}" if file is None else file
    network = build(spec, classes=len(weights.classes), channels=weights.preprocessing.channels, weights=source)
    header = Header(
        name=weights.name, spec=spec, classes=weights.classes, preprocessing=weights.preprocessing,
        criterion="cross_entropy", license=weights.license,
        training={"source": weights.url, "recipe": weights.recipe, "reported_metrics": dict(weights.reported_metrics)},
    )  # fmt: skip
    return Model(network.eval(), header)


def predict(file: str | Path, images: ImageLike | Iterable[ImageLike]) -> list[Prediction]:
    """Name what is in images with a sealed model file; see Model.predict."""
    return load(file).predict(images)


def evaluate(file: str | Path, data: str | Path, *, split: str | None = None) -> Evaluation:
    """Measure a sealed model file on a data set; see Model.evaluate."""
    return load(file).evaluate(data, split=split)
