"""Running the pictures of a split through a network, and judging its outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convatlas.data.batches import in_order
from convatlas.data.images import Images
from convatlas.preprocessing import Preprocessing
from convatlas.tasks.losses import Criterion
from convatlas.tasks.results import Result, Tags


@torch.inference_mode()
def outputs_of(
    network: nn.Module, images: Images, preprocessing: Preprocessing, *, batch: int = 64,
    device: torch.device | str = "cpu",
) -> Tensor:  # fmt: skip
    """Return the outputs (n, classes) for all pictures of a split, in evaluation mode."""
    network.eval()
    batches = in_order(images, preprocessing, batch=batch, device=device)
    return torch.cat([network(each.inputs).cpu() for each in batches])


def judged(
    outputs: Tensor, labels: Tensor, criterion: Criterion, *, temperature: float = 1.0,
    thresholds: Sequence[float] = (),
) -> Result:  # fmt: skip
    """Return what outputs (n, classes) say about pictures with these labels."""
    with torch.inference_mode():
        loss = criterion.loss(outputs, labels, 0.0).mean().item()
        probabilities = criterion.probabilities(outputs / temperature)
    if not criterion.several:
        return Result(probabilities, labels, loss)
    return Tags(probabilities, labels, loss, torch.tensor(thresholds or 0.5))


def evaluate(
    network: nn.Module,
    images: Images,
    preprocessing: Preprocessing,
    criterion: Criterion,
    *,
    temperature: float = 1.0,
    thresholds: Sequence[float] = (),
    batch: int = 64,
    device: torch.device | str = "cpu",
) -> Result:
    """Run all pictures of a split through the network in evaluation mode."""
    outputs = outputs_of(network, images, preprocessing, batch=batch, device=device)
    return judged(outputs, images.labels, criterion, temperature=temperature, thresholds=thresholds)
