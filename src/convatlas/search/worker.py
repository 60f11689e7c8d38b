"""A worker of a search: it evaluates what waits in the store, and chooses what is evaluated next."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from convatlas.data.readers.memory import Data
from convatlas.engines.network_engine import check_engine
from convatlas.errors import ConvatlasError, DivergedError, SearchError, brief
from convatlas.search.budgeted import BudgetedSpace
from convatlas.search.contestant import Contestant, candidate_name
from convatlas.search.counts import Counts
from convatlas.search.evaluation import Evaluator, KnownLatency, OverLimitError
from convatlas.search.explorer import Explorer
from convatlas.search.finals import final_fidelity, final_seconds, speedup
from convatlas.search.settings import SearchSettings
from convatlas.search.space import Candidate
from convatlas.search.standings import expected_reward, has_failed, is_final, network_name, promoted
from convatlas.search.store import LEASE_S, Evaluation, TrialStore, elapsed, not_added_again
from convatlas.search.supernet_search import SupernetAccuracy, best_of, rank, train_supernet
from convatlas.system.cores import count_cores
from convatlas.system.devices import is_out_of_memory, resolve_device
from convatlas.system.locks import MachineLock
from convatlas.train.recipe import get_recipe
from convatlas.train.run_folder import OccupiedError

POOL = 2000
"""Most candidates that are compared at once; each is counted."""

FIRST = 40
"""Evaluations for which the surrogate plans, at least: a fifth of them are random at first."""

IDLE_S, MAX_IDLE_S = 1.0, 600.0
"""Seconds between two looks into a store without work, and after which a worker gives up: whoever adds work is dead."""

MAX_SUSPECTS = 3
"""Number of networks that may fail one after the other before it is rather the fault of the data or the machine."""

MAX_SKIPPED = 100
"""Candidates that are left out one after the other, because they are expected to be above the limit of the latency."""

OVERHEAD = 1.1
"""Time of an evaluation in that of its training, with the latency and the accuracy on val, about."""

OnEvaluation = Callable[[Evaluation, Sequence[Evaluation], float], None]
"""Called with each evaluation that has ended here, all of the store, and the seconds that are left of the search."""


class TimeOverError(ConvatlasError):
    """The time of a phase of the search is over."""


class Worker:
    """One process of a search. folder: its directory. on_evaluation: is called after each evaluation.

    data: in memory; None for that of the settings.

    A network that is above a limit, diverges or runs out of memory fails. Another error may be its fault, or that of
    the data or the machine: it fails when the worker has trained another network after it. After `MAX_SUSPECTS` in a
    row the worker ends, and they wait for another one.
    Raises EngineError, MachineError or SpecError if the engine, the device or the recipe of the search is missing on
    this machine.
    """

    def __init__(
        self, folder: Path, settings: SearchSettings, store: TrialStore, *, on_evaluation: OnEvaluation | None = None,
        data: Data | None = None,
    ) -> None:  # fmt: skip
        if settings.measures_here:
            check_engine(settings.engine)
        resolve_device(settings.execution.device)
        if settings.recipe is not None:
            get_recipe(settings.recipe)
        self.folder, self.settings, self.store = folder, settings, store
        self._on_evaluation = on_evaluation or (lambda evaluation, everything, left: None)
        self._told: set[int] = set()
        self._suspects: dict[str, str] = {}
        self._occupied: dict[str, float] = {}
        self._end = self._deadline = math.inf
        self._lock = MachineLock()
        self._evaluator = Evaluator(folder, settings, self._lock, between=self._check_time, data=data)

    @property
    def space(self) -> BudgetedSpace:
        """The candidates within the limits."""
        return self.settings.budgeted_space

    @cached_property
    def explorer(self) -> Explorer:
        """What chooses candidates."""
        settings = self.settings
        return Explorer(
            self.space, seed=settings.seed, fidelities=settings.fidelities, pool=POOL,
            budget=max(FIRST, settings.search_s / settings.training_s),
        )  # fmt: skip

    def search(self) -> None:
        """Evaluate until the time of the search is over, or nothing is left to evaluate.

        The last evaluations begin if half of them fits into the time, and are completed.
        """
        self.store.take_over()
        while (left := self._time_left(self.settings.search_s)) > 0:
            if not self.step(left):
                if not self._is_busy():
                    return
                time.sleep(IDLE_S)

    def train_finalists(self, *, waits: bool = True) -> None:
        """Train finalists; waits: until it was stated that none will be added, else until none is trained anywhere."""
        idle = 0.0
        while idle < MAX_IDLE_S:
            if self.step(only_finalists=True):
                idle = 0.0
                continue
            if not self._is_busy(finalists=True) and (not waits or self.store.is_over()):
                return
            time.sleep(IDLE_S)
            idle = 0.0 if any(each.state == "running" for each in self.store.evaluations()) else idle + IDLE_S

    def step(self, seconds: float = math.inf, *, only_finalists: bool = False) -> bool:
        """Evaluate one contestant, if half of it fits into so many seconds; False if there is nothing to do.

        only_finalists: those that wait in the store, and nothing new.
        """
        self.store.take_over()
        self._end = time.monotonic() + seconds
        self._deadline = self._end + self.settings.training_s
        evaluations = self.store.evaluations()
        evaluation = self._claim_next(evaluations, finalists=True) if only_finalists else self._search_next(evaluations)
        if evaluation is None:
            return False
        self._evaluate(evaluation)
        return True

    def _time_left(self, seconds: float) -> float:
        searched = [each for each in self.store.evaluations() if not is_final(each)]
        return seconds - elapsed(searched, now=time.time())

    def _is_busy(self, *, finalists: bool = False) -> bool:
        """Return whether contestants, or finalists, wait or are evaluated, or are just added again."""
        evaluations = self.store.evaluations()
        busy = [
            each for each in evaluations
            if self._is_open(each) and (each.state == "running" or self._fits(each, evaluations))
        ]  # fmt: skip
        return any(self._is_of(each, finalists=finalists) for each in (*busy, *not_added_again(evaluations)))

    def _fits(self, evaluation: Evaluation, evaluations: Sequence[Evaluation]) -> bool:
        """Return whether there is room for a waiting evaluation; for a finalist there always is."""
        name = evaluation.plain["name"]
        done = max((each.fidelity for each in evaluations if each.plain["name"] == name and each.metrics), default=0.0)
        return self._has_room(evaluation.fidelity - done)

    def _has_room(self, effort: float) -> bool:
        """Return whether at least half of an effort, in full trainings, fits into the time that is left."""
        return effort / 2 <= self._room()

    def _room(self) -> float:
        """Return the time that is left for evaluations, in full trainings."""
        return (self._end - time.monotonic()) / (OVERHEAD * self.settings.training_s)

    def _is_of(self, evaluation: Evaluation, *, finalists: bool) -> bool:
        """Return whether an evaluation is that of a finalist; of a longer or shorter search it is neither."""
        return is_final(evaluation, self.settings.time_s) if finalists else not is_final(evaluation)

    def _is_open(self, evaluation: Evaluation) -> bool:
        """Return whether an evaluation is running, or waits for this worker or another one."""
        is_suspect = str(evaluation.plain["name"]) in self._suspects
        return evaluation.state == "running" or (evaluation.state == "waiting" and not is_suspect)

    def _claim_next(self, evaluations: Sequence[Evaluation], *, finalists: bool = False) -> Evaluation | None:
        """Claim what waits, but no network that failed here, or that another process trained a minute ago."""
        now = time.monotonic()
        left_out = {name for name, since in self._occupied.items() if now - since < LEASE_S} | self._suspects.keys()
        return self.store.claim_next(
            lambda each: self._is_of(each, finalists=finalists) and str(each.plain["name"]) not in left_out
            and self._fits(each, evaluations)
        )  # fmt: skip

    # choose

    def _search_next(self, evaluations: Sequence[Evaluation]) -> Evaluation | None:
        """Claim what waits; else the best baselines at the next fidelity; else what the surrogate expects most of."""
        if (waiting := self._claim_next(evaluations)) is not None:
            return waiting
        for plain, fidelity in self._promotions(evaluations):
            self.store.add(plain, {}, fidelity)
            return self._claim_next(evaluations)
        with self._lock.working():  # it uses a core
            asked = self._ask(evaluations)
        if asked is None:
            return None
        candidate, fidelity = asked
        codes = self.space.named(self.space.encode(candidate))
        contestant = Contestant(
            candidate_name(codes), "candidate", self.space.value(candidate), seed=self.settings.seed
        )
        self.store.add(contestant.to_plain(), codes, fidelity)
        return self._claim_next(evaluations)

    def _ask(self, evaluations: Sequence[Evaluation]) -> tuple[Candidate, float] | None:
        """Return the candidate to evaluate next, and its fidelity."""
        if self.settings.candidates == "quick":
            self._learn(evaluations)
            for _ in range(MAX_SKIPPED):
                asked = self.explorer.ask(self._room())
                if asked is None or not self.space.is_too_slow(asked[0]):
                    return asked
                self.explorer.drop(asked[0])
            return asked
        if self.settings.candidates == "random" and self._has_room(1.0):
            known = {str(each.plain["name"]) for each in evaluations}
            random = np.random.default_rng((self.settings.seed, len(evaluations)))
            for codes in self.space.sample(len(known) + 1, random):
                if candidate_name(self.space.named(codes)) not in known:
                    return self.space.decode(codes), 1.0
        return None

    def _promotions(self, evaluations: Sequence[Evaluation]) -> Iterator[tuple[dict[str, object], float]]:
        """Yield the best baselines and pretrained networks when all are through a fidelity; so for sub-networks."""
        low, high = self.settings.fidelities[0], self.settings.fidelities[-1]
        if not self._has_room(high - low):
            return
        there = {each.key for each in evaluations}
        searched = [each for each in evaluations if not is_final(each)]
        given = [each for each in searched if each.plain["kind"] in ("baseline", "pretrained")]
        shared = [each for each in searched if each.plain["kind"] == "candidate" and each.plain["weights"]]
        for group in (given, shared):
            at_low = [each for each in group if each.fidelity == low]
            if any(map(self._is_open, at_low)):
                continue
            complete = [each for each in at_low if each.state == "complete"]
            best = sorted(complete, key=lambda each: -self._expected(each))
            for each in best[: promoted(len(best))]:
                if (each.plain["name"], high) not in there:
                    yield dict(each.plain), high

    def _learn(self, evaluations: Sequence[Evaluation]) -> None:
        """Tell the surrogate what to expect of the candidates whose evaluation has ended, and what others evaluate.

        Also of baselines that are networks of the space: it then looks for better ones that are like the good ones.
        """
        reserved = []
        for each in evaluations:
            if each.number in self._told or is_final(each) or (candidate := self._candidate(each)) is None:
                continue
            if each.state in ("waiting", "running"):
                reserved.append(candidate)
                continue
            self._told.add(each.number)
            if (seconds := self._measured(each)) is not None:
                self.space.learn_latency(candidate, seconds)
            if each.state == "complete":
                latency = self.settings.limits.compared_latency(each.metrics["latency"])
                self.explorer.tell(
                    candidate, accuracy=self._expected(each), latency=latency, fidelity=each.fidelity
                )  # fmt: skip
            if has_failed(each) or each.plain["kind"] == "baseline":
                self.explorer.drop(candidate)
        self.explorer.reserve(reserved)

    def _measured(self, evaluation: Evaluation) -> float | None:
        """Return the latency that was measured for an evaluation; None if there is none, or it was disturbed."""
        metrics = evaluation.metrics
        if not metrics:
            return evaluation.latency_s
        is_first = evaluation.fidelity == self.settings.fidelities[0]  # later ones have the latency of the first
        return None if not is_first or metrics["disturbed"] or metrics["predicted"] else metrics["latency"]

    def _expected(self, evaluation: Evaluation) -> float:
        """Return the reward to expect of a network that was evaluated at the end of the search."""
        metrics, times = evaluation.metrics, final_fidelity(self.settings) / evaluation.fidelity
        return expected_reward(metrics["accuracy"], metrics["reward"], metrics["epochs"], times)

    def _candidate(self, evaluation: Evaluation) -> Candidate | None:
        """Return what was evaluated as a candidate; None for a network that is not of the space."""
        if evaluation.plain["kind"] == "candidate":
            return {name: self.space.choices[name][code] for name, code in evaluation.choices.items()}
        if evaluation.plain["kind"] != "baseline":
            return None
        try:
            return self.space.decode(self.space.encode(Contestant.read(evaluation.plain).spec))
        except SearchError:
            return None

    # evaluate

    def _evaluate(self, evaluation: Evaluation) -> None:
        try:
            with self._renewing(evaluation):
                contestant = self._with_latency(Contestant.read(evaluation.plain))
                if contestant.to_end:
                    metrics = self._train_to_end(contestant, evaluation.fidelity)
                elif contestant.kind == "supernet":
                    metrics = self._evaluate_supernet(contestant)
                else:
                    metrics = self._evaluator.evaluate(contestant, evaluation.fidelity)
            self.store.complete(evaluation, metrics)
            for name, text in self._suspects.items():  # this network trains, so that those were at fault
                self.store.fail_waiting(name, text)
            self._suspects.clear()
        except TimeOverError as error:
            self.store.fail(evaluation, str(error), again=True)
        except OccupiedError as error:  # taken for dead, its worker goes on; what it learns is continued
            self._occupied[str(evaluation.plain["name"])] = time.monotonic()
            self.store.fail(evaluation, brief(error), again=True)
        except OverLimitError as error:
            self.store.fail(evaluation, brief(error), latency_s=error.latency_s)
        except DivergedError as error:
            self.store.fail(evaluation, brief(error))
        except Exception as error:
            if is_out_of_memory(error):
                self.store.fail(evaluation, f"out of memory ({brief(error)})")
            else:
                self._suspect(evaluation, error)
        except BaseException as error:  # a signal
            self.store.fail(evaluation, f"stopped ({type(error).__name__})", again=True)
            raise
        everything = self.store.evaluations()
        left = self.settings.time_s - self.settings.setup_s - elapsed(everything, now=time.time())
        self._on_evaluation(everything[evaluation.number], everything, left)

    def _suspect(self, evaluation: Evaluation, error: Exception) -> None:
        """Let an evaluation with an error wait; raise the error of the last suspect."""
        text = brief(error) if isinstance(error, ConvatlasError) else f"{type(error).__name__}: {brief(error)}"
        self._suspects[str(evaluation.plain["name"])] = text
        self.store.fail(evaluation, text, again=True)
        if len(self._suspects) >= MAX_SUSPECTS:
            raise error

    def _with_latency(self, contestant: Contestant) -> Contestant:
        """Return a contestant with the latency that was measured before it was continued, or became a finalist."""
        if contestant.latency_s is not None:
            return contestant
        name = network_name(contestant.name)
        before = [
            each.metrics["latency"] for each in self.store.evaluations()
            if each.state == "complete" and network_name(str(each.plain["name"])) == name
            and not each.metrics["predicted"]
        ]  # fmt: skip
        return replace(contestant, latency_s=min(before)) if before else contestant

    def _train_to_end(self, contestant: Contestant, fidelity: float) -> dict[str, float]:
        """Train a finalist to its end, with the cores of all workers, and return its metrics."""
        settings, threads = self.settings, self.settings.execution.threads
        if threads is not None:
            threads = max(threads, min(count_cores(), threads * settings.workers))
        return self._evaluator.train_to_end(
            contestant, fidelity * settings.training_s, left_s=final_seconds(settings, self.store.evaluations()),
            threads=threads, speedup=speedup(settings),
        )  # fmt: skip

    def _evaluate_supernet(self, contestant: Contestant) -> dict[str, float]:
        """Train the supernet, rank candidates with it, and add the best ones; return the metrics of the largest."""
        settings = self.settings
        run = train_supernet(self._evaluator, self.space, contestant, seconds=settings.supernet_s)
        measure = SupernetAccuracy(run)
        ranked = rank(self._evaluator, self.space, measure, seconds=settings.ranking_s)
        for found, codes in best_of(self._evaluator, self.space, measure, ranked):
            self.store.add(found.to_plain(), codes, settings.fidelities[0])
        counts = Counts.of(contestant.spec, classes=settings.classes, channels=settings.channels)
        assert settings.latency is not None
        return self._evaluator.metrics(
            run, counts, KnownLatency(settings.latency.predict(counts), is_predicted=True)
        )  # fmt: skip

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise TimeOverError("the time of the search is over")

    @contextmanager
    def _renewing(self, evaluation: Evaluation) -> Iterator[None]:
        """Renew the lease of an evaluation, in a thread, because some parts of it take longer than a lease."""
        done = threading.Event()

        def renew() -> None:
            while not done.wait(LEASE_S / 4):
                with suppress(SearchError):  # an outage, which the worker meets itself
                    self.store.renew(evaluation)

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
