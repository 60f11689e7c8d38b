"""The embedding of a data set by a model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convatlas.data.open import open_for_evaluation
from convatlas.data.readers.media import MEDIA
from convatlas.data.readers.memory import Data, is_in_memory
from convatlas.data.samples import Samples
from convatlas.data.source import Source
from convatlas.engines.evaluation import Forward, compute_outputs
from convatlas.errors import DataError
from convatlas.explanation.embedding import Embedding
from convatlas.explanation.features import feature_forward
from convatlas.inference.contents import display_name
from convatlas.inference.images import load_views
from convatlas.inference.inputs import VIDEOS
from convatlas.inference.load import load
from convatlas.inference.model import Model
from convatlas.inference.options import PredictOptions
from convatlas.inference.predict import check_finite
from convatlas.inference.splits import load_source
from convatlas.inference.videos import load_clips
from convatlas.system.progress import Progress
from convatlas.tasks.targets import Targets
from convatlas.weights.modelfile import Header

UNLABELED = ("",)
"""The classes of a folder of images without labels."""


def embed(
    model: str | os.PathLike[str] | Model, data: Data, *, layer: str = "", split: str = "all",
    max_unreadable: float | None = None, progress: Progress | None = None, module: nn.Module | None = None,
) -> Embedding:  # fmt: skip
    """Return the features of the images or videos of a data set.

    model: a model, or what `load` takes. data: as for `evaluate`, with any classes; also a folder of images or videos
    without labels. layer: a tap such as "stages.3", whose maps are averaged over their positions; by default the input
    of the layer that computes class scores, and the last map of the body of a detector. Features of a video are the
    means over its clips. split: "train", "val", "test" or "all". max_unreadable: see `Model.evaluate`. module: see
    `load`.
    Raises SpecError for a layer that is not there, EngineError for an exported file, and DataError for data that cannot
    be read.
    """
    opened = model if isinstance(model, Model) else load(model, module=module)
    header = opened.header
    forward = feature_forward(opened.module, header, layer)
    source = _open(data, header, progress)
    dataset = load_source(source, header, max_unreadable=max_unreadable, progress=progress)
    if split != "all" and split not in dataset.splits:
        known = ", ".join((*dataset.splits, "all"))
        raise DataError(f"{source.location}: split must be one of {known}, got {split!r}")
    images = dataset.whole if split == "all" else dataset.splits[split]
    parts = dataset.splits if split == "all" else {split: images}
    features: Tensor = compute_outputs(forward, images, progress=progress)
    if features.ndim > 2:  # of clips
        features = features.mean(1)
    check_finite(features, header.name, header.task.noun)
    task = dataset.task
    labels = tuple(task.describe(images.targets, i) for i in range(len(images)))
    return Embedding(
        names=tuple(images.names), labels=labels,
        splits=tuple(name for name, part in parts.items() for _ in range(len(part))), features=features, layer=layer,
        model=header.name, data=dataset.name, noun=task.noun, has_classes=set(labels) <= set(task.classes),
        prepared=images, read=_Reader(header, forward), unreadable=dataset.unreadable, remarks=dataset.remarks,
    )  # fmt: skip


def _open(data: Data, header: Header, progress: Progress | None) -> Source:
    """Return the source that `data` names; of a folder without class folders, its images or videos without labels."""
    steps = header.preprocessing
    try:
        source = open_for_evaluation(
            data, reads=steps.reads, group_pattern=header.training.group_pattern, progress=progress
        )
    except DataError as error:
        if error.kind != "few_classes" or is_in_memory(data) or steps.is_whole:
            raise
        return _open_unlabeled(Path(data).expanduser(), steps.reads, progress)
    return source.for_task(header.task.short_name) if steps.is_whole else source


def _open_unlabeled(folder: Path, reads: str, progress: Progress | None) -> Source:
    media = MEDIA[reads]
    names, ignored = media.list_files(folder)
    if not names:
        raise DataError(f"{folder}: no {media.nouns} in this folder{'; ' if ignored else ''}{ignored.text()}")
    samples = Samples(names, Targets(label=torch.zeros(len(names), dtype=torch.int64)))
    return media.source(
        folder.resolve().name, str(folder.resolve()), media.task(UNLABELED), {"train": samples}, ignored=ignored,
        notes=(), progress=progress,
    )  # fmt: skip


@dataclass(frozen=True)
class _Reader:
    """Reads an image or video that need not be part of the data."""

    header: Header
    forward: Forward

    def __call__(self, image: Any) -> tuple[str, Tensor, Tensor]:
        steps, noun = self.header.preprocessing, self.header.task.noun
        name = display_name(image, noun, 0)
        read: Any = load_clips if noun == VIDEOS.noun else load_views
        (views,) = read(image, name, [steps], PredictOptions())
        return name, self.forward(views.pixels).mean(0), views.pixels[0]
