"""The C library's memory: retain freed memory in the process, or return it to the system."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Parameters of mallopt (malloc.h)."""

DEFAULTS = {
    M_MMAP_MAX: ("MALLOC_MMAP_MAX_", 2**16),
    M_MMAP_THRESHOLD: ("MALLOC_MMAP_THRESHOLD_", 2**25),
    M_TRIM_THRESHOLD: ("MALLOC_TRIM_THRESHOLD_", 2**26),
}
"""Parameter -> (environment variable that sets it, value in bytes or mappings after `restore_malloc`).

glibc does not report its values. These thresholds are the ones that its dynamic adjustment sets once a tensor of 32 MiB
was freed; mallopt disables that adjustment permanently.
"""

_lock = threading.Lock()
_retained = 0


def retain_malloc() -> bool:
    """Let glibc keep freed memory instead of returning it to the system; return whether that was possible.

    Otherwise the large tensors of every step are mapped and zeroed again, page by page (benchmarks/train_step.py
    measures the gain). This holds for the whole process, until `restore_malloc` was called as often as this function.
    Nothing changes without glibc, and with a limit of the address space (ulimit -v), where oneDNN, which maps its
    memory itself, would run out of memory.
    """
    global _retained
    if not has_glibc() or _address_space_is_limited():
        return False
    with _lock:
        _retained += 1
        if _retained == 1:
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    return True


def restore_malloc() -> None:
    """Undo one `retain_malloc` that returned True; the last one returns the unused memory to the system."""
    global _retained
    with _lock:
        _retained -= 1
        if _retained == 0:
            libc = ctypes.CDLL(None)
            for parameter, (variable, default) in DEFAULTS.items():
                value = os.environ.get(variable, "")
                libc.mallopt(parameter, int(value) if value.isdigit() else default)
            trim_heap()


def trim_heap() -> None:
    """Return the C library's unused memory to the system."""
    if has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


@cache
def has_glibc() -> bool:
    """Return whether this process uses the GNU C library."""
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


def _address_space_is_limited() -> bool:
    import resource

    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
