"""Seconds from the start of a process to its first training step: convatlas against torchvision's ImageFolder.

    python benchmarks/startup.py [--files 400 4000 40000] [--repeats 3]

The data are JPEG files of 64 x 64 pixels in 10 classes, written into a temporary folder. convatlas is `prepare_run` and
the first of `Run.steps()` with lenet5_modern, in a process of its own: the first run, with an empty cache, splits off
val, decodes all images and measures how to execute a step; later runs map the cached pixels. torchvision's side is
ImageFolder, a DataLoader (2 workers) with the same batch, which decodes only what the first batches need, and a plain
step of a LeNet. Both include the start of Python and the imports. The sides take turns; medians and their ratios are
printed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIDE, CLASSES, BATCH = 64, 10, 64


def write_images(folder: Path, count: int) -> None:
    """Write noisy images, one color for each class."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    colors = random.integers(40, 216, (CLASSES, 1, 1, 3))
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(parents=True)
    for i in range(count):
        noise = random.integers(-40, 40, (SIDE // 8, SIDE // 8, 3))
        values = (colors[i % CLASSES] + noise).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(values).save(folder / f"class{i % CLASSES}" / f"{i:06}.jpg", quality=90)


def convatlas(folder: Path) -> None:
    from convatlas.train.fit import prepare_run

    with tempfile.TemporaryDirectory() as out:
        run = prepare_run(folder, "lenet5_modern", batch=BATCH, out=Path(out) / "run")
        next(iter(run.steps()))
        print("step", flush=True)


def torchvision(folder: Path) -> None:
    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    data = datasets.ImageFolder(folder, transforms.Compose([transforms.Resize(32), transforms.ToTensor()]))
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=2)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, CLASSES),
    )  # fmt: skip
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    for inputs, labels in loader:
        nn.functional.cross_entropy(network(inputs), labels).backward()
        optimizer.step()
        print("step", flush=True)
        return


def seconds_to_first_step(side: str, folder: Path, cache: Path) -> float:
    """Run a side in a process of its own, and return the seconds until it reports its first step."""
    environment = os.environ | {"CONVATLAS_CACHE": str(cache)}
    start = time.perf_counter()
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        while line := process.stdout.readline():
            if line == "step\n":
                seconds = time.perf_counter() - start
                process.communicate()
                return seconds
    raise SystemExit(f"{side} failed")


def compare(count: int, repeats: int, root: Path) -> None:
    folder, cache = root / "data", root / "cache"
    write_images(folder, count)
    time.sleep(3)  # files that were written just before would be read twice
    rows: dict[str, list[float]] = {"first": [], "later": [], "torchvision": []}
    seconds_to_first_step("torchvision", folder, cache)  # files and libraries are in memory from here on
    for _ in range(repeats):
        shutil.rmtree(cache, ignore_errors=True)
        rows["first"].append(seconds_to_first_step("convatlas", folder, cache))
        rows["torchvision"].append(seconds_to_first_step("torchvision", folder, cache))
        rows["later"].append(seconds_to_first_step("convatlas", folder, cache))
    first, later, theirs = (statistics.median(rows[name]) for name in ("first", "later", "torchvision"))
    print(
        f"{count:8,}  {first:10.2f}  {later:10.2f}  {theirs:11.2f}  {first / theirs:17.2f}  {later / theirs:17.2f}",
        flush=True,
    )
    shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=[400, 4_000, 40_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=("convatlas", "torchvision"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        {"convatlas": convatlas, "torchvision": torchvision}[given.side](given.folder)
        return
    print("   files   first (s)   later (s)  torchvision  first/torchvision  later/torchvision")
    for count in given.files:
        with tempfile.TemporaryDirectory() as root:
            compare(count, given.repeats, Path(root))


if __name__ == "__main__":
    main()
