"""Compound scaling found for a network, a data set and a device: the procedure of EfficientNet (Tan and Le 2019).

Step 1 (section 3.3): phi = 1, a grid of alpha, beta, gamma with alpha beta² gamma² about 2, each trained alike. Step 2:
phi grows with these fixed. Instead of the product, the measured latency may be what doubles.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from convatlas.core.spec import SMALL, Spec
from convatlas.data.open import open_for_training
from convatlas.errors import SearchError
from convatlas.models.catalog import adapted, resolve
from convatlas.models.scaling import fast_factors, scale_compound
from convatlas.search.catalog_networks import input_side, is_small
from convatlas.search.counts import Counts
from convatlas.search.latency import LatencyMeter
from convatlas.system.files import write_text
from convatlas.system.progress import Progress, progress_callback
from convatlas.train.fit import prepare_run
from convatlas.train.preparation import preprocessing_for
from convatlas.train.recipe_fields import RecipeFields
from convatlas.train.resume import open_run
from convatlas.train.run_folder import CONFIG, create_default_folder
from convatlas.train.settings import DataOptions, RunOptions

Doubled = Literal["macs", "latency"]
"""What is about twice as large at phi = 1."""

Rule = Literal["compound", "fast"]
"""How alpha, beta and gamma are found: by training a grid, or those of dWr (Dollár et al. 2021) without a search."""

LEAST, MOST = 1.9, 2.1
"""Limits of what doubles: of alpha beta² gamma², or of the latency."""

PUBLISHED = (1.2, 1.1, 1.15)
"""alpha, beta, gamma of EfficientNet."""

STEP, MOST_ALPHA, MOST_BETA = 0.05, 2.0, 1.4
"""Step of the grid, and its largest alpha; beta and gamma."""

_FAST = fast_factors(2)
FAST = (_FAST.depth, _FAST.width, _FAST.resolution)
"""alpha, beta, gamma of dWr: activations, and so time, grow slowly."""

DIMENSIONS: dict[str, tuple[float, float, float]] = {
    "depth": (2.0, 1.0, 1.0), "width": (1.0, math.sqrt(2), 1.0), "resolution": (1.0, 1.0, math.sqrt(2)),
}  # fmt: skip
"""alpha, beta, gamma of scaling in one dimension."""

RESULT = "scaling.json"
"""File of the result in the directory of a scale search."""


@dataclass(frozen=True)
class Scaled:
    """A scaled network that was trained. rule: a `Rule` or a dimension. accuracies: on val, of one seed each."""

    rule: str
    phi: float
    alpha: float
    beta: float
    gamma: float
    spec: Spec
    counts: Counts
    latency_s: float
    accuracies: tuple[float, ...] = ()

    @property
    def accuracy(self) -> float:
        return statistics.fmean(self.accuracies) if self.accuracies else math.nan

    @property
    def factors(self) -> tuple[float, float, float]:
        return self.alpha, self.beta, self.gamma

    def to_plain(self) -> dict[str, Any]:
        """Return the network as a row of scaling.json."""
        return {
            "rule": self.rule, "phi": self.phi, "alpha": self.alpha, "beta": self.beta, "gamma": self.gamma,
            "input_px": self.spec.resolution, "parameters": self.counts.parameters, "macs": self.counts.macs,
            "latency_ms": 1000 * self.latency_s, "accuracies": list(self.accuracies), "spec": self.spec.to_plain(),
        }  # fmt: skip


@dataclass(frozen=True)
class ScaleSearch:
    """The result of a scale search.

    grid: all networks of step 1, the most accurate first. by_seed: alpha, beta, gamma that each seed alone would
    choose. family: B0, B1, ... by the chosen ones. compared: compound scaling and each dimension, at several costs.
    """

    folder: Path
    base: Scaled
    grid: tuple[Scaled, ...]
    by_seed: tuple[tuple[float, float, float], ...]
    family: tuple[Scaled, ...]
    compared: tuple[Scaled, ...]

    @property
    def best(self) -> Scaled:
        return self.grid[0]

    def to_plain(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {
            "alpha": self.best.alpha, "beta": self.best.beta, "gamma": self.best.gamma,
            "by_seed": [list(each) for each in self.by_seed], "base": self.base.to_plain(),
            "grid": [each.to_plain() for each in self.grid], "members": [each.to_plain() for each in self.family],
            "compared": [each.to_plain() for each in self.compared],
        }  # fmt: skip


def scaling_grid(*, step: float = STEP) -> list[tuple[float, float, float]]:
    """Return all (alpha, beta, gamma) on a grid with alpha beta² gamma² in [1.9, 2.1] (step 0.05: 109 of them)."""
    alphas = _steps(1.0, MOST_ALPHA, step)
    others = _steps(1.0, MOST_BETA, step)
    return [
        (alpha, beta, gamma)
        for alpha, beta, gamma in itertools.product(alphas, others, others)
        if LEAST - 1e-9 <= alpha * beta**2 * gamma**2 <= MOST + 1e-9
    ]


def _steps(low: float, high: float, step: float) -> list[float]:
    return [round(low + i * step, 4) for i in range(round((high - low) / step) + 1)]


def spread(points: Sequence[tuple[float, float, float]], number: int) -> list[tuple[float, float, float]]:
    """Return some of the points, far from each other: the one nearest to the published ones, then the farthest."""
    if number >= len(points):
        return list(points)
    chosen = [min(points, key=lambda point: math.dist(point, PUBLISHED))]
    while len(chosen) < number:
        chosen.append(max(points, key=lambda point: min(math.dist(point, other) for other in chosen)))
    return chosen


def scale_search(
    network: str | Spec,
    data: str,
    *,
    doubled: Doubled = "macs",
    rule: Rule = "compound",
    number: int = 12,
    epochs: int = 10,
    seeds: Sequence[int] = (0,),
    sizes: Sequence[float] = (1, 2),
    engine: str = "torch",
    out: str | Path | None = None,
    resolution: int | None = None,
    recipe: str | None = None,
    on_network: Callable[[Scaled], None] = lambda scaled: None,
    progress: Progress | bool = True,
) -> ScaleSearch:
    """Find alpha, beta and gamma of compound scaling for a network and data, and compare it with single dimensions.

    doubled: "macs" chooses from the grid of the paper; "latency" from all factors with which the measured latency about
    doubles. rule: "fast" takes the factors of dWr instead of a grid. number: networks of the grid that are trained,
    spread over it. epochs, seeds: of each training. sizes: phi of the family, and of the comparison with dWr, depth,
    width and resolution alone.
    out: the directory; that of a stopped search continues it. Raises SearchError if no factors double the cost.
    """
    if doubled not in ("macs", "latency"):
        raise SearchError(f"scale-search: what doubles must be macs or latency, got {doubled!r}")
    if rule not in get_args(Rule):
        raise SearchError(f"scale-search: rule must be one of {', '.join(get_args(Rule))}, got {rule!r}")
    if number < 2 or epochs < 1 or not seeds:
        raise SearchError("scale-search: there must be at least 2 networks, 1 epoch and 1 seed")
    if not sizes or not all(0 < phi < math.inf for phi in sizes):
        raise SearchError(f"scale-search: sizes must be numbers > 0, got {', '.join(map(str, sizes)) or 'none'}")
    folder = Path(out) if out is not None else create_default_folder("scale", Path(data).name, data)
    with progress_callback(progress) as report:
        lab = _Laboratory.open(network, data, folder, epochs, tuple(seeds), engine, resolution, recipe, report)
        base = lab.measure("base", 0.0, (1.0, 1.0, 1.0))
        is_fast = rule == "fast"
        grid = [lab.measure(rule, 1.0, FAST)] if is_fast else list(lab.grid(base, doubled, number))
        if not grid:
            raise SearchError(f"scale-search: no factors of the grid double the {doubled} of this network")
        lab.total = len(seeds) * (1 + len(grid))
        base = lab.train(base)
        on_network(base)
        trained = []
        for each in grid:
            trained.append(lab.train(each))
            on_network(trained[-1])
        ranked = sorted(trained, key=lambda each: -each.accuracy)
        by_seed = tuple(max(trained, key=lambda each: each.accuracies[i]).factors for i in range(len(seeds)))
        family = [base, *(lab.measure(rule, phi, ranked[0].factors) for phi in sizes)]
        rules = DIMENSIONS if is_fast else {"fast": FAST, **DIMENSIONS}
        others = [lab.measure(name, phi, factors) for name, factors in rules.items() for phi in sizes]
        lab.total += len(seeds) * (len(sizes) + len(others))
        compared = []
        for each in (*family[1:], *others):
            compared.append(lab.train(each))
            on_network(compared[-1])
    result = ScaleSearch(folder, base, tuple(ranked), by_seed, (base, *compared[: len(sizes)]), tuple(compared))
    write_text(folder / RESULT, json.dumps(result.to_plain(), indent=1) + "\n")
    return result


@dataclass
class _Laboratory:
    """Measures and trains scaled networks; every training is a run directory that can be continued."""

    spec: Spec
    data: str
    folder: Path
    epochs: int
    seeds: tuple[int, ...]
    meter: LatencyMeter
    channels: int
    recipe: str | None
    progress: Progress
    total: int = 0
    done: int = 0

    @classmethod
    def open(
        cls, network: str | Spec, data: str, folder: Path, epochs: int, seeds: tuple[int, ...], engine: str,
        resolution: int | None, recipe: str | None, progress: Progress,
    ) -> _Laboratory:  # fmt: skip
        options = DataOptions()
        source = open_for_training(data, reads="images", val_share=options.val_share, progress=progress)
        _, row = resolve(network)
        small = is_small(input_side(source, options))
        stem: Literal["cifar", "default"] = "cifar" if small and not is_small(row.spec.resolution) else "default"
        side = resolution or (SMALL if small else row.spec.resolution)
        spec = adapted(row.spec, stem=stem, resolution=side)
        preprocessing = preprocessing_for(source, row.preprocessing, spec, source.channels, seeds[0], options)
        meter = LatencyMeter(preprocessing, source.task, engine)
        data = source.location
        folder.mkdir(parents=True, exist_ok=True)
        return cls(spec, data, folder, epochs, seeds, meter, source.channels, recipe, progress)

    def measure(self, rule: str, phi: float, factors: tuple[float, float, float]) -> Scaled:
        """Count a network, and measure its latency while nothing else of convatlas runs."""
        alpha, beta, gamma = factors
        spec = scale_compound(self.spec, phi, alpha=alpha, beta=beta, gamma=gamma)
        counts = Counts.of(spec, classes=self.meter.task.outputs, channels=self.channels)
        latency = self.meter.measure_one(spec).seconds
        return Scaled(rule, phi, alpha, beta, gamma, spec, counts, latency)

    def grid(self, base: Scaled, doubled: Doubled, number: int) -> Iterable[Scaled]:
        """Yield the networks of step 1, different ones: rounding makes many equal."""
        points = scaling_grid()
        if doubled == "latency":
            alphas, others = _steps(1.0, MOST_ALPHA, 2 * STEP), _steps(1.0, MOST_BETA, 2 * STEP)
            points = [point for point in itertools.product(alphas, others, others) if max(point) > 1]
        different: dict[str, tuple[float, float, float]] = {}
        for alpha, beta, gamma in points:
            spec = scale_compound(self.spec, 1, alpha=alpha, beta=beta, gamma=gamma)
            if spec != self.spec:
                different.setdefault(json.dumps(spec.to_plain()), (alpha, beta, gamma))
        found = 0
        for point in spread(list(different.values()), len(different) if doubled == "latency" else number):
            scaled = self.measure("compound", 1.0, point)
            ratio = scaled.latency_s / base.latency_s
            if doubled == "latency" and not LEAST <= ratio <= MOST:
                continue
            yield scaled
            found += 1
            if found == number:
                return

    def train(self, scaled: Scaled) -> Scaled:
        """Train a network with every seed; what was trained before is read."""
        accuracies = []
        for seed in self.seeds:
            accuracies.append(self._accuracy(scaled, seed))
            self.done += 1
            self.progress(f"training: {scaled.rule}, phi {scaled.phi:g}", self.done, self.total)
        return replace(scaled, accuracies=tuple(accuracies))

    def _accuracy(self, scaled: Scaled, seed: int) -> float:
        """Return the accuracy on val after the last epoch, of a run in the directory."""
        folder = self.folder / "runs" / f"{_name(scaled)}-seed{seed}"
        if (folder / CONFIG).is_file():
            run = open_run(folder)
            config = run.config
            if (config.spec, config.recipe.epochs, config.data) != (scaled.spec, self.epochs, self.data):
                raise SearchError(
                    f"{folder}: is a training of another network, data or number of epochs; choose another --out"
                )
        else:
            folder.parent.mkdir(exist_ok=True)
            run = prepare_run(
                self.data, scaled.spec, weights="none", recipe=self.recipe, seed=seed, out=folder,
                options=RunOptions(diagnostics=False, report=False),
                **cast(RecipeFields, {"epochs": self.epochs}),
            )  # fmt: skip
        for _ in run.steps():
            pass
        last = run.state.history[-1]
        key = next((name for name in ("val_accuracy", "val_top1") if name in last), None)
        if key is None:
            raise SearchError(f"{self.data}: a scale search needs classes and a val split")
        return float(last[key])


def _name(scaled: Scaled) -> str:
    factors = "-".join(f"{factor:.3g}" for factor in scaled.factors)
    return f"{scaled.rule}-phi{scaled.phi:g}-{factors}" if scaled.phi else "base"


def series(result: ScaleSearch) -> dict[str, list[tuple[float, float]]]:
    """Return (MACs in millions, accuracy in percent) of each rule, from the base on."""
    start = (result.base.counts.macs / 1e6, 100 * result.base.accuracy)
    lines: dict[str, list[tuple[float, float]]] = {}
    for each in result.compared:
        lines.setdefault(each.rule, [start]).append((each.counts.macs / 1e6, 100 * each.accuracy))
    return lines
