"""From a sealed model file to answers about pictures, with the user's own class names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convatlas import modelfile
from convatlas.catalog import CATALOG, reads_clips, variant
from convatlas.data.decode import decode, pixels_of, read_picture
from convatlas.data.images import Broken, check_same_classes
from convatlas.data.sources import find
from convatlas.download import Progress
from convatlas.errors import DataError, ModelFileError, WeightsError
from convatlas.joins import Network
from convatlas.modelfile import Header
from convatlas.tasks.evaluation import evaluate as run_through
from convatlas.tasks.losses import CRITERIA
from convatlas.tasks.results import Result
from convatlas.weights import Weights, build
from convatlas.weights import find as find_weights

Picture = str | Path | Image.Image | NDArray[Any] | Tensor
"""A file, a PIL picture, or values: arrays (height, width[, channels]), tensors (channels, height, width)."""


@dataclass(frozen=True)
class Prediction:
    """What the network says about one picture: its classes, most probable first; `error` says why it was unreadable.

    labels: the classes that the picture is said to be of: the most probable one, or all above their thresholds where
        there may be several.
    """

    source: str
    probabilities: dict[str, float]
    error: str = ""
    labels: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The most probable class; empty where the picture could not be read."""
        return next(iter(self.probabilities), "")

    @property
    def probability(self) -> float:
        return self.probabilities.get(self.label, 0.0)


class Evaluation(NamedTuple):
    """The result on one split, and the pictures of the data that could not be read."""

    split: str
    result: Result
    broken: tuple[Broken, ...]


@dataclass(frozen=True)
class Model:
    """A network that was loaded from its sealed file, ready to answer."""

    network: Network
    header: Header

    @property
    def classes(self) -> tuple[str, ...]:
        return self.header.classes

    def predict(self, pictures: Picture | Iterable[Picture], *, batch: int = 64) -> list[Prediction]:
        """Return one prediction for each picture, in order; a picture that cannot be read gives one with an `error`."""
        if isinstance(pictures, str | Path | Image.Image | np.ndarray | Tensor):
            pictures = [pictures]
        return list(self.stream(list(pictures), batch=batch))

    @torch.inference_mode()
    def stream(self, pictures: Sequence[Picture], *, batch: int = 64) -> Iterator[Prediction]:
        """Yield predictions in order while reading `batch` pictures at a time."""
        preprocessing = self.header.preprocessing
        for start in range(0, len(pictures), batch):
            group = pictures[start : start + batch]
            read = [self._prepare(picture, f"picture {start + i}") for i, picture in enumerate(group)]
            good = [item for item in read if isinstance(item, Tensor)]
            rows = iter(())  # type: Iterator[Tensor]
            if good:
                outputs = self.network(preprocessing.normalise(torch.stack(good)))
                rows = iter(CRITERIA[self.header.criterion].probabilities(outputs / self.header.temperature))
            for i, (picture, item) in enumerate(zip(group, read, strict=True), start):
                source = str(picture) if isinstance(picture, str | Path) else f"picture {i}"
                yield (
                    Prediction(source, {}, str(item))
                    if isinstance(item, DataError)
                    else self._named(source, next(rows))
                )

    def evaluate(
        self,
        data: str | Path,
        *,
        split: str | None = None,
        max_broken: float | None = None,
        progress: Progress | None = None,
    ) -> Evaluation:
        """Measure the network on a data set.

        split: "train", "val", "test" or "all". Where left out, the test split, or else val. Data without splits is
        measured whole, unless it is the data of the training: then on the pictures that were set aside for val.
        max_broken: share of unreadable pictures that is left out and listed; as in the training where left out.
        Raises DataError if the classes are not the ones the network knows; they are matched by name.
        """
        if max_broken is None:
            max_broken = self.header.training.get("max_broken", 0.01)
        source = find(data, progress=progress)
        check_same_classes(self.classes, source.classes, split="data", where=data)
        training = self.header.training
        cut = {"seed": training.get("seed", 0), "val_share": training.get("val_share", 0.0)}
        fold = training.get("fold")
        splits = "val" in source.listings
        dataset = source.load(
            self.header.preprocessing, **cut, fold=tuple(fold) if fold else None,
            max_broken=max_broken, progress=progress,
        )  # fmt: skip
        if not splits and dataset.fingerprint() != training.get("fingerprint"):
            dataset = dataset.without_val()  # not the data of the training
        names = (*dataset.splits, "all")
        if split is None:
            split = next(name for name in ("test", "val", "all") if name in names)
        if split not in names:
            raise DataError(f"{data}: there is no split {split!r}; there are {', '.join(names)}")
        images = dataset.whole if split == "all" else dataset.splits[split]
        several = CRITERIA[self.header.criterion].several
        if source.several != several:
            held = "any number of classes" if source.several else "one class"
            raise DataError(f"{data}: its pictures are of {held}, the network was not trained for that")
        if several:
            labels = images.labels[:, [source.classes.index(name) for name in self.classes]]
        else:
            labels = torch.tensor([self.classes.index(name) for name in source.classes])[images.labels]
        result = run_through(
            self.network, replace(images, labels=labels), self.header.preprocessing, CRITERIA[self.header.criterion],
            temperature=self.header.temperature, thresholds=self.header.thresholds,
        )  # fmt: skip
        return Evaluation(split, result, dataset.broken)

    def _prepare(self, picture: Picture, name: str) -> Tensor | DataError:
        preprocessing = self.header.preprocessing
        try:
            if isinstance(picture, str | Path):
                name = str(picture)
                pixels = read_picture(Path(picture), preprocessing.channels, preprocessing.window)
            elif isinstance(picture, Image.Image):
                pixels = decode(picture, preprocessing.channels, name, preprocessing.window)
            elif isinstance(picture, Tensor) and picture.ndim != 3:
                raise DataError(f"a tensor is (channels, height, width), got {tuple(picture.shape)}")
            else:
                values = picture.permute(1, 2, 0).cpu().numpy() if isinstance(picture, Tensor) else picture
                pixels = pixels_of(values, preprocessing.channels, name, preprocessing.window)
            return preprocessing.geometry(pixels)
        except DataError as error:
            return error if str(error).startswith(name) else DataError(f"{name}: {error}")

    def _named(self, source: str, row: Tensor) -> Prediction:
        order = row.argsort(descending=True, stable=True)
        named = {self.classes[i]: float(row[i]) for i in order.tolist()}
        least = dict(zip(self.classes, self.header.thresholds, strict=False))
        said = tuple(name for name, p in named.items() if p >= least[name]) if least else (next(iter(named)),)
        return Prediction(source, named, labels=said)


