"""A supernet against stand-alone training: do its sub-networks rank as they do when each is trained alone?

    python benchmarks/supernet.py DATA [--space benchmarks/small_resnets.yaml] [--params COUNT] [--time SECONDS]
        [--epochs N] [--networks N]

Trains the supernet of a space within a limit of parameters for `--time` seconds, measures some random sub-networks with
the shared weights (after recalibration of their batch norms), then trains each of them from random weights for
`--epochs` epochs, with the recipe of the network, and measures it on the same val split. Prints both accuracies, and
Spearman's rank correlation.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from convatlas.core.spec import Spec
from convatlas.search.evaluation import Evaluator
from convatlas.search.limits import Limits
from convatlas.search.setup import SearchOptions, set_up
from convatlas.search.supernet_search import SUPERNET, SupernetAccuracy, train_supernet
from convatlas.system.locks import MachineLock
from convatlas.train.fit import prepare_run
from convatlas.train.settings import RunOptions


def train_alone(options: argparse.Namespace, spec: Spec, folder: Path) -> float:
    """Return the accuracy on val of a network that is trained from random weights."""
    run = prepare_run(
        options.data, spec, weights="none", epochs=options.epochs, seed=options.seed, out=folder,
        options=RunOptions(diagnostics=False, report=False),
    )  # fmt: skip
    for _ in run.steps():
        pass
    return run.results["val"].score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--space", default="resnet")
    parser.add_argument("--params", type=float, default=300_000)
    parser.add_argument("--time", type=float, default=600)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--networks", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    search = SearchOptions(space=options.space, methods=("supernet",), seed=options.seed)
    settings, others = set_up(options.data, Limits(params=options.params), 3600, search, progress=lambda *_: None)
    space = settings.budgeted_space
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
            alone = train_alone(options, space.value(candidate), Path(folder) / f"alone-{i}")
            predicted = space.predict(candidate)
            assert predicted is not None
            counts, _ = predicted
            rows.append((counts.parameters, counts.macs, shared, alone))
            print(f"{counts.parameters:>10,}{counts.macs:>12,}{shared:>17.2%}{alone:>7.2%}", flush=True)
    _, _, shared_all, alone_all = zip(*rows, strict=True)
    print(f"rank correlation: {spearmanr(shared_all, alone_all).statistic:.2f}")
    for name, column in (("parameters", 0), ("MACs", 1)):
        print(f"rank correlation of {name}: {spearmanr([row[column] for row in rows], alone_all).statistic:.2f}")
    if options.json:
        options.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
