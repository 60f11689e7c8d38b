"""Weights are finite floats: tensors that are anything else are refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from convatlas.errors import ConvatlasError, listed

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_numbers(
    where: object, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], error: type[ConvatlasError]
) -> None:
    """Raise `error` that names the tensor, unless all are dense, of a type that fits, finite, and variances >= 0.

    tensors: by the names in the file. expected: name -> the tensor of the network, of which only the type counts.
    A pass over the weights takes about as long as copying them.
    """
    for name, tensor in tensors.items():
        wanted = expected[name].dtype
        fits = tensor.dtype in _FLOATS if wanted.is_floating_point else not tensor.dtype.is_floating_point
        if not (fits and is_dense(tensor)):
            kind = "a floating-point tensor" if wanted.is_floating_point else "a tensor of integers"
            raise error(f"{where}: {name} must be {kind} (dense, of 16, 32 or 64 bits), got {describe(tensor)}")
        if wanted.is_floating_point:
            _check_finite(where, name, tensor, error)


def is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor has plain numbers in memory: not sparse, quantized, nested, or without memory (meta)."""
    return tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta or tensor.is_nested)


def describe(tensor: Tensor) -> str:
    """Return the type of a tensor, such as "torch.int8" or "a quantized tensor"."""
    kinds = {
        "a tensor without values (device meta)": tensor.is_meta, "a quantized tensor": tensor.is_quantized,
        "a nested tensor": tensor.is_nested, "a sparse tensor": tensor.layout != torch.strided,
    }  # fmt: skip
    return next((kind for kind, applies in kinds.items() if applies), str(tensor.dtype))


def _check_finite(where: object, name: str, tensor: Tensor, error: type[ConvatlasError]) -> None:
    # the sum of finite numbers may overflow, but a finite sum has only finite terms; it is five times faster
    if not math.isfinite(tensor.sum(dtype=torch.float32)) and not torch.isfinite(tensor.float()).all():
        infinite = int(torch.isinf(tensor.float()).sum())
        counts = {"NaN": int(torch.isnan(tensor).sum()), "infinite or too large for float32": infinite}
        got = listed(f"{count:,} of {tensor.numel():,} values {kind}" for kind, count in counts.items() if count)
        raise error(f"{where}: {name} must be finite, got {got}")
    if name.endswith("running_var") and bool((tensor < 0).any()):
        raise error(f"{where}: {name} must be >= 0 (it is a variance), got {float(tensor.min()):.3g}")
