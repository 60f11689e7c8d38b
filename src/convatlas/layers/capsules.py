"""Capsules: vectors whose length is a probability and whose direction is a pose (Sabour et al. 2017)."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from convatlas.core.cost_rules import slide
from convatlas.core.outline import Box, always, outline
from convatlas.core.signal import Signal, Tally, rule
from convatlas.errors import SpecError
from convatlas.layers.init import is_empty

EPSILON = 1e-9
"""Added to squared lengths, so that the gradient of a length is finite at zero."""


def squash(s: Tensor) -> Tensor:
    """Return s scaled to the length n² / (1 + n²), where n is its own; over the last axis (equation 1)."""
    square = s.square().sum(-1, keepdim=True)
    return s * (square / (1 + square) * (square + EPSILON).rsqrt())


class PrimaryCapsules(nn.Module):
    """kxk /s convolution -> squash: `types` capsules of `size` units at each position.

    (n, channels, h, w) to (n, capsules, size).
    """

    def __init__(self, inputs: int, types: int, size: int, *, kernel: int, stride: int) -> None:
        super().__init__()
        self.types, self.size = types, size
        self.conv = nn.Conv2d(inputs, types * size, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x).flatten(2).unflatten(1, (self.types, self.size))
        return squash(maps.transpose(2, 3).flatten(1, 2))


class RoutedCapsules(nn.Module):
    """Dynamic routing: votes of all capsules for all parents, weighted by agreement (procedure 1).

    (n, inputs, in_size) to (n, outputs, out_size). The weight is (inputs, outputs * out_size, in_size): a matrix for
    each pair of a capsule and a parent.
    iterations: of the routing. through: gradients flow through all iterations, as in the authors' code; by default only
        through the last one, which gives the same output in half of the time.
    """

    def __init__(
        self, inputs: int, in_size: int, outputs: int, out_size: int, *, iterations: int = 3, through: bool = False
    ) -> None:
        super().__init__()
        if iterations < 1:
            raise SpecError(f"RoutedCapsules: iterations must be an integer >= 1, got {iterations}")
        self.outputs, self.out_size, self.iterations, self.through = outputs, out_size, iterations, through
        self.weight = nn.Parameter(torch.empty(inputs, outputs * out_size, in_size))
        if not is_empty(self):
            nn.init.normal_(self.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        # batched over the input capsules
        votes = torch.bmm(x.transpose(0, 1), self.weight.transpose(1, 2))
        votes = votes.unflatten(2, (self.outputs, self.out_size)).permute(1, 2, 0, 3)
        # (n, outputs, inputs, out_size)
        fixed = votes if self.through else votes.detach()
        logits = votes.new_zeros(votes.shape[:3])
        for _ in range(self.iterations - 1):
            parents = squash(self.weighted_sum(logits, fixed))
            logits = logits + torch.matmul(fixed, parents.unsqueeze(-1)).squeeze(-1)
        return squash(self.weighted_sum(logits, votes))

    @staticmethod
    def weighted_sum(logits: Tensor, votes: Tensor) -> Tensor:
        """Return the weighted votes for each parent; the softmax is over the parents, not over the children."""
        return torch.matmul(logits.softmax(1).unsqueeze(2), votes).squeeze(2)

    def extra_repr(self) -> str:
        inputs, _, in_size = self.weight.shape
        sizes = f"{inputs} x {in_size} to {self.outputs} x {self.out_size}"
        return f"{sizes}, iterations={self.iterations}, through={self.through}"


class Length(nn.Module):
    """Length of each capsule: (n, capsules, size) to (n, capsules)."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.square().sum(-1) + EPSILON).sqrt()


@outline.register
def _(layer: PrimaryCapsules) -> Box:
    kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
    return Box((f"{kernel}×{kernel}, {layer.types} × {layer.size}, /{stride}", "squash"), "conv")


@outline.register
def _(layer: RoutedCapsules) -> Box:
    return Box((f"routing, {layer.outputs} × {layer.out_size}", f"{layer.iterations} iterations"), "other")


always(Length, "length")


@rule.register
def _(layer: PrimaryCapsules, x: Signal, tally: Tally) -> Signal:
    conv = layer.conv
    if x.channels != conv.in_channels:
        raise tally.error(layer, f"expects {conv.in_channels} channels, got {x.channels}")
    maps = slide(layer, x, tally, channels=conv.out_channels, kernel=conv.kernel_size, stride=conv.stride)
    macs = maps.size * conv.in_channels * math.prod(conv.kernel_size)
    y = maps.like((layer.types * math.prod(maps.spatial), layer.size))
    return tally.add(layer, x, y, macs=macs, activations=maps.size, connections=macs + maps.size)


@rule.register
def _(layer: RoutedCapsules, x: Signal, tally: Tally) -> Signal:
    (inputs, _, in_size), outputs, out_size = layer.weight.shape, layer.outputs, layer.out_size
    if x.shape != (inputs, in_size):
        raise tally.error(layer, f"expects {inputs} capsules of {in_size} units, got {x.shape}")
    votes = inputs * outputs * out_size
    # the votes, a weighted sum in every iteration, an agreement after every one but the last
    macs = votes * in_size + votes * layer.iterations + votes * (layer.iterations - 1)
    y = replace(x, shape=(outputs, out_size), is_global=True)
    return tally.add(layer, x, y, macs=macs, activations=y.size, connections=votes * in_size)


@rule.register
def _(layer: Length, x: Signal, tally: Tally) -> Signal:
    return tally.add(layer, x, x.like((x.channels,)))
