"""Training step and prediction of detectors: convatlas against torchvision's class with the same weights, interleaved.

    python benchmarks/detection.py [NAME[:BATCH[:RESOLUTION]] ...] [--what train predict] [--rounds 5]

NAME is a row of the catalog that torchvision has. Norms of the body are frozen, and all but its last three stages
(torchvision: trainable_backbone_layers=3). Images are 480x640 with 8 objects. Sides of a training step:

    float32        torchvision, float32, contiguous
    bfloat16       torchvision, bfloat16 autocast, channels_last, fused SGD
    ours, plain    convatlas, float32, contiguous: the plan that equals torchvision's class to the bit
    ours, auto     convatlas under the execution plan that it chooses on this machine (printed)

Each side is a process, because malloc settings belong to a process; they take turns, one step each. Prints seconds per
step (medians), and how many times as fast our sides are: plain against float32, auto against the better of both.
Prediction: both classes in one process, float32; seconds of a batch. "folded" is what our engine runs: norms folded
into convolutions, channels_last.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

import convatlas as ca
from case import Case
from convatlas.core.network import Network
from convatlas.engines.folding import fold_norms
from convatlas.models.catalog import adapted, variant
from convatlas.tasks.detection.detectors import InstanceSegmentation, ObjectDetection
from convatlas.tasks.detection.objects import Objects
from convatlas.tasks.targets import Batch, Targets
from convatlas.train.cpu.execution import ExecutionPlan, process_settings
from convatlas.train.cpu.tune import choose_plan
from convatlas.train.loop import train
from convatlas.train.optim import build_optimizer
from convatlas.train.recipe import Recipe
from interleave import SideProcess, medians, serve_steps, time_interleaved

DEFAULT = ["fasterrcnn_resnet50_fpn:2:320", "fasterrcnn_mobilenet_v3_large_320_fpn:2:320"]
SIDES = ("float32", "bfloat16", "ours, plain", "ours, auto")
CLASSES, OBJECTS, TRAINED_STAGES = 20, 8, 3
LR = 1e-4
WARMUP_ROUNDS = 1


def parse_case(text: str) -> Case:
    return Case.parse(text, batch=2, resolution=320)


def torchvision_model(case: Case) -> nn.Module:
    """Return torchvision's detector with fixed random weights and frozen norms, ready to train."""
    torch.manual_seed(0)
    row = variant(case.name)
    spec = adapted(row.spec, resolution=case.resolution)
    model = torchvision.models.get_model(
        row.upstream["torchvision"], weights=None, weights_backbone=None, num_classes=CLASSES + 1,
        min_size=spec.resolution, max_size=spec.max_size,
    )  # fmt: skip
    for parent in list(model.backbone.body.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, nn.BatchNorm2d):
                frozen = FrozenBatchNorm2d(norm.num_features, spec.eps)
                for buffer in (frozen.weight, frozen.running_var):
                    buffer.uniform_(0.5, 1.0)
                frozen.bias.normal_(0, 0.05)
                setattr(parent, name, frozen)
    trained = stages_of(model.backbone.body)
    for name, parameter in model.backbone.body.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in trained)
    return model.train()


def stages_of(body: Any) -> list[str]:
    """Return the names of the layers that torchvision trains with trainable_backbone_layers=3."""
    names = [name for name, _ in body.named_children()]
    if "layer1" in names:
        return [name for name in names if name.startswith("layer")][-TRAINED_STAGES:]
    # stages of a MobileNet begin with their strides (torchvision.models.detection.backbone_utils)
    bounds = [0, *(int(name) for name in names if getattr(body[name], "_is_cn", False)), len(names) - 1]
    return [name for name in names if int(name) >= bounds[-TRAINED_STAGES]]


def our_network(case: Case) -> Network:
    """Return convatlas's detector with the weights and frozen parameters of `torchvision_model`."""
    model = torchvision_model(case)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(model.state_dict(), file := Path(folder) / "weights.pth")
        network = ca.build(case.name, classes=CLASSES, resolution=case.resolution, weights=file)
    frozen = {id(p) for p in model.parameters() if not p.requires_grad}
    theirs, ours = list(model.parameters()), list(network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True)), "the weights are in another order"
    for a, b in zip(theirs, ours, strict=True):
        b.requires_grad_(id(a) not in frozen)
    return network.train()


def batch_of(case: Case) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return random images and targets."""
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([640.0, 480.0])
    images = [torch.rand(3, 480, 640, generator=generator) for _ in range(case.batch)]
    targets = []
    for _ in range(case.batch):
        corner, extent = (torch.rand(OBJECTS, 2, generator=generator) for _ in range(2))
        corner, extent = corner * size * 0.6, 16 + extent * size * 0.35
        labels = torch.randint(1, CLASSES + 1, (OBJECTS,), generator=generator)
        target = {"boxes": torch.cat([corner, corner + extent], 1), "labels": labels}
        if case.name.startswith("maskrcnn"):
            target["masks"] = boxes_as_masks(target["boxes"])
        targets.append(target)
    return images, targets


def boxes_as_masks(boxes: Tensor) -> Tensor:
    """Return (k, 480, 640) uint8."""
    masks = torch.zeros(len(boxes), 480, 640, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return masks


def torchvision_steps(case: Case, *, bfloat16: bool) -> Iterator[None]:
    model = torchvision_model(case)
    if bfloat16:
        model = model.to(memory_format=torch.channels_last)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=LR, momentum=0.9, weight_decay=5e-4, fused=bfloat16)
    images, targets = batch_of(case)
    yield
    while True:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


class RepeatedBatch:
    """A loader of one batch, which comes again and again: loading is another benchmark's (detection_loader.py)."""

    steps = 100

    def __init__(self, case: Case) -> None:
        images, targets = batch_of(case)
        names = tuple(f"class {i}" for i in range(CLASSES))
        self.task = (InstanceSegmentation if "masks" in targets[0] else ObjectDetection)(names)
        objects = [
            Objects((480, 640), each["boxes"], each["labels"] - 1, segments=segments_of(each)) for each in targets
        ]
        columns = Targets(objects=objects, short_side=[case.resolution] * case.batch, seed=[*range(case.batch)])
        self.batch = Batch(images, columns, torch.arange(case.batch), case.batch)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        return repeat(self.batch, self.steps - start)


