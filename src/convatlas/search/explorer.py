"""The engine of a search: a Gaussian process of accuracy and one of latency choose what is evaluated next."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convatlas.core.pareto import pareto_front
from convatlas.errors import SearchError
from convatlas.search.front import Floats, expected_growth
from convatlas.search.space import Candidate, Codes, Space, space_of
from convatlas.search.surrogate import GaussianProcess, Posterior

FIDELITIES = (0.1, 1.0)
"""A candidate is evaluated with a tenth of the full effort first."""

MAX_POOL = 20_000
"""Most candidates that are compared at once; of a larger space, random ones and relatives of the front."""

MAX_COMPARED = 3000
"""Most candidates that are compared between two fits: those of the largest expected growth."""

RELATIVES = 0.5
"""Share of the pool of a large space that are mutants and children of the front."""

REFIT = 8
"""The processes are fitted again when there are 1 + 1 / REFIT times as many values, and at least 4 more."""

ACCURACY_NOISE, LATENCY_NOISE = 0.05, 0.001
"""Variance of the noise before the data, relative to the signal."""

MARGIN = 0.02
"""By how much the area reaches beyond the slowest candidate, as a share of all."""

EDGE = 0.1
"""Softens the warp of accuracies near the best one, relative to the distance of the best and the median."""

MIN_PAIRS = 4
"""Candidates with two fidelities from which on the lower one is brought to the scale of the higher one."""


class Explorer:
    """Chooses candidates one after the other: `ask` for one, `tell` its accuracy and latency.

    At first candidates are random. Then each one is that of the largest expected growth of the area that the Pareto
    front dominates. Its axes have no unit: instead of the latency, the share of the candidates that are faster; and
    accuracies are stretched near the best one, where differences are small and matter.

    space: a `Space`, or a spec with `choose(...)` in its cells.
    fidelities: in rising order, the last one 1. A candidate begins with the lowest one, and gets the next one when it
    is still, or again, that of the largest growth; the process learns how far a lower fidelity can be trusted. If the
    first candidates with two fidelities have the same accuracy at both, later ones begin with the full fidelity.
    pool: most candidates that are compared at once; see `MAX_POOL`.
    Equal seeds give equal candidates for equal answers.
    """

    def __init__(
        self, space: Space | Any, *, seed: int = 0, budget: float = 300, fidelities: Sequence[float] = FIDELITIES,
        pool: int = MAX_POOL,
    ) -> None:  # fmt: skip
        if not isinstance(seed, int | np.integer) or seed < 0:
            raise SearchError(f"seed: must be an integer >= 0, got {seed!r}")
        self.space: Space = space_of(space)
        self.fidelities = checked_fidelities(fidelities)
        self.pool = pool
        self.random = np.random.default_rng(int(seed))
        self.first = round(min(max(2, budget / 5), max(10, 4 * len(self.space.names))))
        self._accuracy = GaussianProcess(np.append(self.space.ordered, True), noise=ACCURACY_NOISE)
        self._latency = GaussianProcess(self.space.ordered, noise=LATENCY_NOISE)
        self._codes: list[Codes] = []
        self._values: list[tuple[float, float, int]] = []
        self._reached: dict[bytes, int] = {}
        self._reserved: set[bytes] = set()
        self._last: dict[bytes, float] = {}
        self._equal: list[bool] = []
        self._pool: _Pool | None = None
        self._all: Codes | None = None
        self._fit_at = 0
        self._room = math.inf

    def ask(self, room: float = math.inf) -> tuple[Candidate, float] | None:
        """Return a candidate and the fidelity to evaluate it with; None if there is no other one.

        room: full evaluations for which there is time. A candidate must reach the full fidelity in it; of its last
        evaluation, half is enough.
        """
        self._room = room
        codes = self._choose() if self._least_effort(len(self.fidelities) - 2) <= room else None
        if codes is None:
            return None
        level = self._reached.get(codes.tobytes(), -1) + 1
        if self._ignores_fidelity:
            level = len(self.fidelities) - 1
        self._reached[codes.tobytes()] = level
        return self.space.decode(codes), self.fidelities[level]

    def tell(self, candidate: Candidate, *, accuracy: float, latency: float, fidelity: float = 1.0) -> None:
        """Add the result of a candidate. latency > 0.

        Raises SearchError for values that are no such numbers, and for an unknown candidate or fidelity.
        """
        if fidelity not in self.fidelities:
            raise SearchError(f"tell: fidelity must be one of {', '.join(map(str, self.fidelities))}, got {fidelity!r}")
        if not math.isfinite(accuracy) or not 0 < latency < math.inf:
            raise SearchError(f"tell: accuracy must be finite and latency > 0, got {accuracy!r} and {latency!r}")
        codes, level = self.space.encode(candidate), self.fidelities.index(fidelity)
        key = codes.tobytes()
        self._reached[key] = max(level, self._reached.get(key, 0))
        if key in self._last:
            self._equal.append(self._last[key] == accuracy)
        self._last[key] = accuracy
        self._codes.append(codes)
        self._values.append((accuracy, latency, level))
        if self._pool is not None:
            self._pool.add(self.space.positions(codes[None])[0], self._share(level))

    def reserve(self, candidates: Iterable[Candidate]) -> None:
        """Do not return these candidates until the next call, because others evaluate them."""
        self._reserved = {self.space.encode(candidate).tobytes() for candidate in candidates}

    def drop(self, candidate: Candidate) -> None:
        """Never return a candidate again, because its evaluation failed."""
        self._reached[self.space.encode(candidate).tobytes()] = len(self.fidelities) - 1

    @property
    def _ignores_fidelity(self) -> bool:
        return len(self._equal) >= MIN_PAIRS and all(self._equal)

    def _share(self, level: int) -> float:
        """Return the place of a fidelity in the process; that of the full one is 1."""
        return 1 - (len(self.fidelities) - 1 - level) / len(self.fidelities)

    def _is_open(self, codes: Codes) -> bool:
        key = codes.tobytes()
        level = self._reached.get(key, -1)
        is_known = key in self._reserved or level == len(self.fidelities) - 1
        return not is_known and self._least_effort(level) <= self._room

    def _least_effort(self, level: int) -> float:
        """Return the effort from a level, -1 for none, to half of the last evaluation, in full evaluations."""
        shares = (0.0, *self.fidelities)
        return (shares[-1] + shares[-2]) / 2 - shares[level + 1]

    def _choose(self) -> Codes | None:
        if len(self._values) < self.first:
            is_late = self._least_effort(-1) > self._room  # for a new candidate
            return self._promising() if is_late and self._values else self._random()
        levels = np.array([level for _, _, level in self._values])
        if (levels == len(self.fidelities) - 1).sum() < max(2, self.first // 4):
            return self._promising()
        return self._best_of_pool(levels)

    def _random(self) -> Codes | None:
        drawn = self.space.sample(len(self._reached.keys() | self._reserved) + 16, self.random)
        self.random.shuffle(drawn)
        open_ = [row for row in drawn if self._is_open(row)]
        return next(iter([row for row in open_ if row.tobytes() not in self._reached] or open_), None)

    def _promising(self) -> Codes | None:
        """Return one of the candidates that are best at a lower fidelity, so that there is a front to begin with."""
        open_ = [i for i, codes in enumerate(self._codes) if self._is_open(codes)]
        if not open_:
            return self._random()
        accuracy, latency = (np.array([self._values[i][column] for i in open_]) for column in (0, 1))
        return self._codes[open_[int(self.random.choice(pareto_front(accuracy, latency)))]]

    def _best_of_pool(self, levels: NDArray[np.int64]) -> Codes | None:
        values, costs = self._comparable(levels), np.log([latency for _, latency, _ in self._values])
        is_full = levels == len(self.fidelities) - 1
        fits = self._pool is None or len(values) >= self._fit_at
        if fits:
            self._refit(values, costs, levels)
        assert self._pool is not None
        growth = self._pool.growth(values, costs, is_full)
        if fits:
            until_next = max(4, len(values) // REFIT)
            self._fit_at = len(values) + until_next
            self._pool.keep_best(growth, room=until_next)
            growth = self._pool.growth(values, costs, is_full)
        for index in np.argsort(-growth, kind="stable"):
            codes: Codes = self._pool.codes[index]
            if self._is_open(codes):
                return codes
        return self._random()

    def _comparable(self, levels: NDArray[np.int64]) -> Floats:
        """Return warped accuracies (n,), those of a lower fidelity on the scale of the full one."""
        accuracies, top = np.array([accuracy for accuracy, _, _ in self._values]), len(self.fidelities) - 1
        values = np.empty(len(accuracies))
        full = {}
        for level in range(top, -1, -1):
            at = np.flatnonzero(levels == level)
            if len(at):
                values[at] = warp(accuracies[at])
            if level == top:
                full = {self._codes[i].tobytes(): values[i] for i in at}
                continue
            pairs = [(values[i], full[key]) for i in at if (key := self._codes[i].tobytes()) in full]
            lower, upper = np.array(pairs).reshape(-1, 2).T
            if len(pairs) >= MIN_PAIRS and lower.std() > 0:
                slope = max(0.0, float(np.cov(lower, upper)[0, 1] / lower.var(ddof=1)))
                values[at] = upper.mean() + slope * (values[at] - lower.mean())
        return values

    def _refit(self, values: Floats, costs: Floats, levels: NDArray[np.int64]) -> None:
        codes = np.array(self._codes)
        positions = self.space.positions(codes)
        shares = np.array([[self._share(level)] for level in levels], dtype=np.float32)
        _, once = np.unique(codes, axis=0, return_index=True)
        self._accuracy.fit(np.hstack((positions, shares)), values)
        self._latency.fit(positions[np.sort(once)], costs[np.sort(once)])
        pool = self._draw_pool(codes[pareto_front(values, costs)])
        places = self.space.positions(pool)
        self._pool = _Pool(
            pool,
            Posterior(
                self._accuracy, np.hstack((positions, shares)),
                np.hstack((places, np.ones((len(places), 1), dtype=np.float32))),
            ),
            Posterior(self._latency, positions, places),
        )  # fmt: skip

    def _draw_pool(self, front: Codes) -> Codes:
        """Return the whole space, or of a large one, random candidates and relatives of the front."""
        if self.space.size <= self.pool:
            if self._all is None:
                self._all = self.space.all()
            return self._all
        number = int(RELATIVES * self.pool) // 4
        parents = [front[self.random.integers(0, len(front), number)] for _ in range(5)]
        mutants = [self.space.mutate(each, self.random, changes=changes) for changes, each in enumerate(parents[:3], 1)]
        children = self.space.crossover(parents[3], parents[4], self.random)
        others = self.space.sample(self.pool - 4 * number, self.random)
        known = np.array(self._codes)
        return np.unique(np.concatenate((*mutants, children, others, known)), axis=0)


class _Pool:
    """Candidates that are compared, and both processes at them."""

    def __init__(self, codes: Codes, accuracy: Posterior, latency: Posterior) -> None:
        self.codes, self._accuracy, self._latency = codes, accuracy, latency
        self._ordered_costs: Floats | None = None

    def add(self, position: NDArray[np.float32], share: float) -> None:
        self._accuracy.add(np.append(position, np.float32(share)))
        self._latency.add(position)

    def keep_best(self, growth: Floats, *, room: int) -> None:
        """Compare the candidates of the largest growth only, for as many further values as there is room for."""
        if len(growth) > MAX_COMPARED:
            best = np.sort(np.argsort(-growth, kind="stable")[:MAX_COMPARED])
            self.codes = self.codes[best]
            for each in (self._accuracy, self._latency):
                each.keep(best, room=room)

    def growth(self, values: Floats, costs: Floats, is_full: NDArray[np.bool_]) -> Floats:
        """Return the expected growth of the area of the front by each candidate, (pool,)."""
        mean, std = self._accuracy.predict(values)
        cost, _ = self._latency.predict(costs)
        values, costs = values[is_full], costs[is_full]
        if self._ordered_costs is None:
            self._ordered_costs = np.sort(cost)
        ordered, front = self._ordered_costs, pareto_front(values, costs)
        share, share_of_front = (
            np.searchsorted(ordered, each, "right") / len(ordered) for each in (cost, costs[front])
        )
        return expected_growth(
            mean, std, share, values[front], share_of_front, least_accuracy=float(np.quantile(values, 0.1)),
            most_cost=1 + MARGIN,
        )  # fmt: skip


def checked_fidelities(fidelities: Sequence[float]) -> tuple[float, ...]:
    """Return fidelities that rise from above 0 to 1; raises SearchError for others."""
    levels: tuple[Any, ...] = tuple(fidelities) if isinstance(fidelities, Iterable) else (fidelities,)
    is_rising = all(isinstance(each, Real) for each in levels) and all(a < b for a, b in pairwise((0, *levels)))
    if not levels or levels[-1] != 1 or not is_rising:
        raise SearchError(f"fidelities: must rise from above 0 to 1, got {', '.join(map(str, levels))}")
    return levels


def warp(accuracies: Floats) -> Floats:
    """Return accuracies on a scale that is stretched near the best one, whatever their unit."""
    best = accuracies.max()
    spread = best - np.median(accuracies)
    warped: Floats = -np.log(EDGE + (best - accuracies) / (spread or 1.0))
    return warped
