"""Compound scaling found for a network, a data set and a device: the procedure of EfficientNet (Tan and Le 2019).

Step 1 (section 3.3): phi = 1, a grid of alpha, beta, gamma with alpha beta² gamma² about 2, each trained alike. Step 2:
phi grows with these fixed. Instead of the product, the measured latency may be what doubles.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from convatlas.core.spec import SMALL, Spec
from convatlas.data.open import open_for_training
from convatlas.errors import DivergedError, SearchError, SpecError, brief
from convatlas.models.catalog import adapted, resolve
from convatlas.models.scaling import fast_factors, scale_compound
from convatlas.search.catalog_networks import input_side, is_small
from convatlas.search.counts import Counts
from convatlas.search.latency import LatencyMeter
from convatlas.system.devices import is_out_of_memory
from convatlas.system.files import write_text
from convatlas.system.locks import MachineLock
from convatlas.system.progress import Progress, progress_callback
from convatlas.train.fit import prepare_run
from convatlas.train.preparation import preprocessing_for
from convatlas.train.recipe_fields import RecipeFields
from convatlas.train.resume import open_run
from convatlas.train.run_folder import CONFIG, check_outside, create_default_folder
from convatlas.train.settings import DataOptions, RunOptions

Doubled = Literal["macs", "latency"]
"""What is about twice as large at phi = 1."""

Rule = Literal["compound", "fast"]
"""How alpha, beta and gamma are found: by training a grid, or those of dWr (Dollár et al. 2021) without a search."""

LEAST, MOST = 1.9, 2.1
"""Limits of what doubles: of alpha beta² gamma², or of the latency."""

LEAST_COUNTED, MOST_COUNTED = 1.8, 2.2
"""Limits of the counted MACs relative to the base: depths and widths are rounded, so that some products miss 2."""

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

PHI_SHARES = tuple(step / 20 for step in range(10, 31))
"""Shares of phi in which the other rules look for the cost of compound scaling: depths and widths are rounded."""

RESULT, SETTINGS, LATENCIES = "scaling.json", "settings.json", "latencies.json"
"""Files in the directory of a scale search: of the result, of what it was started with, of what was measured."""


@dataclass(frozen=True)
class Scaled:
    """A scaled network that was trained. rule: a `Rule` or a dimension. accuracies: on val, of one seed each.

    error: why a training failed, whose accuracy is then 0; or empty.
    """

    rule: str
    phi: float
    alpha: float
    beta: float
    gamma: float
    spec: Spec
    counts: Counts
    latency_s: float
    accuracies: tuple[float, ...] = ()
    error: str = ""

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
            "error": self.error or None,
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
    chosen = [min(points, key=lambda point: math.dist(point, PUBLISHED))] if points else []
    while len(chosen) < min(number, len(points)):
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
    spread over it. epochs, seeds: of each training. sizes: phi of the family, which is compared with networks of
    dWr, depth, width and resolution alone that have about the same MACs.
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
        rules = DIMENSIONS if is_fast else {"fast": FAST, **DIMENSIONS}
        for factors in (*rules.values(), *(each.factors for each in grid)):  # a size may be impossible
            lab.scaled_spec(max(sizes), factors)
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
        others = [
            lab.at_cost(name, member, factors) for name, factors in rules.items() for member in family[1:]
        ]  # fmt: skip
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
    lock: MachineLock = field(default_factory=MachineLock)
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
        check_outside(folder, data)
        folder.mkdir(parents=True, exist_ok=True)
        chosen = None if recipe is None or not Path(recipe).is_file() else Path(recipe).read_text(encoding="utf-8")
        _check_settings(folder, {
            "network": spec.to_plain(), "data": data, "epochs": epochs, "recipe": chosen or recipe, "engine": engine,
        })  # fmt: skip
        return cls(spec, data, folder, epochs, seeds, meter, source.channels, recipe, progress)

    def measure(self, rule: str, phi: float, factors: tuple[float, float, float]) -> Scaled:
        """Count a network, and measure its latency while nothing else of convatlas runs."""
        spec = self.scaled_spec(phi, factors)
        return Scaled(rule, phi, *factors, spec, self.counts_of(spec), self.latency_of(spec))

    def at_cost(self, rule: str, other: Scaled, factors: tuple[float, float, float]) -> Scaled:
        """Measure the network of a rule that costs what another one does: phi is the one with the nearest MACs."""

        def distance(phi: float) -> float:
            try:
                macs = self.counts_of(self.scaled_spec(phi, factors)).macs
            except SpecError:
                return math.inf
            return abs(math.log(macs / other.counts.macs))

        phis = sorted((round(other.phi * share, 4) for share in PHI_SHARES), key=lambda phi: abs(phi - other.phi))
        return self.measure(rule, min(phis, key=distance), factors)

    def scaled_spec(self, phi: float, factors: tuple[float, float, float]) -> Spec:
        alpha, beta, gamma = factors
        return scale_compound(self.spec, phi, alpha=alpha, beta=beta, gamma=gamma)

    def counts_of(self, spec: Spec) -> Counts:
        return Counts.of(spec, classes=self.meter.task.outputs, channels=self.channels)

    def latency_of(self, spec: Spec) -> float:
        """Return the latency of a network in seconds; what was measured before is read."""
        path, key = self.folder / LATENCIES, hashlib.sha256(json.dumps(spec.to_plain()).encode()).hexdigest()[:16]
        known: dict[str, float] = _read(path) if path.is_file() else {}
        if key not in known:
            known[key] = self.meter.measure_one(spec, lock=self.lock).seconds
            write_text(path, json.dumps(known, indent=1) + "\n")
        return known[key]

    def grid(self, base: Scaled, doubled: Doubled, number: int) -> Iterable[Scaled]:
        """Yield the networks of step 1, different ones: rounding makes many equal, which the most central point has."""
        points = scaling_grid()
        if doubled == "latency":
            alphas, others = _steps(1.0, MOST_ALPHA, 2 * STEP), _steps(1.0, MOST_BETA, 2 * STEP)
            points = [point for point in itertools.product(alphas, others, others) if max(point) > 1]
        equal: dict[str, list[tuple[float, float, float]]] = {}
        for point in points:
            spec = self.scaled_spec(1, point)
            if spec != self.spec:
                equal.setdefault(json.dumps(spec.to_plain()), []).append(point)
        different = [_central(each) for each in equal.values()]
        if doubled == "macs":
            ratios = [self.counts_of(self.scaled_spec(1, point)).macs / base.counts.macs for point in different]
            different = [
                point for point, ratio in zip(different, ratios, strict=True) if LEAST_COUNTED <= ratio <= MOST_COUNTED
            ]
        found = 0
        for point in spread(different, len(different) if doubled == "latency" else number):
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
        accuracies, failed = [], ""
        for seed in self.seeds:
            try:
                accuracies.append(self._accuracy(scaled, seed))
            except (DivergedError, RuntimeError, MemoryError) as error:
                if not isinstance(error, DivergedError) and not is_out_of_memory(error):
                    raise
                accuracies.append(0.0)
                failed = brief(error)
            self.done += 1
            self.progress(f"training: {scaled.rule}, phi {scaled.phi:g}", self.done, self.total)
        return replace(scaled, accuracies=tuple(accuracies), error=failed)

    def _accuracy(self, scaled: Scaled, seed: int) -> float:
        """Return the accuracy on val after the last epoch, of a run in the directory."""
        folder = self.folder / "runs" / f"{_name(scaled)}-seed{seed}"
        if (folder / CONFIG).is_file():
            run = open_run(folder)
        else:
            folder.parent.mkdir(exist_ok=True)
            run = prepare_run(
                self.data, scaled.spec, weights="none", recipe=self.recipe, seed=seed, out=folder,
                options=RunOptions(diagnostics=False, report=False),
                **cast(RecipeFields, {"epochs": self.epochs}),
            )  # fmt: skip
        events = run.steps()
        is_over = run.state.finished
        while not is_over:
            with self.lock.working():
                is_over = next(events, None) is None
        last = run.state.history[-1]
        key = next((name for name in ("val_accuracy", "val_top1") if name in last), None)
        if key is None:
            raise SearchError(f"{self.data}: a scale search needs classes and a val split")
        return float(last[key])


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write what a scale search is started with; raises SearchError if the directory has one of something else."""
    path = folder / SETTINGS
    before = _read(path) if path.is_file() else settings
    for name, value in settings.items():
        if before.get(name) != value:
            raise SearchError(f"{folder}: has a scale search with another {name}; choose another --out")
    write_text(path, json.dumps(settings, indent=1) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise SearchError(f"{path}: damaged ({brief(error)})") from error


def _central(points: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Return the point nearest to the mean of all."""
    mean = [statistics.fmean(axis) for axis in zip(*points, strict=True)]
    return min(points, key=lambda point: math.dist(point, mean))


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
