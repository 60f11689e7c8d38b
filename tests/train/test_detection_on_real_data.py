"""Detectors learn real data: every skeleton trains, and a Mask R-CNN reproduces the images that it was trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import convatlas as ca
from convatlas.data.open import open_data
from convatlas.data.source import Source
from convatlas.tasks.known import KeypointDetection
from tiny_detection import TINY_SPECS

SKELETONS = {
    "300w": 68, "aic": 14, "animalpose": 20, "ap10k": 17, "crowdpose": 14, "deepfasion2": 294, "fly": 32, "horse10": 22,
    "jhmdb": 15, "lapa": 106, "mpii": 40, "onehand10k": 21, "rhd": 21,
}  # fmt: skip
"""Folder -> number of keypoints."""


def overfitting(source: Source, count: int) -> Source:
    """Return the first images by name as train and as val split."""
    train = source.splits["train"]
    first = sorted(range(len(train)), key=lambda i: train.names[i])[:count]
    part = train.subset(torch.tensor(first))
    return dataclasses.replace(source, splits={"train": part, "val": part})


@pytest.mark.slow
@pytest.mark.parametrize("name", SKELETONS)
def test_every_skeleton_trains(shared_data: Path, tmp_path: Path, name: str) -> None:
    files = sorted((shared_data / "mmpose_skeletons" / name).glob("*.json"))
    source = overfitting(open_data(files[0] if files else shared_data / "mmpose_skeletons" / name), 2)
    assert isinstance(source.task, KeypointDetection)
    assert source.task.skeleton.points == SKELETONS[name]
    run = ca.fit(
        source, TINY_SPECS["keypoints"], weights="none", epochs=1, batch=2, out=tmp_path / "run", progress=False
    )
    assert run.state.step == 1
    assert run.state.history[0]["skipped"] == 0


@pytest.mark.slow
def test_mask_rcnn_reproduces_twenty_images(shared_data: Path, tmp_path: Path) -> None:
    """Mask R-CNN on MobileNetV2, from its weights of ImageNet: box AP50 of 0.9, mask AP50 of 0.8 on its own images."""
    source = overfitting(open_data(shared_data / "balloon_via").for_task("segment"), 20)
    small = ca.spec("maskrcnn_resnet18_fpn").replaced({"body": ca.spec("mobilenet_v2")})
    weights = shared_data / "weights" / "mobilenet_v2_imagenet_torchvision_naming.pth"
    run = ca.fit(
        source, small, weights=weights, epochs=80, batch=2, lr=0.01, jitter=0.0, multi_scale=0.0, patience=0,
        out=tmp_path / "run", progress=False,
    )  # fmt: skip
    result = run.results["val"].summary()
    assert result["box_ap50"] >= 0.9, result
    assert result["mask_ap50"] >= 0.8, result
