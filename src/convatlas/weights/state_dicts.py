"""The state dicts in the content of a checkpoint: which there are, and in which order they are tried."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convatlas.errors import WeightsError, listed, shorten
from convatlas.weights.torch_file import NumpyArray

_EMA = re.compile(r"(^|_)ema(_|$)")

_ORDER = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
"""Keys in the order of timm's `load_state_dict`; torchvision's reference script evaluates `model_ema` as well."""

_MAX_ITEMS = 16
"""Length of a list or tuple up to which its items may be state dicts."""


@dataclass(frozen=True)
class StateDict:
    """A dictionary of tensors in a checkpoint.

    key: where it is, such as "model.state_dict"; empty if it is the whole content.
    others: names of entries that are not tensors.
    """

    key: str
    tensors: Mapping[str, Tensor]
    others: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """Weights that are averaged (EMA) come first, then those under a usual key, then all others."""
        parts = self.key.split(".")
        if any(_EMA.search(part) for part in parts):
            return 0
        return 1 if not self.key or any(part in _ORDER for part in parts) else 2

    def part(self, prefix: str) -> StateDict:
        """Return the tensors whose names begin with a prefix, without it."""
        tensors = {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}
        return StateDict(self.key, tensors)

    @property
    def order(self) -> tuple[int, int, int]:
        """The smallest is tried first."""
        places = [_ORDER.index(part) for part in self.key.split(".") if part in _ORDER]
        return (self.rank, min(places, default=len(_ORDER)), -len(self.tensors))


def find_state_dicts(content: Any, where: object) -> list[StateDict]:
    """Return the state dicts in the content of a checkpoint, at most two levels deep, the preferred one first.

    Raises WeightsError if there is none.
    """
    found = sorted(_visit(content, "", 2, where), key=lambda each: each.order)
    if not found:
        kind = "an empty dictionary" if isinstance(content, Mapping) and not content else type(content).__name__
        if isinstance(content, Mapping) and content:
            kind = f"a dictionary with the keys {listed(content, 5)}"
        raise WeightsError(f"{where}: must contain a dictionary of tensors, got {kind}")
    return found


def _visit(content: Any, key: str, depth: int, where: object) -> Iterator[StateDict]:
    if isinstance(content, list | tuple) and len(content) <= _MAX_ITEMS:
        content = {str(i): item for i, item in enumerate(content)}
    if not isinstance(content, Mapping):
        return
    values = {name: _as_tensor(value) for name, value in content.items()}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    wrong = [name for name in tensors if not isinstance(name, str)]
    if wrong and depth == 2 - key.count("."):
        raise WeightsError(
            f"{where}: names of tensors must be text, got {shorten(repr(wrong[0]), 40)} ({type(wrong[0]).__name__})"
        )
    nested = [name for name, value in tensors.items() if value.is_nested]  # not even their shape can be read
    if nested:
        raise WeightsError(f"{where}: {nested[0]} must be a dense tensor, got a nested one")
    if tensors and not wrong:
        # a state dict inside another one is a wrapper, no entry beside weights
        others = [str(name) for name, value in values.items() if not isinstance(value, Tensor | Mapping)]
        yield StateDict(key, tensors, tuple(others))
    if depth:
        for name, value in content.items():
            if isinstance(name, str):
                yield from _visit(value, f"{key}.{name}" if key else name, depth - 1, where)


def _as_tensor(value: Any) -> Any:
    """Return arrays of NumPy as tensors, and everything else as it is."""
    array = value.array if isinstance(value, NumpyArray) else value
    if isinstance(array, np.ndarray) and array.dtype.kind in "biufc":
        return torch.from_numpy(array)
    return value.detach() if isinstance(value, torch.nn.Parameter) else value
