"""Folders of frames and animated images as videos."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convatlas.data.decode.video import open_video
from convatlas.data.decode.video_info import Frame
from convatlas.errors import DataError
from video_files import moving_square, write_frames, write_gif

FRAMES = moving_square(12, 20, 30)


def read(name: object, **how: Any) -> list[Frame]:
    with open_video(str(name), **how) as video:
        return list(video.frames())


def test_a_folder_of_frames_is_in_natural_order_at_25_per_second(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "film", FRAMES)
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no frame")
    frames = read(folder)
    np.testing.assert_array_equal(np.stack([frame.rgb for frame in frames]), FRAMES)
    assert [frame.time for frame in frames] == pytest.approx([number / 25 for number in range(12)])
    with open_video(f"{folder}#fps=10&t=0.2,1") as video:
        info = video.info
        assert (info.codec, info.height, info.width, info.rate, info.frames) == ("frames", 20, 30, 10, 12)
        assert info.seconds == pytest.approx(1.2)
        sampled = list(video.sampled(5, first=1))
    np.testing.assert_array_equal(np.stack(sampled), FRAMES[[4, 6, 8]])


def test_frames_of_other_kinds_become_rgb(tmp_path: Path) -> None:
    folder = tmp_path / "film"
    folder.mkdir()
    Image.fromarray(FRAMES[0][..., 0]).save(folder / "a1.png")
    Image.fromarray(FRAMES[1]).save(folder / "a2.bmp")
    Image.fromarray(FRAMES[2][..., 0].astype(np.uint16) * 257).save(folder / "a3.png")
    first, second, third = (frame.rgb for frame in read(folder))
    np.testing.assert_array_equal(first, FRAMES[0][..., :1].repeat(3, 2))
    np.testing.assert_array_equal(second, FRAMES[1])
    np.testing.assert_array_equal(third, FRAMES[2][..., :1].repeat(3, 2))


def test_a_folder_without_frames_and_frames_of_two_sizes_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder without frames"):
        read(tmp_path)
    write_frames(tmp_path, FRAMES[:2])
    Image.fromarray(FRAMES[2][:10]).save(tmp_path / "frame_3.png")
    with pytest.raises(DataError, match=r"frame_3.png: .* must have one size, got 30 x 10 after 2 of 30 x 20"):
        read(tmp_path)
    (tmp_path / "frame_3.png").write_bytes((tmp_path / "frame_2.png").read_bytes()[:100])
    with pytest.raises(DataError, match=r"frame_3\.png: "):
        read(tmp_path)


def test_delays_of_a_gif_are_those_that_browsers_use(tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = write_gif(tmp_path / "a.gif", FRAMES[:5], seconds=[0.05, 0, 0.02, 0.3, 0.2])
    frames = read(path)
    np.testing.assert_array_equal(np.stack([frame.rgb for frame in frames]), FRAMES[:5])
    assert [frame.time for frame in frames] == pytest.approx([0, 0.05, 0.15, 0.17, 0.47])
    with open_video("a.gif", data=path.read_bytes()) as video:
        assert video.info.seconds == pytest.approx(0.67)
        assert video.info.codec == "gif"


@pytest.mark.parametrize("kind", ["webp", "png"])
def test_animated_images_have_transparency_on_white(tmp_path: Path, kind: str) -> None:
    alpha = np.full((*FRAMES.shape[:3], 1), 255, np.uint8)
    alpha[:, :5] = 0
    images = [Image.fromarray(frame) for frame in np.concatenate([FRAMES, alpha], 3)]
    file = io.BytesIO()
    how = {"lossless": True} if kind == "webp" else {}
    images[0].save(file, kind, save_all=True, append_images=images[1:], duration=[40] * 11 + [0], **how)
    (tmp_path / "film").write_bytes(file.getvalue())
    expected = FRAMES.copy()
    expected[:, :5] = 255
    for frames in (read(tmp_path / "film"), read("film", data=file.getvalue())):
        np.testing.assert_array_equal(np.stack([frame.rgb for frame in frames]), expected)
        assert [frame.time for frame in frames] == pytest.approx([number * 0.04 for number in range(12)])
    with open_video(f"{tmp_path / 'film'}#t=0.2") as video:
        assert video.info.seconds == pytest.approx(0.54)
        np.testing.assert_array_equal(np.stack(list(video.sampled(25, count=3))), expected[5:8])


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg", "bmp", "tiff"])
def test_an_image_is_not_a_video(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("av")
    path = tmp_path / f"photo.{kind}"
    Image.fromarray(FRAMES[0]).save(path)
    for how in ({}, {"data": path.read_bytes()}):
        with pytest.raises(DataError, match="is an image and not a video"):
            read(path, **how)


def test_a_frame_rate_is_only_for_folders(tmp_path: Path) -> None:
    path = write_gif(tmp_path / "a.gif", FRAMES)
    with pytest.raises(DataError, match="fps is for folders of frames"):
        read(f"{path}#fps=10")
