"""The skeleton of keypoints that annotation files describe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from convatlas.errors import listed
from convatlas.tasks.detection.skeleton import PERSON, Skeleton, numbered_skeleton, skeleton_from_plain


def skeleton_of_categories(
    categories: Sequence[Mapping[str, Any]], lengths: set[int], where: object, notes: list[str]
) -> Skeleton | None:
    """Return the skeleton of COCO categories; None without keypoints, or if objects have different numbers of them.

    lengths: the numbers of keypoints of the annotations. notes: gets a line about what was understood.
    A category may have `flip_pairs`, of numbers from 0 or names, and `sigmas`, too.
    """
    if not lengths:
        return None
    if len(lengths) > 1:
        notes.append(f"objects have {listed(sorted(lengths))} keypoints: keypoints are not used")
        return None
    (points,) = lengths
    for category in categories:
        names = category.get("keypoints")
        if not (isinstance(names, list) and len(names) == points and all(isinstance(name, str) for name in names)):
            continue
        if len(set(names)) == points and all(map(str.strip, names)):
            skeleton = skeleton_of_names(tuple(names), category.get("skeleton"), notes)
            more = {field: category[field] for field in ("flip_pairs", "sigmas") if category.get(field)}
            return skeleton_from_plain(skeleton.to_plain() | more, where) if more else skeleton
    notes.append(numbered_note(points))
    return numbered_skeleton(points)


def numbered_note(points: int) -> str:
    """Return the line about keypoints without names."""
    return f"the names of the {points} keypoints are not stated: they are numbered from 1"


def skeleton_of_names(names: tuple[str, ...], edges: Any, notes: list[str]) -> Skeleton:
    """Return a skeleton; edges: pairs of numbers from 1, or from 0 if any is 0. Flip pairs follow from the names."""
    if names == PERSON.names:
        return PERSON
    stated: list[Any] = edges if isinstance(edges, list) else []
    pairs = [
        tuple(pair) for pair in stated
        if isinstance(pair, list) and len(pair) == 2 and all(type(end) is int for end in pair)
    ]  # fmt: skip
    origin = 0 if any(0 in pair for pair in pairs) else 1
    valid = [
        (a - origin, b - origin) for a, b in pairs if a != b and max(a, b) - origin < len(names) and min(a, b) >= 0
    ]
    if len(valid) < len(stated):
        notes.append(f"{len(stated) - len(valid)} of {len(stated)} edges of the skeleton name no keypoint: not drawn")
    return Skeleton(names, tuple(dict.fromkeys(valid)), flip_pairs_of(names))


def flip_pairs_of(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Return the pairs of keypoints whose names differ in left and right, or in L and R."""
    numbers = {name: i for i, name in enumerate(names)}
    pairs = []
    for name, i in numbers.items():
        mirror = next((numbers[other] for other in _mirrored(name) if other in numbers and other != name), None)
        if mirror is not None and i < mirror:
            pairs.append((i, mirror))
    return tuple(pairs)


_SIDES = {"left": "right", "Left": "Right", "LEFT": "RIGHT", "l": "r", "L": "R"}
_OTHER = {**_SIDES, **{right: left for left, right in _SIDES.items()}}


def _mirrored(name: str) -> list[str]:
    """Return the names that a keypoint of the other side may have."""
    words = re.sub(r"left|right|Left|Right|LEFT|RIGHT", lambda match: _OTHER[match[0]], name)
    letters = re.sub(r"(?<![A-Za-z])[LRlr](?![a-z])|(?<=[a-z])[LR](?![a-z])", lambda match: _OTHER[match[0]], name)
    return [words, letters]
