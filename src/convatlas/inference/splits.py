"""Data sets prepared for a model: with the val split that its training drew, where the data is its training data."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from convatlas.data.dataset import Dataset
from convatlas.data.source import Source
from convatlas.errors import DataError
from convatlas.system.progress import Progress
from convatlas.weights.modelfile import Header


def load_source(
    source: Source, header: Header, *, max_unreadable: float | None = None, progress: Progress | None = None
) -> Dataset:
    """Return a source prepared as a model reads it; the training data gets the val split of the training.

    max_unreadable: maximum share of unreadable images, which are skipped and listed; by default that of the training.
    """
    training = header.training
    if max_unreadable is None:
        max_unreadable = training.max_unreadable
    splits = source.splits
    with suppress(DataError):  # data other than the training data may have too few images to split
        splits = source.with_val(seed=training.seed, val_share=training.val_share, fold=training.fold)
    dataset = replace(source, splits=splits).load(
        header.preprocessing, max_unreadable=max_unreadable, all_classes=False, progress=progress
    )
    if "val" not in source.splits and dataset.fingerprint() != training.fingerprint:
        return dataset.without_val()  # not the training data
    return dataset
