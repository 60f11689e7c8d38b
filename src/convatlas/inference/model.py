"""A model: a network with its task, preprocessing and calibration, on the engine of choice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from convatlas.core.cost import cost
from convatlas.core.network import Network
from convatlas.core.preprocessing import TTA
from convatlas.data.dataset import Dataset, UnreadableImage
from convatlas.data.open import open_data
from convatlas.engines import onnx_file, openvino_files
from convatlas.engines.engine import Engine
from convatlas.engines.evaluation import compute_outputs
from convatlas.engines.network_engine import EngineConfig, NetworkEngine
from convatlas.engines.onnxruntime import OnnxRuntimeEngine
from convatlas.engines.openvino import OpenVinoEngine
from convatlas.engines.select import EngineChoice, choose_engine
from convatlas.engines.signature import check_decoding
from convatlas.errors import DataError, EngineError, ModelFileError, WeightsError
from convatlas.inference.predict import ImageLike, PredictOptions, as_images, check_finite, stream
from convatlas.models.catalog import CATALOG, reads_clips
from convatlas.system.devices import resolve_device
from convatlas.system.progress import Progress
from convatlas.tasks.known import Classification
from convatlas.tasks.task import Prediction, Result
from convatlas.weights.build import build
from convatlas.weights.imported import find_imported, is_imported_name
from convatlas.weights.modelfile import Header, read_model_file
from convatlas.weights.pretrained import Weights, find_weights
from convatlas.weights.sizes import sizes_of
from convatlas.weights.training_record import TrainingRecord


class Evaluation(NamedTuple):
    """The result on one split. unreadable, remarks: of the whole data set; see `Dataset`."""

    split: str
    result: Result
    unreadable: tuple[UnreadableImage, ...] = ()
    remarks: tuple[str, ...] = ()

    def to_plain(self) -> dict[str, Any]:
        """Return the evaluation as plain data."""
        unreadable = [asdict(image) for image in self.unreadable]
        return {
            "split": self.split, **self.result.to_plain(), "unreadable": unreadable, "remarks": list(self.remarks),
        }  # fmt: skip


class Predictor(ABC):
    """Base of models and ensembles, which predict images."""

    @property
    @abstractmethod
    def members(self) -> tuple[Model, ...]:
        """The models whose predictions are averaged."""

    def predict(
        self, images: ImageLike | Iterable[ImageLike], *, batch: int = 16, tta: TTA = "none",
        threshold: float | None = None, fetch: bool = False,
    ) -> list[Prediction]:  # fmt: skip
        """Return one prediction for each image, in order; an unreadable image gives one with an `error`.

        images: one image or many; see `ImageLike`. An array of four axes is many images, (n, height, width, channels)
        or (n, 1 or 3, height, width), a tensor too, (n, channels, height, width). Color is red, green, blue.
        tta: test-time augmentation, "flip" or "ten-crop": the predictions of several views are averaged. threshold: the
        probability below which no class is predicted. fetch: whether URLs (http://, https://) are fetched.
        """
        return list(self.stream(as_images(images), PredictOptions(batch, tta, threshold, fetch)))

    def stream(self, images: Iterable[ImageLike], options: PredictOptions | None = None) -> Iterator[Prediction]:
        """Yield predictions in order while the next batch is read; `images` may be infinite."""
        return stream(self.members, images, options or PredictOptions())


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
        header = self.header
        lines = [
            f"{header.name}: {header.task.name}, {len(self.classes):,} classes, "
            f"{header.preprocessing.channels} x {header.spec.resolution} x {header.spec.resolution} px"
        ]
        for split, metrics in header.metrics.items():
            shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if not name.endswith("_low"))
            lines.append(f"  {split}: {shown}")
        return "\n".join(lines)

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

    def choose(self, engine: str = "auto", *, batch: int = 16, count: int | None = None) -> EngineChoice:
        """Return the fastest engine for batches of `batch` images, measured on this machine or read from the cache.

        engine: "auto" for the fastest installed one, or torch, compile, onnxruntime or openvino. count: the number of
        images to predict, if it is known: for a few, nothing is measured.
        Raises EngineError, in one line, if the engine is not installed or cannot run the network.
        """
        return choose_engine(engine, self.module, self.header, batch=batch, macs=cost(self.module).macs, count=count)

    def using(self, engine: str = "auto", *, batch: int = 16) -> Model:
        """Return the model on the engine that `choose` returns."""
        return replace(self, engine_override=self.choose(engine, batch=batch).engine)

    def evaluate(
        self,
        data: str | Path,
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
        outputs = compute_outputs(self.engine.outputs, images, progress=progress)
        check_finite(outputs, self.header.name)
        result = self.header.task.evaluate(outputs, images.targets, self.header.calibration)
        return Evaluation(split, result, dataset.unreadable, dataset.remarks)

    def load_split(
        self, data: str | Path, *, split: str | None = None, max_unreadable: float | None = None,
        progress: Progress | None = None,
    ) -> tuple[Dataset, str]:  # fmt: skip
        """Return data prepared for this model, with targets in the order of its classes, and the split to evaluate."""
        training, steps, task = self.header.training, self.header.preprocessing, self.header.task
        if max_unreadable is None:
            max_unreadable = training.max_unreadable
        source = open_data(data, progress=progress)
        aligned = {
            name: replace(samples, targets=task.align(samples.targets, source.task, data))
            for name, samples in source.splits.items()
        }
        source = replace(source, task=task, splits=aligned)
        try:
            splits = source.with_val(seed=training.seed, val_share=training.val_share, fold=training.fold)
        except DataError:  # data other than the training data may have too few images to split
            splits = aligned
        dataset = replace(source, splits=splits).load(
            steps, max_unreadable=max_unreadable, all_classes=False, progress=progress
        )  # fmt: skip
        if "val" not in source.splits and dataset.fingerprint() != training.fingerprint:
            dataset = dataset.without_val()  # not the training data
        names = (*dataset.splits, "all")
        if split is None:
            split = next(name for name in ("test", "val", "all") if name in names)
        if split not in names:
            raise DataError(f"{data}: split must be one of {', '.join(names)}, got {split!r}")
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


def load(path: str | Path, *, device: str = "cpu") -> Model:
    """Open a model file, an exported file, or weights by name.

    path: a file; published weights, "resnet50@torchvision:IMAGENET1K_V2"; or imported weights, "resnet50@tag".
    Published weights are downloaded if they are not cached. Raises ModelFileError or WeightsError, in one line, for
    files and weights that cannot be used.
    """
    name, path = str(path), Path(path).expanduser()
    if is_imported_name(name) and not path.exists():
        model = Model(*read_model_file(find_imported(name).path))
    elif name.partition("@")[0] in CATALOG and not path.exists():
        model = from_weights(find_weights(name))
    elif path.suffix.lower() in EXPORTED:
        return _load_exported(path)
    else:
        model = Model(*read_model_file(path))
    model.module.to(resolve_device(device))
    return model


EXPORTED_BATCH = 16
"""Number of images for which an exported file is prepared."""

EXPORTED = (".onnx", ".xml", ".pt2")
"""Suffixes of exported files."""


def _load_exported(path: Path) -> Model:
    """Open an exported file: its own runtime is the engine."""
    if path.suffix.lower() == ".pt2":
        raise ModelFileError(f"{path}: reading it could run code that is hidden in it; use the model file it came from")
    engine: OnnxRuntimeEngine | OpenVinoEngine
    if path.suffix.lower() == ".onnx":
        header, graph = onnx_file.read_graph(path)
        try:
            engine = OnnxRuntimeEngine(graph.SerializeToString())
        except EngineError as error:
            raise ModelFileError(f"{path}: {error}") from error
    else:
        header, ir_model = openvino_files.read_model(path)
        engine = OpenVinoEngine(ir_model, batch=EXPORTED_BATCH)
    check_decoding(path, header, engine.decoded)
    return Model(None, header, engine)


def from_weights(weights: Weights, *, file: Path | None = None) -> Model:
    """Return the model of published weights, read from `file` if they are not in the cache."""
    spec = weights.spec
    if reads_clips(spec):
        raise WeightsError(f"{weights.name}: reads clips, not images")
    network = (
        build(weights.network, resolution=spec.resolution, weights=f"{weights.library}:{weights.tag}")
        if file is None
        else build(spec, channels=weights.channels, weights=file)
    )
    if sizes_of(spec).classes_of(network.state_dict()) != len(weights.classes):
        raise WeightsError(f"{file}: must have the {len(weights.classes):,} classes of {weights.name}")
    header = Header(
        name=weights.name, spec=spec, task=Classification(weights.classes), preprocessing=weights.preprocessing,
        license=weights.license,
        training=TrainingRecord(
            source=weights.url, recipe_url=weights.recipe_url, reported_metrics=dict(weights.reported_metrics)
        ),
    )  # fmt: skip
    return Model(network.eval(), header)


def predict(file: str | Path, images: ImageLike | Iterable[ImageLike]) -> list[Prediction]:
    """Predict images with a model file; see Model.predict."""
    return load(file).predict(images)


def evaluate(file: str | Path, data: str | Path, *, split: str | None = None) -> Evaluation:
    """Measure a model file on a data set; see Model.evaluate."""
    return load(file).evaluate(data, split=split)
