"""Routing between capsules: ours against the broadcast formulation of most tutorials, interleaved in one process.

    python benchmarks/routing.py [--batch 16] [--threads 2] [--rounds 15]

1,152 capsules of 8 units to 10 of 16, three iterations, forward and backward, the same weights. The tutorial code
multiplies every capsule with every matrix by broadcasting and summing; gradients flow through all iterations there.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor

from convatlas.layers.capsules import RoutedCapsules


def squash(s: Tensor) -> Tensor:
    square = (s**2).sum(-1, keepdim=True)
    return square / (1 + square) * s / torch.sqrt(square + 1e-9)


def broadcast(x: Tensor, weight: Tensor, iterations: int) -> Tensor:
    """x (batch, inputs, in); weight (inputs, outputs, out, in); as tutorials write it."""
    u = x[:, :, None, :, None]
    votes = (weight[None].expand(len(x), -1, -1, -1, -1) @ u.expand(-1, -1, weight.shape[1], -1, -1)).squeeze(-1)
    logits = torch.zeros(*votes.shape[:3], 1)
    for iteration in range(iterations):
        coupling = torch.softmax(logits, dim=2)
        parents = squash((coupling * votes).sum(1, keepdim=True))
        if iteration < iterations - 1:
            logits = logits + (votes * parents).sum(-1, keepdim=True)
    return parents.squeeze(1)


def multiplied(x: Tensor, weight: Tensor, iterations: int) -> Tensor:
    """The same without a matrix product: multiply, then sum, as the older tutorials do."""
    votes = (weight[None] * x[:, :, None, None, :]).sum(-1)
    logits = torch.zeros(*votes.shape[:3], 1)
    for iteration in range(iterations):
        coupling = torch.softmax(logits, dim=2)
        parents = squash((coupling * votes).sum(1, keepdim=True))
        if iteration < iterations - 1:
            logits = logits + (votes * parents).sum(-1, keepdim=True)
    return parents.squeeze(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    layer = RoutedCapsules(1152, 8, 10, 16)
    faithful = RoutedCapsules(1152, 8, 10, 16, through=True)
    faithful.load_state_dict(layer.state_dict())
    weight = layer.weight.detach().view(1152, 10, 16, 8).clone().requires_grad_()
    x = squash(torch.randn(options.batch, 1152, 8)).detach().requires_grad_()
    sides = {
        "broadcast, multiply and sum": lambda: multiplied(x, weight, 3),
        "broadcast, matrix product": lambda: broadcast(x, weight, 3),
        "convatlas, through all iterations": lambda: faithful(x),
        "convatlas": lambda: layer(x),
    }
    expected = sides["broadcast, multiply and sum"]()
    for name, side in sides.items():
        print(f"{name:36} largest difference of the output {float((side() - expected).detach().abs().max()):.1e}")
    times: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(-1, options.rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side().square().sum().backward()
            if round_ >= 0:
                times[name].append(time.perf_counter() - start)
    base = statistics.median(times["broadcast, multiply and sum"])
    print(f"\nforward and backward, batch {options.batch}, {options.threads} threads, {options.rounds} rounds, medians")
    for name, took in times.items():
        median = statistics.median(took)
        print(f"{name:36} {median * 1e3:8.1f} ms   {base / median:5.2f} times as fast as the first")


if __name__ == "__main__":
    main()
