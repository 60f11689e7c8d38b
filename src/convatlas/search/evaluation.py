"""One evaluation of a search: a contestant is trained for some seconds in its run directory, and can be continued.

Latency and training take their time in turn: while a latency is measured, no worker on the machine trains.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from convatlas.data.readers.memory import Data
from convatlas.errors import RunError, SearchError
from convatlas.models.catalog import resolve
from convatlas.search.contestant import Contestant
from convatlas.search.counts import Counts
from convatlas.search.limits import reward
from convatlas.search.settings import SearchSettings
from convatlas.search.standings import network_name
from convatlas.system.locks import MachineLock
from convatlas.train.fit import prepare_run
from convatlas.train.lr_schedule import WSD_DECAY
from convatlas.train.recipe import Recipe
from convatlas.train.recipe_fields import RecipeFields
from convatlas.train.resume import open_run
from convatlas.train.run import Run
from convatlas.train.run_folder import CONFIG, OccupiedError
from convatlas.train.settings import RunOptions, read_config, write_config
from convatlas.train.state import Epoch

TRIALS = "trials"
"""Folder of the run directories of the contestants."""

PROBED_STEPS, SKIPPED_STEPS = 12, 4
"""Steps after which the epochs are chosen by the time of a step, and the first ones, which are slower."""

MAX_EPOCHS, ENDLESS = 1000, 100_000
"""Most epochs of the winner, unless its trial had nearly as many, and epochs that no contestant reaches."""

WARM_UP_IMAGES = 2000
"""Images over which the learning rate of a contestant rises."""

HEAD_IMAGES = 4000
"""Most images of the train split with which a pretrained network keeps the head epochs of its recipe; with more, they
would be most of a trial."""

EMA_DECAY = 0.98
"""Decay per step of the moving average of the weights, which is evaluated while the learning rate is high."""

OWN_FIELDS = frozenset({"epochs", "schedule", "warmup", "head_epochs", "patience", "ema_decay"})
"""Fields of a recipe that every trial of a search has for its own: it may end any time."""

TIMED_EPOCHS, TIME_TOLERANCE = 5, 0.03
"""Last epochs whose time is that of the next ones, also the fewest between two plans; and share of the time by which a
plan may miss it."""


def epochs_within(
    elapsed_s: Sequence[float], planned: int, *, seconds: float, left: float, since: int = 0
) -> int:  # fmt: skip
    """Return the epochs of a training that is to take so many seconds: the planned ones if they about do.

    elapsed_s: seconds of the training at the end of each epoch so far. left: of the time. since: epochs at the start
    whose time tells nothing, because they had other cores for instance.
    """
    done = len(elapsed_s)
    number = min(TIMED_EPOCHS, done - since)
    if number < 1:
        return planned
    epoch_s = (elapsed_s[-1] - (elapsed_s[-1 - number] if done > number else 0.0)) / number
    if abs((planned - done) * epoch_s - left) <= max(epoch_s / 2, TIME_TOLERANCE * seconds):
        return planned
    return min(max(MAX_EPOCHS, planned), done + max(0, int(left / max(epoch_s, 1e-9))))


def _copy_run(trial: Path, folder: Path) -> None:
    """Copy the run directory of a trial for a finalist, whose run has a report; the trial can still be continued."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(trial, part)
    write_config(part, replace(read_config(part), options=RunOptions()))
    part.rename(folder)


class OverLimitError(SearchError):
    """A contestant is above a limit. latency_s: its latency, if it was measured and nothing disturbed that."""

    def __init__(self, message: str, latency_s: float | None = None) -> None:
        super().__init__(message)
        self.latency_s = latency_s


