"""A network that is trained for some seconds at a time: the trial of a model selection."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch

from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Spec
from convatlas.data.dataset import Dataset
from convatlas.data.loader import BatchLoader
from convatlas.engines.evaluation import compute_outputs, eager_forward
from convatlas.errors import DataError, RunError
from convatlas.tasks.result import Result
from convatlas.train.batch_norm import check_batch, min_images, unfold_norms
from convatlas.train.cpu.tune import choose_plan
from convatlas.train.loop import train
from convatlas.train.optim import EMA, build_optimizer
from convatlas.train.preparation import build_network
from convatlas.train.recipe import Recipe
from convatlas.train.settings import ExecutionOptions
from convatlas.train.step import Step
from convatlas.weights.read import Checkpoint

WARM_UP_STEPS = 20
"""Steps over which the learning rate rises; it is constant afterwards, because the length of a trial is unknown."""

EMA_DECAY = 0.98
"""Decay per step of the moving average of the weights that is evaluated."""

MAX_VAL_IMAGES = 1000
"""Maximum number of images of the val split that are evaluated after each rung."""


class NetworkTrial:
    """A network in a model selection; a `Trial` of `successive_halving`.

    result: the last evaluation. val: the images that are evaluated, at most `MAX_VAL_IMAGES` of the val split.
    """

    def __init__(
        self, spec: Spec, dataset: Dataset, preprocessing: Preprocessing, recipe: Recipe, *, seed: int,
        device: torch.device, execution: ExecutionOptions, checkpoint: Checkpoint | None = None,
    ) -> None:  # fmt: skip
        """Raises SpecError if the recipe does not fit the network, DataError if there is no val split."""
        if dataset.val is None:
            raise DataError(f"{dataset.name}: model selection needs a val split; set a val share above 0")
        val = dataset.val
        self.val = val.subset(torch.arange(0, len(val), math.ceil(len(val) / MAX_VAL_IMAGES)))
        self.task, self.preprocessing, self.device = dataset.task.with_loss(recipe.loss), preprocessing, device
        self.result: Result | None = None
        network = build_network(spec, self.task, preprocessing.channels, recipe, seed, checkpoint)
        check_batch(network, recipe, len(dataset.train))
        if checkpoint:
            unfold_norms(network, checkpoint.tensors, dataset.train, preprocessing)
        plan = choose_plan(
            network, spec, classes=self.task.outputs, batch=recipe.micro_batch or recipe.batch, device=device,
            memory_format=execution.memory_format, precision=execution.precision, fused_norms=execution.fused_norms,
        ).plan  # fmt: skip
        network = plan.place(network.to(device))
        loader = BatchLoader(
            dataset.train, preprocessing, self.task, batch=recipe.batch, seed=seed,
            min_last=min_images(network, recipe), augment=recipe.augment, device=device,
        )  # fmt: skip
        warmup = WARM_UP_STEPS / loader.steps
        recipe = recipe.replaced({
            "epochs": max(recipe.epochs, math.ceil(warmup)), "schedule": "constant", "warmup": warmup,
            "head_epochs": 0, "patience": 0,
        })  # fmt: skip
        self.ema = EMA(network, EMA_DECAY)
        self.steps: Iterator[Step] = train(
            network, build_optimizer(recipe, network), loader, recipe, seed=seed, endless=True, plan=plan, ema=self.ema,
            class_weights=self.task.class_weights(loader.targets, recipe.class_weight_power),
        )  # fmt: skip

    def train(self, seconds: float) -> None:
        """Train for some seconds, at least one step; raises RunError if steps are not finite."""
        start = time.perf_counter()
        for _ in self.steps:
            if time.perf_counter() - start >= seconds:
                return

    def evaluate(self) -> float:
        """Return the headline score of the averaged weights; raises RunError if the loss is not finite."""
        forward = eager_forward(self.ema.network, self.preprocessing, self.device)
        outputs = compute_outputs(forward, self.val, collect=self.task.collect)
        self.result = self.task.evaluate(outputs, self.val.targets)
        if self.result.loss is not None and not math.isfinite(self.result.loss):
            raise RunError(f"the loss is {self.result.loss}")
        return self.result.score
