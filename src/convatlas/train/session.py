"""What a run consists of: network, optimizer, state and directory, the checkpoint, and a few lines about all of it."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from convatlas._version import __version__
from convatlas.core.network import Network
from convatlas.core.table import Table
from convatlas.data.dataset import Dataset
from convatlas.data.loader import batch_sizes
from convatlas.errors import RunError
from convatlas.system.devices import resolve_device
from convatlas.system.load import MAX_QUIET_SHARE, describe_load
from convatlas.tasks.result import Result
from convatlas.tasks.table import pluralize
from convatlas.tasks.task import Calibration, Task
from convatlas.train.batch_norm import min_images
from convatlas.train.checkpoint import load_checkpoint, save_checkpoint
from convatlas.train.cpu import conv3d, fused_norm
from convatlas.train.cpu.execution import ExecutionPlan
from convatlas.train.distributed import Distributed, sync_batch_norms
from convatlas.train.finish import Evaluator
from convatlas.train.optim import EMA, build_optimizer
from convatlas.train.run_folder import CHECKPOINT, MODEL, REPORT, OccupiedError, file_identity, lock_run
from convatlas.train.settings import RunConfig
from convatlas.train.state import Epoch, State
from convatlas.train.stop_signals import StopSignals
from convatlas.weights.modelfile import read_tensors


class Session:
    """The parts of a run; the constructor changes `network`: the plan converts weights and replaces forward passes."""

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        dataset: Dataset,
        network: Network,
        plan: ExecutionPlan,
        distributed: Distributed | None = None,
        state: State | None = None,
    ) -> None:
        """state: of a run that has not begun, with its measured number of threads."""
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
        self.state = state or State()
        self.results: dict[str, Result] = {}
        self.calibration = Calibration()
        self._evaluator = Evaluator(config, dataset, self.device, self.distributed)
        self._checkpoint_identity: tuple[int, ...] | None = None
        self._saved_step = 0
        self._signals = StopSignals(self._save_progress, together=self.distributed.world_size > 1)

    @property
    def task(self) -> Task:
        return self.config.task

    @property
    def changed_versions(self) -> dict[str, tuple[str, str]]:
        """{name: (version at the start, current version)} of changed versions, which may change the last bits."""
        now = current_versions(self.device, self.plan, self.network)
        return {name: (old, now[name]) for name, old in self.config.versions.items() if now.get(name) != old}

    @property
    def threads(self) -> int | None:
        """Number of CPU threads of the next step; None for torch's own."""
        execution = self.config.execution
        if execution.threads and execution.adapt_threads and self.state.threads:
            return min(self.state.threads, execution.threads)
        return execution.threads

    def describe_execution(self) -> str:
        """Return device and execution plan, and the threads if they were measured beside other processes."""
        text = f"{self.device.type}, {self.plan}"
        if self.state.other_load > MAX_QUIET_SHARE and self.config.execution.adapt_threads:
            text += f", {pluralize(self.threads or 0, 'thread')} ({describe_load(self.state.other_load)})"
        return text

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
        """A short text that identifies the run: a hash of its directory and of what `resume` cannot change."""
        plain = self.config.to_plain() | {"data": "", "changes": [], "execution": {}}
        plain["recipe"] = plain["recipe"] | {"epochs": 0}
        text = json.dumps([str(self.folder.resolve()), plain], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __fspath__(self) -> str:
        """The run directory: a run is accepted where its path is."""
        return str(self.folder)

    def __repr__(self) -> str:
        return repr(self._table())

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()

    def _table(self) -> Table:
        """Return the run in a few lines."""
        config, state = self.config, self.state
        status = "finished" if state.finished else f"at step {state.step:,} of {self.total_steps:,}"
        return Table.of_pairs({
            "run": f"{config.model} on {self.dataset.name}, seed {config.seed}",
            "state": f"epoch {len(state.history)} of {config.recipe.epochs}, {status}",
            **{split: result.text() for split, result in self.results.items()},
            "directory": str(self.folder),
        })  # fmt: skip

    def describe_interruption(self, *, command: bool = True) -> str:
        """Return where an interrupted training stopped and what continues or finishes it, in one line.

        command: name commands of the shell, rather than calls in Python.
        """
        state = self.state
        epoch = min(state.step // self.steps_per_epoch + 1, self.config.recipe.epochs)
        where = f"at step {state.step:,} (epoch {epoch} of {self.config.recipe.epochs})"
        folder = json.dumps(str(self.folder), ensure_ascii=False)
        resume, finish = (
            f"convatlas {name} {self.folder}" if command else f"ca.{name}({folder})" for name in ("resume", "finish")
        )
        text = f"interrupted; `{resume}` continues {where}"
        return text + (f", `{finish}` writes its report" if state.history else "")

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Lock the run directory; raises RunError if another process trains the run, or has since it was opened."""
        if not self.distributed.is_main:
            yield
            return
        with lock_run(self.folder):
            if file_identity(self.folder / CHECKPOINT) != self._checkpoint_identity:
                raise OccupiedError(
                    f"{self.folder}: another process has trained this run since it was opened; resume it"
                )
            yield

    @property
    def _retains_malloc(self) -> bool:
        return self.config.execution.retain_malloc and self.device.type == "cpu"

    @property
    def trained(self) -> Network:
        """The network that is evaluated and saved: the trained one, or the moving average of its weights."""
        return self.ema.network if self.ema else self.network

    def validate(self) -> Result | None:
        """Return the result on val of the network that is evaluated and saved, at the present step; None without val.

        Raises DivergedError if the loss is not finite.
        """
        return self._evaluator.evaluate(self.trained, "val", step=self.state.step)

    def save(self) -> None:
        """Write a checkpoint."""
        with self._signals.deferred():
            if self.distributed.is_main:
                self.state.ema_steps = self.ema.steps if self.ema else 0
                save_checkpoint(self.folder / CHECKPOINT, self.network, self.optimizer, self.state, self.ema)
                self._checkpoint_identity = file_identity(self.folder / CHECKPOINT)
            self._saved_step = self.state.step

    def _save_progress(self) -> None:
        """Write a checkpoint unless the last one is of the present step; all ranks wait for it."""
        if self.state.step > self._saved_step:
            self.save()
        self.distributed.barrier()

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
        metrics = len(self.task.progress_columns) - 1
        state.check(f"{path}: state", self.steps_per_epoch, self.config.recipe.epochs, metrics)
        if state.best_epoch:
            self._read_best()
        self.state = state
        self._saved_step = state.step

    def _read_best(self) -> dict[str, Tensor]:
        """Return the weights of the best epoch; raises an error that names the model file if it is not this run's."""
        header, tensors = read_tensors(self.model_file)
        if (header.spec, header.classes) != (self.config.spec, self.config.task.classes):
            raise RunError(f"{self.model_file}: must be the model file of this run, got one of {header.name}")
        return tensors


def current_versions(device: torch.device, plan: ExecutionPlan, network: Network) -> dict[str, str]:
    """Return the versions on which the last bits of a run depend."""
    versions = {"convatlas": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
    return versions | {
        "fused_norms": fused_norm.compiler_version(network) if plan.uses_fused_norms(device) else "none",
        "winograd": conv3d.compiler_version(network) if plan.uses_fast_conv3d(device) else "none",
    }