class KnownLatency(NamedTuple):
    """The latency of a contestant, in seconds for one image.

    is_disturbed: other processes disturbed the measurement. is_predicted: by the model, not measured.
    """

    seconds: float
    is_disturbed: bool = False
    is_predicted: bool = False


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
        counts, latency = self._within_limits(contestant)
        with self.lock.working():
            run = self._resume_or_start(contestant)
        self.train(run, lambda: run.state.seconds >= fidelity * self.settings.training_s)
        run.save()
        return self.metrics(run, counts, latency)

    def train_to_end(
        self, contestant: Contestant, seconds: float, *, left_s: float, threads: int | None, speedup: float
    ) -> dict[str, float]:
        """Return the metrics of a finalist at the end of its training, which takes so many seconds in all.

        It continues its trial. left_s: the most seconds from now on, which are fewer if it was interrupted. speedup: of
        the rest, if it has more cores. The run has a report.
        Raises OverLimitError before any training.
        """
        counts, latency = self._within_limits(contestant)
        with self.lock.working():
            run = self._resume_or_start(contestant)
        seconds = min(seconds, run.state.seconds + left_s)
        if run.config.recipe.epochs == ENDLESS and not run.state.finished:
            self.train(run, lambda: run.state.step >= SKIPPED_STEPS + PROBED_STEPS)  # without a trial
            run.save()
            done = run.state.step / run.steps_per_epoch
            fitting = done + (seconds - run.state.seconds) * speedup * done / run.state.seconds
            most = max(MAX_EPOCHS, math.ceil(done / (1 - WSD_DECAY)))  # the learning rate falls in any case
            epochs = min(max(int(fitting), run.state.epochs_begun, 1), most)
            run = open_run(run.folder, data=self.data, epochs=epochs, threads=threads)
        if not run.state.finished:
            run = self.finish_timed(run, seconds=seconds)
        return self.metrics(run, counts, latency)

    def metrics(self, run: Run, counts: Counts, latency: KnownLatency) -> dict[str, float]:
        """Return the metrics of a run as it is, or of its best epoch if it is finished.

        model_reward: that of its model file, which has the best epoch; 0 before the end of the first one.
        Raises RunError without a val split.
        """
        with self.lock.working():
            if run.state.finished and not run.results:
                run.finish()
            result = run.results.get("val") if run.state.finished else run.validate()
        if result is None:
            raise RunError(f"{self.settings.data}: a search needs a val split; set a val share above 0")
        saved = result.score if run.state.finished else run.state.best_score or 0.0

        def reward_of(accuracy: float) -> float:
            return reward(accuracy, latency.seconds, self.settings.limits.target_s, self.settings.objective)

        return {
            "accuracy": result.score, "reward": reward_of(result.score), "latency": latency.seconds,
            "parameters": counts.parameters, "macs": counts.macs, "file_bytes": counts.file_bytes,
            "memory_bytes": counts.memory_bytes,
            "steps": run.state.step, "epochs": run.state.step / run.steps_per_epoch, "seconds": run.state.seconds,
            "disturbed": float(latency.is_disturbed), "predicted": float(latency.is_predicted),
            "model_reward": reward_of(saved),
        }  # fmt: skip

    def latency_of(self, contestant: Contestant, counts: Counts) -> KnownLatency:
        """Return the latency of a contestant: measured if it is not known, and predicted on another kind of machine."""
        if contestant.latency_s is not None:
            return KnownLatency(contestant.latency_s, is_predicted=not self.settings.measures)
        if self.settings.latency is not None and not self.settings.measures_here:
            return KnownLatency(self.settings.latency.predict(counts), is_predicted=True)
        limit_s = self.settings.hard_limits.target_s
        measured = self.settings.meter.measure_one(contestant.spec, limit_s=limit_s, lock=self.lock)
        return KnownLatency(measured.seconds, is_disturbed=measured.is_disturbed)

    def _within_limits(self, contestant: Contestant) -> tuple[Counts, KnownLatency]:
        """Return the cost and the latency of a contestant; raises OverLimitError."""
        counts = Counts.of(contestant.spec, classes=self.settings.classes, channels=self.settings.channels)
        latency = self.latency_of(contestant, counts)
        over = self.settings.hard_limits.exceeded(counts, latency.seconds)
        if over and latency.is_disturbed:
            raise OverLimitError(f"{over}; other processes disturbed the measurement")
        if over:
            raise OverLimitError(over, None if latency.is_predicted else latency.seconds)
        return counts, latency

    def open_timed(
        self, contestant: Contestant, folder: Path, *, seconds: float, fields: Mapping[str, Any], max_epochs: int,
        attach: Callable[[Run], None] = lambda run: None,
    ) -> Run:  # fmt: skip
        """Open a training, or start it: a few steps, then with the epochs that fit the time.

        Its learning rate falls as the recipe has it. attach: is called with the run whenever it was opened.
        """
        if (folder / CONFIG).is_file():
            run = open_run(folder, data=self.data)
        else:
            run = self._prepare(contestant, folder, {**fields, "epochs": max_epochs})
        attach(run)
        if run.config.recipe.epochs == max_epochs and not run.config.changes and not run.state.finished:
            self.train(run, lambda: run.state.step >= SKIPPED_STEPS)
            start, before = time.perf_counter(), run.state.step
            self.train(run, lambda: run.state.step >= before + PROBED_STEPS)
            step_s = (time.perf_counter() - start) / max(1, run.state.step - before)
            run.save()
            fitting = int(seconds / (step_s * run.steps_per_epoch))
            epochs = min(max_epochs, max(run.state.epochs_begun, fitting, math.ceil(run.config.recipe.warmup), 1))
            run = open_run(folder, data=self.data, epochs=epochs)
            attach(run)
        return run

    def finish_timed(self, run: Run, *, seconds: float) -> Run:
        """Train a run to its end, with fewer or more epochs if they take another time than expected."""
        end = time.monotonic() + seconds - run.state.seconds
        before = run.state.epochs_begun  # with other cores
        while True:
            epochs, opened, events = run.config.recipe.epochs, len(run.history), run.steps()
            while epochs == run.config.recipe.epochs:
                with self.lock.working():
                    event = next(events, None)
                if event is None:
                    return run
                done = len(run.history)
                least = min(TIMED_EPOCHS, max(1, math.ceil((epochs - before) / 4)))
                if isinstance(event, Epoch) and done - opened >= least:
                    epochs = epochs_within(
                        [each.elapsed_s for each in run.history], epochs, seconds=seconds,
                        left=end - time.monotonic(), since=before,
                    )  # fmt: skip
            events.close()
            if epochs <= len(run.history):
                run.finish()
                return run
            run = open_run(run.folder, data=self.data, epochs=epochs)

    def _resume_or_start(self, contestant: Contestant) -> Run:
        """Open the run of a contestant; a finalist continues its trial.

        Its learning rate is constant after a warm-up, because it may end any time, until its last epoch is known.
        """
        folder = self.folder / TRIALS / contestant.name
        trial = self.folder / TRIALS / network_name(contestant.name)
        if not (folder / CONFIG).is_file() and (trial / CONFIG).is_file():
            _copy_run(trial, folder)
        if (folder / CONFIG).is_file():
            return open_run(folder, data=self.data)
        fields = {
            "epochs": ENDLESS, "schedule": "wsd", "head_epochs": 0, "patience": 0, "ema_decay": EMA_DECAY,
            "warmup": min(1.0, WARM_UP_IMAGES / self.settings.train_images),
        }  # fmt: skip
        assert fields.keys() == OWN_FIELDS
        if contestant.kind == "pretrained" and self.settings.train_images <= HEAD_IMAGES:
            del fields["head_epochs"]
        return self._prepare(contestant, folder, fields)

    def _prepare(self, contestant: Contestant, folder: Path, fields: Mapping[str, Any]) -> Run:
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
            data_options=data_options, execution=settings.execution,
            options=RunOptions(diagnostics=False, report=False), **cast(RecipeFields, {**settings.fields, **fields}),
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
        except OccupiedError:
            raise
        except Exception:  # stopped between two steps; at a signal, the run saves itself
            events.close()
            run.save()
            raise
        events.close()
