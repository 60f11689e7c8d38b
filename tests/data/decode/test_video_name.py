"""Names of videos with fragments."""

from __future__ import annotations

from pathlib import Path

import pytest

from convatlas.data.decode.video_name import VideoName
from convatlas.errors import DataError


@pytest.mark.parametrize(
    ("text", "path", "start", "end", "fps"),
    [
        ("film.mp4", "film.mp4", 0, None, None),
        ("film.mp4#t=1.5,4", "film.mp4", 1.5, 4, None),
        ("film.mp4#t=2", "film.mp4", 2, None, None),
        ("film.mp4#t=,4", "film.mp4", 0, 4, None),
        ("film.mp4#t=npt:1:02,1:00:03.5", "film.mp4", 62, 3603.5, None),
        ("film.mp4#t=3s,4s", "film.mp4", 3, 4, None),
        ("a#b.mp4", "a#b.mp4", 0, None, None),
        ("a#t=1/film.mp4", "a#t=1/film.mp4", 0, None, None),
        ("a#1.mp4#t=1", "a#1.mp4", 1, None, None),
        ("frames#fps=10", "frames", 0, None, 10),
        ("frames#fps=12.5&t=1,2", "frames", 1, 2, 12.5),
        ("-film with blanks.mp4", "-film with blanks.mp4", 0, None, None),
        ("#t=1", "#t=1", 0, None, None),
    ],
)
def test_a_name_is_a_path_and_a_fragment(
    text: str, path: str, start: float, end: float | None, fps: float | None
) -> None:
    name = VideoName.parse(text)
    assert name == VideoName(path, start, end, fps)
    assert VideoName.parse(str(name)) == name


@pytest.mark.parametrize(
    "text",
    ["f.mp4#t=4,1", "f.mp4#t=1,1", "f.mp4#t=", "f.mp4#t=,", "f.mp4#t=x", "f.mp4#t=-1", "f.mp4#t=nan", "f.mp4#t=1&u=2",
     "f#fps=0", "f#fps=nan", "f#fps=", "f#fps=-3", "f#fps=1e999"],
)  # fmt: skip
def test_a_wrong_fragment_is_an_error_with_the_form(text: str) -> None:
    with pytest.raises(DataError, match="START,END in seconds") as caught:
        VideoName.parse(text)
    assert str(caught.value).startswith(text)


def test_a_file_under_the_whole_text_wins(tmp_path: Path) -> None:
    path = tmp_path / "film#t=1"
    path.write_bytes(b"")
    assert VideoName.parse(path).path == str(path)
    assert VideoName.parse(f"{path}#t=2") == VideoName(str(path), 2)
