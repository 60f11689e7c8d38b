"""3-D convolutions in training: Winograd's algorithm, convolutions over time, and gradients in bfloat16."""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from convatlas.core.network import Network
from convatlas.layers import temporal_conv
from convatlas.models.catalog import build_fresh
from convatlas.models.families.video_resnet import VideoResNet
from convatlas.train.cpu import conv3d, winograd
from convatlas.train.cpu.execution import ExecutionPlan
from convatlas.train.optim import EMA
from convatlas.train.swap_forward import restore_forwards
from tiny_networks import count_swapped

needs_compiler = pytest.mark.skipif(winograd.KERNELS.compile() is None, reason="there is no C compiler")


@pytest.fixture(autouse=True, scope="module")
def _assume_faster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use the kernels even if other tests keep the cores busy, and on small maps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd.KERNELS, "is_faster", lambda _: True)
        patch.setattr(winograd, "MIN_PIXELS", 1)
        patch.setenv("CONVATLAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        winograd.KERNELS.forget()
        yield
    winograd.KERNELS.forget()


@pytest.fixture
def library() -> ctypes.CDLL:
    loaded = winograd.KERNELS.load()
    assert loaded is not None
    return loaded


def example(n: int, channels: int, *space: int, outputs: int = 48, frames: int = 3, seed: int = 0) -> list[Tensor]:
    """Return x, weight and the gradient of the output, in channels_last_3d."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (n, channels, *space), (outputs, channels, frames, 3, 3), (n, outputs, *space)
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    tensors[1] /= (9 * frames * channels) ** 0.5
    return [each.contiguous(memory_format=torch.channels_last_3d) for each in tensors]


def run(convolve: object, x: Tensor, weight: Tensor, gradient: Tensor) -> list[Tensor]:
    """Return the output and the gradients of x and the weight."""
    inputs = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = convolve(*inputs)  # type: ignore[operator]
    return [y.detach(), *torch.autograd.grad(y, inputs, gradient)]


def plain(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv3d(x, weight.to(x.dtype), padding=(weight.shape[2] // 2, 1, 1))


@needs_compiler
@given(
    n=st.integers(2, 3), channels=st.integers(16, 50), outputs=st.integers(16, 50), t=st.integers(1, 4),
    height=st.integers(1, 7), width=st.integers(1, 7), frames=st.sampled_from([1, 3]), parts=st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_winograd_equals_torch(
    n: int, channels: int, outputs: int, t: int, height: int, width: int, frames: int, parts: int
) -> None:
    x, weight, gradient = example(n, channels, t, height, width, outputs=outputs, frames=frames)
    library = winograd.KERNELS.load()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "MAX_VALUES", 4 * x.numel() // parts)
        actual = run(lambda *inputs: winograd._Winograd.apply(*inputs, library), x, weight, gradient)
    exact = run(plain, x.double(), weight.double(), gradient.double())
    assert actual[0].is_contiguous(memory_format=torch.channels_last_3d)
    for ours, reference in zip(actual, exact, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), reference, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_gradients_are_float32_also_if_backward_runs_under_autocast(library: ctypes.CDLL) -> None:
    x, weight, gradient = example(2, 48, 2, 5, 7)
    inputs = x.requires_grad_(), weight.requires_grad_()
    y = winograd._Winograd.apply(*inputs, library)
    expected = torch.autograd.grad(y, inputs, gradient, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        actual = torch.autograd.grad(y, inputs, gradient)
    assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))


@needs_compiler
@pytest.mark.parametrize("frames", [1, 3])
def test_errors_in_bfloat16_are_about_twice_those_of_torch(library: ctypes.CDLL, frames: int) -> None:
    x, weight, gradient = example(1, 64, 4, 12, 12, outputs=64, frames=frames)
    x, gradient = x.bfloat16(), gradient.bfloat16()
    ours = run(lambda *inputs: winograd._Winograd.apply(*inputs, library), x, weight, gradient)
    torchs = run(plain, x, weight, gradient)
    exact = run(plain, x.double(), weight.double(), gradient.double())
    assert [each.dtype for each in ours] == [torch.bfloat16, torch.bfloat16, torch.float32]
    for actual, reference, true in zip(ours, torchs, exact, strict=True):
        error, other = ((part.double() - true).norm() for part in (actual, reference))
        assert error < 3.2 * other


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_propagates_to_its_tile_only(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    x, weight, _ = example(1, 48, 1, 8, 8, frames=1)
    x[0, 5, 0, 1, 1] = float("nan")
    y = winograd._Winograd.apply(x.to(dtype), weight, library)
    assert y[..., :3, :3].isnan().all()
    assert y[..., 4:, 4:].isfinite().all()


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (5, 1, 2), (2, 1, 0)])
@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_over_time_equal_torch(kernel: int, stride: int, padding: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(6, 8, (kernel, 1, 1), (stride, 1, 1), (padding, 0, 0), bias=bias)
    assert temporal_conv.is_temporal(layer)
    assert not temporal_conv.is_temporal(nn.Conv3d(6, 8, (1, 3, 3)))
    layer.to(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 6, 5, 3, 4).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    y, expected = temporal_conv.convolve(layer, x), layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    gradient = torch.randn_like(expected)
    inputs = x, *layer.parameters()
    torch.testing.assert_close(y, expected)
    for actual, reference in zip(
        torch.autograd.grad(y, inputs, gradient), torch.autograd.grad(expected, inputs, gradient), strict=True
    ):
        torch.testing.assert_close(actual, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("kernel", "stride"), [((3, 3, 3), 1), ((5, 3, 3), 1), ((3, 1, 1), 2)])
def test_gradients_in_bfloat16_are_correct_on_few_frames(
    kernel: tuple[int, int, int], stride: int, groups: int
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(32, 32, kernel, stride, tuple(size // 2 for size in kernel), groups=groups)
    conv3d.install_exact(layer)
    x = torch.randn(2, 32, 2, 6, 6)
    results = []
    for bfloat16 in (True, False):
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        waste = [torch.full((2**size,), 1e3) for size in range(10, 20)]  # memory that is not written is not zero
        del waste
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            y = layer(leaf)
        y.float().square().mean().backward()
        results.append([y.float(), leaf.grad, *(parameter.grad for parameter in layer.parameters())])
    for actual, reference in zip(*results, strict=True):
        assert actual is not None
        assert reference is not None
        assert (actual - reference).norm() < 0.02 * reference.norm()


def clips_network(kind: str, *, width: int = 48) -> tuple[Network, Tensor]:
    spec = VideoResNet((kind,) * 2, depths=(1, 1), widths=(width, width + 16), stem=(8,), frames=4, resolution=20)  # type: ignore[arg-type]
    torch.manual_seed(0)
    return build_fresh(spec, classes=3, channels=3).train(), torch.randn(2, 3, 4, 20, 20)


def gradients(network: Network, x: Tensor, plan: ExecutionPlan | None) -> Tensor:
    network.zero_grad()
    if plan:
        plan.place(network)
    with (plan or ExecutionPlan()).autocast(x.device):
        loss = F.cross_entropy(network(x).to(torch.promote_types(x.dtype, torch.float32)), torch.arange(len(x)))
    loss.backward()
    return torch.cat([p.grad.double().flatten() for p in network.parameters() if p.grad is not None])


@needs_compiler
@pytest.mark.parametrize("kind", ["3d", "2d", "2+1d"])
def test_gradients_of_a_network_for_clips_are_close(kind: str) -> None:
    network, x = clips_network(kind)
    exact = gradients(copy.deepcopy(network).double(), x.double(), None)
    torchs = gradients(copy.deepcopy(network), x, None)
    ours = gradients(copy.deepcopy(network), x, ExecutionPlan())
    error, other = ((each - exact).norm() / exact.norm() for each in (ours, torchs))
    assert error < 10 * other + 1e-5
    rounded = gradients(copy.deepcopy(network), x, ExecutionPlan(precision="bfloat16"))
    assert (rounded - exact).norm() < 0.5 * exact.norm()


@needs_compiler
def test_only_training_changes_and_a_deep_copy_uses_its_own_weights() -> None:
    network, x = clips_network("3d")
    unchanged = copy.deepcopy(network)
    ExecutionPlan(fused_norms=False).place(network)
    assert count_swapped(network) == 2  # the convolutions with a stride, or of 8 channels, are not
    unchanged.to(memory_format=torch.channels_last_3d)
    assert conv3d.compiler_version(network) != "none" == conv3d.compiler_version(clips_network("3d", width=16)[0])
    with torch.no_grad():
        assert torch.equal(network(x), unchanged(x))
    average = EMA(network, 0.9).network
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.zero_()
    assert average.train()(x).eq(0).all()
    assert network(x).ne(0).any()
    restore_forwards(network)
    assert not count_swapped(network)


def test_without_the_kernels_torch_computes_winograds_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd.KERNELS, "load", lambda: None)
    network, x = clips_network("3d")
    ExecutionPlan(fused_norms=False).place(network)
    assert not count_swapped(network)
    assert conv3d.compiler_version(network) == "none"
    assert network(x).isfinite().all()
