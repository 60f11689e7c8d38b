"""A run: one training in one directory, which can be interrupted at any step and resumed bit for bit (on CPU)."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from convatlas._version import __version__
from convatlas.core.network import Network
from convatlas.data.dataset import Dataset
from convatlas.data.loader import BatchLoader
from convatlas.draw import charts
from convatlas.errors import RunError
from convatlas.system.devices import resolve_device
from convatlas.system.files import write_text
from convatlas.system.progress import Progress
from convatlas.tasks.task import Calibration, Result, Task
from convatlas.train.checkpoint import State, save_checkpoint
from convatlas.train.cpu import fused_norm
from convatlas.train.cpu.execution import ExecutionPlan, process_settings
from convatlas.train.distributed import Distributed, sync_batch_norms
from convatlas.train.finish import Evaluator, write_run_model
from convatlas.train.loggers import Log, RunIdentity
from convatlas.train.loop import train
from convatlas.train.lr_finder import LRFinderResult, find_lr
from convatlas.train.lr_schedule import lr_at
from convatlas.train.optim import EMA, build_optimizer
from convatlas.train.report import ReportData, report
from convatlas.train.run_folder import CHECKPOINT, CURVES, LAST, METRICS, MODEL, REPORT, lock_run, write_table
from convatlas.train.settings import RunConfig
from convatlas.train.step import Step
from convatlas.train.swap_forward import restore_forwards
from convatlas.weights.modelfile import read_tensors


@dataclass(frozen=True)
class Epoch:
    """The metrics of an epoch.

    number: from 1 on. metrics: the task's training metric, and the loss and epoch metrics of val, by name.
    skipped: number of non-finite steps. seconds: of training so far. best: whether it is the best epoch so far.
    """

    number: int
    lr: float
    train_loss: float
    skipped: int
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    best: bool = False

    def describe(self) -> str:
        """Return the epoch in a few words, for a progress bar."""
        return f"epoch {self.number}, loss {self.train_loss:.4f}"

    def to_plain(self) -> dict[str, float]:
        """Return the epoch as a row of metrics.csv."""
        return {
            "epoch": self.number, "lr": self.lr, "train_loss": self.train_loss, "skipped": self.skipped,
            **self.metrics, "seconds": self.seconds, "best": int(self.best),
        }  # fmt: skip

    @classmethod
    def from_plain(cls, row: Mapping[str, float]) -> Epoch:
        """Read what `to_plain` returned."""
        own = ("epoch", "lr", "train_loss", "skipped", "seconds", "best")
        metrics = {name: value for name, value in row.items() if name not in own}
        return cls(
            int(row["epoch"]), row["lr"], row["train_loss"], int(row["skipped"]), row["seconds"], metrics,
            bool(row["best"]),
        )  # fmt: skip


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
        self.optimizer = build_optimizer(config.recipe, self.network)
        self.ema = EMA(self.network, config.recipe.ema_decay) if config.recipe.ema_decay else None
        self.state = State()
        self.results: dict[str, Result] = {}
        self.calibration = Calibration()
        self._evaluator = Evaluator(config, dataset, self.device, self.distributed)

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
        return self.config.recipe.epochs * -(-len(self.dataset.train) // self.config.recipe.batch)

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
        """A short text that identifies the run: a hash of its configuration and its directory."""
        text = json.dumps([str(self.folder.resolve()), self.config.to_plain()], sort_keys=True)
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
            lock_run(self.folder) if self.distributed.is_main else nullcontext(),
        ):
            log = Log(identity, options.log if self.distributed.is_main else ())
            try:
                for event in self._train():
                    if isinstance(event, Epoch):
                        log.epoch(event.to_plain(), self.state.step - 1)
                    elif not event.skipped:
                        log.step(event.number, event.loss, event.lr)
                    yield event
                self.finish()
            finally:
                log.close(self.results, self.state.step)

    @property
    def _retains_malloc(self) -> bool:
        return self.config.execution.retain_malloc and self.device.type == "cpu"

    def _train(self) -> Iterator[Event]:
        config, state, options = self.config, self.state, self.config.options
        loader = self._loader()
        if state.images and state.step % loader.steps == 0:  # interrupted between the last step of an epoch and its end
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
            shuffle=config.recipe.shuffle, augment=config.recipe.augment, shard=self.distributed.shard,
            device=self.device,
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
            save_checkpoint(self.folder / CHECKPOINT, self.network, self.optimizer, self.state, self.ema)

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
        best = result is None or (result.score, -result.loss) > (state.best_score, -state.best_loss)
        if best:
            state.best_epoch = number
            if result is not None:
                state.best_score, state.best_loss = result.score, result.loss
            self._write_model(MODEL, self.trained, {} if result is None else {"val": result}, epoch=number)
        lr = lr_at(self.config.recipe, state.step - 1, steps_per_epoch)
        epoch = Epoch(number, lr, train_loss, skipped, state.seconds, metrics, best)
        state.history.append(epoch.to_plain())
        if self.distributed.is_main:
            write_table(self.folder / METRICS, state.history)
        self.save()
        return epoch

    def finish(self) -> None:
        """Evaluate the last and the best weights on val and test and write both model files and the report.

        `network` then has the best weights. `steps` calls it after the last epoch; call it to stop earlier.
        Raises RunError before the end of the first epoch.
        """
        if not self.state.history:
            raise RunError(f"{self.folder}: there is no model to save before the end of the first epoch")
        step = self.state.step
        if not self.state.finished:
            self.calibration, results = self._evaluator.calibrate(self.trained, step=step)
            self._write_model(LAST, self.trained, results, epoch=len(self.state.history))
        self.distributed.barrier()  # the file must be complete
        restore_forwards(self.network)
        header, best = read_tensors(self.model_file)
        self.network.load_state_dict(best)
        self.calibration, self.results = self._evaluator.calibrate(self.network, step=step)
        self._write_model(MODEL, self.network, self.results, epoch=header.training["epoch"])
        if self.distributed.is_main:
            charts.curves(self.state.history, self.config.task.progress_columns, path=self.folder / CURVES)
            write_text(self.folder / REPORT, report(self._report_data()))
        self.state.finished = True
        self.save()

    def _report_data(self) -> ReportData:
        return ReportData(
            config=self.config, dataset=self.dataset, network=self.network, results=self.results,
            calibration=self.calibration, history=tuple(self.state.history), seconds=self.state.seconds,
        )  # fmt: skip

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
