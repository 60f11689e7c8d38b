"""Cross-validation: as many runs as there are folds, each measured on the images that it did not see."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convatlas.core.spec import Spec
from convatlas.data.open import find
from convatlas.data.source import Source
from convatlas.errors import DataError, RunError
from convatlas.models.catalog import resolve
from convatlas.system.devices import device_named
from convatlas.system.progress import Progress
from convatlas.train.distributed import init_distributed
from convatlas.train.fit import fitted, reopen, start
from convatlas.train.recipe import Recipe
from convatlas.train.run import Run, Watch
from convatlas.train.run_folder import CONFIG, new_folder, write_table
from convatlas.train.settings import Settings


@dataclass(frozen=True)
class CrossValidation:
    """The runs of a cross-validation, and what each reached on the images that it did not see."""

    folder: Path
    runs: tuple[Run, ...]
    headline: str
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores)

    @property
    def deviation(self) -> float:
        """The standard deviation over the folds."""
        return statistics.stdev(self.scores)


def _check_same(
    run: Run, part: Path, source: Source, name: str, weights: str | Path | None, recipe: str | Recipe | None, seed: int,
    fold: tuple[int, int],
) -> None:  # fmt: skip
    """Raise RunError that names what differs, if a run in the folder was asked for otherwise."""
    had = run.config
    options = {"data": source.location, "model": name, "weights": str(weights or ""), "seed": seed, "fold": fold}
    there = {"data": had.data, "model": had.model, "weights": had.weights, "seed": had.seed, "fold": had.settings.fold}
    if isinstance(recipe, Recipe):
        options["recipe"], there["recipe"] = fitted(recipe, source), had.recipe
    different = [what for what, value in options.items() if there[what] != value]
    if different:
        raise RunError(f"{part}: is a run of another cross-validation ({', '.join(different)}); choose another folder")


def cross_validate(
    data: str | Path,
    model: str | Spec,
    *,
    folds: int = 5,
    weights: str | Path | None = None,
    recipe: str | Recipe | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    settings: Settings | None = None,
    watch: Watch | None = None,
    drive: Callable[[Run], Any] | None = None,
    progress: Progress | None = None,
) -> CrossValidation:
    """Train once for each fold, class by class and group by group, into `<out>/fold-1` and so on; see `fit`.

    What was done of it before is kept: runs that are there are resumed, finished ones are measured.
    drive: takes each run to its end, instead of its own steps with `watch`.
    """
    settings = settings or Settings()
    source = find(data, download=settings.download, progress=progress)
    if "val" in source.listings:
        raise DataError(f"{source.name}: has a val split of its own; folds are for data without one")
    if not 2 <= folds <= len(source.listings["train"]):
        raise RunError(f"folds: a number from 2 to that of the training images, not {folds}")
    distributed = init_distributed(device_named(settings.device))
    folder = Path(out) if out is not None else None
    if folder is None:
        folder = distributed.broadcast(
            new_folder(None, source.name, f"{resolve(model)[0]}-folds") if distributed.is_main else None
        )
    runs, scores = [], []
    headline = "accuracy"
    for number in range(1, folds + 1):
        part = folder / f"fold-{number}"
        if distributed.broadcast((part / CONFIG).exists() if distributed.is_main else None):
            run = reopen(part, progress=progress)
            _check_same(run, part, source, resolve(model)[0], weights, recipe, seed, (number, folds))
        else:
            chosen = dataclasses.replace(settings, fold=(number, folds))
            run = start(
                data, model, weights=weights, recipe=recipe, seed=seed, out=part, settings=chosen, progress=progress
            )
        if run.state.finished:
            run.finish()
        elif drive:
            drive(run)
        else:
            for event in run.steps():
                if watch:
                    watch(event)
        runs.append(run)
        headline = run.results["val"].headline
        scores.append(run.results["val"].score)
    if distributed.is_main:
        rows = [
            {"fold": number, "images": len(run.results["val"].labels), headline: score}
            for number, (run, score) in enumerate(zip(runs, scores, strict=True), 1)
        ]
        write_table(folder / "folds.csv", rows)
    return CrossValidation(folder, tuple(runs), headline, tuple(scores))
