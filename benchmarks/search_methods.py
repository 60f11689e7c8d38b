"""Searches on real data: what a search finds, against hand-made baselines and random search in the same time.

    python benchmarks/search_methods.py DATA --max-latency 4ms --max-params 300k [--time 30min] [--seeds N]
        [--methods NAMES] [--workers N] [--recipe NAME] [--out FOLDER]

Every method gets the whole time, and the same limits: `quick` (candidates chosen by Gaussian processes, and baselines),
`random` (random candidates of the same space), `baselines` (the five hand-made networks share half of the time by
successive halving, and the best one is trained in the rest), also `supernet`, `transfer`. Methods take turns, seed by
seed, and each is a directory that is continued if it was stopped. Prints the winner of each, its accuracy on val and
test after the final training, and the time that it took.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from convatlas.search.launch import search
from convatlas.search.limits import Limits
from convatlas.search.setup import SearchOptions
from convatlas.system import quantities

RESULT = "result.json"
"""File in the directory of a finished search: what is printed."""


Result = dict[str, Any]


def measure(data: str, method: str, seed: int, limits: Limits, folder: Path, options: argparse.Namespace) -> Result:
    """Run a search to its end, or read what it was."""
    if (folder / RESULT).is_file():
        return dict(json.loads((folder / RESULT).read_text()))
    begin = time.monotonic()
    found = search(
        data, limits=limits, time_s=quantities.seconds(options.time), out=folder, progress=False,
        options=SearchOptions(methods=(method,), seed=seed, workers=options.workers, recipe=options.recipe),
    )  # fmt: skip
    seconds = time.monotonic() - begin
    result = {
        "method": method, "seed": seed, "winner": found.winner.name, "parameters": found.winner.parameters,
        "latency_ms": 1000 * found.winner.latency, "networks": len(found.standings), "seconds": seconds,
        **{split: measured.score for split, measured in found.run.results.items()},
    }  # fmt: skip
    (folder / RESULT).write_text(json.dumps(result, indent=1))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--max-latency", default=None)
    parser.add_argument("--max-params", default=None)
    parser.add_argument("--time", default="30min")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default="quick,baselines,random")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--recipe", default=None)
    parser.add_argument("--out", type=Path, default=Path("search-methods"))
    options = parser.parse_args()
    limits = Limits(latency_s=options.max_latency, params=options.max_params)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(options.seeds):
        for method in options.methods.split(","):
            name = "-".join(
                map(str, (Path(options.data).name, method, seed, options.time, options.workers, options.recipe, limits))
            )
            folder = options.out / name.replace(" ", "").replace(",", "-")
            rows.append(row := measure(options.data, method, seed, limits, folder, options))
            splits = ", ".join(f"{split} {row[split]:.2%}" for split in ("val", "test") if split in row)
            print(
                f"seed {seed}, {method:<10} {splits}; {row['winner']}, {row['parameters']:,} parameters, "
                f"{row['latency_ms']:.2f} ms; {row['networks']} networks, {row['seconds'] / 60:.1f} min",
                flush=True,
            )
    for method in options.methods.split(","):
        scores = [row.get("test", row["val"]) for row in rows if row["method"] == method]
        print(f"{method:<10} mean {statistics.fmean(scores):.2%} of {len(scores)} seeds")


if __name__ == "__main__":
    main()
