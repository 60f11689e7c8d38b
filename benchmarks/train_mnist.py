"""Training speed on small images: LeNet-5 on MNIST, convatlas against three plain PyTorch loops, interleaved.

    python benchmarks/train_mnist.py MNIST_FOLDER [--rounds 5] [--images 12800] [--batches 64 256] [--float32]

All sides train LeNet-5 (61,706 parameters) with SGD and momentum. Two baselines read torchvision's MNIST with a
DataLoader (0 and 2 persistent workers), as tutorials do; the third keeps all images in memory as one tensor and indexes
whole batches. All three run the loop of baseline.py. convatlas runs `Run.steps()`, with the checkpoints and metrics of
`fit`, and without augmentation, since the others have none. Prints images/s (median of the rounds), and the ratio of
convatlas to the fastest baseline.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torchvision import datasets, transforms

from baseline import Baseline, add_float32_option
from convatlas.train.fit import prepare_run
from convatlas.train.settings import DataOptions
from convatlas.train.state import Epoch
from make_zipcode_surrogate import read_split, write_split

LR = 0.05
MEAN, STD = 0.1307, 0.3081
WARMUP_STEPS = 20


class LeNet5(nn.Module):
    """LeNet-5 as tutorials write it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


def loader_steps(root: Path, batch: int, workers: int, *, float32: bool) -> Iterator[int]:
    """Train from a DataLoader; yield the number of images after each step."""
    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
    data = datasets.MNIST(root, train=True, transform=steps)
    loader = torch.utils.data.DataLoader(
        data, batch_size=batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    model = Baseline(LeNet5(), lr=LR, float32=float32)
    for _ in itertools.count():
        for inputs, labels in loader:
            model.step(inputs, labels)
            yield len(labels)


def preloaded_steps(root: Path, batch: int, *, float32: bool) -> Iterator[int]:
    """Train from one tensor of all images; yield the number of images after each step."""
    data = datasets.MNIST(root, train=True)
    pixels, targets = data.data[:, None], data.targets
    model = Baseline(LeNet5(), lr=LR, float32=float32)
    for _ in itertools.count():
        for indices in torch.randperm(len(pixels)).split(batch):
            inputs = pixels[indices].float().div_(255).sub_(MEAN).div_(STD)
            model.step(inputs, targets[indices])
            yield len(indices)


def convatlas_steps(folder: Path, out: Path, batch: int) -> Iterator[int]:
    overrides = {"batch": batch, "epochs": 1000, "max_shift": 0, "lr": LR}
    run = prepare_run(
        folder, "lenet5_modern", recipe="default", **overrides, out=out, data_options=DataOptions(val_share=0)
    )
    for event in run.steps():
        if not isinstance(event, Epoch):
            yield event.batch.size


def images_per_second(steps: Iterator[int], images: int) -> float:
    start, done = time.perf_counter(), 0
    while done < images:
        done += next(steps)
    return done / (time.perf_counter() - start)


def compare(folder: Path, root: Path, batch: int, *, rounds: int, images: int, float32: bool) -> None:
    build: dict[str, Callable[[], Iterator[int]]] = {
        "convatlas": partial(convatlas_steps, folder, root / f"run{batch}", batch),
        "DataLoader, 0 workers": partial(loader_steps, root, batch, 0, float32=float32),
        "DataLoader, 2 workers": partial(loader_steps, root, batch, 2, float32=float32),
        "preloaded tensor": partial(preloaded_steps, root, batch, float32=float32),
    }
    sides = {name: make() for name, make in build.items()}
    for steps in sides.values():
        images_per_second(steps, WARMUP_STEPS * batch)
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, steps in sides.items():
            speeds[name].append(images_per_second(steps, images))
    median = {name: statistics.median(values) for name, values in speeds.items()}
    for name, value in median.items():
        print(f"batch {batch:>3}  {name:<22} {value:>8,.0f} images/s")
    fastest = max((name for name in median if name != "convatlas"), key=median.__getitem__)
    print(f"batch {batch:>3}  convatlas / {fastest} = {median['convatlas'] / median[fastest]:.2f}\n", flush=True)
    for steps in sides.values():
        steps.close()  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mnist", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=12_800, help="images of a round")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    add_float32_option(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        raw = root / "MNIST" / "raw"  # where torchvision expects the unpacked files
        raw.mkdir(parents=True)
        for split in ("train", "test"):
            write_split(raw, split, *read_split(arguments.mnist, split))
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, median of {arguments.rounds} rounds")
        for batch in arguments.batches:
            compare(
                arguments.mnist, root, batch, rounds=arguments.rounds, images=arguments.images,
                float32=arguments.float32,
            )  # fmt: skip


if __name__ == "__main__":
    main()
