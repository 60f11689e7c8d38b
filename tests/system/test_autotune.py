"""Autotuning: timing in turns, dropping of slow candidates, stored choices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from convatlas.system import autotune
from convatlas.system.autotune import (
    StoredChoice,
    TimingRules,
    TuningCache,
    min_times,
    time_candidates,
    time_repeatedly,
)


class Clock:
    """A clock that only advances when a candidate runs, by the candidate's seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs: list[float] = []

    def run(self, seconds: float) -> None:
        self.now += seconds
        self.runs.append(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(autotune.time, "perf_counter", lambda: clock.now)
    return clock


def test_candidates_take_turns_and_slow_ones_are_dropped(clock: Clock) -> None:
    rules = TimingRules(max_turns=4, max_seconds=1e9, max_slowdown=1.5, jitter_s=0.0)
    times = time_candidates([1.0, 1.25, 4.0], clock.run, rules=rules)
    assert clock.runs == [1.0, 1.25, 4.0] * 2 + [1.0, 1.25] * 3
    assert {candidate: len(seconds) for candidate, seconds in times.items()} == {1.0: 4, 1.25: 4, 4.0: 1}
    assert min_times(times) == {1.0: 1.0, 1.25: 1.25, 4.0: 4.0}


def test_timing_ends_with_the_last_candidate(clock: Clock) -> None:
    time_candidates([1.0, 4.0], clock.run, rules=TimingRules(max_seconds=1e9, jitter_s=0.0))
    assert clock.runs == [1.0, 4.0] * 2


def test_timing_ends_after_its_time(clock: Clock) -> None:
    time_candidates([1.0, 1.1], clock.run, rules=TimingRules(min_turns=2, max_seconds=0.5))
    assert clock.runs == [1.0, 1.1] * 3


def test_much_slower_candidates_are_dropped_after_warming_up(clock: Clock) -> None:
    rules = TimingRules(max_turns=2, max_seconds=1e9, max_warm_up_slowdown=3.0, jitter_s=0.0)
    times = time_candidates([1.0, 1.1, 9.0], clock.run, rules=rules)
    assert clock.runs.count(9.0) == 1
    assert min_times(times)[9.0] == float("inf")


def test_fast_candidates_are_not_dropped_for_jitter(clock: Clock) -> None:
    rules = TimingRules(max_turns=6, max_seconds=1e9, jitter_s=0.05, jitter_turns=3)
    time_candidates([0.001, 0.04], clock.run, rules=rules)
    assert clock.runs.count(0.04) == 1 + 4


def test_each_timed_run_is_primed(clock: Clock) -> None:
    time_candidates([1.0], clock.run, rules=TimingRules(prime=True))
    assert clock.runs == [1.0] * 3


def test_failures_are_dropped_and_other_errors_are_raised(clock: Clock) -> None:
    def run(seconds: float) -> None:
        if seconds > 2:
            raise MemoryError
        clock.run(seconds)

    times = time_candidates([1.0, 1.1, 3.0], run, is_failure=lambda error: isinstance(error, MemoryError))
    assert times[3.0] == []
    with pytest.raises(MemoryError):
        time_candidates([1.0, 3.0], run)


def test_repeated_runs_are_limited_in_number_and_time(clock: Clock) -> None:
    assert len(time_repeatedly(lambda: clock.run(1.0), seconds=0.0, min_runs=3)) == 3
    assert len(time_repeatedly(lambda: clock.run(1.0), seconds=5.0)) == 5
    assert len(time_repeatedly(lambda: clock.run(1.0), seconds=50.0, max_runs=7)) == 7
    assert len(time_repeatedly(lambda: clock.run(1.0), seconds=50.0, min_runs=8, max_run_s=0.5)) == 4


def test_choices_are_stored_by_everything_they_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "cache"))
    cpu = torch.device("cpu")
    assert TuningCache("x.json", cpu, "a").load() is None
    TuningCache("x.json", cpu, "a").store({"threads": 1}, 0.0)
    TuningCache("x.json", cpu, "b").store({"threads": 2}, 0.75)
    assert TuningCache("x.json", cpu, "a").load() == StoredChoice({"threads": 1}, 0.0)
    assert TuningCache("x.json", cpu, "b").load() == StoredChoice({"threads": 2}, 0.75)
    key = TuningCache("x.json", cpu, "a").key
    for damaged in ("damaged", f'{{"{key}": {{"threads": 1}}}}', f'{{"{key}": {{"choice": 1, "other_load": "0.5"}}}}'):
        (tmp_path / "cache" / "x.json").write_text(damaged)
        assert TuningCache("x.json", cpu, "a").load() is None


def test_a_choice_from_a_busy_machine_is_used_while_the_machine_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet, busy = StoredChoice(1, 0.05), StoredChoice(1, 0.8)
    monkeypatch.setattr(autotune, "measure_load", lambda: 0.02)
    assert quiet.is_usable()
    assert not busy.is_usable()
    assert busy.is_usable(little_work=True)
    monkeypatch.setattr(autotune, "measure_load", lambda: 0.9)
    assert busy.is_usable()


def test_a_cache_that_cannot_be_written_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "file"))
    TuningCache("x.json", torch.device("cpu"), "a").store(1, 0.0)
