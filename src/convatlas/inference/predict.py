"""What networks say about images: read, looked at, answered and named, one batch ahead."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing, Views
from convatlas.data.decode.pixels import decode, pixels_of, read_image
from convatlas.engines.engine import Engine
from convatlas.errors import DataError
from convatlas.system.download import fetch_bytes
from convatlas.tasks.classification.losses import CRITERIA
from convatlas.weights.modelfile import Header

NONE = "none of these"
"""What is said about an image whose most probable class is not probable enough."""


class EncodedImage(NamedTuple):
    """The bytes of an image file, and what to call it."""

    name: str
    data: bytes


ImageLike = str | Path | EncodedImage | Image.Image | NDArray[Any] | Tensor
"""A file or its bytes, a PIL image, or values: arrays (height, width[, channels]), tensors (channels, height, width).

A text that begins with http:// or https:// is fetched, if that is asked for.
"""


@dataclass(frozen=True)
class Prediction:
    """What is said about one image: all classes, most probable first; `error` says why it was unreadable.

    labels: the classes that the image is said to be of: the most probable one, unless it is less probable than was
        asked for; where an image may be of several, all above their thresholds.
    """

    source: str
    probabilities: dict[str, float]
    error: str = ""
    labels: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The most probable class; empty where the image could not be read."""
        return next(iter(self.probabilities), "")

    @property
    def probability(self) -> float:
        return self.probabilities.get(self.label, 0.0)

    @property
    def text(self) -> str:
        """What the image is said to be: the labels, or that it is none of the classes."""
        return "" if self.error else ", ".join(self.labels) or NONE


@dataclass(frozen=True)
class PredictOptions:
    """How images are to be looked at.

    batch: how many go through a network at once. views: how often each is looked at (see Preprocessing.views); the
        probabilities are the mean. threshold: the probability from which on a class is said to be there; the network's
        own where left out. fetch: whether images may be fetched from the network.
    """

    batch: int = 16
    views: Views = "one"
    threshold: float | None = None
    fetch: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise DataError(f"batch: {self.batch} is not a number of images from 1 on")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise DataError(f"threshold: {self.threshold:g} is not a probability from 0 to 1")


class Member(Protocol):
    """One of the networks that are asked; their probabilities are averaged."""

    @property
    def header(self) -> Header: ...

    @property
    def engine(self) -> Engine: ...


def stream(members: Sequence[Member], images: Iterable[ImageLike], options: PredictOptions) -> Iterator[Prediction]:
    """Yield what the members say about each image, in order; the next batch is read meanwhile.

    An image that cannot be read gives a prediction with an `error`. Raises DataError if the members were not trained
    for the same classes.
    """
    order = [_order(members[0].header, member.header) for member in members]
    steps = list(dict.fromkeys(member.header.preprocessing for member in members))
    numbered = enumerate(images)
    with ThreadPoolExecutor(os.cpu_count()) as readers, ThreadPoolExecutor(1) as ahead:

        def submitted() -> list[tuple[str, Future[list[Tensor]]]]:
            group = list(islice(numbered, options.batch))
            return [(named(p, i), readers.submit(load_views, p, named(p, i), steps, options)) for i, p in group]

        coming = ahead.submit(submitted)
        while group := coming.result():
            coming = ahead.submit(submitted)
            yield from _predict_batch(members, order, steps, group, options)


def named(image: ImageLike, number: int) -> str:
    """Return what an image is called: its file, or its place in the order."""
    if isinstance(image, EncodedImage):
        return image.name
    return str(image) if isinstance(image, str | Path) else f"image {number}"


