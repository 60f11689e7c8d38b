"""What computes: the processor or a GPU, by its name."""

from __future__ import annotations

import os

import torch

from convatlas.errors import RunError, brief


def device_named(name: str) -> torch.device:
    """Return a device by its name; "auto" is the fastest here. Raises RunError if it is not there.

    Each of the processes that torchrun started on a machine has a GPU of its own: "cuda" is the one with its number.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if name.startswith("cuda:"):
            raise RunError(f"device {name!r}: of several processes each has a GPU of its own; write cuda")
        if name == "cuda":
            name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RunError(f"device {name!r}: choose cpu, cuda, mps or auto")
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"device {name!r} is not available here: {brief(error)}") from error
