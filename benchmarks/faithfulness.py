"""Faithfulness of every method of explanation, against random and edge maps of the same photos.

    python benchmarks/faithfulness.py IMAGES MODEL... [--methods NAMES] [--photos N] [--slow N] [--random N]
        [--json FILE]

IMAGES is a folder. For each method prints the means of insertion and deletion area, their difference, and by how much
that difference is above those of the random map and of the edge map, with the 95 % bootstrap interval of the mean over
the photos (paired: the maps of one photo are compared with each other). The explained class is the predicted one.
Integrated gradients and occlusion are measured on --slow evenly spaced photos. `random weights` is the mean rank
correlation of the map with that of the network with random weights, on --random evenly spaced photos (a third of them
for the slow methods).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convatlas.explanation.control_maps import edge_map, random_map
from convatlas.explanation.explain import explain_view
from convatlas.explanation.explanation import Explanation
from convatlas.explanation.faithfulness import Curves, measure_curves
from convatlas.explanation.options import CAMS, METHODS, ExplainOptions
from convatlas.inference.images import load_views
from convatlas.inference.inputs import expand_inputs
from convatlas.inference.load import load
from convatlas.inference.model import Model
from convatlas.inference.options import PredictOptions
from convatlas.system.progress import progress_display
from convatlas.tasks.score import Score


def evenly(files: Sequence[Any], count: int) -> set[int]:
    """Return the places of `count` evenly spaced files."""
    count = min(count, len(files))
    return {place * len(files) // count for place in range(count)}


def bootstrap_interval(values: Sequence[float], *, draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean, over draws of values with replacement, seed 0."""
    means = np.random.default_rng(0).choice(values, (draws, len(values))).mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def measure(model: Model, pixels: Tensor, explanations: Sequence[Explanation]) -> Iterator[dict[str, float]]:
    """Yield insertion, deletion and their difference for each explanation of one photo, and those of control maps."""
    known: dict[tuple[int, ...], tuple[Curves, Curves]] = {}
    measured: list[tuple[Tensor, Curves]] = []
    for each in explanations:
        size = tuple(each.heatmap.shape)
        own = [curves for heatmap, curves in measured if torch.allclose(heatmap, each.heatmap, atol=1e-5)]
        noise = random_map(pixels, each.grid, size)
        maps = [] if own else [each.heatmap]
        maps += [] if each.grid in known else [noise, edge_map(pixels, each.grid, size)]
        assert each.score is not None
        found = own + measure_curves(partial(confidence, model, each.score), pixels, maps, noise)
        measured.append((each.heatmap, found[0]))
        if each.grid not in known:
            known[each.grid] = found[-2], found[-1]
        random, edges = known[each.grid]
        yield {
            "insertion": found[0].insertion_area, "deletion": found[0].deletion_area,
            "difference": found[0].difference, "random": random.difference, "edges": edges.difference,
        }  # fmt: skip


def confidence(model: Model, score: Score, pixels: Tensor) -> Tensor:
    return model.header.task.confidence(model.engine.outputs(pixels), score, model.header.calibration)


def interval(values: Sequence[float]) -> dict[str, float]:
    low, high = bootstrap_interval(values)
    return {"mean": fmean(values), "low": low, "high": high}


def report(
    model: Model, methods: Sequence[str], rows: dict[str, list[dict[str, float]]], random: dict[str, list[float]]
) -> dict[str, Any]:
    """Print a table and return the numbers."""
    print(f"\n{model.header.name}")
    print("method | photos | insertion | deletion | difference | above random | above edges | random weights")
    plain: dict[str, Any] = {}
    for method in methods:
        mine = rows[method]
        means = {key: fmean(row[key] for row in mine) for key in mine[0]}
        above = {key: interval([row["difference"] - row[key] for row in mine]) for key in ("random", "edges")}
        texts = [f"{each['mean']:+.3f} ({each['low']:+.3f} to {each['high']:+.3f})" for each in above.values()]
        numbers = [f"{means[key]:.3f}" for key in ("insertion", "deletion", "difference")]
        check = f"{fmean(random[method]):+.2f} (n = {len(random[method])})" if random[method] else "-"
        print(" | ".join([method, str(len(mine)), *numbers, *texts, check]))
        plain[method] = {"photos": len(mine), **means, "above": above, "random_weights": random[method]}
    return plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--photos", type=int, default=10**9)
    parser.add_argument("--slow", type=int, default=50)
    parser.add_argument("--random", type=int, default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    methods = given.methods.split(",")
    files = list(expand_inputs([given.images]).items)
    files = [files[place] for place in sorted(evenly(files, given.photos))]
    plain: dict[str, Any] = {}
    for name in given.models:
        start, model = time.perf_counter(), load(name)
        rows: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
        random: dict[str, list[float]] = {method: [] for method in methods}
        slow, checked = evenly(files, given.slow), evenly(files, given.random)
        checked_slow = evenly(files, max(given.random // 3, 1))
        with progress_display(line_interval=30) as progress:
            for place, file in enumerate(files):
                (views,) = load_views(file, str(file), [model.header.preprocessing], PredictOptions())
                pixels = views.pixels[0]
                mine = [method for method in methods if method in CAMS or place in slow]
                options = ExplainOptions(faithfulness=False, stages=False)
                found = []
                for method in mine:
                    check = given.random > 0 and place in (checked if method in CAMS else checked_slow)
                    how = replace(options, method=method, randomize=check)
                    found.append(explain_view(model.network, model.engine, model.header, pixels, str(file), how))
                    if found[-1].randomization is not None:
                        random[method].append(found[-1].randomization.correlation)
                for method, row in zip(mine, measure(model, pixels, found), strict=True):
                    rows[method].append(row)
                progress(f"{model.header.name}: explaining", place + 1, len(files))
        plain[model.header.name] = report(model, methods, rows, random)
        print(f"{time.perf_counter() - start:.0f} s")
        if given.json:
            given.json.write_text(json.dumps(plain, indent=2))


if __name__ == "__main__":
    main()
