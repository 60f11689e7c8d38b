"""The other side of the training benchmarks: a loop in plain PyTorch, as a good engineer writes it today.

channels_last, bfloat16 autocast if the processor computes in it, and the fused optimizer. With `--float32` it is the
loop of most tutorials: float32, the default memory format, the default optimizer.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convatlas.system.devices import supports_bfloat16


def add_float32_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--float32", action="store_true", help="run the baseline as tutorials do: float32, default memory format"
    )


def bfloat16_autocast(*, float32: bool = False) -> torch.autocast:
    """Return a bfloat16 autocast context; it does nothing if the processor would only emulate bfloat16."""
    enabled = not float32 and supports_bfloat16(torch.device("cpu"))
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


class Baseline:
    """A model under training with SGD and momentum."""

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float = 0.0, float32: bool = False) -> None:
        self.memory_format = torch.contiguous_format if float32 else torch.channels_last
        self.float32 = float32
        self.model = model.to(memory_format=self.memory_format).train()
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay, fused=not float32
        )

    def step(self, inputs: Tensor, labels: Tensor) -> float:
        """Train on one batch; return its loss."""
        self.optimizer.zero_grad()
        with bfloat16_autocast(float32=self.float32):
            outputs = self.model(inputs.to(memory_format=self.memory_format))
            loss = F.cross_entropy(outputs.float(), labels)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    @torch.inference_mode()
    def accuracy(self, loader: torch.utils.data.DataLoader) -> float:
        """Return the accuracy on a data set."""
        self.model.eval()
        correct = total = 0
        for inputs, labels in loader:
            with bfloat16_autocast(float32=self.float32):
                outputs = self.model(inputs.to(memory_format=self.memory_format))
            correct += int((outputs.argmax(1) == labels).sum())
            total += len(labels)
        return correct / total
