"""Names of images: files, folders, glob patterns, URLs and standard input."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convatlas.errors import DataError
from convatlas.inference.contents import EncodedFile
from convatlas.inference.inputs import expand_inputs


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
    assert inputs.items == [folder / "a.jpg", folder / "b.png", folder / "deep/c.png"]
    assert inputs.count == 3


def test_patterns_match_files_in_order(folder: Path) -> None:
    inputs = expand_inputs([f"{folder}/*.*", f"{folder}/**/c.png"])
    assert inputs.items == [folder / name for name in ("a.jpg", "b.png", "notes.txt", "deep/c.png")]


def test_missing_files_stay(folder: Path) -> None:
    assert expand_inputs(["no.png", f"{folder}/[q].png"]).items == [Path("no.png"), folder / "[q].png"]


@pytest.mark.parametrize("pattern", ["*.gif", "?.gif", "[0-9]*.gif"])
def test_a_pattern_without_a_match_is_refused(folder: Path, pattern: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"{pattern}: nothing matches")):
        expand_inputs(["no.png", f"{folder}/{pattern}"])


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(folder: Path) -> None:
    (folder / "[a].png").write_bytes(b"x")
    assert expand_inputs([f"{folder}/[a].png"]).items == [folder / "[a].png"]


def test_a_folder_without_images_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="empty: no images in this folder"):
        expand_inputs([str(folder / "empty")])


def test_urls_need_permission() -> None:
    url = "https://example.org/x.png"
    assert expand_inputs([url], fetch=True).items == [url]
    with pytest.raises(DataError, match=r"example\.org/x\.png: images are downloaded only with --fetch"):
        expand_inputs([url])


def names_in(data: bytes) -> list[Path | str | EncodedFile]:
    inputs = expand_inputs(["-"], stdin=io.BytesIO(data))
    images = list(inputs.items)
    is_image = any(isinstance(image, EncodedFile) for image in images)
    assert inputs.count == (1 if is_image else None)  # known before an engine is chosen
    return images


def test_standard_input_has_names() -> None:
    assert names_in(b"a.png\n\n b c.png \nlast.png") == [Path("a.png"), Path(" b c.png "), Path("last.png")]
    assert names_in(b"a.png\r\nb.png\r\n \r\n") == [Path("a.png"), Path("b.png")]
    assert names_in(b"caf\xe9.png\n") == [Path("caf\udce9.png")]
    assert names_in(b"") == []
    urls = [b"https://example.org/a.png", b"http://example.org/b.png"]
    assert names_in(b"\n".join(urls)) == names_in(b"\0".join([*urls, b""])) == [url.decode() for url in urls]


FIRST_NAMES = (
    "P5150023.JPG", "P6 x.jpg", "P5", "P5 2 2 cats.jpg", "BM", "BMW.jpg", "GIF89a.gif", "GIF87a_photo of 1987.gif",
    "RIFF.webp", "RIFF1234WEB.png", "II.tif", "MM*.tif", "qoif.qoi", "NUMPY.npy", "a",
)  # fmt: skip


@pytest.mark.parametrize("first", FIRST_NAMES)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\0"])
def test_names_that_begin_like_images_are_names(first: str, end: str) -> None:
    names = [first, "b.png", "P6", "c d.png"]
    assert names_in(end.join([*names, ""]).encode()) == list(map(Path, names))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
def test_lists_may_have_a_byte_order_mark(encoding: str) -> None:
    mark = "\ufeff" if encoding.endswith("-be") else ""
    data = f"{mark}日本.png\r\nb c.png\r\n".encode(encoding)
    assert names_in(data) == [Path("日本.png"), Path("b c.png")]


def test_names_in_a_list_with_zero_bytes_may_have_line_breaks() -> None:
    names = ["a.png", "new\nline.png", "tab\t.png"]
    for mark in ("", "\ufeff"):
        assert names_in((mark + "\0".join([*names, ""])).encode()) == list(map(Path, names))


def test_closed_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(DataError, match="standard input: is closed"):
        expand_inputs(["-"])


def encoded(kind: str, shape: tuple[int, int] = (6, 5)) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    file = io.BytesIO()
    if kind == "npy":
        np.save(file, values)
    else:
        Image.fromarray(values).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        *map(encoded, ("png", "jpeg", "bmp", "gif", "tiff", "webp", "ppm", "npy", "avif", "ico", "jpeg2000")),
        encoded("bmp", (4, 2570)),  # its size has a line break in it
        b"P5\n2 2\n255\nabcd", b"P6 # by hand\n1 1\n255\nabc", b"P5 2 2 255 abcd",
        b"BM\n\x01\0\0\0\0\0\0", b"RIFF\n\x0a\x0a\x0aWEBPVP8 ", b"\xff\xd8\xff more\nlines", b"a\0b",
        b"\x1f\x8b\x08 more\nlines", b"\x7fELF\x02\nlines", b"\x01",
    ],
    ids=lambda data: repr(data[:6]),
)  # fmt: skip
def test_standard_input_is_an_image(data: bytes) -> None:
    assert names_in(data) == [EncodedFile("standard input", data)]


def test_what_a_folder_or_a_pattern_leaves_out_is_counted(folder: Path) -> None:
    (folder / "x.heics").write_bytes(b"x")
    assert {reason: len(files) for reason, files in expand_inputs([str(folder)]).ignored.reasons.items()} == {
        ".txt": 1, ".heics": 1, "hidden": 1,
    }  # fmt: skip
    pattern = expand_inputs([f"{folder}/*"])
    assert dict(pattern.ignored.reasons) == {"folders": (str(folder / "deep"), str(folder / "empty"))}


def test_a_pattern_finds_links_that_lead_nowhere(folder: Path) -> None:
    (folder / "gone.png").symlink_to("nowhere.png")
    assert folder / "gone.png" in list(expand_inputs([f"{folder}/*.png"]).items)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "[", "[]["])
def test_impossible_names_stay(name: str) -> None:
    assert expand_inputs([name]).items == [Path(name)]
