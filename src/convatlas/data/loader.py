"""The batches of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.augment import Augment, BatchRandom, changed, erased, mixed, partners
from convatlas.data.dataset import Images
from convatlas.data.rng import epoch_order
from convatlas.data.stream import Pixels, prefetch


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return class numbers (n,) as shares of the classes (n, classes); shares are returned as they are."""
    return labels if labels.ndim == 2 else F.one_hot(labels, classes).float()


@dataclass(frozen=True)
class Batch:
    """inputs (batch, channels, h, w) float32, labels as in their split, and the samples' numbers in it.

    mixed: shares of the classes (batch, classes), where every image is mixed with another one.
    whole: images of the batch over all processes.
    """

    inputs: Tensor
    labels: Tensor
    samples: Tensor
    mixed: Tensor | None = None
    whole: int = 0

    def __post_init__(self) -> None:
        if not self.whole:
            object.__setattr__(self, "whole", len(self.labels))

    @property
    def targets(self) -> Tensor:
        """What the loss compares with: the shares of the classes where images are mixed, or else the labels."""
        return self.labels if self.mixed is None else self.mixed


class BatchLoader:
    """The training batches of every epoch, on `device`; everything random is a function of (seed, epoch, sample)."""

    def __init__(
        self,
        images: Images,
        preprocessing: Preprocessing,
        *,
        batch: int,
        seed: int,
        shuffle: bool = True,
        augment: Augment | None = None,
        classes: int = 0,
        share: Callable[[Tensor], Tensor] = lambda samples: samples,
        device: torch.device | str = "cpu",
    ) -> None:
        held = images.pixels
        self.pixels: Pixels = held.to(device) if isinstance(held, Tensor) else held
        self.labels = images.labels.to(device)
        self.aspects = None if images.aspects is None else images.aspects.to(device)
        self.preprocessing, self.batch, self.seed, self.classes = preprocessing, batch, seed, classes
        self.shuffle, self.augment, self.share, self.device = shuffle, augment or Augment(), share, device
        self.steps = -(-len(images) // batch)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield this process's share of the batches of one epoch from number `start` on; the last may be smaller."""
        count = len(self.labels)
        order = (epoch_order(self.seed, epoch, count) if self.shuffle else torch.arange(count)).to(self.device)
        batches = order.split(self.batch)[start:]
        mixes = self.augment.mixes and count > 1

        def wanted() -> Iterator[Tensor]:
            for batch in batches:
                samples = self.share(batch)
                others = [partners(BatchRandom(samples, self.seed, epoch), count)] if mixes else []
                yield torch.cat([samples, *others])

        for batch, (numbers, pixels) in zip(batches, prefetch(self.pixels, wanted()), strict=True):
            inputs = self._prepared(BatchRandom(numbers, self.seed, epoch), pixels.to(self.device))
            if not mixes:
                yield Batch(inputs, self.labels[numbers], numbers, whole=len(batch))
                continue
            samples, others = numbers.tensor_split(2)
            own_inputs, other_inputs = inputs.tensor_split(2)
            inputs, own = mixed(own_inputs, other_inputs, BatchRandom(samples, self.seed, epoch), self.augment)
            first, second = (one_hot(self.labels[n], self.classes) for n in (samples, others))
            yield Batch(inputs, self.labels[samples], samples, torch.lerp(second, first, own[:, None]), len(batch))

    def _prepared(self, random: BatchRandom, pixels: Tensor) -> Tensor:
        """Return the network's inputs for the images of a draw, changed but not mixed."""
        steps = self.preprocessing
        aspects = None if self.aspects is None else self.aspects[random.samples]
        pixels = changed(pixels, random, self.augment, size=steps.crop, fill=steps.fill, aspects=aspects)
        if self.aspects is not None and steps.pad:
            pixels = F.pad(pixels, (steps.pad,) * 4, value=steps.fill)
        inputs = steps.normalize(pixels)
        return erased(inputs, random, self.augment.random_erasing) if self.augment.random_erasing else inputs
