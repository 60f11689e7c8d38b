"""Epochs of training batches of a detector's data: convatlas against the loader of torchvision's tutorial, interleaved.

    python benchmarks/detection_loader.py FOLDER [--annotations FILE] [--epochs 5] [--batch 4] [--workers 2]

FOLDER is in Pascal VOC format (Annotations/, JPEGImages/), or has the images of the COCO file `--annotations`. All
sides flip half of the images and give images as float32 from 0 to 1, boxes and labels. The tutorial's loader opens
images with Pillow, reads the XML file of each image or uses torchvision's CocoDetection, transforms with
torchvision.transforms.v2, and has persistent workers, which is faster than the tutorial. convatlas is `BatchLoader`:
the first epoch of "convatlas" includes decoding the images into an empty cache; "convatlas streamed" has no room for a
cache and decodes the images in every epoch. Opening the annotations belongs to no epoch. Each side has a process of its
own; they take turns, one epoch each. Prints images/s of each epoch and of all epochs together, and the ratios to the
tutorial's loader.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, tv_tensors
from torchvision.transforms import v2

from convatlas.core.preprocessing import Preprocessing
from convatlas.data import pixel_cache
from convatlas.data.augment import Augment
from convatlas.data.loader import BatchLoader
from convatlas.data.open import open_data
from interleave import SideProcess, compare_epochs, serve_steps

TUTORIAL, CACHED, STREAMED = "tutorial", "convatlas", "convatlas streamed"
SIDES = (TUTORIAL, CACHED, STREAMED)

WHOLE = Preprocessing(800, 800, max_size=1333, mean=(0.0,) * 3, std=(1.0,) * 3)


def convatlas_epochs(data: Path, batch: int, *, cached: bool) -> Iterator[int]:
    if not cached:
        pixel_cache.CACHE_LIMIT = pixel_cache.MEMORY_LIMIT = 0
    source = open_data(data).for_task("detect")
    yield 0
    train = source.load(WHOLE).train
    loader = BatchLoader(train, WHOLE, source.task, batch=batch, seed=0, augment=Augment(flip=True))
    for epoch in range(10**6):
        yield sum(len(part.inputs) for part in loader.epoch(epoch))


class VocImages(Dataset[Any]):
    """The images of a folder in Pascal VOC format, as tutorials read them."""

    def __init__(self, folder: Path, transforms: Callable[..., Any]) -> None:
        self.files = sorted((folder / "Annotations").glob("*.xml"))
        self.images = folder / "JPEGImages"
        self.transforms = transforms
        roots = [ET.parse(file).getroot() for file in self.files]
        self.classes = sorted({name.text for root in roots for name in root.iterfind("object/name")})

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        root = ET.parse(self.files[index]).getroot()
        image = Image.open(self.images / f"{self.files[index].stem}.jpg").convert("RGB")
        sides = ("xmin", "ymin", "xmax", "ymax")
        boxes = [[float(box.findtext(side)) for side in sides] for box in root.iterfind("object/bndbox")]
        names = [self.classes.index(name.text) + 1 for name in root.iterfind("object/name")]
        boxes = tv_tensors.BoundingBoxes(
            torch.tensor(boxes).reshape(-1, 4), format="XYXY", canvas_size=(image.height, image.width)
        )
        return self.transforms(image, {"boxes": boxes, "labels": torch.tensor(names)})


def tutorial_epochs(folder: Path, annotations: Path | None, batch: int, workers: int) -> Iterator[int]:
    transforms = v2.Compose([
        v2.ToImage(), v2.RandomHorizontalFlip(0.5), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor(),
    ])  # fmt: skip
    if annotations is None:
        data: Any = VocImages(folder, transforms)
    else:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for `serve_steps`
            data = datasets.CocoDetection(folder, annotations, transforms=transforms)
        data = datasets.wrap_dataset_for_transforms_v2(data, target_keys=("boxes", "labels"))
    loader = DataLoader(
        data, batch_size=batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0,
        collate_fn=lambda items: tuple(zip(*items, strict=True)),
    )  # fmt: skip
    yield 0
    while True:
        yield sum(len(images) for images, _ in loader)


def compare(arguments: argparse.Namespace, command: list[str]) -> None:
    sides = {name: SideProcess(__file__, "--serve", name, *command) for name in SIDES}
    print(f"{os.cpu_count()} cores; images/s of whole epochs, batch {arguments.batch}, {arguments.workers} workers")
    compare_epochs(sides, arguments.epochs, baseline=TUTORIAL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--annotations", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve == TUTORIAL:
        serve_steps(tutorial_epochs(arguments.folder, arguments.annotations, arguments.batch, arguments.workers))
    elif arguments.serve:
        data = arguments.annotations or arguments.folder
        with tempfile.TemporaryDirectory() as cache:
            os.environ["CONVATLAS_CACHE"] = cache
            serve_steps(convatlas_epochs(data, arguments.batch, cached=arguments.serve == CACHED))
    else:
        command = [str(arguments.folder), "--batch", str(arguments.batch), "--workers", str(arguments.workers)]
        command += ["--annotations", str(arguments.annotations)] if arguments.annotations else []
        compare(arguments, command)


if __name__ == "__main__":
    main()
