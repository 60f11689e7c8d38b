"""What was measured on this machine, remembered beside the cache: which of several ways is the fastest."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from convatlas._version import __version__
from convatlas.errors import ConvatlasError
from convatlas.system.cache import cache_folder
from convatlas.system.files import write_text

MAX_OTHER_CPU_SHARE = 0.1
"""Share of the cores that other work may take while ways are compared; what is found beside more is not remembered."""


class TuningCache:
    """A table of choices in the cache folder, by a key of everything that they depend on."""

    def __init__(self, name: str, device: torch.device, *depends: object) -> None:
        """name: of the file. depends: plain data, to which the machine and the versions are added."""
        self.path = cache_folder() / name
        named = json.dumps([*depends, _machine(device)], sort_keys=True)
        self.key = hashlib.sha256(named.encode()).hexdigest()[:16]

    def choice(self) -> Any:
        """Return what was remembered, as plain data; None if nothing was."""
        return self._known().get(self.key)

    def keep(self, choice: object) -> None:
        """Remember a choice; a cache that cannot be written costs a few seconds next time, and nothing else."""
        with suppress(ConvatlasError, OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps({**self._known(), self.key: choice}, indent=1) + "\n")

    def _known(self) -> dict[str, Any]:
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def _machine(device: torch.device) -> list[str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return [device.type, name, str(torch.get_num_threads()), torch.__version__, __version__]


class CpuContention:
    """How much of the machine's cores other processes take, from the making of this on; 0 where nobody can tell."""

    def __init__(self, read: Callable[[], tuple[float, float]] | None = None) -> None:
        self._read = read or _jiffies
        self._first, self._own = self._read(), time.process_time()

    def share(self) -> float:
        (total, busy), own = self._read(), time.process_time()
        span = total - self._first[0]
        return max(0.0, busy - self._first[1] - (own - self._own)) / span if span > 0 else 0.0


def _jiffies() -> tuple[float, float]:
    """Return the seconds of all cores since the start of the system, and those in which they worked (Linux)."""
    with suppress(OSError, ValueError, IndexError):
        user, nice, system, idle, wait, *rest = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
        busy = user + nice + system + sum(rest)
        return (busy + idle + wait) / 100, busy / 100
    return 0.0, 0.0
