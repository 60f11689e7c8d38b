"""Whole epochs on a folder of JPEG images: convatlas against torchvision's recipe and timm's loader, in turns.

    python benchmarks/train_images.py FOLDER [--epochs 5] [--px 128] [--batch 16]

FOLDER has train/<class>/*.jpg. All train MobileNetV2 with SGD and momentum on random crops and flips. torchvision's
side is ImageFolder, its transforms and a DataLoader (0, 1 and 2 workers, kept running) with the plain eager loop;
timm's is its dataset and loader (2 workers) with the same. convatlas is `Run.steps()`, which begins by decoding the
images into an empty cache and measuring the ways to compute: both are part of its first epoch. Building network and
optimizer is part of every side's first epoch; imports and loaders are not. Each side has a
process of its own; they take turns, an epoch each. Prints images/s of each epoch, and the ratio to the fastest of the
others.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from turns import Side, serve

SIDES = ("convatlas", "torchvision 0", "torchvision 1", "torchvision 2", "timm 2")


def convatlas(folder: Path, px: int, batch: int) -> Iterator[int]:
    from convatlas.train.fit import start
    from convatlas.train.recipe import recipe
    from convatlas.train.settings import Settings

    chosen = recipe("finetune").replaced({
        "epochs": 1000, "batch": batch, "lr": 0.01, "head_epochs": 0, "layer_decay": 1.0, "min_crop_area": 0.08,
        "label_smoothing": 0.0,
    })  # fmt: skip
    yield 0
    with tempfile.TemporaryDirectory() as out:
        alone = Path(out) / "data"  # the others measure no val split
        alone.mkdir()
        (alone / "train").symlink_to(folder.resolve() / "train")
        settings = Settings(size=px, val_share=0.02)
        run = start(alone, "mobilenet_v2", recipe=chosen, out=Path(out) / "run", settings=settings)
        count, done = len(run.dataset.train), 0
        for event in run.steps():
            if not isinstance(event, dict):
                done += len(event.batch.labels)
                if done == count:
                    yield done
                    done = 0


def plain(loader: Iterable[Any], classes: int) -> Iterator[int]:
    """The loop that everyone writes."""
    import torch
    import torchvision
    from torch.nn import functional as F

    yield 0
    model = torchvision.models.mobilenet_v2(num_classes=classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()
    while True:
        done = 0
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            loss.item()
            done += len(labels)
        yield done


def torchvision(folder: Path, px: int, batch: int, workers: int) -> Iterator[int]:
    import torch
    from torchvision import datasets, transforms

    steps = transforms.Compose([
        transforms.RandomResizedCrop(px), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    data = datasets.ImageFolder(str(folder / "train"), steps)
    loader = torch.utils.data.DataLoader(
        data, batch_size=batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return plain(loader, len(data.classes))


def timm(folder: Path, px: int, batch: int, workers: int) -> Iterator[int]:
    import torch
    from timm.data import create_dataset, create_loader

    data = create_dataset("", root=str(folder), split="train", is_training=True)
    loader = create_loader(
        data, input_size=(3, px, px), batch_size=batch, is_training=True, use_prefetcher=False, num_workers=workers,
        no_aug=False, scale=(0.08, 1.0), hflip=0.5, color_jitter=0.0, persistent_workers=workers > 0,
        device=torch.device("cpu"),
    )  # fmt: skip
    return plain(loader, len(data.reader.class_to_idx))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    numbers = (arguments.folder, arguments.px, arguments.batch)
    if arguments.serve:
        library, _, workers = arguments.serve.partition(" ")
        if library == "convatlas":
            serve(convatlas(*numbers))
        else:
            serve({"torchvision": torchvision, "timm": timm}[library](*numbers, int(workers)))
        return
    told = [str(arguments.folder), "--px", str(arguments.px), "--batch", str(arguments.batch)]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["CONVATLAS_CACHE"] = cache
        sides = {name: Side(__file__, "--serve", name, *told) for name in SIDES}
        print(f"{os.cpu_count()} cores; images/s of whole epochs in turns, {arguments.px} px, batch {arguments.batch}")
        print("epoch " + "".join(f"{name:>15}" for name in SIDES) + "  ratio to the best other", flush=True)
        for epoch in range(1, arguments.epochs + 1):
            speeds = {}
            for name, side in sides.items():
                seconds, count, _ = side.step()
                speeds[name] = count / seconds
            best = max(speed for name, speed in speeds.items() if name != "convatlas")
            rows = "".join(f"{speed:>15.1f}" for speed in speeds.values())
            print(f"{epoch:>5} {rows}  {speeds['convatlas'] / best:.2f}", flush=True)
        for side in sides.values():
            side.close()


if __name__ == "__main__":
    main()
