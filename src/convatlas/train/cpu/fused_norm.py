"""Batch norm fused with the activation behind it, for training on CPUs with a C compiler.

torch reads and writes every activation map once for the norm and once for the activation, forward and backward, and
stores the map between them; that is a third of a MobileNet's step. `fused_norm.c` does both in one pass. It is compiled
when it is first needed, which takes a second, and cached. Without a compiler, and where the kernels are not faster,
torch's layers are used.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
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
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from convatlas.errors import ConvatlasError
from convatlas.system.cache import cache_folder
from convatlas.system.files import atomic, write_text
from convatlas.train.swap_forward import swap_forward

SOURCE = Path(__file__).with_suffix(".c")

FLAGS = (
    "-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic", "-march=native", "-fopenmp", "-fno-math-errno",
    "-fno-trapping-math", "-shared", "-fPIC",
    *(["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []),
)  # fmt: skip

LIBRARY = "fused_norm.so"

ACTIVATIONS: dict[type[nn.Module], int] = {nn.ReLU: 1, nn.ReLU6: 2, nn.Hardswish: 3, nn.SiLU: 4}
"""Activation layer -> its number in fused_norm.c, where 0 means none."""

TYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

MIN_VALUES_PER_THREAD = 2**14


def compiler_version(network: nn.Module) -> str:
    """Return the first line of the compiler's --version; "none" if the network does not use the kernels."""
    command = _compiler()
    if command is None or not any(_norms(network)) or not load_kernels():
        return "none"
    return _version(command)


@cache
def _version(command: str) -> str:
    with suppress(OSError, subprocess.SubprocessError):
        output = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
        return output.partition("\n")[0]
    return command


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CC") or "cc")


def compile_in_background(network: nn.Module) -> None:
    """Start to compile the kernels in a thread, if the network can use them and the cache does not have them."""
    if any(_norms(network)) and not _cached_verdict().exists():
        threading.Thread(target=_compile_once, daemon=True).start()


@cache
def load_kernels() -> ctypes.CDLL | None:
    """Return the compiled kernels; None if they cannot be compiled, differ from torch's results or are not faster.

    The verdict is cached as JSON beside the library.
    """
    verdict = _cached_verdict()
    cached_library = verdict.with_suffix(".so")
    with suppress(OSError, ValueError, KeyError, TypeError):  # missing or damaged: compile again
        return _load_library(cached_library) if json.loads(verdict.read_text())["use"] else None
    folder = _compile_once()
    if folder is None:
        return None
    compiled = Path(folder.name) / LIBRARY
    library = _load_library(compiled)
    correct = _is_correct(library)
    use = correct and _is_faster(library)
    with suppress(ConvatlasError, OSError):
        verdict.parent.mkdir(parents=True, exist_ok=True)
        if use:
            with atomic(cached_library) as file:
                file.write(compiled.read_bytes())
        reason = "faster than torch" if use else "not faster than torch" if correct else "results differ from torch"
        write_text(verdict, json.dumps({"use": use, "reason": reason}) + "\n")
    return library if use else None


def _cached_verdict() -> Path:
    """Return the path of the cached verdict for this processor, compiler and torch."""
    key = "\n".join([
        str(_compiler()), *FLAGS, _processor(), torch.__version__, torch.__file__, SOURCE.read_text()
    ])  # fmt: skip
    return cache_folder() / "kernels" / f"fused_norm-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


_LOCK = threading.Lock()


def _compile_once() -> tempfile.TemporaryDirectory[str] | None:
    """Compile the kernels in this process once; return the directory with the library, which lives until exit."""
    with _LOCK:
        return _compile()


@cache
def _compile() -> tempfile.TemporaryDirectory[str] | None:
    command = _compiler()
    if command is None:
        return None
    with suppress(OSError, subprocess.SubprocessError):
        folder = tempfile.TemporaryDirectory()
        library = Path(folder.name) / LIBRARY
        subprocess.run([command, *FLAGS, "-o", library, SOURCE, "-lm"], capture_output=True, timeout=60, check=True)
        return folder if library.exists() else None
    return None


def _processor() -> str:
    """Return the instruction sets of the processor: -march=native uses all of them."""
    with suppress(OSError):
        return next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    return platform.processor()


