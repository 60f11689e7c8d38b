"""Supernets: shared weights, extraction, masks, the sandwich rule, recalibration, and a search with one."""

from __future__ import annotations

import csv
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convatlas.core.choice import choose
from convatlas.core.network import Network
from convatlas.errors import SearchError
from convatlas.models.catalog import build_fresh
from convatlas.models.families.efficientnet import EfficientNet, MBConvRow
from convatlas.models.families.resnet import ResNet
from convatlas.search import settings as search_settings
from convatlas.search import setup, supernet_search
from convatlas.search.contestant import Contestant
from convatlas.search.latency import LatencyModel
from convatlas.search.launch import start
from convatlas.search.limits import Limits
from convatlas.search.setup import SearchOptions
from convatlas.search.space import Candidate, SpecSpace
from convatlas.search.spaces import SPACES, space_at
from convatlas.search.standings import standings
from convatlas.search.supernet import (
    Sandwich,
    Supernet,
    at_resolution,
    corner,
    extreme,
    recalibrate,
    with_shared_weights,
)
from convatlas.search.worker import Worker
from convatlas.tasks.classification.single_label import Classification
from convatlas.train.fit import prepare_run
from convatlas.train.resume import open_run
from convatlas.train.run import Run
from convatlas.train.settings import ExecutionOptions, RunOptions

TASK = Classification(("a", "b", "c"))

MBCONV: Any = EfficientNet(
    (
        MBConvRow(1, 3, 8, 1),
        MBConvRow(choose(3, 6), choose(3, 5), choose(16, 24), choose(1, 2, 3), 2),
        MBConvRow(choose(3, 6), choose(3, 5), choose(32, 40), choose(1, 2), 2),
    ),
    stem=16, head=choose(64, 96), squeeze=True, drop_path=0.0, small_stem=True, resolution=32,
)  # fmt: skip

RESIDUAL: Any = ResNet(
    "basic", (choose(1, 2), choose(1, 2)), (choose(8, 16), choose(24, 32)), stem=20, small_stem=True, resolution=16
)


def supernet_of(template: Any) -> Supernet:
    """Return a supernet whose largest network has no zero and no one among its tensors."""
    space, left_out = with_shared_weights(SpecSpace(template), classes=3, channels=3)
    assert not left_out
    torch.manual_seed(0)
    network = build_fresh(space.value(extreme(space, classes=3, channels=3, smallest=False)), classes=3, channels=3)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 1:
            tensor.data.uniform_(0.5, 1.5)
    return Supernet(space, network, TASK)


def drawn(space: SpecSpace, number: int = 8) -> list[Candidate]:
    return [space.decode(codes) for codes in space.sample(number, np.random.default_rng(0))]


def test_a_corner_has_the_first_channels_and_the_middle_of_the_kernel() -> None:
    whole = torch.arange(4 * 3 * 5 * 5).view(4, 3, 5, 5)
    assert torch.equal(corner(whole, (2, 1, 3, 3)), whole[:2, :1, 1:4, 1:4])
    assert corner(whole, (4, 3, 5, 5)) is whole


@pytest.mark.parametrize("template", [MBCONV, RESIDUAL], ids=["mbconv", "residual"])
def test_an_extracted_network_equals_the_masked_supernet(template: Any) -> None:
    """Zeros outside of the corners: channels that are 0, blocks that add nothing, kernels with a border of zeros."""
    supernet = supernet_of(template)
    x = torch.randn(2, *supernet.network.input_shape)
    for candidate in drawn(supernet.space):
        extracted = supernet.extract(candidate)
        masked = build_fresh(supernet.network.spec, classes=3, channels=3).eval()  # type: ignore[arg-type]
        own, tensors = extracted.state_dict(), {}
        for name, tensor in masked.state_dict().items():
            tensors[name] = torch.ones_like(tensor) if name.endswith("running_var") else torch.zeros_like(tensor)
            if name in own:
                corner(tensors[name], tuple(own[name].shape)).copy_(own[name])
        masked.load_state_dict(tensors)
        torch.testing.assert_close(extracted(x), masked(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["resnet", *(pytest.param(name, marks=pytest.mark.slow) for name in SPACES if name != "resnet")]
)
def test_sub_networks_of_every_space_run_with_shared_weights(name: str) -> None:
    space, _ = with_shared_weights(space_at(name, 0.15, True, 32), classes=3, channels=3)
    largest = space.value(extreme(space, classes=3, channels=3, smallest=False))
    supernet = Supernet(space, build_fresh(largest, classes=3, channels=3).eval(), TASK)
    x = torch.randn(2, 3, 32, 32)
    for candidate in (supernet.smallest, *drawn(space, 2)):
        assert torch.equal(supernet.outputs(candidate, x), supernet.extract(candidate)(x))


def test_gradients_of_a_sub_network_reach_its_corners_only() -> None:
    supernet = supernet_of(RESIDUAL)
    supernet.network.train()
    supernet.outputs(supernet.smallest, torch.randn(4, 3, 16, 16)).square().sum().backward()
    own = dict(supernet.extract(supernet.smallest).named_parameters())
    for name, parameter in supernet.network.named_parameters():
        if name not in own:
            assert parameter.grad is None, name
            continue
        gradient = parameter.grad
        assert gradient is not None
        inside = corner(gradient, tuple(own[name].shape))
        assert inside.any()
        assert gradient.count_nonzero() == inside.count_nonzero()


def test_statistics_of_the_largest_network_are_not_those_of_sub_networks() -> None:
    supernet = supernet_of(RESIDUAL)
    before = {name: buffer.clone() for name, buffer in supernet.network.named_buffers()}
    supernet.network.train()
    supernet.outputs(supernet.smallest, torch.randn(4, 3, 16, 16))
    assert all(torch.equal(before[name], buffer) for name, buffer in supernet.network.named_buffers())


def test_the_sandwich_is_a_term_of_the_loss_and_a_function_of_the_seed() -> None:
    supernet = supernet_of(MBCONV)
    supernet.network.train()
    supernet.network.auxiliary["sandwich"] = Sandwich(supernet)
    x, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs, loss = supernet.network.loss(x, labels, nn.functional.cross_entropy)
        losses.append((loss - nn.functional.cross_entropy(outputs, labels)).item())
    assert losses[0] == pytest.approx(losses[1])
    assert losses[0] != pytest.approx(losses[2])
    assert min(losses) > 0
    assert not list(supernet.network.auxiliary.parameters())


def test_recalibration_changes_statistics_only() -> None:
    supernet = supernet_of(RESIDUAL)
    network = supernet.extract(supernet.smallest)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    batches = [torch.randn(8, 3, 16, 16) for _ in range(3)]
    recalibrate(network, iter(batches))
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.rpartition(".")[2] for name in changed} == {"running_mean", "running_var", "num_batches_tracked"}
    first = next(layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))
    inputs: list[Tensor] = []
    first.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for batch in batches:
        network(batch)
    assert first.running_mean is not None
    torch.testing.assert_close(first.running_mean, torch.stack([each.mean((0, 2, 3)) for each in inputs]).mean(0))


