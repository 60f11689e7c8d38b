"""Fused batch-norm kernels: equal to torch's layers, and torch's layers where there is no compiler."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from convatlas.train.cpu.execution import ExecutionPlan
from convatlas.train.optim import EMA
from convatlas.train.recipe import Recipe
from convatlas.train.run import Event
from convatlas.train.settings import DataOptions, ExecutionOptions, RunOptions
from convatlas.train.step import Step
from convatlas.train.swap_forward import restore_forwards
from tiny_networks import count_swapped, tiny

needs_compiler = pytest.mark.skipif(fused_norm.KERNELS.compile() is None, reason="there is no C compiler")
ACTS = [None, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU]


def layers(channels: int, act: type[nn.Module] | None, *, fused: bool) -> Chain:
    """Return a batch norm and its activation with fixed weights and statistics."""
    chain = Chain(nn.BatchNorm2d(channels, eps=1e-3, momentum=0.2), *([] if act is None else [act()]))
    generator = torch.Generator().manual_seed(channels)
    for tensor in (*chain.parameters(), chain[0].running_mean, chain[0].running_var):
        tensor.data.copy_(torch.rand(channels, generator=generator) + 0.5)
    if fused:
        fused_norm.install(chain)
    return chain.train()


def forward_backward(chain: Chain, x: Tensor, gradient: Tensor) -> list[Tensor]:
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
def _assume_faster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use the kernels even if other tests keep the cores busy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_norm.KERNELS, "is_faster", lambda _: True)
        patch.setenv("CONVATLAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        fused_norm.KERNELS.forget()
        yield
    fused_norm.KERNELS.forget()


@needs_compiler
@pytest.mark.parametrize("act", ACTS)
@given(
    batch=st.integers(1, 5), channels=st.integers(1, 70), height=st.integers(1, 9), width=st.integers(2, 9),
    threads=st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_outputs_and_gradients_equal_those_of_torch(
    act: type[nn.Module] | None, batch: int, channels: int, height: int, width: int, threads: int
) -> None:
    x, gradient = maps(batch, channels, height, width), maps(batch, channels, height, width, seed=1)
    before, fused_norm.MIN_VALUES_PER_THREAD = fused_norm.MIN_VALUES_PER_THREAD, 16
    torch.set_num_threads(threads)
    try:
        actual = forward_backward(layers(channels, act, fused=True), x, gradient)
    finally:
        fused_norm.MIN_VALUES_PER_THREAD = before
        torch.set_num_threads(1)
    exact = forward_backward(layers(channels, act, fused=False).double(), x.double(), gradient.double())
    for ours, reference in zip(actual, exact, strict=True):
        torch.testing.assert_close(ours.double(), reference.double(), rtol=1e-4, atol=2e-4)


@needs_compiler
@pytest.mark.parametrize("act", ACTS)
def test_in_bfloat16_errors_are_at_most_those_of_torch(act: type[nn.Module] | None) -> None:
    x, gradient = (maps(4, 24, 20, 20, kind=torch.bfloat16, seed=seed) for seed in (0, 1))
    fused, torchs = (forward_backward(layers(24, act, fused=mine), x, gradient) for mine in (True, False))
    exact = forward_backward(layers(24, act, fused=False).double(), x.double(), gradient.double())
    assert fused[0].dtype == fused[1].dtype == torch.bfloat16
    assert all(part.dtype == torch.float32 for part in fused[2:6])
    for actual, reference, true in zip(fused, torchs, exact, strict=True):
        error, other = ((part.double() - true).norm() for part in (actual, reference))
        assert error <= 1.01 * other + 1e-4 * true.double().norm()


@needs_compiler
def test_the_variance_is_accurate_far_from_zero() -> None:
    x = (maps(8, 16, 32, 32).double() * 0.01 + 1000).float().contiguous(memory_format=torch.channels_last)
    actual = forward_backward(layers(16, None, fused=True), x, maps(8, 16, 32, 32, seed=1))
    exact = forward_backward(layers(16, None, fused=False).double(), x.double(), maps(8, 16, 32, 32, seed=1).double())
    torch.testing.assert_close(actual[0].double(), exact[0], rtol=0.01, atol=0.02)
    torch.testing.assert_close(actual[5].double(), exact[5], rtol=1e-3, atol=1e-3)


@needs_compiler
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_propagate(act: type[nn.Module] | None, kind: torch.dtype, value: float) -> None:
    x = maps(2, 20, 6, 6, kind=kind)
    x[1, 3, 2, 2] = value
    y, grad_x, grad_weight, *_ = forward_backward(layers(20, act, fused=True), x, torch.ones_like(x))
    assert y[:, 3].isnan().all()
    assert y[:, :3].isfinite().all()
    assert not grad_weight[3].isfinite()
    assert not grad_x[:, 3].isfinite().all()


@needs_compiler
def test_clips_are_images_of_more_rows() -> None:
    x, gradient = maps(2, 20, 12, 5), maps(2, 20, 12, 5, seed=1)
    images = forward_backward(layers(20, nn.ReLU, fused=True), x, gradient)
    norm = nn.BatchNorm3d(20, eps=1e-3, momentum=0.2)
    norm.load_state_dict(layers(20, None, fused=False)[0].state_dict())
    chain = Chain(norm, nn.ReLU()).train()
    fused_norm.install(chain)
    assert count_swapped(chain) == 2
    clips = forward_backward(chain, x.unflatten(2, (3, 4)), gradient.unflatten(2, (3, 4)))
    for ours, reference in zip(clips, images, strict=True):
        assert torch.equal(ours.flatten(2, 3) if ours.ndim == 5 else ours, reference)


@needs_compiler
@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "resnet50"])
def test_gradients_of_a_network_are_close(name: str) -> None:
    torch.manual_seed(0)
    network = build_fresh(tiny(name), classes=5).train()
    x, labels = torch.randn(8, *network.input_shape), torch.arange(8) % 5
    grads = {}
    for how in ("exact", "fused", "torch"):
        copied = copy.deepcopy(network)
        if how == "exact":
            copied = copied.double()
        else:
            ExecutionPlan(fused_norms=how == "fused").place(copied)
        assert (count_swapped(copied) > 0) == (how == "fused")
        torch.manual_seed(1)
        inputs = x.to(next(copied.parameters()).dtype).contiguous(memory_format=torch.channels_last)
        F.cross_entropy(copied(inputs), labels).backward()
        grads[how] = torch.cat([p.grad.double().flatten() for p in copied.parameters() if p.grad is not None])
    fused, torchs = ((grads[how] - grads["exact"]).norm() / grads["exact"].norm() for how in ("fused", "torch"))
    assert fused <= 3 * torchs + 1e-5


@needs_compiler
def test_only_training_is_fused_and_a_deep_copy_uses_its_own_weights() -> None:
    torch.manual_seed(0)
    network = ExecutionPlan().place(build_fresh(tiny("mobilenet_v2"), classes=5))
    plain = copy.deepcopy(network)
    restore_forwards(plain)
    assert not count_swapped(plain)
    x = torch.randn(2, 3, 48, 48)
    for mode in (True, False):
        outputs = []
        for each in (network, plain):
            torch.manual_seed(1)
            with torch.no_grad():
                outputs.append(each.train(mode)(x))
        assert torch.equal(*outputs)
    average = EMA(network, 0.9).network
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.zero_()
    assert average.train()(x).eq(0).all()
    assert network(x).ne(0).any()


@pytest.fixture
def nothing_loaded() -> Iterator[None]:
    """Forget the kernels that this process has loaded and compiled."""
    fused_norm.KERNELS.forget(compiled=True)
    yield
    fused_norm.KERNELS.forget(compiled=True)


@pytest.mark.usefixtures("nothing_loaded")
@pytest.mark.parametrize("command", ["no-such-compiler", "false", "true"])
def test_without_a_compiler_nothing_is_swapped(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", command)
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    assert fused_norm.KERNELS.load() is None
    network = ExecutionPlan().place(build_fresh(tiny("mobilenet_v2"), classes=5))
    assert fused_norm.compiler_version(network) == "none"
    assert not count_swapped(network)


@needs_compiler
@pytest.mark.usefixtures("nothing_loaded")
def test_the_verdict_is_cached_and_a_damaged_file_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    assert fused_norm.KERNELS.load()
    (library,) = (tmp_path / "kernels").glob("*.so")
    verdict, size = library.with_suffix(".json"), library.stat().st_size
    assert json.loads(verdict.read_text()) == {"use": True, "reason": "faster than torch"}
    library.unlink()
    library.write_bytes(b"not a library")
    fused_norm.KERNELS.forget()
    assert fused_norm.KERNELS.load()
    assert library.stat().st_size == size
    monkeypatch.setattr(fused_norm.KERNELS, "is_faster", lambda _: False)  # the cached verdict is used
    fused_norm.KERNELS.forget()
    assert fused_norm.KERNELS.load()
    verdict.write_text("damaged")
    for _ in range(2):
        fused_norm.KERNELS.forget()
        assert fused_norm.KERNELS.load() is None
        assert json.loads(verdict.read_text()) == {"use": False, "reason": "not faster than torch"}
        assert fused_norm.compiler_version(nn.Sequential(nn.BatchNorm2d(3))) == "none"
    monkeypatch.setattr(fused_norm.KERNELS, "is_faster", lambda _: True)
    monkeypatch.setenv("CONVATLAS_CACHE", os.devnull)
    fused_norm.KERNELS.forget()
    assert fused_norm.KERNELS.load()


@needs_compiler
@pytest.mark.usefixtures("nothing_loaded")
def test_the_kernels_are_compiled_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    fused_norm.compile_in_background(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))
    state = torch.get_rng_state()
    assert not [thread for thread in threading.enumerate() if "fused_norm.c" in thread.name]
    runs = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: runs.append(args) or run(*args, **options))
    fused_norm.compile_in_background(nn.Sequential(nn.BatchNorm2d(3)))
    assert fused_norm.KERNELS.load()
    assert len(runs) == 1
    assert torch.equal(state, torch.get_rng_state())


@needs_compiler
def test_a_resumed_run_is_bit_identical_and_reports_another_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(epochs=2, batch=256, lr=0.02)
    options: dict[str, Any] = {
        "recipe": recipe,
        "data_options": DataOptions(resolution=16),
        "execution": ExecutionOptions(
            threads=1,
            device="cpu",
            memory_format="channels_last",
            precision="float32",  # nothing that is timed
        ),
        "options": RunOptions(checkpoint_steps=3),
    }

    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.number == 7:
            raise KeyboardInterrupt

    ca.fit("digits", "cifar_resnet20", out=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        ca.fit("digits", "cifar_resnet20", out=tmp_path / "part", on_event=stop, **options)
    assert ca.resume(tmp_path / "part").state.finished
    whole, part = (ca.load(tmp_path / name / "model.safetensors").module.state_dict() for name in ("whole", "part"))
    assert all(torch.equal(whole[key], part[key]) for key in whole)
    run = ca.resume(tmp_path / "whole")
    assert run.config.versions["fused_norms"] == fused_norm.compiler_version(run.network) != "none"
    assert not count_swapped(run.network)
    monkeypatch.setattr(fused_norm, "compiler_version", lambda _: "none")
    assert run.changed_versions == {"fused_norms": (run.config.versions["fused_norms"], "none")}
