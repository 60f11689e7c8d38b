"""The body of a detector: a network without its classifier, and the layers whose maps the detector reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from convatlas.core.compose import Chain
from convatlas.core.cost import cost
from convatlas.core.features import taps_by_stride
from convatlas.core.network import Network, is_chain, named_layers, tap_paths
from convatlas.core.signal import Signal
from convatlas.core.spec import Spec
from convatlas.errors import CostError, SpecError, nearest

STRIDES = (4, 8, 16, 32)
"""Strides in pixels of the levels C2 to C5 (Lin et al. 2017, section 3)."""

_CLASSES = 1
"""The number of classes with which a body is built; a map with as many channels is one of scores."""


@dataclass(frozen=True)
class Level:
    """A map of the body that the detector reads: the path of its layer, its channels, and its stride in pixels."""

    path: str
    channels: int
    stride: int


@dataclass(frozen=True)
class Body:
    """A body: the network, with the layers of its head that levels need as a last stage, and its levels."""

    network: Network
    levels: tuple[Level, ...]


def build_body(spec: Spec, levels: Sequence[str], *, channels: int, least: int) -> Body:
    """Build a body: the layers up to the last level.

    levels: paths of layers on the main path; without any, the last layers at those strides of 4 to 32 that there are.
    "stages.N" behind the last stage N - 1 is what the head has in front of its pooling, such as a 1x1 convolution.
    least: the smallest number of levels. Raises SpecError for a network that cannot be a body.
    """
    name = type(spec).__name__
    if len(spec.input_shape(channels)) != 3 or spec.predicts != "classes":
        raise SpecError(f"body: must be a classifier of images, got a {name}")
    network = spec.build(classes=_CLASSES, channels=channels)
    network.auxiliary = nn.ModuleDict()
    try:
        signals = cost(network).signals
        if _move_head_layers(network, levels, signals):
            signals = cost(network).signals
        known = taps_by_stride(network)
        height, width = network.input_shape[1:]
        cost(Chain(stem=network.stem, stages=network.stages), (channels, 2 * height, 3 * width))
    except CostError as error:
        raise SpecError(f"body: must read images of any size, which this {name} does not: {error}") from error
    order = list(tap_paths(network))
    maps = {path: signals[path] for path in order if not path.startswith("head") and _is_map(signals[path])}
    paths = list(levels) or [known[stride] for stride in STRIDES if stride in known]
    for path in paths:
        if path not in maps:
            hint = nearest(path, maps)
            raise SpecError(f"body: levels must be layers before the head of {name}, got {path!r}{hint}")
    found = tuple(Level(path, maps[path].channels, maps[path].stride[-1]) for path in paths)
    if len(found) < least:
        raise SpecError(
            f"body: must have at least {least} strides among {', '.join(map(str, STRIDES))} px, but the strides of "
            f"this {name} are {sorted({signal.stride[-1] for signal in maps.values()})}"
        )
    if sorted(paths, key=order.index) != paths or len(set(paths)) < len(paths):
        raise SpecError(f"body: levels must be in the order of the layers, got {', '.join(paths)}")
    _cut_behind(network, order, paths[-1])
    return Body(network, found)


def _is_map(signal: Signal) -> bool:
    return len(signal.spatial) == 2 and not signal.is_global


def _move_head_layers(network: Network, levels: Sequence[str], signals: Mapping[str, Signal]) -> bool:
    """Make what the head has in front of its pooling a last stage, if a level is there; return whether it did.

    Without given levels it moves norms and activations, which belong to the last map, but no convolution.
    """
    number = len(network.stages)
    last = signals[f"stages.{number - 1}"] if number else None
    closing = Chain()
    if last is None or not is_chain(network.head):
        return False
    for name, layer in named_layers(network.head):
        signal = signals[f"head.{name}"]
        if not _is_map(signal) or signal.stride != last.stride or signal.channels <= _CLASSES:
            break
        closing._modules[name] = layer
    wanted = any(path.split(".")[:2] == ["stages", str(number)] for path in levels)
    weights = [parameter.ndim for parameter in closing.parameters()]
    if not wanted and (levels or not weights or max(weights) > 1):
        return False
    for name in closing._modules:
        del network.head._modules[name]
    network.stages._modules[str(number)] = closing
    return True


def _cut_behind(network: Network, order: Sequence[str], path: str) -> None:
    """Remove the layers of the stages behind a path; its own chains stay."""
    for other in order[order.index(path) + 1 :]:
        if other.startswith(("stem.", "stages.")) and not path.startswith(f"{other}."):
            parent, _, name = other.rpartition(".")
            network.get_submodule(parent)._modules.pop(name, None)
