"""Time of an epoch with and without diagnostics: two trainings take turns, epoch by epoch.

python benchmarks/diagnostics.py [--epochs 12]

An epoch is all that `fit` does for one: training steps, evaluation on val, model file, checkpoint and tables. CPU time
does not depend on other processes as much as elapsed time does. One thread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from convatlas.train.fit import prepare_run
from convatlas.train.run import Event
from convatlas.train.settings import DataOptions, ExecutionOptions, RunOptions
from convatlas.train.state import Epoch


def images(count: int, side: int) -> dict[str, Any]:
    """Return random color images in ten classes."""
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return {"train": (x, np.arange(count) % 10)}


def epochs(folder: Path, data: Any, model: str, *, diagnostics: bool, **fields: Any) -> Iterator[Event]:
    run = prepare_run(
        data, model, weights="none", out=folder / str(diagnostics), data_options=DataOptions(val_share=0.2),
        execution=ExecutionOptions(
            device="cpu", threads=1, adapt_threads=False, precision="float32", memory_format="channels_last"
        ),
        options=RunOptions(checkpoint_seconds=1e9, diagnostics=diagnostics), **fields,
    )  # fmt: skip
    return (event for event in run.steps() if isinstance(event, Epoch))


def measure(name: str, data: Any, model: str, count: int, **fields: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            on: epochs(Path(folder), data, model, diagnostics=on, epochs=count + 1, **fields) for on in (False, True)
        }
        cpu: dict[bool, list[float]] = {on: [] for on in sides}
        elapsed: dict[bool, list[float]] = {on: [] for on in sides}
        for number in range(count):
            for on in (False, True) if number % 2 else (True, False):
                start = time.process_time(), time.perf_counter()
                next(sides[on])
                if number:  # the first epoch measures two steps
                    cpu[on].append(time.process_time() - start[0])
                    elapsed[on].append(time.perf_counter() - start[1])
        for what, seconds in (("CPU", cpu), ("elapsed", elapsed)):
            off, on = (statistics.median(seconds[side]) for side in (False, True))
            print(
                f"{name:36} {what:8} epoch {off:6.3f} s, with diagnostics {on:6.3f} s: {on / off - 1:+.1%}", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    count = parser.parse_args().epochs
    measure("lenet5_modern on digits", "digits", "lenet5_modern", count, batch=64)
    measure("cifar_resnet20 on 2,500 images, 32 px", images(2500, 32), "cifar_resnet20", max(5, count // 2), batch=128)


if __name__ == "__main__":
    main()
