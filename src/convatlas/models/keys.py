"""Key rules: how the tensors of another library's checkpoint are called in our trees."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from convatlas.errors import WeightsError

Rules = Sequence[tuple[str, str]]
"""(pattern, template) pairs, applied one after another wherever the pattern is found.

A template may hold the groups of its pattern, with a number moved: "{1}", "{1-1}", "{2+3}". A name that ends up empty
is a tensor that has no place in our tree and is left out on purpose.
"""

KeyMapping = Callable[[Any], Rules]
"""The rules of one library for a spec of the family."""

_GROUP = re.compile(r"\{(\d)([+-]\d+)?\}")


def rename(key: str, rules: Rules) -> str:
    """Return our name of a foreign tensor; empty if it has no place here."""
    for pattern, template in rules:
        key = re.sub(pattern, lambda found, template=template: _fill(template, found), key)  # type: ignore[misc]
    return key


def _fill(template: str, found: re.Match[str]) -> str:
    def group(place: re.Match[str]) -> str:
        text = found[int(place[1])]
        return str(int(text) + int(place[2])) if place[2] else text

    return _GROUP.sub(group, template)


def remap_keys(tensors: Mapping[str, Tensor], rules: Rules, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under our names, in the shapes of `expected`.

    The names and shapes must be exactly those of `expected`: nothing may be missing, left over or of another shape. Two
    things are forgiven, since they carry no weights: a checkpoint older than `num_batches_tracked`, and axes that are
    only written in another way (a linear layer as a 1x1 convolution). Raises WeightsError that names what differs.
    """
    named: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = rename(key, rules)
        if not name:
            continue
        if name in named:
            raise WeightsError(f"two tensors of the checkpoint become {name}, the second is {key}")
        named[name] = tensor
    for name, tensor in expected.items():
        if name.endswith(".num_batches_tracked") and name not in named:
            named[name] = tensor.new_zeros(tensor.shape, device="cpu")
    missing, left = sorted(expected.keys() - named.keys()), sorted(named.keys() - expected.keys())
    if missing or left:
        told = [f"{what} {_some(names)}" for what, names in (("missing", missing), ("left over", left)) if names]
        raise WeightsError(f"the tensors are not those of this network: {'; '.join(told)}")
    fitted = {name: _fitted(named[name], tensor) for name, tensor in expected.items()}
    wrong = [
        f"{name} is {tuple(named[name].shape)}, not {tuple(expected[name].shape)}"
        for name, tensor in fitted.items()
        if tensor is None
    ]
    if wrong:
        raise WeightsError(f"the shapes are not those of this network: {_some(wrong)}")
    return {name: tensor for name, tensor in fitted.items() if tensor is not None}


def _some(names: Sequence[str]) -> str:
    """Return the first three names, and how many there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _fitted(tensor: Tensor, like: Tensor) -> Tensor | None:
    """Return the tensor in the shape of `like`, if only axes of length one or flattened axes differ."""
    if tensor.shape == like.shape:
        return tensor
    rewritten = {tensor.ndim, like.ndim} in ({2, 4}, {1, 3})
    same = rewritten and len(tensor) == len(like) and tensor.numel() == like.numel()
    return tensor.reshape(like.shape) if same else None
