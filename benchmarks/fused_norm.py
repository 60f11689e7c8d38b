"""Batch norm and activation: the fused kernel (train/cpu/fused_norm.c) against torch's layers, interleaved.

    python benchmarks/fused_norm.py [--threads 2] [--rounds 15] [--maps 7]

Forward and backward in training mode, channels_last, on feature maps of MobileNetV2 at 224 px with 16 images, in
bfloat16 and float32. Prints milliseconds of torch and of the kernel (medians), and the ratio of the two.
"""

from __future__ import annotations

import argparse
import copy
from functools import partial

import torch
from torch import Tensor, nn

from convatlas.core.compose import Chain
from convatlas.layers.conv import activation
from convatlas.train.cpu import fused_norm
from convatlas.train.cpu.execution import process_settings
from interleave import medians, time_interleaved

MAPS = [(32, 112), (96, 56), (144, 56), (192, 28), (384, 14), (576, 14), (960, 7)]
"""(channels, side in pixels) of the feature maps."""

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU)
BATCH = 16


def forward_backward(chain: Chain, x: Tensor, grad: Tensor) -> None:
    x.grad = None
    chain(x.clone()).backward(grad)  # a clone, as the output of the convolution before it is a new tensor, too


def compare(act: type[nn.Module], dtype: torch.dtype, channels: int, side: int, rounds: int) -> tuple[float, float]:
    """Return the median seconds of torch's layers and of the fused kernel."""
    layers = Chain(nn.BatchNorm2d(channels), activation(act)).train()
    fused = copy.deepcopy(layers)
    fused_norm.install(fused)
    shape = (BATCH, channels, side, side)
    x, grad = (torch.randn(shape).to(dtype).to(memory_format=torch.channels_last) for _ in range(2))
    x.requires_grad_()
    sides = {"torch": partial(forward_backward, layers, x, grad), "fused": partial(forward_backward, fused, x, grad)}
    seconds = medians(time_interleaved(sides, rounds, warmup=2))
    return seconds["torch"], seconds["fused"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--maps", type=int, default=len(MAPS), help="number of feature maps, the largest first")
    arguments = parser.parse_args()
    maps = MAPS[: arguments.maps]
    with process_settings(threads=arguments.threads, retain_malloc=True):
        compiler = fused_norm.compiler_version(nn.Sequential(nn.BatchNorm2d(1)))
        if compiler == "none":
            raise SystemExit("the kernel is not in use here: no C compiler, or not faster than torch")
        print(f"{compiler}; {arguments.threads} threads, {arguments.rounds} rounds; ms of torch, ms fused, ratio")
        print(f"{'activation':<10} {'type':<9} " + " ".join(f"{f'{c} x {side}²':>20}" for c, side in maps))
        for act in ACTIVATIONS:
            for dtype in (torch.bfloat16, torch.float32):
                cells = []
                for channels, side in maps:
                    plain, fused = compare(act, dtype, channels, side, arguments.rounds)
                    cells.append(f"{1000 * plain:6.2f} {1000 * fused:6.2f} {plain / fused:5.2f}x")
                row = " ".join(f"{cell:>20}" for cell in cells)
                print(f"{act.__name__:<10} {fused_norm.TYPE_NAMES[dtype]:<9} {row}", flush=True)


if __name__ == "__main__":
    main()
