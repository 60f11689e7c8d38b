"""A supernet against stand-alone training: do its sub-networks rank as they do when each is trained alone?

    python benchmarks/supernet.py DATA [--space benchmarks/small_resnets.yaml] [--params COUNT] [--time SECONDS]
        [--each SECONDS] [--networks N]

Trains the supernet of a space within a limit of parameters for `--time` seconds, measures some random sub-networks with
the shared weights (after recalibration of their batch norms), then trains each of them from random weights for `--each`
seconds and measures it on the same val split. Prints both accuracies, and Spearman's rank correlation.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from convatlas.search.budgeted import BudgetedSpace
from convatlas.search.contestant import Contestant
from convatlas.search.evaluation import Evaluator
from convatlas.search.limits import Limits
from convatlas.search.setup import SearchOptions, set_up
from convatlas.search.supernet_search import SUPERNET, SupernetAccuracy, train_supernet
from convatlas.system.locks import MachineLock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--space", default="resnet")
    parser.add_argument("--params", type=float, default=300_000)
    parser.add_argument("--time", type=float, default=600)
    parser.add_argument("--each", type=float, default=60)
    parser.add_argument("--networks", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    search = SearchOptions(space=options.space, methods=("supernet",), seed=options.seed)
    settings, others = set_up(options.data, Limits(params=options.params), 3600, search, progress=lambda *_: None)
    settings = replace(settings, training_s=options.each)
    assert settings.spec_space is not None
    assert settings.latency is not None
    space = BudgetedSpace(
        settings.spec_space, settings.hard_limits, settings.latency, classes=settings.classes,
        channels=settings.channels,
    )  # fmt: skip
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        evaluator = Evaluator(Path(folder), settings, MachineLock())
        largest = next(each for each in others if each.name == SUPERNET)
        run = train_supernet(evaluator, space, largest, seconds=options.time)
        for epoch in run.history:
            print(f"epoch {epoch.number}: largest network {epoch.metrics['val_accuracy']:.2%}", flush=True)
        measure = SupernetAccuracy(run)
        print("\nparameters        MACs  in the supernet  alone")
        for i, codes in enumerate(space.sample(options.networks, np.random.default_rng(options.seed))):
            candidate = space.decode(codes)
            shared = measure(candidate)
            alone = evaluator.evaluate(Contestant(f"alone-{i}", "candidate", space.value(candidate)), 1.0)
            rows.append((alone["parameters"], alone["macs"], shared, alone["accuracy"]))
            print(f"{rows[-1][0]:>10,}{rows[-1][1]:>12,}{shared:>17.2%}{alone['accuracy']:>7.2%}", flush=True)
    _, _, shared_all, alone_all = zip(*rows, strict=True)
    print(f"rank correlation: {spearmanr(shared_all, alone_all).statistic:.2f}")
    for name, column in (("parameters", 0), ("MACs", 1)):
        print(f"rank correlation of {name}: {spearmanr([row[column] for row in rows], alone_all).statistic:.2f}")
    if options.json:
        options.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
