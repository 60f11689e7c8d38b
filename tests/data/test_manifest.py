"""A file is opened once when data is first prepared, and not at all while it is unchanged and its pixels are cached."""

from __future__ import annotations

import builtins
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convatlas.core.preprocessing import Preprocessing
from convatlas.data import manifest as manifests
from convatlas.data.dataset import Dataset
from convatlas.data.manifest import Manifest
from convatlas.data.open import open_data
from convatlas.errors import DataError

PREPROCESSING = Preprocessing(resize=12, crop=8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, where files that were just written are trusted."""
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(manifests, "RACY_NS", -(10**18))
    return tmp_path / "cache" / "manifests"


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each image file was opened."""
    counts: Counter[str] = Counter()
    real = builtins.open

    def counting(file: Any, *arguments: Any, **keywords: Any) -> Any:
        if str(file).endswith((".jpg", ".png", ".npy")):
            counts[str(file)] += 1
        return real(file, *arguments, **keywords)

    monkeypatch.setattr(builtins, "open", counting)
    monkeypatch.setattr("io.open", counting)  # pathlib's
    return counts


def load(folder: Path, resolution: int = 8, **options: Any) -> Dataset:
    source = open_data(folder)
    preprocessing = PREPROCESSING.for_channels(source.channels).for_resolution(resolution)
    return source.load(preprocessing, val_share=0.2, **options)


def test_a_file_is_opened_once_at_first_and_not_at_all_later(images: Path, opens: Counter[str]) -> None:
    first = load(images)
    assert len(opens) == 72
    assert set(opens.values()) == {1}
    opens.clear()
    again = load(images)
    assert not opens
    assert again.fingerprint() == first.fingerprint()
    load(images, resolution=16)  # other pixels
    assert set(opens.values()) == {1}


def test_files_beyond_the_memory_limit_are_opened_twice_at_first(
    images: Path, opens: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "CONTENTS_LIMIT", 0)
    first = load(images)
    assert set(opens.values()) == {2}
    opens.clear()
    assert load(images).fingerprint() == first.fingerprint()
    assert not opens


def touch(file: Path) -> None:
    os.utime(file, (1, 1))


def same_size_and_time(file: Path) -> None:
    status = file.stat()
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(("change", "changed"), [(touch, False), (same_size_and_time, True)])
def test_a_file_with_another_time_is_hashed_again(
    own_images: Path, opens: Counter[str], change: Callable[[Path], None], changed: bool
) -> None:
    first = load(own_images, max_unreadable=0.1)
    file = own_images / "train" / "ant" / "00.jpg"
    change(file)
    opens.clear()
    second = load(own_images, max_unreadable=0.1)
    assert opens[str(file)] == 1
    if not changed:
        assert set(opens) == {str(file)}
    assert (second.fingerprint() != first.fingerprint()) == changed


def test_a_moved_folder_is_hashed_again_and_its_pixels_are_cached(
    own_images: Path, tmp_path: Path, opens: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(own_images)
    moved = own_images.rename(tmp_path / "moved")
    opens.clear()
    monkeypatch.setattr("convatlas.data.stores.load_image", lambda *_, **__: pytest.fail("an image was decoded"))
    assert load(moved).fingerprint() == first.fingerprint()
    assert set(opens.values()) == {1}


def test_files_written_just_before_are_not_trusted(
    own_images: Path, opens: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "RACY_NS", 3600 * 10**9)
    load(own_images)
    opens.clear()
    load(own_images)
    assert set(opens.values()) == {1}
    assert len(opens) == 72


@pytest.mark.parametrize("damage", [b"", b"text", None])
def test_a_damaged_manifest_is_read_anew(
    own_images: Path, cache: Path, opens: Counter[str], damage: bytes | None
) -> None:
    first = load(own_images)
    (file,) = cache.glob("*.npz")
    file.write_bytes(file.read_bytes()[:-100] if damage is None else damage)
    opens.clear()
    assert load(own_images).fingerprint() == first.fingerprint()
    assert set(opens.values()) == {1}
    opens.clear()
    load(own_images)
    assert not opens


def test_a_manifest_of_another_version_is_not_read(
    own_images: Path, opens: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(own_images)
    opens.clear()
    monkeypatch.setattr(manifests, "VERSION", manifests.VERSION + 1)
    load(own_images)
    assert set(opens.values()) == {1}


def test_unreadable_and_missing_files_are_reported_and_the_others_known(own_images: Path) -> None:
    (own_images / "train" / "ant" / "00.jpg").write_bytes(b"not an image")
    (own_images / "train" / "ant" / "01.png").unlink()
    (own_images / "train" / "ant" / "01.png").symlink_to("nowhere.png")
    names = [str(own_images / "train" / "ant" / name) for name in ("00.jpg", "01.png", "02.jpg")]
    for _ in range(2):
        info = Manifest("here").look_up(names)
        assert info.channels.tolist() == [0, 0, 3]
        assert info.unopened == {1: "dangling link to nowhere.png"}
        assert info.digests[1].sum() == 0
        assert info.digests[[0, 2]].any(1).all()


def test_a_file_that_disappears_while_it_is_read_is_unreadable(
    own_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_data(own_images)
    file = own_images / "train" / "bee" / "02.jpg"
    file.unlink()
    data = source.load(PREPROCESSING.for_channels(3), max_unreadable=0.1)
    assert [image.path for image in data.unreadable] == [str(file)]
    assert data.unreadable[0].reason.endswith("no such file")
    assert len(data.train) == 35
    with pytest.raises(DataError, match=r"1 of 72 images are unreadable"):
        source.load(PREPROCESSING.for_channels(3))


def test_relative_and_absolute_paths_are_the_same_files(
    own_images: Path, opens: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(own_images)
    opens.clear()
    monkeypatch.chdir(own_images.parent)
    load(Path(own_images.name))
    assert not opens


def test_a_cache_that_cannot_be_written_changes_nothing(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(images)
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "file"))
    assert load(images).fingerprint() == first.fingerprint()


def test_statistics_of_unchanged_files_are_cached(tmp_path: Path, opens: Counter[str]) -> None:
    random = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(4):
            values = random.integers(0, 65536, (9, 9)).astype(np.uint16)
            Image.fromarray(values).save(tmp_path / "data" / label / f"{i}.png")
    opens.clear()
    first = open_data(tmp_path / "data").statistics(1)
    assert set(opens.values()) == {1}
    opens.clear()
    assert open_data(tmp_path / "data").statistics(1) == first is not None
    assert not opens
    shutil.copy(tmp_path / "data" / "a" / "0.png", tmp_path / "data" / "a" / "1.png")
    assert open_data(tmp_path / "data").statistics(1) != first
