"""Interleaved timing: the sides of a comparison take turns, so that a change of the machine's speed affects all."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

Times = dict[str, list[float]]
"""Seconds of each side, one value for each round."""


def time_interleaved(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warmup: int = 1,
    min_seconds: float = 0.0,
    pause_s: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Return the seconds of one call of each side in each round; the order is reversed in every other round.

    warmup: rounds before the timed ones. min_seconds: duration for which a side is repeated within a round.
    pause_s: wait before a side, so that the threads of the previous one stop spinning; the side then runs once untimed.
    clock: `time.process_time` counts the seconds of the processor, which with one thread are about those of a quiet
        machine.
    """
    times: Times = {name: [] for name in sides}
    for number in range(-warmup, rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            if pause_s:
                time.sleep(pause_s)
                sides[name]()
            start, repeats = clock(), 0
            while repeats == 0 or clock() - start < min_seconds:
                sides[name]()
                repeats += 1
            if number >= 0:
                times[name].append((clock() - start) / repeats)
    return times


def medians(times: Times) -> dict[str, float]:
    """Return the median of each side."""
    return {name: statistics.median(values) for name, values in times.items()}


class StepReport(NamedTuple):
    """One step of a side in a process of its own: its seconds, what it yielded, and the peak memory so far.

    cpu_seconds: of all threads of the process; with one thread they are about the seconds on a quiet machine.
    """

    seconds: float
    value: Any
    peak_mib: float
    cpu_seconds: float


def serve_steps(steps: Iterator[Any]) -> None:
    """Run one step for each line on standard input, and print its `StepReport` as JSON.

    The first `next` prepares and is not timed. Memory is counted above the peak before it.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    next(steps)
    print("ready", flush=True)
    for _ in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        value = next(steps)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        peak_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(json.dumps([seconds, value, peak_mib, cpu_seconds]), flush=True)


class SideProcess:
    """A process that runs `serve_steps`, for sides whose settings or memory belong to a whole process."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read_line()  # ready: no side prepares while another one is timed

    def step(self) -> StepReport:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return StepReport(*json.loads(self._read_line()))

    def close(self) -> None:
        self.process.communicate()

    def _read_line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a side failed: {' '.join(map(str, self.process.args))}")
        return line


def compare_epochs(sides: Mapping[str, SideProcess], epochs: int, *, baseline: str) -> None:
    """Print the speed of each side in each epoch and in all, and of the others relative to the baseline; end the sides.

    A step of a side is an epoch, and yields how many images or clips it had. Every other epoch has the reverse order.
    """
    print(f"{'epoch':>6}" + "".join(f"{name:>20}" for name in sides) + f"{'ratios':>14}", flush=True)
    seconds = dict.fromkeys(sides, 0.0)
    counts = dict.fromkeys(sides, 0)

    def line(title: object, speeds: Mapping[str, float]) -> None:
        cells = "".join(f"{speeds[name]:>20.1f}" for name in sides)
        ratios = " ".join(f"{speeds[name] / speeds[baseline]:>6.2f}" for name in sides if name != baseline)
        print(f"{title:>6}{cells} {ratios}", flush=True)

    for epoch in range(1, epochs + 1):
        speeds = {}
        for name in list(sides)[:: 1 if epoch % 2 else -1]:
            report = sides[name].step()
            seconds[name] += report.seconds
            counts[name] += report.value
            speeds[name] = report.value / report.seconds
        line(epoch, speeds)
    line("all", {name: counts[name] / seconds[name] for name in sides})
    for side in sides.values():
        side.close()
