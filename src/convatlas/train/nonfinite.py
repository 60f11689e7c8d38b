"""What is not finite in a step that is skipped: the images, and the first layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from convatlas.core.ragged import take
from convatlas.errors import listed
from convatlas.tasks.targets import Batch
from convatlas.train.step import StepRunner

MAX_IMAGES = 3
"""Maximum number of images that are named."""


def nonfinite_tensor(network: nn.Module) -> str:
    """Return the first parameter or buffer of a network that is not finite, or an empty text."""
    return next((name for name, tensor in network.state_dict().items() if not tensor.isfinite().all()), "")


def nonfinite_images(runner: StepRunner, batch: Batch, names: Sequence[str]) -> str:
    """Return which images are to blame: those whose own loss is not finite, or else those of the batch.

    names: of the images of the split; without them, the text is empty. Every process must call this.
    """
    if not names:
        return ""
    numbers = batch.indices.tolist()
    own = [numbers[i] for i in islice(_nonfinite(runner, batch), MAX_IMAGES)]
    if found := runner.distributed.chain(own):
        return f"in {listed((names[i] for i in found), MAX_IMAGES)}"
    return f"in the batch of {listed((names[i] for i in runner.distributed.chain(numbers)), MAX_IMAGES)}"


@torch.no_grad()
def _nonfinite(runner: StepRunner, batch: Batch) -> Iterator[int]:
    """Yield the positions of the images whose own loss is not finite, in halves of halves.

    Batch norms use their running statistics, so that an image does not depend on others.
    """

    def search(positions: Tensor) -> Iterator[int]:
        inputs, targets = take(batch.inputs, positions), batch.targets.take(positions)
        _, loss = runner.task.training_loss(runner.network, runner.network, inputs, targets, runner.criterion)
        if loss.isfinite():
            return
        if len(positions) == 1:
            yield int(positions)
            return
        for half in positions.tensor_split(2):
            yield from search(half)

    runner.set_train_mode()
    for layer in runner.network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()
    try:
        if len(batch.indices):
            yield from search(torch.arange(len(batch.indices), device=batch.device))
    finally:
        runner.set_train_mode()


class _NonfiniteError(Exception):
    """Stops the forward pass at the first output that is not finite."""


@torch.no_grad()
def find_nonfinite(runner: StepRunner, batch: Batch, lr: float) -> tuple[str, str]:
    """Return (where, fix): what is not finite first, in order of the forward pass, and what to do about it."""
    lower = f"use a lower learning rate than {lr:g}"
    network = runner.network
    if not all(each.isfinite().all() for each in batch.inputs):
        return "the input images", "check the data and its preprocessing"
    if name := nonfinite_tensor(network):  # steps that are not finite are rolled back: they were so before
        return f"the weights ({name})", f"{lower}, or other initial weights"

    def watch(path: str) -> Callable[..., None]:
        def hook(layer: nn.Module, _: object, output: Any) -> None:
            if not all(tensor.isfinite().all() for tensor in _tensors(output)):
                raise _NonfiniteError(f"the output of {path}")

        return hook

    leaves = [(path, layer) for path, layer in network.named_modules() if not list(layer.children())]
    handles = [layer.register_forward_hook(watch(path)) for path, layer in leaves]
    try:
        runner.task.training_loss(network, network, batch.inputs, batch.targets, runner.criterion)
    except _NonfiniteError as stop:
        return str(stop), lower
    finally:
        for handle in handles:
            handle.remove()
    return "the loss itself", lower


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of an output, which may be a list or a table of some."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)
