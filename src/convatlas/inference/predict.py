"""Prediction of images in batches; the next batch is read while one is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.core.ragged import Outputs, concatenate, split
from convatlas.engines.engine import Engine
from convatlas.errors import ConvatlasError, DataError, EngineError, ModelFileError
from convatlas.inference.images import ImageLike, Views, display_name, load_views
from convatlas.inference.options import PredictOptions
from convatlas.system.cores import count_cores
from convatlas.tasks.prediction import Prediction
from convatlas.weights.modelfile import Header


class Member(Protocol):
    """One model of an ensemble."""

    @property
    def header(self) -> Header: ...

    @property
    def engine(self) -> Engine: ...


def stream(members: Sequence[Member], images: Iterable[ImageLike], options: PredictOptions) -> Iterator[Prediction]:
    """Yield one prediction for each image, in order; the predictions of the members are averaged.

    The next batch is read while one is computed. An unreadable image, one for which a network computes NaN or infinity,
    and a whole image for which the memory is too small give a prediction with an `error`.
    Raises DataError if the members were trained for different tasks or classes, or the task does not support an option.
    """
    first = members[0].header
    options.check(first.task, members=len(members))
    size = options.batch_for(first.preprocessing)
    order = [first.task.output_order(member.header.task, member.header.name, first.name) for member in members]
    preprocessings = list(dict.fromkeys(member.header.preprocessing for member in members))
    numbered = enumerate(images)
    with ThreadPoolExecutor(count_cores()) as readers, ThreadPoolExecutor(1) as prefetcher:

        def read_batch() -> list[tuple[str, Future[list[Views]]]]:
            group = [(display_name(image, i), image) for i, image in islice(numbered, size)]
            return [(name, readers.submit(load_views, image, name, preprocessings, options)) for name, image in group]

        next_batch = prefetcher.submit(read_batch)
        while batch := next_batch.result():
            next_batch = prefetcher.submit(read_batch)
            yield from _predict_batch(members, order, preprocessings, batch, options)


def _predict_batch(
    members: Sequence[Member], order: Sequence[Tensor], preprocessings: Sequence[Preprocessing],
    batch: Sequence[tuple[str, Future[list[Views]]]], options: PredictOptions,
) -> Iterator[Prediction]:  # fmt: skip
    """Yield the predictions of one batch."""
    results: list[tuple[str, list[Views] | DataError]] = []
    for name, future in batch:
        try:
            results.append((name, future.result()))
        except DataError as error:
            results.append((name, error))
    readable = [views for _, views in results if not isinstance(views, DataError)]
    rows = iter(_average(members, order, preprocessings, readable, options) if readable else ())
    header = members[0].header
    for name, result in results:
        row = result if isinstance(result, DataError) else next(rows)
        yield to_prediction(name, row, header, threshold=options.threshold, top=options.top)


def _average(
    members: Sequence[Member], order: Sequence[Tensor], preprocessings: Sequence[Preprocessing],
    images: Sequence[list[Views]], options: PredictOptions,
) -> Sequence[Any]:  # fmt: skip
    """Return the decoded outputs of each image, averaged over the members.

    If the engine fails for a batch of whole images, they are predicted one by one; the row of one that fails alone is
    the EngineError.
    """
    numbers = [preprocessings.index(member.header.preprocessing) for member in members]
    try:
        decoded = [
            predict_views(member, [views[number] for views in images], options)
            for member, number in zip(members, numbers, strict=True)
        ]
    except EngineError as error:
        if isinstance(images[0][0].pixels, Tensor):
            raise  # images of one size fail alike
        if len(images) == 1:
            return [error]
        return [row for image in images for row in _average(members, order, preprocessings, [image], options)]
    if len(members) == 1:
        return decoded[0]
    rows = [torch.stack(rows)[:, columns] for rows, columns in zip(decoded, order, strict=True)]
    return list(torch.stack(rows).mean(0))


def predict_views(member: Member, images: Sequence[Views], options: PredictOptions) -> list[Any]:
    """Return for each image its decoded outputs (outputs,), averaged over its views; or its objects.

    They are NaN for an image if any output of the network for it is not finite.
    """
    task, batch = member.header.task, options.batch_for(member.header.preprocessing)
    batches = split(concatenate([image.pixels for image in images]), batch)
    outputs: Outputs = concatenate([task.collect(member.engine.outputs(pixels), pixels) for pixels in batches])
    decoded = task.decode(outputs, member.header.calibration)
    if isinstance(outputs, Tensor):  # the decoded ones may be finite: sigmoid(inf) is 1
        decoded = decoded.where(outputs.isfinite().all(1, keepdim=True), torch.nan)
    rows, start = [], 0
    for image in images:
        end = start + len(image.corners)
        row = task.merge(decoded[start:end], image.corners, options.nms)
        rows.append(task.keep_classes(row, options.classes) if options.classes else row)
        start = end
    return rows


def check_finite(outputs: Outputs, where: object) -> None:
    """Raise ModelFileError if outputs of a network are not finite: they would count as predictions."""
    if isinstance(outputs, Tensor):
        bad = int((~outputs.flatten(1).isfinite().all(1)).sum())
    else:
        bad = sum(not row.isfinite().all() for row in outputs)
    if bad:
        raise ModelFileError(
            f"{where}: the outputs must be finite, got NaN or infinity for {bad:,} of {len(outputs):,} images; the "
            "weights are damaged, or overflow"
        )


def to_prediction(
    source: str, row: Any, header: Header, *, threshold: float | None = None, top: int | None = None
) -> Prediction:
    """Return the prediction of a model for one image; see `PredictOptions`.

    row: its decoded outputs (outputs,), its objects, or the error because of which it has none.
    """
    if isinstance(row, ConvatlasError):
        error = str(row)
        return header.task.unreadable(source, error if isinstance(row, DataError) else f"{source}: {error}")
    if not row.isfinite().all():
        return header.task.unreadable(source, f"{source}: the network computes NaN or infinity for this image")
    prediction = header.task.predict(source, row, header.calibration, threshold)
    return prediction if top is None else prediction.with_top(top)
