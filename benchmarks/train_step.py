"""Speed and memory of a training step (forward, backward, update): convatlas against plain PyTorch, interleaved.

    python benchmarks/train_step.py [NAME[:BATCH[:RESOLUTION]] ...] [--rounds 5] [--precision auto] [--float32]

The baseline is torchvision's module, or convatlas's if torchvision has none, with preloaded float32 tensors and the
loop of baseline.py: channels_last, bfloat16 autocast if the processor has it, fused SGD (`--float32`: none of these).
convatlas runs its own loop on uint8 images, under the execution plan that it chooses on this machine (printed). Malloc
settings belong to a whole process, so each side has its own; they take turns, one step each. Prints images/s
(medians), their ratio, and the peak memory of each side above that of its imports.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Iterator

import torch
import torchvision
from torch import nn

from baseline import Baseline, add_float32_option
from case import Case
from convatlas.data.dataset import Images
from convatlas.data.loader import BatchLoader
from convatlas.models.catalog import adapted, build_fresh, variant
from convatlas.tasks.known import Classification
from convatlas.tasks.targets import Targets
from convatlas.train.cpu.execution import process_settings
from convatlas.train.cpu.tune import choose_plan
from convatlas.train.loop import train
from convatlas.train.optim import build_optimizer
from convatlas.train.recipe import Recipe
from interleave import SideProcess, serve_steps

DEFAULT = ["resnet50:16", "densenet121:16", "mobilenet_v2:16", "efficientnet_b0:16", "cifar_resnet20:128:32"]
SIDES = ("baseline", "convatlas")
LR = 0.001
WARMUP_ROUNDS = 2

BATCHES_PER_EPOCH = 16
"""For small images, whose steps are short: otherwise every step would include the end of an epoch."""


def parse_case(text: str) -> Case:
    return Case.parse(text, batch=16, resolution=224)


def baseline_steps(case: Case, *, float32: bool) -> Iterator[None]:
    row = variant(case.name)
    if "torchvision" in row.upstream:
        upstream = row.upstream["torchvision"]
        options = {"aux_logits": False, "init_weights": False} if upstream in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(upstream, **options)
    else:
        model = build_fresh(row.spec.scaled(resolution=case.resolution))
    inputs = torch.randn(case.batch, row.preprocessing.channels, case.resolution, case.resolution)
    labels = torch.randint(10, (case.batch,))
    yield
    trained = Baseline(model, lr=LR, float32=float32)
    while True:
        trained.step(inputs, labels)
        yield


def convatlas_steps(case: Case, *, precision: str) -> Iterator[None]:
    row = variant(case.name)
    spec, preprocessing = adapted(row.spec, resolution=case.resolution), row.preprocessing
    preprocessing = preprocessing.for_resolution(case.resolution)
    channels, device = preprocessing.channels, torch.device("cpu")
    count = case.batch * (BATCHES_PER_EPOCH if case.resolution <= 64 else 1)
    pixels = torch.randint(0, 256, (count, channels, case.resolution, case.resolution), dtype=torch.uint8)
    images = Images(pixels, Targets(label=torch.randint(10, (count,))), [""] * count)
    task = Classification(tuple(map(str, range(row.classes))))
    with process_settings(retain_malloc=True):
        network = build_fresh(spec, classes=row.classes, channels=channels)
        choice = choose_plan(
            network, spec, classes=row.classes, batch=case.batch, device=device, precision=precision
        )  # fmt: skip
        print(f"{case}: {choice.plan}, {choice.reason}", file=sys.stderr)
        network = choice.plan.place(network)
        network.auxiliary = nn.ModuleDict()  # auxiliary classifiers and decoders, which the baseline does not train
        recipe = Recipe(epochs=10**6, batch=case.batch, lr=LR, schedule="constant")
        yield
        loader = BatchLoader(images, preprocessing, task, batch=case.batch, seed=0)
        for _ in train(network, build_optimizer(recipe, network), loader, recipe, seed=0, plan=choice.plan):
            yield


def compare(case: Case, rounds: int, options: list[str]) -> None:
    sides = {side: SideProcess(__file__, str(case), "--serve", side, *options) for side in SIDES}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    memory: dict[str, float] = {}
    for number in range(-WARMUP_ROUNDS, rounds):
        for name in SIDES[:: 1 if number % 2 else -1]:
            report = sides[name].step()
            memory[name] = report.peak_mib
            if number >= 0:
                seconds[name].append(report.seconds)
    for side in sides.values():
        side.close()
    speed = {name: case.batch / statistics.median(values) for name, values in seconds.items()}
    print(
        f"{case.name:<20} {case.batch:>5} {case.resolution:>5} {speed['baseline']:>10.1f} {speed['convatlas']:>10.1f} "
        f"{speed['convatlas'] / speed['baseline']:>6.2f} {memory['baseline']:>9.0f} {memory['convatlas']:>9.0f} "
        f"{memory['convatlas'] / memory['baseline']:>6.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=DEFAULT, type=parse_case, metavar="NAME[:BATCH[:RESOLUTION]]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    add_float32_option(parser)
    arguments = parser.parse_args()
    cases = [case if isinstance(case, Case) else parse_case(case) for case in arguments.networks]
    if arguments.serve == "baseline":
        serve_steps(baseline_steps(cases[0], float32=arguments.float32))
    elif arguments.serve == "convatlas":
        serve_steps(convatlas_steps(cases[0], precision=arguments.precision))
    else:
        options = ["--precision", arguments.precision, *(["--float32"] if arguments.float32 else [])]
        print(f"{os.cpu_count()} cores; images/s, median of {arguments.rounds} rounds; peak memory in MiB")
        print("network              batch    px   baseline  convatlas  ratio  baseline convatlas  ratio")
        for case in cases:
            compare(case, arguments.rounds, options)


if __name__ == "__main__":
    main()
