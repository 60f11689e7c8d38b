"""Running experiments: parallel, the same numbers for any number of processes, and continued after an interruption."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from convatlas.cli.app import app
from convatlas.errors import ExperimentError
from convatlas.experiments import registry
from convatlas.experiments.experiment import Experiment, Size, Trial, Verdict
from convatlas.experiments.materials import Materials
from convatlas.experiments.page import write_page
from convatlas.experiments.results import Results
from convatlas.experiments.run import run_trials


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """An experiment in a file of its own, which counts its measurements in a file and is found by its name."""
    folder = tmp_path / "claims"
    folder.mkdir()
    (folder / "coin.py").write_text(
        f"COUNT = {str(tmp_path / 'count')!r}\n"
        "from convatlas.draw.style import new_figure\n"
        "from convatlas.experiments.experiment import Experiment, Trial, Verdict\n"
        "def trials(size, results):\n"
        "    yield from (Trial('tuning', seed) for seed in range(2))\n"
        "    if len(results.of('tuning')) == 2:\n"
        "        best = max(results.of('tuning'), key=lambda row: row.metrics['x']).seed\n"
        "        yield from (Trial(arm, seed, {'best': best}) for arm in 'ab' for seed in range(3))\n"
        "def measure(trial, materials):\n"
        "    open(COUNT, 'a').write('.')\n"
        "    return {'x': trial.seed + 10.0 * (trial.arm == 'a')}\n"
        "def judge(results):\n"
        "    effect = results.compare('a', 'b', 'x')\n"
        "    return Verdict('confirmed' if effect.is_positive else 'not confirmed', 'a | b', (effect,))\n"
        "EXPERIMENT = Experiment('coin', 'A coin', 'a is larger', 'nowhere', 'none', 'a > b', 'nothing', (), trials,\n"
        "                        measure, {'x': 'x in px'}, judge, lambda results: new_figure(2, 2))\n"
    )
    monkeypatch.setattr("convatlas.experiments.claims.__path__", [str(folder)])
    monkeypatch.setattr("convatlas.experiments.run.ProcessPoolExecutor", SameProcess)
    monkeypatch.delitem(sys.modules, "convatlas.experiments.claims.coin", raising=False)
    return registry.find("coin")


class SameProcess:
    """Stands in for the pool: workers of their own cannot see the file of the test."""

    def __init__(self, *args: object) -> None: ...
    def __enter__(self) -> SameProcess:
        return self

    def __exit__(self, *error: object) -> None: ...
    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args))
        return future


def count(tmp_path: Path) -> int:
    return len((tmp_path / "count").read_text())


def test_trials_may_depend_on_results_and_are_measured_once(experiment: Experiment, tmp_path: Path) -> None:
    log = tmp_path / "trials.jsonl"
    results = run_trials(experiment, "default", log, Materials())
    assert [row.settings.get("best") for row in results.of("a")] == [1, 1, 1]
    assert results.compare("a", "b", "x").difference == 10
    assert count(tmp_path) == 8
    assert run_trials(experiment, "default", log, Materials()) == results
    assert count(tmp_path) == 8


@pytest.mark.parametrize("lines", range(10))
def test_an_interrupted_experiment_continues(experiment: Experiment, tmp_path: Path, lines: int) -> None:
    log = tmp_path / "trials.jsonl"
    results = run_trials(experiment, "default", log, Materials())
    complete = log.read_text().splitlines(keepends=True)
    following = complete[lines][:7] if lines < len(complete) else ""
    log.write_text("".join(complete[:lines]) + following)
    assert run_trials(experiment, "default", log, Materials()) == results
    assert sorted(log.read_text().splitlines()) == sorted(line.strip() for line in complete)
    assert count(tmp_path) == 8 + 9 - max(lines, 1)


WORKER = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from convatlas.experiments.run import _prepare_worker
if __name__ == "__main__":
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _prepare_worker) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    with subprocess.Popen([sys.executable, tmp_path / "worker.py"], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline()
        parent.kill()
        parent.communicate(timeout=60)  # the pipe ends when the worker, too, has ended


def test_a_file_with_an_error_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.setattr("convatlas.experiments.claims.__path__", [str(tmp_path)])
    with pytest.raises(ExperimentError, match=r"^experiment: broken.py: ZeroDivisionError: division by zero$"):
        registry.find("broken")


def test_all_goes_on_after_one_that_cannot_be_run(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "claims" / "broken.py").write_text(
        (tmp_path / "claims" / "coin.py").read_text().replace("'coin'", "'broken'").replace(
            "def measure(trial, materials):", "def measure(trial, materials):\n    materials.weights('none')"
        )
    )  # fmt: skip
    done = CliRunner().invoke(app, ["experiment", "--all", "--out", str(tmp_path / "out")])
    assert str(done.exception) == "experiment: 1 of 2 could not be run: broken"
    assert (tmp_path / "out" / "coin.md").exists()


def test_a_log_of_another_version_or_size_is_refused(experiment: Experiment, tmp_path: Path) -> None:
    log = tmp_path / "trials.jsonl"
    run_trials(experiment, "default", log, Materials())
    with pytest.raises(ExperimentError, match="another version"):
        run_trials(experiment, "full", log, Materials())


def test_a_damaged_log_is_one_line(experiment: Experiment, tmp_path: Path) -> None:
    log = tmp_path / "trials.jsonl"
    run_trials(experiment, "default", log, Materials())
    log.write_text(log.read_text() + "{}\n")
    with pytest.raises(ExperimentError, match=r"trials.jsonl: line 10 is damaged .*; delete the file"):
        run_trials(experiment, "default", log, Materials())


def test_the_page_and_the_table_of_verdicts(experiment: Experiment, tmp_path: Path) -> None:
    results = run_trials(experiment, "default", tmp_path / "trials.jsonl", Materials())
    assert write_page(experiment, "default", results, tmp_path / "out").word == "confirmed"
    page = (tmp_path / "out" / "coin.md").read_text()
    assert "| a | 3 | 11 ± 1 |" in page
    assert "**Verdict: confirmed.** a | b" in page
    assert "a - b: x +10 (95 % interval +10 to +10, g = inf, n = 3)" in page
    assert (tmp_path / "out" / "README.md").read_text().count(
        "| [A coin](coin.md) | a is larger | **confirmed** |"
    ) == 1
    assert json.loads((tmp_path / "out" / "coin.json").read_text())["effects"][0]["size"] is None


def test_an_unknown_experiment_gets_the_nearest() -> None:
    with pytest.raises(ExperimentError, match=r"relu_tahn.*relu_tanh"):
        registry.find("relu_tahn")


def test_a_verdict_has_a_known_word() -> None:
    with pytest.raises(ValueError, match="confirmed"):
        Verdict("proven", "")


def test_equal_trials_have_equal_keys() -> None:
    first, second = Trial("a", 0, {"x": 1, "y": 2}), Trial("a", 0, {"y": 2, "x": 1})
    assert first.key == second.key
    assert first.key != Trial("a", 1, {"x": 1, "y": 2}).key


def sizes() -> tuple[Size, ...]:
    return ("smoke", "default", "full")


@pytest.mark.parametrize("name", registry.names())
def test_every_experiment_is_complete(name: str) -> None:
    found = registry.find(name)
    assert found.name == name
    for text in (found.title, found.claim, found.source, found.protocol, found.criterion, found.would_change):
        assert text.strip()
        assert "\n\n\n" not in text
    for size in sizes():
        trials = list(found.trials(size, Results()))
        assert trials
        assert len({trial.key for trial in trials}) == len(trials)
        json.dumps([dict(trial.settings) for trial in trials])
