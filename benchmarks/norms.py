"""Batch norm and activation in one pass: our kernels against torch's layers, interleaved in one process.

    python benchmarks/norms.py [--threads 2] [--rounds 15]

Forward and backward of a norm and the activation behind it in training, channels_last, on maps that MobileNetV2 has at
224 px with 16 images. Prints milliseconds (median) and the ratio of torch's to ours.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from torch import Tensor, nn

from convatlas.core.compose import Chain
from convatlas.layers.conv import activation
from convatlas.train.cpu import execution, fused_norm

MAPS = [(32, 112), (96, 56), (144, 56), (192, 28), (384, 14), (576, 14), (960, 7)]
"""Channels and sides."""


def passed(chain: Chain, x: Tensor, gradient: Tensor) -> float:
    x.grad = None
    begun = time.perf_counter()
    chain(x.clone()).backward(gradient)  # the convolution before it makes a tensor of its own, too
    return 1000 * (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    execution.keep_heap()
    compiler = fused_norm.compiler(nn.Sequential(nn.BatchNorm2d(1)))
    print(f"kernels: {compiler}; {options.threads} threads, median of {options.rounds}; ms of torch, of ours")
    print(f"{'activation':<10} {'type':<9} " + " ".join(f"{f'{c} x {side}²':>20}" for c, side in MAPS))
    for act in (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU):
        for kind in (torch.bfloat16, torch.float32):
            cells = []
            for channels, side in MAPS:
                torchs = Chain(nn.BatchNorm2d(channels), activation(act)).train()
                ours = copy.deepcopy(torchs)
                fused_norm.install(ours)
                shape = (16, channels, side, side)
                x, gradient = (torch.randn(shape).to(kind).to(memory_format=torch.channels_last) for _ in range(2))
                x.requires_grad_()
                times: dict[bool, list[float]] = {True: [], False: []}
                for turn in range(options.rounds + 2):
                    for own in (True, False) if turn % 2 else (False, True):
                        took = passed(ours if own else torchs, x, gradient)
                        if turn > 1:
                            times[own].append(took)
                theirs, mine = (statistics.median(times[own]) for own in (False, True))
                cells.append(f"{theirs:6.2f} {mine:6.2f} {theirs / mine:5.2f}x")
            print(f"{act.__name__:<10} {str(kind)[6:]:<9} " + " ".join(f"{cell:>20}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