def _load_library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    pointer, size, real, integer = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
    for name in TYPE_NAMES.values():
        forward, backward = (getattr(library, f"{direction}_{name}") for direction in ("forward", "backward"))
        forward.argtypes = [integer, pointer, pointer, size, size, *[pointer] * 6, real, real, integer]
        backward.argtypes = [integer, pointer, pointer, pointer, size, size, *[pointer] * 6, integer]
    return library


def _is_correct(library: ctypes.CDLL) -> bool:
    """Return whether the kernels compute the same as torch."""
    x = torch.linspace(-3, 5, 2 * 17 * 15).view(2, 17, 3, 5).contiguous(memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(17)
    y, mean, _ = _run_forward(library, x, norm, ACTIVATIONS[nn.ReLU6])
    return torch.allclose(y, nn.BatchNorm2d(17)(x).clamp(0, 6), atol=1e-4) and torch.allclose(mean, x.mean((0, 2, 3)))


def _is_faster(library: ctypes.CDLL) -> bool:
    """Return whether the kernels are faster than torch's layers, timed in turns.

    They may be slower where torch has another OpenMP runtime (Intel's or LLVM's), whose threads compete for the cores.
    """
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


def _norms(network: nn.Module) -> Iterator[tuple[nn.BatchNorm2d, nn.Module | None]]:
    """Yield (batch norm, the activation right behind it in the same chain or None) where the kernels apply."""
    whole = getattr(network, "chains_run_whole", True)
    for parent in network.modules():
        layers = list(parent._modules.values())
        behind = [*layers[1:], None] if whole and isinstance(parent, nn.Sequential) else [None] * len(layers)
        for norm, after in zip(layers, behind, strict=True):
            if type(norm) is nn.BatchNorm2d and norm.affine and norm.track_running_stats and norm.momentum is not None:
                yield norm, after if type(after) in ACTIVATIONS else None


def install(network: nn.Module) -> None:
    """Fuse the batch norms of a network with their activations while it trains, if the kernels are available."""
    norms = list(_norms(network))
    if norms and load_kernels():
        for norm, activation in norms:
            swap_forward(norm, _forward, activation)
            if activation is not None:
                swap_forward(activation, _identity)


def _identity(layer: nn.Module, x: Tensor) -> Tensor:
    """Replace an activation that is fused into the norm before it."""
    return x


def _forward(norm: nn.BatchNorm2d, activation: nn.Module | None, x: Tensor) -> Tensor:
    if not (norm.training and torch.is_grad_enabled() and _is_supported(x, norm)):
        y = nn.BatchNorm2d.forward(norm, x)
        plain: Tensor = y if activation is None else type(activation).forward(activation, y)
        return plain
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    kind = 0 if activation is None else ACTIVATIONS[type(activation)]
    fused: Tensor = _FusedNorm.apply(x, norm.weight, norm.bias, norm, kind)
    return fused


def _is_supported(x: Tensor, norm: nn.BatchNorm2d) -> bool:
    return (
        x.device.type == norm.weight.device.type == "cpu"
        and x.dtype in TYPE_NAMES
        and norm.weight.dtype == torch.float32
        and x.ndim == 4
        and x.shape[1] == norm.num_features
        and x.numel() > x.shape[1]
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _run_forward(library: ctypes.CDLL, x: Tensor, norm: nn.BatchNorm2d, kind: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (y, mean, inverse standard deviation) of x (n, c, h, w); updates the running statistics."""
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
    """Call a kernel. maps: of the same shape (n, c, h, w). vectors: (c,). numbers: what the kernel takes besides."""
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
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, kind: int) -> Tensor:
        library = load_kernels()
        assert library is not None
        y, mean, inv_std = _run_forward(library, x, norm, kind)
        context.save_for_backward(x, weight, bias, mean, inv_std)
        context.kind = kind
        return y

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, bias, mean, inv_std = context.saved_tensors
        grad_y = grad_y.contiguous(memory_format=torch.channels_last)
        grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        library = load_kernels()
        assert library is not None
        vectors = (weight, bias, mean, inv_std, grad_weight, grad_bias)
        _call(library, "backward", context.kind, (x, grad_y, grad_x), vectors)
        return grad_x, grad_weight, grad_bias, None, None
