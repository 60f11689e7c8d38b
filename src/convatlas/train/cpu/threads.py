"""The number of CPU threads of a training beside other processes: measured at its start and when their load changes.

A parallel loop ends with its slowest thread. Beside processes that use the cores, fewer threads can be many times
faster; their number changes the order of sums, and so the last bits of a training.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from statistics import median

import torch

from convatlas.core.cost import totals_of
from convatlas.core.network import Network
from convatlas.core.spec import Spec
from convatlas.system.autotune import TimingRules, TuningCache, time_candidates
from convatlas.system.devices import is_out_of_memory
from convatlas.system.load import MAX_QUIET_SHARE, LoadMeter
from convatlas.train.cpu.execution import ExecutionPlan
from convatlas.train.cpu.memory import trim_heap
from convatlas.train.cpu.tune import MIN_MACS_TO_TUNE, num_timed_images, timed_step

CHOICES_FILE = "threads.json"
"""File in the cache directory that stores the numbers of threads."""

WINDOW_S = 5.0
"""Seconds over which the load of other processes is averaged while a network trains."""

MIN_LOAD_CHANGE = 0.25
"""Change of the load since the last measurement, as a share of the cores, after which threads are measured again."""

FIRST_INTERVAL_S, MAX_INTERVAL_S = 30.0, 600.0
"""Minimum seconds before the first measurement while a network trains, doubled after each one up to the maximum."""

MAX_RELATIVE_TIME = 0.9
"""Another number of threads than the present one must take at most this share of its time."""

TIMING = TimingRules(max_turns=7, min_turns=2, max_seconds=1.5, max_slowdown=3.0, jitter_s=0.0, jitter_turns=0)


def choose_threads(
    network: Network, spec: Spec, plan: ExecutionPlan, *, load: float, batch: int, classes: int, device: torch.device
) -> tuple[int, float]:
    """Return the number of threads for the first steps, and the load of other processes; zeros if it is torch's own.

    network: built from `spec`. load: share of the cores that other processes use. On a quiet machine nothing is
    measured, nor are short steps, so that small networks are trained equally to the last bit on a quiet and on a busy
    machine. A choice is stored, and used while the load is similar: a repeated training begins with the same number.
    """
    threads = torch.get_num_threads()
    counts = thread_counts(threads, threads, load)
    if load <= MAX_QUIET_SHARE or len(counts) < 2 or plan.compiled or device.type != "cpu":
        return 0, 0.0
    if 3 * totals_of(network).macs * batch < MIN_MACS_TO_TUNE:
        return 0, 0.0
    cache = TuningCache(
        CHOICES_FILE, device, spec.to_plain(), classes, network.input_shape[0], batch, plan.to_plain()
    )  # fmt: skip
    stored = cache.load()
    if stored and stored.choice in counts and abs(stored.other_load - load) < MIN_LOAD_CHANGE:
        return int(stored.choice), load
    choice = fastest_threads(network, plan, counts, batch=batch, classes=classes, device=device)
    cache.store(choice, load)
    return choice, load


def thread_counts(present: int, maximum: int, load: float) -> list[int]:
    """Return the numbers of threads that are measured: the present one first, all, those of the free cores, and one."""
    free = max(1, round(maximum * (1 - load)))
    return list(dict.fromkeys((present, maximum, free, 1)))


def fastest_threads(
    network: Network, plan: ExecutionPlan, counts: Sequence[int], *, batch: int, classes: int, device: torch.device
) -> int:
    """Return the number of threads with the shortest median time of a step; the first one if no other is much faster.

    A copy of the network is timed; compiled plans are not, which would be compiled again for minutes.
    """
    step = timed_step(copy.deepcopy(network), num_timed_images(network, batch), classes, device)
    before = torch.get_num_threads()

    def run(threads: int) -> None:
        torch.set_num_threads(threads)
        step(plan)

    try:
        with torch.random.fork_rng(devices=[]):
            times = time_candidates(counts, run, rules=TIMING, is_failure=is_out_of_memory)
    finally:
        torch.set_num_threads(before)
        trim_heap()
    seconds = {threads: median(each) if each else float("inf") for threads, each in times.items()}
    best = min(counts, key=seconds.__getitem__)
    return best if seconds[best] <= MAX_RELATIVE_TIME * seconds[counts[0]] else counts[0]


class LoadWatch:
    """Watches the load of other processes while a network trains, and limits how often threads are measured."""

    def __init__(self) -> None:
        self._meter, self._window_start = LoadMeter(), time.monotonic()
        self._interval = FIRST_INTERVAL_S
        self._earliest = self._window_start + self._interval

    def changed_load(self, before: float) -> float | None:
        """Return the present load if it differs much from `before`, and a measurement is due; else None."""
        now = time.monotonic()
        if now < self._window_start + WINDOW_S:
            return None
        load, self._meter, self._window_start = self._meter.share(), LoadMeter(), now
        if now < self._earliest or abs(load - before) < MIN_LOAD_CHANGE:
            return None
        self._interval = min(2 * self._interval, MAX_INTERVAL_S)
        self._earliest = now + self._interval
        return load
