"""The training loop: a generator, so that logging, evaluation and checkpoints are plain code of the caller."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import count

import torch
from torch import Tensor, nn, optim

from convatlas.core.network import Network
from convatlas.data.loader import BatchLoader
from convatlas.errors import DivergedError, RunError, brief
from convatlas.system.devices import is_out_of_memory
from convatlas.tasks.targets import Batch
from convatlas.train.cpu.execution import ExecutionPlan
from convatlas.train.diagnostics import Recorder
from convatlas.train.distributed import Distributed
from convatlas.train.lr_schedule import lr_at
from convatlas.train.nonfinite import find_nonfinite, nonfinite_images
from convatlas.train.optim import EMA, set_lr
from convatlas.train.recipe import Recipe
from convatlas.train.step import Step, StepRunner, restore_buffers, seed_step

MAX_SKIPPED_STEPS = 10
"""Number of consecutive non-finite steps after which training stops with an error."""


def train(
    network: Network,
    optimizer: optim.Optimizer,
    loader: BatchLoader,
    recipe: Recipe,
    *,
    seed: int,
    start: int = 0,
    skipped: int = 0,
    endless: bool = False,
    plan: ExecutionPlan | None = None,
    ema: EMA | None = None,
    class_weights: Tensor | None = None,
    distributed: Distributed | None = None,
    names: Sequence[str] = (),
    recorder: Recorder | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Iterator[Step]:
    """Train from step `start` to the end of the recipe, or without end; yield after each step.

    skipped: number of consecutive non-finite steps before `start`. plan: how steps are executed. ema: is updated after
    every step. class_weights: (classes,), weights of the classes in the loss. distributed: the process
    group. names: of the training images, for errors. recorder: selects the steps that are measured.
    stop_requested: whether this rank was asked to stop; if any was, all get a step with `stop`.
    Everything random in a step (batch, augmentation, dropout) is a function of the seed and the step, so a training
    resumed at step n with the state of step n equals the uninterrupted one.
    A step whose loss or gradient is not finite is rolled back; its remark names the images. Raises DivergedError that
    names the step, the images and the first layer that is not finite if that happens `MAX_SKIPPED_STEPS` times in a
    row.
    """
    distributed = distributed or Distributed()
    runner = StepRunner(
        network, loader.task, recipe, plan or ExecutionPlan(), class_weights=class_weights, distributed=distributed
    )
    parameters = list(network.parameters())
    first_epoch, first_batch = divmod(start, loader.steps)
    for epoch in count(first_epoch) if endless else range(first_epoch, recipe.epochs):
        runner.freeze_for(epoch)
        begin = first_batch if epoch == first_epoch else 0
        for number, batch in enumerate(_batches(loader, epoch, begin), epoch * loader.steps + begin):
            # learning rate and random numbers of this step
            lr = lr_at(recipe, number, loader.steps)
            set_lr(optimizer, lr)
            seed_step(seed, number, batch.device)

            # forward and backward; copies of the buffers allow a rollback
            buffers = [buffer.clone() for buffer in network.buffers()]
            probe = recorder.probe(network, number, skipped) if recorder else None
            with probe or nullcontext():
                outputs, loss = runner.backward_with_oom_retry(batch, buffers)

            # all-reduce gradients, loss and metrics
            distributed.all_reduce([parameter.grad for parameter in parameters if parameter.grad is not None])
            if probe:
                probe.read_gradients()
            metrics = loader.task.train_metric(outputs, batch.targets).sum(0)
            sums = torch.cat([loss.reshape(1), metrics.reshape(-1).to(loss)])
            stop = False
            if distributed.world_size > 1:
                requests = sums.new_tensor([stop_requested()])
                distributed.all_reduce([sums, requests])
                stop = bool(requests)

            # clip the gradients; one transfer from the device for all values
            norm = nn.utils.get_total_norm(p.grad for p in parameters if p.grad is not None)
            if recipe.grad_clip:
                nn.utils.clip_grads_with_norm_(parameters, recipe.grad_clip, norm)
            loss_value, *metric_sums, norm_value = torch.cat([sums, norm.reshape(1).to(sums)]).tolist()

            # update the weights, or roll back
            remark = ""
            finite = math.isfinite(loss_value) and math.isfinite(norm_value)
            if finite:
                optimizer.step()
                if probe:
                    probe.read_update()
                if ema:
                    ema.update(network)
            else:
                restore_buffers(network, buffers)
                what = "gradient" if math.isfinite(loss_value) else "loss"
                which = nonfinite_images(runner, batch, names)
                remark = f"step {number} (epoch {epoch + 1}) is skipped: the {what} is not finite {which}".rstrip()
            optimizer.zero_grad()
            skipped = 0 if finite else skipped + 1
            if skipped >= MAX_SKIPPED_STEPS:
                where, fix = "the gradient", f"use a lower learning rate than {recipe.lr:g}, or --set grad_clip=1"
                if not math.isfinite(loss_value):
                    where, fix = find_nonfinite(runner, batch, recipe.lr)
                where += f", {which}" if which else ""
                raise DivergedError(
                    f"{skipped} steps up to step {number} (epoch {epoch + 1}) were not finite, first in {where}; {fix}"
                )
            yield Step(
                number, epoch, lr, loss_value, outputs, batch, tuple(metric_sums) if finite else (),
                skipped=not finite, stop=stop, remark=remark, layers=probe.statistics() if probe else (),
            )  # fmt: skip


def _batches(loader: BatchLoader, epoch: int, start: int) -> Iterator[Batch]:
    """Yield the batches of an epoch; raises RunError when out of memory."""
    try:
        yield from loader.epoch(epoch, start=start)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"out of memory for the images of a batch of {loader.batch} ({brief(error)}); use a smaller --batch or "
            "--resolution"
        ) from error
