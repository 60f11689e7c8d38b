"""Load a checkpoint into a network with other classes or input channels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from convatlas.core.network import Network
from convatlas.core.spec import Spec
from convatlas.errors import WeightsError
from convatlas.weights.read import Checkpoint
from convatlas.weights.sizes import sizes_of

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
    CapsNet's decoder if the number of channels differs. Without classes, those of the classifier are not used.
    input_channels: how the first kernels are made if the number of channels differs.
    fresh_head: keep the initial values of the head even if the number of classes is the same.
    The notes of the checkpoint are logged.
    Raises WeightsError if any other tensor does not fit.
    """
    state = network.state_dict()
    channels = network.input_shape[0]
    same_channels = channels == checkpoint.channels
    same_classes = num_classes == checkpoint.num_classes
    # a tensor depends on classes or channels if its shape does, so that no family needs a list of such tensors
    sizes = sizes_of(spec)
    for key, tensor in checkpoint.tensors.items():
        by_class = key in sizes.by_class
        if num_classes == 0 and key not in state:
            continue
        if state[key].shape == tensor.shape:
            if not (fresh_head and same_classes and by_class):
                state[key] = tensor
        elif (
            tensor.ndim >= 4
            and tensor.shape[1] == checkpoint.channels
            and not same_channels
            and key in sizes.by_channel
        ):
            state[key] = adapt_kernel(tensor, channels, input_channels)
        elif not same_channels and not by_class and not key.startswith("auxiliary."):
            raise WeightsError(
                f"{checkpoint.where}: {key} cannot be adapted from {checkpoint.channels} to {channels} input channels; "
                f"use images with {checkpoint.channels}"
            )
    network.load_state_dict(state)
    checkpoint.log_notes()


def adapt_kernel(kernel: Tensor, channels: int, input_channels: InputChannels) -> Tensor:
    """Return kernels (out, channels, ...) made from kernels (out, old channels, ...)."""
    old = kernel.shape[1]
    if input_channels == "repeat" and channels >= old:
        return kernel.index_select(1, torch.arange(channels) % old) * (old / channels)
    mean = kernel.mean(1, keepdim=True)
    each = mean if input_channels == "mean" else mean * (old / channels)
    return each.expand(-1, channels, *kernel.shape[2:]).clone()
