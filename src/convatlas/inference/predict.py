"""Prediction of images in batches; the next batch is read while one is computed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convatlas.core.preprocessing import TTA, Preprocessing
from convatlas.core.record import Record, at_least, between
from convatlas.data.decode.files import memory_errors
from convatlas.data.decode.pixels import array_pixels, decode, read_image
from convatlas.engines.engine import Engine
from convatlas.errors import DataError, ModelFileError, foreign_errors, printable
from convatlas.system.cores import count_cores
from convatlas.system.download import fetch_bytes
from convatlas.tasks.prediction import Prediction
from convatlas.weights.modelfile import Header


class EncodedImage(NamedTuple):
    """The bytes of an image file, and a name for it."""

    name: str
    data: bytes


ImageLike = (
    str | os.PathLike[str] | EncodedImage | bytes | bytearray | memoryview | IO[bytes] | Image.Image | NDArray[Any]
    | Tensor
)  # fmt: skip
"""A file, the bytes of one, an open one, a PIL image, or values: arrays (height, width[, channels]) or (1 or 3, height,
width), tensors (channels, height, width). Color is in the order red, green, blue.

Text that begins with http:// or https:// is a URL, which is fetched only if the options allow it.
"""


URL_SCHEMES = ("http://", "https://")

NOT_FETCHED = "images are downloaded only with --fetch (fetch=True in Python)"


@dataclass(frozen=True)
class PredictOptions(Record):
    """How images are predicted.

    batch: images per forward pass. tta: test-time augmentation (see `Preprocessing.tta_views`); the predictions of the
    views are averaged. threshold: the minimum probability of a predicted class; by default the model's own.
    fetch: whether images may be fetched from URLs. top: maximum number of classes in `probabilities`; all if None.
    """

    error = DataError

    batch: Annotated[int, at_least(1)] = 16
    tta: TTA = "none"
    threshold: Annotated[float, between(0, 1)] | None = None
    fetch: bool = False
    top: Annotated[int, at_least(1)] | None = None


class Member(Protocol):
    """One model of an ensemble."""

    @property
    def header(self) -> Header: ...

    @property
    def engine(self) -> Engine: ...


def stream(members: Sequence[Member], images: Iterable[ImageLike], options: PredictOptions) -> Iterator[Prediction]:
    """Yield one prediction for each image, in order; the predictions of the members are averaged.

    The next batch is read while one is computed. An unreadable image, and one for which a network computes NaN or
    infinity, gives a prediction with an `error`.
    Raises DataError if the members were trained for different tasks or classes.
    """
    first = members[0].header
    order = [first.task.output_order(member.header.task, member.header.name, first.name) for member in members]
    preprocessings = list(dict.fromkeys(member.header.preprocessing for member in members))
    numbered = enumerate(images)
    with ThreadPoolExecutor(count_cores()) as readers, ThreadPoolExecutor(1) as prefetcher:

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
    name = getattr(image, "name", None) if hasattr(image, "read") else image
    return os.fspath(name) if isinstance(name, str | os.PathLike) and os.fspath(name) else f"image {number}"


def load_views(
    image: ImageLike, name: str, preprocessings: Sequence[Preprocessing], options: PredictOptions
) -> list[Tensor]:
    """Return the views (views, channels, size, size) of an image for each preprocessing.

    Raises DataError that names the image if it is unreadable.
    """
    pixels: dict[tuple[int, Any], Tensor] = {}
    if isinstance(image, str) and image.startswith(URL_SCHEMES):
        if not options.fetch:
            raise DataError(f"{name}: {NOT_FETCHED}")
        image = EncodedImage(image, fetch_bytes(image))
    try:
        image = _read_contents(image, name)
        with memory_errors(name):
            for steps in preprocessings:
                kind = (steps.channels, steps.window)
                if kind not in pixels:
                    pixels[kind] = _read_pixels(image, name, steps)
            return [steps.tta_views(pixels[steps.channels, steps.window], options.tta) for steps in preprocessings]
    except DataError as error:
        if isinstance(image, str | os.PathLike) and os.path.isdir(image):
            raise DataError(f"{name}: no images in this folder") from error
        is_named = str(error).startswith(printable(f"{name}: "))
        raise error if is_named else DataError(f"{name}: {error}") from error


def _read_contents(image: ImageLike, name: str) -> ImageLike:
    """Return bytes and open files as an encoded image; others as they are."""
    with foreign_errors(name, DataError):
        if isinstance(image, bytes | bytearray | memoryview):
            return EncodedImage(name, bytes(image))
        if isinstance(image, EncodedImage | Image.Image | np.ndarray | Tensor) or not hasattr(image, "read"):
            return image
        data = image.read()
        if not isinstance(data, bytes):
            raise DataError(f"{name}: an open file must be in binary mode, got {type(data).__name__} from it")
        if not data:
            raise DataError(f"{name}: has no bytes to read: the file is empty, or at its end (call seek(0))")
        return EncodedImage(name, data)


def _read_pixels(image: ImageLike, name: str, steps: Preprocessing) -> Tensor:
    channels, window = steps.channels, steps.window
    if isinstance(image, EncodedImage):
        return read_image(Path(name), channels, window, data=image.data)
    if isinstance(image, str | os.PathLike):
        if not os.fspath(image):
            raise DataError(f"{name}: the name of the file is empty")
        return read_image(os.path.expanduser(image), channels, window)
    if isinstance(image, Image.Image):
        return decode(image, channels, name, window)
    with foreign_errors(name, DataError, "is not an array of pixels"):
        values = _values_of_tensor(image) if isinstance(image, Tensor) else np.asarray(image)
    if values.dtype == object and not values.ndim:
        raise DataError(f"{name}: is not an image, but {type(image).__name__}")
    return array_pixels(values, channels, name, window)


def _values_of_tensor(image: Tensor) -> NDArray[Any]:
    """Return a tensor (channels, h, w) of any type and device as an array (h, w, channels)."""
    if image.ndim != 3:
        raise DataError(f"a tensor must be (channels, height, width), got {tuple(image.shape)}")
    values = image.float() if image.is_floating_point() else image
    return np.moveaxis(values.numpy(force=True), 0, -1)


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
            yield to_prediction(name, next(rows), header, threshold=options.threshold, top=options.top)


def predict_views(member: Member, views: Tensor, batch: int) -> Tensor:
    """Return the decoded outputs (n, outputs) of images (n, views, channels, size, size), averaged over the views.

    They are NaN for an image if any output of the network for it is not finite.
    """
    count, each = views.shape[:2]
    outputs = torch.cat([member.engine.outputs(part) for part in views.flatten(0, 1).split(batch)])
    decoded = member.header.task.decode(outputs, member.header.calibration)
    finite = outputs.isfinite().all(1, keepdim=True)  # the decoded ones may be: sigmoid(inf) is 1
    mean: Tensor = decoded.where(finite, torch.nan).unflatten(0, (count, each)).mean(1)
    return mean


def check_finite(outputs: Tensor, where: object) -> None:
    """Raise ModelFileError if outputs (n, ...) of a network are not finite: they would count as predictions."""
    bad = int((~outputs.flatten(1).isfinite().all(1)).sum())
    if bad:
        raise ModelFileError(
            f"{where}: the outputs must be finite, got NaN or infinity for {bad:,} of {len(outputs):,} images; the "
            "weights are damaged, or overflow"
        )


def to_prediction(
    source: str, row: Tensor, header: Header, *, threshold: float | None = None, top: int | None = None
) -> Prediction:
    """Return the prediction of a model for one image from its decoded outputs (outputs,); see `PredictOptions`."""
    if not row.isfinite().all():
        return header.task.unreadable(source, f"{source}: the network computes NaN or infinity for this image")
    prediction = header.task.predict(source, row, header.calibration, threshold)
    return prediction if top is None else prediction.with_top(top)
