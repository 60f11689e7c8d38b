"""Training step and prediction of networks for clips: convatlas against torchvision's class, interleaved.

    python benchmarks/video.py [NAME[:BATCH[:FRAMES[:PX]]] ...] [--what train predict] [--rounds 5]

NAME is a row of the catalog; of rows that torchvision does not have, the other side is the same network in torch alone.
Clips are random. Sides of a training step:

    float32          torchvision, float32, contiguous, as tutorials train
    float32, cl      torchvision, float32, channels_last_3d, fused SGD
    bfloat16         torchvision, bfloat16 autocast, channels_last_3d, fused SGD
    convatlas        our loop, under the execution plan that it chooses on this machine (printed); reads uint8 clips

Each side is a process, because malloc settings belong to a process; they take turns, one step each. Prints seconds per
step (minimum and median), and the ratio of the fastest other side to convatlas: median over the rounds.
Prediction: one process, float32, seconds of a batch: torchvision in both memory formats, and the torch engine, which
folds norms into convolutions and reads uint8 clips.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Spec
from convatlas.data.dataset import Images
from convatlas.data.loader import BatchLoader
from convatlas.data.videos import Videos
from convatlas.engines.torch import TorchEngine
from convatlas.models.catalog import adapted, build_fresh, variant
from convatlas.tasks.known import VideoClassification
from convatlas.tasks.targets import Targets
from convatlas.train.cpu.execution import process_settings
from convatlas.train.cpu.tune import choose_plan
from convatlas.train.loop import train
from convatlas.train.optim import build_optimizer
from convatlas.train.recipe import Recipe
from interleave import SideProcess, medians, serve_steps, time_interleaved

DEFAULT = ["r3d_18", "mc3_18", "r2plus1d_18"]
OTHERS = ("float32", "float32, cl", "bfloat16")
OURS = "convatlas"
CLASSES = 11
LR = 1e-3
WARMUP_ROUNDS = 1


class ClipCase(NamedTuple):
    """A network, its batch size, the frames of a clip, and their side in pixels."""

    name: str
    batch: int = 4
    frames: int = 16
    resolution: int = 112

    @classmethod
    def parse(cls, text: str) -> ClipCase:
        """Read NAME[:BATCH[:FRAMES[:PX]]]."""
        name, *numbers = text.split(":")
        return cls(name, *map(int, numbers))

    def __str__(self) -> str:
        return ":".join(map(str, self))

    @property
    def spec(self) -> Spec:
        return adapted(variant(self.name).spec, resolution=self.resolution, frames=self.frames)

    @property
    def preprocessing(self) -> Preprocessing:
        steps = variant(self.name).preprocessing.for_resolution(self.resolution)
        assert steps.sampling is not None
        return replace(steps, sampling=replace(steps.sampling, frames=self.frames))

    def build(self) -> nn.Module:
        """Return torchvision's network with the weights of a fixed seed; ours in torch alone if it has none."""
        torch.manual_seed(0)
        upstream = variant(self.name).upstream.get("torchvision")
        if upstream is None:
            return build_fresh(self.spec, classes=CLASSES)
        model: nn.Module = torchvision.models.get_model(upstream, num_classes=CLASSES)
        return model

    def pixels(self) -> Tensor:
        """Return uint8 clips (n, frames, channels, h, w)."""
        shape = self.batch, self.frames, 3, self.resolution, self.resolution
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def labels(self) -> Tensor:
        return torch.arange(self.batch) % CLASSES


