"""Training epochs over a folder of JPEG files: convatlas against torchvision's and timm's loaders, interleaved.

    python benchmarks/train_images.py FOLDER [--epochs 5] [--resolution 128] [--batch 16] [--float32]

FOLDER has train/<class>/*.jpg. All sides train MobileNetV2 with SGD and momentum on random crops and flips.
torchvision is ImageFolder, its transforms and a DataLoader (0, 1 and 2 persistent workers); timm is its dataset and
loader (2 workers); both run the loop of baseline.py. convatlas is `Run.steps()`; its first epoch includes decoding the
images into an empty cache and choosing an execution plan. Building network and optimizer belongs to the first epoch of
every side; imports and loaders do not. Each side has a process of its own; they take turns, one epoch each. Prints
images/s of each epoch, and the ratio of convatlas to the fastest of the others.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from torchvision import datasets, transforms

from baseline import Baseline, add_float32_option
from convatlas.train.fit import prepare_run
from convatlas.train.settings import DataOptions
from convatlas.train.state import Epoch
from interleave import SideProcess, serve_steps

SIDES = ("convatlas", "torchvision 0", "torchvision 1", "torchvision 2", "timm 2")
"""Library, and number of workers of its loader."""

LR = 0.01
MIN_CROP_AREA = 0.08
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VAL_SHARE = 0.02


def convatlas_epochs(folder: Path, resolution: int, batch: int) -> Iterator[int]:
    overrides = {
        "epochs": 1000, "batch": batch, "lr": LR, "head_epochs": 0, "layer_decay": 1.0, "label_smoothing": 0.0,
        "min_crop_area": MIN_CROP_AREA,
    }  # fmt: skip
    yield 0
    with tempfile.TemporaryDirectory() as out:
        data = Path(out) / "data"  # without val and test, which the others do not evaluate
        data.mkdir()
        (data / "train").symlink_to(folder.resolve() / "train")
        run = prepare_run(
            data, "mobilenet_v2", weights="none", recipe="finetune", **overrides, out=Path(out) / "run",
            data_options=DataOptions(resolution=resolution, val_share=VAL_SHARE),
        )  # fmt: skip
        done = 0
        for event in run.steps():
            if not isinstance(event, Epoch):
                done += event.batch.size
                if done == len(run.dataset.train):  # the evaluation on val belongs to the next turn
                    yield done
                    done = 0


def baseline_epochs(loader: Iterable[Any], classes: int, *, float32: bool) -> Iterator[int]:
    yield 0
    model = Baseline(torchvision.models.mobilenet_v2(num_classes=classes), lr=LR, float32=float32)
    while True:
        done = 0
        for inputs, labels in loader:
            model.step(inputs, labels)
            done += len(labels)
        yield done


def torchvision_epochs(folder: Path, resolution: int, batch: int, workers: int, *, float32: bool) -> Iterator[int]:
    steps = transforms.Compose([
        transforms.RandomResizedCrop(resolution, (MIN_CROP_AREA, 1.0)), transforms.RandomHorizontalFlip(),
        transforms.ToTensor(), transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    data = datasets.ImageFolder(str(folder / "train"), steps)
    loader = torch.utils.data.DataLoader(
        data, batch_size=batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return baseline_epochs(loader, len(data.classes), float32=float32)


def timm_epochs(folder: Path, resolution: int, batch: int, workers: int, *, float32: bool) -> Iterator[int]:
    from timm.data import create_dataset, create_loader

    data = create_dataset("", root=str(folder), split="train", is_training=True)
    loader = create_loader(
        data, input_size=(3, resolution, resolution), batch_size=batch, is_training=True, use_prefetcher=False,
        num_workers=workers, no_aug=False, scale=(MIN_CROP_AREA, 1.0), hflip=0.5, color_jitter=0.0,
        persistent_workers=workers > 0, device=torch.device("cpu"),
    )  # fmt: skip
    return baseline_epochs(loader, len(data.reader.class_to_idx), float32=float32)


def serve(side: str, folder: Path, resolution: int, batch: int, *, float32: bool) -> None:
    library, _, workers = side.partition(" ")
    if library == "convatlas":
        serve_steps(convatlas_epochs(folder, resolution, batch))
    else:
        epochs = {"torchvision": torchvision_epochs, "timm": timm_epochs}[library]
        serve_steps(epochs(folder, resolution, batch, int(workers), float32=float32))


def compare(folder: Path, resolution: int, batch: int, epochs: int, *, float32: bool) -> None:
    arguments = [str(folder), "--resolution", str(resolution), "--batch", str(batch)]
    arguments += ["--float32"] if float32 else []
    sides = {name: SideProcess(__file__, "--serve", name, *arguments) for name in SIDES}
    print(f"{os.cpu_count()} cores; images/s of whole epochs, {resolution} px, batch {batch}")
    print("epoch " + "".join(f"{name:>15}" for name in SIDES) + "  convatlas / fastest other", flush=True)
    for epoch in range(1, epochs + 1):
        speeds = {}
        for name, side in sides.items():
            report = side.step()
            speeds[name] = report.value / report.seconds
        fastest = max(speed for name, speed in speeds.items() if name != "convatlas")
        cells = "".join(f"{speed:>15.1f}" for speed in speeds.values())
        print(f"{epoch:>5} {cells}  {speeds['convatlas'] / fastest:.2f}", flush=True)
    for side in sides.values():
        side.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    add_float32_option(parser)
    arguments = parser.parse_args()
    case = (arguments.folder, arguments.resolution, arguments.batch)
    if arguments.serve:
        serve(arguments.serve, *case, float32=arguments.float32)
        return
    with tempfile.TemporaryDirectory() as cache:
        os.environ["CONVATLAS_CACHE"] = cache
        compare(*case, arguments.epochs, float32=arguments.float32)


if __name__ == "__main__":
    main()
