"""RoIAlign of feature pyramids on several threads, on CPUs with a C compiler.

torchvision's kernels for CPUs use one thread, and read maps channel by channel: a third of a training step. Those of
`roi_align.c` compute the same sums in the same order.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torchvision.ops import MultiScaleRoIAlign, roi_align

from convatlas.system.c_library import FLAGS, CLibrary

TYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class Pooling(NamedTuple):
    """How RoIs are pooled: bins per axis, samples per bin and axis (0: one for each pixel), and the scale of each map.

    aligned: pixel centers are at half coordinates, as in Detectron2; torchvision's detectors have them at whole ones.
    """

    rows: int
    columns: int
    sampling: int
    scales: tuple[float, ...]
    aligned: bool = False


class _Map(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("height", ctypes.c_long), ("width", ctypes.c_long), ("scale", ctypes.c_float),
    ]  # fmt: skip


class _Kernels(CLibrary):
    source = Path(__file__).with_suffix(".c")
    flags = (*FLAGS, "-ffp-contract=off")

    def declare(self, library: ctypes.CDLL) -> None:
        pointer, size, integer = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
        for name in TYPE_NAMES.values():
            for direction in ("forward", "backward"):
                function = getattr(library, f"{direction}_{name}")
                function.argtypes = [ctypes.POINTER(_Map), *[pointer] * 3, size, size, *[integer] * 5]

    def is_correct(self, library: ctypes.CDLL) -> bool:
        maps, rois, levels, pooling = _example(channels=19, count=12)
        exact = _pool_by_torchvision(maps, rois, levels, pooling)
        return torch.allclose(_run_forward(library, maps, rois, levels, pooling), exact, atol=1e-5)

    def is_faster(self, library: ctypes.CDLL) -> bool:
        maps, rois, levels, pooling = _example(channels=256, count=64)
        seconds: dict[Any, list[float]] = {False: [], True: []}
        for _ in range(5):
            for ours in (True, False):
                start = time.perf_counter()
                if ours:
                    _run_forward(library, maps, rois, levels, pooling)
                else:
                    _pool_by_torchvision(maps, rois, levels, pooling)
                seconds[ours].append(time.perf_counter() - start)
        return min(seconds[True]) < min(seconds[False])


KERNELS = _Kernels()


def _example(channels: int, count: int) -> tuple[list[Tensor], Tensor, Tensor, Pooling]:
    """Return two maps of two images, RoIs (count, 5) and the level of each."""
    shapes = [(2, channels, 24, 20), (2, channels, 12, 10)]
    maps = [torch.linspace(-1, 1, 2 * channels * h * w).sin().view(2, channels, h, w) for _, _, h, w in shapes]
    corner = torch.linspace(-4, 60, count)
    rois = torch.stack([torch.arange(count) % 2, corner, corner.flip(0), corner + 30, corner.flip(0) + 20], 1)
    channels_last = [each.contiguous(memory_format=torch.channels_last) for each in maps]
    return channels_last, rois, torch.arange(count) // 2 % 2, Pooling(7, 7, 2, (0.25, 0.125))


def _pool_by_torchvision(maps: Sequence[Tensor], rois: Tensor, levels: Tensor, pooling: Pooling) -> Tensor:
    pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], pooling.rows, pooling.columns)
    for level, (each, scale) in enumerate(zip(maps, pooling.scales, strict=True)):
        which = levels == level
        size = (pooling.rows, pooling.columns)
        pooled[which] = roi_align(each, rois[which], size, scale, pooling.sampling, pooling.aligned)
    return pooled


class RegionPool(MultiScaleRoIAlign):  # type: ignore[misc]  # torchvision carries no types
    """torchvision's layer, computed by the kernels if they are available."""

    def forward(self, x: Mapping[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Return the maps pooled in boxes (k, 4) of each image as (boxes, channels, rows, columns).

        x: maps of the neck by name. boxes: in pixels. image_shapes: (height, width) of each image.
        """
        maps = [each for name, each in x.items() if name in self.featmap_names]
        known = self.scales is not None and self.map_levels is not None
        if not known or not _is_supported(maps, boxes) or KERNELS.load() is None:
            plain: Tensor = super().forward(x, boxes, image_shapes)
            return plain
        corners = torch.cat(boxes)
        images = torch.cat([each.new_full((len(each), 1), i) for i, each in enumerate(boxes)])
        levels = self.map_levels(boxes) if len(maps) > 1 else torch.zeros(len(corners), dtype=torch.int64)
        rows, columns = self.output_size
        pooling = Pooling(rows, columns, self.sampling_ratio, tuple(self.scales))
        pooled: Tensor = _RoIAlign.apply(torch.cat([images, corners], 1).contiguous(), levels, pooling, *maps)
        return pooled


def _is_supported(maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> bool:
    return (
        not (torch.jit.is_tracing() or torch.compiler.is_compiling())  # type: ignore[attr-defined]
        and len(boxes) > 0
        and all(each.device.type == "cpu" and each.dtype == torch.float32 for each in boxes)
        and not any(each.requires_grad for each in boxes)
        and all(each.device.type == "cpu" and each.dtype == maps[0].dtype for each in maps)
        and maps[0].dtype in TYPE_NAMES
    )


def _run_forward(
    library: ctypes.CDLL, maps: Sequence[Tensor], rois: Tensor, levels: Tensor, pooling: Pooling
) -> Tensor:
    """Return the pooled maps (RoIs, channels, rows, columns)."""
    pooled = maps[0].new_empty(len(rois), maps[0].shape[1], pooling.rows, pooling.columns)
    _call(library, "forward", maps, rois, levels, pooled, pooling)
    return pooled


def _call(
    library: ctypes.CDLL, direction: str, maps: Sequence[Tensor], rois: Tensor, levels: Tensor, pooled: Tensor,
    pooling: Pooling,
) -> None:  # fmt: skip
    """Call a kernel. maps: channels_last."""
    records = (_Map * len(maps))(*(
        _Map(each.data_ptr(), *each.shape[2:], scale) for each, scale in zip(maps, pooling.scales, strict=True)
    ))  # fmt: skip
    failed = getattr(library, f"{direction}_{TYPE_NAMES[pooled.dtype]}")(
        records, rois.data_ptr(), levels.data_ptr(), pooled.data_ptr(), len(rois), maps[0].shape[1], pooling.rows,
        pooling.columns, pooling.sampling, pooling.aligned, torch.get_num_threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError("cannot allocate memory for RoIAlign")


class _RoIAlign(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rois: Tensor, levels: Tensor, pooling: Pooling, *maps: Tensor) -> Tensor:
        library = KERNELS.load()
        assert library is not None
        context.save_for_backward(rois, levels)
        context.pooling, context.shapes = pooling, [each.shape for each in maps]
        channels_last = [each.contiguous(memory_format=torch.channels_last) for each in maps]
        return _run_forward(library, channels_last, rois, levels, pooling)

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        library = KERNELS.load()
        assert library is not None
        rois, levels = context.saved_tensors
        grads = [torch.zeros(n, h, w, c).permute(0, 3, 1, 2) for n, c, h, w in context.shapes]
        _call(library, "backward", grads, rois, levels, grad.contiguous(), context.pooling)
        return None, None, None, *(each.to(grad.dtype) for each in grads)
