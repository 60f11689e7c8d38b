"""Shapes of a network's tensors for any number of classes and channels, and these numbers read off a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from convatlas.core.spec import Spec
from convatlas.models.catalog import build_fresh


class Sizes:
    """The state dict of a spec's network without memory, as a function of its numbers of classes and channels.

    The length of an axis is a linear function of the two numbers. It is measured on three networks on the meta device.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec

    @cached_property
    def base(self) -> dict[str, Tensor]:
        """The tensors of the network with 2 classes and 1 channel."""
        return self._build(2, 1)

    @cached_property
    def by_class(self) -> dict[str, tuple[int, ...]]:
        """Name -> what one more class adds to each axis; only tensors that depend on it."""
        return self._growth(self._build(3, 1))

    @cached_property
    def by_channel(self) -> dict[str, tuple[int, ...]]:
        """Name -> what one more channel adds to each axis; only tensors that depend on it."""
        return self._growth(self._build(2, 2))

    def tensors(self, classes: int, channels: int) -> dict[str, Tensor]:
        """Return the tensors of the network with these numbers, without memory."""
        grown = dict(self.base)
        for name in self.by_class | self.by_channel:
            shape = list(self.base[name].shape)
            for axis in range(len(shape)):
                shape[axis] += (classes - 2) * self.by_class.get(name, (0,) * len(shape))[axis]
                shape[axis] += (channels - 1) * self.by_channel.get(name, (0,) * len(shape))[axis]
            grown[name] = torch.empty(shape, dtype=self.base[name].dtype, device="meta")
        return grown

    def classes_of(self, tensors: Mapping[str, Tensor]) -> int | None:
        """Return the number of classes of a checkpoint with our names; None if no tensor shows it."""
        return self._read_off(tensors, self.by_class, 2)

    def channels_of(self, tensors: Mapping[str, Tensor]) -> int | None:
        """Return the number of input channels of a checkpoint with our names; None if no tensor shows it."""
        return self._read_off(tensors, self.by_channel, 1)

    def _read_off(self, tensors: Mapping[str, Tensor], growth: Mapping[str, tuple[int, ...]], base: int) -> int | None:
        for name, steps in growth.items():
            if name in tensors:
                axis = next(i for i, step in enumerate(steps) if step)
                length = tensors[name].shape[axis] if axis < tensors[name].ndim else 0
                return max(1, base + (length - self.base[name].shape[axis]) // steps[axis])
        return None

    def _growth(self, larger: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        steps = {
            name: tuple(b - a for a, b in zip(tensor.shape, larger[name].shape, strict=True))
            for name, tensor in self.base.items()
        }
        return {name: each for name, each in steps.items() if any(each)}

    def _build(self, classes: int, channels: int) -> dict[str, Tensor]:
        return build_fresh(self._spec, classes=classes, channels=channels, device="meta").state_dict()


@lru_cache(maxsize=4)
def sizes_of(spec: Spec) -> Sizes:
    """Return the sizes of a spec, remembered for the last few specs."""
    return Sizes(spec)