def load(path: str | Path) -> Model:
    """Open a sealed model file, or published weights by their name, such as "resnet50@torchvision:IMAGENET1K_V2".

    Published weights are fetched if they are not at hand. Raises ModelFileError or WeightsError, in one line, for what
    cannot be used.
    """
    if str(path).partition("@")[0] in CATALOG and not Path(path).exists():
        return from_weights(find_weights(str(path)))
    network, header = modelfile.load(path)
    if header.task not in ("classification", "tagging"):
        raise ModelFileError(f"{path}: unknown task {header.task!r}; upgrade convatlas")
    if header.criterion not in CRITERIA:
        raise ModelFileError(f"{path}: unknown criterion {header.criterion!r}; upgrade convatlas")
    return Model(network, header)


def from_weights(weights: Weights, *, file: Path | None = None) -> Model:
    """Return the model of published weights, read from `file` if they are somewhere else than in the cache."""
    row = variant(weights.network)
    spec = row.spec.scaled(resolution=weights.preprocessing.size)
    if reads_clips(spec):
        raise WeightsError(f"{weights.name}: reads clips; pictures cannot be given to it")
    source = f"{weights.library}:{weights.tag}" if file is None else file
    network = build(spec, classes=len(weights.classes), channels=weights.preprocessing.channels, weights=source)
    header = Header(
        name=weights.name, spec=spec, classes=weights.classes, preprocessing=weights.preprocessing,
        criterion="cross_entropy", licence=weights.licence,
        training={"source": weights.url, "recipe": weights.recipe, "claimed": dict(weights.claimed)},
    )  # fmt: skip
    return Model(network.eval(), header)


def predict(file: str | Path, pictures: Picture | Iterable[Picture]) -> list[Prediction]:
    """Name what is in pictures with a sealed model file; see Model.predict."""
    return load(file).predict(pictures)


def evaluate(file: str | Path, data: str | Path, *, split: str | None = None) -> Evaluation:
    """Measure a sealed model file on a data set; see Model.evaluate."""
    return load(file).evaluate(data, split=split)
