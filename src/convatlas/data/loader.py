"""Training batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.augment import Augment, augment_pixels, erase, mix, mixing_partners
from convatlas.data.augment_objects import Augmented, augment_objects
from convatlas.data.dataset import Images
from convatlas.data.rng import BatchRandom, epoch_order
from convatlas.data.stream import Pixels, Streamed, prefetch
from convatlas.data.threads import map_ahead
from convatlas.data.videos import RandomClips, Videos
from convatlas.data.whole_images import WholeImages
from convatlas.tasks.targets import Batch
from convatlas.tasks.task import Task


class BatchLoader:
    """The training batches of every epoch, on `device`; everything random is a function of (seed, epoch, sample).

    min_last: see `batch_sizes`.
    """

    def __init__(
        self,
        images: Images,
        preprocessing: Preprocessing,
        task: Task,
        *,
        batch: int,
        seed: int,
        min_last: int = 1,
        shuffle: bool = True,
        augment: Augment | None = None,
        shard: Callable[[Tensor], Tensor] = lambda indices: indices,
        device: torch.device | str = "cpu",
    ) -> None:
        pixels = images.pixels
        self.pixels: Pixels = pixels.to(device) if isinstance(pixels, Tensor) else pixels
        self.targets = images.targets.to(device)
        self.aspects = None if images.aspects is None else images.aspects.to(device)
        self.preprocessing, self.task, self.batch, self.seed = preprocessing, task, batch, seed
        self.shuffle, self.augment, self.shard, self.device = shuffle, augment or Augment(), shard, device
        self.sizes = batch_sizes(len(images), batch, min_last)
        self.steps = len(self.sizes)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield this process's share of the batches of one epoch from number `start` on; the last may be smaller."""
        count = len(self.targets)
        order = (epoch_order(self.seed, epoch, count) if self.shuffle else torch.arange(count)).to(self.device)
        yield from self._batches(order.split(self.sizes)[start:], epoch)

    def take(self, samples: Tensor, epoch: int) -> Batch:
        """Return the training images with these numbers, augmented as in that epoch."""
        return next(self._batches([samples.to(self.device)], epoch))

    def _batches(self, batches: Sequence[Tensor], epoch: int) -> Iterator[Batch]:
        if isinstance(self.pixels, WholeImages):
            return self._whole_batches(self.pixels, batches, epoch)
        pixels = self.pixels.at_random(self.seed, epoch) if isinstance(self.pixels, Videos) else self.pixels
        return self._frames(pixels, batches, epoch)

    def _whole_batches(self, images: WholeImages, batches: Sequence[Tensor], epoch: int) -> Iterator[Batch]:
        """Yield batches of whole images, which are decoded and augmented in the background."""

        def load(sample: int) -> Augmented:
            random = BatchRandom(torch.tensor([sample]), self.seed, epoch)
            return augment_objects(
                images.image(sample), objects[sample], random, self.augment, self.preprocessing, self.task.flip_order
            )

        objects: list[Any] = list(self.targets["objects"])
        shares = [self.shard(batch) for batch in batches]
        for batch, own, items in zip(
            batches, shares, map_ahead(load, [share.tolist() for share in shares]), strict=True
        ):
            targets = self.targets.take(own).with_columns(
                objects=[item.objects for item in items],
                short_side=[item.short_side for item in items],
                seed=[item.seed for item in items],
            )
            yield Batch([item.image.to(self.device) for item in items], targets, own, len(batch))

    def _frames(
        self, images: Tensor | Streamed | RandomClips, batches: Sequence[Tensor], epoch: int
    ) -> Iterator[Batch]:
        count = len(self.targets)
        mixes = self.augment.mixes and count > 1

        def indices() -> Iterator[Tensor]:
            for batch in batches:
                own = self.shard(batch)
                others = [mixing_partners(BatchRandom(own, self.seed, epoch), count)] if mixes else []
                yield torch.cat([own, *others])

        for batch, (numbers, pixels) in zip(batches, prefetch(images, indices()), strict=True):
            inputs = self._augment(BatchRandom(numbers, self.seed, epoch), pixels.to(self.device))
            if not mixes:
                yield Batch(inputs, self.targets.take(numbers), numbers, len(batch))
                continue
            own, others = numbers.tensor_split(2)
            own_inputs, other_inputs = inputs.tensor_split(2)
            random = BatchRandom(own, self.seed, epoch)
            mixed, weight = mix(_as_images(own_inputs), _as_images(other_inputs), random, self.augment)
            inputs = mixed.view_as(own_inputs)
            targets = self.task.mix(self.targets.take(own), self.targets.take(others), weight)
            yield Batch(inputs, targets, own, len(batch))

    def _augment(self, random: BatchRandom, pixels: Tensor) -> Tensor:
        """Return the network's inputs, augmented but not mixed; all frames of a clip are augmented alike."""
        steps = self.preprocessing
        clips = pixels.shape[:-3]  # (images,), or (clips, frames)
        frames = clips[1] if len(clips) == 2 else 1
        each = random.repeated(frames)
        aspects = None if self.aspects is None else self.aspects[each.samples]
        pixels = pixels.flatten(0, len(clips) - 1)
        pixels = augment_pixels(
            pixels, each, self.augment, size=steps.crop, fill=steps.fill, aspects=aspects, frames=frames
        )
        if self.aspects is not None:
            pixels = steps.add_border(pixels)
        inputs: Tensor = steps.normalize(pixels.unflatten(0, clips))
        if not self.augment.random_erasing:
            return inputs
        return erase(_as_images(inputs), random, self.augment.random_erasing).view_as(inputs)


def _as_images(inputs: Tensor) -> Tensor:
    """Return clips (n, channels, frames, h, w) as images whose channels are all frames; images as they are."""
    return inputs.flatten(1, 2) if inputs.ndim == 5 else inputs


def batch_sizes(count: int, batch: int, min_last: int = 1) -> list[int]:
    """Return the sizes of the batches of an epoch; a last one of fewer than `min_last` images joins the one before."""
    full, rest = divmod(count, batch)
    sizes = [batch] * full
    if 0 < rest < min_last <= batch and sizes:
        sizes[-1] += rest
    elif rest:
        sizes.append(rest)
    return sizes
