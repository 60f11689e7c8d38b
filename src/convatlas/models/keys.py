"""Key rules: from the tensor names of another library's checkpoint to the paths in our trees."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor

from convatlas.errors import WeightsError, listed

Rules = Sequence[tuple[str, str]]
"""(pattern, template) pairs: each is applied in order, wherever its pattern occurs in the name.

A template may contain the groups of its pattern, and numbers with an offset: "{1}", "{1-1}", "{2+3}". A name that
becomes empty is a tensor that has no place in our tree and is left out on purpose.
"""

KeyMapping = Callable[[Any], Rules]
"""Spec of the family -> the rules of one library. Its docstring gives an example, as `"their.name" -> "our.name"`.

The annotation of its parameter, called `spec`, states the types of specs that the rules are for (`spec_types`).
"""


@cache
def spec_types(mapping: KeyMapping) -> tuple[type, ...]:
    """Return the types of specs that a mapping has rules for: those in the annotation of its parameter."""
    hint = typing.get_type_hints(mapping)["spec"]
    return typing.get_args(hint) or (hint,)


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


def rename_all(tensors: Mapping[str, Tensor], rules: Rules) -> dict[str, str]:
    """Return our name -> their name of the tensors of a checkpoint; those without a place here are left out.

    Raises WeightsError if two of them have the same name here.
    """
    names: dict[str, str] = {}
    for key in tensors:
        name = rename(key, rules)
        if not name:
            continue
        if name in names:
            raise WeightsError(f"checkpoint: two tensors map to {name}; the second one is {key}")
        names[name] = key
    return names


def remap_keys(tensors: Mapping[str, Tensor], rules: Rules, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under our names, in the shapes of `expected`.

    Names and shapes must be exactly those of `expected`; see `match_shapes` for the differences that are allowed.
    Raises WeightsError that names the missing, unexpected or misshapen tensors.
    """
    named = {name: tensors[key] for name, key in rename_all(tensors, rules).items()}
    compare_names(named, expected)
    return match_shapes(named, expected)


def compare_names(names: Mapping[str, object], expected: Mapping[str, Tensor]) -> None:
    """Raise WeightsError that lists missing and unexpected names; counters of batches may be missing."""
    missing = sorted(name for name in expected.keys() - names.keys() if not is_counter(name))
    unexpected = sorted(names.keys() - expected.keys())
    if missing or unexpected:
        parts = [
            f"{what} {listed(each, _MAX_NAMES)}"
            for what, each in (("missing", missing), ("unexpected", unexpected))
            if each
        ]
        raise WeightsError(f"checkpoint: tensors do not match this network: {'; '.join(parts)}")


def is_counter(name: str) -> bool:
    """Return whether a tensor counts the batches of a norm; files of old versions of torch have no such tensors."""
    return name.endswith(".num_batches_tracked")


def match_shapes(named: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in the shapes of `expected`, which must have their names.

    Two differences are allowed, because they carry no weights: a checkpoint without `num_batches_tracked` (older
    versions of torch), and a linear layer written as a 1x1 convolution. Raises WeightsError that names wrong shapes.
    """
    counters = {
        name: tensor.new_zeros(tensor.shape, device="cpu") for name, tensor in expected.items() if is_counter(name)
    }
    named = counters | dict(named)
    reshaped = {name: _reshaped(named[name], tensor) for name, tensor in expected.items()}
    wrong = [
        f"{name} must have shape {tuple(expected[name].shape)}, got {tuple(named[name].shape)}"
        for name, tensor in reshaped.items()
        if tensor is None
    ]
    if wrong:
        more = f" and {len(wrong) - _MAX_NAMES:,} more" if len(wrong) > _MAX_NAMES else ""
        raise WeightsError(f"checkpoint: shapes do not match this network: {', '.join(wrong[:_MAX_NAMES])}{more}")
    return {name: tensor for name, tensor in reshaped.items() if tensor is not None}


def _reshaped(tensor: Tensor, like: Tensor) -> Tensor | None:
    """Return the tensor in the shape of `like`; None if more differs than axes of length one or flattened axes."""
    if tensor.shape == like.shape:
        return tensor
    rewritten = {tensor.ndim, like.ndim} in ({2, 4}, {1, 3})
    same = rewritten and len(tensor) == len(like) and tensor.numel() == like.numel()
    return tensor.reshape(like.shape) if same else None
