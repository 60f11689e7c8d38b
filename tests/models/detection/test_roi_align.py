"""RoIAlign on several threads: equal to torchvision's, forward and backward."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from convatlas.models.detection import roi_align
from convatlas.models.detection.roi_align import RegionPool

needs_compiler = pytest.mark.skipif(roi_align.KERNELS.compile() is None, reason="there is no C compiler")

IMAGE = (64, 96)
NOTHING = torch.zeros(0, 4)
BOXES = [
    torch.tensor([[0, 0, 96, 64], [10.5, 3, 12.25, 60], [90, 60, 96, 64], [5, 5, 5.5, 5.5], [-9, -7, 30, 20]]).float(),
    NOTHING,
    torch.tensor([[40, 20, 80, 50], [0, 0, 7, 64]]).float(),
]


@pytest.fixture(autouse=True, scope="module")
def _assume_faster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use the kernels even if other tests keep the cores busy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roi_align.KERNELS, "is_faster", lambda _: True)
        patch.setenv("CONVATLAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        roi_align.KERNELS.forget()
        yield
    roi_align.KERNELS.forget()


def pools(levels: int, *, size: int | tuple[int, int] = 7, sampling: int = 2) -> tuple[RegionPool, MultiScaleRoIAlign]:
    """Return our layer and torchvision's for maps at strides 4, 8, ..."""
    both = []
    for kind in (RegionPool, MultiScaleRoIAlign):
        pool = kind([str(i) for i in range(levels)], size, sampling, canonical_scale=40)
        pool.scales = [2.0 ** -(2 + i) for i in range(levels)]
        pool.map_levels = initLevelMapper(2, 1 + levels, canonical_scale=40)
        both.append(pool)
    return both[0], both[1]


def maps(channels: int, levels: int, *, kind: torch.dtype = torch.float32, channels_last: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(channels)
    order = torch.channels_last if channels_last else torch.contiguous_format
    sizes = [(16 // 2**i, 24 // 2**i) for i in range(levels)]
    return [torch.randn(3, channels, *size, generator=generator).to(kind, memory_format=order) for size in sizes]


def pool_and_backward(pool: MultiScaleRoIAlign, x: list[Tensor], boxes: list[Tensor]) -> list[Tensor]:
    """Return the pooled maps and the gradients of the maps."""
    leaves = [each.detach().clone().requires_grad_() for each in x]
    y = pool({str(i): each for i, each in enumerate(leaves)}, boxes, [IMAGE] * 3)
    (y.float() * torch.linspace(-1, 1, y.numel()).sin().view_as(y)).sum().backward()
    return [y.detach(), *(each.grad for each in leaves if each.grad is not None)]


@needs_compiler
@pytest.mark.parametrize("channels", [1, 20, 64, 100])
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_outputs_and_gradients_equal_torchvisions(channels: int, levels: int, channels_last: bool) -> None:
    ours, torchvisions = pools(levels, size=(7, 5))
    x = maps(channels, levels, channels_last=channels_last)
    exact = pool_and_backward(torchvisions, x, BOXES)
    assert len(exact) == levels + 1
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            results = pool_and_backward(ours, x, BOXES)
        finally:
            torch.set_num_threads(1)
        for result, reference in zip(results, exact, strict=True):
            torch.testing.assert_close(result, reference, rtol=1e-6, atol=1e-6)  # equal to the bit on x86


@needs_compiler
@pytest.mark.parametrize("sampling", [0, 3])
def test_other_numbers_of_samples(sampling: int) -> None:
    ours, torchvisions = pools(2, size=4, sampling=sampling)
    results = [pool_and_backward(pool, maps(18, 2), BOXES) for pool in (ours, torchvisions)]
    for result, reference in zip(*results, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-5, atol=1e-5)


@needs_compiler
def test_in_bfloat16_results_are_those_of_float32_rounded_once() -> None:
    x = maps(20, 2, kind=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        results = [pool_and_backward(pool, x, BOXES) for pool in pools(2)]
    for result, reference in zip(*results, strict=True):
        assert result.dtype == torch.bfloat16
        torch.testing.assert_close(result, reference, rtol=0.01, atol=1e-6)


@needs_compiler
def test_no_regions_and_types_without_a_kernel() -> None:
    ours, torchvisions = pools(2)
    x = maps(8, 2)
    y, *grads = pool_and_backward(ours, x, [NOTHING] * 3)
    assert y.shape == (0, 8, 7, 7)
    assert not any(grad.any() for grad in grads)
    double = {str(i): each.double() for i, each in enumerate(x)}
    boxes = [each.double() for each in BOXES]
    assert torch.equal(ours(double, boxes, [IMAGE] * 3), torchvisions(double, boxes, [IMAGE] * 3))
    nan = [torch.full((1, 4), float("nan")), NOTHING, NOTHING]
    assert not ours({str(i): each for i, each in enumerate(x)}, nan, [IMAGE] * 3).any()


@needs_compiler
def test_a_copy_pools_the_same() -> None:
    ours, _ = pools(2)
    x = maps(8, 2)
    results = [pool_and_backward(pool, x, BOXES) for pool in (ours, copy.deepcopy(ours))]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_without_a_compiler_torchvisions_kernels_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    kernels = type(roi_align.KERNELS)()
    monkeypatch.setattr(roi_align, "KERNELS", kernels)
    assert kernels.load() is None
    results = [pool_and_backward(pool, maps(8, 2), BOXES) for pool in pools(2)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
