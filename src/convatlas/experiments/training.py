"""Trainings of experiments: `fit` on images in memory, on one thread, with numbers that do not depend on the machine's
speed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Spec
from convatlas.experiments.materials import Images
from convatlas.train.fit import fit
from convatlas.train.settings import DataOptions, ExecutionOptions, RunOptions

EXECUTION = ExecutionOptions(
    device="cpu", threads=1, adapt_threads=False, memory_format="channels_last", precision="float32"
)
"""Nothing is measured, so that the order of sums, and with it the last bits, are the same in every run."""

OPTIONS = RunOptions(checkpoint_seconds=3600, diagnostics=False, report=False)


@dataclass(frozen=True)
class Training:
    """A finished training. accuracy, loss: on the test images. history: a row of metrics for each epoch."""

    accuracy: float
    loss: float
    history: tuple[Mapping[str, float], ...]
    network: Network
    preprocessing: Preprocessing


def train(
    train_images: Images, test_images: Images, model: str | Spec | nn.Module, *, seed: int,
    weights: str | Path | None = "none", data_options: DataOptions | None = None, **fields: Any,
) -> Training:  # fmt: skip
    """Train a network from scratch (or from `weights`) for a fixed number of epochs, and measure the last one on test.

    fields: of the recipe, such as epochs, batch, lr, optimizer; augmentation is that of the recipe `default` unless
    given. Nothing is chosen on the test images: there is no val split, and the last epoch counts.
    Raises DivergedError if loss or gradients are not finite, as with too high a rate.
    """
    fields.setdefault("recipe", "default")
    options = data_options or DataOptions(val_share=0)
    with tempfile.TemporaryDirectory() as folder:
        run = fit(
            {"train": train_images.arrays, "test": test_images.arrays}, model, weights=weights, seed=seed,
            out=Path(folder) / "run", data_options=options, execution=EXECUTION, options=OPTIONS, progress=False,
            **fields,
        )  # fmt: skip
        result = run.results["test"]
        loss = float("nan") if result.loss is None else result.loss
        history = tuple(row.to_plain() for row in run.history)
        return Training(result.score, loss, history, run.network, run.config.preprocessing)
