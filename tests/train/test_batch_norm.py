"""Batch norms never see a single value per channel: last batches, micro-batches, short memory, several ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convatlas as ca
from commands import Command
from convatlas.core.network import Network
from convatlas.core.spec import Spec
from convatlas.data.loader import batch_sizes
from convatlas.engines.evaluation import compute_outputs, eager_forward
from convatlas.errors import RunError, SpecError
from convatlas.models.catalog import build_fresh
from convatlas.tasks.known import Classification
from convatlas.tasks.targets import Batch, Targets
from convatlas.train.batch_norm import check_batch, has_folded_norms, min_images
from convatlas.train.cpu.execution import ExecutionPlan
from convatlas.train.distributed import Distributed
from convatlas.train.fit import prepare_run
from convatlas.train.recipe import Recipe
from convatlas.train.settings import ExecutionOptions, RunOptions
from convatlas.train.step import Step, StepRunner

SPECS: dict[str, Spec] = {  # the smallest maps of all of them are 1x1
    "resnet18": ca.spec("resnet18").scaled(width=0.1, depth=0.5, resolution=32),
    "auxiliary": replace(ca.spec("googlenet").scaled(width=0.05, depth=0.3, resolution=32), auxiliary=True),  # type: ignore[type-var]
    "squeeze": ca.spec("mobilenet_v3_small").scaled(width=0.25, depth=0.3, resolution=32),
}
HOW: dict[str, Any] = {
    "execution": ExecutionOptions(device="cpu", threads=1),
    "options": RunOptions(checkpoint_steps=1),
}


@pytest.fixture(scope="module")
def seventeen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """17 training images."""
    path = tmp_path_factory.mktemp("data") / "seventeen.npz"
    pixels = np.random.default_rng(0).integers(0, 255, (21, 32, 32), dtype=np.uint8)
    labels = np.arange(21) % 2
    np.savez(path, x=pixels[:17], y=labels[:17], x_val=pixels[17:], y_val=labels[17:])
    return path


@pytest.mark.parametrize(
    ("count", "batch", "sizes"),
    [
        (17, 8, [8, 9]), (18, 8, [8, 8, 2]), (16, 8, [8, 8]), (9, 8, [9]), (8, 8, [8]), (1, 8, [1]), (5, 2, [2, 3]),
        (3, 1, [1, 1, 1]), (7, 3, [3, 4]),
    ],
)  # fmt: skip
def test_a_last_batch_of_one_image_joins_the_one_before(count: int, batch: int, sizes: list[int]) -> None:
    assert batch_sizes(count, batch, 2) == sizes
    full, rest = divmod(count, batch)
    assert batch_sizes(count, batch) == [batch] * full + [rest] * (rest > 0)


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("resnet18", {"batch": 8}), ("auxiliary", {"batch": 8}), ("squeeze", {"batch": 16}),
        ("resnet18", {"batch": 16, "micro_batch": 1}), ("auxiliary", {"batch": 4, "micro_batch": 3}),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("no_figures")
def test_a_run_over_seventeen_images_trains_and_resumes(
    kind: str, overrides: dict[str, int], seventeen: Path, tmp_path: Path
) -> None:
    recipe = Recipe(epochs=1, lr=0.01).replaced(overrides)
    steps = prepare_run(seventeen, SPECS[kind], recipe=recipe, out=tmp_path / "run", **HOW).steps()
    first = next(steps)
    assert isinstance(first, Step)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    run = ca.resume(tmp_path / "run", progress=False)
    assert run.state.step == run.total_steps == len(batch_sizes(17, recipe.batch, 2))
    assert all(tensor.isfinite().all() for tensor in run.network.state_dict().values())


@pytest.mark.parametrize("kind", SPECS)
def test_batches_of_one_image_are_refused_where_maps_are_1x1(
    kind: str, seventeen: Path, tmp_path: Path, convatlas: Command
) -> None:
    recipe = Recipe(epochs=1, batch=1)
    with pytest.raises(SpecError, match=r"batch must be >= 2 for this network .*, got 1: the batch norm [\w.]+ would"):
        prepare_run(seventeen, SPECS[kind], recipe=recipe, out=tmp_path / "run", **HOW)
    assert not (tmp_path / "run").exists()
    frozen = recipe.replaced({"freeze_bn_stats": True})
    next(prepare_run(seventeen, SPECS[kind], recipe=frozen, out=tmp_path / "run", **HOW).steps())


def test_batches_of_one_image_are_possible_where_maps_are_larger(seventeen: Path, tmp_path: Path) -> None:
    spec = ca.spec("cifar_resnet20").scaled(width=0.25, depth=0.3, resolution=32)
    next(prepare_run(seventeen, spec, recipe=Recipe(epochs=1, batch=1), out=tmp_path / "run", **HOW).steps())
    check_batch(build_fresh("lenet1", classes=2, channels=1), Recipe(batch=1), 9)


def test_only_batch_norms_that_are_trained_need_two_images() -> None:
    network = SPECS["resnet18"].build(classes=2, channels=1)
    assert min_images(network, Recipe()) == 2
    assert min_images(network, Recipe(freeze_bn_stats=True)) == 1
    assert min_images(build_fresh("lenet5", classes=2, channels=1), Recipe()) == 1


def folded(network: Network) -> Network:
    """Fold the batch norms of a network, apart from their shifts, into the convolutions before them."""
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.state_dict()["running_mean"].zero_()
                layer.state_dict()["running_var"].fill_(1 - layer.eps)
                layer.weight.fill_(1)
                layer.bias.uniform_(0.1, 1)
    return network


def test_folded_batch_norms_are_recognized() -> None:
    network = SPECS["resnet18"].build(classes=2, channels=1)
    assert not has_folded_norms(network.state_dict())  # untrained: they normalize from the first step on
    assert has_folded_norms(folded(network).state_dict())
    network.train()(torch.randn(4, *network.input_shape))
    assert not has_folded_norms(network.state_dict())
    assert not has_folded_norms(build_fresh("lenet5", classes=2, channels=1).state_dict())


def test_folded_batch_norms_get_the_statistics_of_the_images(seventeen: Path, tmp_path: Path) -> None:
    """In evaluation mode the network computes the same as before."""
    spec = SPECS["resnet18"].scaled(resolution=64)
    file, x = tmp_path / "folded.pth", torch.randn(2, 1, 64, 64)
    network = folded(spec.build(classes=2, channels=1))
    torch.save(network.state_dict(), file)
    execution = ExecutionOptions(device="cpu", threads=1, fused_norms=False)
    run = prepare_run(seventeen, spec, weights=file, out=tmp_path / "run", execution=execution)
    assert not has_folded_norms(run.network.state_dict())
    norm = next(layer for layer in run.network.modules() if isinstance(layer, nn.BatchNorm2d))
    network.head, run.network.head = nn.Identity(), nn.Identity()  # the head is a new one
    with torch.no_grad():
        torch.testing.assert_close(run.network.eval()(x), network.eval()(x), rtol=1e-3, atol=1e-3)
        inputs: list[Tensor] = []
        norm.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        compute_outputs(eager_forward(run.network, run.config.preprocessing), run.dataset.train)
    torch.testing.assert_close(torch.cat(inputs).mean((0, 2, 3)), norm.running_mean)
    torch.testing.assert_close(torch.cat(inputs).var((0, 2, 3), correction=0), norm.running_var)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_micro_batches_have_two_images_over_all_ranks(world_size: int, micro_batch: int) -> None:
    network, task = SPECS["resnet18"].build(classes=2, channels=1), Classification(("a", "b"))
    recipe = Recipe(batch=64, micro_batch=micro_batch)
    for size in range(2, 24):
        pieces: list[list[int]] = []
        for rank in range(world_size):
            ranks = Distributed(rank, world_size)
            own = ranks.shard(torch.arange(size))
            batch = Batch(torch.zeros(len(own), 1), Targets(label=own), own, size)
            count = StepRunner(network, task, recipe, ExecutionPlan(), distributed=ranks)._pieces(batch)
            pieces.append([len(inputs) for inputs, _ in batch.split(count)])
        assert {len(each) for each in pieces} == {len(pieces[0])}
        assert min(map(sum, zip(*pieces, strict=True))) >= 2


def test_short_memory_never_leads_to_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def limited(layer: nn.Conv2d, x: Tensor) -> Tensor:
        tried.append(len(x))
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes")

    monkeypatch.setattr(nn.Conv2d, "forward", limited)
    network, task = SPECS["resnet18"].build(classes=2, channels=1), Classification(("a", "b"))
    runner = StepRunner(network, task, Recipe(batch=9), ExecutionPlan())
    numbers = torch.arange(9)
    batch = Batch(torch.randn(9, 1, 32, 32), Targets(label=numbers % 2), numbers, 9)
    with pytest.raises(RunError, match=r"out of memory for the network and 3 images .*; use a smaller --resolution or"):
        runner.backward_with_oom_retry(batch, [buffer.clone() for buffer in network.buffers()])
    assert tried == [9, 5, 3]
