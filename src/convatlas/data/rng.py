"""Random numbers that are functions of (seed, epoch, sample): no state, no workers, the same on every device."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(value: int) -> int:
    """Return the 64 bits of `value` as a signed integer, as torch's int64 stores them."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift unsigned numbers; torch's own shift of int64 keeps the sign."""
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
    return random_bits(derive_key(seed, epoch, Purpose.ORDER), torch.arange(count)).argsort(stable=True)


class Purpose(IntEnum):
    """The purpose of a random number. Existing values must not change, or runs would not be reproducible.

    The purpose plus i is the key of the i-th draw; the gaps are for such draws.
    """

    ORDER = 0
    FLIP = 1
    SHIFT_DOWN = 2
    SHIFT_RIGHT = 3
    CROP_AREA = 20
    CROP_RATIO = 40
    CROP_LEFT = 60
    CROP_TOP = 61
    BRIGHTNESS = 62
    CONTRAST = 63
    SATURATION = 64
    ERASE = 65
    ERASE_AREA = 66
    ERASE_RATIO = 67
    ERASE_LEFT = 68
    ERASE_TOP = 69
    MIX_PARTNER = 70
    MIX_WEIGHT = 71
    MIX_KIND = 72
    CUT_LEFT = 73
    CUT_TOP = 74
    OPERATION = 80
    STRENGTH = 90
    SIGN = 100
    SHORT_SIDE = 110
    SCALE = 111
    SCALE_LEFT = 112
    SCALE_TOP = 113
    HUE = 114
    PROPOSALS = 115
    CLIP_START = 116


@dataclass(frozen=True)
class BatchRandom:
    """The random numbers of one batch: `samples` are the images' numbers in the training split."""

    samples: Tensor
    seed: int
    epoch: int

    def uniform(self, purpose: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return a number in [low, high) for each image; always the same for the same purpose."""
        return uniform(derive_key(self.seed, self.epoch, purpose), self.samples) * (high - low) + low

    def repeated(self, count: int) -> BatchRandom:
        """Return the same numbers `count` times for each image, such as for all frames of a clip."""
        return self if count == 1 else BatchRandom(self.samples.repeat_interleave(count), self.seed, self.epoch)

    def keys(self, purpose: int) -> list[int]:
        """Return a key of 64 bits for each image, for a generator of more random numbers."""
        return [derive_key(self.seed, self.epoch, purpose, sample) for sample in self.samples.tolist()]

    def bernoulli(self, purpose: int, probability: float) -> Tensor:
        """Return True with this probability for each image."""
        return self.uniform(purpose) < probability
