"""Outputs of a network for all images of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.ragged import Inputs, Outputs, concatenate, to_device
from convatlas.data.dataset import Images
from convatlas.data.stream import count_clips, prefetch
from convatlas.data.videos import Videos
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

CLIPS = 8
"""Default number of clips in a batch of videos."""


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

    Of videos, the pixels are (n, clips, frames, channels, h, w) and the outputs (n, clips, outputs).
    collect: `Task.collect`, where the outputs are large. batch: images in a batch; 0 for the default.
    """
    if isinstance(images.pixels, Videos):
        raise TypeError("compute_outputs: all frames of videos are for training; clips are evaluated")
    clips = 0 if isinstance(images.pixels, WholeImages) else count_clips(images.pixels)
    batch = batch or (1 if isinstance(images.pixels, WholeImages) else max(1, CLIPS // clips) if clips else BATCH)
    parts: list[Outputs] = []
    done = 0
    for _, pixels in prefetch(images.pixels, torch.arange(len(images)).split(batch)):
        if clips and isinstance(pixels, Tensor):
            outputs = forward(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        else:
            outputs = forward(pixels)
        parts.append(outputs if collect is None else collect(outputs, pixels))
        done += len(pixels)
        if progress:
            progress("evaluating", done, len(images))
    return concatenate(parts)
