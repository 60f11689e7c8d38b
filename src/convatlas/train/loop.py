"""The training loop: a generator, so that logging, evaluation and checkpoints are plain code of the caller."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn, optim

from convatlas.data.batches import Batch, Feed, derive_key
from convatlas.errors import RunError
from convatlas.joins import Network
from convatlas.layout import blocked
from convatlas.tasks.classification import CRITERIA
from convatlas.train.recipe import Recipe


@dataclass(frozen=True)
class Step:
    """One update of the weights: its number over the whole training, its mean loss, and what it saw."""

    number: int
    epoch: int
    lr: float
    loss: float
    outputs: Tensor
    batch: Batch


def train(
    network: Network, optimizer: optim.Optimizer, feed: Feed, recipe: Recipe, *, seed: int, start: int = 0
) -> Iterator[Step]:
    """Train from step `start` to the end of the recipe; yield after each step.

    Everything random in a step (batch, augmentation, dropout) is a function of the seed and the step, so a training
    that starts at step n with the state of step n is the training that was never stopped.
    Raises RunError that names the step and the first offending layer if the loss is not finite; the weights are then
    still those before the step.
    """
    criterion, forward = CRITERIA[recipe.loss], blocked(network)

    def measure(outputs: Tensor, labels: Tensor) -> Tensor:
        return criterion.loss(outputs, labels, recipe.smoothing)

    first_epoch, first_batch = divmod(start, feed.steps)
    for epoch in range(first_epoch, recipe.epochs):
        begin = first_batch if epoch == first_epoch else 0
        for number, batch in enumerate(feed.epoch(epoch, start=begin), epoch * feed.steps + begin):
            lr = recipe.rate(number, feed.steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            if not network.training:  # the caller may have evaluated meanwhile
                network.train()
            seed_step(seed, number, batch.inputs.device)
            if network.auxiliary:
                outputs, loss = network.loss(batch.inputs, batch.labels, measure)
            else:
                outputs = forward(batch.inputs)
                loss = measure(outputs, batch.labels)
            value = loss.item()  # waits for the device; the price of never stepping on a bad loss
            if not math.isfinite(value):
                where = offending_layer(network, batch)
                raise RunError(
                    f"the loss is {value} at step {number} (epoch {epoch + 1}), not finite first in {where}; "
                    f"try a lower learning rate than {recipe.lr:g}"
                )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield Step(number, epoch, lr, value, outputs.detach(), batch)


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
def offending_layer(network: nn.Module, batch: Batch) -> str:
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
            return "the input pictures"
        network(batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "the loss itself"
