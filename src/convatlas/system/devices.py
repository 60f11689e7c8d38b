"""Compute devices: by name, their support of bfloat16, and out-of-memory errors."""

from __future__ import annotations

import os

import torch

from convatlas.errors import MachineError, brief

OUT_OF_MEMORY_TEXTS = ("allocate memory", "could not create a primitive", "could not create a memory object")
"""Parts of the messages with which torch and oneDNN report out of memory on a CPU."""


def resolve_device(name: str) -> torch.device:
    """Return a device by name: "cpu", "cuda", "cuda:1", "mps", or "auto" for the fastest one available.

    Under torchrun, "cuda" is the GPU with the local rank of this process.
    Raises MachineError if the device is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if name.startswith("cuda:"):
            raise MachineError(f"device: must be cuda under torchrun, got {name}; each rank uses its own GPU")
        if name == "cuda":
            name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if name.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise MachineError(f"device: {name} is not available on this machine; it must be cpu, cuda, mps or auto")
    try:
        device = torch.device(name)
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise MachineError(f"device: {name} is not available on this machine: {brief(error)}") from error


def supports_bfloat16(device: torch.device) -> bool:
    """Return whether the device computes in bfloat16 natively; emulated bfloat16 is 5 to 15 times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception is an out-of-memory error; on CPUs torch raises a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)
