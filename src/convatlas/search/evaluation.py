"""One evaluation of a search: a contestant is trained for some seconds in its run directory, and can be continued.

Latency and training take their time in turn: while a latency is measured, no worker on the machine trains.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from convatlas.data.readers.memory import Data
from convatlas.errors import RunError, SearchError
from convatlas.models.catalog import resolve
from convatlas.search.contestant import Contestant
from convatlas.search.counts import Counts
from convatlas.search.limits import reward
from convatlas.search.settings import SearchSettings
from convatlas.system.locks import MachineLock
from convatlas.train.fit import prepare_run
from convatlas.train.recipe import Recipe
from convatlas.train.recipe_fields import RecipeFields
from convatlas.train.resume import open_run
from convatlas.train.run import Run
from convatlas.train.run_folder import CONFIG
from convatlas.train.settings import RunOptions

TRIALS = "trials"
"""Folder of the run directories of the contestants."""

PROBED_STEPS, SKIPPED_STEPS = 12, 4
"""Steps after which the epochs are chosen by the time of a step, and the first ones, which are slower."""

MAX_EPOCHS, ENDLESS = 200, 100_000
"""Most epochs of a training whose epochs follow from its time, and epochs that no contestant reaches."""

WARM_UP_IMAGES = 2000
"""Images over which the learning rate of a contestant rises."""

EMA_DECAY = 0.98
"""Decay per step of the moving average of the weights, which is evaluated while the learning rate is high."""


class OverLimitError(SearchError):
    """A contestant whose measured latency is above the limit."""


@dataclass
class Evaluator:
    """Evaluates the contestants of a search.

    between: is called between steps; it may raise to stop. data: in memory; None for that of the settings.
    """

    folder: Path
    settings: SearchSettings
    lock: MachineLock
    between: Callable[[], None] = lambda: None
    data: Data | None = None

    def evaluate(self, contestant: Contestant, fidelity: float) -> dict[str, float]:
        """Return accuracy, latency and counts of a contestant that was trained for this share of the training time.

        Raises OverLimitError before any training, and RunError if it cannot be trained.
        """
        counts = Counts.of(contestant.spec, classes=self.settings.classes, channels=self.settings.channels)
        latency = self.latency_of(contestant, counts)
        over = self.settings.hard_limits.exceeded(counts, latency)
        if over:
            raise OverLimitError(over)
        run = self._resume_or_start(contestant)
        self.train(run, lambda: run.state.seconds >= fidelity * self.settings.training_s)
        run.save()
        return self.metrics(run, counts, latency)

    def metrics(self, run: Run, counts: Counts, latency: float) -> dict[str, float]:
        """Return the metrics of a run as it is; raises RunError without a val split."""
        result = run.validate()
        if result is None:
            raise RunError(f"{self.settings.data}: a search needs a val split; set a val share above 0")
        score = reward(result.score, latency, self.settings.limits.target_s, self.settings.objective)
        return {
            "accuracy": result.score, "reward": score, "latency": latency, "parameters": counts.parameters,
            "macs": counts.macs, "file_bytes": counts.file_bytes, "memory_bytes": counts.memory_bytes,
            "steps": run.state.step, "epochs": run.state.step / run.steps_per_epoch, "seconds": run.state.seconds,
        }  # fmt: skip

    def latency_of(self, contestant: Contestant, counts: Counts) -> float:
        """Return the latency in seconds: measured alone on this machine, or predicted by the model of another one.

        That of baselines is known from the start of the search.
        """
        if contestant.latency_s is not None:
            return contestant.latency_s
        if not self.settings.measures and self.settings.latency is not None:
            return self.settings.latency.predict(counts)
        return self.settings.meter.seconds(contestant.spec, limit_s=self.settings.hard_limits.target_s, lock=self.lock)

    def open_final(
        self, contestant: Contestant, folder: Path, *, seconds: float, threads: int | None, least_step_s: float
    ) -> Run:  # fmt: skip
        """Open the training of the winner, or start it; it has diagnostics and a report. See `open_timed`."""
        fields = {} if contestant.kind == "pretrained" else {"ema_decay": EMA_DECAY}
        return self.open_timed(
            contestant, folder, seconds=seconds, threads=threads, fields=fields, options=RunOptions(),
            least_step_s=least_step_s,
        )  # fmt: skip

    def open_timed(
        self, contestant: Contestant, folder: Path, *, seconds: float, threads: int | None, fields: Mapping[str, Any],
        options: RunOptions, max_epochs: int = MAX_EPOCHS, least_step_s: float = 0.0,
        attach: Callable[[Run], None] = lambda run: None,
    ) -> Run:  # fmt: skip
        """Open a training, or start it: a few steps, then with the epochs that fit the time.

        Its learning rate falls as the recipe has it. least_step_s: what a step takes at least; the first ones are
        faster where a recipe trains the head alone. attach: is called with the run whenever it was opened.
        """
        if (folder / CONFIG).is_file():
            run = open_run(folder, data=self.data)
        else:
            run = self._prepare(contestant, folder, {**fields, "epochs": max_epochs}, threads, options)
        attach(run)
        if run.config.recipe.epochs == max_epochs and not run.config.changes:
            self.train(run, lambda: run.state.step >= SKIPPED_STEPS)
            start, before = time.perf_counter(), run.state.step
            first = run.state.step
            self.train(run, lambda: run.state.step >= first + PROBED_STEPS)
            step_s = max(least_step_s, (time.perf_counter() - start) / max(1, run.state.step - before))
            run.save()
            fitting = int(seconds / (step_s * run.steps_per_epoch))
            epochs = min(max_epochs, max(run.state.epochs_begun, fitting))
            run = open_run(folder, data=self.data, epochs=epochs)
            attach(run)
        return run

    def _resume_or_start(self, contestant: Contestant) -> Run:
        """Open the run of a contestant. Its learning rate is constant after a warm-up, because it may end any time."""
        folder = self.folder / TRIALS / contestant.name
        if (folder / CONFIG).is_file():
            return open_run(folder, data=self.data)
        fields = {
            "epochs": ENDLESS, "schedule": "constant", "head_epochs": 0, "patience": 0, "ema_decay": EMA_DECAY,
            "warmup": min(1.0, WARM_UP_IMAGES / self.settings.train_images),
        }  # fmt: skip
        options = RunOptions(diagnostics=False, report=False)
        return self._prepare(contestant, folder, fields, self.settings.execution.threads, options)

    def _prepare(
        self, contestant: Contestant, folder: Path, fields: Mapping[str, Any], threads: int | None, options: RunOptions
    ) -> Run:  # fmt: skip
        settings = self.settings
        folder.parent.mkdir(parents=True, exist_ok=True)
        network, data_options = contestant.network or contestant.spec, settings.data_options
        recipe: str | Recipe | None = settings.recipe
        if recipe is None and contestant.kind == "candidate":  # shared weights are no published ones: as from scratch
            recipe = resolve(contestant.spec)[1].recipe
        if contestant.network:
            changes = {"stem": contestant.stem, "resolution": contestant.spec.resolution}
            data_options = data_options.replaced(changes)
        return prepare_run(
            settings.data if self.data is None else self.data, network, task=settings.task_name,
            weights=self._weights(contestant), recipe=recipe, seed=contestant.seed, out=folder,
            data_options=data_options, execution=settings.execution.replaced({"threads": threads}), options=options,
            **cast(RecipeFields, {**settings.fields, **fields}),
        )  # fmt: skip

    def _weights(self, contestant: Contestant) -> str:
        """Return the weights that a contestant starts from; a file is in the directory of the search."""
        file = self.folder / contestant.weights
        return str(file) if file.is_file() else contestant.weights or "none"

    def train(self, run: Run, is_enough: Callable[[], bool]) -> None:
        """Train until it is enough, and pause; the training is not finished, so that it can be continued."""
        if is_enough():
            return
        events = run.steps()
        try:
            while not is_enough():
                with self.lock.working():
                    if next(events, None) is None:
                        return
                self.between()
        except Exception:  # stopped between two steps; at a signal, the run saves itself
            events.close()
            run.save()
            raise
        events.close()
