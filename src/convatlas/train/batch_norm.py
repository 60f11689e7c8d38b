"""How many images batch norms need: their statistics are over images and pixels, and one value has no deviation."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convatlas.core.network import Network
from convatlas.errors import SpecError
from convatlas.train.recipe import Recipe


def min_images(network: nn.Module, recipe: Recipe) -> int:
    """Return the minimum number of images in a forward pass: 2 if batch norms compute their statistics, otherwise 1.

    A last batch with fewer images joins the one before, and micro-batches are not made smaller.
    """
    has_norms = any(isinstance(layer, _BatchNorm) for layer in network.modules())
    return 2 if has_norms and not recipe.freeze_bn_stats else 1


def check_batch(network: Network, recipe: Recipe, images: int) -> None:
    """Raise SpecError if a batch norm of the network would compute its statistics from a single value.

    That is the case with batches of one image where maps are 1x1. images: number of training images.
    """
    if min(recipe.batch, images) >= min_images(network, recipe):
        return
    if path := _norm_of_single_values(network):
        raise SpecError(
            f"Recipe: batch must be >= 2 for this network and resolution, got {recipe.batch}: the batch norm {path} "
            "would have a single value per channel; use a larger --batch or --resolution, or --set freeze_bn_stats=true"
        )


class _SingleValueError(Exception):
    """Stops the forward pass at a batch norm with a single value per channel."""


def _norm_of_single_values(network: Network) -> str:
    """Return the path of the first batch norm with a single value per channel for one image, or an empty text."""
    network = copy.deepcopy(network).to("meta").train()  # shapes alone

    def watch(path: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0].numel() == inputs[0].shape[1]:
                raise _SingleValueError(path)

        return hook

    for path, layer in network.named_modules():
        if isinstance(layer, _BatchNorm):
            layer.register_forward_pre_hook(watch(path))
    x = torch.empty(1, *network.input_shape, device="meta")
    labels = torch.zeros(1, dtype=torch.long, device="meta")
    try:
        network.loss(x, labels, lambda outputs, _: outputs.sum())
    except _SingleValueError as stop:
        return str(stop)
    return ""
