"""The load of other processes, and how long idle threads of the command spin."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from commands import Command
from convatlas.system import load
from convatlas.system.load import LoadMeter, describe_load, measure_load, read_cpu_seconds, shorten_spinning


def test_the_own_time_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    own, system = [10.0], [(1000.0, 400.0)]
    monkeypatch.setattr(load, "own_cpu_seconds", lambda: own[0])
    meter = LoadMeter(lambda: system[0])
    assert meter.share() == 0.0  # no time has passed
    own[0], system[0] = 14.0, (1010.0, 409.0)
    assert meter.share() == pytest.approx(0.5)
    own[0] = 30.0  # clocks of different resolution
    assert meter.share() == 0.0
    assert describe_load(0.916) == "other processes use 92 % of the CPU"


def test_only_the_cores_of_this_process_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 100 0 50 800 40 4 4 2 0 0\ncpu1 1 1 1 1 1 1 1 1 0 0\nintr 5\n")
    monkeypatch.setattr(load, "Path", lambda _: stat)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert read_cpu_seconds() == (10.0, 1.6)
    stat.write_text("cpu0 damaged")
    assert read_cpu_seconds() == (0.0, 0.0)
    stat.unlink()
    assert read_cpu_seconds() == (0.0, 0.0)
    assert LoadMeter().share() == 0.0


def test_a_real_load_is_a_share() -> None:
    assert 0 <= measure_load(0.01) <= 1


@pytest.mark.parametrize("variable", load.WAIT_VARIABLES)
def test_the_user_s_own_setting_of_spinning_stays(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {variable: "set"})
    shorten_spinning()
    assert os.environ == {variable: "set"}
    monkeypatch.setattr(os, "environ", {})
    shorten_spinning()
    assert os.environ == load.SPIN_SETTINGS


def test_the_command_shortens_spinning(convatlas: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in load.WAIT_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    convatlas("--version")
    assert os.environ["GOMP_SPINCOUNT"] == str(load.SPIN_COUNT)
