"""Which networks are within the limits of a search, before any is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace

from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Spec
from convatlas.errors import EngineError
from convatlas.search.counts import Counts
from convatlas.search.latency import LatencyMeter, LatencyModel
from convatlas.search.limits import Limits

TOO_SLOW = 1.5
"""Networks whose predicted latency is more than so many times the limit are not measured."""

MACS_PER_S = 2e11
"""MACs per second that no thread of a CPU reaches; networks that would need more are not measured."""


@dataclass(frozen=True)
class Screen:
    """Tells which networks are within the limits.

    limits: that no network may exceed. model: predicts latencies; without one, all are measured.
    measures: whether latencies are measured on this machine; else the model is of another one.
    """

    limits: Limits
    meter: LatencyMeter
    model: LatencyModel | None
    measures: bool

    def latency(self, spec: Spec, preprocessing: Preprocessing | None = None) -> float | None:
        """Return the seconds for one image of a network that is within the limits, or None.

        preprocessing: of the network, if it is not that of the meter.
        """
        counts = Counts.of(spec, classes=self.meter.task.outputs, channels=self.meter.preprocessing.channels)
        if self.limits.exceeded(counts):
            return None
        if self.model is not None:
            predicted = self.model.predict(counts)
            if not self.measures and not self.model.knows(counts):
                return None
            if not self.measures:
                return None if self.limits.exceeded(counts, predicted) else predicted
            if predicted > TOO_SLOW * self.limits.target_s:
                return None
        meter = self.meter if preprocessing is None else replace(self.meter, preprocessing=preprocessing)
        limit = self.limits.target_s
        if counts.macs > MACS_PER_S * meter.threads * limit:
            return None
        try:
            seconds = meter.measure_one(spec, limit_s=limit).seconds
        except EngineError:  # it cannot run the network
            return None
        return seconds if seconds <= limit else None
