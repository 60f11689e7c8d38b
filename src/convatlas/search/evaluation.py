"""One evaluation of a search: a contestant is trained for some seconds in its run directory, and can be continued.

Latency and training take their time in turn: while a latency is measured, no worker on the machine trains.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
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
from convatlas.train.resume import open_run, read_progress
from convatlas.train.run import Run
from convatlas.train.run_folder import CONFIG, OccupiedError
from convatlas.train.settings import RunOptions
from convatlas.train.state import Epoch

TRIALS = "trials"
"""Folder of the run directories of the contestants."""

PROBED_STEPS, SKIPPED_STEPS = 12, 4
"""Steps after which the epochs are chosen by the time of a step, and the first ones, which are slower."""

MAX_EPOCHS, ENDLESS = 1000, 100_000
"""Most epochs of a training whose epochs follow from its time, and epochs that no contestant reaches."""

WARM_UP_IMAGES = 2000
"""Images over which the learning rate of a contestant rises."""

EMA_DECAY = 0.98
"""Decay per step of the moving average of the weights, which is evaluated while the learning rate is high."""


TIMED_EPOCHS, TIME_TOLERANCE = 5, 0.03
"""Last epochs whose time is that of the next ones, also the fewest between two plans; and share of the time by which a
plan may miss it."""


def least_epochs(recipe: Recipe) -> int:
    """Return the fewest epochs that a recipe can have."""
    return max(1, math.ceil(max(recipe.warmup, recipe.head_epochs)))


def epochs_within(
    elapsed_s: Sequence[float], planned: int, *, seconds: float, left: float, since: int = 0
) -> int:  # fmt: skip
    """Return the epochs of a training that is to take so many seconds: the planned ones if they about do.

    elapsed_s: seconds of the training at the end of each epoch so far. left: of the time. since: epochs at the start
    whose time tells nothing, because only the head was trained for instance.
    """
    done = len(elapsed_s)
    number = min(TIMED_EPOCHS, done - since)
    if number < 1:
        return planned
    epoch_s = (elapsed_s[-1] - (elapsed_s[-1 - number] if done > number else 0.0)) / number
    if abs((planned - done) * epoch_s - left) <= max(epoch_s / 2, TIME_TOLERANCE * seconds):
        return planned
    return min(max(MAX_EPOCHS, done), done + max(0, int(left / max(epoch_s, 1e-9))))


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
        latency, is_disturbed = self.latency_of(contestant, counts)
        over = self.settings.hard_limits.exceeded(counts, latency)
        if over:
            raise OverLimitError(f"{over}; other processes disturbed the measurement" if is_disturbed else over)
        with self.lock.working():
            run = self._resume_or_start(contestant)
        self.train(run, lambda: run.state.seconds >= fidelity * self.settings.training_s)
        run.save()
        return self.metrics(run, counts, latency, is_disturbed=is_disturbed)

    def evaluate_finalist(
        self, contestant: Contestant, *, pause_s: float, speedup: float, threads: int | None, least_step_s: float
    ) -> dict[str, float]:
        """Return the metrics of a finalist after some seconds of its training, or at its end.

        speedup: of the training after a pause, when it has more cores. See `open_timed`. The run has a report. Random
        weights are trained with a cosine schedule and as short a warm-up as in the search, so that the accuracy at the
        pause tells something.
        """
        seconds = contestant.final_s
        if pause_s < seconds:
            seconds = pause_s + speedup * (seconds - pause_s)
        counts = Counts.of(contestant.spec, classes=self.settings.classes, channels=self.settings.channels)
        latency, is_disturbed = self.latency_of(contestant, counts)
        fields: dict[str, Any] = {}
        if contestant.kind != "pretrained":
            fields = {"schedule": "cosine", "warmup": self._warm_up, **self.settings.fields, "ema_decay": EMA_DECAY}
        run = self.open_timed(
            contestant, self.folder / TRIALS / contestant.name, seconds=seconds, threads=threads, fields=fields,
            options=RunOptions(), least_step_s=least_step_s,
        )  # fmt: skip
        if not run.state.finished:
            run = self.finish_timed(run, seconds=seconds, pause_s=pause_s)
        return self.metrics(run, counts, latency, is_disturbed=is_disturbed)

    def metrics(self, run: Run, counts: Counts, latency: float, *, is_disturbed: bool = False) -> dict[str, float]:
        """Return the metrics of a run as it is, or of its best epoch if it is finished.

        Raises RunError without a val split.
        is_disturbed: other processes disturbed the measurement of the latency.
        """
        with self.lock.working():
            if run.state.finished and not run.results:
                run.finish()
            result = run.results.get("val") if run.state.finished else run.validate()
        if result is None:
            raise RunError(f"{self.settings.data}: a search needs a val split; set a val share above 0")
        score = reward(result.score, latency, self.settings.limits.target_s, self.settings.objective)
        return {
            "accuracy": result.score, "reward": score, "latency": latency, "parameters": counts.parameters,
            "macs": counts.macs, "file_bytes": counts.file_bytes, "memory_bytes": counts.memory_bytes,
            "steps": run.state.step, "epochs": run.state.step / run.steps_per_epoch, "seconds": run.state.seconds,
            "disturbed": float(is_disturbed),
        }  # fmt: skip

    def latency_of(self, contestant: Contestant, counts: Counts) -> tuple[float, bool]:
        """Return (seconds, whether other processes disturbed the measurement) of the machine of the search.

        It is measured there, unless it is known, and predicted on another kind of machine.
        """
        if contestant.latency_s is not None:
            return contestant.latency_s, False
        if self.settings.latency is not None and not self.settings.measures_here:
            return self.settings.latency.predict(counts), False
        limit_s = self.settings.hard_limits.target_s
        measured = self.settings.meter.measure_one(contestant.spec, limit_s=limit_s, lock=self.lock)
        return measured.seconds, measured.is_disturbed

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
            run = open_run(folder, data=self.data, threads=None if read_progress(folder).finished else threads)
        else:
            run = self._prepare(contestant, folder, {**fields, "epochs": max_epochs}, threads, options)
        attach(run)
        if run.config.recipe.epochs == max_epochs and not run.config.changes and not run.state.finished:
            self.train(run, lambda: run.state.step >= SKIPPED_STEPS)
            start, before = time.perf_counter(), run.state.step
            first = run.state.step
            self.train(run, lambda: run.state.step >= first + PROBED_STEPS)
            step_s = max(least_step_s, (time.perf_counter() - start) / max(1, run.state.step - before))
            run.save()
            fitting = int(seconds / (step_s * run.steps_per_epoch))
            epochs = min(max_epochs, max(run.state.epochs_begun, fitting, least_epochs(run.config.recipe)))
            run = open_run(folder, data=self.data, epochs=epochs)
            attach(run)
        return run

    def finish_timed(self, run: Run, *, seconds: float, pause_s: float = math.inf) -> Run:
        """Train a run of `open_timed` to its end, with fewer or more epochs if they take another time than expected.

        pause_s: seconds of the training after which it pauses.
        """
        end = time.monotonic() + seconds - run.state.seconds
        is_continued = run.state.step > SKIPPED_STEPS + PROBED_STEPS  # maybe with other cores
        before = run.state.epochs_begun if is_continued else 0
        since = max(before, math.ceil(run.config.recipe.head_epochs))
        while True:
            recipe, opened = run.config.recipe, len(run.history)
            epochs, events = recipe.epochs, run.steps()
            while epochs == recipe.epochs:
                if run.state.seconds >= pause_s:
                    events.close()
                    run.save()
                    return run
                with self.lock.working():
                    event = next(events, None)
                if event is None:
                    return run
                done = len(run.history)
                least = min(TIMED_EPOCHS, math.ceil(recipe.epochs / 4))
                if isinstance(event, Epoch) and done - max(since, opened) >= least:
                    epochs = epochs_within(
                        [each.elapsed_s for each in run.history], recipe.epochs, seconds=seconds,
                        left=end - time.monotonic(), since=since,
                    )  # fmt: skip
                    if done < epochs < recipe.epochs:
                        epochs = max(epochs, least_epochs(recipe))
            events.close()
            if epochs <= len(run.history):
                run.finish()
                return run
            run = open_run(run.folder, data=self.data, epochs=epochs)

    def _resume_or_start(self, contestant: Contestant) -> Run:
        """Open the run of a contestant. Its learning rate is constant after a warm-up, because it may end any time."""
        folder = self.folder / TRIALS / contestant.name
        if (folder / CONFIG).is_file():
            return open_run(folder, data=self.data)
        fields = {
            "epochs": ENDLESS, "schedule": "constant", "head_epochs": 0, "patience": 0, "ema_decay": EMA_DECAY,
            "warmup": self._warm_up,
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

    @property
    def _warm_up(self) -> float:
        return min(1.0, WARM_UP_IMAGES / self.settings.train_images)

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
        except OccupiedError:
            raise
        except Exception:  # stopped between two steps; at a signal, the run saves itself
            events.close()
            run.save()
            raise
        events.close()
