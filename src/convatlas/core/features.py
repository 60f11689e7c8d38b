"""The inner outputs of a network that detection, segmentation and explanations read: by stage, or by stride."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convatlas.core.cost import cost
from convatlas.core.network import Network, tap_paths
from convatlas.errors import SpecError


@dataclass(frozen=True)
class FeatureInfo:
    """An inner output of a network.

    path: its tap. channels, spatial: its shape. stride: distance in input pixels between neighboring elements.
    """

    path: str
    channels: int
    spatial: tuple[int, ...]
    stride: int


def feature_info(network: Network) -> list[FeatureInfo]:
    """Return the outputs of the stem and of each stage, from the input to the output; all paths are taps."""
    signals = cost(network).signals
    paths = ["stem", *(f"stages.{name}" for name, _ in network.stages.named_children())]
    return [FeatureInfo(p, signals[p].channels, signals[p].spatial, signals[p].stride[-1]) for p in paths]


def taps_by_stride(network: Network) -> dict[int, str]:
    """Return stride in pixels -> the tap of the last stage with that stride, or else of the last layer with it."""
    signals = cost(network).signals
    layers = {
        signals[path].stride[-1]: path
        for path in tap_paths(network)
        if not path.startswith("head") and signals[path].spatial and not signals[path].is_global
    }
    stages = {info.stride: info.path for info in feature_info(network)}
    return layers | stages


def taps_at_strides(network: Network, strides: Sequence[int]) -> list[str]:
    """Return a tap for each stride in pixels: the last stage with that stride, or else the last layer with it.

    For `taps(network, taps_at_strides(network, [8, 16, 32]), images)`. Raises SpecError that lists the strides of this
    network.
    """
    known = taps_by_stride(network)
    for stride in strides:
        if stride not in known:
            raise SpecError(f"no layer of this network has a stride of {stride} px; its strides are {sorted(known)}")
    return [known[stride] for stride in strides]
