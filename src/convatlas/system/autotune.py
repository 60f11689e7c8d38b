"""Autotuning: time candidates on this machine, and store which one is the fastest.

The steps of a user are `TuningCache(...).load()`; if there is no choice that `is_usable`, `time_candidates` while a
`LoadMeter` observes the machine, then `TuningCache.store`.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from convatlas._version import __version__
from convatlas.errors import ConvatlasError
from convatlas.system.cache import cache_folder
from convatlas.system.files import write_text
from convatlas.system.load import MAX_QUIET_SHARE, measure_load

Candidate = TypeVar("Candidate")


@dataclass(frozen=True)
class StoredChoice:
    """A choice as plain data, and the share of the cores that other processes used while it was measured."""

    choice: Any
    other_load: float

    def is_usable(self, *, little_work: bool = False) -> bool:
        """Return whether another measurement would not be worth its time.

        A choice from a quiet machine is always usable; one from a busy machine while it is busy, or for little work.
        """
        return self.other_load <= MAX_QUIET_SHARE or little_work or measure_load() > MAX_QUIET_SHARE


class TuningCache:
    """A JSON file in the cache directory that maps a hash of everything a choice depends on to the choice."""

    def __init__(self, name: str, device: torch.device, *depends: object) -> None:
        """name: file name. depends: plain data; the machine and the versions of torch and convatlas are added."""
        self.path = cache_folder() / name
        text = json.dumps([*depends, _describe_machine(device)], sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:16]

    def load(self) -> StoredChoice | None:
        """Return the stored choice, or None."""
        match self._entries().get(self.key):
            case {"choice": choice, "other_load": float(share)}:
                return StoredChoice(choice, share)
        return None

    def store(self, choice: object, other_load: float) -> None:
        """Store a choice and the share of the cores that other processes used while it was measured.

        A cache that cannot be written is ignored: the next call measures again.
        """
        entry = {"choice": choice, "other_load": float(other_load)}
        with suppress(ConvatlasError, OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps({**self._entries(), self.key: entry}, indent=1) + "\n")

    def _entries(self) -> dict[str, Any]:
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return entries if isinstance(entries, dict) else {}


def _describe_machine(device: torch.device) -> list[str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return [device.type, name, str(torch.get_num_threads()), torch.__version__, __version__]


@dataclass(frozen=True)
class TimingRules:
    """How candidates are timed: in turns, each candidate once per turn. Turn 0 warms up and is not counted.

    max_turns: maximum number of counted turns. min_turns: counted turns before `max_seconds` can end the timing.
    max_slowdown: after each counted turn, candidates whose best time is longer than this times the fastest are dropped.
    max_warm_up_slowdown: the same after turn 0, by the times of turn 0; infinite keeps all.
    jitter_s: candidates faster than this are not dropped in the first `jitter_turns` counted turns, because the
        operating system may have interrupted them.
    prime: run each candidate once, untimed, right before each timed run; its predecessor's threads may still spin.
    pause_s: seconds of sleep before each candidate.
    """

    max_turns: int = 29
    min_turns: int = 2
    max_seconds: float = 1.5
    max_slowdown: float = 1.5
    max_warm_up_slowdown: float = float("inf")
    jitter_s: float = 0.05
    jitter_turns: int = 3
    prime: bool = False
    pause_s: float = 0.0


def time_candidates(
    candidates: Iterable[Candidate],
    run: Callable[[Candidate], object],
    *,
    rules: TimingRules | None = None,
    is_failure: Callable[[BaseException], bool] = lambda error: False,
) -> dict[Candidate, list[float]]:
    """Return the seconds of the counted runs of each candidate, which take turns on the same machine.

    run: runs one candidate and waits for the device.
    is_failure: whether an exception of `run` means that the candidate cannot be used (such as out of memory); the
        candidate is then dropped, with no times. Other exceptions are raised.
    """
    rules = rules or TimingRules()
    times: dict[Candidate, list[float]] = {candidate: [] for candidate in candidates}
    left = list(times)
    start = time.perf_counter()
    for turn in range(rules.max_turns + 1):
        latest: dict[Candidate, float] = {}
        for candidate in left:
            try:
                latest[candidate] = _time_once(candidate, run, rules, prime=rules.prime and turn > 0)
            except Exception as error:
                if not is_failure(error):
                    raise
                times[candidate] = []
        if turn:
            for candidate, seconds in latest.items():
                times[candidate].append(seconds)
            latest = {candidate: min(times[candidate]) for candidate in latest}
        fastest = max(min(latest.values(), default=0.0), 1e-9)  # a coarse clock may show 0
        limit = fastest * (rules.max_slowdown if turn else rules.max_warm_up_slowdown)
        if turn <= rules.jitter_turns:
            limit = max(limit, rules.jitter_s)
        left = [candidate for candidate, seconds in latest.items() if seconds <= limit]
        late = turn >= rules.min_turns and time.perf_counter() - start > rules.max_seconds
        if turn and (len(left) < 2 or late):
            break
    return times


def _time_once(candidate: Candidate, run: Callable[[Candidate], object], rules: TimingRules, *, prime: bool) -> float:
    if rules.pause_s:
        time.sleep(rules.pause_s)
    if prime:
        run(candidate)
    start = time.perf_counter()
    run(candidate)
    return time.perf_counter() - start


def min_times(times: Mapping[Candidate, list[float]]) -> dict[Candidate, float]:
    """Return the shortest time of each candidate; infinity for those that failed or were dropped after warming up."""
    return {candidate: min(seconds, default=float("inf")) for candidate, seconds in times.items()}


def time_repeatedly(
    run: Callable[[], object],
    *,
    seconds: float,
    min_runs: int = 3,
    max_runs: int = 10**9,
    max_run_s: float = float("inf"),
) -> list[float]:
    """Return the seconds of repeated runs: for `seconds`, at least `min_runs` and at most `max_runs` of them.

    max_run_s: stop after four runs if even the fastest one took longer.
    """
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < min_runs or (time.perf_counter() - start < seconds and len(times) < max_runs):
        run_start = time.perf_counter()
        run()
        times.append(time.perf_counter() - run_start)
        if len(times) >= 4 and min(times) > max_run_s:
            break
    return times
