"""Training speed on small images: convatlas against the script everyone writes, interleaved in one process.

    python benchmarks/train_small.py MNIST_FOLDER [--rounds 5] [--images 12800]

Both sides train LeNet-5 (61,706 parameters) on MNIST with SGD and momentum. The script is torchvision's MNIST with
ToTensor and Normalize, a DataLoader (0 and 2 workers, kept running between slices), and a plain loop. convatlas runs
`Run.steps()`, with checkpoints and metrics as in `fit`, without augmentation, since the script has none.
Prints images/s (median of the rounds) and the ratio to the better of the two scripts.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torchvision import datasets, transforms

from convatlas.data.readers.idx import IDX_PARTS, IdxFolder
from convatlas.train.fit import start
from convatlas.train.recipe import RECIPES
from convatlas.train.settings import Settings


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


def script(root: Path, batch: int, workers: int) -> Iterator[int]:
    """The usual training script; yields the number of images after each step."""
    normalize = transforms.Normalize((0.1307,), (0.3081,))
    data = datasets.MNIST(root, train=True, transform=transforms.Compose([transforms.ToTensor(), normalize]))
    loader = torch.utils.data.DataLoader(
        data, batch_size=batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    model = LeNet5()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    running = 0.0
    for _ in itertools.count():
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            running += loss.item()
            yield len(labels)


def ours(folder: Path, out: Path, batch: int) -> Iterator[int]:
    recipe = RECIPES["default"].replaced({"batch": batch, "epochs": 1000, "max_shift": 0})
    run = start(folder, "lenet5_modern", recipe=recipe, out=out, settings=Settings(val_share=0))
    for event in run.steps():
        if not isinstance(event, dict):
            yield len(event.batch.labels)


def slice_speed(steps: Iterator[int], images: int) -> float:
    begun, done = time.perf_counter(), 0
    while done < images:
        done += next(steps)
    return done / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=12_800)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        raw = root / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for part, file in IdxFolder(arguments.folder).files.items():
            data = file.read_bytes()
            (raw / IDX_PARTS[part]).write_bytes(gzip.decompress(data) if file.suffix == ".gz" else data)
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, median of {arguments.rounds} rounds")
        for batch in (64, 256):
            sides: dict[str, Callable[[], Iterator[int]]] = {
                "convatlas": lambda batch=batch: ours(arguments.folder, root / f"run{batch}", batch),
                "script, 0 workers": lambda batch=batch: script(root, batch, 0),
                "script, 2 workers": lambda batch=batch: script(root, batch, 2),
            }
            running = {name: make() for name, make in sides.items()}
            for steps in running.values():
                slice_speed(steps, 20 * batch)
            speeds: dict[str, list[float]] = {name: [] for name in running}
            for _ in range(arguments.rounds):
                for name, steps in running.items():
                    speeds[name].append(slice_speed(steps, arguments.images))
            medians = {name: statistics.median(values) for name, values in speeds.items()}
            best = max(value for name, value in medians.items() if name != "convatlas")
            for name, value in medians.items():
                print(f"batch {batch:>3}  {name:<18} {value:>8,.0f} images/s")
            print(f"batch {batch:>3}  convatlas / better script = {medians['convatlas'] / best:.2f}\n", flush=True)


if __name__ == "__main__":
    main()
