"""A run: one training in one directory, which can be interrupted at any step and resumed bit for bit (on CPU)."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from convatlas._version import __version__
from convatlas.core.network import Network
from convatlas.data.dataset import Dataset
from convatlas.data.loader import BatchLoader, batch_sizes
from convatlas.errors import RunError
from convatlas.system.devices import resolve_device
from convatlas.system.progress import Progress
from convatlas.tasks.task import Calibration, Result, Task
from convatlas.train.batch_norm import min_images
from convatlas.train.checkpoint import load_checkpoint, save_checkpoint
from convatlas.train.cpu import fused_norm
from convatlas.train.cpu.execution import ExecutionPlan, process_settings
from convatlas.train.distributed import Distributed, sync_batch_norms
from convatlas.train.finish import Evaluator, write_run_model
from convatlas.train.loggers import Log, RunIdentity
from convatlas.train.loop import train
from convatlas.train.lr_finder import LRFinderResult, find_lr
from convatlas.train.lr_schedule import lr_at
from convatlas.train.optim import EMA, build_optimizer
from convatlas.train.report import ReportData, write_reports
from convatlas.train.run_folder import CHECKPOINT, LAST, METRICS, MODEL, REPORT, file_identity, lock_run, write_table
from convatlas.train.settings import RunConfig
from convatlas.train.state import Epoch, State
from convatlas.train.step import Step
from convatlas.train.swap_forward import restore_forwards
from convatlas.weights.modelfile import read_tensors

Event = Step | Epoch
"""An event of `Run.steps`."""


class Run:
    """A training and its directory; `steps()` trains and yields after each step and each epoch.

    The constructor changes `network`: the plan converts its weights and replaces forward passes.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        dataset: Dataset,
        network: Network,
        plan: ExecutionPlan,
        distributed: Distributed | None = None,
    ) -> None:
        self.folder, self.config, self.dataset, self.plan = folder, config, dataset, plan
        self.distributed = distributed or Distributed()
        self.device = resolve_device(config.execution.device)
        # the order matters: parameters move to the device and get their memory format and norms are replaced before
        # the optimizer and the EMA reference them
        self.network: Network = plan.place(network.to(self.device))
        if self.distributed.world_size > 1:
            sync_batch_norms(self.network, self.distributed)
        self._min_images = min_images(self.network, config.recipe)
        self.steps_per_epoch = len(batch_sizes(len(dataset.train), config.recipe.batch, self._min_images))
        self.optimizer = build_optimizer(config.recipe, self.network)
        self.ema = EMA(self.network, config.recipe.ema_decay) if config.recipe.ema_decay else None
        self.state = State()
        self.results: dict[str, Result] = {}
        self.calibration = Calibration()
        self._evaluator = Evaluator(config, dataset, self.device, self.distributed)
        self._checkpoint_identity: tuple[int, ...] | None = None

    @property
    def task(self) -> Task:
        return self.config.task

    @property
    def changed_versions(self) -> dict[str, tuple[str, str]]:
        """{name: (version at the start, current version)} of changed versions, which may change the last bits."""
        now = current_versions(self.device, self.plan, self.network)
        return {name: (old, now[name]) for name, old in self.config.versions.items() if now.get(name) != old}

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole training, if it does not stop early."""
        return self.config.recipe.epochs * self.steps_per_epoch

    @property
    def model_file(self) -> Path:
        """The model file of the best epoch."""
        return self.folder / MODEL

    @property
    def report_file(self) -> Path:
        return self.folder / REPORT

    @property
    def history(self) -> list[Epoch]:
        """The epochs so far."""
        return [Epoch.from_plain(row) for row in self.state.history]

    @property
    def run_id(self) -> str:
        """A short text that identifies the run: a hash of its directory and its configuration, but the data's path."""
        text = json.dumps([str(self.folder.resolve()), self.config.to_plain() | {"data": ""}], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __repr__(self) -> str:
        config, state = self.config, self.state
        lines = [
            f"{config.model} on {self.dataset.name}, seed {config.seed}: epoch {len(state.history)} of "
            f"{config.recipe.epochs}{', finished' if state.finished else ''}",
            *(f"  {split}: {result.text()}" for split, result in self.results.items()),
            f"  directory: {self.folder}",
        ]
        return "\n".join(lines)

    def steps(self) -> Iterator[Event]:
        """Train from the current state; yield every step, and after an epoch its metrics.

        Writes checkpoints; after the last epoch evaluates the best weights and writes the model file. Threads, malloc
        settings and the state of the random number generator are set while it trains and restored afterwards.
        """
        if self.state.finished:
            return
        options, execution = self.config.options, self.config.execution
        identity = RunIdentity(self.folder, self.run_id, self.config.to_plain(), self.state.step)
        with (
            process_settings(threads=execution.threads, retain_malloc=self._retains_malloc),
            self._lock(),
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

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Lock the run directory; raises RunError if another process trains the run, or has since it was opened."""
        if not self.distributed.is_main:
            yield
            return
        with lock_run(self.folder):
            if file_identity(self.folder / CHECKPOINT) != self._checkpoint_identity:
                raise RunError(f"{self.folder}: another process has trained this run since it was opened; resume it")
            yield

    @property
    def _retains_malloc(self) -> bool:
        return self.config.execution.retain_malloc and self.device.type == "cpu"

    def _train(self) -> Iterator[Event]:
        config, state, options = self.config, self.state, self.config.options
        loader = self._loader()
        if (
            state.step == (len(state.history) + 1) * loader.steps
        ):  # interrupted between the last step and its evaluation
            yield self._end_epoch(loader.steps)
        last = saved = time.perf_counter()
        saved_step = state.step
        steps = train(
            self.network, self.optimizer, loader, config.recipe, seed=config.seed, start=state.step,
            skipped=state.consecutive_skips, plan=self.plan, ema=self.ema,
            class_weights=config.task.class_weights(loader.targets, config.recipe.class_weight_power),
            distributed=self.distributed,
        )  # fmt: skip
        while not self._out_of_patience():
            step = next(steps, None)
            if step is None:
                return
            self._count(step)
            now = time.perf_counter()
            state.seconds += max(0.0, now - last)  # clocks may jump back
            last = now
            yield step
            if state.step % loader.steps == 0:
                epoch = self._end_epoch(loader.steps)
                saved, saved_step = time.perf_counter(), state.step
                yield epoch
            elif (
                time.perf_counter() - saved >= options.checkpoint_seconds
                or 0 < options.checkpoint_steps <= state.step - saved_step
            ):
                self.save()
                saved, saved_step = time.perf_counter(), state.step

    def _count(self, step: Step) -> None:
        """Add a step to the sums over the epoch."""
        state = self.state
        state.step = step.number + 1
        state.consecutive_skips = state.consecutive_skips + 1 if step.skipped else 0
        if step.skipped:
            state.skipped += 1
        else:
            state.loss_sum += step.loss * step.batch.size
            state.metric_sum += step.metric_sum
            state.images += step.batch.size

    def find_lr(self, progress: Progress | None = None) -> LRFinderResult:
        """Run the learning-rate finder on a copy of the network. Raises RunError if there are other processes."""
        if self.distributed.world_size > 1:
            raise RunError("lr: the learning-rate finder runs in one process; run it first, then pass lr to torchrun")
        loader = self._loader()
        return find_lr(
            self.network, loader, self.config.recipe, seed=self.config.seed, plan=self.plan, progress=progress,
            class_weights=self.config.task.class_weights(loader.targets, self.config.recipe.class_weight_power),
        )  # fmt: skip

    def _loader(self) -> BatchLoader:
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

    def save(self) -> None:
        """Write a checkpoint."""
        if self.distributed.is_main:
            self.state.ema_steps = self.ema.steps if self.ema else 0
            save_checkpoint(self.folder / CHECKPOINT, self.network, self.optimizer, self.state, self.ema)
            self._checkpoint_identity = file_identity(self.folder / CHECKPOINT)

    def load(self) -> None:
        """Continue at the last checkpoint, if there is one.

        Raises RunError or ModelFileError if it, or the model file of the best epoch, is missing, damaged or foreign.
        """
        path = self.folder / CHECKPOINT
        self._checkpoint_identity = file_identity(path)
        if self._checkpoint_identity is None:
            if self.config.weights:
                raise RunError(
                    f"{path}: is missing, and with it the weights that the run started from; start a new run"
                )
            return
        state = load_checkpoint(path, self.network, self.optimizer, self.ema)
        state.check(f"{path}: state", self.steps_per_epoch, self.config.recipe.epochs)
        if state.best_epoch:
            self._read_best()
        self.state = state

    def _read_best(self) -> dict[str, Tensor]:
        """Return the weights of the best epoch; raises an error that names the model file if it is not this run's."""
        header, tensors = read_tensors(self.model_file)
        if (header.spec, header.classes) != (self.config.spec, self.config.task.classes):
            raise RunError(f"{self.model_file}: must be the model file of this run, got one of {header.name}")
        return tensors

    @property
    def trained(self) -> Network:
        """The network that is evaluated and saved: the trained one, or the moving average of its weights."""
        return self.ema.network if self.ema else self.network

    def _end_epoch(self, steps_per_epoch: int) -> Epoch:
        """Evaluate on val, write the model file if the epoch is the best so far, and save a checkpoint."""
        state, task, images = self.state, self.config.task, max(1, self.state.images)
        number = state.step // steps_per_epoch
        metrics: dict[str, float] = {task.progress_columns[0].key: state.metric_sum / images}
        train_loss, skipped = state.loss_sum / images, state.skipped
        state.start_epoch()
        result = self._evaluator.evaluate(self.trained, "val", step=state.step)
        if result is not None:
            metrics["val_loss"] = result.loss
            metrics |= {f"val_{name}": value for name, value in result.epoch_metrics().items()}
        # without a val split the latest epoch wins; with equal scores the lower loss: small splits have many ties
        best = result is None or state.best is None or (result.score, -result.loss) > state.best
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
        with self._lock():
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
        self.network.load_state_dict(self._read_best())
        self.calibration, self.results = self._evaluator.calibrate(self.network, step=step)
        self._write_model(MODEL, self.network, self.results, epoch=self.state.best_epoch)
        self.state.finished = True
        self.save()
        # 2. figures and report, on which nothing depends
        if self.distributed.is_main:
            notes = self.state.notes
            data = ReportData(
                config=self.config, dataset=self.dataset, network=self.network, results=self.results,
                calibration=self.calibration, history=self.state.history, seconds=self.state.seconds,
            )  # fmt: skip
            write_reports(self.folder, data, self.state.note)
            if self.state.notes != notes:
                self.save()

    def _write_model(self, file: str, network: Network, results: Mapping[str, Result], *, epoch: int) -> None:
        if self.distributed.is_main:
            write_run_model(
                self.folder / file, network, self.config, data=self.dataset.name, epoch=epoch,
                seconds=self.state.seconds, calibration=self.calibration, results=results,
            )  # fmt: skip


def current_versions(device: torch.device, plan: ExecutionPlan, network: Network) -> dict[str, str]:
    """Return the versions on which the last bits of a run depend."""
    versions = {"convatlas": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
    return versions | {"fused_norms": fused_norm.compiler_version(network) if plan.uses_fused_norms(device) else "none"}
