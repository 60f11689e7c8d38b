"""Parameter groups, optimizers, and the moving average of the weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn, optim

from convatlas.core.network import Network
from convatlas.train.recipe import Recipe


class ParameterGroup(NamedTuple):
    """The parameters of one part of a network."""

    path: str
    parameters: list[nn.Parameter]

    def __repr__(self) -> str:
        return (
            f"({self.path!r}, {len(self.parameters)} tensors of {sum(p.numel() for p in self.parameters):,} parameters)"
        )


def param_groups_by_depth(network: Network) -> list[ParameterGroup]:
    """Return (path, parameters) from the input to the output: the stem, each stage, the head.

    Groups without parameters are omitted. Auxiliary parts, which only training uses, are in the group of the head. For
    learning rates that fall with the distance from the output (layer-wise decay).
    """
    return [ParameterGroup(path, parameters) for path, parameters in network.groups_by_depth()]


def build_optimizer(recipe: Recipe, network: Network) -> optim.Optimizer:
    """Return the recipe's optimizer: for each learning rate a group with weight decay and one without.

    A group's "lr_scale" is its factor on the learning rate of a step. Biases and norms are not decayed. Parameters that
    do not require gradients are in no group.
    """
    groups: list[dict[str, Any]] = []
    # frozen parts get their own groups: fused optimizers require that all parameters of a group have a state
    by_depth = recipe.layer_decay < 1 or recipe.head_epochs > 0 or recipe.frozen_stages > 0
    depths = param_groups_by_depth(network) if by_depth else [ParameterGroup("all", list(network.parameters()))]
    matrices = {id(p) for name, p in network.named_parameters() if p.ndim >= 2 and not name.endswith("bias")}
    for distance, (_, parameters) in enumerate(reversed(depths)):
        lr_scale = recipe.layer_decay**distance
        decayed = [p for p in parameters if p.requires_grad and id(p) in matrices]
        others = [p for p in parameters if p.requires_grad and id(p) not in matrices]
        for members, weight_decay in ((decayed, recipe.weight_decay), (others, 0.0)):
            if members:
                groups.append({"params": members, "weight_decay": weight_decay, "lr_scale": lr_scale})
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in network.parameters())
    if recipe.optimizer == "sgd":
        nesterov = recipe.momentum > 0
        return optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov, fused=fused)
    if recipe.optimizer == "rmsprop":  # the constants of the MobileNets and EfficientNets, from their papers
        return optim.RMSprop(groups, lr=recipe.lr, alpha=0.9, eps=0.001, momentum=recipe.momentum)
    return optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), fused=fused)


def set_lr(optimizer: optim.Optimizer, lr: float) -> None:
    """Set the learning rate of a step in every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def state_names(optimizer: optim.Optimizer) -> set[str]:
    """Return the names of what an optimizer keeps for each parameter, such as "momentum_buffer"."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    probe = type(optimizer)([{**optimizer.param_groups[0], "params": [parameter]}])  # type: ignore[call-arg]
    probe.step()
    return set(probe.state[parameter])


class EMA:
    """Exponential moving average of the weights: decay d, but at most (1 + n) / (10 + n) at step n."""

    def __init__(self, network: Network, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self, network: Network) -> None:
        """Update the average with the weights after a step; integer buffers are copied."""
        self.steps += 1
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        pairs = list(zip(_tensors(self.network), _tensors(network), strict=True))
        floats = [(mean, new) for mean, new in pairs if mean.is_floating_point()]
        torch._foreach_lerp_([mean for mean, _ in floats], [new for _, new in floats], weight)
        for mean, new in pairs:
            if not mean.is_floating_point():
                mean.copy_(new)


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()
