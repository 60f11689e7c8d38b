"""Model selection: the limits of a budget, the networks within it, and their ranking."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convatlas.core.spec import Spec
from convatlas.errors import SpecError
from convatlas.models.catalog import CATALOG, Stem, adapted
from convatlas.system.quantities import COUNT, TIME, as_number
from convatlas.tasks.result import Baseline
from convatlas.train.run_folder import write_table
from convatlas.train.settings import DataOptions
from convatlas.weights.pretrained import list_weights

CANDIDATES = "candidates.csv"
"""File in the run directory of the best network that lists all candidates."""


@dataclass(frozen=True)
class Budget:
    """Upper limits for one image: latency in seconds, parameters, multiply-adds. At least one must be finite.

    Limits may be texts such as "30ms" and "5M"; they become numbers.
    """

    latency_s: float = math.inf
    params: float = math.inf
    macs: float = math.inf

    def __post_init__(self) -> None:
        limits = dataclasses.asdict(self)
        for name, limit in limits.items():
            limits[name] = as_number(limit, TIME if name == "latency_s" else COUNT, f"Budget: {name}")
            object.__setattr__(self, name, limits[name])
            if not limits[name] > 0:
                raise SpecError(f"Budget: {name} must be a number > 0, got {limit}")
        if min(limits.values()) == math.inf:
            raise SpecError(f"Budget: one of {', '.join(limits)} must be given")

    def __str__(self) -> str:
        texts = (
            TIME.format(self.latency_s) if math.isfinite(self.latency_s) else "",
            f"{self.params:,.0f} parameters" if math.isfinite(self.params) else "",
            f"{self.macs:,.0f} MACs" if math.isfinite(self.macs) else "",
        )
        return " and ".join(filter(None, texts))


@dataclass(frozen=True)
class Candidate:
    """A network within the budget, with the input that it would be trained with.

    params, macs: for one image. latency_s: lower quartile of the seconds for one image on this machine.
    frames: of a clip, if they are not those of the network's row.
    weights: name of the weights that it starts from; empty for random ones. scores: on val after each of its rungs
    in the search. error: why it could not be trained, or empty.
    """

    name: str
    family: str
    stem: Stem
    resolution: int
    params: int
    macs: int
    latency_s: float = math.nan
    weights: str = ""
    scores: tuple[float, ...] = ()
    error: str = ""
    frames: int | None = None

    @property
    def spec(self) -> Spec:
        return adapted(CATALOG[self.name].spec, stem=self.stem, resolution=self.resolution, frames=self.frames)

    def to_plain(self) -> dict[str, Any]:
        """Return the candidate as a row of candidates.csv; scores are separated by spaces."""
        return {
            "name": self.name, "family": self.family, "stem": self.stem, "input_px": self.resolution,
            "parameters": self.params, "macs": self.macs, "weights": self.weights or None,
            "latency_ms": None if math.isnan(self.latency_s) else 1000 * self.latency_s,
            "scores": " ".join(map(str, self.scores)) or None, "error": self.error or None,
        }  # fmt: skip

    @property
    def reported_accuracy(self) -> float:
        """The best top-1 accuracy on ImageNet, in percent, that is reported for published weights; 0 if none is."""
        metrics = [weights.reported_metrics.items() for weights in list_weights(self.name)]
        return max((value for items in metrics for name, value in items if name.endswith("acc@1")), default=0.0)


@dataclass(frozen=True)
class ModelSelection:
    """The networks within a budget: those that were trained, best first, then the others by latency.

    metric: name of the score, empty if only one network was left and none was trained. rung_seconds: training time per
    network up to the end of each rung. baseline: what the best must be better than, on the evaluated images.
    """

    candidates: tuple[Candidate, ...]
    metric: str = ""
    rung_seconds: tuple[float, ...] = ()
    baseline: Baseline | None = None

    @property
    def best(self) -> Candidate:
        return self.candidates[0]

    @property
    def conclusive(self) -> bool:
        """Whether the best network is better than chance, or the only candidate."""
        return not self.best.scores or self.baseline is None or self.best.scores[-1] > self.baseline.upper_bound

    @property
    def warning(self) -> str:
        """What to do if the search is inconclusive; empty if it is conclusive."""
        if self.conclusive or self.baseline is None:
            return ""
        score, limit = self.baseline.score, min(1.0, self.baseline.upper_bound)
        return (
            f"search inconclusive: after {self.rung_seconds[-1]:.0f} s, no candidate is clearly better than "
            f"{self.baseline.text} ({score:.2%}, and up to {limit:.1%} by chance on so small a val split); increase "
            "--search-time, download weights (`convatlas weights pull`), or name a network"
        )

    def write(self, path: Path) -> None:
        """Write all candidates as CSV."""
        write_table(path, [candidate.to_plain() for candidate in self.candidates])

    def data_options(self, options: DataOptions | None = None) -> DataOptions:
        """Return options for a run with the best network: stem and resolution are replaced."""
        return dataclasses.replace(options or DataOptions(), stem=self.best.stem, resolution=self.best.resolution)

    def __repr__(self) -> str:
        lines = [f"best of {len(self.candidates)} networks: {self.best.name}"]
        for each in self.candidates[:20]:
            scores = each.error or ", ".join(f"{score:.1%}" for score in each.scores)
            lines.append(
                f"  {each.name:<24} {each.resolution:>4} px {each.params / 1e6:>7.2f} M params "
                f"{each.macs / 1e6:>8.1f} M MACs {1000 * each.latency_s:>7.1f} ms  {scores}".rstrip()
            )
        return "\n".join([*lines, *([self.warning] if self.warning else [])])
