"""3-D convolutions with fewer products, for training on CPUs with a C compiler: Winograd's algorithm.

F(2 x 2, 3 x 3) (Lavin and Gray 2016, arXiv 1509.09308, section 4.1) computes 2x2 outputs of a 3x3 kernel with 16
products instead of 36. Here it runs over height and width; over time, kernels stay as they are. `winograd.c` transforms
maps, oneDNN multiplies. In float32 it is exact up to rounding; in bfloat16 its rounding errors are about twice those of
oneDNN's convolution.
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
from torch.nn import functional as F

from convatlas.core.memory_format import CHANNELS_LAST
from convatlas.system.c_library import CLibrary

TYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

KERNEL = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
"""(values, taps): the transform of a kernel of 3 taps; of one that is flipped, the values 0 and 3 are exchanged."""

FLIPPED = [4 * row + column for row in (3, 1, 2, 0) for column in (3, 1, 2, 0)]
"""Indices of the 4 x 4 values of a kernel that is flipped along height and width."""

MIN_CHANNELS, MIN_PRODUCTS, MIN_PIXELS = 48, 80, 2048
"""Minimum numbers with which the transforms cost less than they save: channels of inputs and of outputs, products for
each transformed value, and pixels of a batch."""

PAGE, PAGE_OFFSET = 2048, 160
"""The 16 arrays of values begin at different places of a page, or a processor's cache keeps too few of their lines."""

MAX_VALUES = 2**24
"""Maximum number of transformed values at once, a row of tiles at least: what a processor's cache holds."""


class _Kernels(CLibrary):
    source = Path(__file__).with_suffix(".c")

    def declare(self, library: ctypes.CDLL) -> None:
        pointer, size, integer = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
        for name in TYPE_NAMES.values():
            for function in ("split_input", "split_grad", "join_output"):
                getattr(library, f"{function}_{name}").argtypes = [pointer, pointer, *[size] * 6, integer]

    def is_correct(self, library: ctypes.CDLL) -> bool:
        x, weight = _example((2, 20, 3, 5, 7), 24)
        results = []
        for convolve in (_conv3d, lambda x, weight: _Winograd.apply(x, weight, library)):
            inputs = x.clone().requires_grad_(), weight.clone().requires_grad_()
            y = convolve(*inputs)
            y.backward(y.detach().sin())
            results.append([y, *(each.grad for each in inputs)])
        return all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*results, strict=True))

    def is_faster(self, library: ctypes.CDLL) -> bool:
        dtype = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
        x, weight = (each.to(dtype) for each in _example((1, 128, 8, 28, 28), 128))
        seconds: dict[bool, list[float]] = {True: [], False: []}
        with torch.no_grad():
            for _ in range(5):
                for fast in (True, False):
                    start = time.perf_counter()
                    _ = _Winograd.apply(x, weight, library) if fast else _conv3d(x, weight)
                    seconds[fast].append(time.perf_counter() - start)
        return statistics.median(seconds[True]) < statistics.median(seconds[False])


KERNELS = _Kernels()


