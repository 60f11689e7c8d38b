"""Batch norm fused with the activation behind it, for training on CPUs with a C compiler.

torch reads and writes every activation map once for the norm and once for the activation, forward and backward, and
stores the map between them; that is a third of a MobileNet's step. `fused_norm.c` does both in one pass.
"""

from __future__ import annotations

import ctypes
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from convatlas.core.memory_format import CHANNELS_LAST
from convatlas.system.c_library import CLibrary, compiler, version_of
from convatlas.train.swap_forward import swap_forward

Norm = nn.BatchNorm2d | nn.BatchNorm3d

NORMS: dict[type[nn.Module], int] = {nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}
"""Batch norm -> the number of axes of its input."""

ACTIVATIONS: dict[type[nn.Module], int] = {nn.ReLU: 1, nn.ReLU6: 2, nn.Hardswish: 3, nn.SiLU: 4}
"""Activation layer -> its number in fused_norm.c, where 0 means none."""

TYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

MIN_VALUES_PER_THREAD = 2**14


class _Kernels(CLibrary):
    source = Path(__file__).with_suffix(".c")

    def declare(self, library: ctypes.CDLL) -> None:
        pointer, size, real, integer = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
        for name in TYPE_NAMES.values():
            forward, backward = (getattr(library, f"{direction}_{name}") for direction in ("forward", "backward"))
            forward.argtypes = [integer, pointer, pointer, size, size, *[pointer] * 6, real, real, integer]
            backward.argtypes = [integer, pointer, pointer, pointer, size, size, *[pointer] * 6, integer]

    def is_correct(self, library: ctypes.CDLL) -> bool:
        x = torch.linspace(-3, 5, 2 * 17 * 15).view(2, 17, 3, 5).contiguous(memory_format=torch.channels_last)
        norm = nn.BatchNorm2d(17)
        y, mean, _ = _run_forward(library, x, norm, ACTIVATIONS[nn.ReLU6])
        exact = nn.BatchNorm2d(17)(x).clamp(0, 6)
        return torch.allclose(y, exact, atol=1e-4) and torch.allclose(mean, x.mean((0, 2, 3)))

    def is_faster(self, library: ctypes.CDLL) -> bool:
        shape = (8, 64, 56, 56)
        x = torch.linspace(-3, 3, math.prod(shape)).view(shape).contiguous(memory_format=torch.channels_last)
        norm = nn.BatchNorm2d(64)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        with torch.no_grad():
            for _ in range(8):
                for fused in (True, False):
                    start = time.perf_counter()
                    _ = _run_forward(library, x, norm, ACTIVATIONS[nn.ReLU6]) if fused else norm(x).clamp_(0, 6)
                    seconds[fused].append(time.perf_counter() - start)
        return statistics.median(seconds[True]) < statistics.median(seconds[False])


KERNELS = _Kernels()


def compiler_version(network: nn.Module) -> str:
    """Return the first line of the compiler's --version; "none" if the network does not use the kernels."""
    command = compiler()
    if command is None or not any(_norms(network)) or not KERNELS.load():
        return "none"
    return version_of(command)


def compile_in_background(network: nn.Module) -> None:
    """Start to compile the kernels in a thread, if the network can use them and the cache does not have them."""
    if any(_norms(network)):
        KERNELS.compile_in_background()


def _norms(network: nn.Module) -> Iterator[tuple[Norm, nn.Module | None]]:
    """Yield (batch norm, the activation right behind it in the same chain or None) where the kernels apply."""
    whole = getattr(network, "chains_run_whole", True)
    for parent in network.modules():
        layers = list(parent._modules.values())
        behind = [*layers[1:], None] if whole and isinstance(parent, nn.Sequential) else [None] * len(layers)
        for norm, after in zip(layers, behind, strict=True):
            if isinstance(norm, Norm) and type(norm) in NORMS and _has_statistics(norm):
                yield norm, after if type(after) in ACTIVATIONS else None


def _has_statistics(norm: Norm) -> bool:
    return norm.affine and norm.track_running_stats and norm.momentum is not None


def install(network: nn.Module) -> None:
    """Fuse the batch norms of a network with their activations while it trains, if the kernels are available."""
    norms = list(_norms(network))
    if norms and KERNELS.load():
        for norm, activation in norms:
            swap_forward(norm, _forward, activation)
            if activation is not None:
                swap_forward(activation, _identity)


def _identity(layer: nn.Module, x: Tensor) -> Tensor:
    """Replace an activation that is fused into the norm before it."""
    return x


def _forward(norm: Norm, activation: nn.Module | None, x: Tensor) -> Tensor:
    if not (norm.training and torch.is_grad_enabled() and _is_supported(x, norm)):
        y = type(norm).forward(norm, x)
        plain: Tensor = y if activation is None else type(activation).forward(activation, y)
        return plain
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    kind = 0 if activation is None else ACTIVATIONS[type(activation)]
    fused: Tensor = _FusedNorm.apply(x, norm.weight, norm.bias, norm, kind)
    return fused


def _is_supported(x: Tensor, norm: Norm) -> bool:
    return (
        x.device.type == norm.weight.device.type == "cpu"
        and x.dtype in TYPE_NAMES
        and norm.weight.dtype == torch.float32
        and x.ndim == NORMS[type(norm)]
        and x.shape[1] == norm.num_features
        and x.numel() > x.shape[1]
        and x.is_contiguous(memory_format=CHANNELS_LAST[x.ndim])
    )


def _run_forward(library: ctypes.CDLL, x: Tensor, norm: Norm, kind: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (y, mean, inverse standard deviation) of x (n, c, *space); updates the running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    y, mean, inv_std = torch.empty_like(x), torch.empty_like(norm.weight), torch.empty_like(norm.weight)
    vectors = (norm.weight, norm.bias, mean, inv_std, norm.running_mean, norm.running_var)
    _call(library, "forward", kind, (x, y), vectors, norm.momentum, norm.eps)
    return y, mean, inv_std


def _call(
    library: ctypes.CDLL, direction: str, kind: int, maps: Sequence[Tensor], vectors: Sequence[Tensor],
    *numbers: float | None,
) -> None:  # fmt: skip
    """Call a kernel. maps: of the same shape (n, c, *space). vectors: (c,). numbers: what the kernel takes besides."""
    x = maps[0]
    failed = getattr(library, f"{direction}_{TYPE_NAMES[x.dtype]}")(
        kind, *(each.data_ptr() for each in maps), x.numel() // x.shape[1], x.shape[1],
        *(each.data_ptr() for each in vectors), *numbers, _num_threads(x),
    )  # fmt: skip
    if failed:
        raise MemoryError("cannot allocate memory for the sums of a batch norm")


def _num_threads(x: Tensor) -> int:
    return max(1, min(torch.get_num_threads(), x.numel() // MIN_VALUES_PER_THREAD))


class _FusedNorm(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: Norm, kind: int) -> Tensor:
        library = KERNELS.load()
        assert library is not None
        y, mean, inv_std = _run_forward(library, x, norm, kind)
        context.save_for_backward(x, weight, bias, mean, inv_std)
        context.kind = kind
        return y

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, bias, mean, inv_std = context.saved_tensors
        grad_y = grad_y.contiguous(memory_format=CHANNELS_LAST[x.ndim])
        grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        library = KERNELS.load()
        assert library is not None
        vectors = (weight, bias, mean, inv_std, grad_weight, grad_bias)
        _call(library, "backward", context.kind, (x, grad_y, grad_x), vectors)
        return grad_x, grad_weight, grad_bias, None, None
