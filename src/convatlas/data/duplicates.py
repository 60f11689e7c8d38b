"""Groups of equal and of nearly equal images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

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
    groups: dict[int, list[CheckedImage]] = defaultdict(list)
    for similar, component in zip(by_hash.values(), _components(list(by_hash)), strict=True):
        groups[component] += similar
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _components(hashes: Sequence[int]) -> list[int]:
    """Return a number for each of different hashes (n), equal for those that a chain of near duplicates connects."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = _near_pairs(np.array(hashes, dtype=np.uint64))
    edges = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(len(hashes),) * 2)
    labels: list[int] = connected_components(edges, directed=False)[1].tolist() if len(hashes) else []
    return labels


def _near_pairs(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the index pairs (n, 2) of hashes that differ in at most 3 bits; a pair may occur more than once.

    Three bits are in at most three of six blocks of bits, so that at least three blocks are equal. Hashes are compared
    only with those of which the same three blocks are equal: 20 sorts instead of all pairs (Manku et al. 2007).
    """
    blocks = np.array_split(np.arange(64, dtype=np.uint64), 2 * MAX_DIFFERENT_BITS)
    masks = [np.bitwise_or.reduce(np.uint64(1) << block) for block in blocks]
    found = [np.zeros((0, 2), dtype=np.int64)]
    for chosen in combinations(masks, MAX_DIFFERENT_BITS):
        keys = hashes & np.bitwise_or.reduce(chosen)
        order = np.argsort(keys, kind="stable")
        keys, ordered = keys[order], hashes[order]
        for distance in range(1, len(hashes)):
            (first,) = (keys[distance:] == keys[:-distance]).nonzero()
            if not len(first):  # no group of equal keys is larger
                break
            near = first[_count_ones(ordered[first] ^ ordered[first + distance]) <= MAX_DIFFERENT_BITS]
            found.append(np.stack([order[near], order[near + distance]], 1))
    return np.concatenate(found)


def _count_ones(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the number of ones in each value (n,)."""
    bits = np.unpackbits(values.view(np.uint8).reshape(-1, 8), axis=1)
    return np.asarray(bits.sum(1), dtype=np.int64)
