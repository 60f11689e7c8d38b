"""Names of images: files, folders, glob patterns, URLs and standard input."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from convatlas.errors import DataError
from convatlas.inference.inputs import expand_inputs
from convatlas.inference.predict import EncodedImage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.jpg", "deep/c.png", "deep/.hidden.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_folders_are_searched_recursively(folder: Path) -> None:
    inputs = expand_inputs([str(folder)])
    assert inputs.images == [folder / "a.jpg", folder / "b.png", folder / "deep/c.png"]
    assert inputs.count == 3


def test_patterns_match_files_in_order(folder: Path) -> None:
    inputs = expand_inputs([f"{folder}/*.*", f"{folder}/**/c.png"])
    assert inputs.images == [folder / name for name in ("a.jpg", "b.png", "notes.txt", "deep/c.png")]


def test_missing_files_and_patterns_without_a_match_stay(folder: Path) -> None:
    assert expand_inputs(["no.png", f"{folder}/*.gif"]).images == [Path("no.png"), folder / "*.gif"]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(folder: Path) -> None:
    (folder / "[a].png").write_bytes(b"x")
    assert expand_inputs([f"{folder}/[a].png"]).images == [folder / "[a].png"]


def test_a_folder_without_images_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="empty: no images in this folder"):
        expand_inputs([str(folder / "empty")])


def test_urls_need_permission() -> None:
    url = "https://example.org/x.png"
    assert expand_inputs([url], fetch=True).images == [url]
    with pytest.raises(DataError, match=r"example\.org/x\.png: images are downloaded only with --fetch"):
        expand_inputs([url])


def test_standard_input_has_names() -> None:
    inputs = expand_inputs(["-"], stdin=io.BytesIO(b"a.png\n\n b c.png \nlast.png"))
    assert inputs.count is None
    assert list(inputs.images) == [Path("a.png"), Path("b c.png"), Path("last.png")]
    assert list(expand_inputs(["-"], stdin=io.BytesIO(b"")).images) == []


@pytest.mark.parametrize(
    "data", [b"\x89PNG\r\n\x1a\n rest", b"\xff\xd8\xff more\nlines", b"P5\n2 2\n255\nabcd", b"a\0b"]
)
def test_standard_input_is_an_image(data: bytes) -> None:
    (image,) = expand_inputs(["-"], stdin=io.BytesIO(data)).images
    assert image == EncodedImage("standard input", data)
