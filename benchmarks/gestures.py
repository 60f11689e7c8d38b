"""What a network for videos sees that a network for single frames does not: direction of time.

Trains a 3-D network and a frame-based one (no convolution over time) of nearly equal parameters on gestures, by the
same recipe, for several seeds, and measures on persons that neither of them saw: accuracy, accuracy of the four swipes,
and what changes if the test videos are played backwards.

    python benchmarks/gestures.py DATA --networks r3d_18_small f_r2d_18_small --seeds 3 --epochs 60

A network may have other cells than in the catalog: 'inflated_mobilenet_v2:{"time_kernel": 1, "time_strides": []}' is
MobileNetV2 frame by frame.
DATA: the folder `gestures_ego` with `labels.csv` (columns file, label, number; a number is mostly one person).
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

from torch import Tensor

import convatlas as ca
from convatlas.core.cost import totals_of
from convatlas.core.spec import Spec
from convatlas.engines.evaluation import compute_outputs
from convatlas.tasks.classification.metrics import accuracy_interval
from convatlas.train.settings import DataOptions, RunOptions

OPPOSITE = {
    "swipe_left": "swipe_right",
    "swipe_right": "swipe_left",
    "swipe_up": "swipe_down",
    "swipe_down": "swipe_up",
}
"""What a swipe is if its video is played backwards."""


def write_table(data: Path, test: set[int], path: Path) -> Path:
    """Write a table of the videos whose split is test for these numbers; return its path."""
    with (data / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "label", "group", "split"))
        for row in rows:
            split = "test" if int(row["number"]) in test else "train"
            writer.writerow((data.resolve() / row["file"], row["label"], row["number"], split))
    return path


def probabilities(model: ca.Model, dataset: Any, *, backward: bool) -> Tensor:
    """Return the probabilities (videos, classes) of the test videos, played forward or backward."""

    def forward(pixels: Tensor) -> Tensor:
        outputs: Tensor = model.engine.outputs(pixels.flip(1) if backward else pixels)
        return outputs

    outputs = compute_outputs(forward, dataset.test)
    decoded: Tensor = model.header.task.decode(outputs, model.header.calibration)
    return decoded


def network_of(text: str) -> str | Spec:
    """Return a network from NAME or NAME:{"cell": value, ...}."""
    name, colon, cells = text.partition(":")
    return ca.spec(name).replaced(json.loads(cells)) if colon else name


def measure(network: str, table: Path, seed: int, arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Train one network and return the predictions of the test videos."""
    options = DataOptions(
        resolution=arguments.resolution, frames=arguments.frames, frame_rate=arguments.rate, clips=arguments.clips,
        val_share=0, max_unreadable=0.2,
    )  # fmt: skip
    start = time.process_time()
    run = ca.fit(
        table, network_of(network), out=out, seed=seed, weights=arguments.weights, inflate=arguments.inflate,
        recipe="default",
        data_options=options, epochs=arguments.epochs, batch=arguments.batch, lr=arguments.lr, progress=False,
        optimizer="adamw", weight_decay=0.05, label_smoothing=0.1, min_crop_area=0.5, max_shift=0, jitter=0.3,
        options=RunOptions(),
    )  # fmt: skip
    seconds = time.process_time() - start
    model = ca.load(out)
    dataset, _ = model.load_split(table, split="test", max_unreadable=0.2)
    assert dataset.test is not None
    forward, backward = (probabilities(model, dataset, backward=each) for each in (False, True))
    return {
        "network": network, "seed": seed, "parameters": totals_of(model.module).parameters,
        "macs": totals_of(model.module).macs, "cpu_s": seconds, "train_videos": len(run.dataset.train),
        "true": [model.classes[i] for i in dataset.test.targets.tensor("label").tolist()],
        "forward": [model.classes[i] for i in forward.argmax(1).tolist()],
        "backward": [model.classes[i] for i in backward.argmax(1).tolist()],
        "change": float((forward - backward).abs().max()),
    }  # fmt: skip


def share(correct: list[bool]) -> str:
    """Return an accuracy with its 95 % interval as text."""
    low, high = accuracy_interval(sum(correct), len(correct))
    return f"{sum(correct) / len(correct):6.1%} ({low:.1%} to {high:.1%}; {sum(correct)} of {len(correct)})"


def summarize(network: str, runs: list[dict[str, Any]]) -> None:
    """Print the metrics over all seeds and folds of one network."""
    rows = [row for run in runs for row in zip(run["true"], run["forward"], run["backward"], strict=True)]
    swipes = [row for row in rows if row[0] in OPPOSITE]
    swapped = [backward == OPPOSITE[forward] for _, forward, backward in swipes if forward in OPPOSITE]
    by_seed: dict[int, list[bool]] = {}
    for run in runs:
        by_seed.setdefault(run["seed"], []).extend(map(str.__eq__, run["true"], run["forward"]))
    print(
        f"{network}: {runs[0]['parameters']:,} parameters, {runs[0]['macs']:,} MACs for one clip, "
        f"{sum(run['cpu_s'] for run in runs) / len(runs):.0f} s of CPU time for a training"
    )
    print(
        f"  accuracy            {share([true == forward for true, forward, _ in rows])}; by seed "
        f"{', '.join(f'{sum(each) / len(each):.1%}' for each in by_seed.values())}"
    )
    print(f"  accuracy of swipes  {share([true == forward for true, forward, _ in swipes])}")
    print(f"  played backwards    predictions of swipes that become the opposite: {share(swapped) if swapped else '-'}")
    print(
        f"                      predictions that stay the same: {share([f == b for _, f, b in rows])}; largest change "
        f"of a probability {max(run['change'] for run in runs):.1e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--networks", nargs="+", default=["r3d_18_small", "f_r2d_18_small"])
    parser.add_argument("--weights", default="none")
    parser.add_argument("--inflate")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--test", nargs="+", default=["11,12,13"], help="numbers of the test videos, one set for each fold"
    )
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--clips", type=int, default=3)
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--out", type=Path, required=True, help="new folder for the runs")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    runs: dict[str, list[dict[str, Any]]] = {network: [] for network in arguments.networks}
    for seed in range(arguments.seeds):
        for fold, numbers in enumerate(arguments.test):
            test = {int(each) for each in numbers.split(",")}
            table = write_table(arguments.data, test, arguments.out / f"fold-{fold}.csv")
            for number, network in enumerate(arguments.networks):
                out = arguments.out / f"{number}-{fold}-{seed}"
                runs[network].append(measure(network, table, seed, arguments, out))
                (arguments.out / "runs.json").write_text(json.dumps(runs, indent=1))
                summarize(network, runs[network])
    print("\nall seeds")
    for network, each in runs.items():
        summarize(network, each)


if __name__ == "__main__":
    main()
