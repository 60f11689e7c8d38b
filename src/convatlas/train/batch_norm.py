"""Statistics of batch norms: how many images they need, and weights that have none."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.data.dataset import Images
from convatlas.data.videos import Videos
from convatlas.engines.evaluation import compute_outputs, eager_forward
from convatlas.errors import SpecError
from convatlas.train.recipe import Recipe

STATISTICS_IMAGES = 256
"""Number of training images of which the statistics of folded batch norms are computed."""


def has_folded_norms(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether weights have batch norms that were folded into the convolutions before them, apart from a shift.

    Their running means are 0 and their variances equal, which are not the statistics of any activations. Batch norms of
    an untrained network have the same statistics, and no shift.
    """
    norms = [key.removesuffix("running_mean") for key in tensors if key.endswith("running_mean")]
    shifts = [tensors[f"{norm}bias"] for norm in norms if f"{norm}bias" in tensors]
    return any(shift.any() for shift in shifts) and all(
        not tensors[f"{norm}running_mean"].any() and tensors[f"{norm}running_var"].unique().numel() == 1
        for norm in norms
    )


def unfold_norms(network: Network, weights: Mapping[str, Tensor], images: Images, preprocessing: Preprocessing) -> bool:
    """Give folded batch norms the statistics of training images; return whether there were any.

    weights: those that the network starts from. Scales and shifts change with the statistics, so that in evaluation
    mode the network computes the same. Without this, training mode would compute another function: it normalizes
    activations that were not normalized before.
    """
    if not has_folded_norms(weights):
        return False
    sums: dict[_BatchNorm, list[Tensor]] = {}

    def watch(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].double().transpose(0, 1).flatten(1)
        terms = [torch.tensor(values.shape[1]), values.sum(1), values.square().sum(1)]
        sums[norm] = [a + b for a, b in zip(sums[norm], terms, strict=True)] if norm in sums else terms

    norms = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    if not norms:  # they are constants
        return False
    handles = [layer.register_forward_pre_hook(watch) for layer in norms]
    device = next(network.parameters()).device
    some = images.subset(torch.linspace(0, len(images) - 1, min(len(images), STATISTICS_IMAGES)).long())
    if isinstance(some.pixels, Videos):  # one clip of each
        some = replace(some, pixels=some.pixels.at_random(0, 0)[torch.arange(len(some))][:, None])
    try:
        compute_outputs(eager_forward(network, preprocessing, device), some, collect=lambda *_: [])
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        for norm, (count, total, squares) in sums.items():
            assert norm.running_mean is not None
            assert norm.running_var is not None
            mean, scale = total / count, norm.weight / (norm.running_var + norm.eps).sqrt()
            variance = (squares / count - mean.square()).clamp(min=0)
            norm.bias.add_(scale * (mean - norm.running_mean))
            norm.weight.copy_(scale * (variance + norm.eps).sqrt())
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
    return True


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
        if network.runs_in_sequence:
            network.loss(x, labels, lambda outputs, _: outputs.sum())
        else:  # the head sees many regions, or larger maps
            network.stages(network.stem(x))
    except _SingleValueError as stop:
        return str(stop)
    return ""
