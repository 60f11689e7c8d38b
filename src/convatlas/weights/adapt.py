"""Adapt weights to other classes and channels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from convatlas.core.network import Network
from convatlas.core.spec import Spec
from convatlas.errors import WeightsError
from convatlas.models.catalog import build_fresh
from convatlas.weights.read import Checkpoint, match_checkpoint

First = Literal["sum", "mean", "repeat"]
"""How kernels for other numbers of channels are made from those for the published ones.

sum: every channel reads the sum of the published kernels, divided by the number of channels: a gray image gives the
outputs that its RGB copy gave. mean: every channel reads their mean. repeat: the published kernels in turn (R, G, B, R,
...), times old / new number of channels; fewer channels than were published read the sum, as above.
"""


def load_into(
    network: Network, spec: Spec, given: Checkpoint, *, first: First = "repeat", fresh_head: bool = False
) -> None:
    """Put the tensors of a checkpoint into a network of the same spec.

    What belongs to other classes stays as it was drawn, and so does what paints images of other channels (CapsNet's
    decoder). `fresh_head` says that the classes are others even if they are as many. Kernels that read other channels
    are made by the rule `first`.
    Raises WeightsError if anything else does not fit, to the last tensor.
    """
    expected, by_class, by_channel = (
        build_fresh(
            spec, classes=given.classes + classes, channels=given.channels + channels, device="meta"
        ).state_dict()
        for classes, channels in ((0, 0), (1, 0), (0, 1))
    )
    state = network.state_dict()
    channels = network.input_shape[0]
    for key, tensor in match_checkpoint(spec, given, expected).items():
        wanted = state[key].shape
        if wanted == tensor.shape:
            if not (fresh_head and by_class[key].shape != tensor.shape):
                state[key] = tensor
        elif by_channel[key].shape != tensor.shape and tensor.ndim >= 4 and tensor.shape[1] == given.channels:
            state[key] = adapt_kernel(tensor, channels, first)
        elif by_class[key].shape == tensor.shape and not key.startswith("auxiliary."):
            raise WeightsError(
                f"{given.where}: {key} cannot be made for {channels} channels from {given.channels}; "
                "give images of as many channels as the weights read"
            )
    network.load_state_dict(state)


def adapt_kernel(kernel: Tensor, channels: int, first: First) -> Tensor:
    """Return kernels (out, channels, ...) made from kernels (out, old channels, ...) by the rule `first`."""
    old = kernel.shape[1]
    if first == "repeat" and channels >= old:
        return kernel.index_select(1, torch.arange(channels) % old) * (old / channels)
    mean = kernel.mean(1, keepdim=True)
    each = mean if first == "mean" else mean * (old / channels)
    return each.expand(-1, channels, *kernel.shape[2:]).clone()
