"""Objects of one image, drawn on it."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from convatlas.draw.objects import class_color, draw_beside, draw_objects, shrink
from convatlas.tasks.detection import masks
from convatlas.tasks.detection.objects import Objects
from convatlas.tasks.detection.skeleton import Skeleton

SHOWN = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
"""Suffixes of images that browsers show."""


def draw(pixels: Tensor, objects: Objects, classes: Sequence[str], skeleton: Skeleton | None = None) -> Tensor:
    """Return an image (channels, h, w) with its objects, (3, h, w) uint8; it may be smaller than the objects' image."""
    labels = objects.labels.tolist()
    height, width = size = (pixels.shape[-2], pixels.shape[-1])
    scale = torch.tensor([width / objects.size[1], height / objects.size[0]])
    keypoints = objects.keypoints
    if keypoints is not None:
        keypoints = torch.cat([keypoints[..., :2] * scale, keypoints[..., 2:]], -1)
    dense = (
        F.interpolate(masks.to_dense([segment], objects.size)[None].float(), size)[0, 0]
        if size != objects.size
        else masks.to_dense([segment], objects.size)[0]
        for segment in objects.segments or ()
    )
    return draw_objects(
        pixels, objects.boxes * scale.repeat(2), [classes[i] for i in labels],
        colors=[class_color(i) for i in labels], scores=objects.scores, masks=dense, keypoints=keypoints,
        edges=() if skeleton is None else skeleton.edges,
    )  # fmt: skip


def read_thumbnail(path: str, side: int = 640) -> Tensor | None:
    """Return an image file, upright and with at most `side` pixels on its long side, (3, h, w) uint8.

    None if it is no file of a kind that browsers show.
    """
    if not path.lower().endswith(SHOWN) or not os.path.isfile(path):
        return None
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * side, 2 * side))
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    upright.thumbnail((side, side))
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1)


def to_address(pixels: Tensor) -> str:
    """Return an image (3, h, w) uint8 as the address of an image on a page."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def draw_both(
    pixels: Tensor, truths: Objects, detections: Objects, classes: Sequence[str], skeleton: Skeleton | None = None,
    *, side: int = 640,
) -> Tensor:  # fmt: skip
    """Return an image of at most `side` pixels with the annotated objects, and beside it, with the predicted ones."""
    small = shrink(pixels, side)
    return draw_beside([
        ("annotated", draw(small, truths, classes, skeleton)), ("predicted", draw(small, detections, classes, skeleton))
    ])  # fmt: skip
