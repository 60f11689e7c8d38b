"""Batches whose items differ in size: lists in place of tensors, for images as for outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Inputs = Tensor | list[Tensor]
"""Images: (n, channels, h, w), or a list of n tensors (channels, h, w) of any size."""

Outputs = Tensor | list[Any]
"""Outputs of n images: (n, outputs), or a list with one item for each image."""


def concatenate(parts: Sequence[Outputs]) -> Outputs:
    """Return the outputs of several batches as one."""
    if isinstance(parts[0], Tensor):
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    return [item for part in parts for item in part]


def take(items: Tensor | Sequence[Any], indices: Tensor) -> Any:
    """Return the rows of a tensor, or the items of a sequence as a list, with these indices, in this order."""
    if isinstance(items, Tensor):
        return items[indices.to(items.device)]
    return [items[i] for i in indices.tolist()]


def split(inputs: Inputs, size: int) -> list[Inputs]:
    """Cut images into batches of at most `size`."""
    if isinstance(inputs, Tensor):
        return list(inputs.split(size))
    return [inputs[start : start + size] for start in range(0, len(inputs), size)]


def to_device(value: Any, device: torch.device | str) -> Any:
    """Return a tensor, or tensors in lists and mappings, on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    return [to_device(item, device) for item in value] if isinstance(value, list | tuple) else value