def other_steps(case: ClipCase, side: str) -> Iterator[None]:
    """Train as tutorials do, on one batch of float32 clips that comes again and again."""
    bfloat16, channels_last = side == "bfloat16", side != "float32"
    model, inputs, labels = case.build().train(), case.preprocessing.normalize(case.pixels()), case.labels()
    if channels_last:
        model = model.to(memory_format=torch.channels_last_3d)
        inputs = inputs.contiguous(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=1e-4, fused=channels_last)
    yield
    while True:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(model(inputs).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


def our_steps(case: ClipCase, memory_format: str, precision: str) -> Iterator[None]:
    videos = Videos(list(case.pixels()), [case.frames] * case.batch, case.preprocessing, for_random_crop=False)
    images = Images(videos, Targets(label=case.labels()), [""] * case.batch)
    task = VideoClassification(tuple(map(str, range(CLASSES))))
    with process_settings(retain_malloc=True):
        network = build_fresh(case.spec, classes=CLASSES)
        choice = choose_plan(
            network, case.spec, classes=CLASSES, batch=case.batch, device=torch.device("cpu"),
            memory_format=memory_format, precision=precision,
        )  # fmt: skip
        print(f"{case}: {choice.plan}, {choice.reason}", file=sys.stderr)
        network = choice.plan.place(network)
        recipe = Recipe(epochs=10**6, batch=case.batch, lr=LR, schedule="constant")
        yield
        loader = BatchLoader(images, case.preprocessing, task, batch=case.batch, seed=0)
        for _ in train(network, build_optimizer(recipe, network), loader, recipe, seed=0, plan=choice.plan):
            yield


def compare_steps(case: ClipCase, rounds: int, options: list[str], *, cpu_seconds: bool) -> None:
    names = (*OTHERS, OURS)
    sides = {side: SideProcess(__file__, str(case), "--serve", side, *options) for side in names}
    times: dict[str, list[float]] = {side: [] for side in names}
    for number in range(-WARMUP_ROUNDS, rounds):
        for name in names[:: 1 if number % 2 else -1]:
            report = sides[name].step()
            if number >= 0:
                times[name].append(report.cpu_seconds if cpu_seconds else report.seconds)
    for side in sides.values():
        side.close()
    print_times(case, times, OTHERS, OURS)


def print_times(case: ClipCase, times: dict[str, list[float]], others: tuple[str, ...], ours: str) -> None:
    fastest = [min(each) for each in zip(*(times[other] for other in others), strict=True)]
    ratio = statistics.median(other / mine for other, mine in zip(fastest, times[ours], strict=True))
    middle = medians(times)
    cells = " ".join(f"{min(values):>8.2f} {middle[name]:>8.2f}" for name, values in times.items())
    print(f"{case!s:<26}{cells} {ratio:>7.2f}x", flush=True)


PREDICTORS = ("float32", "float32, cl")


@torch.inference_mode()
def compare_predictions(case: ClipCase, rounds: int) -> None:
    network = build_fresh(case.spec, classes=CLASSES).eval()
    model, pixels = case.build().eval(), case.pixels()
    inputs = case.preprocessing.normalize(pixels)
    header: Any = SimpleNamespace(preprocessing=case.preprocessing)
    model_last = case.build().eval().to(memory_format=torch.channels_last_3d)
    inputs_last = inputs.contiguous(memory_format=torch.channels_last_3d)
    engine = TorchEngine(network, header)
    sides: dict[str, Callable[[], object]] = {
        "float32": lambda: model(inputs), "float32, cl": lambda: model_last(inputs_last),
        OURS: lambda: engine.outputs(pixels),
    }  # fmt: skip
    print_times(case, time_interleaved(sides, rounds), PREDICTORS, OURS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=DEFAULT, metavar="NAME[:BATCH[:FRAMES[:PX]]]")
    parser.add_argument("--what", nargs="+", choices=("train", "predict"), default=["train", "predict"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--cpu-seconds", action="store_true", help="of training steps, for busy machines: use with OMP_NUM_THREADS=1"
    )
    parser.add_argument("--memory-format", default="auto", help="of convatlas in training")
    parser.add_argument("--precision", default="auto", help="of convatlas in training")
    parser.add_argument("--serve", choices=(*OTHERS, OURS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cases = [ClipCase.parse(text) for text in arguments.networks]
    if arguments.serve:
        ours = our_steps(cases[0], arguments.memory_format, arguments.precision)
        serve_steps(ours if arguments.serve == OURS else other_steps(cases[0], arguments.serve))
        return
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads; minimum and median of {arguments.rounds} rounds")
    options = ["--memory-format", arguments.memory_format, "--precision", arguments.precision]
    if "train" in arguments.what:
        print_head("seconds of a training step", OTHERS)
        for case in cases:
            compare_steps(case, arguments.rounds, options, cpu_seconds=arguments.cpu_seconds)
    if "predict" in arguments.what:
        print_head("seconds of a prediction", PREDICTORS)
        for case in cases:
            compare_predictions(case, arguments.rounds)


def print_head(title: str, others: tuple[str, ...]) -> None:
    print(f"{title:<26}" + " ".join(f"{side:>17}" for side in (*others, OURS)) + "   ratio")


if __name__ == "__main__":
    main()
