"""A whole search in seconds: limits, baselines, workers, finalists, the winner, and the report."""

from __future__ import annotations

import csv
import json
import math
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any

import pytest

import convatlas as ca
from commands import Command, check_refused
from convatlas.cli.search import _Lines
from convatlas.core.choice import choose
from convatlas.errors import ConvatlasError, SearchError
from convatlas.inference.load import load
from convatlas.models.families.resnet import ResNet
from convatlas.search import setup
from convatlas.search.budgeted import BudgetedSpace
from convatlas.search.contestant import Contestant, Kind
from convatlas.search.evaluation import HEAD_IMAGES, Evaluator, KnownLatency, epochs_within
from convatlas.search.finals import STOP_SHARE, add_finalists, continue_best, final_candidates, final_fidelity
from convatlas.search.latency import LatencyMeter, LatencyModel
from convatlas.search.launch import (
    SearchResult,
    finish,
    open_store,
    search,
    start,
)
from convatlas.search.limits import Limits, hard_limits
from convatlas.search.report import lineage, verdict, write_report
from convatlas.search.settings import SearchSettings
from convatlas.search.setup import SearchOptions
from convatlas.search.standings import (
    EXPONENT,
    LAST_EPOCHS,
    STEADY_EPOCHS,
    expected_reward,
    final_name,
    finalists,
    front,
    has_failed,
    is_final,
    standings,
)
from convatlas.search.store import Evaluation, TrialStore
from convatlas.search.worker import TimeOverError, Worker
from convatlas.system.cores import count_cores
from convatlas.system.locks import MachineLock
from convatlas.train.lr_schedule import WSD_DECAY
from convatlas.train.resume import open_run
from convatlas.train.run_folder import OccupiedError

LIMITS = Limits(latency_s=0.02, params=100_000)

METRICS = {
    "latency": 0.001, "parameters": 1, "macs": 1, "epochs": 1.0, "model_reward": 0.0, "disturbed": 0.0,
    "predicted": 0.0,
}  # fmt: skip


SPACE: Any = ResNet(
    choose("basic", "bottleneck"), (1, choose(1, 2)), (8, choose(8, 16)), stem=8, small_stem=True, resolution=32
)


