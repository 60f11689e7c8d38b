"""Frames of videos in the pixel cache: entries that grow, no room in the middle, damaged and long videos."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from convatlas.core.clips import ClipSampling
from convatlas.core.preprocessing import Preprocessing
from convatlas.data import frame_reader, pixel_cache, prepare
from convatlas.data.dataset import Dataset
from convatlas.data.open import open_data
from convatlas.data.pixel_cache import PixelWriter
from convatlas.data.stores import VideoStore
from convatlas.data.videos import Videos
from video_files import moving_square, write_frames

STEPS = Preprocessing(
    resize=12, crop=8, mean=(0.4,) * 3, std=(0.2,) * 3, sampling=ClipSampling(frames=4, rate=25, clips=2)
)
FRAME_BYTES = 3 * 8 * 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of three folders of 4 to 14 frames; in one of the folders a frame is damaged."""
    root = tmp_path_factory.mktemp("frames") / "data"
    for label in ("a", "b"):
        for i, count in enumerate((4, 9, 14)):
            write_frames(root / label / f"take #{i} -1", moving_square(count, 16, 20, seed=i))
    damaged = root / "a" / "take #1 -1" / "frame_6.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def load(folder: Path) -> Dataset:
    return open_data(folder, reads="clips").load(STEPS, for_random_clips=True, max_unreadable=0.5)


def videos_of(data: Dataset) -> Videos:
    assert isinstance(data.train.pixels, Videos)
    return data.train.pixels


def assert_same(found: Dataset, expected: Dataset) -> None:
    assert found.fingerprint() == expected.fingerprint()
    assert found.unreadable == expected.unreadable
    assert videos_of(found).counts == videos_of(expected).counts
    for i in range(len(found.train)):
        assert torch.equal(videos_of(found)[i], videos_of(expected)[i])


def is_streamed(data: Dataset) -> bool:
    return all(isinstance(video, str) for video in videos_of(data).videos)


def test_long_videos_are_written_in_blocks(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load(folder)
    assert sorted(videos_of(expected).counts) == [4, 4, 9, 14, 14]
    (unreadable,) = expected.unreadable
    assert "frame_6.png" in unreadable.reason
    monkeypatch.setenv("CONVATLAS_CACHE", str(cache / "other"))
    monkeypatch.setattr(frame_reader, "KEPT_BYTES", 1)
    monkeypatch.setattr(frame_reader, "BLOCK_FRAMES", 3)
    found = load(folder)
    assert not is_streamed(found)
    assert_same(found, expected)
    (raw,) = (cache / "other").rglob("*.raw")
    assert raw.stat().st_size == (4 + 14 + 4 + 9 + 14) * FRAME_BYTES


@pytest.mark.parametrize("full", ["limit", "disk"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_without_room_in_the_middle_frames_go_on_in_memory_or_are_streamed(
    folder: Path, cache: Path, full: str, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(folder)
    monkeypatch.setenv("CONVATLAS_CACHE", str(cache / "other"))
    monkeypatch.setattr(pixel_cache, "CHUNK", 5 * FRAME_BYTES)
    if full == "limit":
        monkeypatch.setattr(pixel_cache, "CACHE_LIMIT", 20 * FRAME_BYTES)
    else:
        reserve = pixel_cache._reserve

        def fail(file: int, start: int, size: int) -> None:
            if start >= 20 * FRAME_BYTES:
                raise OSError(errno.ENOSPC, "No space left on device")
            reserve(file, start, size)

        monkeypatch.setattr(pixel_cache, "_reserve", fail)
    monkeypatch.setattr(pixel_cache, "MEMORY_LIMIT", 100 * FRAME_BYTES if in_memory else 30 * FRAME_BYTES)
    found = load(folder)
    assert is_streamed(found) is not in_memory
    assert_same(found, expected)
    left = [file.name for file in (cache / "other" / "images").iterdir()]
    assert [name for name in left if not name.endswith(".json")] == []


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_writer_in_memory_forgets_what_is_rewound(dtype: torch.dtype) -> None:
    writer = PixelWriter(0, dtype)
    first, second = torch.arange(4).to(dtype), torch.arange(6).to(dtype)
    assert writer.write(first)
    written = writer.written
    assert writer.write(second)
    writer.rewind(written)
    assert writer.write(second + 1)
    assert writer.finish((12,)).tolist() == [0, 1, 2, 3, 1, 2, 3, 4, 5, 6, 0, 0]
    assert PixelWriter(0, dtype).finish((0, 3)).shape == (0, 3)


def test_an_interruption_leaves_no_file(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(VideoStore, "load", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(folder)
    assert list(cache.iterdir()) == []
    assert not is_streamed(load(folder))


def test_another_process_may_write_the_same_entry(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry of another process appears while this one decodes; both are complete, the later one stays."""
    decode = prepare._decode
    calls = []

    def decode_twice(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            monkeypatch.setattr("convatlas.system.cache.os.getpid", lambda: 1)
            other = load(folder)
            monkeypatch.undo()
            monkeypatch.setenv("CONVATLAS_CACHE", str(cache.parent))
            assert not is_streamed(other)
        return decode(*arguments)

    monkeypatch.setattr(prepare, "_decode", decode_twice)
    assert_same(load(folder), load(folder))
    assert sorted(file.suffix for file in cache.iterdir()) == [".json", ".raw"]


def test_a_video_as_long_as_a_clip_has_one_place(folder: Path) -> None:
    videos = videos_of(load(folder))
    shortest = torch.tensor([i for i, count in enumerate(videos.counts) if count == 4])
    for epoch in range(20):
        clips = videos.at_random(0, epoch)[shortest]
        assert all(torch.equal(clip, videos[number]) for clip, number in zip(clips, shortest.tolist(), strict=True))
