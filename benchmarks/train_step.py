"""A step of training (forward, backward, update): convatlas against the plain eager script, in turns.

    python benchmarks/train_step.py [NAME[:BATCH[:SIZE]] ...] [--rounds 5] [--precision auto]

The plain script has torchvision's class where there is one (else ours, as it is), float32 tensors that are ready, SGD
with momentum, and nothing else. convatlas runs its own loop over uint8 images, in the way that it chooses on this
machine (printed). How the C library keeps memory holds for a whole process, so each side has a process of its own; they
take turns, one step each. Prints images/s (median), the ratio, and the peak memory of each side above its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator

from turns import Side, serve

DEFAULT = ["resnet50:16", "densenet121:16", "mobilenet_v2:16", "efficientnet_b0:16", "cifar_resnet20:128:32"]


def plain(name: str, batch: int, size: int) -> Iterator[None]:
    import torch
    import torchvision
    from torch.nn import functional as F

    from convatlas.models.catalog import build_fresh, variant

    row = variant(name)
    if "torchvision" in row.upstream:
        peer = row.upstream["torchvision"]
        extra = {"aux_logits": False, "init_weights": False} if peer in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(peer, **extra)
    else:
        model = build_fresh(row.spec.scaled(resolution=size))
    channels = row.preprocessing.channels
    inputs, labels = torch.randn(batch, channels, size, size), torch.randint(10, (batch,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    yield
    model.train()
    while True:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        loss.item()
        yield


def ours(name: str, batch: int, size: int, precision: str) -> Iterator[None]:
    import torch
    from torch import nn

    from convatlas.data.dataset import Images
    from convatlas.data.loader import BatchLoader
    from convatlas.models.catalog import adapted, build_fresh, variant
    from convatlas.train.cpu import execution
    from convatlas.train.loop import train
    from convatlas.train.recipe import Recipe

    row = variant(name)
    spec, steps = adapted(row.spec, resolution=size), row.preprocessing.for_resolution(size)
    count = batch * (16 if size <= 64 else 1)  # so that short steps are not measured with the ends of epochs
    pixels = torch.randint(0, 256, (count, steps.channels, size, size), dtype=torch.uint8)
    images = Images(pixels, torch.randint(10, (count,)), [""] * count)
    device = torch.device("cpu")
    execution.keep_heap()
    choice = execution.choose(
        spec, classes=row.classes, channels=steps.channels, batch=batch, device=device, precision=precision
    )
    seconds = {str(way): round(value, 3) for way, value in choice.seconds.items()}
    print(json.dumps({"way": str(choice.compute), "measured": seconds}), file=sys.stderr)
    network = choice.compute.place(build_fresh(spec, classes=row.classes, channels=steps.channels))
    network.auxiliary = nn.ModuleDict()  # side classifiers and decoders, which the plain script does not train
    recipe = Recipe(epochs=10**6, batch=batch, lr=0.001, schedule="constant")
    yield
    loader = BatchLoader(images, steps, batch=batch, seed=0)
    for _ in train(network, recipe.build_optimizer(network), loader, recipe, seed=0, compute=choice.compute):
        yield


def compared(name: str, batch: int, size: int, rounds: int, precision: str) -> None:
    told = f"{name}:{batch}:{size}"
    sides = {side: Side(__file__, "--serve", side, told, "--precision", precision) for side in ("plain", "ours")}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    peaks: dict[str, float] = {}
    for turn in range(rounds + 2):
        for name_, side in list(sides.items())[:: 1 if turn % 2 else -1]:
            took, _, peaks[name_] = side.step()
            if turn >= 2:
                seconds[name_].append(took)
    for side in sides.values():
        side.close()
    speeds = {side: batch / statistics.median(times) for side, times in seconds.items()}
    print(
        f"{name:<20} {batch:>5} {size:>5} {speeds['plain']:>10.1f} {speeds['ours']:>10.1f} "
        f"{speeds['ours'] / speeds['plain']:>6.2f} {peaks['plain']:>9.0f} {peaks['ours']:>9.0f} "
        f"{peaks['ours'] / peaks['plain']:>6.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--serve", choices=("plain", "ours"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    wanted = []
    for told in arguments.networks:
        name, *numbers = told.split(":")
        batch, size = (int(number) for number in [*numbers, *("16", "224")[len(numbers) :]])
        wanted.append((name, batch, size))
    if arguments.serve:
        import torch  # noqa: F401  (what is imported is no memory of a side)
        import torchvision  # noqa: F401

        name, batch, size = wanted[0]
        serve(plain(name, batch, size) if arguments.serve == "plain" else ours(name, batch, size, arguments.precision))
        return
    print(f"{os.cpu_count()} cores; images/s of steps in turns, median of {arguments.rounds}; peak memory in MB")
    print("network              batch    px      plain  convatlas  ratio     plain convatlas  ratio")
    for name, batch, size in wanted:
        compared(name, batch, size, arguments.rounds, arguments.precision)


if __name__ == "__main__":
    main()
