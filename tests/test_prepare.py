"""Pictures are decoded once, kept in a file of the cache, and are the same from there, from memory and anew."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from convatlas.data import prepare
from convatlas.data.images import Dataset
from convatlas.data.sources import find
from convatlas.errors import DataError
from convatlas.preprocessing import Preprocessing

STEPS = Preprocessing(resize=12, crop=8).for_channels(3)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pictures"


def load(folder: Path, **how: object) -> Dataset:
    return find(folder).load(STEPS, **how)  # type: ignore[arg-type]


def same(a: Dataset, b: Dataset) -> bool:
    pairs = [(a.splits[split], b.splits[split]) for split in a.splits]
    return a.fingerprint() == b.fingerprint() and all(
        torch.equal(x.pixels, y.pixels) and torch.equal(x.labels, y.labels) and x.names == y.names for x, y in pairs
    )


@pytest.mark.parametrize("roomy", [False, True])
def test_the_second_time_nothing_is_decoded(
    pictures: Path, cache: Path, roomy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(pictures, roomy=roomy)
    assert len(list(cache.glob("*.raw"))) == len(list(cache.glob("*.json"))) == 2
    monkeypatch.setattr(prepare, "read_picture", lambda *_: pytest.fail("a picture was read"))
    second = load(pictures, roomy=roomy)
    assert same(first, second)
    assert first.train.pixels.shape[-1] == (12 if roomy else 8)
    if roomy:
        assert first.train.aspects is not None
        assert second.train.aspects is not None
        assert torch.equal(first.train.aspects, second.train.aspects)
        assert 0.4 < first.train.aspects.min() < 1 < first.train.aspects.max() < 2.5


def test_files_and_memory_hold_the_same(pictures: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = load(pictures)
    shutil.rmtree(cache)
    monkeypatch.setattr(prepare, "CACHE_LIMIT", 0)
    assert same(held, load(pictures))
    assert not list(cache.glob("*.raw"))


def test_a_moved_folder_is_known_by_its_contents_and_a_changed_picture_is_not(
    own_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load(own_pictures)
    moved = own_pictures.rename(tmp_path / "moved")
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "read_picture", lambda *_: pytest.fail("a picture was read"))
        after = load(moved)
    assert torch.equal(before.train.pixels, after.train.pixels)
    assert before.fingerprint() == after.fingerprint()
    a, b = sorted((moved / "train" / "ant").glob("*.png"))[:2]
    shutil.copy(a, b)
    assert load(moved).fingerprint() != before.fingerprint()


def test_broken_pictures_are_remembered_with_the_names_they_have_now(own_pictures: Path, tmp_path: Path) -> None:
    (own_pictures / "train" / "ant" / "00.jpg").write_bytes(b"no picture")
    first = load(own_pictures, max_broken=0.1)
    second = load(own_pictures.rename(tmp_path / "moved"), max_broken=0.1)
    assert len(first.train) == len(second.train) == 35
    assert first.broken[0].reason.endswith("not a picture")
    assert second.broken[0].path == str(tmp_path / "moved" / "train" / "ant" / "00.jpg")
    assert second.broken[0].reason.startswith(second.broken[0].path)


@pytest.mark.parametrize("damage", ["truncated", "no notes", "bad notes"])
def test_a_damaged_cache_is_made_anew(pictures: Path, cache: Path, damage: str) -> None:
    pixels = load(pictures).train.pixels.clone()  # the mapped ones end with their file
    for raw in cache.glob("*.raw"):
        notes = raw.with_suffix(".json")
        if damage == "truncated":
            with raw.open("r+b") as file:
                file.truncate(100)
        elif damage == "no notes":
            notes.unlink()
        else:
            notes.write_text("{}")
    assert torch.equal(load(pictures).train.pixels, pixels)


def test_a_full_disk_and_a_cache_that_cannot_be_written_leave_the_pictures_in_memory(
    pictures: Path, cache: Path, full_disk: Callable[[int], AbstractContextManager[None]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with full_disk(1000):
        held = load(pictures)
    assert not list(cache.glob("*"))
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("not a folder")
    assert same(held, load(pictures))


def test_what_was_not_used_for_longest_makes_room(
    pictures: Path, own_pictures: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(pictures)
    for path in cache.glob("*"):
        os.utime(path, (1, 1))
    old = {path.name for path in cache.glob("*")}
    (own_pictures / "train" / "ant" / "00.jpg").unlink()
    (own_pictures / "val" / "ant" / "00.jpg").unlink()
    monkeypatch.setattr(prepare, "CACHE_LIMIT", 3 * 36 * 3 * 8 * 8)
    load(own_pictures)
    kept = {path.name for path in cache.glob("*")}
    assert len(kept & old) == 2  # one split of the old ones still fits
    assert len(kept) == 6


def test_arrays_have_the_channels_of_the_network_or_are_refused(idx_folder: Path) -> None:
    with pytest.raises(DataError, match=r"has 1 channel\(s\), not 3; see --channels"):
        load(idx_folder)
