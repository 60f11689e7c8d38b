"""Accuracy on CIFAR-10 at equal time: `fit` against a plain PyTorch script, both with ResNet-20, interleaved.

    python benchmarks/cifar_equal_time.py FOLDER [--seconds 180] [--seed 0] [--float32]

FOLDER has train/<class>/ and test/<class>/. The script is ImageFolder, RandomCrop with a border of 4 px and flips, a
DataLoader with 2 persistent workers, SGD with momentum 0.9 and weight decay 5e-4, batches of 128, learning rate 0.1 in
one cycle, and the loop of baseline.py. convatlas is the recipe `scratch-small`. Each side trains one epoch first, and
then as many as fit into the rest of its time; nothing is evaluated before the end. Each side has a process of its own;
they take turns, one epoch each, so that each has the machine for itself. Prints the accuracy of both on test.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torchvision import datasets, transforms

from baseline import Baseline, add_float32_option
from convatlas.models.catalog import build_fresh
from convatlas.train.fit import prepare_run
from convatlas.train.run import Run
from convatlas.train.settings import DataOptions
from convatlas.train.state import Epoch
from interleave import SideProcess, serve_steps

SIDES = ("baseline", "convatlas")
NETWORK, RECIPE = "cifar_resnet20", "scratch-small"
BATCH, LR, WEIGHT_DECAY, FIRST_LR = 128, 0.1, 5e-4, 0.01
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)

Report = dict[str, float] | None
"""None after an epoch; at the end, the number of epochs and the accuracy."""


def num_epochs(seconds: float, used: float, epoch_seconds: float) -> int:
    """Return the number of epochs that fit into the rest of the time."""
    return max(1, int((seconds - used) / epoch_seconds))


def baseline_epochs(folder: Path, seconds: float, seed: int, *, float32: bool) -> Iterator[Report]:
    torch.manual_seed(seed)
    normalize = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augment = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip()]
    train = datasets.ImageFolder(str(folder / "train"), transforms.Compose([*augment, *normalize]))
    test = datasets.ImageFolder(str(folder / "test"), transforms.Compose(normalize))
    loader = torch.utils.data.DataLoader(train, BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    network = build_fresh(NETWORK, classes=len(train.classes))
    yield None
    start = time.perf_counter()
    model = Baseline(network, lr=FIRST_LR, weight_decay=WEIGHT_DECAY, float32=float32)
    for inputs, labels in loader:
        model.step(inputs, labels)
    used = time.perf_counter() - start
    yield None
    epochs = num_epochs(seconds, used, used)
    model = Baseline(network, lr=LR, weight_decay=WEIGHT_DECAY, float32=float32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(model.optimizer, LR, epochs=epochs, steps_per_epoch=len(loader))
    for _ in range(epochs):
        for inputs, labels in loader:
            model.step(inputs, labels)
            schedule.step()
        yield None
    accuracy = model.accuracy(torch.utils.data.DataLoader(test, 500, num_workers=2))
    yield {"epochs": 1 + epochs, "accuracy": accuracy}


def start_run(folder: Path, epochs: int, seed: int, out: Path) -> Run:
    return prepare_run(
        folder, NETWORK, recipe=RECIPE, epochs=epochs, seed=seed, out=out,
        data_options=DataOptions(val_share=0),
    )  # fmt: skip


def convatlas_epochs(folder: Path, seconds: float, seed: int) -> Iterator[Report]:
    yield None
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        run = start_run(folder, 1, seed, Path(out) / "first")
        epoch = next(event for event in run.steps() if isinstance(event, Epoch))
        epochs = num_epochs(seconds, time.perf_counter() - start, epoch.elapsed_s)
        yield None
        run = start_run(folder, epochs, seed, Path(out) / "run")
        for event in run.steps():
            if isinstance(event, Epoch):
                yield None
        yield {"epochs": 1 + epochs, "accuracy": run.results["test"].score}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    add_float32_option(parser)
    arguments = parser.parse_args()
    case = (arguments.folder, arguments.seconds, arguments.seed)
    if arguments.serve == "baseline":
        serve_steps(baseline_epochs(*case, float32=arguments.float32))
        return
    if arguments.serve == "convatlas":
        serve_steps(convatlas_epochs(*case))
        return
    options = [str(case[0]), "--seconds", str(case[1]), "--seed", str(case[2])]
    options += ["--float32"] if arguments.float32 else []
    sides = {name: SideProcess(__file__, *options, "--serve", name) for name in SIDES}
    seconds = dict.fromkeys(SIDES, 0.0)
    results: dict[str, dict[str, float]] = {}
    while len(results) < len(sides):
        for name, side in sides.items():
            if name in results:
                continue
            report = side.step()
            if report.value is None:
                seconds[name] += report.seconds  # without the evaluation at the end
            else:
                results[name] = report.value
    for name, result in results.items():
        print(f"{name:<10} {result['epochs']:>4} epochs in {seconds[name]:4.0f} s: accuracy {result['accuracy']:.2%}")
    gain = results["convatlas"]["accuracy"] - results["baseline"]["accuracy"]
    print(f"convatlas - baseline = {100 * gain:+.2f} percentage points")
    for side in sides.values():
        side.close()


if __name__ == "__main__":
    main()
