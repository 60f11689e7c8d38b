"""Evaluate a run on val after each epoch, calibrate and evaluate it on val and test at the end; write model files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from convatlas.core.network import Network
from convatlas.core.ragged import Outputs
from convatlas.data.dataset import Dataset, Images
from convatlas.engines.evaluation import compute_outputs, eager_forward
from convatlas.errors import DivergedError
from convatlas.tasks.result import Result
from convatlas.tasks.task import Calibration
from convatlas.train.distributed import Distributed
from convatlas.train.nonfinite import nonfinite_tensor
from convatlas.train.settings import RunConfig
from convatlas.weights.modelfile import Header
from convatlas.weights.training_record import TrainingRecord


@dataclass(frozen=True)
class Evaluator:
    """Evaluates networks on the splits of a run's data; every process computes its share of the outputs."""

    config: RunConfig
    dataset: Dataset
    device: torch.device
    distributed: Distributed

    def evaluate(self, network: Network, split: str, *, step: int) -> Result | None:
        """Return the result on a split, without calibration; None if the data does not have the split.

        Raises DivergedError if the loss is not finite.
        """
        images = self.dataset.splits.get(split)
        if images is None:
            return None
        result = self.config.task.evaluate(self._outputs(network, images), images.targets)
        _check_finite(result, network, split, step)
        return result

    def calibrate(self, network: Network, *, step: int) -> tuple[Calibration, dict[str, Result]]:
        """Return the calibration fitted to the network's outputs on val, and the calibrated results on val and test.

        Raises DivergedError if a loss is not finite.
        """
        task = self.config.task
        parts = {split: images for split, images in self.dataset.splits.items() if split != "train"}
        outputs = {split: self._outputs(network, images) for split, images in parts.items()}
        calibration = Calibration()
        if "val" in outputs:
            calibration = task.calibrate(outputs["val"], parts["val"].targets)
        results = {split: task.evaluate(outputs[split], images.targets, calibration) for split, images in parts.items()}
        for split, result in results.items():
            _check_finite(result, network, split, step)
        return calibration, results

    def _outputs(self, network: Network, images: Images) -> Outputs:
        """Return the outputs for all images of a split."""
        task, preprocessing, distributed = self.config.task, self.config.preprocessing, self.distributed
        own = images
        if distributed.world_size > 1:
            own = images.subset(distributed.shard(torch.arange(len(images))))
        outputs: Outputs = [] if preprocessing.is_whole else torch.empty(0, task.outputs)
        if len(own):
            outputs = compute_outputs(eager_forward(network, preprocessing, self.device), own, collect=task.collect)
        return distributed.all_gather(outputs, len(images))


def _check_finite(result: Result, network: Network, split: str, step: int) -> None:
    if result.loss is not None and not math.isfinite(result.loss):
        name = nonfinite_tensor(network)
        where = f"; the weights {name} are not finite" if name else ""
        raise DivergedError(f"the loss on {split} is {result.loss} after step {step}{where}; use a lower learning rate")


def run_header(
    config: RunConfig,
    *,
    data: str,
    epoch: int,
    seconds: float,
    calibration: Calibration | None = None,
    results: Mapping[str, Result] | None = None,
) -> Header:
    """Return the header of a run's model file; it has the name and fingerprint of the data, but no local paths."""
    options = config.data_options
    training = TrainingRecord(
        data=data, fingerprint=config.fingerprint, recipe=config.recipe.to_plain(), seed=config.seed,
        val_share=options.val_share, fold=options.fold, group_pattern=options.group_pattern,
        max_unreadable=options.max_unreadable, annotation_faults=config.annotation_faults, weights=config.weights,
        execution=config.execution.to_plain(), versions=dict(config.versions), epoch=epoch,
        elapsed_s=round(seconds, 2), changes=config.changes,
    )  # fmt: skip
    return Header(
        name=config.model, task=config.task, spec=config.spec, preprocessing=config.preprocessing,
        calibration=calibration or Calibration(), training=training, license=config.options.license,
        metrics={split: result.summary() for split, result in (results or {}).items()},
    )  # fmt: skip
