"""The state of a network's weights, by which an engine notices that the network it was derived from has changed."""

from __future__ import annotations

from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn

SAMPLES = 8
"""Number of first elements of each tensor that are compared."""


class WeightsState:
    """The parameters, buffers and layers of a network at the time of its creation, to compare with later ones.

    A change is one of the objects themselves, of their version (every in-place operation of torch counts it up), of
    their memory (`network.half()`, `tensor.data = ...`), or of the first elements of a tensor on the CPU: changes
    through `tensor.data` and NumPy have no version. Takes 0.1 ms for the 360 tensors of EfficientNet-B0.
    """

    def __init__(self, network: nn.Module) -> None:
        self._tables: list[dict[str, Any]] = []
        for layer in network.modules():
            self._tables += filter(None, (layer._parameters, layer._buffers, layer._modules))
        self._entries = self._read_entries()
        tensors = [entry for entry in self._entries if isinstance(entry, Tensor)]
        self._versioned = [tensor for tensor in tensors if not tensor.is_inference()]
        self._versions = self._read_versions()
        self._stored = [tensor for tensor in tensors if tensor.layout is torch.strided]
        self._aliases = [tensor.detach() for tensor in self._stored]  # so that their memory is not used again
        self._addresses = self._read_addresses()
        self._samples = [_sample(alias) for alias in self._aliases if alias.is_cpu and alias.is_floating_point()]
        self._values = self._read_values()

    def is_current(self) -> bool:
        """Return whether the network is still the same."""
        entries = self._read_entries()
        return (
            len(entries) == len(self._entries)
            and all(map(is_, entries, self._entries))
            and self._read_versions() == self._versions
            and self._read_addresses() == self._addresses
            and torch.equal(self._read_values(), self._values)
        )

    def _read_entries(self) -> list[Any]:
        return [*chain.from_iterable(map(dict.values, self._tables))]

    def _read_versions(self) -> list[int]:
        return [*map(attrgetter("_version"), self._versioned)]

    def _read_addresses(self) -> list[int]:
        return [*map(Tensor.data_ptr, self._stored)]

    @torch.inference_mode()
    def _read_values(self) -> Tensor:
        """Return the bytes of some elements of all tensors, because NaN does not equal itself."""
        return torch.cat(self._samples).view(torch.uint8) if self._samples else torch.empty(0, dtype=torch.uint8)


def _sample(tensor: Tensor) -> Tensor:
    """Return a view of at most `SAMPLES` elements of a tensor, contiguous so that `torch.cat` is fast."""
    return tensor.as_strided((min(SAMPLES, tensor.numel()),), (1,), tensor.storage_offset())
