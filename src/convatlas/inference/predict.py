"""Prediction of images in batches; the next batch is read while one is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.core.ragged import Outputs, concatenate, split
from convatlas.engines.engine import Engine
from convatlas.errors import ConvatlasError, DataError, EngineError, ModelFileError
from convatlas.inference.contents import display_name
from convatlas.inference.images import ImageLike, Views, load_views
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


Item = TypeVar("Item")

Load = Callable[[Any, str, Sequence[Preprocessing], PredictOptions], list[Views]]
"""Returns the views of an image or video of that name for each preprocessing; raises DataError that names it."""


ReadBatch = list[tuple[str, list[Views] | DataError]]
"""The name of each image or video of a batch, and its views for each preprocessing, or why it is unreadable."""


class PredictedRow(NamedTuple):
    """The decoded outputs of an image or video, its objects, or the error because of which it has none.

    seconds: duration of a video.
    """

    source: str
    row: Any
    seconds: float | None = None


def stream(members: Sequence[Member], images: Iterable[ImageLike], options: PredictOptions) -> Iterator[Prediction]:
    """Yield one prediction for each image, in order; the predictions of the members are averaged.

    The next batch is read while one is computed. An unreadable image, one for which a network computes NaN or infinity,
    and a whole image for which the memory is too small give a prediction with an `error`.
    Raises DataError if the members were trained for different tasks or classes, or the task does not support an option.
    """
    group = MemberGroup.of(members, options)
    for source, row, _ in group.rows(images, load_views):
        yield to_prediction(source, row, group.header, threshold=options.threshold, top=options.top)


@dataclass(frozen=True)
class MemberGroup:
    """The models of an ensemble, or one model.

    order: for each member, the index of each class of the first one among its own. preprocessings: the different ones.
    """

    members: Sequence[Member]
    order: Sequence[Tensor]
    preprocessings: Sequence[Preprocessing]
    options: PredictOptions

    @classmethod
    def of(cls, members: Sequence[Member], options: PredictOptions) -> MemberGroup:
        """Raise DataError if members are for different tasks or classes, or the task does not support an option."""
        first = members[0].header
        options.check(first.task, members=len(members))
        order = [first.task.output_order(member.header.task, member.header.name, first.name) for member in members]
        return cls(members, order, list(dict.fromkeys(member.header.preprocessing for member in members)), options)

    @property
    def header(self) -> Header:
        """The header of the first member."""
        return self.members[0].header

    def rows(self, items: Iterable[Any], load: Load) -> Iterator[PredictedRow]:
        """Yield the row of each image or video, in order; the next batch is read while one is computed."""
        size = self.options.items_for(self.header.preprocessing)
        for batch in read_batches(items, load, self.preprocessings, self.options, self.header.task.noun, size):
            yield from self._compute(batch)

    def _compute(self, batch: ReadBatch) -> Iterator[PredictedRow]:
        """Yield the rows of one batch."""
        readable = [views for _, views in batch if not isinstance(views, DataError)]
        rows = iter(self.average(readable) if readable else ())
        for name, result in batch:
            if isinstance(result, DataError):
                yield PredictedRow(name, result)
            else:
                yield PredictedRow(name, next(rows), result[0].seconds)

    def average(self, items: Sequence[Sequence[Views]]) -> Sequence[Any]:
        """Return the decoded outputs of each image or video, averaged over the members.

        items: for each, its views for every one of `preprocessings`. If the engine fails for a batch of whole images,
        they are predicted one by one; the row of one that fails alone is the EngineError.
        """
        numbers = [self.preprocessings.index(member.header.preprocessing) for member in self.members]
        try:
            decoded = [
                predict_views(member, [views[number] for views in items], self.options)
                for member, number in zip(self.members, numbers, strict=True)
            ]
        except EngineError as error:
            if isinstance(items[0][0].pixels, Tensor):
                raise  # inputs of one size fail alike
            if len(items) == 1:
                return [error]
            return [row for item in items for row in self.average([item])]
        return [self.mean(rows) for rows in zip(*decoded, strict=True)]

    def mean(self, rows: Sequence[Any]) -> Any:
        """Return the mean of the decoded outputs of each member for one image, video or clip."""
        if len(rows) == 1:
            return rows[0]
        return torch.stack([row[columns] for row, columns in zip(rows, self.order, strict=True)]).mean(0)


def read_batches(
    items: Iterable[Any], load: Load, preprocessings: Sequence[Preprocessing], options: PredictOptions, noun: str,
    size: int,
) -> Iterator[ReadBatch]:  # fmt: skip
    """Yield images or videos in batches of `size`, in order, while the next batch is read by all cores."""
    numbered = enumerate(items)
    with ThreadPoolExecutor(count_cores()) as readers, ThreadPoolExecutor(1) as prefetcher:

        def read_batch() -> list[tuple[str, Future[list[Views]]]]:
            group = [(display_name(item, noun, i), item) for i, item in islice(numbered, size)]
            return [(name, readers.submit(load, item, name, preprocessings, options)) for name, item in group]

        next_batch = prefetcher.submit(read_batch)
        while batch := next_batch.result():
            next_batch = prefetcher.submit(read_batch)
            yield [(name, _views_or_error(future)) for name, future in batch]


def _views_or_error(future: Future[list[Views]]) -> list[Views] | DataError:
    try:
        return future.result()
    except DataError as error:
        return error


def prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """Yield items while a thread computes the next one."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(lambda: list(islice(items, 1)))
        while taken := following.result():
            following = pool.submit(lambda: list(islice(items, 1)))
            yield taken[0]


def predict_views(member: Member, images: Sequence[Views], options: PredictOptions) -> list[Any]:
    """Return for each image its decoded outputs (outputs,), averaged over its views or clips; or its objects.

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


def check_finite(outputs: Outputs, where: object, noun: str = "image") -> None:
    """Raise ModelFileError if outputs of a network are not finite: they would count as predictions."""
    if isinstance(outputs, Tensor):
        bad = int((~outputs.flatten(1).isfinite().all(1)).sum())
    else:
        bad = sum(not row.isfinite().all() for row in outputs)
    if bad:
        raise ModelFileError(
            f"{where}: the outputs must be finite, got NaN or infinity for {bad:,} of {len(outputs):,} {noun}s; the "
            "weights are damaged, or overflow"
        )


def to_prediction(
    source: str, row: Any, header: Header, *, threshold: float | None = None, top: int | None = None
) -> Prediction:
    """Return the prediction of a model for one image or video; see `PredictOptions`.

    row: its decoded outputs (outputs,), its objects, or the error because of which it has none.
    """
    if isinstance(row, ConvatlasError):
        error = str(row)
        return header.task.unreadable(source, error if isinstance(row, DataError) else f"{source}: {error}")
    if not row.isfinite().all():
        return header.task.unreadable(
            source, f"{source}: the network computes NaN or infinity for this {header.task.noun}"
        )
    prediction = header.task.predict(source, row, header.calibration, threshold)
    return prediction if top is None else prediction.with_top(top)
