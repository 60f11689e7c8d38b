"""Inflation: weights of a network for images as those of a network for clips."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import Tensor

from convatlas.core.spec import Spec
from convatlas.errors import WeightsError, listed
from convatlas.models.card import Variant
from convatlas.models.catalog import resolve
from convatlas.models.families.inflated import Inflated
from convatlas.models.families.resnet import ResNet
from convatlas.models.families.video_resnet import VideoResNet
from convatlas.models.keys import is_counter
from convatlas.weights.files import CheckpointFile
from convatlas.weights.read import Checkpoint
from convatlas.weights.sizes import sizes_of
from convatlas.weights.state_dicts import find_state_dicts

Inflation = Literal["mean", "center"]
"""How the kernel of an image, h x w, becomes one of a clip, t x h x w.

mean: each of the t slices is the kernel divided by t (Carreira and Zisserman 2017, arXiv 1705.07750, section 2).
center: the middle slice is the kernel, the others are 0 (Girdhar et al. 2018, arXiv 1712.09184, section 3).
Maps of equal frames are then those of the frame, apart from rounding; with "mean", only where no kernel reaches beyond
the first or last frame, where it reads zeros.
"""

HINT = "to use weights of images, state how they are inflated: inflate mean or center (--inflate mean)"


def image_network(spec: Spec, inflate: Inflation) -> tuple[str, Variant]:
    """Return the name and the row of the network for images whose weights can be inflated to those of `spec`.

    It has the same layers under the same paths. Raises WeightsError if there is none.
    """
    if inflate not in get_args(Inflation):
        raise WeightsError(f"inflate: must be {' or '.join(get_args(Inflation))}, got {inflate!r}")
    if isinstance(spec, Inflated):
        return resolve(spec.body)
    if not isinstance(spec, VideoResNet):
        network = "reads images" if spec.reads == "images" else "is not the counterpart of a network for images"
        raise WeightsError(
            f"inflate: must not be given, because {type(spec).__name__} {network}; it makes weights of images those "
            "of a network for clips"
        )
    if len(spec.stem) == 2 or "2+1d" in spec.kinds:
        raise WeightsError(
            'inflate: not possible for convolutions that are split into space and time ("2+1d"), which no network for '
            "images has; choose r3d_18 or mc3_18"
        )
    return resolve(ResNet(spec.block, spec.depths, spec.widths, spec.stem[0]))


def inflate_checkpoint(checkpoint: Checkpoint, spec: Spec, row: Variant, inflate: Inflation) -> Checkpoint:
    """Return the weights of a network for images as weights of its counterpart for clips.

    spec, row: of the network for clips. Its frames are normalized as the images were; they are resized and cropped as
    the row says. Raises WeightsError that names the tensors if some do not fit.
    """
    cells: dict[str, Any] = {}
    if isinstance(spec, Inflated):
        cells = {"body": checkpoint.spec_for(spec.body)}
    elif checkpoint.cells:
        raise WeightsError(
            f"{checkpoint.where}: cannot be inflated, because {listed(checkpoint.cells)} of this network differ"
        )
    expected = sizes_of(spec.replaced(cells)).tensors(checkpoint.num_classes or 2, checkpoint.channels)
    tensors = {
        name: inflate_kernel(tensor, expected[name].shape[2], inflate) if _is_kernel(tensor, expected[name]) else tensor
        for name, tensor in checkpoint.tensors.items()
        if name in expected
    }
    without_head = not checkpoint.num_classes
    wrong = [
        name
        for name, like in expected.items()
        if not is_counter(name) and (tensors[name].shape != like.shape if name in tensors else not without_head)
    ]
    if wrong:
        raise WeightsError(f"{checkpoint.where}: cannot be inflated: {listed(wrong, 3)} do not fit")
    steps = checkpoint.preprocessing
    preprocessing = row.preprocessing.for_channels(checkpoint.channels)
    return dataclasses.replace(
        checkpoint, tensors=tensors, original={}, cells=cells,
        notes=(*checkpoint.notes, f"kernels inflated over time ({inflate})"),
        preprocessing=dataclasses.replace(preprocessing, mean=steps.mean, std=steps.std, rotation=steps.rotation),
    )  # fmt: skip


def _is_kernel(tensor: Tensor, like: Tensor) -> bool:
    """Return whether a tensor is a kernel over space where the network has one over time and space."""
    return tensor.ndim == 4 and like.ndim == 5


def inflate_kernel(kernel: Tensor, frames: int, inflate: Inflation) -> Tensor:
    """Return a kernel (out, in, frames, h, w) made of one of images (out, in, h, w); see `Inflation`."""
    slices = kernel.unsqueeze(2).repeat(1, 1, frames, 1, 1)
    if inflate == "mean":
        return slices.div_(frames)
    middle = (frames - 1) // 2
    slices[:, :, :middle] = 0
    slices[:, :, middle + 1 :] = 0
    return slices


def read_with_hint(read: Callable[[], Checkpoint], spec: Spec, file: CheckpointFile) -> Checkpoint:
    """Read a checkpoint; the error for one of a network for images says how a network for clips can use it."""
    try:
        return read()
    except WeightsError as error:
        tensors = [tensor for each in find_state_dicts(file.content, file.path) for tensor in each.tensors.values()]
        axes = {tensor.ndim for tensor in tensors}
        if spec.reads == "clips" and 4 in axes and 5 not in axes:
            raise WeightsError(
                f"{file.path}: has kernels of images, and {type(spec).__name__} reads clips; {HINT}"
            ) from error
        raise
