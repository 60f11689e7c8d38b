"""Draw explain.png: which part of an image with three squares and a cross speaks for the cross."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

import convatlas as ca
from convatlas.models.families.resnet import cifar_resnet

CLASSES = ("cross", "ring", "triangle")
RADIUS, QUARTER = 9, 32


def image_of(label: str, rng: np.random.Generator) -> Image.Image:
    """Return a shape among three squares, one in each quarter of a mosaic of gray tiles: 64 x 64, gray."""
    tiles = rng.integers(0, 160, (8, 8), dtype=np.uint8)
    image = Image.fromarray(tiles.repeat(8, 0).repeat(8, 1))
    draw, own = ImageDraw.Draw(image), rng.integers(4)
    for quarter in range(4):
        row, column = divmod(quarter, 2)
        x, y = rng.integers(RADIUS + 1, QUARTER - RADIUS - 1, 2).tolist()
        draw_shape(draw, label if quarter == own else "square", x + QUARTER * column, y + QUARTER * row)
    return image


def draw_shape(draw: ImageDraw.ImageDraw, kind: str, x: int, y: int) -> None:
    left, top, right, bottom = x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS
    if kind == "cross":
        draw.line((left, top, right, bottom), 255, 2)
        draw.line((left, bottom, right, top), 255, 2)
    elif kind == "ring":
        draw.ellipse((left, top, right, bottom), outline=255, width=2)
    elif kind == "triangle":
        draw.polygon(((x, top), (left, bottom), (right, bottom)), outline=255, width=2)
    else:
        draw.rectangle((left, top, right, bottom), outline=255, width=2)


rng = np.random.default_rng(0)
labels = [CLASSES[number % len(CLASSES)] for number in range(900)]
images = np.stack([np.asarray(image_of(label, rng)) for label in labels])[..., None]
execution = ca.ExecutionOptions(threads=1)
ca.fit((images, labels), cifar_resnet(8), weights="none", epochs=8, execution=execution, out="run", progress=False)
image_of("cross", rng).save("cross.png")
ca.explain("run", "cross.png").figure("explain.png")
