"""A run: one training in one folder, which can be stopped at any step and resumed bit for bit (on CPU)."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from convatlas._version import __version__
from convatlas.core.network import Network
from convatlas.data.dataset import Dataset, Images
from convatlas.data.loader import BatchLoader
from convatlas.data.rng import derive_key
from convatlas.draw.charts import draw_curves
from convatlas.errors import RunError
from convatlas.models.catalog import build_fresh
from convatlas.system.devices import device_named
from convatlas.system.files import write_text
from convatlas.system.progress import Progress
from convatlas.tasks.classification import metrics
from convatlas.tasks.classification.evaluate import judged, outputs_of, plainly
from convatlas.tasks.classification.losses import CRITERIA, class_weights
from convatlas.tasks.classification.results import Result
from convatlas.train.checkpoint import State, save_checkpoint
from convatlas.train.cpu import execution as execution_module
from convatlas.train.cpu import fused_norm
from convatlas.train.cpu.execution import ExecutionPlan
from convatlas.train.distributed import Distributed, sync_batch_norms
from convatlas.train.loggers import Log
from convatlas.train.loop import EMA, Step, train
from convatlas.train.lr_finder import LRFinderResult, find_lr
from convatlas.train.regularization import regularize
from convatlas.train.report import report
from convatlas.train.run_folder import CHECKPOINT, CURVES, LAST, METRICS, MODEL, REPORT, _alone, write_table
from convatlas.train.settings import Config
from convatlas.weights import modelfile
from convatlas.weights.adapt import load_into
from convatlas.weights.modelfile import Header
from convatlas.weights.read import Checkpoint

Watch = Callable[[Step | dict[str, float]], None]
"""Called after every step, and with the row of metrics after every epoch."""


class Run:
    """A training and its folder; `steps()` trains and yields after each step."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        dataset: Dataset,
        given: Checkpoint | None = None,
        distributed: Distributed | None = None,
    ) -> None:
        self.folder, self.config, self.dataset, self.distributed = folder, config, dataset, distributed or Distributed()
        settings = config.settings
        self.device = device_named(settings.device)
        torch.set_num_threads(settings.threads or torch.get_num_threads())
        if settings.keep_heap and self.device.type == "cpu":
            execution_module.keep_heap()
        torch.manual_seed(derive_key(config.seed, 0, 8))
        network = build_fresh(config.spec, classes=len(config.classes), channels=config.preprocessing.channels)
        if given:
            load_into(network, config.spec, given, fresh_head=given.names != config.classes)
        regularize(network, dropout=config.recipe.dropout, drop_path=config.recipe.drop_path)
        alone = self.distributed.world_size == 1  # norms of several processes meet
        self.execution = ExecutionPlan(
            settings.layout, settings.precision, settings.compiled, settings.kernels and alone,  # type: ignore[arg-type]
        )  # fmt: skip
        self.network: Network = self.execution.place(network.to(self.device))
        if self.distributed.world_size > 1:
            sync_batch_norms(self.network, self.distributed)
        self.optimizer = config.recipe.build_optimizer(self.network)
        self.average = EMA(self.network, config.recipe.ema_decay) if config.recipe.ema_decay else None
        self.state = State()
        self.results: dict[str, Result] = {}
        self.temperature = 1.0
        self.thresholds: tuple[float, ...] = (0.5,) * len(config.classes) if self.several else ()

    @property
    def model_file(self) -> Path:
        """The sealed file of the best epoch."""
        return self.folder / MODEL

    @property
    def identity(self) -> str:
        """A short text that tells this run from others: of its configuration and the place of its folder."""
        told = json.dumps([str(self.folder.resolve()), self.config.to_plain()], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    @property
    def several(self) -> bool:
        """Whether an image may be of several classes, or of none."""
        return CRITERIA[self.config.recipe.loss].several

    @property
    def changed_versions(self) -> dict[str, tuple[str, str]]:
        """What the run began with and what runs it now, where they differ; the last bits may then differ, too."""
        now = _versions(self.device, self.execution, self.network)
        return {name: (begun, now[name]) for name, begun in self.config.versions.items() if now[name] != begun}

    def steps(self) -> Iterator[Step | dict[str, float]]:
        """Train from where the run stands; yield every step, and after an epoch its row of metrics.

        Writes checkpoints on the way; after the last epoch the best weights are measured and sealed.
        """
        if self.state.finished:
            return
        with _alone(self.folder) if self.distributed.is_main else nullcontext():
            log = Log(self, self.config.settings.log if self.distributed.is_main else ())
            try:
                for event in self._train():
                    log.tell(event)
                    yield event
                self.finish()
            finally:
                log.close()

    def _train(self) -> Iterator[Step | dict[str, float]]:
        config, state, settings = self.config, self.state, self.config.settings
        loader = self._feed()
        if state.seen and state.step % loader.steps == 0:  # stopped between the last step of an epoch and its end
            yield self._end_epoch(loader.steps)
        last = saved = time.perf_counter()
        saved_step = state.step
        taken = train(
            self.network, self.optimizer, loader, config.recipe, seed=config.seed, start=state.step,
            failing=state.failing,
            execution=self.execution, average=self.average, class_weights=self._importance(), distributed=self.distributed,
        )  # fmt: skip
        while not self._out_of_patience():
            step = next(taken, None)
            if step is None:
                return
            state.step = step.number + 1
            state.failing = state.failing + 1 if step.skipped else 0
            if step.skipped:
                state.skipped += 1
            else:
                state.loss_sum += step.loss * step.batch.whole
                state.correct += step.right
                state.seen += step.batch.whole
            now = time.perf_counter()
            state.seconds += max(0.0, now - last)  # whatever clocks do
            last = now
            yield step
            if state.step % loader.steps == 0:
                row = self._end_epoch(loader.steps)
                saved, saved_step = time.perf_counter(), state.step
                yield row
            elif (
                time.perf_counter() - saved >= settings.checkpoint_seconds
                or 0 < settings.checkpoint_steps <= state.step - saved_step
            ):
                self._save()
                saved, saved_step = time.perf_counter(), state.step

    def find_lr(self, progress: Progress | None = None) -> LRFinderResult:
        """Search for a learning rate; the network stays as it is. Raises RunError if there are other processes."""
        if self.distributed.world_size > 1:
            raise RunError("lr: the search is for one process; find the rate first, then give it to torchrun")
        return find_lr(
            self.network, self._feed(), self.config.recipe, seed=self.config.seed, execution=self.execution,
            class_weights=self._importance(), progress=progress,
        )  # fmt: skip

    def _feed(self) -> BatchLoader:
        config = self.config
        return BatchLoader(
            self.dataset.train, config.preprocessing, batch=config.recipe.batch, seed=config.seed,
            shuffle=config.recipe.shuffle, augment=config.recipe.augment,
            classes=len(config.classes), share=self.distributed.shard, device=self.device,
        )  # fmt: skip

    def _out_of_patience(self) -> bool:
        """Return whether the epoch has just ended, and too many have since the best one."""
        patience, state = self.config.recipe.patience, self.state
        if not patience or self.dataset.val is None or state.seen or state.skipped:
            return False
        return len(state.history) - state.best_epoch >= patience

    def _importance(self) -> Tensor | None:
        labels = self.dataset.train.labels.to(self.device)
        return class_weights(labels, len(self.config.classes), self.config.recipe.class_weight_power)

    def _save(self) -> None:
        if self.distributed.is_main:
            save_checkpoint(self.folder / CHECKPOINT, self.network, self.optimizer, self.state, self.average)

    @property
    def learned(self) -> Network:
        """The network that is measured and sealed: the one that learns, or the average of its weights."""
        return self.average.network if self.average else self.network

    def _end_epoch(self, steps_per_epoch: int) -> dict[str, float]:
        """Measure, note, seal if it is the best, and save."""
        state = self.state
        epoch = state.step // steps_per_epoch
        row = {
            "epoch": epoch,
            "lr": self.config.recipe.rate(state.step - 1, steps_per_epoch),
            "train_loss": state.loss_sum / max(1, state.seen),
            "train_accuracy": state.correct / max(1, state.seen),
            "skipped": state.skipped,
        }
        state.loss_sum, state.correct, state.seen, state.skipped = 0.0, 0, 0, 0
        results = self._evaluate(self.learned, "val")
        for split, result in results.items():
            row |= {f"{split}_loss": result.loss, f"{split}_accuracy": result.accuracy}
            row |= {f"{split}_{result.headline}": result.score}
        row["seconds"] = state.seconds
        state.history.append(row)
        # the latest wins without a val split; with equal accuracy the lower loss does: small splits give many ties
        score = [(result.score, -result.loss) for result in results.values()]
        if not score or score[0] > (state.best_score, -state.best_loss):
            state.best_epoch = epoch
            for reached, loss in score:
                state.best_score, state.best_loss = reached, -loss
            self._seal(MODEL, self.learned, results, epoch=epoch)
        if self.distributed.is_main:
            write_table(self.folder / METRICS, state.history)
        self._save()
        return row

    def _evaluate(self, network: Network, *splits: str) -> dict[str, Result]:
        """Measure a network on those of the splits that the data has."""
        criterion = CRITERIA[self.config.recipe.loss]
        results = {
            split: judged(self._outputs(network, images), images.labels, criterion)
            for split, images in self.dataset.splits.items()
            if split in splits
        }
        self._finite(results)
        return results

    def _outputs(self, network: Network, images: Images) -> Tensor:
        """Return the outputs for all images of a split; each process runs its share of them."""
        mine = (
            images.subset(self.distributed.shard(torch.arange(len(images))))
            if self.distributed.world_size > 1
            else images
        )
        if not len(mine):
            return self.distributed.all_gather(torch.empty(0, len(self.config.classes)), len(images))
        outputs = outputs_of(plainly(network, self.config.preprocessing, self.device), mine)
        return self.distributed.all_gather(outputs, len(images))

    def _finite(self, results: dict[str, Result]) -> None:
        for split, measured in results.items():
            if not math.isfinite(measured.loss):
                raise RunError(
                    f"the loss on {split} is {measured.loss} after step {self.state.step}; try a lower learning rate"
                )

    def finish(self) -> None:
        """Measure the last and the best weights on val and test and seal both; `network` then holds the best ones.

        `steps` does so after the last epoch; a caller who stops earlier calls it. Raises RunError before the end of the
        first epoch.
        """
        if not self.state.history:
            raise RunError(f"{self.folder}: there is nothing to seal before the end of the first epoch")
        if not self.state.finished:
            self._seal(LAST, self.learned, self._calibrated(self.learned), epoch=len(self.state.history))
        self.distributed.barrier()  # until the file is there
        execution_module.release(self.network)
        best, header = modelfile.load(self.model_file)
        self.network.load_state_dict(best.state_dict())
        self.results = self._calibrated(self.network)
        self._seal(MODEL, self.network, self.results, epoch=header.training["epoch"])
        if self.distributed.is_main:
            draw_curves(self.state.history, self.folder / CURVES)
            write_text(self.folder / REPORT, report(self))
        self.state.finished = True
        self._save()

    def _calibrated(self, network: Network) -> dict[str, Result]:
        """Measure a network on val and test with the temperature, and thresholds, that suit its outputs on val."""
        criterion = CRITERIA[self.config.recipe.loss]
        parts = {split: images for split, images in self.dataset.splits.items() if split != "train"}
        outputs = {split: self._outputs(network, images) for split, images in parts.items()}
        fits = criterion.logits and "val" in outputs
        self.temperature = metrics.temperature(outputs["val"], parts["val"].labels) if fits else 1.0
        if criterion.several and "val" in outputs:
            said = criterion.probabilities(outputs["val"] / self.temperature)
            self.thresholds = tuple(metrics.best_thresholds(said, parts["val"].labels))
        results = {
            split: judged(
                outputs[split], images.labels, criterion, temperature=self.temperature, thresholds=self.thresholds
            )
            for split, images in parts.items()
        }
        self._finite(results)
        return results

    def _seal(self, file: str, network: Network, results: dict[str, Result], *, epoch: int) -> None:
        """Write a model file; of the data only name and fingerprint go in, and no path of this machine."""
        config = self.config
        training = {
            "data": self.dataset.name, "fingerprint": config.fingerprint, "recipe": config.recipe.to_plain(),
            "seed": config.seed, "val_share": config.settings.val_share, "fold": config.settings.fold,
            "max_unreadable": config.settings.max_unreadable,
            "weights": config.weights, "compute": str(self.execution), "versions": config.versions,
            "epoch": epoch, "seconds": round(self.state.seconds, 2),
        }  # fmt: skip
        header = Header(
            name=config.model, spec=config.spec, classes=config.classes, preprocessing=config.preprocessing,
            task="tagging" if self.several else "classification", criterion=config.recipe.loss,
            temperature=self.temperature, thresholds=self.thresholds, training=training,
            license=config.settings.license,
            metrics={split: result.summary() for split, result in results.items()},
        )  # fmt: skip
        if self.distributed.is_main:
            modelfile.save(self.folder / file, network, header)


def _versions(device: torch.device, way: ExecutionPlan, network: Network) -> dict[str, str]:
    versions = {"convatlas": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return versions | {"kernels": fused_norm.compiler(network) if way.own_norms(device) else "none"}
