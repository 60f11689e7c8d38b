"""Data sets and weights of experiments: from a folder, by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from convatlas.errors import DataError, WeightsError
from convatlas.experiments.materials import Images, Materials


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a data set of four images of 8 x 8 px, with val and without test, and a file of weights."""
    x = np.arange(4, dtype=np.uint8)[:, None, None] * np.ones((8, 8), np.uint8)
    np.savez(tmp_path / "tiny.npz", x=x, y=[0, 1, 0, 1], x_val=x + 10, y_val=[1, 0, 1, 0])
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "net-1.pth").touch()
    return tmp_path


def test_a_data_set_is_read_at_a_size_and_val_stands_in_for_test(folder: Path) -> None:
    materials = Materials(folder)
    train, test = (materials.images("tiny", split, 4) for split in ("train", "test"))
    assert train.pixels.shape == test.pixels.shape == (4, 1, 4, 4)
    assert train.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert test.pixels[:, 0, 0, 0].tolist() == [10, 11, 12, 13]
    assert test.labels.tolist() == [1, 0, 1, 0]
    with pytest.raises(DataError, match=r"tiny.npz: must have a val split, got train, test$"):
        materials.images("tiny", "val", 4)


def test_weights_are_found_by_the_beginning_of_their_name(folder: Path) -> None:
    assert Materials(folder).weights("net") == folder / "weights" / "net-1.pth"
    with pytest.raises(WeightsError, match=r"weights: must have a file of weights other\*; give its folder"):
        Materials(folder).weights("other")
    with pytest.raises(DataError, match="nowhere: no such folder"):
        Materials(folder / "nowhere")


def test_a_subset_has_equally_many_images_of_each_class() -> None:
    images = Images(torch.arange(30).view(30, 1, 1, 1), torch.arange(30) % 3, ("a", "b", "c"))
    first, same, other = (images.subset(8, seed) for seed in (0, 0, 1))
    assert first.labels.bincount().tolist() == [3, 3, 2]
    assert torch.equal(first.labels, first.pixels.flatten() % 3)
    assert torch.equal(first.pixels, same.pixels)
    assert not torch.equal(first.pixels, other.pixels)
    with pytest.raises(DataError, match="subset: class a has 10 images, got 11"):
        images.subset(33, 0)
