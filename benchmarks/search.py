"""Search algorithms on NAS-Bench-201, whose 15,625 cells were all trained: accuracy against latency on five devices.

    python benchmarks/search.py TABLE [--seeds N] [--devices NAMES] [--methods NAMES] [--workers N] [--json FILE]

TABLE is `cifar10_accuracy_latency.csv.gz`: a row for each cell, with test accuracy after 200 epochs and latencies in
ms. Cells whose latency is below 5 % of the device's median are left out (degenerate ones). Every method has a budget of
300 evaluations; a cell that a method of Optuna proposes again costs it nothing. `explore` may look at the validation
accuracy after 12 epochs, which counts as a tenth of an evaluation (12 of 200 epochs are 6 %). Prints medians over the
seeds:

* gap: the area that the Pareto front of the first 100, 200 and 300 cells does not dominate, in % of that of all cells;
  above an accuracy of 85 % and below the largest latency,
* below the optimum: by how many points the best accuracy within three limits (the quartiles of the latencies) is below
  the best there is, after 300 cells.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import convatlas as ca
from convatlas.search.front import hypervolume

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = tuple(f"edge {number}" for number in range(6))
DEVICES = ("pixel3", "raspi4", "gold_6226", "1080ti_1", "1080ti_32")
EVALUATIONS = (100, 200, 300)
LEAST_ACCURACY = 85.0
DEGENERATE = 0.05


@dataclass(frozen=True)
class Table:
    """The cells of one device. cells: operations on the six edges -> row."""

    cells: dict[tuple[str, ...], int]
    accuracy: NDArray[np.float64]
    early_accuracy: NDArray[np.float64]
    latency: NDArray[np.float64]

    def row(self, candidate: ca.search.Candidate) -> int | None:
        return self.cells.get(tuple(candidate[edge] for edge in EDGES))

    def space(self) -> ca.search.Space:
        return ca.search.Space(dict.fromkeys(EDGES, OPERATIONS), allowed=lambda cell: self.row(cell) is not None)


@cache
def read(path: Path, device: str) -> Table:
    with gzip.open(path, "rt") as file:
        rows = list(csv.DictReader(file))
    latency = np.array([float(row[f"ms_{device}"]) for row in rows])
    kept = [row for row, ms in zip(rows, latency, strict=True) if ms > DEGENERATE * np.median(latency)]
    cells = {tuple(re.findall(r"([a-z_0-9]+)~\d", row["cell"])): number for number, row in enumerate(kept)}
    accuracy = np.array([float(row["cifar10_test_e200"]) for row in kept])
    early = np.array([float(row["cifar10_valid_e12"]) for row in kept])
    return Table(cells, accuracy, early, latency[latency > DEGENERATE * np.median(latency)])


Method = Callable[[Table, int, int], Sequence[int]]
"""(table, budget, seed) -> the rows that were evaluated, in order."""


def explore(table: Table, budget: int, seed: int, fidelities: Sequence[float] = (0.1, 1.0)) -> list[int]:
    """Return the rows of full fidelity, at the place of what was spent until then."""

    def evaluate(candidate: ca.search.Candidate, fidelity: float) -> dict[str, float]:
        row = table.row(candidate)
        assert row is not None
        accuracies = table.accuracy if fidelity == 1 else table.early_accuracy
        return {"accuracy": accuracies[row], "latency": table.latency[row]}

    study = ca.search.explore(
        table.space(), evaluate, budget=budget, seed=seed, fidelities=fidelities, progress=False
    )  # fmt: skip
    rows, spent = [], 0.0
    for trial in study.trials:
        spent += trial.fidelity
        if trial.is_complete:
            rows += [table.row(trial.candidate)] * (math.floor(spent + 1e-6) - len(rows))
    return [row for row in rows if row is not None]


def at_random(table: Table, budget: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).choice(len(table.accuracy), budget, replace=False).tolist()


def evolution(table: Table, budget: int, seed: int, population: int = 50, tournament: int = 10) -> list[int]:
    """Regularized evolution (Real et al. 2019), by MnasNet's reward; each parent has the target of a random member."""
    random, space = np.random.default_rng(seed), table.space()
    alive = [space.decode(codes) for codes in space.sample(population, random)]
    order = [row for cell in alive if (row := table.row(cell)) is not None]
    seen = set(order)
    for _ in range(100 * budget):
        if len(order) >= budget:
            break
        picked = [alive[i] for i in random.integers(0, len(alive), tournament)]
        target = table.latency[table.row(picked[0])]
        parent = max(picked, key=lambda cell: reward(table, table.row(cell), target))
        child = space.mutate(space.encode(parent)[None], random)
        if not len(child) or (row := table.row(space.decode(child[0]))) in seen or row is None:
            continue
        seen.add(row)
        order.append(row)
        alive = [*alive[1:], space.decode(child[0])]
    return order


