"""The exact cost of candidates before they are built: parameters, MACs, bytes of the model file and peak memory,
and the sums over their layers from which a latency is predicted.

A network is a chain of parts: the stem, each block, the head. The cost of a part depends on a few choices of the space
and on the shape of its input. `CostTable` finds out on which, and counts every combination of them once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from convatlas.core.compose import Join
from convatlas.core.cost import Cost, cost
from convatlas.core.network import Network
from convatlas.core.spec import Spec
from convatlas.errors import ConvatlasError
from convatlas.models.catalog import build_fresh
from convatlas.search.space import Candidate, SpecSpace

FILE_ENTRY_BYTES = 68
"""Bytes of a tensor in the header of a safetensors file, besides its name and its numbers."""

FILE_HEADER_BYTES = 4096
"""About the size of the description of a model in its file: spec, task, preprocessing, training, metrics."""

KINDS = ("convolution", "pointwise", "depthwise", "grouped", "linear", "other")
"""Kinds of layers with a speed of their own. A norm is a part of the convolution before it, as when it is deployed."""

COLUMNS = ("layers", "macs", "values")
"""What is summed over the layers of a kind. values: elements that are read and written, weights included."""

CHECKED = 64
"""Random candidates that are counted whole, to check the table of a space."""


@dataclass(frozen=True)
class Counts:
    """The cost of a network for one image.

    file_bytes: of the model file in float32, with an estimate of its description. memory_bytes: weights and the largest
    activations that exist at the same time, in float32, without what the engine needs itself. layers: the sums of
    `COLUMNS` over the layers of each of `KINDS`.
    """

    parameters: int
    macs: int
    file_bytes: int
    memory_bytes: int
    layers: tuple[float, ...] = ()

    @classmethod
    def of(cls, spec: Spec, *, classes: int, channels: int) -> Counts:
        """Count a network; nothing is allocated. Raises SpecError for an image that is too small."""
        return _total([part for _, part in _count(spec, classes, channels).values()])


Shape = tuple[int, ...]


class Part(NamedTuple):
    """A stem, a block or a head: parameters, MACs, bytes of its tensors in a file, peak of its activations in bytes.

    layers: sums over its layers, see `Counts`. output: shape of its output, (channels, *space).
    """

    parameters: int
    macs: int
    file_bytes: int
    peak_bytes: int
    layers: tuple[float, ...]
    output: Shape


Chain = dict[str, tuple[Shape, Part]]
"""Path of each part in order -> shape of its input, and its cost."""


def _count(spec: Spec, classes: int, channels: int) -> Chain:
    """Return the parts of a network, counted on the device "meta"."""
    network = build_fresh(spec, classes=classes, channels=channels, device="meta")
    counted = cost(network)
    modules = dict(network.named_modules())
    parts: dict[str, list[int]] = {}
    sums: dict[str, NDArray[np.float64]] = {}
    shapes: dict[str, tuple[Shape, Shape]] = {}
    for layer in (*counted.layers, *counted.auxiliary):
        path = _part_of(layer.path)
        parts.setdefault(path, [0, 0, 0, 0])[0] += layer.parameters
        shapes[path] = shapes.get(path, (layer.input.shape,))[0], layer.output.shape
    for layer in counted.layers:
        path, module = _part_of(layer.path), modules[layer.path]
        parts[path][1] += layer.macs
        if path not in sums:
            sums[path] = np.zeros((len(KINDS), len(COLUMNS)))
        if not isinstance(module, FREE):
            values = _elements(layer.input.shape) + _elements(layer.output.shape) + layer.parameters
            sums[path][KINDS.index(_kind(module))] += 1, layer.macs, values
    for name, tensor in network.file_state().items():
        described = len(name) + len(str(list(tensor.shape))) + FILE_ENTRY_BYTES
        parts[_part_of(name)][2] += tensor.numel() * tensor.element_size() + described
    for path, elements in _live_elements(network, counted):
        part = parts[_part_of(path)]
        part[3] = max(part[3], 4 * elements)
    inputs = [shapes[path][0] for path in parts]
    outputs = [*inputs[1:], counted.output.shape]
    return {
        path: (shape, Part(numbers[0], numbers[1], numbers[2], numbers[3], tuple(map(float, sums[path].flat)), output))
        for (path, numbers), shape, output in zip(parts.items(), inputs, outputs, strict=True)
    }


FREE = (nn.BatchNorm2d, nn.Identity, nn.Flatten, nn.Dropout)
"""Layers that take no time when a network is deployed."""


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return "linear"
    if not isinstance(module, nn.Conv2d):
        return "other"
    if module.groups > 1:
        return "depthwise" if module.groups == module.in_channels else "grouped"
    return "pointwise" if module.kernel_size == (1, 1) else "convolution"


def _part_of(path: str) -> str:
    names = path.split(".")
    return ".".join(names[:3] if names[0] == "stages" else names[:1])


def _live_elements(network: Network, counted: Cost) -> Iterator[tuple[str, int]]:
    """Yield (path, elements that exist while the layer runs): its input and output, and what joins around it keep."""
    joins = {path: {"": 0} for path, module in network.named_modules() if isinstance(module, Join)}
    for layer in counted.layers:
        size, names = _elements(layer.input.shape), layer.path.split(".")
        output, kept = _elements(layer.output.shape), 0
        for i in range(1, len(names)):
            inner = joins.get(".".join(names[:i]))
            if inner is None:
                continue
            inner[""] = inner[""] or size
            own = names[i]
            is_first_layer = own not in inner
            kept += sum(elements for branch, elements in inner.items() if branch != own)
            kept -= inner[""] if is_first_layer and inner[""] == size else 0
            inner[own] = output
        yield layer.path, size + output + kept


def _elements(shape: Shape) -> int:
    return math.prod(shape)


def _total(parts: Sequence[Part]) -> Counts:
    parameters = sum(part.parameters for part in parts)
    return Counts(
        parameters, sum(part.macs for part in parts), sum(part.file_bytes for part in parts) + FILE_HEADER_BYTES,
        4 * parameters + max(part.peak_bytes for part in parts),
        tuple(map(sum, zip(*(part.layers for part in parts), strict=True))),
    )  # fmt: skip


class CostTable:
    """The exact cost of the candidates of a space of specs; what was counted once takes microseconds.

    paths: of all parts, in order. present: path -> the choices on which it depends whether there is the part. names:
    path -> the choices on which its cost depends, besides the shape of its input.
    """

    def __init__(self, space: SpecSpace, *, classes: int, channels: int) -> None:
        self._space, self._classes, self._channels = space, classes, channels
        self._chains: dict[tuple[Any, ...], Chain | None] = {}
        self._present: dict[tuple[str, tuple[Any, ...]], bool] = {}
        self._known: dict[tuple[str, tuple[Any, ...], Shape], Part] = {}
        self.paths: list[str] = []
        self.present: dict[str, set[str]] = {}
        self.names: dict[str, set[str]] = {}
        self._learn()

    def counts(self, candidate: Candidate) -> Counts:
        """Return the cost of a candidate. Raises SpecError if it cannot be built."""
        found = self._look_up(candidate)
        if found is None:
            chain = self._count(candidate)
            self._store(candidate, chain)
            found = [part for _, part in chain.values()]
        return _total(found)

    def _look_up(self, candidate: Candidate) -> list[Part] | None:
        """Return the parts of a candidate, or None if one of them has not been counted yet."""
        shape, parts = self._space.value(candidate).input_shape(self._channels), []
        for path in self.paths:
            is_present = self._present.get((path, self._values(candidate, self.present[path])))
            if is_present is None:
                return None
            if not is_present:
                continue
            part = self._known.get((path, self._values(candidate, self.names[path]), shape))
            if part is None:
                return None
            parts.append(part)
            shape = part.output
        return parts

    def _values(self, candidate: Candidate, names: set[str]) -> tuple[Any, ...]:
        return tuple(candidate[name] for name in self._space.names if name in names)

    def _count(self, candidate: Candidate) -> Chain:
        return _count(self._space.value(candidate), self._classes, self._channels)

    def _try(self, candidate: Candidate) -> Chain | None:
        key = tuple(candidate[name] for name in self._space.names)
        if key not in self._chains:
            try:
                self._chains[key] = self._count(candidate)
            except ConvatlasError:
                self._chains[key] = None
        return self._chains[key]

    def _store(self, candidate: Candidate, chain: Chain) -> None:
        for path in self.paths:
            self._present[path, self._values(candidate, self.present[path])] = path in chain
        for path, (shape, part) in chain.items():
            self._known[path, self._values(candidate, self.names[path]), shape] = part

    def _learn(self) -> None:
        """Find what each part depends on, by changing choices one at a time, and check it with random candidates."""
        # 1. one change in the first options, and one in the last options, of every choice
        choices = self._space.choices
        changes: list[tuple[str, Chain, Chain]] = []
        for at in (0, -1):
            base = {name: options[at] for name, options in choices.items()}
            if (chain := self._try(base)) is None:
                continue
            for name, options in choices.items():
                others = (self._try({**base, name: option}) for option in options if option != base[name])
                changes += [(name, chain, other) for other in others if other is not None]
        drawn = self._space.sample(CHECKED, np.random.default_rng(0))
        candidates = [self._space.decode(codes) for codes in drawn]
        checked = [(each, chain) for each in candidates if (chain := self._try(each)) is not None]
        seen = [path for _, a, b in changes for path in (*a, *b)] + [path for _, chain in checked for path in chain]
        names = list(dict.fromkeys(name for path in dict.fromkeys(seen) for name in path.split(".")))
        self.paths = sorted(set(seen), key=lambda path: _place(path, names))
        self.present = {path: set() for path in self.paths}
        self.names = {path: set() for path in self.paths}
        for name, a, b in changes:
            for path in a.keys() ^ b.keys():
                self.present[path].add(name)
            for path in a.keys() & b.keys():
                if a[path][0] == b[path][0] and a[path][1] != b[path][1]:
                    self.names[path].add(name)
        # 2. a choice that changes parts of several stages may change every part; other changes come with the shape
        for name in self._space.names:
            stages = {path.rpartition(".")[0] for path in self.paths if name in self.names[path]}
            if len(stages) > 1:
                for path in {p for n, a, b in changes if n == name for p in a.keys() & b.keys() if a[p] != b[p]}:
                    self.names[path].add(name)
        # 3. random candidates: equal keys must have equal parts
        for path in self.paths:
            while (pair := self._conflict(path, checked)) is not None:
                self._separate(path, *pair)
        for candidate, chain in checked:
            self._store(candidate, chain)
        self._chains.clear()

    def _conflict(self, path: str, checked: Sequence[tuple[Candidate, Chain]]) -> tuple[Candidate, Candidate] | None:
        """Return two candidates that the table would take for equal in this part, but which differ in it."""
        present: dict[Any, tuple[bool, Candidate]] = {}
        known: dict[Any, tuple[Part, Candidate]] = {}
        for candidate, chain in checked:
            there, other = present.setdefault(
                self._values(candidate, self.present[path]), (path in chain, candidate)
            )  # fmt: skip
            if there != (path in chain):
                return other, candidate
            if path in chain:
                shape, part = chain[path]
                first, other = known.setdefault((self._values(candidate, self.names[path]), shape), (part, candidate))
                if first != part:
                    return other, candidate
        return None

    def _separate(self, path: str, first: Candidate, second: Candidate) -> None:
        """Add a choice in which two candidates differ and that changes this part: change one after the other."""
        here = dict(first)
        chain = self._try(here)
        differing = [name for name in self._space.names if first[name] != second[name]]
        for name in differing:
            here[name] = second[name]
            following = self._try(here)
            if chain is not None and following is not None:
                known = self.present if (path in chain) != (path in following) else self.names
                if chain.get(path) != following.get(path) and name not in known[path]:
                    known[path].add(name)
                    return
            chain = following
        for known in (self.present, self.names):  # not found by single changes: it depends on all of them
            known[path].update(differing)


def _place(path: str, names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Return what to sort paths by: numbers as numbers, names in the order in which they are in the networks."""
    return tuple((int(name), 0) if name.isdecimal() else (0, names.index(name)) for name in path.split("."))
