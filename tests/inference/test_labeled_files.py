"""Labeled images: labels.csv of any kind gives labels or one line that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from convatlas.errors import DataError
from convatlas.inference.labeled_files import list_labeled_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "images/b, c.png"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_lie_beside_the_table_or_in_images(folder: Path, encoding: str) -> None:
    (folder / "labels.csv").write_text('index,file\r\n3,a.png\r\n07,"b, c.png"\r\n', encoding=encoding)
    labeled = list_labeled_files(folder)
    assert labeled.files == (folder / "a.png", folder / "images" / "b, c.png")
    assert (labeled.labels, labeled.classes) == ((3, 7), ())


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("file,index\na.png," + "9" * 5000, "line 2: index must be the number of a class, got '9999"),
        ("file,index\na.png,-1", "line 2: index must be the number of a class, got '-1'"),
        ("file,index\na.png,²", "index must be the number of a class"),
        ("file,index\na.png", "index must be the number of a class, got ''"),
        ("file,index\n,1", "no such file, but line 2"),
        ("file,index\n" + "x" * 200_000 + ",1", "labels.csv: "),
        ("file,index\n" + "x" * 5000 + ",1", "no such file, but line 2"),
        ("file,index\na\0.png,1", "labels.csv"),
        ('file,index\n"a.png,1\n' + "b.png,2\n" * 20, "labels.csv: "),
        ("file,index\na.png,1,2", "line 2: has 3 cells, the header has 2 columns"),
        ("name,index\na.png,1", "must have the columns file and index, or file and label, got name, index"),
        ("file,index\n", "lists no images"),
        ("", "lists no images"),
    ],
    ids=range(13),
)
def test_tables_that_cannot_be_meant_are_one_line(folder: Path, rows: str, reason: str) -> None:
    (folder / "labels.csv").write_text(rows, encoding="utf-8")
    with pytest.raises(DataError, match=reason) as error:
        list_labeled_files(folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) <= 2000
    assert "labels.csv" in str(error.value)


def test_what_a_folder_of_classes_leaves_out_is_counted(tmp_path: Path) -> None:
    for name in ("b/1.png", "b/deep/2.jpg", "a/1.png", "a/notes.txt", "c/readme.md", "lost.png", ".hidden/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    labeled = list_labeled_files(tmp_path)
    assert labeled.files == tuple(tmp_path / name for name in ("a/1.png", "b/1.png", "b/deep/2.jpg"))
    assert (labeled.labels, labeled.classes) == ((0, 1, 1), ("a", "b"))
    assert {reason: len(names) for reason, names in labeled.ignored.reasons.items()} == {
        ".txt": 1, ".md": 1, "in .hidden": 1, "in no class folder": 1,
    }  # fmt: skip


def test_a_table_in_another_encoding_is_one_line(folder: Path) -> None:
    (folder / "labels.csv").write_bytes(b"file,index\ncaf\xe9.png,1\n")
    with pytest.raises(DataError, match=r"labels\.csv: not a CSV table in UTF-8"):
        list_labeled_files(folder)
