"""Groups of equal and of nearly equal images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from convatlas.data.inspect_images import CheckedImage

MAX_DIFFERENT_BITS = 3
"""Maximum number of the 64 hash bits in which near duplicates differ."""

MIN_SIDE = 64
"""Minimum side in pixels of images whose hashes are compared; smaller images are too similar."""

MIN_ONES, MAX_ONES = 8, 56
"""Ones in a hash that is compared; flat images have fewer or more."""

Group = tuple[CheckedImage, ...]


def find_duplicates(images: Sequence[CheckedImage]) -> list[Group]:
    """Return the groups of images with equal contents."""
    by_digest: dict[str, list[CheckedImage]] = defaultdict(list)
    for image in images:
        by_digest[image.digest].append(image)
    return [tuple(group) for group in by_digest.values() if len(group) > 1]


def find_near_duplicates(images: Sequence[CheckedImage]) -> list[Group]:
    """Return the groups of images with nearly equal hashes, without small and flat images."""
    by_hash: dict[int, list[CheckedImage]] = defaultdict(list)
    for image in images:
        if MIN_ONES <= image.dhash.bit_count() <= MAX_ONES and min(image.size) >= MIN_SIDE:
            by_hash[image.dhash].append(image)
    parent = {dhash: dhash for dhash in by_hash}

    def root(dhash: int) -> int:
        while parent[dhash] != dhash:
            dhash = parent[dhash]
        return dhash

    # of four quarters of 16 bits, at least one is equal if at most three bits differ
    for shift in range(0, 64, 16):
        by_quarter: dict[int, list[int]] = defaultdict(list)
        for dhash in by_hash:
            by_quarter[dhash >> shift & 0xFFFF].append(dhash)
        for hashes in by_quarter.values():
            for i, a in enumerate(hashes):
                for b in hashes[:i]:
                    if (a ^ b).bit_count() <= MAX_DIFFERENT_BITS:
                        parent[root(a)] = root(b)
    groups: dict[int, list[CheckedImage]] = defaultdict(list)
    for dhash, similar in by_hash.items():
        groups[root(dhash)] += similar
    return [tuple(group) for group in groups.values() if len(group) > 1]