def load_views(image: ImageLike, name: str, steps: Sequence[Preprocessing], options: PredictOptions) -> list[Tensor]:
    """Return the views of an image for each kind of preprocessing; raises DataError that names it."""
    read: dict[tuple[int, Any], Tensor] = {}
    if options.fetch and isinstance(image, str) and image.startswith(("http://", "https://")):
        image = EncodedImage(image, fetch_bytes(image))
    try:
        for step in steps:
            kind = (step.channels, step.window)
            if kind not in read:
                read[kind] = _pixels(image, name, step)
        return [step.views(read[step.channels, step.window], options.views) for step in steps]
    except DataError as error:
        raise error if str(error).startswith(name) else DataError(f"{name}: {error}") from error


def _pixels(image: ImageLike, name: str, steps: Preprocessing) -> Tensor:
    channels, window = steps.channels, steps.window
    if isinstance(image, EncodedImage):
        return read_image(Path(name), channels, window, data=image.data)
    if isinstance(image, str | Path):
        return read_image(Path(image), channels, window)
    if isinstance(image, Image.Image):
        return decode(image, channels, name, window)
    if isinstance(image, Tensor):
        if image.ndim != 3:
            raise DataError(f"a tensor is (channels, height, width), got {tuple(image.shape)}")
        image = image.permute(1, 2, 0).cpu().numpy()
    return pixels_of(np.asarray(image), channels, name, window)


def _predict_batch(
    members: Sequence[Member], order: Sequence[Tensor], steps: Sequence[Preprocessing],
    group: Sequence[tuple[str, Future[list[Tensor]]]], options: PredictOptions,
) -> Iterator[Prediction]:  # fmt: skip
    """Yield the predictions of one batch."""
    read: list[tuple[str, list[Tensor] | DataError]] = []
    for name, future in group:
        try:
            read.append((name, future.result()))
        except DataError as error:
            read.append((name, error))
    good = [views for _, views in read if not isinstance(views, DataError)]
    rows: Iterator[Tensor] = iter(())
    if good:
        told = [
            probabilities(member, torch.stack([views[steps.index(member.header.preprocessing)] for views in good]),
                          options.batch)[:, places]
            for member, places in zip(members, order, strict=True)
        ]  # fmt: skip
        rows = iter(torch.stack(told).mean(0))
    header = members[0].header
    for name, views in read:
        failed = isinstance(views, DataError)
        yield Prediction(name, {}, str(views)) if failed else to_prediction(name, next(rows), header, options.threshold)


def probabilities(member: Member, views: Tensor, batch: int) -> Tensor:
    """Return the calibrated probabilities (n, classes) of images (n, views, channels, size, size)."""
    count, each = views.shape[:2]
    outputs = torch.cat([member.engine.outputs(part) for part in views.flatten(0, 1).split(batch)])
    told = CRITERIA[member.header.criterion].probabilities(outputs / member.header.temperature)
    mean: Tensor = told.unflatten(0, (count, each)).mean(1)
    return mean


def to_prediction(source: str, row: Tensor, header: Header, threshold: float | None) -> Prediction:
    """Return what probabilities (classes,) say, with the names of the classes."""
    order = row.argsort(descending=True, stable=True).tolist()
    values = row.tolist()
    found = {header.classes[i]: values[i] for i in order}
    several = CRITERIA[header.criterion].several
    if several and threshold is None:
        least = dict(zip(header.classes, header.thresholds, strict=True))
        return Prediction(source, found, labels=tuple(name for name, p in found.items() if p >= least[name]))
    said = tuple(name for name, p in found.items() if p >= (threshold or 0.0))
    return Prediction(source, found, labels=said if several else said[:1])


def _order(first: Header, other: Header) -> Tensor:
    """Return where the classes of the first network are among those of another one."""
    if set(first.classes) != set(other.classes):
        missing = sorted(set(first.classes) ^ set(other.classes))
        raise DataError(
            f"{other.name}: its classes are not those of {first.name}; not in both: {', '.join(missing[:3])}"
        )
    if CRITERIA[first.criterion].several != CRITERIA[other.criterion].several:
        raise DataError(f"{other.name}: one class for each image and several cannot be averaged")
    return torch.tensor([other.classes.index(name) for name in first.classes])