def test_options_that_share_no_weights_are_left_out() -> None:
    template: Any = ResNet(choose("basic", "bottleneck"), (1, 1), (8, choose(8, 16)), small_stem=True, resolution=16)
    space, left_out = with_shared_weights(SpecSpace(template), classes=3, channels=3)
    assert left_out == {"block": ["bottleneck"]}
    assert space.choices == {"block": ("basic",), "widths[1]": (8, 16)}
    alone: Any = ResNet(choose("basic", "bottleneck"), (1, 1), (8, 16), small_stem=True, resolution=16)
    with pytest.raises(SearchError, match="share no weights; choose another space"):
        with_shared_weights(SpecSpace(alone), classes=3, channels=3)


def test_images_have_the_resolution_of_the_sub_network() -> None:
    template: Any = ResNet("basic", (1, 1), (8, 16), small_stem=True, resolution=choose(16, 24, 32))
    supernet = supernet_of(template)
    assert supernet.network.input_shape == (3, 32, 32)
    seen: list[Any] = []
    network: Network = supernet.extract({"resolution": 16})
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    network(at_resolution(torch.randn(2, 3, 32, 32), network))
    assert seen == [(2, 3, 16, 16)]
    assert supernet.outputs({"resolution": 24}, torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_a_search_trains_a_supernet_and_its_best_sub_networks_compete(
    idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supernet_search, "FINALISTS", 2)
    monkeypatch.setattr(search_settings, "RANKING_SHARE", 2.0)  # of a second
    template: Any = ResNet("basic", (choose(1, 2), 1), (8, choose(8, 16)), stem=8, small_stem=True, resolution=32)
    phone = LatencyModel("torch", 1, "a phone", (0.0,) * 18 + (0.001,), 0.05, 0.97, 60)
    options = SearchOptions(space=template, methods=("supernet",), fields={"batch": 16}, latency_model=phone)
    settings, others = setup.set_up(str(idx_folder), Limits(params=100_000), 3600, options, progress=lambda *_: None)
    assert (others[-1].name, others[-1].kind) == ("supernet", "supernet")
    settings = replace(settings, training_s=0.2, time_s=1.0)
    store = start(tmp_path, settings, [others[0], others[-1]])
    worker = Worker(tmp_path, settings, store)
    for _ in range(4):  # a baseline, the supernet, two sub-networks
        assert worker.step()
    evaluations = store.evaluations()
    assert [each.state for each in evaluations] == ["complete"] * 4, [each.error for each in evaluations]
    candidates = [Contestant.read(each.plain) for each in evaluations[2:]]
    for each in candidates:
        assert each.kind == "candidate"
        assert (tmp_path / each.weights).is_file()
    assert {each.contestant.name for each in standings(evaluations)} == {
        others[0].name, *(each.name for each in candidates)
    }  # fmt: skip
    with (tmp_path / "supernet.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows == sorted(rows, key=lambda row: -float(row["accuracy"]))
    assert {"accuracy", "latency_s", "parameters", "macs", "depths[0]", "widths[1]"} == set(rows[0])
    assert worker.step()  # one of three is promoted


def test_a_supernet_continues_bit_for_bit(idx_folder: Path, tmp_path: Path) -> None:
    template: Any = ResNet("basic", (choose(1, 2), 1), (8, choose(8, 16)), stem=8, small_stem=True, resolution=32)
    space = SpecSpace(template)
    largest = space.value(extreme(space, classes=10, channels=1, smallest=False))

    def attached(run: Run) -> Run:
        run.network.auxiliary["sandwich"] = Sandwich(Supernet(space, run.network, run.task, run.plan))
        return run

    def started(name: str) -> Run:
        execution = ExecutionOptions(threads=1, memory_format="channels_last", precision="float32")
        return attached(prepare_run(
            str(idx_folder), largest, out=tmp_path / name, epochs=2, batch=16, execution=execution,
            options=RunOptions(diagnostics=False, report=False),
        ))  # fmt: skip

    whole = started("whole")
    for _ in islice(whole.steps(), 4):
        pass
    stopped = started("stopped")
    for _ in islice(stopped.steps(), 2):
        pass
    stopped.save()
    continued = attached(open_run(tmp_path / "stopped"))
    for _ in islice(continued.steps(), 2):
        pass
    tensors = continued.network.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in whole.network.state_dict().items())
