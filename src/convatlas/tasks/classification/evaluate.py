"""Running the images of a split through a network, and judging its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.dataset import Images
from convatlas.data.stream import prefetch
from convatlas.system.progress import Progress
from convatlas.tasks.classification.losses import Criterion
from convatlas.tasks.classification.results import Result, Tags

Run = Callable[[Tensor], Tensor]
"""From pixels, as `Preprocessing.geometry` leaves them, to outputs on the CPU."""


def plainly(network: nn.Module, preprocessing: Preprocessing, device: torch.device | str = "cpu") -> Run:
    """Return what runs a network as it is, in evaluation mode."""
    network.eval()

    @torch.inference_mode()
    def run(pixels: Tensor) -> Tensor:
        outputs: Tensor = network(preprocessing.normalize(pixels.to(device))).cpu()
        return outputs

    return run


def outputs_of(run: Run, images: Images, *, batch: int = 64, progress: Progress | None = None) -> Tensor:
    """Return the outputs (n, classes) for all images of a split, in their order."""
    rows, done = [], 0
    for _, pixels in prefetch(images.pixels, torch.arange(len(images)).split(batch)):
        rows.append(run(pixels))
        done += len(pixels)
        if progress:
            progress("measuring", done, len(images))
    return torch.cat(rows)


def judged(
    outputs: Tensor, labels: Tensor, criterion: Criterion, *, temperature: float = 1.0,
    thresholds: Sequence[float] = (),
) -> Result:  # fmt: skip
    """Return what outputs (n, classes) say about images with these labels."""
    with torch.inference_mode():
        loss = criterion.loss(outputs, labels, 0.0).mean().item()
        probabilities = criterion.probabilities(outputs / temperature)
    if not criterion.several:
        return Result(probabilities, labels, loss)
    return Tags(probabilities, labels, loss, torch.tensor(thresholds or 0.5))


def evaluate(
    run: Run,
    images: Images,
    criterion: Criterion,
    *,
    temperature: float = 1.0,
    thresholds: Sequence[float] = (),
    batch: int = 64,
    progress: Progress | None = None,
) -> Result:
    """Run all images of a split, and judge what comes out."""
    outputs = outputs_of(run, images, batch=batch, progress=progress)
    return judged(outputs, images.labels, criterion, temperature=temperature, thresholds=thresholds)