@pytest.fixture(scope="module")
def result(idx_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """A search of a given number of evaluations: how many fit into a time depends on the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(setup.MEASURED, "torch", 8)
        folder = tmp_path_factory.mktemp("search") / "out"
        folder.mkdir()
        options = SearchOptions(space=SPACE, methods=("quick",), workers=1, fields={"batch": 16})
        settings, others = setup.set_up(str(idx_folder), LIMITS, 3600, options, progress=lambda *_: None)
        settings = replace(settings, training_s=0.4)
        store = start(folder, settings, [others[0], others[1]])
        worker = Worker(folder, settings, store)
        for _ in range(13):  # two baselines, twice, and candidates, of which one is promoted
            assert worker.step()
        return finish(folder, replace(settings, time_s=1.0), store)


def test_the_winner_is_an_ordinary_model_within_the_limits(result: SearchResult) -> None:
    model = load(result.model_file)
    counted = ca.cost(ca.build(model.header.spec, classes=len(model.header.classes)))
    assert counted.parameters <= 100_000
    assert result.winner.latency <= 0.02
    assert {each.contestant.kind for each in result.standings} == {"candidate", "baseline"}
    assert result.run.state.finished
    assert ca.diff(model.header.spec, ca.spec("efficientnet_b0"))


def test_the_winner_is_told_with_the_finalist_that_was_stopped(result: SearchResult) -> None:
    stopped, ended = sorted(result.finalists, key=lambda each: each.contestant.to_end)
    assert stopped.is_candidate is not ended.is_candidate  # a single worker has two finalists
    assert stopped.fidelity < ended.fidelity
    text = verdict((ended, stopped), result.standings)
    assert f"{ended.name} wins with {ended.accuracy:.2%}" in text
    assert f"had {stopped.accuracy:.2%} after" in text
    assert f"against {dict(ended.curve)[stopped.fidelity]:.2%}." in text
    assert [fidelity for fidelity, _ in ended.curve[:2]] == [0.25, 1.0]  # of its trial, which it continued
    assert result.winner.model_reward == max(each.model_reward for each in result.finalists)
    assert result.verdict.startswith(f"{result.winner.name} wins with ")
    assert result.run.results["val"].score == result.winner.model_reward


def test_the_lineage_is_that_of_the_best_finalist(result: SearchResult) -> None:
    best = next(each for each in result.finalists if each.is_candidate)
    lines = lineage(result.finalists, open_store(result.folder, result.settings).evaluations(), result.settings)
    assert not lines or lines[0].startswith(best.name)


def test_the_learning_rate_of_the_winner_falls_at_the_end_of_its_trial(result: SearchResult) -> None:
    rates = [each.lr for each in result.run.history]
    assert len(rates) == result.run.config.recipe.epochs
    assert rates[0] == max(rates)
    assert rates[-1] < 0.1 * rates[0]


def test_what_was_tried_is_reported(result: SearchResult) -> None:
    page = (result.folder / "report.html").read_text()
    assert result.winner.name in page
    assert "Finalists" in page
    assert "Pareto front" in page
    with (result.folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} == {"candidate", "baseline"}
    store = open_store(result.folder, result.settings)
    assert len(rows) == len(store.evaluations())
    assert store.is_over()
    assert (result.folder / "front.png").stat().st_size > 1000


def test_a_finished_search_is_read_again(result: SearchResult) -> None:
    settings = SearchSettings.read(result.folder)
    assert replace(settings, time_s=1.0) == result.settings
    store = open_store(result.folder, settings)
    before = store.evaluations()
    again = finish(result.folder, result.settings, store)
    assert again.winner == result.winner
    assert again.run.results["test"].summary() == result.run.results["test"].summary()
    assert store.evaluations() == before
    with pytest.raises(SearchError, match="is a search on"):
        search("digits", out=result.folder, progress=False)
    path = result.folder / "search.json"
    text = path.read_text()
    path.write_text(text[:-20])
    with pytest.raises(SearchError, match="damaged"):
        SearchSettings.read(result.folder)
    path.write_text(text)


def test_the_report_command(result: SearchResult, convatlas: Command) -> None:
    outcome = convatlas("search", "report", result.folder)
    assert (outcome.code, outcome.err) == (0, "")
    assert "report.html" in outcome.out


def test_an_evaluation_that_is_stopped_continues_where_it_was(result: SearchResult, tmp_path: Path) -> None:
    settings = replace(result.settings, training_s=1e6)
    contestant = replace(result.standings[-1].contestant, name="stopped")
    calls = iter(range(1000))

    def stop() -> None:
        if next(calls) == 3:
            raise TimeOverError("stop")

    evaluator = Evaluator(tmp_path, settings, MachineLock(tmp_path), between=stop)
    with pytest.raises(TimeOverError):
        evaluator.evaluate(contestant, 1.0)
    lock = MachineLock(tmp_path)
    metrics = Evaluator(tmp_path, replace(settings, training_s=1e-6), lock).evaluate(contestant, 1.0)
    assert metrics["steps"] == 4
    longer = replace(settings, training_s=metrics["seconds"] + 1e-6)
    again = Evaluator(tmp_path, longer, lock).evaluate(contestant, 1.0)
    assert again["steps"] == 5


@pytest.mark.parametrize(
    ("elapsed_s", "planned", "seconds", "epochs"),
    [
        ([10, 20, 30], 10, 100, 10),
        ([10, 20, 30], 10, 104, 10),  # about as planned
        ([20, 40, 60], 10, 100, 5),
        ([20, 40, 60, 70, 80, 90, 100, 110], 20, 235, 20),  # the last five tell
        ([5, 10], 10, 100, 20),
        ([10, 20], 3, 24, 2),
        ([30], 10, 20, 1),  # an epoch is longer than the time
        ([1], 10, 1e6, 1000),
    ],
)
def test_epochs_follow_the_time_that_they_take(
    elapsed_s: list[float], planned: int, seconds: float, epochs: int
) -> None:
    assert epochs_within(elapsed_s, planned, seconds=seconds, left=seconds - elapsed_s[-1]) == epochs


def test_epochs_with_other_cores_tell_nothing() -> None:
    assert epochs_within([10], 20, seconds=600, left=590, since=1) == 20
    assert epochs_within([10, 40], 20, seconds=600, left=560, since=1) == 20
    assert epochs_within([10, 70], 20, seconds=600, left=530, since=1) == 10


def test_a_training_whose_time_is_over_ends_with_a_model(result: SearchResult, tmp_path: Path) -> None:
    evaluator = Evaluator(tmp_path, result.settings, MachineLock(tmp_path))
    contestant = replace(result.standings[-1].contestant, name="a", to_end=True)  # without a trial
    evaluator.train_to_end(contestant, 1e-3, left_s=1.0, threads=1, speedup=1.0)
    run = open_run(tmp_path / "trials" / "a")
    assert run.state.finished
    assert 1 <= len(run.history) < 10
    assert run.model_file.is_file()


def test_a_training_that_takes_longer_than_expected_has_fewer_epochs(
    result: SearchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = Evaluator(tmp_path, result.settings, MachineLock(tmp_path))
    contestant = replace(result.standings[-1].contestant, name="a")
    run = evaluator._resume_or_start(contestant)
    evaluator.train(run, lambda: run.state.step == run.steps_per_epoch + 1)  # in the second epoch
    run.save()
    asked: list[tuple[int, int]] = []

    def epochs(elapsed_s: Sequence[float], planned: int, *, since: int, **_: float) -> int:
        asked.append((len(elapsed_s), since))
        return min(planned, 5)

    monkeypatch.setattr("convatlas.search.evaluation.epochs_within", epochs)
    run = evaluator.finish_timed(open_run(run.folder, epochs=9), seconds=1e6)
    assert run.state.finished
    assert len(run.history) == 5
    # after a quarter of the epochs that are left, and then of fewer; the second one had other cores
    assert asked == [(3, 2), (4, 2), (5, 2)]


def test_a_training_that_was_interrupted_ends_in_the_time_that_is_left(result: SearchResult, tmp_path: Path) -> None:
    evaluator = Evaluator(tmp_path, result.settings, MachineLock(tmp_path))
    contestant = replace(result.standings[-1].contestant, name="a")
    evaluator.evaluate(contestant, 0.1)
    folder = tmp_path / "trials" / "a"
    open_run(folder, epochs=900)  # planned before
    evaluator.train_to_end(replace(contestant, to_end=True), 1e6, left_s=1e-3, threads=1, speedup=1.0)
    assert 1 <= len(open_run(folder).history) < 900


@pytest.mark.parametrize(("kind", "images", "alone"), [
    ("pretrained", HEAD_IMAGES, 1), ("pretrained", HEAD_IMAGES + 1, 0), ("baseline", HEAD_IMAGES, 0),
])  # fmt: skip
def test_of_few_images_the_head_of_a_pretrained_network_is_trained_alone_at_first(
    result: SearchResult, tmp_path: Path, kind: Kind, images: int, alone: int
) -> None:
    shutil.copy(result.model_file, tmp_path / "weights.safetensors")
    contestant = replace(result.winner.contestant, name="a", kind=kind, weights="weights.safetensors", to_end=False)
    evaluator = Evaluator(tmp_path, replace(result.settings, train_images=images), MachineLock(tmp_path))
    run = evaluator._resume_or_start(contestant)
    assert run.config.recipe.head_epochs == alone
    evaluator.train(run, lambda: run.state.step >= 2)
    assert any(each.requires_grad for each in run.network.stages.parameters()) is not bool(alone)


def test_many_epochs_of_a_trial_do_not_keep_the_learning_rate_from_falling(
    result: SearchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convatlas.search.evaluation.MAX_EPOCHS", 2)
    evaluator = Evaluator(tmp_path, result.settings, MachineLock(tmp_path))
    contestant = replace(result.standings[-1].contestant, name="a")
    run = evaluator._resume_or_start(contestant)
    evaluator.train(run, lambda: len(run.history) >= 3)
    run.save()
    evaluator.train_to_end(replace(contestant, to_end=True), 1e6, left_s=1e6, threads=1, speedup=1.0)
    run = open_run(tmp_path / "trials" / "a")
    assert len(run.history) == math.ceil(3 / (1 - WSD_DECAY))
    assert run.history[-1].lr < 0.1 * run.history[0].lr


def test_what_is_not_the_fault_of_a_network_ends_the_worker_and_nothing_is_lost(
    result: SearchResult, tmp_path: Path
) -> None:
    settings = replace(result.settings, data=str(tmp_path / "unmounted"))
    contestant = replace(result.standings[-1].contestant, latency_s=0.001)
    names = [f"n{i}" for i in range(4)]
    store = start(tmp_path, settings, [replace(contestant, name=name) for name in names])
    worker = Worker(tmp_path, settings, store)
    assert [worker.step(), worker.step()] == [True, True]
    with pytest.raises(ConvatlasError, match="unmounted"):
        worker.step()
    assert [each.state for each in store.evaluations()] == [*["failed"] * 3, *["waiting"] * 4]
    with pytest.raises(SearchError, match="no evaluation is complete yet, try again later"):
        write_report(tmp_path, settings, store.evaluations())
    worker = Worker(tmp_path, replace(result.settings, training_s=1e-3), store)
    for _ in names:
        assert worker.step()
    assert sorted(each.contestant.name for each in standings(store.evaluations())) == names


def test_no_number_of_workers_with_an_error_of_the_machine_fails_a_network(
    result: SearchResult, tmp_path: Path
) -> None:
    settings = replace(result.settings, data=str(tmp_path / "unmounted"))
    contestant = replace(result.standings[-1].contestant, latency_s=0.001)
    store = start(tmp_path, settings, [replace(contestant, name=f"n{i}") for i in range(3)])
    for _ in range(4):
        worker = Worker(tmp_path, settings, store)
        assert [worker.step(), worker.step()] == [True, True]
        with pytest.raises(ConvatlasError, match="unmounted"):
            worker.step()
    assert not any(map(has_failed, store.evaluations()))
    assert Worker(tmp_path, replace(result.settings, training_s=1e-3), store).step()


def test_an_outage_does_not_end_the_renewal_of_leases(
    result: SearchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contestant = replace(result.standings[-1].contestant, latency_s=0.001)
    settings = replace(result.settings, training_s=1e-3)
    store = start(tmp_path, settings, [contestant])
    worker, renewed = Worker(tmp_path, settings, store), Event()

    def unreachable(evaluation: Evaluation) -> None:
        if threading.current_thread() is not threading.main_thread():
            renewed.set() if calls else calls.append(evaluation)
            raise SearchError("the store cannot be reached")

    calls: list[Evaluation] = []
    monkeypatch.setattr("convatlas.search.worker.LEASE_S", 0.01)
    monkeypatch.setattr(store, "renew", unreachable)
    evaluate = Evaluator.evaluate
    monkeypatch.setattr(Evaluator, "evaluate", lambda *given: renewed.wait(60) and evaluate(*given))
    assert worker.step()
    assert [each.state for each in store.evaluations()] == ["complete"]


def test_a_network_with_an_error_fails_when_another_one_trains(result: SearchResult, tmp_path: Path) -> None:
    contestant = replace(result.standings[-1].contestant, latency_s=0.001)
    bad = replace(contestant, name="bad", kind="pretrained", weights="deleted.safetensors")
    settings = replace(result.settings, training_s=1e-3)
    store = start(tmp_path, settings, [bad, replace(contestant, name="good")])
    worker = Worker(tmp_path, settings, store)
    assert worker.step()
    assert [each.state for each in store.evaluations()] == ["failed", "waiting", "waiting"]
    assert worker.step()
    assert [each.state for each in store.evaluations()] == ["failed", "complete", "failed"]
    assert "deleted.safetensors" in store.evaluations()[2].error
    assert [has_failed(each) for each in store.evaluations()] == [False, False, True]


def test_a_run_that_another_process_trains_is_left_to_it(
    result: SearchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contestant = replace(result.standings[-1].contestant, latency_s=0.001)
    settings = replace(result.settings, training_s=1e-3)
    store = start(tmp_path, settings, [replace(contestant, name="n0"), replace(contestant, name="n1")])
    worker = Worker(tmp_path, settings, store)

    def occupied(*_: object) -> None:
        raise OccupiedError("another process is training this run")

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "evaluate", occupied)
        assert worker.step()
    assert worker.step()
    last = {str(each.plain["name"]): each.state for each in store.evaluations()}
    assert last == {"n0": "waiting", "n1": "complete"}
    monkeypatch.setattr("convatlas.search.worker.LEASE_S", 0.0)
    assert worker.step()
    assert {str(each.plain["name"]): each.state for each in store.evaluations()}["n0"] == "complete"


def test_a_worker_without_the_recipe_does_not_begin(result: SearchResult, tmp_path: Path) -> None:
    store = start(tmp_path, result.settings, [])
    with pytest.raises(ConvatlasError, match=r"gone\.yaml"):
        Worker(tmp_path, replace(result.settings, recipe=str(tmp_path / "gone.yaml")), store)


def test_the_latency_of_a_network_is_measured_once(
    result: SearchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(result.settings, training_s=1e-3)
    candidate = next(each.contestant for each in result.standings if each.is_candidate)
    assert candidate.latency_s is None
    store = start(tmp_path, settings, [candidate])
    assert Worker(tmp_path, settings, store).step()
    monkeypatch.setattr(LatencyMeter, "measure", None)
    store.add(candidate.to_plain(), {}, 1.0)
    store.add(replace(candidate, name=final_name(candidate.name, settings.time_s), seed=7).to_plain(), {}, 1.0)
    worker = Worker(tmp_path, settings, store)
    assert worker.step()
    assert worker.step(only_finalists=True)
    assert len({each.metrics["latency"] for each in store.evaluations()}) == 1


def test_what_the_search_left_waiting_does_not_keep_it_from_its_end(result: SearchResult, tmp_path: Path) -> None:
    store = start(tmp_path, replace(result.settings, time_s=3600.0), [result.standings[-1].contestant])
    store.end()
    Worker(tmp_path, replace(result.settings, time_s=3600.0), store).train_finalists()
    assert [each.state for each in store.evaluations()] == ["waiting"]


def evaluation(number: int, name: str, accuracy: float, fidelity: float = 1.0, kind: str = "candidate") -> Evaluation:
    plain = Contestant(name, kind, ca.spec("lenet5")).to_plain()  # type: ignore[arg-type]
    accuracies = dict.fromkeys(("accuracy", "reward", "model_reward"), accuracy)
    metrics = {**METRICS, **accuracies, "latency": 0.001 * (number + 1)}
    return Evaluation(number, plain, {}, fidelity, "complete", metrics=metrics)


def test_a_candidate_must_be_better_than_a_baseline_not_equal() -> None:
    trials = [evaluation(0, "base", 0.8, kind="baseline"), evaluation(1, "a", 0.81)]
    found = standings(trials)
    assert [each.name for each in found] == ["a", "base"]
    assert [each.name for each in finalists(found, 5.0, candidates=1)] == ["a", "base"]
    assert [each.name for each in front(found)] == ["base", "a"]
    base = evaluation(2, final_name("base", 60), 0.9, 5.0, kind="baseline")
    for accuracy, first in ((0.9, "base"), (0.91, "a"), (0.89, "base")):
        finals = standings([*trials, base, evaluation(3, final_name("a", 60), accuracy, 5.0)], time_s=60)
        assert finals[0].name == first
    assert standings([*trials, base]) == found
    assert not standings([*trials, base], time_s=120)
    early = standings([evaluation(0, "base", 0.5, kind="baseline"), evaluation(1, "a", 0.9, fidelity=0.25)])
    assert [each.name for each in finalists(early, 5.0, candidates=1)] == ["base"]
    assert finalists([], 5.0, candidates=1) == []


def test_finalists_of_a_shorter_search_are_left_alone(result: SearchResult, tmp_path: Path) -> None:
    settings = replace(result.settings, time_s=60.0, training_s=1e-3, candidates="none")
    baseline = next(each.contestant for each in result.standings if not each.is_candidate)
    store = start(tmp_path, settings, [replace(baseline, name=final_name("a", 30.0))])
    worker = Worker(tmp_path, settings, store)
    assert not worker.step()
    assert not worker.step(only_finalists=True)
    store.end()
    worker.train_finalists()  # ends at once
    store.add(replace(baseline, name=final_name("a", 60.0)).to_plain(), {}, 1.0)
    assert not worker.step()
    assert worker.step(only_finalists=True)
    assert [each.state for each in store.evaluations()] == ["waiting", "complete"]


def complete(store: TrialStore, contestant: Contestant, fidelity: float, **metrics: float) -> None:
    """Add an evaluation with its metrics."""
    store.add(contestant.to_plain(), {}, fidelity)
    evaluation = store.claim_next()
    assert evaluation is not None
    assert evaluation.plain["name"] == contestant.name
    store.complete(evaluation, {**METRICS, "epochs": 50.0, "reward": metrics["accuracy"], **metrics})


def networks(result: SearchResult, *names: str) -> list[Contestant]:
    """Return contestants: candidates, and a baseline, whose name begins with "base"."""
    return [
        replace(next(each.contestant for each in result.standings if each.is_candidate is not name.startswith("base")),
                name=name, latency_s=0.001)
        for name in names
    ]  # fmt: skip


@pytest.mark.parametrize("begun", range(4))
def test_a_start_of_finalists_that_was_interrupted_is_completed(
    result: SearchResult, tmp_path: Path, begun: int
) -> None:
    settings = replace(result.settings, time_s=600.0, training_s=10.0, workers=2)
    there = networks(result, "best", "second", "third", "fourth", "base", "base2")
    store = start(tmp_path, settings, [])
    for i, contestant in enumerate(there):
        complete(store, contestant, 1.0, accuracy=0.9 - i / 100)
    chosen = [there[i] for i in (0, 1, 2, 4)]
    for contestant in chosen[:begun]:
        store.add(replace(contestant, name=final_name(contestant.name, 600.0)).to_plain(), {}, 9.0)
    for _ in range(2):
        add_finalists(settings, store, lambda text: None)
        finals = [each for each in store.evaluations() if is_final(each)]
        assert [each.plain["name"] for each in finals] == [final_name(each.name, 600.0) for each in chosen]
        fidelity, *others = {each.fidelity for each in finals}
        assert not others
        assert fidelity == 9.0 if begun else 10 * (fidelity - 1) < STOP_SHARE * 600 / 2  # two rounds


def test_the_trainings_of_finalists_follow_the_workers(result: SearchResult) -> None:
    found, rest = [], 1 - STOP_SHARE
    for workers in (1, 2, 4, 8):
        settings = replace(result.settings, workers=workers, search_share=0.5, time_s=1000.0, training_s=100.0)
        alone = replace(settings, candidates="none")
        found.append((final_candidates(settings), final_fidelity(settings), final_fidelity(alone)))
    assert found == [
        (1, pytest.approx(1 + 5 * (STOP_SHARE / 2 + rest)), pytest.approx(6)),
        (3, pytest.approx(1 + 5 * (STOP_SHARE / 2 + rest * 1.7)), pytest.approx(9.5)),
        (3, pytest.approx(1 + 5 * (STOP_SHARE + rest * 3.1)), pytest.approx(16.5)),
        (7, pytest.approx(1 + 5 * (STOP_SHARE + rest * 5.9)), pytest.approx(30.5)),
    ]


def test_a_finalist_that_fails_makes_room_for_the_next_network(result: SearchResult, tmp_path: Path) -> None:
    settings = replace(result.settings, time_s=600.0, training_s=10.0, candidates="none")
    store = start(tmp_path, settings, [])
    for contestant, accuracy in zip(networks(result, "base", "base2"), (0.6, 0.5), strict=True):
        complete(store, contestant, 1.0, accuracy=accuracy)
    add_finalists(settings, store, lambda text: None)
    for name in ("base", "base2"):
        evaluation = store.claim_next()
        assert evaluation is not None
        assert evaluation.plain["name"] == final_name(name, 600.0)
        assert Contestant.read(evaluation.plain).to_end
        store.fail(evaluation, "diverged")
        assert continue_best(settings, store, lambda text: None) is (name == "base")
    add_finalists(settings, store, lambda text: None)
    assert store.claim_next() is None


def test_the_finalist_of_which_more_is_expected_continues(result: SearchResult, tmp_path: Path) -> None:
    settings = replace(result.settings, time_s=600.0, training_s=10.0)
    candidate, baseline = networks(result, "best", "base")
    store = start(tmp_path, settings, [])

    def continued() -> tuple[Contestant, float] | None:
        if not continue_best(settings, store, lambda text: None):
            return None
        last = store.evaluations()[-1]
        return Contestant.read(last.plain), last.fidelity

    for contestant, accuracies, epochs in ((candidate, (0.4, 0.60), 2.0), (baseline, (0.58, 0.61), 20.0)):
        finalist = replace(contestant, name=final_name(contestant.name, 600.0))
        for each, fidelity, accuracy in zip((contestant, finalist), (1.0, 3.0), accuracies, strict=True):
            complete(store, each, fidelity, accuracy=accuracy, epochs=fidelity * epochs)
    found = continued()
    assert found is not None
    chosen, fidelity = found
    assert chosen.name == final_name(candidate.name, 600.0)
    assert chosen.to_end
    assert 400 < 10 * fidelity < 600  # all of the time that is left
    assert continued() is not None  # another one, if that one cannot be trained
    assert store.evaluations()[-1].plain["name"] == final_name(baseline.name, 600.0)
    assert continued() is None
    for _ in range(2):
        evaluation = store.claim_next()
        assert evaluation is not None
        store.complete(evaluation, {**METRICS, "accuracy": 0.7, "reward": 0.7})
    assert continued() is None


def test_a_finalist_continues_its_trial_then_with_all_cores(result: SearchResult, tmp_path: Path) -> None:
    settings = replace(result.settings, time_s=60.0, training_s=1.0, workers=2, search_share=0.5)
    settings = replace(settings, execution=replace(settings.execution, threads=1))
    name = final_name("a", 60.0)
    contestant = replace(result.standings[-1].contestant, name="a", latency_s=0.001)
    finalist = replace(contestant, name=name)
    store = start(tmp_path, settings, [])
    worker = Worker(tmp_path, settings, store)
    run = worker._evaluator._resume_or_start(contestant)
    worker._evaluator.train(run, lambda: len(run.history) >= 1)
    run.save()
    (tmp_path / "trials" / f"{name}.part").mkdir()  # half of a copy, of a process that was killed
    trained, cores = run.state.seconds, min(2, count_cores())
    for each, fidelity, threads, is_finished in (
        (contestant, trained + 0.1, 1, False), (finalist, trained + 0.3, 1, False),
        (replace(finalist, to_end=True), trained + 1.0, cores, True),
    ):  # fmt: skip
        store.add(each.to_plain(), {}, fidelity)
        assert worker.step(only_finalists=each is not contestant)
        assert store.evaluations()[-1].state == "complete", store.evaluations()[-1].error
        run = open_run(tmp_path / "trials" / each.name)
        assert (run.config.execution.threads, run.state.finished) == (threads, is_finished)
        assert run.config.options.report is (each is not contestant)
    steps = [each.metrics["steps"] for each in store.evaluations()]
    assert steps == sorted(set(steps))
    rows = [open_run(tmp_path / "trials" / each).history[0] for each in ("a", name)]
    assert rows[0] == rows[1]  # one training
    assert not open_run(tmp_path / "trials" / "a").state.finished  # a longer search continues it
    assert sorted(path.name for path in (tmp_path / "trials").iterdir()) == ["a", name]


def test_an_evaluation_begins_if_half_of_it_fits(result: SearchResult, tmp_path: Path) -> None:
    settings = replace(result.settings, training_s=100.0, candidates="none")
    baseline = replace(next(each.contestant for each in result.standings if not each.is_candidate), latency_s=0.001)
    store = start(tmp_path, settings, [baseline])
    worker = Worker(tmp_path, settings, store)
    assert not worker.step(10.0)  # a quarter of 100 s
    evaluation = store.claim_next()
    assert evaluation is not None
    metrics = {**METRICS, "accuracy": 0.5, "reward": 0.5}
    store.complete(evaluation, metrics)
    assert not worker.step(30.0)  # it would be promoted for 75 s
    assert len(store.evaluations()) == 1
    store.add(baseline.to_plain(), {}, 1.0)
    assert not worker.step(30.0)
    assert store.evaluations()[1].state == "waiting"


def test_the_error_falls_faster_in_the_first_epochs() -> None:
    fast, middle = 2**-EXPONENT, (STEADY_EPOCHS * LAST_EPOCHS) ** 0.5
    assert expected_reward(0.8, 0.8, 5.0, 2.0) == pytest.approx(1 - 0.2 * fast)
    expected = [expected_reward(0.8, 0.8, epochs, 2.0) for epochs in (1.0, 10.0, 20.0, 30.0, 80.0, 140.0)]
    assert expected[0] == pytest.approx(expected[1])
    assert all(before > after for before, after in pairwise(expected[1:]))
    assert expected[-1] == pytest.approx(0.8)
    slow = (expected_reward(0.8, 0.8, epochs, 1.001) - 0.8 for epochs in (STEADY_EPOCHS - 0.1, middle))
    assert next(slow) / next(slow) == pytest.approx(2, rel=0.01)  # half of the power in the middle
    assert expected_reward(0.8, 0.8, 5.0, 0.5) == pytest.approx(0.8)  # it was trained for longer
    assert expected_reward(0.8, 0.4, 5.0, 2.0) == pytest.approx((1 - 0.2 * fast) / 2)  # a soft objective
    assert (expected_reward(0.0, 0.0, 5.0, 2.0), expected_reward(1.0, 1.0, 5.0, 2.0)) == (0.0, 1.0)


def test_finalists_are_those_of_which_most_is_expected() -> None:
    def trained(number: int, name: str, accuracy: float, epochs: float, kind: str = "candidate") -> Evaluation:
        found = evaluation(number, name, accuracy, kind=kind)
        return replace(found, metrics={**found.metrics, "epochs": epochs})

    found = standings([
        trained(0, "small", 0.70, 50.0), trained(1, "large", 0.69, 10.0), trained(2, "worse", 0.50, 10.0),
        trained(3, "base", 0.66, 10.0, "baseline"), trained(4, "other", 0.66, 50.0, "baseline"),
    ])  # fmt: skip
    assert [each.name for each in found][:2] == ["small", "large"]
    for number, names in ((1, ["large"]), (2, ["large", "small"]), (5, ["large", "small", "worse"])):
        assert [each.name for each in finalists(found, 6.0, candidates=number)] == [*names, "base"]
    assert [each.name for each in finalists(found, 1.0, candidates=1)] == ["small", "base"]


def test_candidates_are_within_the_limits_and_learn_enough(result: SearchResult) -> None:
    macs = sorted(
        result.settings.budgeted_space.predict(result.settings.budgeted_space.decode(codes))[0].macs  # type: ignore[index]
        for codes in result.settings.budgeted_space.all()
    )
    space = replace(result.settings, most_macs=macs[len(macs) // 2]).budgeted_space
    assert 0 < len(space.all()) < len(macs)
    assert space.limits == replace(LIMITS, macs=macs[len(macs) // 2])
    tight = replace(result.settings, limits=replace(LIMITS, macs=macs[0]), most_macs=macs[-1])
    assert tight.budgeted_space.limits.macs == macs[0]


def test_the_surrogate_knows_baselines_that_are_networks_of_the_space(result: SearchResult, tmp_path: Path) -> None:
    space = result.settings.budgeted_space
    spec = space.value(space.decode(space.all()[0]))
    other = next(each.contestant for each in result.standings if not each.is_candidate)
    baselines = [replace(other, name="a", spec=spec), replace(other, name="b")]
    store = start(tmp_path, replace(result.settings, training_s=1e-3), baselines)
    worker = Worker(tmp_path, replace(result.settings, training_s=1e-3), store)
    assert [worker.step(), worker.step()] == [True, True]
    worker._learn(store.evaluations())
    assert len(worker.explorer._values) == 1
    asked = [worker.explorer.ask() for _ in range(space.size)]
    assert spec not in [space.value(each[0]) for each in asked if each is not None]


def test_latencies_above_the_limit_are_learned(
    result: SearchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(result.settings, training_s=1e-3)
    store = start(tmp_path, settings, [])
    worker = Worker(tmp_path, settings, store)
    measured = iter([KnownLatency(1.0, is_disturbed=True), KnownLatency(2.0), KnownLatency(3.0, is_predicted=True)])
    monkeypatch.setattr(Evaluator, "latency_of", lambda *_: next(measured))
    assert [worker.step(), worker.step(), worker.step()] == [True, True, True]
    assert [each.state for each in store.evaluations()] == ["failed"] * 3
    assert [each.latency_s for each in store.evaluations()] == [None, 2.0, None]
    worker._learn(store.evaluations())
    assert len(worker.space._measured) == 1  # one that was disturbed, or predicted, teaches nothing
    slow = worker.explorer.ask()
    assert slow is not None
    monkeypatch.setattr(BudgetedSpace, "is_too_slow", lambda space, candidate: candidate == slow[0])
    asked = [worker._ask(store.evaluations()) for _ in range(worker.space.size)]
    assert slow[0] not in [each[0] for each in asked if each is not None]


def test_the_answer_is_the_best_finalist_on_val_even_if_it_was_stopped() -> None:
    stopped = evaluation(0, final_name("base", 60.0), 0.785, 2.0, "baseline")
    ended = evaluation(1, final_name("a", 60.0), 0.78, 9.0)
    no_epoch = evaluation(2, final_name("b", 60.0), 0.79, 2.0)
    no_epoch = replace(no_epoch, metrics={**no_epoch.metrics, "model_reward": 0.0})
    found = standings([ended, no_epoch, stopped], time_s=60.0)
    assert [each.name for each in found] == ["base", "a", "b"]
    assert verdict(found, found).endswith("has 78.00%. The search did not beat it, so it is the answer.")


def test_a_search_without_finalists_of_its_own_did_not_beat_the_baseline() -> None:
    trials = [evaluation(0, "base", 0.8, 0.25, "baseline"), evaluation(1, "base", 0.9, kind="baseline")]
    found = standings([*trials, evaluation(2, "a", 0.7, 0.25)])
    assert verdict(found[:1], found).endswith(
        "the best candidate, a, had 70.00% after 25% of the training, against 80.00%. "
        "The search did not beat it, so it is the answer."
    )


def test_evaluations_of_all_workers_are_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines, now = _Lines(), time.time() + 1
    before, own, other = (
        replace(evaluation(i, name, 0.5), begin=now - 100, end=now + i) for i, name in enumerate("abc")
    )
    before = replace(before, end=now - 50)
    lines(own, [before, replace(own, metrics={**own.metrics, "disturbed": 1.0})], 60.0)
    lines(own, [before, own, other], 60.0)
    printed = capsys.readouterr().out
    assert "a at 100%: " not in printed
    assert [printed.count(f"{name} at 100%: 50.00%") for name in "bc"] == [1, 1]
    assert printed.count("disturbed by other processes") == 1


def test_a_soft_objective_weighs_accuracy_and_latency() -> None:
    fast = evaluation(0, "fast", 0.80)
    slow = replace(evaluation(1, "slow", 0.81), metrics={**evaluation(1, "slow", 0.81).metrics, "reward": 0.75})
    assert [each.name for each in standings([slow, fast])] == ["fast", "slow"]
    assert [each.name for each in finalists(standings([slow, fast]), 5.0, candidates=1)] == ["fast"]
    with pytest.raises(SearchError, match="soft needs a latency"):
        hard_limits(Limits(params=1e6), "soft")
    assert hard_limits(LIMITS, "soft") == Limits(params=100_000)


PHONE = LatencyModel("torch", 1, "a phone", (0.0,) * 18 + (0.001,), 0.05, 0.97, 60)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"limits": Limits(params=10), "options": SearchOptions(latency_model=PHONE)},
            "limits: too low for the networks of the space; the smallest of some has",
        ),
        (
            {"options": SearchOptions(methods=("supernets",))},
            r"method: must be one of quick, .* catalog, got supernets \(did you mean supernet",
        ),
        (
            {"options": SearchOptions(methods=("quick", "random"))},
            "must have one way to choose candidates, got quick and",
        ),
        ({"options": SearchOptions(space="resnett")}, r"no space 'resnett' \(did you mean resnet"),
        ({"options": SearchOptions(engine="tensorrt")}, "engine: must be one of"),
        (
            {"options": SearchOptions(methods=("transfer",), latency_model=PHONE)},
            "no pretrained network within",
        ),
        ({"options": SearchOptions(fields={"epochs": 3})}, "search: epochs follows from the time of a search, got 3"),
        ({"time_s": 5}, "the time must be at least 60 s, got 5"),
        (
            {"options": SearchOptions(storage="postgresql://nobody@localhost:1/nothing")},
            "localhost:1/nothing: the store cannot be opened",
        ),
    ],
)
def test_what_is_refused(
    changes: dict[str, Any], message: str, idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(setup.MEASURED, "torch", 12)
    monkeypatch.setattr(setup, "FACTORS", (0.25,))
    with pytest.raises(ConvatlasError, match=message):
        search(str(idx_folder), **{"time_s": 60, "out": tmp_path / "out", "progress": False, **changes})
    assert not (tmp_path / "out" / "search.json").exists()


def test_where_a_search_cannot_be(idx_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConvatlasError, match="must not be inside the data folder"):
        search(str(idx_folder), out=idx_folder / "out", progress=False)
    assert not (idx_folder / "out").exists()
    (tmp_path / "letter.txt").write_text("Dear")
    with pytest.raises(SearchError, match=r"has no search .*but other files, such as letter\.txt"):
        search(str(idx_folder), out=tmp_path, progress=False)


def test_latencies_of_another_machine(convatlas: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "phone.json"
    outcome = convatlas("latency", "record", "--out", file, "--number", 12, "--classes", 4, "--resolution", 16)
    assert (outcome.code, "12 networks, error" in outcome.out) == (0, True)
    assert convatlas("latency", "import", file, "--name", "phone").code == 0
    from convatlas.search.latency_files import read_latency_model

    model = read_latency_model("phone")
    assert model == LatencyModel.from_plain(json.loads(file.read_text()))
    assert (model.networks, model.engine, model.threads) == (12, "torch", 1)
    check_refused(convatlas("latency", "import", tmp_path / "nothing.json"), "nothing.json: unreadable")
    damaged = tmp_path / "damaged.json"
    damaged.write_text(json.dumps({**json.loads(file.read_text()), "coefficients": [0.1]}))
    check_refused(convatlas("latency", "import", damaged), "coefficients must be 19 finite numbers >= 0")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "phone").mkdir()
    assert read_latency_model("phone") == model
    check_refused(convatlas("latency", "record", "--seed", -1), "--seed")
