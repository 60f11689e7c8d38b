"""A space of specs within limits, whose candidates are counted before they are built."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from convatlas.errors import ConvatlasError
from convatlas.search.counts import CostTable, Counts
from convatlas.search.latency import LatencyModel
from convatlas.search.limits import Limits
from convatlas.search.space import Candidate, Codes, SpecSpace

LATENCY_MARGIN = 1.05
"""Candidates whose predicted latency is this much above the limit are evaluated, too; then it is measured."""


MAX_KNOWN = 200_000
"""Candidates whose costs are kept."""


class BudgetedSpace(SpecSpace):
    """The networks of a space that are within limits, by their exact counts and their predicted latency.

    Parameters, MACs and latency, which cost nothing, are features of candidates: by their logarithms, networks of about
    the same cost are alike to the surrogate.
    """

    def __init__(self, space: SpecSpace, limits: Limits, latency: LatencyModel, *, classes: int, channels: int) -> None:
        super().__init__(space.template)
        self.limits, self.latency = limits, latency
        self.table = CostTable(space, classes=classes, channels=channels)
        self._known: dict[tuple[Any, ...], tuple[Counts, float] | None] = {}

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
