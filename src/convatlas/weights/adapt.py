"""Load a checkpoint into a network with other classes or input channels."""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from torch import Tensor

from convatlas.core.network import Network
from convatlas.core.spec import Spec
from convatlas.errors import WeightsError
from convatlas.models.catalog import build_fresh
from convatlas.weights.read import Checkpoint, match_checkpoint

InputChannels = Literal["sum", "mean", "repeat"]
"""How the first kernels are made for another number of input channels.

sum: every channel gets the sum of the published kernels divided by the number of channels, so that a gray image has the
outputs of its RGB copy. mean: every channel gets their mean. repeat: the published kernels in turn (R, G, B, R, ...),
times old / new number of channels; if there are fewer channels than published, as sum.
"""


def load_into(
    network: Network,
    spec: Spec,
    checkpoint: Checkpoint,
    *,
    num_classes: int,
    input_channels: InputChannels = "repeat",
    fresh_head: bool = False,
) -> None:
    """Copy the tensors of a checkpoint into a network that was built from `spec` with `num_classes` classes.

    Tensors whose shape depends on the number of classes keep their initial values if that number differs, and so does
    CapsNet's decoder if the number of channels differs.
    input_channels: how the first kernels are made if the number of channels differs.
    fresh_head: keep the initial values of the head even if the number of classes is the same.
    Raises WeightsError if any other tensor does not fit.
    """
    state = network.state_dict()
    channels = network.input_shape[0]
    same_channels = channels == checkpoint.channels
    same_classes = num_classes == checkpoint.num_classes

    # a tensor depends on classes or channels if its shape does, so that no family needs a list of such tensors;
    # other networks are built (without memory) only if the shapes of this one do not determine that
    @cache
    def shapes(extra_classes: int, extra_channels: int) -> dict[str, Tensor]:
        if (extra_classes, extra_channels) == (0, 0) and same_classes and same_channels:
            return state
        num_classes, num_channels = checkpoint.num_classes + extra_classes, checkpoint.channels + extra_channels
        return build_fresh(spec, classes=num_classes, channels=num_channels, device="meta").state_dict()

    def by_class(key: str, tensor: Tensor) -> bool:
        return bool(shapes(1, 0)[key].shape != tensor.shape)

    def by_channel(key: str, tensor: Tensor) -> bool:
        return not same_channels and bool(shapes(0, 1)[key].shape != tensor.shape)

    for key, tensor in match_checkpoint(spec, checkpoint, shapes(0, 0)).items():
        if state[key].shape == tensor.shape:
            if not (fresh_head and same_classes and by_class(key, tensor)):
                state[key] = tensor
        elif tensor.ndim >= 4 and tensor.shape[1] == checkpoint.channels and by_channel(key, tensor):
            state[key] = adapt_kernel(tensor, channels, input_channels)
        elif not same_channels and not by_class(key, tensor) and not key.startswith("auxiliary."):
            raise WeightsError(
                f"{checkpoint.where}: {key} cannot be adapted from {checkpoint.channels} to {channels} input channels; "
                f"use images with {checkpoint.channels}"
            )
    network.load_state_dict(state)


def adapt_kernel(kernel: Tensor, channels: int, input_channels: InputChannels) -> Tensor:
    """Return kernels (out, channels, ...) made from kernels (out, old channels, ...)."""
    old = kernel.shape[1]
    if input_channels == "repeat" and channels >= old:
        return kernel.index_select(1, torch.arange(channels) % old) * (old / channels)
    mean = kernel.mean(1, keepdim=True)
    each = mean if input_channels == "mean" else mean * (old / channels)
    return each.expand(-1, channels, *kernel.shape[2:]).clone()
