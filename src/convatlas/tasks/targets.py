"""Targets and batches of any task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convatlas.core.ragged import take

TargetColumn = Tensor | Sequence[Any]
"""A tensor whose first axis counts images, or a sequence with one value (such as the boxes) for each image."""


class Targets(Mapping[str, TargetColumn]):
    """The targets of images, as columns of equal length: one row for each image.

    Targets(label=(n,)) is enough for classification; Targets(objects=[Objects, ...]) contains those of a detector.
    """

    def __init__(self, **columns: TargetColumn) -> None:
        lengths = {name: len(column) for name, column in columns.items()}
        if not lengths or len(set(lengths.values())) > 1:
            raise ValueError(f"Targets: columns must have one length, got {lengths}")
        self._columns = columns

    def __getitem__(self, name: str) -> TargetColumn:
        return self._columns[name]

    def __iter__(self) -> Any:
        return iter(self._columns)

    def __len__(self) -> int:
        """The number of images."""
        return len(next(iter(self._columns.values())))

    def tensor(self, name: str) -> Tensor:
        """Return a column that is a tensor."""
        column = self._columns[name]
        if not isinstance(column, Tensor):
            raise TypeError(f"Targets: column {name!r} is a list with one value for each image, not a tensor")
        return column

    def take(self, indices: Tensor) -> Targets:
        """Return the rows with these indices, in this order."""
        return Targets(**{name: take(column, indices) for name, column in self._columns.items()})

    def with_columns(self, **columns: TargetColumn) -> Targets:
        """Return the targets with these columns added or replaced."""
        return Targets(**self._columns | columns)

    def to(self, device: torch.device | str) -> Targets:
        """Return the targets with every tensor on a device."""
        return Targets(**{name: _to(column, device) for name, column in self._columns.items()})

    def split(self, count: int) -> list[Targets]:
        """Cut the rows into `count` consecutive parts, as `Tensor.tensor_split` does; some may be empty."""
        return [self.take(part) for part in torch.arange(len(self)).tensor_split(count)]

    def to_bytes(self) -> bytes:
        """Return the values of all columns, for a fingerprint."""
        return b"".join(_to_bytes(column) for _, column in sorted(self._columns.items()))


def concatenate(parts: Sequence[Targets]) -> Targets:
    """Concatenate targets with the same columns."""
    columns: dict[str, TargetColumn] = {}
    for name in parts[0]:
        each = [part[name] for part in parts]
        tensors = [column for column in each if isinstance(column, Tensor)]
        columns[name] = (
            torch.cat(tensors) if len(tensors) == len(each) else [item for column in each for item in column]
        )
    return Targets(**columns)


def _to(column: TargetColumn, device: torch.device | str) -> TargetColumn:
    if isinstance(column, Tensor):
        return column.to(device)
    return [item.to(device) if isinstance(item, Tensor) else item for item in column]


def _to_bytes(column: TargetColumn) -> bytes:
    if isinstance(column, Tensor):
        return column.cpu().contiguous().numpy().tobytes()
    return b"".join(_item_to_bytes(item) for item in column)


def _item_to_bytes(item: Any) -> bytes:
    if isinstance(item, Tensor):
        return _to_bytes(item)
    own: bytes = item.to_bytes() if hasattr(item, "to_bytes") and not isinstance(item, int) else repr(item).encode()
    return own


@dataclass(frozen=True)
class Batch:
    """One process's share of a training batch.

    inputs: (n, channels, h, w) float32, or a list of n tensors (channels, h, w) where images differ in size.
    targets: n rows. indices: (n,), of the images in their split.
    size: images of the batch over all processes.
    """

    inputs: Tensor | list[Tensor]
    targets: Targets
    indices: Tensor
    size: int

    @property
    def device(self) -> torch.device:
        return self.indices.device

    def split(self, count: int) -> list[tuple[Any, Targets]]:
        """Return (inputs, targets) of `count` consecutive micro-batches; some may be empty."""
        if count == 1:
            return [(self.inputs, self.targets)]
        if isinstance(self.inputs, Tensor):
            inputs: Sequence[Any] = self.inputs.tensor_split(count)
        else:
            inputs = [take(self.inputs, piece) for piece in torch.arange(len(self.inputs)).tensor_split(count)]
        return list(zip(inputs, self.targets.split(count), strict=True))
