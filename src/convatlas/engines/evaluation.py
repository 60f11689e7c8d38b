"""Outputs of a network for all images of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.dataset import Images
from convatlas.data.stream import prefetch
from convatlas.system.progress import Progress

Forward = Callable[[Tensor], Tensor]
"""From pixels, as `Preprocessing.resize_and_crop` returns them, to outputs on the CPU."""


def eager_forward(network: nn.Module, preprocessing: Preprocessing, device: torch.device | str = "cpu") -> Forward:
    """Return a function that runs a network as it is, in evaluation mode; afterwards its mode is as before."""

    @torch.inference_mode()
    def forward(pixels: Tensor) -> Tensor:
        with evaluation_mode(network):
            outputs: Tensor = network(preprocessing.normalize(pixels.to(device))).cpu()
        return outputs

    return forward


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Set a network to evaluation mode inside the block; then each layer gets back its own mode."""
    training = [layer for layer in network.modules() if layer.training]
    network.eval()
    try:
        yield
    finally:
        for layer in training:
            layer.training = True


def compute_outputs(forward: Forward, images: Images, *, batch: int = 64, progress: Progress | None = None) -> Tensor:
    """Return the outputs (n, ...) for all images of a split, in their order."""
    rows, done = [], 0
    for _, pixels in prefetch(images.pixels, torch.arange(len(images)).split(batch)):
        rows.append(forward(pixels))
        done += len(pixels)
        if progress:
            progress("evaluating", done, len(images))
    return torch.cat(rows)