def reward(table: Table, row: int | None, target: float) -> float:
    """Return accuracy x (latency / target)^-0.07 (MnasNet, section 3), soft."""
    return float(table.accuracy[row] * (table.latency[row] / target) ** -0.07)


def with_optuna(sampler: Callable[[int], Any]) -> Method:
    def search(table: Table, budget: int, seed: int) -> list[int]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler(seed))
        rows: dict[int, None] = {}
        for _ in range(20 * budget):
            if len(rows) >= budget:
                break
            trial = study.ask()
            row = table.row({edge: trial.suggest_categorical(edge, OPERATIONS) for edge in EDGES})
            if row is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            rows[row] = None
            study.tell(trial, [table.accuracy[row], table.latency[row]])
        return list(rows)

    return search


def tpe(seed: int) -> Any:
    import optuna

    return optuna.samplers.TPESampler(seed=seed)


def nsga2(seed: int) -> Any:
    import optuna

    return optuna.samplers.NSGAIISampler(seed=seed)


METHODS: dict[str, Method] = {
    "explore": explore, "explore (200 epochs only)": partial(explore, fidelities=(1,)), "random": at_random,
    "evolution": evolution, "Optuna TPE": with_optuna(tpe), "Optuna NSGA-II": with_optuna(nsga2),
}  # fmt: skip


def measure(path: Path, device: str, method: str, seed: int) -> list[float]:
    """Return the gaps in %, then the points below the optimum within the three limits."""
    table = read(path, device)
    rows = np.array(METHODS[method](table, EVALUATIONS[-1], seed))
    worst = table.latency.max()
    whole = hypervolume(table.accuracy, table.latency, least_accuracy=LEAST_ACCURACY, most_cost=worst)
    gaps = [
        100 - 100 * hypervolume(
            table.accuracy[rows[:number]], table.latency[rows[:number]], least_accuracy=LEAST_ACCURACY, most_cost=worst
        ) / whole
        for number in EVALUATIONS
    ]  # fmt: skip
    below = []
    for limit in np.percentile(table.latency, (25, 50, 75)):
        inside = rows[table.latency[rows] <= limit]
        best = table.accuracy[inside].max() if len(inside) else 0.0
        below.append(float(table.accuracy[table.latency <= limit].max() - best))
    return [*gaps, *below]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--devices", default=",".join(DEVICES))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    methods, measured = options.methods.split(","), {}
    with ProcessPoolExecutor(options.workers) as pool:
        for device in options.devices.split(","):
            print(f"\n{device}, {options.seeds} seeds    gap at 100, 200, 300      below the optimum at 25, 50, 75 %")
            futures = {
                method: [pool.submit(measure, options.table, device, method, seed) for seed in range(options.seeds)]
                for method in methods
            }
            for method, runs in futures.items():
                values = np.array([run.result() for run in runs])
                measured[f"{device}, {method}"] = values.tolist()
                gaps, below = np.split(np.median(values, axis=0), [len(EVALUATIONS)])
                print(f"{method:<26}" + "".join(f"{gap:8.2f}" for gap in gaps) + "     "
                      + "".join(f"{points:8.2f}" for points in below), flush=True)  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
