"""What networks say about pictures: read, looked at, answered and named, one batch ahead."""

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
from convatlas.data.decode.pixels import decode, pixels_of, read_picture
from convatlas.engines.engine import Engine
from convatlas.errors import DataError
from convatlas.system.download import fetch_bytes
from convatlas.tasks.classification.losses import CRITERIA
from convatlas.weights.modelfile import Header

NONE = "none of these"
"""What is said about a picture whose most probable class is not probable enough."""


class Encoded(NamedTuple):
    """The bytes of a picture file, and what to call it."""

    name: str
    data: bytes


Picture = str | Path | Encoded | Image.Image | NDArray[Any] | Tensor
"""A file or its bytes, a PIL picture, or values: arrays (height, width[, channels]), tensors (channels, height, width).

A text that begins with http:// or https:// is fetched, if that is asked for.
"""


@dataclass(frozen=True)
class Prediction:
    """What is said about one picture: all classes, most probable first; `error` says why it was unreadable.

    labels: the classes that the picture is said to be of: the most probable one, unless it is less probable than was
        asked for; where a picture may be of several, all above their thresholds.
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

    @property
    def answer(self) -> str:
        """What the picture is said to be: the labels, or that it is none of the classes."""
        return "" if self.error else ", ".join(self.labels) or NONE


@dataclass(frozen=True)
class Asked:
    """How pictures are to be looked at.

    batch: how many go through a network at once. views: how often each is looked at (see Preprocessing.views); the
        probabilities are the mean. threshold: the probability from which on a class is said to be there; the network's
        own where left out. fetch: whether pictures may be fetched from the network.
    """

    batch: int = 16
    views: Views = "one"
    threshold: float | None = None
    fetch: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise DataError(f"batch: {self.batch} is not a number of pictures from 1 on")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise DataError(f"threshold: {self.threshold:g} is not a probability from 0 to 1")


class Member(Protocol):
    """One of the networks that are asked; their probabilities are averaged."""

    @property
    def header(self) -> Header: ...

    @property
    def engine(self) -> Engine: ...


def stream(members: Sequence[Member], pictures: Iterable[Picture], asked: Asked) -> Iterator[Prediction]:
    """Yield what the members say about each picture, in order; the next batch is read meanwhile.

    A picture that cannot be read gives a prediction with an `error`. Raises DataError if the members were not trained
    for the same classes.
    """
    order = [_order(members[0].header, member.header) for member in members]
    steps = list(dict.fromkeys(member.header.preprocessing for member in members))
    numbered = enumerate(pictures)
    with ThreadPoolExecutor(os.cpu_count()) as readers, ThreadPoolExecutor(1) as ahead:

        def submitted() -> list[tuple[str, Future[list[Tensor]]]]:
            group = list(islice(numbered, asked.batch))
            return [(named(p, i), readers.submit(looked_at, p, named(p, i), steps, asked)) for i, p in group]

        coming = ahead.submit(submitted)
        while group := coming.result():
            coming = ahead.submit(submitted)
            yield from _answered(members, order, steps, group, asked)


def named(picture: Picture, number: int) -> str:
    """Return what a picture is called: its file, or its place in the order."""
    if isinstance(picture, Encoded):
        return picture.name
    return str(picture) if isinstance(picture, str | Path) else f"picture {number}"


def looked_at(picture: Picture, name: str, steps: Sequence[Preprocessing], asked: Asked) -> list[Tensor]:
    """Return the views of a picture for each kind of preprocessing; raises DataError that names it."""
    read: dict[tuple[int, Any], Tensor] = {}
    if asked.fetch and isinstance(picture, str) and picture.startswith(("http://", "https://")):
        picture = Encoded(picture, fetch_bytes(picture))
    try:
        for step in steps:
            kind = (step.channels, step.window)
            if kind not in read:
                read[kind] = _pixels(picture, name, step)
        return [step.views(read[step.channels, step.window], asked.views) for step in steps]
    except DataError as error:
        raise error if str(error).startswith(name) else DataError(f"{name}: {error}") from error


def _pixels(picture: Picture, name: str, steps: Preprocessing) -> Tensor:
    channels, window = steps.channels, steps.window
    if isinstance(picture, Encoded):
        return read_picture(Path(name), channels, window, data=picture.data)
    if isinstance(picture, str | Path):
        return read_picture(Path(picture), channels, window)
    if isinstance(picture, Image.Image):
        return decode(picture, channels, name, window)
    if isinstance(picture, Tensor):
        if picture.ndim != 3:
            raise DataError(f"a tensor is (channels, height, width), got {tuple(picture.shape)}")
        picture = picture.permute(1, 2, 0).cpu().numpy()
    return pixels_of(np.asarray(picture), channels, name, window)


def _answered(
    members: Sequence[Member], order: Sequence[Tensor], steps: Sequence[Preprocessing],
    group: Sequence[tuple[str, Future[list[Tensor]]]], asked: Asked,
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
                          asked.batch)[:, places]
            for member, places in zip(members, order, strict=True)
        ]  # fmt: skip
        rows = iter(torch.stack(told).mean(0))
    header = members[0].header
    for name, views in read:
        failed = isinstance(views, DataError)
        yield Prediction(name, {}, str(views)) if failed else answer_of(name, next(rows), header, asked.threshold)


def probabilities(member: Member, views: Tensor, batch: int) -> Tensor:
    """Return the calibrated probabilities (n, classes) of pictures (n, views, channels, size, size)."""
    count, each = views.shape[:2]
    outputs = torch.cat([member.engine.outputs(part) for part in views.flatten(0, 1).split(batch)])
    told = CRITERIA[member.header.criterion].probabilities(outputs / member.header.temperature)
    mean: Tensor = told.unflatten(0, (count, each)).mean(1)
    return mean


def answer_of(source: str, row: Tensor, header: Header, threshold: float | None) -> Prediction:
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
        raise DataError(f"{other.name}: one class for each picture and several cannot be averaged")
    return torch.tensor([other.classes.index(name) for name in first.classes])
