"""The script that everyone writes for CIFAR-10, for a given number of seconds: what `convatlas fit` is compared with.

    python benchmarks/cifar_subset.py FOLDER --seconds 180 [--seed 0]

FOLDER has train/<class>/ and test/<class>/. ResNet-20 (our module, eager), ImageFolder, RandomCrop with a border of 4
and flips, a DataLoader with 2 workers, SGD with momentum 0.9, weight decay 5e-4, batches of 128, learning rate 0.1 in
one cycle over as many epochs as fit into the time, by the speed of the first. Prints epochs, seconds and the accuracy
on test.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from torchvision import datasets, transforms

from convatlas.models.catalog import build_fresh


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    last = [transforms.ToTensor(), transforms.Normalize((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))]
    changes = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip()]
    train, test = (
        datasets.ImageFolder(str(arguments.folder / split), transforms.Compose(steps))
        for split, steps in (("train", [*changes, *last]), ("test", last))
    )
    loader = torch.utils.data.DataLoader(train, 128, shuffle=True, num_workers=2, persistent_workers=True)
    model = build_fresh("cifar_resnet20", classes=len(train.classes))

    def epoch(optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler | None) -> None:
        model.train()
        for inputs, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            if schedule:
                schedule.step()

    begun = time.perf_counter()
    epoch(torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4), None)
    took = time.perf_counter() - begun
    epochs = max(1, int((arguments.seconds - took) / took))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, epochs=epochs, steps_per_epoch=len(loader))
    for _ in range(epochs):
        epoch(optimizer, schedule)
    seconds = time.perf_counter() - begun
    model.eval()
    with torch.inference_mode():
        right = sum(
            int((model(inputs).argmax(1) == labels).sum())
            for inputs, labels in torch.utils.data.DataLoader(test, 500, num_workers=2)
        )
    print(f"{1 + epochs} epochs in {seconds:.0f} s: {right} of {len(test)} right, {right / len(test):.2%}")


if __name__ == "__main__":
    main()
