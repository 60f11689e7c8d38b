"""Groups: files of one recording stay in the same split, by a column, a pattern or the names of UCF101."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convatlas.data.open import open_data, open_for_evaluation, open_for_training
from convatlas.data.source import Source
from convatlas.data.splits import fold_numbers, split_groups
from convatlas.errors import ConvatlasError, DataError, InputError

SHARED = Path(__file__).parents[3] / "shared" / "data"
NUMBER = r"_(\d+)\.mp4$"


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Two classes with the same 6 people, 2 videos of each."""
    for label in ("jump", "run"):
        for person in range(6):
            for take in range(2):
                path = tmp_path / "films" / label / f"person{person}" / f"take{take}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    return tmp_path / "films"


def groups_of(source: Source, seed: int, fold: tuple[int, int] | None = None) -> dict[str, set[int]]:
    parts = source.with_val(seed=seed, val_share=0.34, fold=fold)
    return {split: set(part.groups.tolist()) for split, part in parts.items() if part.groups is not None}


@pytest.mark.parametrize("seed", range(3))
def test_a_pattern_keeps_recordings_in_one_split(films: Path, seed: int) -> None:
    source = open_for_training(films, val_share=0.34, group_pattern=r"(person\d)/")
    parts = groups_of(source, seed)
    assert (len(parts["train"]), len(parts["val"])) == (4, 2)
    assert parts["train"].isdisjoint(parts["val"])
    folds = [groups_of(source, seed, (number, 3))["val"] for number in (1, 2, 3)]
    assert sorted(group for fold in folds for group in fold) == list(range(6))
    assert source.notes == ("24 videos in 6 groups by their names",)
    again = open_data(source, group_pattern=r"(person\d)/")
    assert (groups_of(again, seed), again.notes) == (parts, source.notes)


def test_files_without_the_pattern_are_groups_of_their_own(films: Path) -> None:
    source = open_data(films, group_pattern=r"(person[01])/")
    groups = source.splits["train"].groups
    assert groups is not None
    assert len(groups.unique()) == 2 + 16
    assert source.notes == ("24 videos in 2 groups by their names, and 16 of no group",)


def test_patterns_group_images_and_take_the_place_of_a_column(tmp_path: Path) -> None:
    rows = ["file,label,group"]
    for label in "ab":
        for i in range(4):
            path = tmp_path / label / f"p{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full((4, 4, 3), 40 * i, np.uint8)).save(path)
            rows.append(f"{label}/p{i}.png,{label},{i // 2}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    for data in (tmp_path, tmp_path / "list.csv"):
        groups = open_data(data, group_pattern=r"p(\d)\.png").splits["train"].groups
        assert groups is not None
        assert torch.equal(groups.bincount(), torch.full((4,), 2))
    assert open_data(tmp_path).splits["train"].groups is None
    column = open_data(tmp_path / "list.csv").splits["train"].groups
    assert column is not None
    assert torch.equal(column.bincount(), torch.full((2,), 4))


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("(", "group_pattern must be a regular expression, got '('"),
        ("person", "must have a group in parentheses"),
        ("(nobody)", "group_pattern '(nobody)' matches none of 24 names, such as "),
        ("person(x?)", "matches none of 24 names"),
    ],
)
def test_patterns_that_are_wrong_are_one_line(films: Path, pattern: str, told: str) -> None:
    for open_it in (open_data, lambda data, **options: open_for_training(data, val_share=0.2, **options)):
        with pytest.raises(ConvatlasError) as error:
            open_it(films, group_pattern=pattern)
        assert told in str(error.value)
        assert "\n" not in str(error.value)


def test_arrays_have_no_names(films: Path) -> None:
    with pytest.raises(DataError, match="needs names of files, but the data is in memory"):
        open_data("digits", group_pattern="(a)")
    with pytest.raises(InputError):
        open_for_evaluation(films, group_pattern="(")
    assert open_for_evaluation(films, group_pattern="(nobody)").splits["train"].groups is None


def test_names_of_ucf101_are_known(tmp_path: Path) -> None:
    for label in ("Archery", "YoYo"):
        for group in range(1, 5):
            for clip in range(1, 4):
                path = tmp_path / label / f"v_{label}_g{group:02}_c{clip:02}.avi"
                path.parent.mkdir(exist_ok=True)
                path.touch()
    source = open_data(tmp_path)
    groups = source.splits["train"].groups
    assert groups is not None
    assert torch.equal(groups.bincount(), torch.full((8,), 3))
    assert "UCF101" in source.notes[0]
    (tmp_path / "YoYo" / "other.avi").touch()
    assert open_data(tmp_path).splits["train"].groups is None


@pytest.mark.parametrize("seed", range(3))
def test_groups_of_multilabel_images_stay_together(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(20).repeat_interleave(3)[torch.randperm(60, generator=generator)]
    labels = (torch.rand(60, 4, generator=generator) < 0.3).float()
    rest, part = split_groups(labels, groups, 0.25, seed=seed, where="data")
    assert set(groups[rest].tolist()).isdisjoint(groups[part].tolist())
    assert sorted([*rest.tolist(), *part.tolist()]) == list(range(60))
    assert labels[rest].any(0).all()
    assert labels[part].any(0).all()
    assert len(groups[part].unique()) in range(4, 9)
    folds = fold_numbers(labels, groups, 4, seed=seed, where="data")
    for group in range(20):
        assert len(folds[groups == group].unique()) == 1
    assert set(folds.tolist()) == {1, 2, 3, 4}
    with pytest.raises(DataError, match="every class needs at least 2 groups with different labels"):
        split_groups(labels[:3], torch.zeros(3, dtype=torch.int64), 0.25, seed=seed, where="data")


@pytest.mark.skipif(not (SHARED / "gestures_ego").is_dir(), reason="needs the shared data")
def test_numbers_of_gestures_stay_in_one_split() -> None:
    for data in (SHARED / "gestures_ego", SHARED / "gestures_ego" / "labels.csv"):
        source = open_for_training(data, val_share=0.2, group_pattern=NUMBER)
        parts = source.with_val(val_share=0.2)
        numbers = {split: {name.rpartition("_")[2] for name in part.names} for split, part in parts.items()}
        assert numbers["train"].isdisjoint(numbers["val"])
        assert len(numbers["train"] | numbers["val"]) == 13
        for part in parts.values():
            assert len(part.targets.tensor("label").unique()) == 11
