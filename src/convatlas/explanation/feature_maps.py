"""The strongest feature maps of a network: those that vary most over one image, by stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convatlas.core.network import Network, feature_map, taps

TOP = 4
"""Default number of maps of a stage."""


@dataclass(frozen=True)
class StageMaps:
    """The strongest feature maps of one layer.

    path: of the layer. channels: of the maps, the strongest first. maps: (k, *space) float32. count: number of channels
    of the layer. strengths: of the maps; see `strength`.
    """

    path: str
    channels: tuple[int, ...]
    maps: Tensor
    count: int
    strengths: tuple[float, ...]


def strength(maps: Tensor) -> Tensor:
    """Return how strong maps (channels, *space) are: (channels,).

    It is the standard deviation over positions, because a map with one value everywhere shows nothing of the image,
    however large the value. It is the absolute value where a map has one position.
    """
    flat = maps.flatten(1)
    if flat.shape[1] == 1:
        return flat[:, 0].abs()
    # a tenth of the time of std on CPUs
    deviation: Tensor = torch.linalg.vector_norm(flat - flat.mean(1, keepdim=True), dim=1) / flat.shape[1] ** 0.5
    return deviation


def stage_paths(network: Network) -> list[str]:
    """Return the paths of the stem and of each stage, from the input to the output; not of a stem without weights."""
    stem = ["stem"] if any(True for _ in network.stem.parameters()) else []
    return [*stem, *(f"stages.{name}" for name, _ in network.stages.named_children())]


def stage_maps(network: Network, inputs: Tensor, top: int = TOP) -> tuple[StageMaps, ...]:
    """Return the `top` strongest feature maps of the stem and of each stage whose output is a map.

    inputs: (1, channels, *space), normalized; of a detector, of its transform. Outputs that are no maps, such as those
    of capsules, are left out. One forward pass, without gradients.
    """
    return strongest_maps(network, stage_paths(network), inputs, top)


def strongest_maps(tree: nn.Module, paths: Sequence[str], inputs: Tensor, top: int = TOP) -> tuple[StageMaps, ...]:
    """Return the `top` strongest maps at each of `paths`, where the output is a map; see `stage_maps`."""
    with torch.no_grad():
        outputs = taps(tree, paths, inputs)
    maps = {path: feature_map(output)[0].float() for path, output in outputs.items()}
    return tuple(select_strongest(path, each, top) for path, each in maps.items() if each.ndim == inputs.ndim - 1)


def select_strongest(path: str, maps: Tensor, top: int = TOP) -> StageMaps:
    """Return the `top` strongest of the maps (channels, *space) of a layer."""
    found = strength(maps).topk(min(top, len(maps)))
    channels = found.indices.tolist()
    return StageMaps(path, tuple(channels), maps[channels].clone(), len(maps), tuple(found.values.tolist()))
