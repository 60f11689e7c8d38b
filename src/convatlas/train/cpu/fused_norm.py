"""Batch norm and the activation behind it in one pass over memory, for training on CPUs with a C compiler at hand.

torch reads and writes every map for the norm and for the activation, forward and backward, and keeps what is between
them; a third of a MobileNet's step goes there. `fused_norm.c` does both at once. It is compiled in a second when it is
first needed, and kept in the cache; where there is no compiler, layers stay torch's own.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from convatlas.errors import ConvatlasError
from convatlas.system.cache import cache_folder
from convatlas.system.files import atomic

SOURCE = Path(__file__).with_suffix(".c")

FLAGS = (
    "-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic", "-march=native", "-fopenmp", "-fno-math-errno",
    "-fno-trapping-math", "-shared", "-fPIC", *(("-mprefer-vector-width=512",) * (platform.machine() == "x86_64")),
)  # fmt: skip

BUILT = "norms.so"

KINDS: dict[type[nn.Module], int] = {nn.ReLU: 1, nn.ReLU6: 2, nn.Hardswish: 3, nn.SiLU: 4}
"""The activations that the kernels know, and their numbers there; 0 is none."""

TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

WORK = 2**14
"""So many values are worth a thread."""


def compiler(network: nn.Module) -> str:
    """Return what compiled the kernels that a network can train with, by name and version; "none" if there are none."""
    command = _command()
    if command is None or not any(_pairs(network)) or not kernels():
        return "none"
    return _version(command)


@cache
def _version(command: str) -> str:
    with suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
        return told.partition("\n")[0]
    return command


def _command() -> str | None:
    return shutil.which(os.environ.get("CC") or "cc")


def prepare(network: nn.Module) -> None:
    """Begin to compile the kernels, if a network needs them and there are none yet, while other work goes on."""
    if any(_pairs(network)) and not _kept().exists():
        threading.Thread(target=_compiled, daemon=True).start()


@cache
def kernels() -> ctypes.CDLL | None:
    """Return the kernels; None where they cannot be compiled, do not compute what torch does, or are not faster."""
    kept = _kept()
    with suppress(OSError):
        # an empty file says that torch is faster here
        return _loaded(kept) if kept.stat().st_size else None
    folder = _compiled()
    if folder is None:
        return None
    built = Path(folder.name) / BUILT
    library = _loaded(built)
    useful = _agrees(library) and _is_faster(library)
    with suppress(ConvatlasError, OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with atomic(kept) as file:
            file.write(built.read_bytes() if useful else b"")
    return library if useful else None


def _kept() -> Path:
    """Return where the cache keeps the kernels for this processor, compiler and torch."""
    told = "\n".join([
        str(_command()), *FLAGS, _processor(), torch.__version__, torch.__file__, SOURCE.read_text()
    ])  # fmt: skip
    return cache_folder() / "kernels" / f"norms-{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"


_LOCK = threading.Lock()


def _compiled() -> tempfile.TemporaryDirectory[str] | None:
    """Compile the kernels, once; return the folder that holds them until the process ends."""
    with _LOCK:
        return _compile()


@cache
def _compile() -> tempfile.TemporaryDirectory[str] | None:
    command = _command()
    if command is None:
        return None
    with suppress(OSError, subprocess.SubprocessError):
        folder = tempfile.TemporaryDirectory()
        built = Path(folder.name) / BUILT
        subprocess.run([command, *FLAGS, "-o", built, SOURCE, "-lm"], capture_output=True, timeout=60, check=True)
        return folder if built.exists() else None
    return None


def _processor() -> str:
    """Return what tells this processor from others: kernels use all of its instructions."""
    with suppress(OSError):
        return next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    return platform.processor()


def _loaded(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    p, size, real, number = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
    for name in TYPES.values():
        forward, backward = (getattr(library, f"{way}_{name}") for way in ("forward", "backward"))
        forward.argtypes = [number, p, p, size, size, *[p] * 6, real, real, number]
        backward.argtypes = [number, p, p, p, size, size, *[p] * 6, number]
    return library


def _agrees(library: ctypes.CDLL) -> bool:
    """Return whether the kernels compute what torch does."""
    x = torch.linspace(-3, 5, 2 * 17 * 15).view(2, 17, 3, 5).contiguous(memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(17)
    y, mean, _ = _normed(library, x, norm, KINDS[nn.ReLU6])
    return torch.allclose(y, nn.BatchNorm2d(17)(x).clamp(0, 6), atol=1e-4) and torch.allclose(mean, x.mean((0, 2, 3)))


def _is_faster(library: ctypes.CDLL) -> bool:
    """Return whether the kernels are faster than torch's, in turns with them.

    They may not be where torch has threads of another kind (OpenMP of Intel or LLVM), which get in each other's way.
    """
    shape = (8, 64, 56, 56)
    x = torch.linspace(-3, 3, math.prod(shape)).view(shape).contiguous(memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(64)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with torch.no_grad():
        for _ in range(8):
            for own in (True, False):
                begun = time.perf_counter()
                _ = _normed(library, x, norm, KINDS[nn.ReLU6]) if own else norm(x).clamp_(0, 6)
                seconds[own].append(time.perf_counter() - begun)
    return statistics.median(seconds[True]) < statistics.median(seconds[False])


def _pairs(network: nn.Module) -> Iterator[tuple[nn.BatchNorm2d, nn.Module | None]]:
    """Yield the batch norms that the kernels can do, each with the activation right behind it in the same chain."""
    for parent in network.modules():
        layers = list(parent._modules.values())
        behind = [*layers[1:], None] if isinstance(parent, nn.Sequential) else [None] * len(layers)
        for norm, after in zip(layers, behind, strict=True):
            if type(norm) is nn.BatchNorm2d and norm.affine and norm.track_running_stats and norm.momentum is not None:
                yield norm, after if type(after) in KINDS else None


def install(network: nn.Module) -> None:
    """Let the batch norms of a network do their activations while it learns, if there are kernels."""
    pairs = list(_pairs(network))
    if pairs and kernels():
        for norm, act in pairs:
            norm.forward = partial(_forward, norm, act)  # type: ignore[method-assign]
            if act is not None:
                act.forward = _done


def _done(x: Tensor) -> Tensor:
    """Stand in for an activation that the norm before it did."""
    return x


def _forward(norm: nn.BatchNorm2d, act: nn.Module | None, x: Tensor) -> Tensor:
    if not (norm.training and torch.is_grad_enabled() and _fits(x, norm)):
        y = nn.BatchNorm2d.forward(norm, x)
        plain: Tensor = y if act is None else type(act).forward(act, y)
        return plain
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    found: Tensor = _Norm.apply(x, norm.weight, norm.bias, norm, 0 if act is None else KINDS[type(act)])
    return found


def _fits(x: Tensor, norm: nn.BatchNorm2d) -> bool:
    return (
        x.device.type == norm.weight.device.type == "cpu"
        and x.dtype in TYPES
        and norm.weight.dtype == torch.float32
        and x.ndim == 4
        and x.shape[1] == norm.num_features
        and x.numel() > x.shape[1]
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _normed(library: ctypes.CDLL, x: Tensor, norm: nn.BatchNorm2d, kind: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normed and activated maps, mean, and one over the deviation; moves the running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    y, mean, deviation = torch.empty_like(x), torch.empty_like(norm.weight), torch.empty_like(norm.weight)
    parts = (norm.weight, norm.bias, mean, deviation, norm.running_mean, norm.running_var)
    _call(library, "forward", kind, (x, y), parts, norm.momentum, norm.eps)
    return y, mean, deviation


def _call(
    library: ctypes.CDLL, way: str, kind: int, maps: Sequence[Tensor], parts: Sequence[Tensor], *numbers: float | None
) -> None:
    """Call a kernel with maps of one shape, what there is of each channel, and numbers."""
    x = maps[0]
    failed = getattr(library, f"{way}_{TYPES[x.dtype]}")(
        kind, *(each.data_ptr() for each in maps), x.numel() // x.shape[1], x.shape[1],
        *(each.data_ptr() for each in parts), *numbers, _threads(x),
    )  # fmt: skip
    if failed:
        raise MemoryError("cannot allocate memory for the sums of a batch norm")


def _threads(x: Tensor) -> int:
    return max(1, min(torch.get_num_threads(), x.numel() // WORK))


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, kind: int) -> Tensor:
        library = kernels()
        assert library is not None
        y, mean, deviation = _normed(library, x, norm, kind)
        context.save_for_backward(x, weight, bias, mean, deviation)
        context.kind = kind
        return y

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, bias, mean, deviation = context.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x, of_weight, of_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        library = kernels()
        assert library is not None
        parts = (weight, bias, mean, deviation, of_weight, of_bias)
        _call(library, "backward", context.kind, (x, gradient, of_x), parts)
        return of_x, of_weight, of_bias, None, None
