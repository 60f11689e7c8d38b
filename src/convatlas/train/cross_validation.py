"""Cross-validation: one run for each fold, evaluated on the images of the fold, which it was not trained on."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack, cast

from torch import nn

from convatlas.core.spec import Spec
from convatlas.data.open import open_for_training
from convatlas.data.readers.memory import Data
from convatlas.data.source import Source
from convatlas.errors import DataError, RunError
from convatlas.models.catalog import resolve
from convatlas.system.devices import resolve_device
from convatlas.system.progress import Progress, progress_callback
from convatlas.train.distributed import init_distributed
from convatlas.train.fit import check_start, prepare_run
from convatlas.train.given import copy_module, reads_of
from convatlas.train.initial_weights import AUTO, choose_weights
from convatlas.train.preparation import choose_recipe, source_for, spec_for
from convatlas.train.recipe import Recipe
from convatlas.train.recipe_fields import RecipeFields, check_fields
from convatlas.train.resume import open_run
from convatlas.train.run import Event, Run
from convatlas.train.run_folder import CONFIG, create_default_folder, write_table
from convatlas.train.settings import DataOptions, ExecutionOptions, RunOptions
from convatlas.weights.inflate import Inflation

FOLDS = "folds.csv"


@dataclass(frozen=True)
class FoldStart:
    """A fold begins, resumes, or is evaluated again because its run is finished. number: from 1 to `folds`."""

    number: int
    folds: int
    run: Run


@dataclass(frozen=True)
class FoldEnd:
    """A fold is trained and evaluated. score: of the best epoch on the images of the fold."""

    number: int
    folds: int
    run: Run
    score: float


FoldEvent = FoldStart | Event | FoldEnd


@dataclass(frozen=True)
class CrossValidation:
    """The runs of a cross-validation, one for each fold, each with its score on the images of the fold.

    headline: the key of the metric.
    """

    folder: Path
    runs: tuple[Run, ...]
    headline: str
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores)

    @property
    def std(self) -> float:
        """The standard deviation over the folds (n - 1 in the denominator)."""
        return statistics.stdev(self.scores)

    def to_plain(self) -> list[dict[str, Any]]:
        """Return {"fold", "n", headline} for each fold; n: number of its images."""
        return [
            {"fold": number, "n": run.results["val"].n, self.headline: score}
            for number, (run, score) in enumerate(zip(self.runs, self.scores, strict=True), 1)
        ]

    def __repr__(self) -> str:
        noun = self.runs[0].task.noun
        lines = [f"{'fold':>4}  {f'{noun}s':>8}  {self.headline}"]
        lines += [f"{row['fold']:>4}  {row['n']:>8,}  {row[self.headline]:.4f}" for row in self.to_plain()]
        return "\n".join([*lines, f"mean {self.mean:.4f}, standard deviation {self.std:.4f}; runs in {self.folder}"])


def cross_validate(
    data: Data,
    model: str | Spec | nn.Module,
    *,
    folds: int = 5,
    task: str | None = None,
    weights: str | Path | None = AUTO,
    inflate: Inflation | None = None,
    recipe: str | Recipe | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    download: bool = False,
    data_options: DataOptions | None = None,
    execution: ExecutionOptions | None = None,
    options: RunOptions | None = None,
    on_event: Callable[[FoldEvent], None] | None = None,
    progress: Progress | bool = True,
    **fields: Unpack[RecipeFields],
) -> CrossValidation:
    """Train one run for each fold, in `<out>/fold-1` and so on, and return their scores; other arguments as for `fit`.

    Folds are stratified by class and keep groups together. Called again with the same arguments, it resumes interrupted
    runs and evaluates finished ones. The scores are also written to `<out>/folds.csv`.
    out: by default runs/<data>-<model>-folds.
    on_event: called with FoldStart, every Step and Epoch, and FoldEnd.
    progress: a callback, True for a progress bar in terminals and notebooks, or False.
    Raises DataError if the data has a val split, RunError if `out` has runs with other arguments.
    """
    check_fields(cross_validate, fields)
    data_options, execution = data_options or DataOptions(), execution or ExecutionOptions()
    with progress_callback(progress) as report:
        reads = reads_of(model) if isinstance(model, nn.Module) else resolve(model)[1].spec.reads
        source = open_for_training(
            data, reads=reads, group_pattern=data_options.group_pattern, val_share=0, download=download, progress=report
        )
        _check_folds(source, folds)
        check_start(data, None if out is None else Path(out) / "fold-0", options or RunOptions())
        distributed = init_distributed(resolve_device(execution.device))
        given = copy_module(model, source, data_options, weights) if isinstance(model, nn.Module) else None
        name, row = resolve(given.spec if given else cast(str | Spec, model))
        spec = spec_for(row.spec, data_options)
        source_for(source, spec, name, task)  # raises an error before the directory of the runs exists
        initial = (
            given.initial
            if given
            else choose_weights(
                weights, spec, network=name, stem=data_options.stem, inflate=inflate, download=download, progress=report
            )
        )
        run_recipe = choose_recipe(recipe, row, pretrained=bool(initial.name) and given is None, fields=fields)
        folder = Path(out) if out is not None else None
        if folder is None:
            new = create_default_folder(source.name, f"{name}-folds", source.location) if distributed.is_main else None
            folder = distributed.broadcast(new)
        runs = []
        for number in range(1, folds + 1):
            part = folder / f"fold-{number}"
            if distributed.broadcast((part / CONFIG).exists() if distributed.is_main else None):
                run = open_run(part, data=source, module=given.needed if given else None, progress=report)
                chosen = dataclasses.replace(data_options, fold=(number, folds))
                _check_same(run, part, name, initial.name, inflate, run_recipe, seed, chosen)
            else:
                run = prepare_run(
                    source, model, task=task, weights=weights, inflate=inflate, recipe=run_recipe, seed=seed, out=part,
                    download=download, execution=execution, options=options, progress=report,
                    data_options=dataclasses.replace(data_options, fold=(number, folds)),
                )  # fmt: skip
            for event in _fold_events(run, number, folds, report):
                if on_event:
                    on_event(event)
            runs.append(run)
    results = [run.results["val"] for run in runs]
    outcome = CrossValidation(folder, tuple(runs), results[0].headline, tuple(result.score for result in results))
    if distributed.is_main:
        write_table(folder / FOLDS, outcome.to_plain())
    return outcome


def _fold_events(run: Run, number: int, folds: int, progress: Progress) -> Iterator[FoldEvent]:
    """Train and evaluate a fold; a finished run is only evaluated."""
    yield FoldStart(number, folds, run)
    if run.state.finished:
        run.finish()
    with closing(run.steps()) as events:  # an interrupted run is unlocked at once
        for event in events:
            yield event
            progress(f"fold {number} of {folds}: {event.describe()}", run.state.step, run.total_steps)
    yield FoldEnd(number, folds, run, run.results["val"].score)


def _check_folds(source: Source, folds: int) -> None:
    if "val" in source.splits:
        raise DataError(f"{source.name}: must not have a val split for a cross-validation; merge it into train")
    count = len(source.splits["train"])
    if not 2 <= folds <= count:
        counted = f"the number of training {source.task.noun}s"
        raise RunError(f"folds: must be an integer in [2, {count}] ({counted}), got {folds}")


def _check_same(
    run: Run, part: Path, model: str, weights: str, inflate: Inflation | None, recipe: Recipe, seed: int,
    data_options: DataOptions,
) -> None:  # fmt: skip
    """Raise RunError that names the arguments in which an existing run differs."""
    config = run.config
    arguments: dict[str, tuple[object, object]] = {
        "model": (model, config.model),
        "weights": (weights, config.weights),
        "seed": (seed, config.seed),
        "inflate": (inflate, config.inflate),
        **{
            name: (getattr(data_options, name), getattr(config.data_options, name))
            for name in ("fold", "group_pattern", "resolution", "stem", "channels", "frames", "frame_rate", "clips")
        },
        "recipe": (recipe.lengthened(run.steps_per_epoch), config.recipe),
    }
    different = [argument for argument, (new, old) in arguments.items() if new != old]
    if different:
        raise RunError(
            f"{part}: is a run of another cross-validation (different {' and '.join(different)}); choose another --out"
        )
