"""Fine-tune detectors for the same time on the same images: ours, and torchvision's classes by its training script.

    python benchmarks/detector_equal_time.py DATA --body-weights mobilenet_v2.pth --minutes 30 [--side ours] [--cpu]

DATA: boxes in any format that `convatlas data check` reads. Every fifth image is the test split, which no side sees
before the end. Sides: ours, fasterrcnn_mobilenet_v2_fpn with the recipe "finetune-detection" (a fifth of its training
images chooses the epoch); fasterrcnn_mobilenet_v3_large_320_fpn of torchvision with a random body; and the detector of
torchvision's fine-tuning tutorial, FasterRCNN on the features of MobileNetV2 with the same weights as ours. The last
two are trained as in torchvision's references/detection: batch 2, SGD with learning rate 0.005, warm-up in the first
epoch, a tenth of the rate after 62 % and 85 % of the time, horizontal flips, a DataLoader with 2 workers.
With --cpu the time is CPU time of the training process, for machines with other load; that of the workers does not
count.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.models.detection import FasterRCNN, fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.transforms.v2 import functional as F

import convatlas as ca
from convatlas.data.open import open_data
from convatlas.data.samples import Samples
from convatlas.data.source import Source
from convatlas.tasks.detection.coco import evaluate_objects
from convatlas.tasks.detection.objects import Objects

SIDES = ("ours", "mobilenet_v3_320", "mobilenet_v2_tutorial")


def split(source: Source) -> Source:
    """Return the data with every fifth image, by name, as its test split."""
    whole = source.splits["train"]
    order = sorted(range(len(whole)), key=lambda i: whole.names[i])
    test = torch.tensor(order[::5])
    train = torch.tensor([i for place, i in enumerate(order) if place % 5])
    return dataclasses.replace(source, splits={"train": whole.subset(train), "test": whole.subset(test)})


def objects_of(samples: Samples) -> list[Objects]:
    return list(samples.targets["objects"])


class Images(Dataset[Any]):
    """Images and targets as in torchvision's tutorial."""

    def __init__(self, samples: Samples, *, flip: bool) -> None:
        self.names, self.objects, self.flip = samples.names, objects_of(samples), flip

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[Tensor, dict[str, Tensor]]:
        image = F.to_dtype(decode_image(str(self.names[i]), ImageReadMode.RGB), torch.float32, scale=True)
        boxes, labels = self.objects[i].boxes.clone(), self.objects[i].labels + 1
        if self.flip and torch.rand(()) < 0.5:
            image, width = image.flip(-1), image.shape[-1]
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        return image, {"boxes": boxes, "labels": labels}


def peer(side: str, classes: int, body_weights: str) -> torch.nn.Module:
    if side == "mobilenet_v3_320":
        return fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=classes + 1)
    body = torchvision.models.mobilenet_v2()
    body.load_state_dict(torch.load(body_weights, weights_only=True))
    features: Any = body.features
    features.out_channels = 1280
    anchors = AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),))
    pool = torchvision.ops.MultiScaleRoIAlign(["0"], output_size=7, sampling_ratio=2)
    return FasterRCNN(
        features, num_classes=classes + 1, rpn_anchor_generator=anchors, box_roi_pool=pool, min_size=320, max_size=640
    )


def train_peer(
    network: torch.nn.Module, samples: Samples, seconds: float, seed: int, clock: Callable[[], float]
) -> int:
    """Train for a time; return the number of epochs."""
    torch.manual_seed(seed)
    loader: DataLoader[Any] = DataLoader(
        Images(samples, flip=True),
        batch_size=2,
        shuffle=True,
        num_workers=2,
        collate_fn=lambda batch: tuple(zip(*batch, strict=True)),
    )
    optimizer = torch.optim.SGD(
        [p for p in network.parameters() if p.requires_grad], lr=0.005, momentum=0.9, weight_decay=0.0005
    )
    network.train()
    start, done, epochs = clock(), 0, 0
    while clock() - start < seconds:
        for images, targets in loader:
            progress = (clock() - start) / seconds
            factor = 0.01 if progress > 0.85 else 0.1 if progress > 0.62 else 1.0
            warm_up = min(1.0, (done + 1) / len(loader))
            for group in optimizer.param_groups:
                group["lr"] = 0.005 * factor * warm_up
            loss = sum(network(list(images), list(targets)).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if clock() - start >= seconds:
                break
        epochs += 1
    return epochs


@torch.inference_mode()
def predict_peer(network: torch.nn.Module, samples: Samples) -> list[Objects]:
    network.eval()
    found = []
    for i in range(len(samples)):
        image, _ = Images(samples, flip=False)[i]
        (output,) = network([image])
        size = (image.shape[-2], image.shape[-1])
        found.append(Objects(size, output["boxes"], output["labels"] - 1, output["scores"]))
    return found


def train_ours(
    source: Source, seconds: float, seed: int, body_weights: str, clock: Callable[[], float]
) -> tuple[int, float, list[Objects]]:
    """Train for a time; the number of epochs follows from short runs. Return it, minutes, detections on test."""
    options: dict[str, Any] = {"weights": body_weights, "seed": seed, "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        spent = []
        for number, epochs in enumerate((1, 1, 3)):  # the first one tunes the execution and fills the cache
            began = clock()
            ca.fit(source, "fasterrcnn_mobilenet_v2_fpn", out=Path(folder) / str(number), epochs=epochs, **options)
            spent.append(clock() - began)
        per_epoch = (spent[2] - spent[1]) / 2
        epochs = max(1, int((seconds - spent[1] + per_epoch) / per_epoch))
        began = clock()
        run = ca.fit(source, "fasterrcnn_mobilenet_v2_fpn", out=Path(folder) / "run", epochs=epochs, **options)
        minutes = (clock() - began) / 60
        model = ca.load(run)
        predictions = model.predict([str(name) for name in source.splits["test"].names], threshold=0.0)
    return epochs, minutes, [prediction.objects for prediction in predictions]  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--body-weights", required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--side", choices=SIDES, action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", action="store_true", help="measure CPU time instead of time")
    arguments = parser.parse_args()
    source = split(open_data(arguments.data))
    truth = objects_of(source.splits["test"])
    for side in arguments.side or SIDES:
        clock = time.process_time if arguments.cpu else time.perf_counter
        seconds = 60 * arguments.minutes
        if side == "ours":
            epochs, minutes, found = train_ours(source, seconds, arguments.seed, arguments.body_weights, clock)
        else:
            torch.manual_seed(arguments.seed)
            network = peer(side, len(source.classes), arguments.body_weights)
            began = clock()
            epochs = train_peer(network, source.splits["train"], seconds, arguments.seed, clock)
            minutes = (clock() - began) / 60
            found = predict_peer(network, source.splits["test"])
        metrics = evaluate_objects(found, truth, source.classes, "boxes")
        row = {
            "side": side, "seed": arguments.seed, "epochs": epochs, "minutes": minutes,
            "ap": metrics["ap"], "ap50": metrics["ap50"], "threads": torch.get_num_threads(),
            "train": len(source.splits["train"]), "test": len(truth),
            "class_ap": dict(zip(source.classes, map(float, metrics.class_ap), strict=True)),
        }  # fmt: skip
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
