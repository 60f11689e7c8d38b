"""Prediction of images in batches; the next batch is read while one is computed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convatlas.core.preprocessing import TTA, Preprocessing
from convatlas.core.record import Record, at_least, between
from convatlas.data.decode.pixels import decode, pixels_of, read_image
from convatlas.engines.engine import Engine
from convatlas.errors import DataError
from convatlas.system.download import fetch_bytes
from convatlas.tasks.task import Prediction
from convatlas.weights.modelfile import Header


class EncodedImage(NamedTuple):
    """The bytes of an image file, and a name for it."""

    name: str
    data: bytes


ImageLike = str | Path | EncodedImage | Image.Image | NDArray[Any] | Tensor
"""A file or its bytes, a PIL image, or values: arrays (height, width[, channels]), tensors (channels, height, width).

Text that begins with http:// or https:// is a URL, which is fetched only if the options allow it.
"""


@dataclass(frozen=True)
class PredictOptions(Record):
    """How images are predicted.

    batch: images per forward pass. tta: test-time augmentation (see `Preprocessing.tta_views`); the predictions of the
    views are averaged. threshold: the minimum probability of a predicted class; by default the model's own.
    fetch: whether images may be fetched from URLs.
    """

    error = DataError

    batch: Annotated[int, at_least(1)] = 16
    tta: TTA = "none"
    threshold: Annotated[float, between(0, 1)] | None = None
    fetch: bool = False


class Member(Protocol):
    """One model of an ensemble."""

    @property
    def header(self) -> Header: ...

    @property
    def engine(self) -> Engine: ...


def stream(members: Sequence[Member], images: Iterable[ImageLike], options: PredictOptions) -> Iterator[Prediction]:
    """Yield one prediction for each image, in order; the predictions of the members are averaged.

    The next batch is read while one is computed. An unreadable image gives a prediction with an `error`.
    Raises DataError if the members were trained for different tasks or classes.
    """
    first = members[0].header
    order = [first.task.output_order(member.header.task, member.header.name, first.name) for member in members]
    preprocessings = list(dict.fromkeys(member.header.preprocessing for member in members))
    numbered = enumerate(images)
    with ThreadPoolExecutor(os.cpu_count()) as readers, ThreadPoolExecutor(1) as prefetcher:

        def read_batch() -> list[tuple[str, Future[list[Tensor]]]]:
            group = [(display_name(image, i), image) for i, image in islice(numbered, options.batch)]
            return [(name, readers.submit(load_views, image, name, preprocessings, options)) for name, image in group]

        next_batch = prefetcher.submit(read_batch)
        while batch := next_batch.result():
            next_batch = prefetcher.submit(read_batch)
            yield from _predict_batch(members, order, preprocessings, batch, options)


def display_name(image: ImageLike, number: int) -> str:
    """Return the file of an image, or its number."""
    if isinstance(image, EncodedImage):
        return image.name
    return str(image) if isinstance(image, str | Path) else f"image {number}"


def load_views(
    image: ImageLike, name: str, preprocessings: Sequence[Preprocessing], options: PredictOptions
) -> list[Tensor]:
    """Return the views (views, channels, size, size) of an image for each preprocessing.

    Raises DataError that names the image if it is unreadable.
    """
    pixels: dict[tuple[int, Any], Tensor] = {}
    if options.fetch and isinstance(image, str) and image.startswith(("http://", "https://")):
        image = EncodedImage(image, fetch_bytes(image))
    try:
        for steps in preprocessings:
            kind = (steps.channels, steps.window)
            if kind not in pixels:
                pixels[kind] = _read_pixels(image, name, steps)
        return [steps.tta_views(pixels[steps.channels, steps.window], options.tta) for steps in preprocessings]
    except DataError as error:
        raise error if str(error).startswith(name) else DataError(f"{name}: {error}") from error


def _read_pixels(image: ImageLike, name: str, steps: Preprocessing) -> Tensor:
    channels, window = steps.channels, steps.window
    if isinstance(image, EncodedImage):
        return read_image(Path(name), channels, window, data=image.data)
    if isinstance(image, str | Path):
        return read_image(Path(image), channels, window)
    if isinstance(image, Image.Image):
        return decode(image, channels, name, window)
    if isinstance(image, Tensor):
        if image.ndim != 3:
            raise DataError(f"a tensor must be (channels, height, width), got {tuple(image.shape)}")
        image = image.permute(1, 2, 0).cpu().numpy()
    return pixels_of(np.asarray(image), channels, name, window)


def _predict_batch(
    members: Sequence[Member], order: Sequence[Tensor], preprocessings: Sequence[Preprocessing],
    batch: Sequence[tuple[str, Future[list[Tensor]]]], options: PredictOptions,
) -> Iterator[Prediction]:  # fmt: skip
    """Yield the predictions of one batch."""
    results: list[tuple[str, list[Tensor] | DataError]] = []
    for name, future in batch:
        try:
            results.append((name, future.result()))
        except DataError as error:
            results.append((name, error))
    readable = [views for _, views in results if not isinstance(views, DataError)]
    rows: Iterator[Tensor] = iter(())
    if readable:
        decoded = []
        for member, columns in zip(members, order, strict=True):
            number = preprocessings.index(member.header.preprocessing)
            views = torch.stack([each[number] for each in readable])
            decoded.append(predict_views(member, views, options.batch)[:, columns])
        rows = iter(torch.stack(decoded).mean(0))
    header = members[0].header
    for name, result in results:
        if isinstance(result, DataError):
            yield header.task.unreadable(name, str(result))
        else:
            yield to_prediction(name, next(rows), header, options.threshold)


def predict_views(member: Member, views: Tensor, batch: int) -> Tensor:
    """Return the decoded outputs (n, outputs) of images (n, views, channels, size, size), averaged over the views."""
    count, each = views.shape[:2]
    outputs = torch.cat([member.engine.outputs(part) for part in views.flatten(0, 1).split(batch)])
    decoded = member.header.task.decode(outputs, member.header.calibration)
    mean: Tensor = decoded.unflatten(0, (count, each)).mean(1)
    return mean


def to_prediction(source: str, row: Tensor, header: Header, threshold: float | None = None) -> Prediction:
    """Return the prediction of a model for one image from its decoded outputs (outputs,)."""
    return header.task.predict(source, row, header.calibration, threshold)
