"""Routing between capsules: convatlas against three formulations of other implementations, interleaved.

    python benchmarks/capsule_routing.py [--batch 16] [--threads 2] [--rounds 15]

1,152 capsules of 8 units to 10 capsules of 16, three iterations, forward and backward, the same weights. The others
multiply every capsule by every matrix: by broadcasting and summing or by a broadcast matrix product, as most tutorials
do, or by einsum. Their gradients flow through all iterations; those of convatlas through the last one only (the output
is the same), unless `through=True`. Prints milliseconds (medians) and the ratio of the fastest of the others to each.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from convatlas.layers.capsules import RoutedCapsules
from interleave import medians, time_interleaved

INPUTS, IN_SIZE, OUTPUTS, OUT_SIZE, ITERATIONS = 1152, 8, 10, 16, 3

OURS = ("convatlas", "convatlas, through=True")


def squash(s: Tensor) -> Tensor:
    square = (s**2).sum(-1, keepdim=True)
    return square / (1 + square) * s / torch.sqrt(square + 1e-9)


def route(votes: Tensor) -> Tensor:
    """Return the parents (n, outputs, out) of votes (n, inputs, outputs, out), by broadcasting and summing."""
    logits = torch.zeros(*votes.shape[:3], 1)
    for iteration in range(ITERATIONS):
        coupling = torch.softmax(logits, dim=2)
        parents = squash((coupling * votes).sum(1, keepdim=True))
        if iteration < ITERATIONS - 1:
            logits = logits + (votes * parents).sum(-1, keepdim=True)
    return parents.squeeze(1)


def multiply_and_sum(x: Tensor, weight: Tensor) -> Tensor:
    """x (n, inputs, in), weight (inputs, outputs, out, in)."""
    return route((weight[None] * x[:, :, None, None, :]).sum(-1))


def broadcast_matmul(x: Tensor, weight: Tensor) -> Tensor:
    u = x[:, :, None, :, None].expand(-1, -1, weight.shape[1], -1, -1)
    return route((weight[None].expand(len(x), -1, -1, -1, -1) @ u).squeeze(-1))


def einsum(x: Tensor, weight: Tensor) -> Tensor:
    votes = torch.einsum("nki,kjoi->nkjo", x, weight)
    logits = torch.zeros(votes.shape[:3])
    for _ in range(ITERATIONS - 1):
        parents = squash(torch.einsum("nkj,nkjo->njo", logits.softmax(2), votes))
        logits = logits + torch.einsum("nkjo,njo->nkj", votes, parents)
    return squash(torch.einsum("nkj,nkjo->njo", logits.softmax(2), votes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    layer = RoutedCapsules(INPUTS, IN_SIZE, OUTPUTS, OUT_SIZE, iterations=ITERATIONS)
    through = RoutedCapsules(INPUTS, IN_SIZE, OUTPUTS, OUT_SIZE, iterations=ITERATIONS, through=True)
    through.load_state_dict(layer.state_dict())
    weight = layer.weight.detach().view(INPUTS, OUTPUTS, OUT_SIZE, IN_SIZE).clone().requires_grad_()
    x = squash(torch.randn(arguments.batch, INPUTS, IN_SIZE)).detach().requires_grad_()
    sides: dict[str, Callable[[], Tensor]] = {
        "multiply and sum": lambda: multiply_and_sum(x, weight),
        "broadcast matrix product": lambda: broadcast_matmul(x, weight),
        "einsum": lambda: einsum(x, weight),
        "convatlas, through=True": lambda: through(x),
        "convatlas": lambda: layer(x),
    }
    with torch.no_grad():
        expected = sides["multiply and sum"]()
        errors = {name: float((side() - expected).abs().max()) for name, side in sides.items()}
    steps = {name: lambda side=side: side().square().sum().backward() for name, side in sides.items()}
    seconds = medians(time_interleaved(steps, arguments.rounds))
    fastest = min(value for name, value in seconds.items() if name not in OURS)
    print(f"forward and backward, batch {arguments.batch}, {arguments.threads} threads, {arguments.rounds} rounds")
    print(f"{'side':<26} {'ms':>8}  fastest other / side  largest difference of outputs")
    for name, value in seconds.items():
        print(f"{name:<26} {1000 * value:8.1f}  {fastest / value:20.2f}  {errors[name]:.1e}")


if __name__ == "__main__":
    main()
