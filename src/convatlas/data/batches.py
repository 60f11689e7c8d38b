"""Batches whose randomness is a function of (seed, epoch, sample): no state, no workers, the same on every device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from convatlas.data.images import Images
from convatlas.errors import SpecError
from convatlas.preprocessing import Preprocessing

_MASK = (1 << 64) - 1
_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(value: int) -> int:
    """Return the 64 bits of `value` as torch's int64 reads them."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift as unsigned numbers: torch's own shift of int64 keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def random_bits(key: int, samples: Tensor) -> Tensor:
    """Return 64 random bits for each sample number: SplitMix64 of (key, sample), equal on every device."""
    x = samples * _signed(_GOLDEN) + _signed(key)
    x = (x ^ _shift_right(x, 30)) * _signed(_MIX1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MIX2)
    return x ^ _shift_right(x, 31)


def derive_key(*numbers: int) -> int:
    """Mix numbers such as (seed, epoch, purpose) into one key of 64 bits."""
    key = 0
    for number in numbers:
        key = (number + 1) * _GOLDEN + key & _MASK
        key = (key ^ key >> 30) * _MIX1 & _MASK
        key = (key ^ key >> 27) * _MIX2 & _MASK
        key ^= key >> 31
    return key


def uniform(key: int, samples: Tensor) -> Tensor:
    """Return a float32 number in [0, 1) for each sample number."""
    return _shift_right(random_bits(key, samples), 40).float() * 2.0**-24


def epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """Return the order in which the `count` samples are visited in this epoch."""
    return random_bits(derive_key(seed, epoch, 0), torch.arange(count)).argsort(stable=True)


@dataclass(frozen=True)
class Augment:
    """Random changes to training pictures, made in whole batches on the device.

    shift: up to so many pixels up, down, left and right; what moves in is the preprocessing's `fill`.
    flip: left and right are exchanged in half of the pictures.
    """

    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise SpecError(f"augment.shift: a number of pixels from 0 on, not {self.shift}")

    def __call__(self, pixels: Tensor, samples: Tensor, *, seed: int, epoch: int, fill: int = 0) -> Tensor:
        """Change uint8 pictures (batch, channels, h, w); `samples` are their numbers in the training split."""
        if self.flip:
            chosen = uniform(derive_key(seed, epoch, 1), samples) < 0.5
            pixels = torch.where(chosen.view(-1, 1, 1, 1), pixels.flip(-1), pixels)
        if self.shift:
            span = 2 * self.shift + 1
            down, right = ((uniform(derive_key(seed, epoch, 2 + axis), samples) * span).long() for axis in (0, 1))
            height, width = pixels.shape[-2:]
            padded = F.pad(pixels, (self.shift,) * 4, value=fill)
            rows = down.view(-1, 1) + torch.arange(height, device=pixels.device)
            columns = right.view(-1, 1) + torch.arange(width, device=pixels.device)
            batch = torch.arange(len(pixels), device=pixels.device).view(-1, 1, 1)
            # indexing puts the channels last; the permuted view is what channels_last networks want
            pixels = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        return pixels


@dataclass(frozen=True)
class Batch:
    """inputs (batch, channels, h, w) float32, labels (batch,), and the samples' numbers in their split."""

    inputs: Tensor
    labels: Tensor
    samples: Tensor


class Feed:
    """The training batches of every epoch, prepared on `device`."""

    def __init__(
        self,
        images: Images,
        preprocessing: Preprocessing,
        *,
        batch: int,
        seed: int,
        shuffle: bool = True,
        augment: Augment | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.pixels, self.labels = images.pixels.to(device), images.labels.to(device)
        self.preprocessing, self.batch, self.seed = preprocessing, batch, seed
        self.shuffle, self.augment, self.device = shuffle, augment or Augment(), device
        self.steps = -(-len(images) // batch)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch from number `start` on; the last one may be smaller."""
        count = len(self.labels)
        order = (epoch_order(self.seed, epoch, count) if self.shuffle else torch.arange(count)).to(self.device)
        for samples in order.split(self.batch)[start:]:
            pixels = self.augment(
                self.pixels.index_select(0, samples), samples, seed=self.seed, epoch=epoch, fill=self.preprocessing.fill
            )
            yield Batch(self.preprocessing.normalise(pixels), self.labels[samples], samples)


def in_order(
    images: Images, preprocessing: Preprocessing, *, batch: int, device: torch.device | str
) -> Iterator[Batch]:
    """Yield the pictures of a split in their order, without any randomness: for evaluation."""
    for samples in torch.arange(len(images)).split(batch):
        inputs = preprocessing.normalise(images.pixels[samples].to(device))
        yield Batch(inputs, images.labels[samples].to(device), samples)
