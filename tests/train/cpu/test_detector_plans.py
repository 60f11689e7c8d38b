"""Detectors under execution plans: losses and gradients of the plain network, up to rounding."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.rpn import RPNHead

from convatlas.core.compose import Chain
from convatlas.core.network import Network
from convatlas.layers.frozen_norm import FrozenBatchNorm2d
from convatlas.models.catalog import build_fresh
from convatlas.models.detection import roi_align
from convatlas.models.detection.rows import BoxHead, KeypointHead, MaskHead, Proposals
from convatlas.models.families.rcnn import FasterRCNN, KeypointRCNN, MaskRCNN
from convatlas.system.load import LoadMeter
from convatlas.train.cpu import boxes_fp32, frozen_norm, rpn_head, tune
from convatlas.train.cpu.execution import ExecutionPlan
from convatlas.train.optim import EMA
from convatlas.train.swap_forward import restore_forwards
from tiny_networks import count_swapped, tiny

CPU = torch.device("cpu")
CHANNELS_LAST, BFLOAT16 = ExecutionPlan("channels_last"), ExecutionPlan("channels_last", "bfloat16")
SMALL: dict[str, Any] = {
    "resolution": 64, "max_size": 96, "width": 16, "proposals": Proposals(before_nms=(60, 60), after_nms=(30, 30)),
    "boxes": BoxHead(units=(16, 16), samples=32),
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _assume_faster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use the kernels even if other tests keep the cores busy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roi_align.KERNELS, "is_faster", lambda _: True)
        patch.setenv("CONVATLAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        roi_align.KERNELS.forget()
        yield
    roi_align.KERNELS.forget()


def detector(body: str = "resnet18", kind: type[FasterRCNN] = FasterRCNN, **cells: Any) -> Network:
    """Return a small detector in training mode, whose frozen norms have random statistics."""
    torch.manual_seed(0)
    if kind is MaskRCNN:
        cells["masks"] = MaskHead(convs=(8,), deconv=8)
    if kind is KeypointRCNN:
        cells |= {"keypoints": KeypointHead(convs=(8,)), "points": 2}
    network = build_fresh(kind(tiny(body), **{**SMALL, **cells}), classes=3, channels=3).train()
    for layer in network.modules():
        if isinstance(layer, FrozenBatchNorm2d):
            for buffer in layer.buffers():
                buffer.uniform_(0.5, 1.0)
    return network


def losses_and_gradients(network: Network, plan: ExecutionPlan | None = None) -> tuple[dict[str, Tensor], Tensor]:
    """Return the losses and all gradients of a step on two images; the choice of anchors has a seed."""
    loss_of = network.example_loss(2, 3, CPU)
    losses: dict[str, Tensor] = {}

    def forward(*batch: Any) -> dict[str, Tensor]:
        losses.update((plan or ExecutionPlan()).forward(network)(*batch))
        return losses

    network.zero_grad()
    with (plan or ExecutionPlan()).autocast(CPU):
        total = loss_of(forward)
    total.backward()
    return losses, torch.cat([p.grad.float().flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize("body", ["resnet18", "mobilenet_v3_large"])
@pytest.mark.parametrize("frozen", [None, "stages.0"])
def test_losses_and_gradients_are_those_of_the_plain_network(body: str, frozen: str | None) -> None:
    network = detector(body).freeze(frozen)
    exact, gradient = losses_and_gradients(network)
    losses, other = losses_and_gradients(CHANNELS_LAST.place(network), CHANNELS_LAST)
    assert count_swapped(network) > 20
    assert losses.keys() == exact.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, exact[name], rtol=1e-4, atol=1e-5)
    assert (other - gradient).norm() <= 1e-2 * gradient.norm()
    ExecutionPlan("contiguous", fused_norms=False).place(network)
    restore_forwards(network)
    again, same = losses_and_gradients(network)
    assert torch.equal(gradient, same)
    assert all(torch.equal(loss, exact[name]) for name, loss in again.items())


@pytest.mark.parametrize("kind", [FasterRCNN, MaskRCNN, KeypointRCNN])
def test_in_bfloat16_boxes_and_losses_are_float32(kind: type[FasterRCNN]) -> None:
    network = BFLOAT16.place(detector(kind=kind))
    anchors: list[Tensor] = []
    network.head.rpn.anchor_generator.register_forward_hook(lambda _, __, output: anchors.extend(output))  # type: ignore[union-attr]
    losses, gradient = losses_and_gradients(network, BFLOAT16)
    assert {each.dtype for each in anchors} == {torch.float32}
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert gradient.isfinite().all()
    exact, _ = losses_and_gradients(detector(kind=kind))
    for name in ("loss_objectness", "loss_classifier"):
        torch.testing.assert_close(losses[name], exact[name], rtol=0.1, atol=0.02)


@pytest.mark.parametrize("plan", [CHANNELS_LAST, BFLOAT16])
def test_a_repeated_step_is_equal_to_the_bit(plan: ExecutionPlan) -> None:
    gradients = [losses_and_gradients(plan.place(detector()), plan)[1] for _ in range(2)]
    assert torch.equal(*gradients)


def test_a_copy_uses_its_own_weights_and_evaluation_is_plain() -> None:
    network = CHANNELS_LAST.place(detector())
    plain = copy.deepcopy(network)
    restore_forwards(plain)
    images = [torch.rand(3, 64, 80), torch.rand(3, 70, 64)]
    with torch.no_grad():
        for ours, theirs in zip(network.eval()(images), plain.eval()(images), strict=True):
            assert all(torch.allclose(ours[key], theirs[key], atol=1e-4) for key in theirs)
    average = EMA(network, 0.9).network
    for parameter in average.parameters():
        parameter.requires_grad_().data.zero_()
    _, gradient = losses_and_gradients(average.train())
    _, other = losses_and_gradients(network.train())
    assert not torch.equal(gradient, other)
    with torch.no_grad():
        assert not average.maps(torch.rand(1, 3, 64, 64))[0].eq(network.maps(torch.rand(1, 3, 64, 64))[0]).all()  # type: ignore[operator]


def test_a_convolution_whose_output_is_read_keeps_its_norm() -> None:
    network = detector()
    pairs = list(frozen_norm._pairs(network))
    network.levels = (*network.levels, "stem.conv.conv")
    assert len(list(frozen_norm._pairs(network))) == len(pairs) - 1
    convolution, norm = nn.Conv2d(3, 3, 1), FrozenBatchNorm2d(3)
    assert list(frozen_norm._pairs(Chain(convolution, norm))) == [(convolution, norm)]
    assert not list(frozen_norm._pairs(Chain(convolution, norm, Chain(convolution, nn.ReLU()))))


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_gradients_of_the_proposal_head(depth: int, kind: torch.dtype) -> None:
    torch.manual_seed(0)
    head = RPNHead(8, 3, conv_depth=depth)
    nn.init.normal_(head.bbox_pred.weight, std=0.5)
    maps = [torch.randn(2, 8, h, w).contiguous(memory_format=torch.channels_last) for h, w in ((9, 7), (4, 5), (1, 1))]
    which = [[(0, 1, 0, 0), (1, 2, 8, 6), (1, 0, 4, 3)], [(0, 0, 3, 4)], [(1, 1, 0, 0)]]

    def run() -> list[Tensor]:
        inputs = [each.clone().requires_grad_() for each in maps]
        head.zero_grad()
        with torch.autocast("cpu", kind, enabled=kind == torch.bfloat16):
            logits, deltas = head(inputs)
        loss = sum(logits[i][at].float() + deltas[i][at].float() ** 2 for i, ats in enumerate(which) for at in ats)
        loss.backward()
        return [*(x.grad for x in inputs), *(p.grad for p in head.parameters())]  # type: ignore[misc]

    exact = run()
    rpn_head.install(head)
    assert count_swapped(head) == 1
    tolerance = 1e-5 if kind == torch.float32 else 0.05
    for ours, theirs in zip(run(), exact, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm() + 1e-6
    for each in maps:
        each.requires_grad_(False)
    outputs = head(maps)
    assert [each.shape for each in outputs[0]] == [(2, 3, 9, 7), (2, 3, 4, 5), (2, 3, 1, 1)]


def test_a_head_with_hooks_or_other_layers_is_not_swapped() -> None:
    for change in (
        lambda head: head.conv[0][0].register_forward_hook(print),
        lambda head: setattr(head, "bbox_pred", nn.Conv2d(8, 12, 3, padding=1)),
    ):
        head = RPNHead(8, 3)
        change(head)
        rpn_head.install(head)
        assert not count_swapped(head)


def test_classifiers_have_nothing_to_swap() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    for module in (frozen_norm, rpn_head, boxes_fp32):
        module.install(network)
    assert not count_swapped(network)


def test_plans_of_a_detector_are_timed_with_its_losses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    monkeypatch.setattr(tune, "MIN_MACS_TO_TUNE", 0)
    monkeypatch.setattr(LoadMeter, "share", lambda _: 0.0)
    network = detector()
    choice = tune.choose_plan(network, network.spec, classes=3, batch=2, device=CPU, precision="float32")  # type: ignore[arg-type]
    assert len(choice.seconds) == 2
    assert not count_swapped(network)
