"""Running experiments: parallel, the same numbers for any number of processes, and continued after an interruption."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from convatlas.cli.app import app
from convatlas.errors import DataError, ExperimentError
from convatlas.experiments import registry
from convatlas.experiments.experiment import Experiment, Trial, Verdict
from convatlas.experiments.materials import Materials
from convatlas.experiments.page import index, page, summary, write_page
from convatlas.experiments.results import Results, Row
from convatlas.experiments.run import run_trials
from convatlas.experiments.tuning import TUNING_SEED


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
        "EXPERIMENT = Experiment('coin', 'A coin', 'a is larger', 'nowhere', 'none', 'a > b.', 'nothing', (), trials,\n"
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


def test_all_stops_at_once_where_no_experiment_has_data(experiment: Experiment, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["experiment", "--all", "--data", str(tmp_path / "no"), "--out", str(tmp_path)])
    assert isinstance(done.exception, DataError)
    assert "no such folder" in str(done.exception)


def test_a_log_of_another_version_or_size_is_refused(experiment: Experiment, tmp_path: Path) -> None:
    log = tmp_path / "trials.jsonl"
    run_trials(experiment, "default", log, Materials())
    with pytest.raises(ExperimentError, match="another version"):
        run_trials(experiment, "full", log, Materials())


def test_a_log_of_another_version_that_has_no_trial_is_not_continued(experiment: Experiment, tmp_path: Path) -> None:
    log = tmp_path / "trials.jsonl"
    log.write_text('{"experiment": "coin", "size": "default", "version": "old"}\n{"key": ')
    with pytest.raises(ExperimentError, match="another version"):
        run_trials(experiment, "default", log, Materials())


@pytest.mark.parametrize("line", [b"{}", b"[]", b"\xff", b"0"])
def test_a_damaged_log_is_one_line(experiment: Experiment, tmp_path: Path, line: bytes) -> None:
    log = tmp_path / "trials.jsonl"
    run_trials(experiment, "default", log, Materials())
    log.write_bytes(log.read_bytes() + line + b"\n")
    with pytest.raises(ExperimentError, match=r"trials.jsonl: line 10 is damaged .*; delete the file"):
        run_trials(experiment, "default", log, Materials())


def test_nothing_is_measured_where_nothing_can_be_written(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        run_trials(experiment, "default", tmp_path / "file" / "trials.jsonl", Materials())
    assert not (tmp_path / "count").exists()


def test_a_process_that_the_system_ends_is_one_line(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(pool: SameProcess, function: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if (tmp_path / "count").exists():
            future.set_exception(BrokenProcessPool())
        else:
            future.set_result(function(*args))
        return future

    with monkeypatch.context() as patch:
        patch.setattr(SameProcess, "submit", killed)
        with pytest.raises(ExperimentError, match="the system ended a process, most often for lack of memory"):
            run_trials(experiment, "default", tmp_path / "trials.jsonl", Materials())
    assert len(run_trials(experiment, "default", tmp_path / "trials.jsonl", Materials())) == 8


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
    assert (
        "Of 1 statements, 1 confirmed, 0 partly confirmed, 0 not confirmed."
        in (tmp_path / "out" / "README.md").read_text()
    )
    assert json.loads((tmp_path / "out" / "coin.json").read_text())["effects"][0]["size"] is None


def test_a_page_names_the_size_and_leaves_the_seed_of_choices_out(experiment: Experiment) -> None:
    def row(arm: str, seed: int) -> Row:
        return Row(arm, seed, {"epochs": 40, "lr": seed}, {"x": float(seed)})

    results = Results((row("b, lr 1", TUNING_SEED), *(row(arm, seed) for arm in "ab" for seed in range(2))))
    verdict = experiment.judge(results)
    text = {size: page(experiment, size, results, verdict) for size in ("default", "full", "smoke")}
    for each in text.values():
        assert "over the seeds 0, 1. Trials with seed 100 choose a rate; their rows have one seed." in each
        assert "\n\nA > b. Written before the run.\n" in each
    assert "convatlas experiment coin\n" in text["default"]
    assert "default size" not in text["default"]
    assert "\n\nThe numbers above are those of the default size; this run has size full: epochs 40.\n" in text["full"]
    assert "convatlas experiment coin --full\n" in text["full"]
    assert "its verdict means nothing" in text["smoke"]
    assert summary(experiment, "full", results, verdict)["seeds"] == 2


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"name": "x"}', b"\xff"])
def test_a_file_of_something_else_among_the_results_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.json").write_bytes(content)
    with pytest.raises(ExperimentError, match=r"other.json: is no result of an experiment \(.*\); move it away$"):
        index(tmp_path)


def test_an_unknown_experiment_gets_the_nearest() -> None:
    with pytest.raises(ExperimentError, match=r"relu_tahn.*relu_tanh.*--list"):
        registry.find("relu_tahn")


def test_a_verdict_has_a_known_word() -> None:
    with pytest.raises(ValueError, match="confirmed"):
        Verdict("proven", "")


def test_equal_trials_have_equal_keys() -> None:
    first, second = Trial("a", 0, {"x": 1, "y": 2}), Trial("a", 0, {"y": 2, "x": 1})
    assert first.key == second.key
    assert first.key != Trial("a", 1, {"x": 1, "y": 2}).key
