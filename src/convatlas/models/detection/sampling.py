"""The anchors and proposals of an image that a training step uses, as a function of a seed of the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler


class SeededSampler(BalancedPositiveNegativeSampler):  # type: ignore[misc]  # torchvision carries no types
    """torchvision's sampler, whose choice for an image depends on nothing but the image's seed, if it has one.

    stream: a number that separates several samplers of one network.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float, *, stream: int) -> None:
        super().__init__(batch_size_per_image, positive_fraction)
        self.stream = stream
        self.seeds: Sequence[int | None] = ()
        """Of the images of the present batch; torch's global generator is used for those without one."""

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return masks of the positive and of the negative rows to use, from labels: > 0, 0, and < 0 for ignored."""
        if all(seed is None for seed in self.seeds):
            masks: tuple[list[Tensor], list[Tensor]] = super().__call__(matched_idxs)
            return masks
        positives, negatives = [], []
        for labels, seed in zip(matched_idxs, self.seeds, strict=True):
            if seed is None:
                (positive,), (negative,) = super().__call__([labels])
            else:
                positive, negative = self._choose(labels, seed)
            positives.append(positive)
            negatives.append(negative)
        return positives, negatives

    def _choose(self, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed((2 * seed + self.stream) % 2**63)
        positive, negative = torch.where(labels >= 1)[0], torch.where(labels == 0)[0]
        count = min(positive.numel(), int(self.batch_size_per_image * self.positive_fraction))
        masks = []
        for rows, number in ((positive, count), (negative, self.batch_size_per_image - count)):
            order = torch.randperm(rows.numel(), generator=generator)[:number].to(rows.device)
            mask = torch.zeros_like(labels, dtype=torch.uint8)
            mask[rows[order]] = 1
            masks.append(mask)
        return masks[0], masks[1]
