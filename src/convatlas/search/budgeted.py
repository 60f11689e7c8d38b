"""A space of specs within limits, whose candidates are counted before they are built."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convatlas.errors import ConvatlasError
from convatlas.search.counts import CostTable, Counts
from convatlas.search.latency import LatencyModel
from convatlas.search.limits import Limits
from convatlas.search.space import Candidate, Codes, SpecSpace
from convatlas.search.surrogate import GaussianProcess, Posterior

LATENCY_MARGIN = 1.05
"""Candidates whose predicted latency is this much above the limit are evaluated, too; then it is measured."""

MAX_KNOWN = 200_000
"""Candidates whose costs are kept."""

MIN_MEASURED, RATIO_NOISE = 5, 0.3
"""Measured latencies from which on predictions are corrected, and variance of their noise before the data, relative to
the signal."""


class BudgetedSpace(SpecSpace):
    """The networks of a space that are within limits, by their exact counts and their predicted latency.

    Parameters, MACs and latency, which cost nothing, are features of candidates: by their logarithms, networks of about
    the same cost are alike to the surrogate. A Gaussian process of the ratios of measured and predicted latencies tells
    which other candidates are too slow.
    """

    def __init__(self, space: SpecSpace, limits: Limits, latency: LatencyModel, *, classes: int, channels: int) -> None:
        super().__init__(space.template)
        self.limits, self.latency = limits, latency
        self.table = CostTable(space, classes=classes, channels=channels)
        self._known: dict[tuple[Any, ...], tuple[Counts, float] | None] = {}
        self._measured: dict[bytes, tuple[NDArray[np.float32], float]] = {}
        self._process: GaussianProcess | None = None

    def predict(self, candidate: Candidate) -> tuple[Counts, float] | None:
        """Return counts and predicted seconds; None for a candidate that cannot be built."""
        if len(self._known) > MAX_KNOWN:
            self._known.clear()
        key = tuple(candidate[name] for name in self.names)
        if key not in self._known:
            try:
                counts = self.table.counts(candidate)
            except ConvatlasError:
                self._known[key] = None
            else:
                self._known[key] = counts, self.latency.predict(counts)
        return self._known[key]

    def is_allowed(self, candidate: Candidate) -> bool:
        predicted = self.predict(candidate)
        return predicted is not None and not self.limits.exceeded(predicted[0], predicted[1] / LATENCY_MARGIN)

    def learn_latency(self, candidate: Candidate, seconds: float) -> None:
        """Correct the predictions near a candidate by its latency, which was measured."""
        codes, predicted = self.encode(candidate), self.predict(candidate)
        if predicted is not None and codes.tobytes() not in self._measured:
            place, ratio = self.positions(codes[None])[0], math.log(seconds / predicted[1])
            self._measured[codes.tobytes()] = place, ratio
            self._process = None

    def is_too_slow(self, candidate: Candidate) -> bool:
        """Return whether a candidate is expected to be above the limits by the latencies that were measured.

        False for one that was measured itself.
        """
        codes, predicted = self.encode(candidate), self.predict(candidate)
        if predicted is None or len(self._measured) < MIN_MEASURED or codes.tobytes() in self._measured:
            return False
        places, ratios = map(np.array, zip(*self._measured.values(), strict=True))
        if self._process is None:
            self._process = GaussianProcess(self.ordered, noise=RATIO_NOISE)
            self._process.fit(places, ratios)
        ratio, _ = Posterior(self._process, places, self.positions(codes[None])).predict(ratios)
        counts, seconds = predicted
        return bool(self.limits.exceeded(counts, seconds * math.exp(ratio[0]) / LATENCY_MARGIN))

    @property
    def ordered(self) -> NDArray[np.bool_]:
        return np.append(super().ordered, [True, True, True])

    def positions(self, codes: Codes) -> NDArray[np.float32]:
        places = super().positions(codes)
        features = np.zeros((len(codes), 3), dtype=np.float32)
        for row, each in zip(features, codes, strict=True):
            if (predicted := self.predict(self.decode(each))) is not None:
                counts, seconds = predicted
                row[:] = np.log10([counts.parameters + 1, counts.macs + 1, 1e9 * seconds + 1])
        return np.hstack((places, features))
