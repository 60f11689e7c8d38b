"""One training step: forward and backward passes, in micro-batches that fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convatlas.core.network import Network
from convatlas.core.ragged import concatenate
from convatlas.data.rng import derive_key
from convatlas.errors import RunError, SpecError, brief
from convatlas.explanation.statistics import LayerStatistics
from convatlas.system.devices import is_out_of_memory
from convatlas.tasks.table import pluralize
from convatlas.tasks.targets import Batch
from convatlas.tasks.task import Task
from convatlas.train.batch_norm import min_images
from convatlas.train.cpu.execution import ExecutionPlan
from convatlas.train.distributed import Distributed
from convatlas.train.recipe import Recipe


@dataclass(frozen=True)
class Step:
    """One update of the weights.

    number: over the whole training. loss: the mean over the batch; metric_sums: the sums over its images of the task's
    training metrics; both over all processes. outputs and batch: this process's share.
    skipped: loss or gradient were not finite; weights and statistics are those before the step.
    stop: a rank was asked to stop after this step. remark: why it was skipped, or what changed after it, in one line.
    layers: the statistics of the layers, in steps that are measured.
    """

    number: int
    epoch: int
    lr: float
    loss: float
    outputs: Any
    batch: Batch
    metric_sums: tuple[float, ...] = ()
    skipped: bool = False
    stop: bool = False
    remark: str = ""
    layers: tuple[LayerStatistics, ...] = ()

    def describe(self) -> str:
        """Return the step in a few words, for a progress bar."""
        return f"epoch {self.epoch + 1}, loss {self.loss:.4f}"


class StepRunner:
    """Computes the gradients of a batch, in one piece or in micro-batches of `micro_batch` images."""

    def __init__(
        self,
        network: Network,
        task: Task,
        recipe: Recipe,
        plan: ExecutionPlan,
        *,
        class_weights: Tensor | None = None,
        distributed: Distributed | None = None,
    ) -> None:
        self.network, self.task, self.recipe, self.plan = network, task, recipe, plan
        self.micro_batch, self.distributed = recipe.micro_batch, distributed or Distributed()
        self.criterion = task.criterion(label_smoothing=recipe.label_smoothing, class_weights=class_weights)
        self.forward = plan.forward(network)
        self.min_images = min_images(network, recipe)

    def freeze_for(self, epoch: int) -> None:
        """Freeze all but the head in the first `head_epochs` epochs, afterwards the recipe's `frozen_stages`."""
        self.network.freeze("stages" if epoch < self.recipe.head_epochs else last_frozen(self.network, self.recipe))
        self.set_train_mode()

    def set_train_mode(self) -> None:
        """Set the network to training mode; batch norms stay in evaluation mode if their statistics are frozen."""
        self.network.train()
        if self.recipe.freeze_bn_stats:
            for layer in self.network.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()

    def backward(self, batch: Batch) -> tuple[Any, Tensor]:
        """Accumulate the gradients of this process's share of the batch's mean loss; return (outputs, loss share)."""
        if not self.network.training:  # the caller may have evaluated between two steps
            self.set_train_mode()
        self.distributed.mark_arrival()  # synchronized norms communicate before the gradients do
        outputs: list[Any] = []
        total = torch.zeros((), device=batch.device)
        for inputs, targets in batch.split(self._pieces(batch)):
            with self.plan.autocast(batch.device):
                piece_outputs, loss = self.task.training_loss(
                    self.network, self.forward, inputs, targets, self.criterion
                )
            # a process may have no images of this batch; its synchronized norms must communicate nevertheless
            loss = loss * (len(inputs) / batch.size)
            loss.backward()
            outputs.append(_detach(piece_outputs))
            total += loss.detach()
        return concatenate(outputs), total

    def _pieces(self, batch: Batch) -> int:
        """Return the number of micro-batches: the same in every process, so that synchronized norms match.

        None of them has fewer than `min_images` images over all processes.
        """
        world_size = self.distributed.world_size
        shares = [len(range(rank, batch.size, world_size)) for rank in range(world_size)]
        count = -(-shares[0] // (self.micro_batch or shares[0]))
        while count > 1 and sum(share // count for share in shares) < self.min_images:
            count -= 1
        return count

    def _largest_piece(self, batch: Batch) -> int:
        """Return the number of images of this process in the largest micro-batch."""
        return -(-len(batch.inputs) // self._pieces(batch))

    def backward_with_oom_retry(self, batch: Batch, buffers: Sequence[Tensor]) -> tuple[Any, Tensor]:
        """Run `backward`; when out of memory, halve the micro-batch and try again.

        buffers: copies of the network's buffers before the step, which a retry restores.
        Raises RunError if there is no memory for the smallest micro-batch, and in distributed training, where all
        ranks must agree.
        """
        while True:
            images = self._largest_piece(batch)
            try:
                return self.backward(batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failure = brief(error)
            # outside of the handler, whose traceback would keep the tensors of the step alive
            if self.distributed.world_size > 1:
                raise RunError(
                    f"out of memory for {images} images at once ({failure}); use a smaller --batch or --resolution, or "
                    "--set micro_batch=N"
                )
            self.micro_batch = -(-images // 2)
            if self._largest_piece(batch) == images:
                raise RunError(
                    f"out of memory for the network and {images} image{'s'[: images > 1]} ({failure}); use a smaller "
                    "--resolution or network"
                )
            self.network.zero_grad()
            restore_buffers(self.network, buffers)
            if batch.device.type == "cuda":
                torch.cuda.empty_cache()


def last_frozen(network: Network, recipe: Recipe) -> str | None:
    """Return the path of the last part that is never trained; None if all are. Raises SpecError for too many stages."""
    parts = ["stem", *(f"stages.{name}" for name, _ in network.stages.named_children())]
    if recipe.frozen_stages > len(parts):
        raise SpecError(
            f"recipe: frozen_stages must be <= {len(parts)} for this network (the stem and "
            f"{pluralize(len(parts) - 1, 'stage')}), got {recipe.frozen_stages}"
        )
    return parts[recipe.frozen_stages - 1] if recipe.frozen_stages else None


def _detach(outputs: Any) -> Any:
    return outputs.detach() if isinstance(outputs, Tensor) else outputs


def restore_buffers(network: nn.Module, buffers: Sequence[Tensor]) -> None:
    """Copy earlier values back into the buffers of a network."""
    for buffer, old in zip(network.buffers(), buffers, strict=True):
        buffer.copy_(old)


def seed_step(seed: int, number: int, device: torch.device) -> None:
    """Make the random numbers of a step (dropout, stochastic depth) a function of the seed and the step."""
    key = derive_key(seed, number, 7)
    # torch.manual_seed does the same for every device, and costs a millisecond without a GPU
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        torch.cuda.manual_seed(key)
    elif device.type == "mps":
        torch.mps.manual_seed(key)
