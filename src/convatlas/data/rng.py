"""Random numbers that are functions of (seed, epoch, sample): no state, no workers, the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor

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
