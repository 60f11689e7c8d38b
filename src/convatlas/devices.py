"""What computes: the processor or a GPU, by its name."""

from __future__ import annotations

import torch

from convatlas.errors import RunError, brief


def device_named(name: str) -> torch.device:
    """Return a device by its name; "auto" is the fastest here. Raises RunError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RunError(f"device {name!r}: choose cpu, cuda, mps or auto")
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"device {name!r} is not available here: {brief(error)}") from error
