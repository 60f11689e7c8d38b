"""Flipped and cropped segments are the flipped and cropped masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.transforms.v2.functional import crop

from convatlas.data.open import open_data
from convatlas.data.segment_geometry import clip_polygon, crop_segments, flip_segments, segment_boxes
from convatlas.tasks.detection.base import objects_of
from convatlas.tasks.detection.masks import encode, to_dense

SIZE = (30, 40)

corners = st.lists(st.tuples(st.integers(-10, 50), st.integers(-10, 40)), min_size=3, max_size=9)


def area(polygon: NDArray[np.float64]) -> float:
    """Return the area, negative for a polygon in the other direction."""
    x, y = polygon.T
    return float((x * np.roll(y, 1) - y * np.roll(x, 1)).sum() / 2)


@given(corners, st.integers(1, 40), st.integers(1, 30))
def test_the_parts_of_a_polygon_are_inside_and_have_its_area(
    polygon: list[tuple[float, float]], width: int, height: int
) -> None:
    clipped = clip_polygon(np.array(polygon, dtype=float), width, height)
    assert ((clipped >= 0) & (clipped <= (width, height))).all()
    whole = np.array(polygon, dtype=float) + 10  # in 60 x 50 pixels, which are cut into four parts
    parts = [
        clip_polygon(whole - (x, y), part_width, part_height)
        for x, part_width in ((0, width), (width, 60 - width))
        for y, part_height in ((0, height), (height, 50 - height))
    ]
    assert sum(map(area, parts)) == pytest.approx(area(whole))


@pytest.mark.parametrize(
    ("polygon", "expected"),
    [
        ([(2, 2), (8, 2), (8, 8)], [(2, 2), (8, 2), (8, 8)]),
        ([(-5, 2), (5, 2), (5, 8), (-5, 8)], [(0, 2), (5, 2), (5, 8), (0, 8)]),
        ([(-9, -9), (-5, -9), (-5, -2)], []),
        ([(-5, 0), (0, 0), (0, 5), (-5, 5)], []),  # only a border is inside
        ([(0, 0), (10, 0), (10, 10), (0, 10)], [(0, 0), (10, 0), (10, 10), (0, 10)]),
        ([(-1, -1), (21, -1), (21, 21), (-1, 21)], [(0, 0), (10, 0), (10, 10), (0, 10)]),
    ],
)
def test_clipped_polygons(polygon: list[tuple[int, int]], expected: list[tuple[int, int]]) -> None:
    clipped = clip_polygon(np.array(polygon, dtype=float), 10, 10)
    assert {tuple(corner) for corner in clipped.tolist()} == set(expected)


def test_polygons_and_run_lengths_stay_what_they_are_and_where_they_are() -> None:
    mask = torch.zeros(1, *SIZE, dtype=torch.uint8)
    mask[0, 5:20, 30:40] = 1
    (runs,) = encode(mask)
    two = [[0.0, 0, 10, 0, 10, 10, 0, 10], [20.0, 20, 30, 20, 30, 30, 20, 30]]
    flipped = flip_segments([two, runs, []], SIZE)
    assert flipped[0] == [[40, 0, 30, 0, 30, 10, 40, 10], [20, 20, 10, 20, 10, 30, 20, 30]]
    assert torch.equal(to_dense(flipped[1:2], SIZE), mask.flip(-1))
    assert flipped[2] == []
    cropped = crop_segments([two, runs, []], SIZE, (0, 0, 15, 35))
    assert cropped[0] == [[0, 0, 10, 0, 10, 10, 0, 10]]
    assert torch.equal(to_dense(cropped[1:2], (15, 35)), mask[:, :15, :35])
    assert segment_boxes(cropped, (15, 35)).tolist() == [[0, 0, 10, 10], [30, 5, 35, 15], [0, 0, 0, 0]]
    assert crop_segments([two, runs], SIZE, (11, 0, 5, 5))[0] == []
    assert segment_boxes(crop_segments([two, runs], SIZE, (11, 0, 5, 5)), (5, 5)).tolist() == [[0] * 4] * 2


def test_real_polygons_are_cropped_as_their_masks(shared_data: Path) -> None:
    source = open_data(shared_data / "coco_tiny" / "annotations" / "instances_val10.json")
    compared = 0
    for objects in objects_of(source.splits["train"].targets):
        height, width = objects.size
        box = (height // 4, width // 3, height // 2, width // 2)
        assert objects.segments is not None
        before = crop(to_dense(objects.segments, objects.size), *box)
        after = to_dense(crop_segments(objects.segments, objects.size, box), box[2:])
        differences = (before != after).sum((1, 2))
        assert (differences <= 2 + 0.02 * before.sum((1, 2))).all()
        compared += int(before.any(2).any(1).sum())
    assert compared > 20
