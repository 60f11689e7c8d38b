"""Class activation maps: a weighted sum of the maps of a layer, from one pass forward and back.

Each function takes activations and the gradients of the score with respect to them, both (n, channels, *space), and
returns non-negative maps (n, *space).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor

from convatlas.explanation.heatmap import HeatMap, scale_to_one
from convatlas.explanation.options import Cam, Method
from convatlas.tasks.explained import Explained


def grad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Channels weighted by their mean gradients (Selvaraju et al. 2017, equations 1 and 2)."""
    weights = gradients.flatten(2).mean(2, keepdim=True)
    maps = (weights.transpose(1, 2) @ activations.flatten(2)).clamp(min=0)
    return maps.reshape(len(activations), *activations.shape[2:])


def hires_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Channels weighted by the gradient at each position (Draelos and Carin 2020, equation 5).

    Right for any head, because gradients are not averaged over positions; equal to Grad-CAM in front of global pooling.
    """
    return (gradients * activations).sum(1).clamp(min=0)


def layer_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Channels weighted by the positive gradient at each position, for layers near the input (Jiang et al. 2021)."""
    return (gradients.clamp(min=0) * activations).sum(1).clamp(min=0)


CAM_FUNCTIONS: Mapping[Cam, Callable[[Tensor, Tensor], Tensor]] = {
    "grad-cam": grad_cam, "hires-cam": hires_cam, "layer-cam": layer_cam,
}  # fmt: skip


def is_cam(method: Method) -> TypeGuard[Cam]:
    """Return whether a method reads the maps of a layer, not pixels."""
    return method in CAM_FUNCTIONS


def heatmaps_of(
    explained: Explained, method: Cam, activations: Mapping[str, Tensor], gradients: Mapping[str, Tensor], pixels: Any
) -> list[HeatMap]:
    """Return the heat map of each image from the maps of layers; those of several layers are averaged.

    Before, each is scaled to a maximum of 1 and resized to the view, `pixels`.
    """
    function = CAM_FUNCTIONS[method]
    with torch.no_grad():
        maps = [function(activations[path], gradients[path]).float() for path in activations]
        views = [explained.on_view(scale_to_one(each), pixels) for each in maps]
        values = views[0] if len(views) == 1 else torch.stack(views).mean(0)
        values = scale_to_one(values).cpu()
    grid = max((tuple(each.shape[1:]) for each in maps), key=lambda size: torch.Size(size).numel())
    return [HeatMap(each, grid) for each in values]
