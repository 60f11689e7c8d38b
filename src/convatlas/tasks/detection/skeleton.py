"""Skeletons: the keypoints of an object, of any number, and how they are connected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from convatlas.core.record import Record, above, at_least
from convatlas.errors import DataError
from convatlas.system.files import read_yaml, write_text

DEFAULT_SIGMA = 0.05
"""The sigma of keypoints whose data does not state one."""

Index = Annotated[int, at_least(0)]


@dataclass(frozen=True)
class Skeleton(Record):
    """The keypoints of an object.

    names: of the keypoints, in the order of the data. edges: pairs of connected keypoints, numbered from 0, which are
    drawn as lines. flip_pairs: pairs that change places when an image is flipped, such as left and right eye.
    sigmas: for each keypoint, how far from it annotators deviate, as a share of the object's size (the square root of
    its area), as in COCO's object keypoint similarity; `DEFAULT_SIGMA` if empty.
    """

    error = DataError

    names: tuple[str, ...]
    edges: tuple[tuple[Index, Index], ...] = ()
    flip_pairs: tuple[tuple[Index, Index], ...] = ()
    sigmas: tuple[Annotated[float, above(0)], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.names or len(set(self.names)) != len(self.names):
            raise DataError("Skeleton: names must be different names of keypoints, at least one")
        for field in ("edges", "flip_pairs"):
            for pair in getattr(self, field):
                if max(pair) >= len(self.names) or pair[0] == pair[1]:
                    raise DataError(
                        f"Skeleton: {field} must be pairs of different keypoints in [0, {len(self.names) - 1}], got "
                        f"{list(pair)}"
                    )
        flipped = [index for pair in self.flip_pairs for index in pair]
        if len(set(flipped)) != len(flipped):
            twice = next(index for index in flipped if flipped.count(index) > 1)
            raise DataError(
                f"Skeleton: flip_pairs must name each keypoint once, got {twice} ({self.names[twice]}) twice"
            )
        if self.sigmas and len(self.sigmas) != len(self.names):
            raise DataError(
                f"Skeleton: sigmas must be {len(self.names)} numbers, one for each keypoint, got {len(self.sigmas)}"
            )

    @property
    def points(self) -> int:
        """Number of keypoints."""
        return len(self.names)

    @property
    def all_sigmas(self) -> tuple[float, ...]:
        """The sigma of each keypoint."""
        return self.sigmas or (DEFAULT_SIGMA,) * self.points

    @property
    def flip_order(self) -> tuple[int, ...]:
        """For each keypoint, the one whose place it takes when an image is flipped: itself unless it is in a pair."""
        order = list(range(self.points))
        for left, right in self.flip_pairs:
            order[left], order[right] = right, left
        return tuple(order)

    def write(self, path: str | Path) -> None:
        """Write the skeleton as YAML, which `read_skeleton` reads."""
        import yaml

        plain = {name: value for name, value in self.to_plain().items() if value}
        write_text(Path(path), yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None))


def read_skeleton(path: str | Path) -> Skeleton:
    """Read a skeleton from a YAML file: names, edges and flip_pairs as numbers from 0 or as names, sigmas.

    Raises DataError that names the file and the field, if it is unreadable or a field is wrong.
    """
    return skeleton_from_plain(read_yaml(Path(path), DataError), path)


def skeleton_from_plain(plain: Any, where: object) -> Skeleton:
    """Return a skeleton from plain data, such as YAML; keypoints in edges and flip_pairs are numbers or names.

    Raises DataError that begins with `where`.
    """
    if not isinstance(plain, Mapping):
        raise DataError(f"{where}: must have the fields names, edges, flip_pairs and sigmas of a skeleton")
    values = dict(plain)
    names = values.get("names")
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        for field in ("edges", "flip_pairs"):
            if isinstance(values.get(field), list):
                values[field] = [_numbers(pair, names, f"{where}: {field}") for pair in values[field]]
    try:
        return Skeleton.from_plain(values, where=str(where))
    except DataError as error:
        text = str(error)
        raise error if text.startswith(str(where)) else DataError(f"{where}: {text}") from error


def _numbers(pair: Any, names: Sequence[str], where: object) -> Any:
    """Return a pair of names as numbers; other pairs as they are."""
    if not isinstance(pair, list) or not any(isinstance(point, str) for point in pair):
        return pair
    for point in pair:
        if isinstance(point, str) and point not in names:
            raise DataError(f"{where} must be pairs of keypoints, got {point!r}, which is not in names")
    return [names.index(point) if isinstance(point, str) else point for point in pair]


def numbered_skeleton(points: int) -> Skeleton:
    """Return the skeleton of data that states only the number of keypoints: names 1, 2, ..., nothing connected."""
    return Skeleton(tuple(map(str, range(1, points + 1))))


PERSON = Skeleton(
    names=(
        "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
        "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
        "right_ankle",
    ),
    edges=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
        (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    sigmas=(
        0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089,
        0.089,
    ),
)  # fmt: skip
"""The 17 keypoints of COCO's persons, with the sigmas of its evaluation."""
