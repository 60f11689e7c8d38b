"""Sides of a benchmark in processes of their own, which take turns: for what holds for a whole process."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any


def serve(steps: Iterator[Any]) -> None:
    """Take a step for each line on standard input; answer with its seconds, what it yields, and the peak memory in MB.

    The first `next` prepares, and is not timed; memory is counted above what it was before.
    """
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    next(steps)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        told = next(steps)
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun) / 1024
        print(json.dumps([time.perf_counter() - start, told, peak]), flush=True)


class Side:
    """A process that serves."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()  # so that none prepares while another is measured

    def step(self) -> tuple[float, Any, float]:
        """Return (seconds, what was yielded, peak memory in MB)."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds, told, peak = json.loads(self.process.stdout.readline())
        return seconds, told, peak

    def close(self) -> None:
        self.process.communicate()
