"""From a sealed model file to answers about pictures, with the user's own class names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convatlas import modelfile
from convatlas.data.images import Images, check_same_classes, read_picture
from convatlas.data.sources import VAL_SHARE, Cut, Progress, find
from convatlas.errors import ConvatlasError, DataError
from convatlas.joins import Network
from convatlas.modelfile import Header
from convatlas.tasks.classification import CRITERIA, Result, evaluate

Picture = str | Path | Image.Image | np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | Tensor
"""A file, a PIL picture, or 8-bit values: arrays (height, width[, channels]), tensors (channels, height, width)."""


@dataclass(frozen=True)
class Prediction:
    """What the network says about one picture: its classes, most probable first; `error` says why it was unreadable."""

    source: str
    probabilities: dict[str, float]
    error: str = ""

    @property
    def label(self) -> str:
        """The most probable class; empty where the picture could not be read."""
        return next(iter(self.probabilities), "")

    @property
    def probability(self) -> float:
        return self.probabilities.get(self.label, 0.0)


@dataclass(frozen=True)
class Model:
    """A network that was loaded from its sealed file, ready to answer."""

    network: Network
    header: Header

    @property
    def classes(self) -> tuple[str, ...]:
        return self.header.classes

    def predict(self, pictures: Picture | Sequence[Picture], *, batch: int = 64) -> list[Prediction]:
        """Return one prediction for each picture, in order; a picture that cannot be read gives one with an `error`."""
        many = pictures if isinstance(pictures, Sequence) and not isinstance(pictures, str) else [pictures]
        return list(self.stream(many, batch=batch))

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
                rows = iter(CRITERIA[self.header.criterion].probabilities(outputs))
            for i, (picture, item) in enumerate(zip(group, read, strict=True), start):
                source = str(picture) if isinstance(picture, str | Path) else f"picture {i}"
                yield (
                    Prediction(source, {}, str(item))
                    if isinstance(item, DataError)
                    else self._named(source, next(rows))
                )

    def evaluate(
        self, data: str | Path, *, split: str | None = None, progress: Progress | None = None
    ) -> tuple[str, Result]:
        """Measure the network on a data set; returns the split's name and the result.

        split: "train", "val" or "test"; the test split, or val where there is none, if left out. Splits that the data
        does not have are cut off as in the training, so that they are the ones the network was trained with.
        Raises DataError if the classes are not the ones the network knows; they are matched by name.
        """
        source = find(data, progress=progress)
        check_same_classes(self.classes, source.classes, split="data", where=data)
        training = self.header.training
        cut = Cut(training.get("seed", 0), training.get("settings", {}).get("val_share", VAL_SHARE))
        dataset = source.load(self.header.preprocessing, cut=cut, progress=progress)
        split = split or ("test" if dataset.test else "val")
        images: Images | None = getattr(dataset, split, None) if split in ("train", "val", "test") else None
        if images is None:
            raise DataError(f"{data}: there is no split {split!r}; try train, val{' or test' if dataset.test else ''}")
        order = torch.tensor([self.classes.index(name) for name in source.classes])
        images = Images(images.pixels, order[images.labels], images.names)
        criterion = CRITERIA[self.header.criterion]
        return split, evaluate(self.network, images, self.header.preprocessing, criterion)

    def _prepare(self, picture: Picture, name: str) -> Tensor | DataError:
        preprocessing = self.header.preprocessing
        try:
            if isinstance(picture, str | Path):
                pixels = read_picture(Path(picture), preprocessing.channels)
            elif isinstance(picture, Image.Image):
                pixels = torch.from_numpy(np.array(picture.convert("L" if preprocessing.channels == 1 else "RGB")))
                pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
            elif isinstance(picture, np.ndarray):
                pixels = torch.from_numpy(picture.copy())
                pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
            else:
                pixels = picture
            return preprocessing.geometry(pixels)
        except DataError as error:
            named = str(error) if isinstance(picture, str | Path) else f"{name}: {error}"
            if isinstance(picture, str | Path) and not named.startswith(str(picture)):
                named = f"{picture}: {named}"
            return DataError(named)

    def _named(self, source: str, row: Tensor) -> Prediction:
        order = row.argsort(descending=True, stable=True)
        return Prediction(source, {self.classes[i]: float(row[i]) for i in order.tolist()})


def load(path: str | Path) -> Model:
    """Open a sealed model file; raises ModelFileError in one line if it cannot be used."""
    network, header = modelfile.load(path)
    if header.criterion not in CRITERIA:
        raise ConvatlasError(f"{path}: unknown criterion {header.criterion!r}; upgrade convatlas")
    return Model(network, header)
