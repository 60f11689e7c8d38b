"""Where a network's inner maps are: by stage, or by how far their pixels lie apart in the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convatlas.core.cost import cost
from convatlas.core.network import Network
from convatlas.errors import SpecError


@dataclass(frozen=True)
class FeatureInfo:
    """An inner output of a network: its path, channels and size, and the distance of its pixels in the image."""

    path: str
    channels: int
    space: tuple[int, ...]
    stride: int


def feature_info(network: Network) -> list[FeatureInfo]:
    """Return the outputs of the stem and of each stage, from the input to the output; all are taps."""
    signals = cost(network).signals
    paths = ["stem", *(f"stages.{name}" for name, _ in network.stages.named_children())]
    return [FeatureInfo(p, signals[p].channels, signals[p].space, signals[p].stride[-1]) for p in paths]


def taps_at_strides(network: Network, strides: Sequence[int]) -> list[str]:
    """Return the tap for each stride in pixels: the last stage whose output has it, or else the last layer that has.

    For `taps(network, taps_at_strides(network, [8, 16, 32]), images)`. Raises SpecError that lists the strides there are.
    """
    stages = {place.stride: place.path for place in feature_info(network)}
    layers = {
        signal.stride[-1]: path
        for path, signal in cost(network).signals.items()
        if signal.space and not signal.whole and not path.startswith("head")
    }
    known = layers | stages
    for stride in strides:
        if stride not in known:
            raise SpecError(f"no layer of this network has a stride of {stride} px; there are {sorted(known)}")
    return [known[stride] for stride in strides]
