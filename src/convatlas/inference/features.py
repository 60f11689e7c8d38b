"""Features of one image or video, read as for a prediction, and regions of a data set that excite a channel."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

from torch import Tensor

from convatlas.core.problems import Problems
from convatlas.core.ragged import concatenate
from convatlas.core.record import Record, at_least
from convatlas.data.open import open_data
from convatlas.data.readers.memory import Data
from convatlas.data.source import Source
from convatlas.errors import DataError, EngineError, InputError, SpecError, nearest
from convatlas.explanation.activation_maximization import STEPS, MaximizedImage, Objective, channel_objective, maximize
from convatlas.explanation.feature_maps import stage_maps
from convatlas.explanation.feature_view import FeatureView
from convatlas.explanation.filters import Filters, first_filters
from convatlas.explanation.receptive_field import ReceptiveField, measure_receptive_field
from convatlas.explanation.top_regions import TOP, Batch, TopRegions, find_top_regions
from convatlas.inference.collect import Collection, collect
from convatlas.inference.contents import display_name
from convatlas.inference.explanations import NetworkMember
from convatlas.inference.images import load_views
from convatlas.inference.inputs import KINDS, VIDEOS, InputKind
from convatlas.inference.options import PredictOptions
from convatlas.inference.predict import read_batches
from convatlas.inference.videos import load_clips
from convatlas.system.progress import Progress
from convatlas.tasks.explained import Explained
from convatlas.tasks.score import Score
from convatlas.tasks.task import Task
from convatlas.weights.modelfile import Header

MAPS = 8
"""Default number of feature maps of a stage."""


@dataclass(frozen=True)
class FeatureOptions(Record):
    """What is shown of a network.

    layer: a tap such as "stages.3"; by default the last one with a map. channel: by default the strongest one of the
    layer on the image. unit: its position in the map, (y, x), of clips (frame, y, x); by default that of the largest
    value. maps: feature maps of each stage. top: regions of the data set.
    maximize: an image that the channel has a large value for, or, with `label`, the class. steps, seed: of that.
    """

    error = InputError

    layer: str | None = None
    channel: int | None = None
    unit: tuple[int, ...] | None = None
    maps: Annotated[int, at_least(1)] = MAPS
    top: Annotated[int, at_least(1)] = TOP
    maximize: bool = False
    label: str | None = None
    steps: Annotated[int, at_least(1)] = STEPS
    seed: Annotated[int, at_least(0)] = 0


def view_features(
    model: NetworkMember, image: Collection, options: FeatureOptions, data: Data | None = None,
    reading: PredictOptions | None = None, progress: Progress | None = None,
) -> FeatureView:  # fmt: skip
    """Return the features of one image or video; see `Model.features`.

    reading: the batch size for `data`, and whether URLs are fetched. Everything that can be refused without reading the
    data set or optimizing an image is refused first.
    """
    reading = reading or PredictOptions()
    header = model.header
    if model.network is None:
        raise EngineError(
            f"{header.name}: features need the layers of a network, which an exported file does not have; use the "
            "model file it came from"
        )
    is_video = KINDS[header.preprocessing.reads] is VIDEOS
    if options.label is not None:
        _check_label(options.label, header)
    source, pixels = _read_one(image, header, reading)
    explained = _explained(model, pixels)
    rotate = header.preprocessing.rotate
    layer = options.layer or _default_layer(explained)
    field = None
    if layer:
        field = measure_receptive_field(explained, pixels, layer, options.channel, options.unit)
    elif (options.channel, options.unit, data) != (None, None, None) or (options.maximize and not options.label):
        raise SpecError(f"{header.name}: no layer on the main path has a map, which a channel, a unit and data need")
    items = None if data is None else data_items(data, KINDS[header.preprocessing.reads], progress)
    stages = stage_maps(explained.network, explained.network.first_inputs(explained.inputs(pixels)), options.maps)
    regions: TopRegions | None = None
    unreadable: list[str] = []
    if items is not None and field is not None:
        batches = _batches(items, header, reading, unreadable, progress)
        noun = "clip" if is_video else "image"
        regions = find_top_regions(explained, batches, field.layer, field.channel, options.top, noun=noun)
        if not regions.regions:
            raise DataError(unreadable[0] if unreadable else f"{data}: no {noun}s")
    maximized = None
    if options.maximize or options.label is not None:
        maximized = _maximize(explained, header, options, pixels, field, progress)
    return FeatureView(
        source, header.name, pixels[0], _filters(explained),
        tuple(replace(stage, maps=rotate(stage.maps)) for stage in stages), field, regions, maximized,
        tuple(unreadable),
    )  # fmt: skip


def _check_label(label: str, header: Header) -> None:
    if header.preprocessing.is_whole:
        raise InputError(
            f"features: class must be of a classifier, got {label!r} of a detector; maximize a channel instead"
        )
    if label not in header.task.classes:
        hint = nearest(label, header.task.classes)
        raise InputError(f"features: class must be a class of the model, got {label!r}{hint}")


def _read_one(image: Collection, header: Header, reading: PredictOptions) -> tuple[str, Any]:
    """Return the name and the pixels, a batch of one, of one image, or of the middle clip of one video."""
    steps, noun = header.preprocessing, header.task.noun
    kind = KINDS[steps.reads]
    collected = collect(image, kind, fetch=reading.fetch)
    items = list(collected.items)
    if len(items) != 1:
        raise InputError(f"features: image must be one {noun}, got {len(items):,}; give one, and others as data")
    name = display_name(items[0], noun, 0)
    (views,) = (load_clips if kind is VIDEOS else load_views)(items[0], name, [steps], reading)
    middle = len(views.pixels) // 2
    return name, views.pixels[middle : middle + 1]


def _explained(model: NetworkMember, pixels: Any) -> Explained:
    """Return the network as explanations read it; the box of detectors is the whole image, and is not used."""
    task = model.header.task
    height, width = pixels[0].shape[-2:]
    whole = Score(task.classes[0], 0, box=(0.0, 0.0, float(width), float(height)), size=(height, width))
    assert model.network is not None
    return task.explained(model.network, model.header.preprocessing, whole)


def _default_layer(explained: Explained) -> str:
    """Return the last layer with a map; "" if that is the input itself, as in front of an own module."""
    layer, stem = explained.default_layer, explained.network.stem
    return "" if layer == "stem" and not any(True for _ in stem.parameters()) else layer


def _filters(explained: Explained) -> Filters | None:
    """Return the first filters as they lie on the view; None without a convolution."""
    try:
        filters = first_filters(explained.network)
    except SpecError:
        return None
    return replace(filters, weights=explained.preprocessing.rotate(filters.weights))


def _maximize(
    explained: Explained, header: Header, options: FeatureOptions, pixels: Any, field: ReceptiveField | None,
    progress: Progress | None,
) -> MaximizedImage:  # fmt: skip
    """Return the image for the class of the options, or else for the channel of the receptive field."""
    if options.label is not None:
        score = Score(options.label, header.task.classes.index(options.label))
        target = f"logit of the class {options.label}"

        objective: Objective = partial(_logit, explained, header.task, score)
    else:
        assert field is not None
        objective = channel_objective(explained, field.layer, field.channel)
        target = f"mean of {field.layer}, channel {field.channel}"
    return maximize(explained, objective, target, pixels, steps=options.steps, seed=options.seed, progress=progress)


def _logit(explained: Explained, task: Task, score: Score, pixels: Any) -> Tensor:
    return task.logit(explained.outputs(explained.inputs(pixels)), score)


def data_items(data: Data, kind: InputKind, progress: Progress | None = None) -> Iterable[Any]:
    """Return the images or videos of data: a data set of all its splits, without labels; or what `predict` takes.

    Raises DataError for what is neither.
    """
    reads = next(name for name, each in KINDS.items() if each is kind)
    try:
        return _items_of(open_data(data, reads=reads, progress=progress, problems=Problems()))
    except DataError as error:
        is_name = isinstance(data, str | os.PathLike)
        is_pattern = is_name and glob.has_magic(os.fspath(data))
        if is_name and not is_pattern and not os.path.isdir(os.path.expanduser(data)):
            raise
        try:
            return collect(data, kind).items
        except DataError as second:  # labels are not read, so that folders of classes need not be asked for
            raise (second if is_pattern or error.kind == "few_classes" else error) from None


def _items_of(source: Source) -> Iterator[Any]:
    for samples in source.splits.values():
        yield from samples.names if samples.pixels is None else samples.pixels


def _batches(
    items: Iterable[Any], header: Header, reading: PredictOptions, unreadable: list[str], progress: Progress | None
) -> Iterator[Batch]:
    """Yield names and pixels of images, or of clips, in batches; errors of unreadable ones are added to a list."""
    steps, noun = header.preprocessing, header.task.noun
    size = 1 if steps.is_whole else reading.items_for(steps)
    load = load_clips if KINDS[steps.reads] is VIDEOS else load_views
    done = 0
    for batch in read_batches(items, load, [steps], reading, noun, size):
        read = [(name, views[0].pixels) for name, views in batch if not isinstance(views, DataError)]
        unreadable += [str(views) for _, views in batch if isinstance(views, DataError)]
        if read:
            names = [
                name if len(pixels) == 1 else f"{name}, clip {number}"
                for name, pixels in read
                for number in range(len(pixels))
            ]
            yield names, concatenate([pixels for _, pixels in read])
        done += len(batch)
        if progress:
            progress("reading the data", done, 0)
