"""Masks: polygons, run lengths and pixels, exact as pycocotools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convatlas.tasks.detection import masks
from detected_objects import boxes, read, rectangle

SIZE = (37, 53)


@pytest.fixture(scope="module")
def pycocotools() -> Any:
    return pytest.importorskip("pycocotools.mask")


points = st.lists(st.floats(-10, 70, allow_nan=False, width=32), min_size=6, max_size=16).filter(
    lambda c: len(c) % 2 == 0
)


@given(polygons=st.lists(points, min_size=1, max_size=3))
def test_polygons_as_in_pycocotools(pycocotools: Any, polygons: list[list[float]]) -> None:
    expected = pycocotools.merge(pycocotools.frPyObjects(polygons, *SIZE))
    runs = masks.to_runs(polygons, SIZE)
    assert runs == {"size": list(SIZE), "counts": expected["counts"].decode()}
    assert torch.equal(masks.to_dense([polygons], SIZE)[0], torch.from_numpy(pycocotools.decode(expected)))
    assert masks.area(polygons, SIZE) == pycocotools.area(expected)
    x, y, width, height = pycocotools.toBbox(expected).tolist()
    assert masks.boxes([polygons], SIZE).tolist() == [[x, y, x + width, y + height]]


@given(seed=st.integers(0, 10_000), share=st.sampled_from((0.0, 0.02, 0.5, 1.0)))
def test_pixels_and_back(pycocotools: Any, seed: int, share: float) -> None:
    dense = torch.from_numpy(np.random.default_rng(seed).random((3, *SIZE)) < share)
    runs = masks.encode(dense)
    expected = pycocotools.encode(np.asfortranarray(dense.permute(1, 2, 0).numpy().astype(np.uint8)))
    assert [each["counts"] for each in runs] == [each["counts"].decode() for each in expected]
    assert torch.equal(masks.to_dense(runs, SIZE), dense.byte())


def test_uncompressed_run_lengths() -> None:
    plain = {"size": [2, 3], "counts": [1, 2, 3]}
    assert masks.to_dense([plain], (2, 3)).tolist() == [[[0, 1, 0], [1, 0, 0]]]
    assert masks.to_runs(plain, (2, 3))["counts"] == masks.encode(torch.tensor([[[0, 1, 0], [1, 0, 0]]]))[0]["counts"]


def test_no_masks() -> None:
    assert masks.encode(torch.zeros(0, *SIZE)) == ()
    assert masks.to_dense([], SIZE).shape == (0, *SIZE)
    assert masks.boxes([], SIZE).shape == (0, 4)


@pytest.mark.parametrize("segment", [[], [[1.0, 2.0]], [[1.0, 2.0, 3.0, 4.0]]])
def test_polygon_without_area(segment: list[list[float]]) -> None:
    assert masks.area(segment, SIZE) == 0
    assert masks.boxes([segment], SIZE).tolist() == [[0, 0, 0, 0]]


@given(
    seed=st.integers(0, 10_000), corner=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    share=st.sampled_from((0.0, 0.3, 1.0)), margin=st.integers(0, 9),
)  # fmt: skip
def test_mask_of_a_tile_in_the_image(seed: int, corner: tuple[int, int], share: float, margin: int) -> None:
    dense = torch.from_numpy(np.random.default_rng(seed).random((1, *SIZE)) < share)
    (x, y), (height, width) = corner, SIZE
    whole = torch.zeros(1, y + height + margin, x + width + margin, dtype=torch.uint8)
    whole[:, y : y + height, x : x + width] = dense
    size = (whole.shape[1], whole.shape[2])
    assert masks.shift(masks.encode(dense)[0], SIZE, corner, size) == masks.encode(whole)[0]


def test_overlaps_of_boxes_masks_and_crowds() -> None:
    own = boxes((0, 0, 10, 10), segments=(rectangle(0, 0, 10, 10),))
    truth = boxes(
        (0, 0, 20, 10), (5, 0, 10, 10), segments=(rectangle(0, 0, 20, 10), rectangle(5, 0, 10, 10)), labels=(0, 0)
    )
    assert masks.overlaps(own, truth, with_masks=False).tolist() == [[0.5, 0.5]]
    assert masks.overlaps(own, truth, with_masks=True).tolist() == [[0.5, 0.5]]
    crowd = boxes((0, 0, 20, 10), crowd=[True], segments=(rectangle(0, 0, 20, 10),))
    assert masks.overlaps(own, crowd, with_masks=False).tolist() == [[1.0]]
    assert masks.overlaps(own, crowd, with_masks=True).tolist() == [[1.0]]


def test_annotations_of_coco_as_in_pycocotools(shared_data: Path, pycocotools: Any) -> None:
    data = read(shared_data / "coco_tiny/annotations/instances_train50.json")
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    for annotation in data["annotations"]:
        size, segment = sizes[annotation["image_id"]], annotation["segmentation"]
        runs = pycocotools.frPyObjects(segment, *size)
        runs = pycocotools.merge(runs) if isinstance(runs, list) else runs
        assert masks.to_runs(segment, size)["counts"] == runs["counts"].decode()