def segments_of(target: dict[str, Tensor]) -> tuple[list[list[float]], ...] | None:
    """Return the boxes as polygons, if the target has masks."""
    if "masks" not in target:
        return None
    return tuple([[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in target["boxes"].tolist())


def our_steps(case: Case, *, plain: bool) -> Iterator[None]:
    device = torch.device("cpu")
    with process_settings(retain_malloc=not plain):
        network = our_network(case)
        plan = ExecutionPlan("contiguous", "float32", fused_norms=False)
        if not plain:
            choice = choose_plan(network, network.spec, classes=CLASSES, batch=case.batch, device=device)
            plan = choice.plan
            print(f"{case}: {plan}, {choice.reason} {choice.seconds or ''}", file=sys.stderr)
        network = plan.place(network)
        recipe = Recipe(epochs=10**6, batch=case.batch, lr=LR, schedule="constant", weight_decay=5e-4)
        optimizer = build_optimizer(recipe, network)
        yield
        for _ in train(network, optimizer, RepeatedBatch(case), recipe, seed=0, plan=plan):
            yield


def steps_of(case: Case, side: str) -> Iterator[None]:
    if side.startswith("ours"):
        return our_steps(case, plain="plain" in side)
    return torchvision_steps(case, bfloat16=side == "bfloat16")


def compare_steps(case: Case, rounds: int, *, cpu_seconds: bool) -> None:
    sides = {side: SideProcess(__file__, str(case), "--serve", side) for side in SIDES}
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(-WARMUP_ROUNDS, rounds):
        for name in SIDES[:: 1 if number % 2 else -1]:
            report = sides[name].step()
            if number >= 0:
                times[name].append(report.cpu_seconds if cpu_seconds else report.seconds)
    for side in sides.values():
        side.close()
    plain = statistics.median(a / b for a, b in zip(times["float32"], times["ours, plain"], strict=True))
    best = [min(pair) for pair in zip(times["float32"], times["bfloat16"], strict=True)]
    auto = statistics.median(a / b for a, b in zip(best, times["ours, auto"], strict=True))
    seconds = " ".join(f"{medians(times)[side]:>11.2f}" for side in SIDES)
    print(f"{case!s:<46} {seconds}   plain {plain:.2f}x, auto {auto:.2f}x", flush=True)


def compare_predictions(case: Case, rounds: int) -> None:
    images, _ = batch_of(case)
    model, network = torchvision_model(case).eval(), our_network(case).eval()
    folded = fold_norms(network, memory_format=torch.channels_last)
    sides: dict[str, Any] = {
        "torchvision": lambda: model(images), "ours": lambda: network(images), "folded": lambda: folded(images)
    }  # fmt: skip
    with torch.inference_mode():
        for theirs, ours in zip(model(images), network(images), strict=True):
            assert all(torch.equal(theirs[key], ours[key]) for key in theirs), "predictions differ"
        times = time_interleaved(sides, rounds)
    ratio, other = (
        statistics.median(b / a for a, b in zip(times["torchvision"], times[side], strict=True))
        for side in ("ours", "folded")
    )
    seconds = " ".join(f"{value:>11.3f}" for value in medians(times).values())
    print(f"{case!s:<46} {seconds}   ours / torchvision {ratio:.3f}, folded {other:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detectors", nargs="*", default=DEFAULT, metavar="NAME[:BATCH[:RESOLUTION]]")
    parser.add_argument("--what", nargs="+", choices=("train", "predict"), default=["train", "predict"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--cpu-seconds", action="store_true", help="of training steps, for busy machines: use with OMP_NUM_THREADS=1"
    )
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cases = [parse_case(text) for text in arguments.detectors]
    if arguments.serve:
        serve_steps(steps_of(cases[0], arguments.serve))
        return
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads; medians of {arguments.rounds} rounds")
    if "train" in arguments.what:
        print(f"{'seconds of a training step':<46} " + " ".join(f"{side:>11}" for side in SIDES))
        for case in cases:
            compare_steps(case, arguments.rounds, cpu_seconds=arguments.cpu_seconds)
    if "predict" in arguments.what:
        print(
            f"{'seconds of a prediction':<46} " + " ".join(f"{side:>11}" for side in ("torchvision", "ours", "folded"))
        )
        for case in cases:
            compare_predictions(case, arguments.rounds)


if __name__ == "__main__":
    main()
