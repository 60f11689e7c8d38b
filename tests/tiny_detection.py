"""Bright rectangles as a data set in COCO's format, and detectors that are trained on them in a moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convatlas.models.detection.rows import BoxHead, KeypointHead, MaskHead, Proposals
from convatlas.models.families.rcnn import FasterRCNN, KeypointRCNN, MaskRCNN
from convatlas.models.families.resnet import ResNet

COLORS = {"red": (250, 40, 40), "green": (40, 250, 40)}

TINY: dict[str, Any] = {
    "body": ResNet("basic", (1, 1, 1, 1), widths=(8, 16, 32, 64), stem=8, resolution=64), "width": 16,
    "resolution": 64, "max_size": 96, "anchors": ((16,), (24,), (32,), (48,), (64,)),
    "proposals": Proposals(before_nms=(60, 40), after_nms=(40, 20)),
    "boxes": BoxHead(units=(32, 32), samples=24, detections=10),
}  # fmt: skip
TINY_SPECS: dict[str, FasterRCNN] = {
    "detect": FasterRCNN(**TINY),
    "segment": MaskRCNN(**TINY, masks=MaskHead(convs=(8,), deconv=8)),
    "keypoints": KeypointRCNN(**TINY, keypoints=KeypointHead(convs=(8,))),
}
"""Short name of the task -> detector."""


def write_rectangles(folder: Path, *, train: int = 8, val: int = 4, seed: int = 0) -> Path:
    """Write images of 48 to 80 px with up to three objects, none in the second one: boxes, polygons, two keypoints."""
    random = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        (folder / split).mkdir(parents=True)
        images: list[Any] = []
        annotations: list[Any] = []
        for number in range(1, count + 1):
            width, height = (int(side) for side in random.integers(48, 81, 2))
            pixels = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
            for _ in range(0 if number == 2 else 1 + number % 3):
                w, h = (int(side) for side in random.integers(12, 24, 2))
                x, y = int(random.integers(0, width - w)), int(random.integers(0, height - h))
                category = int(random.integers(0, 2))
                pixels[y : y + h, x : x + w] = list(COLORS.values())[category]
                annotations.append({
                    "id": len(annotations) + 1, "image_id": number, "category_id": category + 1, "bbox": [x, y, w, h],
                    "area": w * h, "iscrowd": 0, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    "keypoints": [x, y, 2, x + w - 1, y + h - 1, 2], "num_keypoints": 2,
                })  # fmt: skip
            name = f"{split}-{number:02}.png"
            Image.fromarray(pixels).save(folder / split / name)
            images.append({"id": number, "file_name": name, "width": width, "height": height})
        categories = [
            {"id": number, "name": name, "keypoints": ["first", "last"], "skeleton": [[1, 2]]}
            for number, name in enumerate(COLORS, 1)
        ]
        whole = {"images": images, "annotations": annotations, "categories": categories}
        (folder / split / "_annotations.coco.json").write_text(json.dumps(whole))
    return folder
