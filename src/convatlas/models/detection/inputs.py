"""What a detector refuses: images and targets that torchvision would crash on, or train on without a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from convatlas.errors import InputError


def check_images(images: Any, channels: int, *, dtype: torch.dtype, max_size: int) -> None:
    """Raise InputError unless images are tensors (channels, h, w) of `dtype`; max_size: of a long side, in pixels."""
    batch = isinstance(images, Tensor) and images.ndim == 4
    if not batch and not isinstance(images, list | tuple):
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"images: must be a list of tensors ({channels}, h, w), got {shape}")
    if dtype in (torch.bfloat16, torch.float16):
        raise InputError(
            f"network: must be float32, got {_name(dtype)}; use torch.autocast for the layers of a detector"
        )
    for i, image in enumerate(images):
        where = f"images[{i}]"
        if not isinstance(image, Tensor):
            raise InputError(f"{where}: must be a tensor ({channels}, h, w), got {type(image).__name__}")
        if image.ndim != 3 or image.shape[0] != channels:
            raise InputError(f"{where}: must have the shape ({channels}, h, w), got {tuple(image.shape)}")
        if image.dtype != dtype:
            hint = "; divide pixels by 255" if image.dtype == torch.uint8 else ""
            raise InputError(f"{where}: must be {_name(dtype)} from 0 to 1, got {_name(image.dtype)}{hint}")
        short, long = sorted(image.shape[1:])
        if short * max_size <= long:
            raise InputError(
                f"{where}: must keep a pixel of its short side when the long one has {max_size} px, got "
                f"{image.shape[2]} x {image.shape[1]} px"
            )


def check_targets(targets: Any, images: Sequence[Tensor], *, classes: int, masks: bool, points: int) -> None:
    """Raise InputError unless targets are those of the images; see `RCNN`.

    classes: their number without the background. masks: whether they are needed. points: number of keypoints, or 0.
    """
    if isinstance(targets, Mapping | str) or not isinstance(targets, Sequence) or len(targets) != len(images):
        got = len(targets) if isinstance(targets, list | tuple) else type(targets).__name__
        raise InputError(f"targets: must be a list of {len(images)}, one dict for each image, got {got}")
    for i, (target, image) in enumerate(zip(targets, images, strict=True)):
        where = f"targets[{i}]"
        if not isinstance(target, Mapping):
            raise InputError(f"{where}: must be a dict of boxes and labels, got {type(target).__name__}")
        boxes = _tensor(target, "boxes", where)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise InputError(f"{where}: boxes must have the shape (k, 4), got {tuple(boxes.shape)}")
        _check_labels(_tensor(target, "labels", where), len(boxes), classes, where)
        valid = boxes.isfinite().all(1) & (boxes[:, :2] < boxes[:, 2:]).all(1)
        if not valid.all():
            raise InputError(f"{where}: boxes must have x1 < x2 and y1 < y2, got {boxes[~valid][0].tolist()}")
        if masks:
            _check_shape(_tensor(target, "masks", where), (len(boxes), *image.shape[1:]), f"{where}: masks")
        if points:
            keypoints = _tensor(target, "keypoints", where)
            _check_shape(keypoints, (len(boxes), points, 3), f"{where}: keypoints")
            if not keypoints.is_floating_point() or not keypoints.isfinite().all():
                got = f"{'finite' if keypoints.isfinite().all() else 'other'} numbers of {_name(keypoints.dtype)}"
                raise InputError(f"{where}: keypoints must be finite floats x, y and visibility, got {got}")
        for name, least in (("short_side", 1), ("seed", None)):
            value = target.get(name, 1)
            if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
                limit = "" if least is None else f" >= {least}"
                raise InputError(f"{where}: {name} must be an integer{limit}, got {value!r}")


def _check_labels(labels: Tensor, count: int, classes: int, where: str) -> None:
    _check_shape(labels, (count,), f"{where}: labels")
    if labels.dtype != torch.int64:
        raise InputError(f"{where}: labels must be int64, got {_name(labels.dtype)}")
    wrong = (labels < 1) | (labels > classes)
    if wrong.any():
        raise InputError(
            f"{where}: labels must be in [1, {classes}], because 0 is the background, got {int(labels[wrong][0])}"
        )


def _check_shape(tensor: Tensor, shape: tuple[int, ...], where: str) -> None:
    if tuple(tensor.shape) != shape:
        raise InputError(f"{where} must have the shape {shape}, got {tuple(tensor.shape)}")


def _tensor(target: Mapping[str, Any], name: str, where: str) -> Tensor:
    tensor = target.get(name)
    if not isinstance(tensor, Tensor):
        got = "nothing" if tensor is None else type(tensor).__name__
        raise InputError(f"{where}: {name} must be a tensor, got {got}")
    return tensor


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
