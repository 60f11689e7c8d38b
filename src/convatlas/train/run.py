"""A run: one training in one directory, which can be interrupted at any step and resumed bit for bit (on CPU)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Iterator, Mapping
from functools import cached_property
from itertools import zip_longest

import torch

from convatlas.core.network import Network
from convatlas.data.loader import BatchLoader
from convatlas.data.readers.memory import IN_MEMORY
from convatlas.errors import RunError
from convatlas.explanation.statistics import MeasuredStep
from convatlas.system.load import describe_load
from convatlas.system.progress import Progress
from convatlas.tasks.result import Result
from convatlas.tasks.table import pluralize
from convatlas.train.cpu.execution import process_settings
from convatlas.train.cpu.threads import LoadWatch, fastest_threads, thread_counts
from convatlas.train.diagnostics import DiagnosticsFile, Recorder, lines_of, steps_of
from convatlas.train.finish import run_header
from convatlas.train.loggers import Log, RunIdentity
from convatlas.train.loop import train
from convatlas.train.lr_finder import LRFinderResult, find_lr
from convatlas.train.lr_schedule import lr_at
from convatlas.train.report import ReportData, write_reports
from convatlas.train.run_folder import DIAGNOSTICS, LAST, METRICS, MODEL, write_table
from convatlas.train.session import Session
from convatlas.train.state import Epoch
from convatlas.train.step import Step
from convatlas.train.swap_forward import restore_forwards
from convatlas.weights.modelfile import write_model_file

Event = Step | Epoch
"""An event of `Run.steps`."""


class Run(Session):
    """A training and its directory; `steps()` trains and yields after each step and each epoch."""

    def steps(self) -> Generator[Event, None, None]:
        """Train from the current state; yield every step, and after an epoch its metrics.

        Writes checkpoints; after the last epoch evaluates the best weights and writes the model file. Threads, malloc
        settings and the state of the random number generator are set while it trains and restored afterwards.
        After SIGINT and SIGTERM a checkpoint of the present step is written, and KeyboardInterrupt or `Terminated` is
        raised; see `StopSignals`.
        """
        if self.state.finished:
            return
        options = self.config.options
        identity = RunIdentity(self.folder, self.run_id, self.config.to_plain(), self.state.step)
        with (
            process_settings(threads=self.threads, retain_malloc=self._retains_malloc),
            self._lock(),
            self._signals,
        ):
            log = Log(identity, options.log if self.distributed.is_main else (), self.state.note)
            try:
                for event in self._train():
                    if isinstance(event, Epoch):
                        log.epoch(event.to_plain(), self.state.step - 1)
                    elif not event.skipped:
                        log.step(event.number, event.loss, event.lr)
                    yield event
                self._finish()
            finally:
                notes = self.state.notes
                log.close(self.results, self.state.step)
            if self.state.notes != notes:
                self.save()

    def _train(self) -> Iterator[Event]:
        config, state, options = self.config, self.state, self.config.options
        loader = self.loader()
        if (
            state.step == (len(state.history) + 1) * loader.steps
        ):  # interrupted between the last step and its evaluation
            yield self._end_epoch(loader.steps)
        last = saved = time.perf_counter()
        watch = LoadWatch() if self._adapts_threads else None
        steps = train(
            self.network, self.optimizer, loader, config.recipe, seed=config.seed, start=state.step,
            skipped=state.consecutive_skips, plan=self.plan, ema=self.ema,
            class_weights=config.task.class_weights(loader.targets, config.recipe.class_weight_power),
            distributed=self.distributed, names=self.dataset.train.names, recorder=self._recorder,
            stop_requested=lambda: self._signals.requested,
        )  # fmt: skip
        while not self._out_of_patience():
            with self._signals.deferred():
                step = next(steps, None)
                if step is None:
                    return
                self._count(step)
                now = time.perf_counter()
                state.seconds += max(0.0, now - last)  # clocks may jump back
                last = now
            if step.stop:
                self._signals.stop()
            if watch and (load := watch.changed_load(state.other_load)) is not None:
                step = dataclasses.replace(
                    step, remark="; ".join(filter(None, (step.remark, self._measure_threads(load))))
                )
            yielded = time.perf_counter()
            yield step
            last += time.perf_counter() - yielded  # the caller's time
            if state.step % loader.steps == 0:
                epoch = self._end_epoch(loader.steps)
                saved = time.perf_counter()
                yield epoch
                last += time.perf_counter() - saved
            elif (
                time.perf_counter() - saved >= options.checkpoint_seconds
                or 0 < options.checkpoint_steps <= state.step - self._saved_step
            ):
                self.save()
                saved = time.perf_counter()

    @property
    def _recorder(self) -> Recorder | None:
        """What selects the steps that are measured, in one of the processes."""
        if not (self.config.options.diagnostics and self.distributed.is_main):
            return None
        return Recorder(self.steps_per_epoch, activations=not self.plan.compiled)

    @cached_property
    def _diagnostics_file(self) -> DiagnosticsFile:
        return DiagnosticsFile(self.folder / DIAGNOSTICS)

    @property
    def _adapts_threads(self) -> bool:
        execution = self.config.execution
        alone = self.distributed.world_size == 1 and self.device.type == "cpu" and not self.plan.compiled
        return execution.adapt_threads and (execution.threads or 1) > 1 and alone

    def _measure_threads(self, load: float) -> str:
        """Continue with the number of threads that is the fastest beside other processes; return what changed.

        A checkpoint is written after a change, so that a resumed run continues with the same number.
        """
        recipe, before = self.config.recipe, torch.get_num_threads()
        counts = thread_counts(before, self.config.execution.threads or before, load)
        threads = fastest_threads(
            self.network, self.plan, counts, batch=recipe.micro_batch or recipe.batch, classes=self.task.outputs,
            device=self.device,
        )  # fmt: skip
        with self._signals.deferred():
            self.state.other_load = load
            if threads == before:
                return ""
            self.state.threads = threads
            torch.set_num_threads(threads)
            self.save()
        return f"{describe_load(load)}: continuing with {pluralize(threads, 'thread')}"

    def _count(self, step: Step) -> None:
        """Add a step to the sums over the epoch."""
        state = self.state
        state.step = step.number + 1
        state.consecutive_skips = state.consecutive_skips + 1 if step.skipped else 0
        if step.skipped:
            state.skipped += 1
        else:
            state.loss_sum += step.loss * step.batch.size
            state.metric_sums = tuple(map(sum, zip_longest(state.metric_sums, step.metric_sums, fillvalue=0.0)))
            state.images += step.batch.size
        if step.layers:
            state.diagnostics += lines_of(MeasuredStep(step.epoch + 1, step.number, step.lr, step.layers))
            self._diagnostics_file.write(state.diagnostics)

    def find_lr(self, progress: Progress | None = None) -> LRFinderResult:
        """Run the learning-rate finder on a copy of the network. Raises RunError if there are other processes."""
        if self.distributed.world_size > 1:
            raise RunError("lr: the learning-rate finder runs in one process; run it first, then pass lr to torchrun")
        loader = self.loader()
        with process_settings(threads=self.threads):
            return find_lr(
                self.network, loader, self.config.recipe, seed=self.config.seed, plan=self.plan, progress=progress,
                class_weights=self.config.task.class_weights(loader.targets, self.config.recipe.class_weight_power),
            )  # fmt: skip

    def loader(self) -> BatchLoader:
        """Return the batches of the training, from the first epoch on."""
        config = self.config
        return BatchLoader(
            self.dataset.train, config.preprocessing, config.task, batch=config.recipe.batch, seed=config.seed,
            min_last=self._min_images, shuffle=config.recipe.shuffle, augment=config.recipe.augment,
            shard=self.distributed.shard, device=self.device,
        )  # fmt: skip

    def _out_of_patience(self) -> bool:
        """Return whether an epoch has just ended, and `patience` epochs have passed since the best one."""
        patience, state = self.config.recipe.patience, self.state
        if not patience or self.dataset.val is None or state.images or state.skipped:
            return False
        return len(state.history) - state.best_epoch >= patience

    def _end_epoch(self, steps_per_epoch: int) -> Epoch:
        """Evaluate on val, write the model file if the epoch is the best so far, and save a checkpoint."""
        state, task, images = self.state, self.config.task, max(1, self.state.images)
        number = state.step // steps_per_epoch
        columns = task.progress_columns[:-1]  # those of train
        sums = state.metric_sums or (0.0,) * len(columns)  # without sums, every step was skipped
        metrics = {column.key: total / images for column, total in zip(columns, sums, strict=True)}
        train_loss, skipped = state.loss_sum / images, state.skipped
        result = self._evaluator.evaluate(self.trained, "val", step=state.step)  # may be interrupted
        if result is not None:
            metrics |= {} if result.loss is None else {"val_loss": result.loss}
            metrics |= {f"val_{name}": value for name, value in result.epoch_metrics().items()}
        with self._signals.deferred():
            state.start_epoch()
            best = result is None or state.is_best(result)  # without a val split the latest epoch wins
            if best:
                state.best_epoch = number
                if result is not None:
                    state.best_score, state.best_loss = result.score, result.loss
                self._write_model(MODEL, self.trained, {} if result is None else {"val": result}, epoch=number)
            lr = lr_at(self.config.recipe, state.step - 1, steps_per_epoch)
            epoch = Epoch(number, lr, train_loss, skipped, state.seconds, metrics, best)
            state.history = (*state.history, epoch.to_plain())
            if self.distributed.is_main:
                write_table(self.folder / METRICS, state.history)
            self.save()
        return epoch

    def finish(self) -> None:
        """Evaluate the last and the best weights on val and test and write both model files and the report.

        `network` then has the best weights. `steps` calls it after the last epoch; call it to stop earlier.
        Raises RunError before the end of the first epoch.
        """
        settings = process_settings(threads=self.threads, retain_malloc=self._retains_malloc)
        with settings, self._lock():
            self._finish()

    def _finish(self) -> None:
        if not self.state.history:
            raise RunError(f"{self.folder}: there is no model to save before the end of the first epoch")
        # 1. the model files
        step = self.state.step
        if not self.state.finished:
            self.calibration, results = self._evaluator.calibrate(self.trained, step=step)
            self._write_model(LAST, self.trained, results, epoch=len(self.state.history))
        self.distributed.barrier()  # the file must be complete
        restore_forwards(self.network)
        self.network.load_file_state(self._read_best())
        self.calibration, self.results = self._evaluator.calibrate(self.network, step=step)
        self._write_model(MODEL, self.network, self.results, epoch=self.state.best_epoch)
        self.state.finished = True
        self.save()
        # 2. figures and report, on which nothing depends
        if self.distributed.is_main and self.config.options.report:
            notes = self.state.notes
            data = ReportData(
                folder=self.folder, config=self.config, dataset=self.dataset, network=self.network,
                results=self.results, calibration=self.calibration, history=self.state.history,
                seconds=self.state.seconds, diagnostics=steps_of(self.state.diagnostics),
            )  # fmt: skip
            write_reports(self.folder, data, self.state.note)
            if self.state.notes != notes:
                self.save()

    @property
    def _data_name(self) -> str:
        """The name of the data in files: no path, and no name that data in memory does not have."""
        location = self.config.data
        return location if location.startswith(IN_MEMORY) else self.dataset.name

    def _write_model(self, file: str, network: Network, results: Mapping[str, Result], *, epoch: int) -> None:
        if self.distributed.is_main:
            header = run_header(
                self.config, data=self._data_name, epoch=epoch, seconds=self.state.seconds,
                calibration=self.calibration, results=results,
            )  # fmt: skip
            write_model_file(self.folder / file, network, header)
