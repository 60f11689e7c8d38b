"""Norms with their activations by kernels of our own: what torch computes, and torch where there are none."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import convatlas as ca
from convatlas.core.compose import Chain
from convatlas.models.catalog import build_fresh
from convatlas.train.cpu import fused_norm
from convatlas.train.cpu.execution import ExecutionPlan, release
from convatlas.train.loop import EMA, Step
from convatlas.train.recipe import Recipe
from convatlas.train.settings import Settings
from tiny_networks import tiny

needed = pytest.mark.skipif(fused_norm._compiled() is None, reason="there is no C compiler")
ACTS = [None, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU]


def layers(channels: int, act: type[nn.Module] | None, *, own: bool) -> Chain:
    """Return a norm with its activation, of weights and statistics that are always the same."""
    chain = Chain(nn.BatchNorm2d(channels, eps=1e-3, momentum=0.2), *([] if act is None else [act()]))
    generator = torch.Generator().manual_seed(channels)
    for tensor in (*chain.parameters(), chain[0].running_mean, chain[0].running_var):
        tensor.data.copy_(torch.rand(channels, generator=generator) + 0.5)
    if own:
        fused_norm.install(chain)
    return chain.train()


def passed(chain: Chain, x: Tensor, gradient: Tensor) -> list[Tensor]:
    """Return the output, the gradients and the statistics."""
    x = x.clone().requires_grad_()
    y = chain(x)
    y.backward(gradient)
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad for p in chain.parameters() if p.grad is not None), *chain.buffers()]


def maps(*shape: int, kind: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1
    return x.to(kind).contiguous(memory_format=torch.channels_last)


@pytest.fixture(autouse=True, scope="module")
def _whatever_is_faster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kernels are used although other tests keep the cores busy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_norm, "_is_faster", lambda _: True)
        patch.setenv("CONVATLAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        fused_norm.kernels.cache_clear()
        yield
    fused_norm.kernels.cache_clear()


@needed
@pytest.mark.parametrize("act", ACTS)
@given(
    batch=st.integers(1, 5), channels=st.integers(1, 70), height=st.integers(1, 9), width=st.integers(2, 9),
    threads=st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_they_compute_what_torch_does(
    act: type[nn.Module] | None, batch: int, channels: int, height: int, width: int, threads: int
) -> None:
    x, gradient = maps(batch, channels, height, width), maps(batch, channels, height, width, seed=1)
    before, fused_norm.WORK = fused_norm.WORK, 16
    torch.set_num_threads(threads)
    try:
        found = passed(layers(channels, act, own=True), x, gradient)
    finally:
        fused_norm.WORK = before
        torch.set_num_threads(1)
    exact = passed(layers(channels, act, own=False).double(), x.double(), gradient.double())
    for own, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(own.double(), theirs.double(), rtol=1e-4, atol=2e-4)


@needed
@pytest.mark.parametrize("act", ACTS)
def test_in_bfloat16_they_are_nearer_to_exact_than_torch(act: type[nn.Module] | None) -> None:
    x, gradient = (maps(4, 24, 20, 20, kind=torch.bfloat16, seed=seed) for seed in (0, 1))
    own, torchs = (passed(layers(24, act, own=mine), x, gradient) for mine in (True, False))
    exact = passed(layers(24, act, own=False).double(), x.double(), gradient.double())
    assert own[0].dtype == own[1].dtype == torch.bfloat16
    assert all(part.dtype == torch.float32 for part in own[2:6])
    for mine, theirs, true in zip(own, torchs, exact, strict=True):
        error, other = ((part.double() - true).norm() for part in (mine, theirs))
        assert error <= 1.01 * other + 1e-4 * true.double().norm()


@needed
def test_a_mean_far_from_zero_leaves_the_deviation() -> None:
    x = (maps(8, 16, 32, 32).double() * 0.01 + 1000).float().contiguous(memory_format=torch.channels_last)
    found = passed(layers(16, None, own=True), x, maps(8, 16, 32, 32, seed=1))
    exact = passed(layers(16, None, own=False).double(), x.double(), maps(8, 16, 32, 32, seed=1).double())
    torch.testing.assert_close(found[0].double(), exact[0], rtol=0.01, atol=0.02)
    torch.testing.assert_close(found[5].double(), exact[5], rtol=1e-3, atol=1e-3)


@needed
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_does_not_hide(act: type[nn.Module] | None, kind: torch.dtype, value: float) -> None:
    x = maps(2, 20, 6, 6, kind=kind)
    x[1, 3, 2, 2] = value
    y, of_x, of_weight, *_ = passed(layers(20, act, own=True), x, torch.ones_like(x))
    assert y[:, 3].isnan().all()
    assert y[:, :3].isfinite().all()
    assert not of_weight[3].isfinite()
    assert not of_x[:, 3].isfinite().all()


@needed
@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "resnet50"])
def test_a_whole_network_has_the_same_gradients(name: str) -> None:
    torch.manual_seed(0)
    network = build_fresh(tiny(name), classes=5).train()
    x, labels = torch.randn(8, *network.input_shape), torch.arange(8) % 5
    found = {}
    for how in ("exact", "own", "torch"):
        copied = copy.deepcopy(network)
        if how == "exact":
            copied = copied.double()
        else:
            ExecutionPlan(kernels=how == "own").place(copied)
        assert any("forward" in layer.__dict__ for layer in copied.modules()) == (how == "own")
        torch.manual_seed(1)
        inputs = x.to(next(copied.parameters()).dtype).contiguous(memory_format=torch.channels_last)
        F.cross_entropy(copied(inputs), labels).backward()
        found[how] = torch.cat([p.grad.double().flatten() for p in copied.parameters() if p.grad is not None])
    own, torchs = ((found[how] - found["exact"]).norm() / found["exact"].norm() for how in ("own", "torch"))
    assert own <= 3 * torchs + 1e-5


@needed
def test_only_training_is_by_own_kernels_and_copies_are_on_their_own() -> None:
    torch.manual_seed(0)
    network = ExecutionPlan().place(build_fresh(tiny("mobilenet_v2"), classes=5))
    plain = release_copy(network)
    x = torch.randn(2, 3, 48, 48)
    for mode in (True, False):
        found = []
        for each in (network, plain):
            torch.manual_seed(1)
            with torch.no_grad():
                found.append(each.train(mode)(x))
        assert torch.equal(*found)
    average = EMA(network, Recipe(average=0.9).average).network
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.zero_()
    assert average.train()(x).eq(0).all()
    assert network(x).ne(0).any()


def release_copy(network: nn.Module) -> nn.Module:
    copied = copy.deepcopy(network)
    release(copied)
    assert not any("forward" in layer.__dict__ for layer in copied.modules())
    return copied


@pytest.fixture
def afresh() -> Iterator[None]:
    """Kernels are looked for again."""
    for found in (fused_norm.kernels, fused_norm._compile):
        found.cache_clear()
    yield
    for found in (fused_norm.kernels, fused_norm._compile):
        found.cache_clear()


@pytest.mark.usefixtures("afresh")
@pytest.mark.parametrize("command", ["no-such-compiler", "false", "true"])
def test_without_a_compiler_layers_stay_torchs(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", command)
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    assert fused_norm.kernels() is None
    network = ExecutionPlan().place(build_fresh(tiny("mobilenet_v2"), classes=5))
    assert fused_norm.compiler(network) == "none"
    assert not any("forward" in layer.__dict__ for layer in network.modules())


@needed
@pytest.mark.usefixtures("afresh")
def test_they_are_kept_and_what_is_damaged_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    assert fused_norm.kernels()
    (kept,) = (tmp_path / "kernels").iterdir()
    size = kept.stat().st_size
    kept.unlink()
    kept.write_bytes(b"no library")
    fused_norm.kernels.cache_clear()
    assert fused_norm.kernels()
    assert kept.stat().st_size == size
    monkeypatch.setattr(fused_norm, "_is_faster", lambda _: False)  # what is kept is known to be
    fused_norm.kernels.cache_clear()
    assert fused_norm.kernels()
    kept.unlink()
    for _ in range(2):
        fused_norm.kernels.cache_clear()
        assert fused_norm.kernels() is None
        assert kept.stat().st_size == 0
        assert fused_norm.compiler(nn.Sequential(nn.BatchNorm2d(3))) == "none"
    monkeypatch.setattr(fused_norm, "_is_faster", lambda _: True)
    monkeypatch.setenv("CONVATLAS_CACHE", os.devnull)
    fused_norm.kernels.cache_clear()
    assert fused_norm.kernels()


@needed
@pytest.mark.usefixtures("afresh")
def test_they_are_compiled_beforehand_where_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    fused_norm.prepare(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))
    state = torch.get_rng_state()
    assert not [thread for thread in threading.enumerate() if thread.daemon and "_compiled" in thread.name]
    fused_norm.prepare(nn.Sequential(nn.BatchNorm2d(3)))
    assert fused_norm.kernels()
    assert fused_norm._compile.cache_info().misses == 1
    assert torch.equal(state, torch.get_rng_state())


@needed
def test_a_run_with_them_is_resumed_to_the_same_bits_and_says_so_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(epochs=2, batch=256, lr=0.02)
    how = Settings(threads=1, device="cpu", size=16, layout="channels_last", checkpoint_steps=3)

    def stop(event: Step | dict[str, float]) -> None:
        if isinstance(event, Step) and event.number == 7:
            raise KeyboardInterrupt

    ca.fit("digits", "cifar_resnet20", recipe=recipe, out=tmp_path / "whole", settings=how)
    with pytest.raises(KeyboardInterrupt):
        ca.fit("digits", "cifar_resnet20", recipe=recipe, out=tmp_path / "part", settings=how, watch=stop)
    assert ca.resume(tmp_path / "part").state.finished
    whole, part = (ca.load(tmp_path / name / "model.safetensors").own.state_dict() for name in ("whole", "part"))
    assert all(torch.equal(whole[key], part[key]) for key in whole)
    run = ca.resume(tmp_path / "whole")
    assert run.config.versions["kernels"] == fused_norm.compiler(run.network) != "none"
    assert not any("forward" in layer.__dict__ for layer in run.network.modules())
    monkeypatch.setattr(fused_norm, "compiler", lambda _: "none")
    assert run.changed_versions == {"kernels": (run.config.versions["kernels"], "none")}
