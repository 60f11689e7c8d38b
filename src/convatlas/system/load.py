"""The load of other processes on the CPU cores that this process may use."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MAX_QUIET_SHARE = 0.1
"""Share of the cores that other processes may use while a machine counts as quiet."""

SPIN_COUNT = 10_000
"""Iterations that an idle OpenMP thread of the command spins before it sleeps; measured in docs/benchmarks.md."""

SPIN_SETTINGS = {"GOMP_SPINCOUNT": str(SPIN_COUNT), "KMP_BLOCKTIME": "1"}
"""Environment variables of GNU's OpenMP, and of LLVM's and Intel's (milliseconds), read when torch is imported."""

WAIT_VARIABLES = ("OMP_WAIT_POLICY", *SPIN_SETTINGS)


class LoadMeter:
    """The share of the cores that other processes have used since the object was created (Linux)."""

    def __init__(self, read: Callable[[], tuple[float, float]] | None = None) -> None:
        """read: returns (total, busy) seconds of all cores since the system started."""
        self._read = read or read_cpu_seconds
        self._first, self._own = self._read(), own_cpu_seconds()

    def share(self) -> float:
        """Return a share in [0, 1]; 0 if the system does not report it."""
        (total, busy), own = self._read(), own_cpu_seconds()
        span = total - self._first[0]
        others = busy - self._first[1] - (own - self._own)
        return min(1.0, max(0.0, others / span)) if span > 0 else 0.0


def measure_load(seconds: float = 0.1) -> float:
    """Return the share of the cores that other processes use now; takes `seconds`."""
    meter = LoadMeter()
    time.sleep(seconds)
    return meter.share()


def describe_load(share: float) -> str:
    """Return a share of the cores in words."""
    return f"other processes use {100 * share:.0f} % of the CPU"


def own_cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def read_cpu_seconds() -> tuple[float, float]:
    """Return (total, busy) seconds since the system started, of the cores that this process may use.

    Time that a hypervisor gives to other virtual machines counts as busy. Zeros if the system does not report them.
    """
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else set()
    total = busy = 0
    with suppress(OSError, ValueError):
        for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
            name, *fields = line.split()
            if name in cores:
                user, nice, system, idle, wait, *rest = map(int, fields[:8])
                used = user + nice + system + sum(rest)
                total, busy = total + used + idle + wait, busy + used
    return total / 100, busy / 100


def shorten_spinning() -> None:
    """Let the OpenMP threads of this process sleep soon after they have nothing to do; call it before importing torch.

    By default they spin for milliseconds at the end of every parallel loop, and beside other busy processes the cores
    that they occupy are missing to the loop itself. For commands only: a library must not change its host. Variables
    that the user has set are left as they are.
    """
    if not any(variable in os.environ for variable in WAIT_VARIABLES):
        os.environ.update(SPIN_SETTINGS)
