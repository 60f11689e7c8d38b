"""The processor of this machine, and the number of its cores that this process may use."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from math import ceil
from pathlib import Path


def count_cores() -> int:
    """Return the number of cores that the process may use: by its affinity, and by the quota of its containers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(ceil, cgroup_quotas())]))


def processor_name() -> str:
    """Return the name of the processor, such as "AMD EPYC 9B14"."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cgroup_quotas(root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")) -> Iterator[float]:
    """Yield the limits, in cores, of the process's control groups (Linux), version 2 or 1."""
    with suppress(OSError, ValueError):
        for line in process.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = root / "cpu" if controllers else root
            own = top / path.strip("/")
            for folder in (own, *own.parents):
                yield from _quota(folder)
                if folder == top:
                    break


def _quota(folder: Path) -> Iterator[float]:
    with suppress(OSError, ValueError):
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")
            )
        if quota != "max" and int(quota) > 0 and int(period) > 0:
            yield int(quota) / int(period)
