"""Outputs of a network for all images of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.ragged import Inputs, Outputs, concatenate, to_device
from convatlas.data.dataset import Images
from convatlas.data.stream import prefetch
from convatlas.data.whole_images import WholeImages
from convatlas.system.progress import Progress

Forward = Callable[[Any], Any]
"""From pixels, as `Preprocessing.resize_and_crop` returns them, or whole images, to outputs on the CPU."""

Collect = Callable[[Any, Inputs], Outputs]
"""From the outputs of a batch, and its pixels, to what is kept of them; see `Task.collect`."""

BATCH = 64
"""Default number of images in a batch.

Whole images are computed one by one: in a batch they are padded to the largest, which changes the outputs.
"""


def eager_forward(network: Network, preprocessing: Preprocessing, device: torch.device | str = "cpu") -> Forward:
    """Return a function that runs a network as it is, in evaluation mode; afterwards its mode is as before.

    Outputs are compact; see `Network.compact`.
    """

    @torch.inference_mode()
    def forward(pixels: Inputs) -> Any:
        with evaluation_mode(network), _compact(network):
            return to_device(network(preprocessing.normalize(to_device(pixels, device))), "cpu")

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


@contextmanager
def _compact(network: Network) -> Iterator[None]:
    before = network.compact
    network.compact = True
    try:
        yield
    finally:
        network.compact = before


def compute_outputs(
    forward: Forward, images: Images, *, collect: Collect | None = None, batch: int = 0,
    progress: Progress | None = None,
) -> Any:  # fmt: skip
    """Return the outputs of all images of a split in their order: (n, ...), or a list with an item for each image.

    collect: `Task.collect`, where the outputs are large. batch: images in a batch; 0 for the default.
    """
    batch = batch or (1 if isinstance(images.pixels, WholeImages) else BATCH)
    parts: list[Outputs] = []
    done = 0
    for _, pixels in prefetch(images.pixels, torch.arange(len(images)).split(batch)):
        outputs = forward(pixels)
        parts.append(outputs if collect is None else collect(outputs, pixels))
        done += len(pixels)
        if progress:
            progress("evaluating", done, len(images))
    return concatenate(parts)
