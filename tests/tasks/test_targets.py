"""Targets and batches with tensors and with lists of one value for each image, as detectors have them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from convatlas.tasks.targets import Batch, Targets, concatenate


def objects(*counts: int) -> Targets:
    """Return targets with a number of boxes that differs from image to image, and a class number of the image."""
    generator = torch.Generator().manual_seed(sum(counts))
    return Targets(
        boxes=[torch.rand(count, 4, generator=generator) for count in counts],
        names=[f"image {i}" for i in range(len(counts))],
        label=torch.arange(len(counts)) % 3,
    )


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, str):
        return bool(left == right)
    return len(left) == len(right) and all(map(equal, left, right))


def same(left: Targets, right: Targets) -> bool:
    return list(left) == list(right) and all(equal(left[name], right[name]) for name in left)


def test_targets_are_a_mapping_whose_length_is_the_number_of_images() -> None:
    targets = objects(2, 0, 3)
    assert len(targets) == 3
    assert list(targets) == ["boxes", "names", "label"]
    assert "boxes" in targets
    assert "mixed" not in targets
    assert targets.tensor("label").tolist() == [0, 1, 2]
    with pytest.raises(TypeError, match="column 'boxes' is a list with one value for each image, not a tensor"):
        targets.tensor("boxes")
    with pytest.raises(KeyError):
        targets["mixed"]


@pytest.mark.parametrize("columns", [{}, {"a": torch.zeros(3), "b": torch.zeros(2)}, {"a": torch.zeros(3), "b": [1]}])
def test_columns_must_have_one_length(columns: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="columns must have one length"):
        Targets(**columns)


def test_take_returns_rows_in_the_order_of_the_indices() -> None:
    targets = objects(2, 0, 3, 1)
    taken = targets.take(torch.tensor([3, 0, 3]))
    assert taken.tensor("label").tolist() == [0, 0, 0]
    assert taken["names"] == ["image 3", "image 0", "image 3"]
    assert [len(boxes) for boxes in taken["boxes"]] == [1, 2, 1]
    assert equal(taken["boxes"], [targets["boxes"][i] for i in (3, 0, 3)])
    assert len(targets.take(torch.tensor([], dtype=torch.int64))) == 0


def test_with_columns_adds_and_replaces() -> None:
    targets = objects(1, 2)
    added = targets.with_columns(mixed=torch.ones(2, 3), names=["a", "b"])
    assert list(added) == ["boxes", "names", "label", "mixed"]
    assert added["names"] == ["a", "b"]
    assert targets["names"] == ["image 0", "image 1"]
    with pytest.raises(ValueError, match="one length"):
        targets.with_columns(mixed=torch.ones(3))


def test_to_moves_every_tensor_and_keeps_other_values() -> None:
    moved = objects(1, 2).to("meta")
    assert moved.tensor("label").device.type == "meta"
    assert [boxes.device.type for boxes in moved["boxes"]] == ["meta", "meta"]
    assert moved["names"] == ["image 0", "image 1"]
    assert same(objects(1, 2).to("cpu"), objects(1, 2))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 12))
def test_split_cuts_as_tensor_split_and_concatenate_undoes_it(counts: list[int], parts: int) -> None:
    targets = objects(*counts)
    pieces = targets.split(parts)
    assert [len(piece) for piece in pieces] == [len(piece) for piece in torch.zeros(len(counts)).tensor_split(parts)]
    assert same(concatenate(pieces), targets)
    assert all(list(piece) == list(targets) for piece in pieces)


def test_concatenate_appends_rows() -> None:
    first, second = objects(1, 2), objects(0, 4, 1)
    both = concatenate([first, second])
    assert len(both) == 5
    assert both.tensor("label").tolist() == [0, 1, 0, 1, 2]
    assert equal(both["boxes"], [*first["boxes"], *second["boxes"]])
    assert same(concatenate([first]), first)


def test_bytes_depend_on_every_value_and_not_on_the_order_of_the_columns() -> None:
    targets = objects(1, 2)
    assert targets.to_bytes() == objects(1, 2).to_bytes()
    assert Targets(a=torch.ones(2), b=[1, 2]).to_bytes() == Targets(b=[1, 2], a=torch.ones(2)).to_bytes()
    assert targets.to_bytes() != targets.with_columns(label=torch.tensor([0, 2])).to_bytes()
    assert targets.to_bytes() != targets.with_columns(names=["image 0", "image 2"]).to_bytes()
    other = [targets["boxes"][0], targets["boxes"][1] + 1]
    assert targets.to_bytes() != targets.with_columns(boxes=other).to_bytes()


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=7), st.integers(1, 9))
def test_batches_of_images_of_different_sizes_are_split_into_micro_batches(
    sizes: list[tuple[int, int]], parts: int
) -> None:
    inputs = [torch.full((3, height, width), float(i)) for i, (height, width) in enumerate(sizes)]
    batch = Batch(inputs, objects(*range(len(sizes))), torch.arange(len(sizes)), len(sizes))
    pieces = batch.split(parts)
    assert len(pieces) == parts
    assert equal([image for images, _ in pieces for image in images], inputs)
    assert [len(images) for images, _ in pieces] == [len(targets) for _, targets in pieces]
    assert same(concatenate([targets for _, targets in pieces]), batch.targets)


@given(st.integers(1, 9), st.integers(1, 12))
def test_batches_of_one_size_are_split_into_micro_batches(count: int, parts: int) -> None:
    inputs = torch.rand(count, 3, 4, 5)
    batch = Batch(inputs, Targets(label=torch.arange(count)), torch.arange(count), count)
    pieces = batch.split(parts)
    assert len(pieces) == parts
    assert torch.equal(torch.cat([images for images, _ in pieces]), inputs)
    assert torch.equal(torch.cat([targets.tensor("label") for _, targets in pieces]), torch.arange(count))
    assert [len(images) for images, _ in pieces] == [len(targets) for _, targets in pieces]
    assert batch.device.type == "cpu"
