"""Skeletons: YAML, defaults, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from convatlas.errors import DataError
from convatlas.tasks.detection.skeleton import (
    DEFAULT_SIGMA,
    PERSON,
    Skeleton,
    numbered_skeleton,
    read_skeleton,
)

GLUE = """
names: [head, tail]
edges: [[0, 1]]
sigmas: [0.05, 0.1]
"""


def test_yaml_and_back(tmp_path: Path) -> None:
    path = tmp_path / "skeleton.yaml"
    for skeleton in (PERSON, numbered_skeleton(294), Skeleton(("左", "on"), edges=((0, 1),))):
        skeleton.write(path)
        assert read_skeleton(path) == skeleton


def test_keypoints_by_name(tmp_path: Path) -> None:
    path = tmp_path / "skeleton.yaml"
    path.write_text("names: [nose, left, right]\nedges: [[nose, left], [0, right]]\nflip_pairs: [[left, right]]\n")
    skeleton = read_skeleton(path)
    assert skeleton.edges == ((0, 1), (0, 2))
    assert skeleton.flip_order == (0, 2, 1)
    assert skeleton.all_sigmas == (DEFAULT_SIGMA,) * 3


def test_person() -> None:
    assert PERSON.points == len(PERSON.sigmas) == 17
    assert len(PERSON.edges) == 19
    assert all(PERSON.names[a].replace("left", "right") == PERSON.names[b] for a, b in PERSON.flip_pairs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have the fields names"),
        ("[1, 2]", "must have the fields names"),
        ("names: [a, b", "not a YAML file"),
        ("edges: [[0, 1]]", "names is missing"),
        ("names: []", "different names of keypoints, at least one"),
        ("names: [a, a]", "different names"),
        ("names: [1, 2]", "names[0] must be a text, got 1"),
        ("names: a", "names must be a list"),
        ("names: [a, b]\nedges: [[0, 2]]", "edges must be pairs of different keypoints in [0, 1], got [0, 2]"),
        ("names: [a, b]\nedges: [[1, 1]]", "edges must be pairs of different keypoints in [0, 1], got [1, 1]"),
        ("names: [a, b]\nedges: [[-1, 1]]", "edges[0][0] must be an integer >= 0, got -1"),
        ("names: [a, b]\nedges: [[0, 1, 1]]", "edges[0] must be a list of 2 items"),
        ("names: [a, b]\nedges: [[a, c]]", "edges must be pairs of keypoints, got 'c', which is not in names"),
        ("names: [a, b, c]\nflip_pairs: [[0, 1], [1, 2]]", "flip_pairs must name each keypoint once, got 1 (b) twice"),
        ("names: [a, b]\nsigmas: [0.1]", "sigmas must be 2 numbers, one for each keypoint, got 1"),
        ("names: [a, b]\nsigmas: [0.1, 0]", "sigmas[1] must be a number > 0, got 0"),
        ("names: [a, b]\nsigmas: [0.1, .nan]", "sigmas[1] must be a number > 0, got nan"),
        ("names: [a]\nsigma: [1]", "sigma is not a field of Skeleton (did you mean sigmas?)"),
    ],
)  # fmt: skip
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "skeleton.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read_skeleton(path)
    assert str(error.value).startswith(f"{path}")
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"names: [a]\x00", b"[" * 400])
def test_unreadable_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "skeleton.yaml"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"skeleton\.yaml: "):
        read_skeleton(path)
    with pytest.raises(DataError, match="unreadable"):
        read_skeleton(tmp_path / "absent.yaml")
