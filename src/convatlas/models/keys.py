"""Key rules: from the tensor names of another library's checkpoint to the paths in our trees."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from convatlas.errors import WeightsError

Rules = Sequence[tuple[str, str]]
"""(pattern, template) pairs: each is applied in order, wherever its pattern occurs in the name.

A template may contain the groups of its pattern, and numbers with an offset: "{1}", "{1-1}", "{2+3}". A name that
becomes empty is a tensor that has no place in our tree and is left out on purpose.
"""

KeyMapping = Callable[[Any], Rules]
"""Spec of the family -> the rules of one library. Its docstring gives an example, as `"their.name" -> "our.name"`."""

_GROUP = re.compile(r"\{(\d)([+-]\d+)?\}")

_MAX_NAMES = 3
"""Maximum number of tensor names in an error message."""


def rename(key: str, rules: Rules) -> str:
    """Return our name of a foreign tensor; empty if it has no place here."""
    for pattern, template in rules:
        key = re.sub(pattern, lambda match, template=template: _fill(template, match), key)  # type: ignore[misc]
    return key


def _fill(template: str, match: re.Match[str]) -> str:
    def group(place: re.Match[str]) -> str:
        text = match[int(place[1])]
        return str(int(text) + int(place[2])) if place[2] else text

    return _GROUP.sub(group, template)


def remap_keys(tensors: Mapping[str, Tensor], rules: Rules, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under our names, in the shapes of `expected`.

    Names and shapes must be exactly those of `expected`. Two differences are allowed, because they carry no weights:
    a checkpoint without `num_batches_tracked` (older versions of torch), and a linear layer written as a 1x1
    convolution. Raises WeightsError that names the missing, unexpected or misshapen tensors.
    """
    named: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = rename(key, rules)
        if not name:
            continue
        if name in named:
            raise WeightsError(f"checkpoint: two tensors map to {name}; the second one is {key}")
        named[name] = tensor
    for name, tensor in expected.items():
        if name.endswith(".num_batches_tracked") and name not in named:
            named[name] = tensor.new_zeros(tensor.shape, device="cpu")
    missing, unexpected = sorted(expected.keys() - named.keys()), sorted(named.keys() - expected.keys())
    if missing or unexpected:
        parts = [
            f"{what} {_first(names)}" for what, names in (("missing", missing), ("unexpected", unexpected)) if names
        ]
        raise WeightsError(f"checkpoint: tensors do not match this network: {'; '.join(parts)}")
    reshaped = {name: _reshaped(named[name], tensor) for name, tensor in expected.items()}
    wrong = [
        f"{name} must have shape {tuple(expected[name].shape)}, got {tuple(named[name].shape)}"
        for name, tensor in reshaped.items()
        if tensor is None
    ]
    if wrong:
        raise WeightsError(f"checkpoint: shapes do not match this network: {_first(wrong)}")
    return {name: tensor for name, tensor in reshaped.items() if tensor is not None}


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def _reshaped(tensor: Tensor, like: Tensor) -> Tensor | None:
    """Return the tensor in the shape of `like`; None if more differs than axes of length one or flattened axes."""
    if tensor.shape == like.shape:
        return tensor
    rewritten = {tensor.ndim, like.ndim} in ({2, 4}, {1, 3})
    same = rewritten and len(tensor) == len(like) and tensor.numel() == like.numel()
    return tensor.reshape(like.shape) if same else None