def _example(shape: Sequence[int], outputs: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = (torch.randn(*each, generator=generator) for each in (shape, (outputs, shape[1], 3, 3, 3)))
    x, weight = (each.contiguous(memory_format=torch.channels_last_3d) for each in tensors)
    return x, weight / 16


def _conv3d(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv3d(x, weight, padding=(weight.shape[2] // 2, 1, 1))


def is_suitable(layer: nn.Module) -> bool:
    """Return whether a layer is a convolution of 3x3 pixels that the algorithm can compute, and may be faster."""
    return (
        type(layer) is nn.Conv3d
        and layer.kernel_size[1:] == (3, 3)
        and layer.kernel_size[0] % 2 == 1
        and layer.padding == (layer.kernel_size[0] // 2, 1, 1)
        and layer.stride == layer.dilation == (1, 1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and min(layer.in_channels, layer.out_channels) >= MIN_CHANNELS
        and _num_products(layer) >= MIN_PRODUCTS
    )


def _num_products(layer: nn.Conv3d) -> float:
    """Return the products for each transformed value of inputs or outputs."""
    inputs, outputs = layer.in_channels, layer.out_channels
    return layer.kernel_size[0] * 2 * inputs * outputs / (inputs + outputs)


def is_fast(x: Tensor) -> bool:
    """Return whether the algorithm can compute a suitable layer's output for x (n, c, t, h, w), and may be faster."""
    return (
        x.device.type == "cpu"
        and x.dtype in TYPE_NAMES
        and x.numel() >= MIN_PIXELS * x.shape[1]
        and x.is_contiguous(memory_format=CHANNELS_LAST[x.ndim])
    )


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Return the convolution of x (n, c, t, h, w) with weight (o, c, kt, 3, 3), padded with zeros to the same size.

    Both are channels_last_3d; x is float32 or bfloat16, weight float32, and the gradients have their types.
    """
    y: Tensor = _Winograd.apply(x, weight, KERNELS.load())
    return y


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, library: ctypes.CDLL) -> Tensor:
        context.save_for_backward(x, weight)
        context.library = library
        y = _maps_like(x, len(weight))
        kernels = _split_kernel(weight, x.dtype)
        for rows in _parts(x):
            values = _split(library, "split_input", x, rows)
            _join(library, [_multiply(*pair) for pair in zip(values, kernels, strict=True)], y, rows)
        return y

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = context.saved_tensors
        library = context.library
        needs_x, needs_weight = context.needs_input_grad[:2]
        grad_y = grad_y.to(x.dtype).contiguous(memory_format=torch.channels_last_3d)
        kernels = _split_kernel(weight, x.dtype)
        grad_x = torch.empty_like(x) if needs_x else None
        grads = torch.zeros(16, len(weight), *weight.shape[1:3])
        for rows in _parts(x):
            if grad_x is not None:  # the convolution of grad_y with the flipped and transposed kernel
                values = _split(library, "split_input", grad_y, rows)
                like = _empty_values(x, rows)
                parts = [
                    _gradients(each, x_value, kernels[index], (True, False))[0]
                    for each, x_value, index in zip(values, like, FLIPPED, strict=True)
                ]
                _join(library, parts, grad_x, rows)
            if needs_weight:
                values, other = _split(library, "split_input", x, rows), _split(library, "split_grad", grad_y, rows)
                for grad, kernel, value, grad_value in zip(grads, kernels, values, other, strict=True):
                    grad.add_(_gradients(grad_value, value, kernel, (False, True))[1][..., 0])
        return grad_x, _join_kernel(grads, weight) if needs_weight else None, None


def _parts(x: Tensor) -> Iterator[range]:
    """Yield rows of tiles of x (n, c, t, h, w), together all of them."""
    tiles = (x.shape[3] + 1) // 2
    parts = min(tiles, -(-4 * x.numel() // MAX_VALUES))
    for part in range(parts):
        yield range(part * tiles // parts, (part + 1) * tiles // parts)


def _maps_like(x: Tensor, channels: int) -> Tensor:
    n, _, *space = x.shape
    return x.new_empty(n, *space, channels).permute(0, 4, 1, 2, 3)


def _empty_values(x: Tensor, rows: range) -> list[Tensor]:
    """Return memory for the 4 x 4 values of tiles, each (n, c, t, tiles) in channels_last."""
    n, channels, frames, _, width = x.shape
    shape = n, frames, len(rows) * ((width + 1) // 2), channels
    size = math.prod(shape)
    stride = size + (PAGE_OFFSET - size) % PAGE
    return [each[:size].view(shape).permute(0, 3, 1, 2) for each in x.new_empty(16, stride)]


def _split(library: ctypes.CDLL, function: str, maps: Tensor, rows: range) -> list[Tensor]:
    values = _empty_values(maps, rows)
    _call(library, function, maps, values, rows)
    return values


def _join(library: ctypes.CDLL, values: Sequence[Tensor], maps: Tensor, rows: range) -> None:
    _call(library, "join_output", maps, [v.contiguous(memory_format=torch.channels_last) for v in values], rows)


def _call(library: ctypes.CDLL, function: str, maps: Tensor, values: Sequence[Tensor], rows: range) -> None:
    n, channels, frames, height, width = maps.shape
    pointers = (ctypes.c_void_p * 16)(*(value.data_ptr() for value in values))
    failed = getattr(library, f"{function}_{TYPE_NAMES[maps.dtype]}")(
        maps.data_ptr(), pointers, n * frames, height, width, channels, rows.start, len(rows), torch.get_num_threads()
    )
    if failed:
        raise MemoryError("cannot allocate memory for the rows of a convolution")


def _split_kernel(weight: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return G g G^T of weight (o, c, kt, 3, 3): 4 x 4 values, each (o, c, kt, 1) in channels_last."""
    outputs, inputs, frames = weight.shape[:3]
    taps = weight.permute(0, 2, 3, 4, 1).reshape(outputs * frames, 9, inputs)
    with torch.autocast("cpu", enabled=False):
        values = torch.kron(KERNEL, KERNEL) @ taps.float()
    values = values.view(outputs, frames, 16, inputs).permute(2, 0, 1, 3).to(dtype).contiguous()
    return list(values.permute(0, 1, 3, 2)[..., None])


def _join_kernel(grads: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of the weight (o, c, kt, 3, 3): G^T v G of the gradients of its values (16, o, c, kt)."""
    outputs, inputs, frames = weight.shape[:3]
    values = grads.permute(1, 3, 0, 2).reshape(outputs * frames, 16, inputs)
    with torch.autocast("cpu", enabled=False):
        taps = torch.kron(KERNEL, KERNEL).T @ values
    return taps.view(outputs, frames, 3, 3, inputs).permute(0, 4, 1, 2, 3).to(weight.dtype)


def _multiply(value: Tensor, kernel: Tensor) -> Tensor:
    return F.conv2d(value, kernel, padding=(kernel.shape[2] // 2, 0))


def _gradients(grad: Tensor, value: Tensor, kernel: Tensor, mask: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
    """Return the gradients of value and kernel; `mask` selects those that are computed."""
    padding = (kernel.shape[2] // 2, 0)
    grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad, value, kernel, None, (1, 1), padding, (1, 1), False, (0, 0), 1, (*mask, False)
    )
    return grads[:2]
