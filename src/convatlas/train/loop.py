"""The training loop: a generator, so that logging, evaluation and checkpoints are plain code of the caller."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn, optim

from convatlas.core.network import Network
from convatlas.data.loader import Batch, BatchLoader
from convatlas.data.rng import derive_key
from convatlas.errors import RunError, brief
from convatlas.tasks.classification.losses import CRITERIA
from convatlas.train.cpu.execution import ExecutionPlan, out_of_memory
from convatlas.train.distributed import Distributed
from convatlas.train.recipe import Recipe


@dataclass(frozen=True)
class Step:
    """One update of the weights: its number over the whole training, its mean loss, and what it saw.

    skipped: loss or gradient were not finite; weights and statistics are still those of the step before.
    outputs and batch are this process's share; loss, and how many of the batch were right, are those of all.
    """

    number: int
    epoch: int
    lr: float
    loss: float
    outputs: Tensor
    batch: Batch
    right: int = 0
    skipped: bool = False


SKIPS = 10
"""So many steps one after another may be skipped before a training gives up."""


class EMA:
    """A moving average of the weights, slow from the start on: decay d, but at most (1 + n) / (10 + n) at step n."""

    def __init__(self, network: Network, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self, network: Network) -> None:
        """Take the weights of a step in; counters and the like are copied."""
        self.steps += 1
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        pairs = list(zip(_tensors(self.network), _tensors(network), strict=True))
        floats = [(mine, new) for mine, new in pairs if mine.is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in floats], [new for _, new in floats], weight)
        for mine, new in pairs:
            if not mine.is_floating_point():
                mine.copy_(new)


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def train(
    network: Network,
    optimizer: optim.Optimizer,
    loader: BatchLoader,
    recipe: Recipe,
    *,
    seed: int,
    start: int = 0,
    failing: int = 0,
    execution: ExecutionPlan | None = None,
    average: EMA | None = None,
    class_weights: Tensor | None = None,
    distributed: Distributed | None = None,
) -> Iterator[Step]:
    """Train from step `start` to the end of the recipe; yield after each step.

    failing: so many steps before it, one after another, were not finite.
    compute: how the steps are carried out. average: takes the weights in after every step. importance: the weight of
    each class in the loss, (classes,). distributed: this process among those of the training.
    Everything random in a step (batch, augmentation, dropout) is a function of the seed and the step, so a training
    that starts at step n with the state of step n is the training that was never stopped.
    A step whose loss or gradient is not finite is taken back. Raises RunError that names the step and the first
    offending layer if that happens over and over.
    """
    distributed = distributed or Distributed()
    runner = StepRunner(network, recipe, execution or ExecutionPlan(), class_weights, distributed)
    parameters = list(network.parameters())
    first_epoch, first_batch = divmod(start, loader.steps)
    for epoch in range(first_epoch, recipe.epochs):
        network.freeze("stages" if epoch < recipe.head_epochs else None).eval()  # the first step lets it train
        begin = first_batch if epoch == first_epoch else 0
        for number, batch in enumerate(_batches(loader, epoch, begin), epoch * loader.steps + begin):
            lr = recipe.rate(number, loader.steps)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["share"]
            seed_step(seed, number, batch.inputs.device)
            before = [buffer.clone() for buffer in network.buffers()]
            outputs, loss = runner.backward_with_oom_retry(batch, before)
            distributed.all_reduce([parameter.grad for parameter in parameters if parameter.grad is not None])
            sums = torch.stack([loss, runner.criterion.right(outputs, batch.labels).sum().to(loss)])
            distributed.all_reduce([sums])
            value, right = sums.tolist()
            norm = nn.utils.get_total_norm(p.grad for p in parameters if p.grad is not None)
            if recipe.grad_clip:
                nn.utils.clip_grads_with_norm_(parameters, recipe.grad_clip, norm)
            # waits for the device; the price of never keeping a bad step
            good = math.isfinite(value) and math.isfinite(norm.item())
            if good:
                optimizer.step()
                if average:
                    average.update(network)
            else:
                restore_buffers(network, before)
            optimizer.zero_grad()
            failing = 0 if good else failing + 1
            if failing >= SKIPS:
                where = first_nonfinite_layer(network, batch) if not math.isfinite(value) else "the gradient"
                raise RunError(
                    f"{SKIPS} steps up to step {number} (epoch {epoch + 1}) were not finite, first in {where}; "
                    f"try a lower learning rate than {recipe.lr:g}"
                )
            yield Step(number, epoch, lr, value, outputs, batch, round(right) if good else 0, skipped=not good)


def _batches(loader: BatchLoader, epoch: int, start: int) -> Iterator[Batch]:
    """Yield the batches of an epoch; raises RunError if memory does not suffice for one."""
    try:
        yield from loader.epoch(epoch, start=start)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise RunError(
            f"memory does not suffice for the images of a batch of {loader.batch} ({brief(error)}); use a smaller "
            "--batch or --size"
        ) from error


class StepRunner:
    """What computes the gradients of a batch, in one piece or in several of `micro` images."""

    def __init__(
        self, network: Network, recipe: Recipe, execution: ExecutionPlan, class_weights: Tensor | None = None,
        distributed: Distributed | None = None,
    ) -> None:  # fmt: skip
        self.network, self.recipe, self.execution, self.class_weights = network, recipe, execution, class_weights
        self.micro, self.distributed = recipe.micro_batch, distributed or Distributed()
        self.criterion, self.forward = CRITERIA[recipe.loss], execution.forward(network)

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        losses = self.criterion.loss(outputs.float(), targets, self.recipe.label_smoothing)
        if self.class_weights is not None and self.criterion.several:
            losses = losses * torch.lerp(torch.ones_like(targets), self.class_weights, targets)
        elif self.class_weights is not None:
            losses = losses * (self.class_weights[targets] if targets.ndim == 1 else targets @ self.class_weights)
        return losses.mean()

    def backward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Add the gradients of this share of the batch's mean loss to the parameters; return outputs and that share."""
        if not self.network.training:  # the caller may have evaluated meanwhile
            self.network.train()
            if self.recipe.freeze_bn_stats:
                for layer in self.network.modules():
                    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                        layer.eval()
        self.distributed.mark_arrival()  # norms meet before the gradients do
        outputs, total = [], torch.zeros((), device=batch.inputs.device)
        for inputs, targets in self._pieces(batch):
            with self.execution.arithmetic(inputs.device):
                if self.network.auxiliary:
                    given, loss = self.network.loss(inputs, targets, self.measure)
                else:
                    given = self.forward(inputs)
                    loss = self.measure(given, targets)
            # nothing of the batch may have come to this process; its norms still meet the others
            loss = loss * (len(inputs) / batch.whole) if len(inputs) else given.sum() * 0
            loss.backward()
            outputs.append(given.detach())
            total += loss.detach()
        return torch.cat(outputs), total

    def _pieces(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Cut inputs and targets into pieces: as many in every process, so that their norms meet; some may be empty."""
        largest = -(-batch.whole // self.distributed.world_size)
        count = -(-largest // (self.micro or largest))
        return list(zip(batch.inputs.tensor_split(count), batch.targets.tensor_split(count), strict=True))

    def backward_with_oom_retry(self, batch: Batch, before: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Do as `backward` does, in pieces half as large as long as memory does not suffice.

        before: the buffers as they were, for another try.
        Raises RunError if it does not suffice for one image, or if other processes wait for this one.
        """
        while True:
            try:
                return self.backward(batch)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                pieces, failure = self.micro or len(batch.inputs), brief(error)
            # outside of the handler, whose traceback would hold on to the tensors of the step
            if pieces <= 1 or self.distributed.world_size > 1:
                raise RunError(f"memory does not suffice for {pieces} images at once ({failure}); use a smaller --size")
            self.micro = -(-pieces // 2)
            self.network.zero_grad()
            restore_buffers(self.network, before)
            if batch.inputs.device.type == "cuda":
                torch.cuda.empty_cache()


def restore_buffers(network: nn.Module, before: Sequence[Tensor]) -> None:
    """Give a network the buffers that it had."""
    for buffer, old in zip(network.buffers(), before, strict=True):
        buffer.copy_(old)


def seed_step(seed: int, number: int, device: torch.device) -> None:
    """Make what dropout and its like draw in this step a function of the seed and the step."""
    key = derive_key(seed, number, 7)
    # torch.manual_seed does the same for every device there is, and costs a millisecond where there is no GPU
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        torch.cuda.manual_seed(key)
    elif device.type == "mps":
        torch.mps.manual_seed(key)


@torch.no_grad()
def first_nonfinite_layer(network: nn.Module, batch: Batch) -> str:
    """Return the first layer, in order of the forward pass, whose weights or output are not finite."""
    found: list[str] = []

    def look(path: str) -> Callable[..., None]:
        def hook(layer: nn.Module, _: object, output: Tensor) -> None:
            if any(not parameter.isfinite().all() for parameter in layer.parameters()):
                found.append(f"the weights of {path}")
            elif not output.isfinite().all():
                found.append(f"the output of {path}")

        return hook

    leaves = [(path, layer) for path, layer in network.named_modules() if not list(layer.children())]
    handles = [layer.register_forward_hook(look(path)) for path, layer in leaves]
    try:
        if not batch.inputs.isfinite().all():
            return "the input images"
        network(batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "the loss itself"
