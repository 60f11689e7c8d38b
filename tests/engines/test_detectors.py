"""Detectors on the torch engine: folded norms, whole images, and engines that cannot run them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from convatlas.engines import select
from convatlas.engines import torch as torch_engine
from convatlas.engines.deploy import example_inputs
from convatlas.engines.evaluation import eager_forward
from convatlas.engines.folding import fold_norms
from convatlas.engines.torch import TorchEngine
from convatlas.errors import EngineError
from convatlas.layers.frozen_norm import FrozenBatchNorm2d
from convatlas.models.catalog import build_fresh
from convatlas.models.families.rcnn import FasterRCNN
from square_detector import PREPROCESSING, tiny_detector
from tiny_networks import tiny
from upstream import scramble

BODIES = ("resnet18", "mobilenet_v2", "densenet121")

NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


SLOW_BODIES = ("squeezenet1_1", "vgg11_bn", "nasnet_a_mobile", "efficientnet_b0")


@pytest.mark.parametrize("name", [*BODIES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_BODIES)])
@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_folded_bodies_have_the_same_maps(name: str, norm: Any) -> None:
    network: Any = build_fresh(FasterRCNN(tiny(name), width=16, resolution=64, norm=norm), classes=3, channels=3).eval()
    scramble(network)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    twin: Any = fold_norms(network, memory_format=torch.channels_last)
    assert twin.levels == network.levels
    with torch.inference_mode():
        batch = network.transform([torch.rand(3, 60, 90), torch.rand(3, 70, 50)])[0].tensors
        for mine, folded in zip(network.maps(batch), twin.maps(batch), strict=True):
            assert (mine - folded).abs().max() <= 1e-4 * mine.abs().max()
    mine, folded = (sum(isinstance(layer, NORMS) for layer in each.modules()) for each in (network, twin))
    assert folded <= 0.6 * mine
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize("kind", ["fasterrcnn", "maskrcnn", "keypointrcnn"])
def test_the_engine_finds_what_the_network_finds(kind: str) -> None:
    model = tiny_detector(kind)
    pixels = images((40, 60), (70, 50), (64, 64))
    with torch.inference_mode():
        expected = model.module(PREPROCESSING.normalize(pixels))
    for memory_format in ("channels_last", "contiguous"):
        found = TorchEngine(model.module, model.header, memory_format=memory_format).outputs(pixels)
        for mine, other in zip(found, expected, strict=True):
            assert {name.removesuffix("_of_boxes") for name in mine} == other.keys()
            # equal up to rounding, which may change the order of objects whose scores are almost equal
            assert (mine["scores"] - other["scores"]).abs().max() <= 1e-5
            assert len(mine["boxes"]) == len(other["boxes"])


def test_the_engine_does_not_change_the_pixels() -> None:
    model, pixels = tiny_detector(), images((40, 60))
    before = pixels[0].clone()
    model.engine.outputs(pixels)
    assert torch.equal(pixels[0], before)


def test_new_weights_are_used_at_once() -> None:
    model, pixels = tiny_detector(), images((40, 60))
    first = model.engine.outputs(pixels)[0]["boxes"]
    scramble(model.module, seed=3)
    assert not torch.equal(first, model.engine.outputs(pixels)[0]["boxes"])


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_detector()
    engine = TorchEngine(model.module, model.header)

    def fail(*_: object) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(engine, "network", fail)
    with pytest.raises(EngineError, match="out of memory for a batch of 2 images of up to 60 x 40 px"):
        engine.outputs(images((40, 60), (10, 10)))
    assert torch_engine.describe_inputs(images((40, 60))) == "1 image of up to 60 x 40 px"


@pytest.mark.parametrize("engine", ["compile", "openvino"])
def test_other_engines_are_refused(engine: str) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    with pytest.raises(EngineError, match=f"^engine {engine}: cannot run a detector, whose images differ in size; use"):
        tiny_detector().choose(engine)


def test_the_engine_is_chosen_without_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "time_engines", None)
    choice = tiny_detector().choose()
    assert str(choice) == "torch, channels_last"


def test_examples_are_whole_images() -> None:
    header = tiny_detector().header
    assert [tuple(image.shape) for image in example_inputs(header, 3)] == [(3, 64, 85)] * 3
    assert [tuple(image.shape) for image in example_inputs(header, 1, (10, 20))] == [(3, 10, 20)]
    gray = dataclasses.replace(header, preprocessing=PREPROCESSING.for_channels(1))
    assert example_inputs(gray, 1)[0].shape[0] == 1


@pytest.mark.parametrize("size", [(40, 60), (300, 30), (5, 7)], ids=str)
def test_masks_are_those_of_the_network_without_masks_of_the_size_of_the_image(size: tuple[int, int]) -> None:
    model, pixels = tiny_detector("maskrcnn"), images(size, (64, 64))
    task = model.header.task
    with torch.inference_mode():
        dense = model.module(PREPROCESSING.normalize(pixels))
    compact = eager_forward(model.module, PREPROCESSING)(pixels)
    assert not model.module.compact
    assert {"masks_of_boxes"} == compact[0].keys() - dense[0].keys()
    for mine, other in zip(task.collect(compact, pixels), task.collect(dense, pixels), strict=True):
        assert len(mine) == 10
        assert mine.segments == other.segments
