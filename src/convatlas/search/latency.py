"""Latency on this machine, in the form in which a network is deployed, and a model of it for candidates.

`LatencyMeter` times networks in interleaved rounds and takes the minimum, which other processes disturb the least.
`LatencyModel` predicts the latency of a network from its layers, fitted to networks that were measured.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import spearmanr

from convatlas.core.preprocessing import Preprocessing
from convatlas.core.record import Record, at_least
from convatlas.core.spec import Spec
from convatlas.engines.deploy import example_pixels
from convatlas.engines.network_engine import EngineConfig, NetworkEngine, check_engine
from convatlas.errors import SearchError
from convatlas.models.catalog import build_fresh
from convatlas.search.counts import COLUMNS, KINDS, Counts
from convatlas.system.autotune import time_repeatedly
from convatlas.system.cores import count_cores, processor_name
from convatlas.system.load import MAX_QUIET_SHARE, LoadMeter
from convatlas.system.locks import MachineLock
from convatlas.system.progress import Progress
from convatlas.tasks.table import pluralize
from convatlas.tasks.task import Task
from convatlas.weights.modelfile import Header

ROUNDS = 5
"""Number of rounds; in each, every network is timed once."""

ROUND_S, WARM_UP_S = 0.06, 0.02
"""Seconds of a network in a round, and of warming up before, each at least `MIN_RUNS` runs."""

MIN_RUNS = 3

MAX_SPREAD = 0.1
"""A latency is unstable if the minima of the two best rounds differ by a larger share."""


HOPELESS = 2.0
"""A network that takes so many times the limit in its first round is not timed again."""

MAX_MEASUREMENTS, PAUSE_S = 3, 2.0
"""Measurements of a latency above the limit while other processes disturb them, and seconds between two of them."""


@dataclass(frozen=True)
class Latency:
    """Seconds for one image: the minimum, which is the latency that is compared, median and 95th percentile.

    spread: by which share the minimum of the second-best round is larger; 0 for a single round. other_load: share of
    the cores that other processes used meanwhile.
    """

    seconds: float
    p50_s: float
    p95_s: float
    spread: float
    other_load: float

    @property
    def is_stable(self) -> bool:
        """Whether two rounds agree within 10 %."""
        return self.spread <= MAX_SPREAD

    @property
    def is_disturbed(self) -> bool:
        """Whether other processes may have made it slower."""
        return not self.is_stable or self.other_load > MAX_QUIET_SHARE


@dataclass(frozen=True)
class LatencyMeter:
    """Measures networks for one kind of image on one engine. threads: CPU threads of the engine; they are stated."""

    preprocessing: Preprocessing
    task: Task
    engine: str = "torch"
    threads: int = 1

    def __post_init__(self) -> None:
        check_engine(self.engine)

    def measure(
        self, specs: Sequence[Spec], *, limit_s: float = math.inf, progress: Progress | None = None
    ) -> list[Latency]:  # fmt: skip
        """Return the latency of each network, in the order of the specs, with random weights.

        limit_s: networks that are much slower in the first round are not timed again.
        Raises EngineError if the engine cannot run a network.
        """
        engines = [self._start(spec) for spec in specs]
        pixels = [example_pixels(engine.header, 1) for engine in engines]
        rounds: list[list[list[float]]] = [[] for _ in engines]
        load = LoadMeter()
        for turn in range(ROUNDS):
            for i, engine in enumerate(engines):
                if not rounds[i] or min(rounds[i][0]) < HOPELESS * limit_s:
                    rounds[i].append(_time_round(engine, pixels[i]))
                if progress:
                    progress("measuring latency", turn * len(engines) + i + 1, ROUNDS * len(engines))
        other_load = load.share()
        return [_summarize(each, other_load) for each in rounds]

    def measure_alone(self, specs: Sequence[Spec], *, progress: Progress | None = None) -> list[Latency]:
        """Measure while no training of convatlas runs on this machine; see `measure`."""
        with closing(MachineLock()) as lock, lock.measuring():
            return self.measure(specs, progress=progress)

    def measure_one(self, spec: Spec, *, limit_s: float = math.inf, lock: MachineLock | None = None) -> Latency:
        """Return the latency of a network, measured while no training of convatlas runs on this machine.

        limit_s: above it, the network is measured again while other processes disturb the measurement, unless it takes
        far longer. lock: of this process, if it has one open.
        """
        measured: list[Latency] = []
        with closing(MachineLock()) if lock is None else nullcontext(lock) as lock:
            for attempt in range(MAX_MEASUREMENTS):
                if attempt:
                    time.sleep(PAUSE_S)
                with lock.measuring():
                    measured += self.measure([spec], limit_s=limit_s)
                last = measured[-1]
                if last.seconds <= limit_s or not last.is_disturbed or last.seconds > HOPELESS * limit_s:
                    break
        return min(measured, key=lambda each: each.seconds)

    def _start(self, spec: Spec) -> NetworkEngine:
        channels = self.preprocessing.channels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build_fresh(spec, classes=self.task.outputs, channels=channels).eval()
        header = Header("candidate", self.task, spec, self.preprocessing.for_resolution(spec.resolution))
        return NetworkEngine(EngineConfig(self.engine, threads=self.threads), network, header, batch=1)


def _time_round(engine: NetworkEngine, pixels: Any) -> list[float]:
    time_repeatedly(partial(engine.outputs, pixels), seconds=WARM_UP_S, min_runs=MIN_RUNS)
    return time_repeatedly(partial(engine.outputs, pixels), seconds=ROUND_S, min_runs=MIN_RUNS)


def _summarize(rounds: Sequence[list[float]], other_load: float) -> Latency:
    best, *others = sorted(map(min, rounds))
    times = sorted(seconds for each in rounds for seconds in each)
    p95 = times[min(len(times) - 1, math.ceil(0.95 * len(times)))]
    return Latency(best, statistics.median(times), p95, (others or [best])[0] / best - 1, round(other_load, 3))


FOLDS = 5
"""Of the cross-validation of a model."""

MIN_FITTED = 5
"""Fewest networks that a model is fitted to."""


@dataclass(frozen=True)
class LatencyModel(Record):
    """Seconds of a network as a sum over its layers: for each kind, seconds per layer, MAC and value; none negative.

    coefficients: of `Counts.layers`, and of the call. error_share, rank_correlation: on networks that were left out
    when they were predicted: the mean absolute relative error, and Spearman's correlation. networks: how many were
    measured. unstable: of them, those whose two best rounds differed by more than 10 %, because other processes
    disturbed them. kinds: of layers that they had. engine, threads, machine: where they were measured.
    """

    version = 1
    error = SearchError

    engine: str
    threads: Annotated[int, at_least(1)]
    machine: str
    coefficients: tuple[float, ...]
    error_share: float
    rank_correlation: float
    networks: int
    unstable: int = 0
    kinds: tuple[str, ...] = KINDS

    def __post_init__(self) -> None:
        super().__post_init__()
        number = len(KINDS) * len(COLUMNS) + 1
        if len(self.coefficients) != number or not all(0 <= each < math.inf for each in self.coefficients):
            raise SearchError(f"LatencyModel: coefficients must be {number} finite numbers >= 0")
        for kind in self.kinds:
            if kind not in KINDS:
                raise SearchError(f"LatencyModel: kinds must be of {', '.join(KINDS)}, got {kind!r}")

    @property
    def is_of_this_machine(self) -> bool:
        """Whether it was measured on the processor of this machine; with as many cores or others."""
        return self.machine.startswith(f"{processor_name()}, ")

    def predict(self, counts: Counts) -> float:
        """Return the predicted seconds for one image."""
        return float(np.dot((*counts.layers, 1.0), self.coefficients))

    def knows(self, counts: Counts) -> bool:
        """Return whether networks with all kinds of layers of this one were measured."""
        sums = np.array(counts.layers).reshape(-1, len(COLUMNS))[:, 0]
        return all(name in self.kinds for name, layers in zip(KINDS, sums, strict=True) if layers)

    def describe(self) -> str:
        """Return where it was measured, and how exact it is, in one line."""
        disturbed = f"; {self.unstable} of them were disturbed by other processes" if self.unstable else ""
        return (
            f"{self.engine}, {pluralize(self.threads, 'thread')}, {self.machine}: {self.networks} "
            f"networks, error {self.error_share:.1%}, rank correlation {self.rank_correlation:.2f} on those left out"
            f"{disturbed}"
        )

    @classmethod
    def fit(
        cls, measured: Sequence[tuple[Counts, float]], others: Sequence[tuple[Counts, float]] = (), *, engine: str,
        threads: int, unstable: int = 0,
    ) -> Self:  # fmt: skip
        """Fit a model to counts and seconds of at least `MIN_FITTED` networks, by relative errors.

        The error is that of `FOLDS`-fold cross-validation, in which `others`, with other kinds of layers, are never
        left out, unless there are too few of the first ones.
        """
        if len(measured) < MIN_FITTED:
            measured, others = (*measured, *others), ()
        if len(measured) < MIN_FITTED:
            raise SearchError(f"latency: must be measured for at least {MIN_FITTED} networks, got {len(measured)}")
        number, fitted = len(measured), (*measured, *others)
        rows = np.array([(*counts.layers, 1.0) for counts, _ in fitted])
        seconds = np.array([each for _, each in fitted])
        folds = np.array([*(np.arange(number) % FOLDS), *[FOLDS] * len(others)])
        predicted = np.empty(number)
        for fold in range(FOLDS):
            left_out = folds == fold
            predicted[left_out[:number]] = rows[left_out] @ _coefficients(rows[~left_out], seconds[~left_out])
        return cls(
            engine, threads, machine_name(), tuple(map(float, _coefficients(rows, seconds))),
            error_share=float(np.mean(np.abs(predicted / seconds[:number] - 1))),
            rank_correlation=float(spearmanr(predicted, seconds[:number]).statistic), networks=len(rows),
            unstable=unstable,
            kinds=tuple(name for name, column in zip(KINDS, rows.T[:: len(COLUMNS)], strict=False) if column.any()),
        )  # fmt: skip


def _coefficients(rows: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the non-negative coefficients of the smallest relative errors."""
    scale = np.maximum(rows.max(0), 1e-12)
    solved: NDArray[np.float64] = nnls(rows / scale / seconds[:, None], np.ones(len(rows)))[0] / scale
    return solved


def machine_name() -> str:
    """Return the processor and its number of cores, such as "AMD EPYC 9B14, 2 cores"."""
    return f"{processor_name()}, {count_cores()} cores"
