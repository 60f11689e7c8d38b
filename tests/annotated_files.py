"""Small data sets of annotated images in every format, written from one description of their objects."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = (64, 48)
"""(width, height) of the images."""


@dataclass(frozen=True)
class Thing:
    """An object: its class, and the corners of its box in pixels."""

    label: str
    box: tuple[float, float, float, float]

    @property
    def polygon(self) -> list[float]:
        x1, y1, x2, y2 = self.box
        return [x1, y1, x2, y1, x2, y2, x1, y2]


Images = Mapping[str, Sequence[Thing]]
"""Name of an image file -> its objects."""

TWO = {"a.png": [Thing("cat", (4, 6, 24, 30)), Thing("dog", (10, 10, 60, 40))], "b.png": [Thing("dog", (0, 0, 64, 48))]}


def write_image(path: Path, size: tuple[int, int] = SIDE, *, orientation: int = 1, seed: int = 0) -> None:
    """Write an image of noise; orientation: its EXIF tag."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = sum(path.name.encode()) + seed
    pixels = np.random.default_rng(number).integers(0, 256, (size[1] // 8 or 1, size[0] // 8 or 1, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    image.save(path, exif=exif)


def classes_of(images: Images) -> list[str]:
    return sorted({thing.label for part in images.values() for thing in part})


def coco_of(images: Images, classes: Sequence[str] = (), size: tuple[int, int] = SIDE) -> dict[str, Any]:
    """Return the contents of a COCO file."""
    classes = classes or classes_of(images)
    contents: dict[str, Any] = {
        "images": [
            {"id": i, "file_name": name, "width": size[0], "height": size[1]} for i, name in enumerate(images, 1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, 1)],
        "annotations": [],
    }
    for image_id, things in enumerate(images.values(), 1):
        for thing in things:
            x1, y1, x2, y2 = thing.box
            contents["annotations"].append(
                {
                    "id": len(contents["annotations"]) + 1, "image_id": image_id,
                    "category_id": list(classes).index(thing.label) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1), "iscrowd": 0, "segmentation": [thing.polygon],
                }
            )  # fmt: skip
    return contents


def write_coco(folder: Path, images: Images = TWO, *, name: str = "instances.json", pixels: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for image in images if pixels else ():
        write_image(folder / image)
    (folder / name).write_text(json.dumps(coco_of(images)), encoding="utf-8")
    return folder / name


def voc_of(things: Sequence[Thing], filename: str = "a.png", size: tuple[int, int] = SIDE) -> str:
    """Return an XML file of Pascal VOC."""
    objects = "".join(
        f"<object><name>{thing.label}</name><bndbox><xmin>{thing.box[0]}</xmin><ymin>{thing.box[1]}</ymin>"
        f"<xmax>{thing.box[2]}</xmax><ymax>{thing.box[3]}</ymax></bndbox></object>"
        for thing in things
    )
    return (
        f"<annotation><filename>{filename}</filename><size><width>{size[0]}</width><height>{size[1]}</height>"
        f"<depth>3</depth></size>{objects}</annotation>"
    )


def write_voc(folder: Path, images: Images = TWO) -> Path:
    """Write Annotations/ and JPEGImages/."""
    for name, things in images.items():
        write_image(folder / "JPEGImages" / name)
        path = folder / "Annotations" / f"{Path(name).stem}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(voc_of(things, name), encoding="utf-8")
    return folder


def write_yolo(folder: Path, images: Images = TWO, *, polygons: bool = False, yaml: bool = True) -> Path:
    """Write images/train, labels/train and data.yaml; an image without objects gets no label file."""
    classes = classes_of(images)
    width, height = SIDE
    (folder / "labels/train").mkdir(parents=True)
    for name, things in images.items():
        write_image(folder / "images/train" / name)
        lines = []
        for thing in things:
            x1, y1, x2, y2 = thing.box
            values: Sequence[float] = (
                [value / (height if i % 2 else width) for i, value in enumerate(thing.polygon)]
                if polygons
                else [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
            )
            lines.append(" ".join(map(str, [classes.index(thing.label), *values])))
        if lines:
            (folder / "labels/train" / f"{Path(name).stem}.txt").write_text("\n".join(lines), encoding="utf-8")
    if yaml:
        names = "".join(f"  {i}: {name}\n" for i, name in enumerate(classes))
        text = f"path: .\ntrain: images/train\nval: images/train\nnames:\n{names}".replace("val: images/train\n", "")
        (folder / "data.yaml").write_text(text, encoding="utf-8")
    else:
        (folder / "classes.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    return folder


def write_via(folder: Path, images: Images = TWO, *, version: int = 2) -> Path:
    """Write a VIA file beside the images, with the class in an attribute."""
    entries = {}
    for name, things in images.items():
        write_image(folder / name)
        regions = [
            {
                "shape_attributes": {
                    "name": "polygon", "all_points_x": thing.polygon[::2], "all_points_y": thing.polygon[1::2]
                },
                "region_attributes": {"label": thing.label},
            }
            for thing in things
        ]  # fmt: skip
        entries[f"{name}123"] = {
            "filename": name, "size": 123, "file_attributes": {},
            "regions": regions if version == 2 else {str(i): region for i, region in enumerate(regions)},
        }  # fmt: skip
    contents = {"_via_settings": {}, "_via_img_metadata": entries} if version == 2 else entries
    (folder / "via_region_data.json").write_text(json.dumps(contents), encoding="utf-8")
    return folder


def write_boxes_table(folder: Path, images: Images = TWO, *, corners: bool = True) -> Path:
    """Write boxes.csv beside the images; an image without objects is a row without a box."""
    rows = ["file,x1,y1,x2,y2,label" if corners else "file,x,y,w,h,label"]
    for name, things in images.items():
        write_image(folder / name)
        for thing in things:
            x1, y1, x2, y2 = thing.box
            box = (x1, y1, x2, y2) if corners else (x1, y1, x2 - x1, y2 - y1)
            rows.append(",".join(map(str, [name, *box, thing.label])))
        rows += [] if things else [f"{name},,,,,"]
    (folder / "boxes.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "boxes.csv"


def write_id_masks(folder: Path, images: Images, *, files: bool = False) -> Path:
    """Write images/ and masks/ with an image of object ids each or, with `files`, a folder of one file per object."""
    (folder / "masks").mkdir(parents=True)
    for name, things in images.items():
        write_image(folder / "images" / name)
        ids = np.zeros((SIDE[1], SIDE[0]), np.uint8)
        for i, thing in enumerate(things, 1):
            x1, y1, x2, y2 = map(int, thing.box)
            ids[y1:y2, x1:x2] = i
        stem = Path(name).stem
        if files:
            (folder / "masks" / stem).mkdir()
            for i in range(1, len(things) + 1):
                Image.fromarray((ids == i) * np.uint8(255)).save(folder / "masks" / stem / f"{i}.png")
        else:
            Image.fromarray(ids).save(folder / "masks" / f"{stem}_mask.png")
    return folder
