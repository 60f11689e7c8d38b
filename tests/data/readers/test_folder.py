"""Folders of images: every file in them is read, or counted with the reason why it is not."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.check import check
from convatlas.data.ignored import Ignored
from convatlas.data.open import open_data
from convatlas.data.readers.image_files import list_images
from convatlas.data.source import Source
from convatlas.errors import DataError
from convatlas.inference.inputs import expand_inputs

RGB = Preprocessing(resize=8, crop=8).for_channels(3)
SEEDS = iter(range(10**6))


def write_image(path: Path, image_format: str = "png") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(next(SEEDS)).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, image_format)


def tree(root: Path, folders: Sequence[str], count: int = 2) -> Path:
    """Write `count` images into each of the folders."""
    for folder in folders:
        for i in range(count):
            write_image(root / folder / f"{i}.png")
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return tree(tmp_path / "photos", ["cat", "dog"])


def counts(source: Source) -> dict[str, int]:
    """Return the number of training images of each class."""
    labels = source.splits["train"].targets.tensor("label")
    return {name: int((labels == i).sum()) for i, name in enumerate(source.classes)}


def reasons(ignored: Ignored) -> dict[str, int]:
    return {reason: len(names) for reason, names in ignored.reasons.items()}


def test_a_folder_of_images_alone_has_no_remarks(photos: Path) -> None:
    source = open_data(photos)
    assert (source.remarks, len(source.ignored)) == ((), 0)


JPEG = b"\xff\xd8\xff\xe0 JFIF"


@pytest.mark.parametrize(
    ("files", "expected", "reason"),
    [
        ({"a.xcf": b"gimp xcf"}, 0, ".xcf"),
        ({"a.txt": b"BM"}, 0, ".txt"),
        ({"a.jpg.bak": JPEG}, 0, ".bak"),
        ({"a.NEF": b"MM\0*\0\0\0\x08"}, 0, ".nef"),
        ({"a.jpg~": JPEG}, 0, ".jpg~"),
        ({"notes": b"BMW and P5 and GIF"}, 0, "without a suffix"),
        ({"a.\u202ejpg x": b""}, 0, "with other suffixes"),
        ({"@eaDir/0.png/SYNO_XL.jpg": JPEG}, 0, "in @eaDir"),
        ({"__MACOSX/0.png": JPEG, "__MACOSX/._0.png": b""}, 0, "in __MACOSX"),
        ({".ipynb_checkpoints/0-checkpoint.png": JPEG}, 0, "in .ipynb_checkpoints"),
        ({".0.png": JPEG}, 0, "hidden"),
        ({"abcdef0123": JPEG}, 1, ""),
        ({"a.jpg_large": JPEG}, 1, ""),
        ({"a.jpg?w=300": JPEG}, 1, ""),
        ({"._0.png": b"", ".DS_Store": b"", "Thumbs.db": b"", "desktop.ini": b"", "@eaDir/x.txt": b""}, 0, ""),
    ],
)  # fmt: skip
def test_every_file_is_listed_or_counted(tmp_path: Path, files: dict[str, bytes], expected: int, reason: str) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    images, ignored = list_images(tmp_path)
    assert len(images) == expected
    assert reasons(ignored) == ({reason: 1} if reason else {})
    if reason:
        assert ignored.text().startswith(f"1 file is not used: 1 {reason} (")
        assert ignored.text().isprintable()


@pytest.mark.parametrize("suffix", [".heic", ".HIF", ".jxl"])
def test_images_that_no_library_here_reads_are_counted(
    photos: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "cat" / f"a{suffix}").write_bytes(b"")
    monkeypatch.setattr("convatlas.data.readers.image_files.is_installed", lambda _: False)
    source = open_data(photos)
    assert counts(source) == {"cat": 2, "dog": 2}
    assert re.match(rf"1 file is not used: 1 {suffix.lower()} \(\w+ is not installed\) \(cat/a", source.remarks[0])
    assert source.remarks[0].endswith(f"; to read {suffix.lower()}: pip install 'convatlas[data]'")


@pytest.mark.parametrize("installed", [True, False])
def test_heic_is_used_with_its_library_and_counted_without(
    photos: Path, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    names = [f"{label}/IMG_{i}.HEIC" for label in ("cat", "dog") for i in range(3)]
    for name in names:
        pixels = np.random.default_rng(next(SEEDS)).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        pillow_heif.from_pillow(Image.fromarray(pixels)).save(photos / name)
    table = photos / "list.csv"
    table.write_text("\n".join(["file,label", *(f"{name},{name[:3]}" for name in names)]))
    if not installed:
        monkeypatch.setattr("convatlas.data.readers.image_files.is_installed", lambda name: name != "pillow_heif")
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
    dataset = open_data(photos).load(RGB, val_share=0.5)
    assert len(dataset.whole) == (10 if installed else 4)
    line = r"[67] files are not used: 6 \.heic \(pillow_heif is not installed\).*; to read \.heic: pip install '"
    lines = [*dataset.remarks, expand_inputs([str(photos)]).ignored.text()]
    kinds = {each.kind: each.text for each in check(open_data(photos)).findings}
    if installed:
        assert not any("heic" in text for text in (*lines, *kinds.values()))
        assert len(open_data(table).splits["train"]) == 6
    else:
        assert all(re.match(line, text) for text in lines)
        assert kinds["unsupported_images"] == "6 images are not used: a library is not installed: 6 .heic"
        with pytest.raises(DataError, match=r"6 \.heic images cannot be read: pillow_heif .*pip install '"):
            open_data(table)


def test_avif_is_counted_where_pillow_does_not_read_it(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "cat" / "a.avif").write_bytes(b"")
    monkeypatch.setattr("PIL.features.check", lambda _: False)
    assert open_data(photos).remarks[0].endswith("; to read .avif: pip install 'convatlas[data]'")


@pytest.mark.parametrize("image_format", ["png", "jpeg", "gif", "bmp", "webp", "tiff", "ppm", "avif", "jpeg2000"])
def test_images_without_a_suffix_are_recognized(tmp_path: Path, image_format: str) -> None:
    try:
        write_image(tmp_path / "image", image_format)
    except (KeyError, OSError):
        pytest.skip(f"Pillow writes no {image_format} here")
    assert list_images(tmp_path)[0] == [str(tmp_path / "image")]


def test_many_reasons_are_one_short_line() -> None:
    ignored = Ignored({f".x{i}": tuple(f"/data/cat/{n}.x{i}" for n in range(i)) for i in range(1, 40)})
    text = ignored.text()
    assert text.startswith("780 files are not used: 39 .x39, 38 .x38, ")
    assert "and 29 more (cat/0.x39, cat/0.x38, cat/0.x37, ...)" in text
    assert len(text) < 300


# --- links


def test_linked_folders_are_read(photos: Path, tmp_path: Path) -> None:
    (photos / "cat" / "more").symlink_to(tree(tmp_path, ["elsewhere/deep"], 3) / "elsewhere")
    source = open_data(photos)
    assert (counts(source), source.remarks) == ({"cat": 5, "dog": 2}, ())


@pytest.mark.parametrize("target", [".", "..", "../..", "sub"])
def test_links_that_lead_back_are_counted(photos: Path, target: str) -> None:
    write_image(photos / "cat" / "sub" / "x.png")
    (photos / "cat" / "zlink").symlink_to(target)
    source = open_data(photos)
    assert counts(source) == {"cat": 3, "dog": 2}
    assert reasons(source.ignored) == {"links to folders that are read already": 1}


def test_dangling_links_to_images_are_unreadable_and_others_are_counted(photos: Path) -> None:
    (photos / "cat" / "x.jpg").symlink_to("/gone/x.jpg")
    (photos / "cat" / "more").symlink_to("/gone/more")
    (photos / "cat" / "self").symlink_to("self")
    (photos / "bird").symlink_to("/gone/bird")
    source = open_data(photos)
    assert reasons(source.ignored) == {"dangling links": 3}
    checked = check(source)
    assert [image.unreadable for image in checked.unreadable] == ["dangling link to /gone/x.jpg"]
    links = [str(photos / name) for name in ("bird", "cat/more", "cat/self")]
    assert checked.to_plain()["ignored"] == {"dangling links": links}
    assert source.remarks[0].startswith("3 files are not used: 3 dangling links (photos/bird, ")
    assert [(each.kind, each.count) for each in checked.findings if "links" in each.kind] == [("dangling_links", 3)]
    with pytest.raises(DataError, match=r"dangling link to /gone/x\.jpg; 1 of 5 images are unreadable"):
        source.load(RGB)


def test_training_needs_images_of_every_class_in_every_split(tmp_path: Path) -> None:
    source = open_data(tree(tmp_path / "data", ["train/a", "train/b", "val/a"]))
    with pytest.raises(DataError, match="the val split lacks b"):
        source.load(RGB)
    assert set(source.load(RGB, all_classes=False).splits) == {"train", "val"}


# --- layouts


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        (["car", "plane", "train/freight", "train/passenger"], "read as the train split, but car/ contains images"),
        (["train/a", "train/b", "Train/a", "Train/b"], "Train and train are both the train split"),
        (["train/a", "train/b", "val/a", "val/b", "valid/a", "valid/b"], "val and valid are both the val split"),
        (["train", "val"], "train, val are names of splits, but contain no folders"),
        (["val/a", "val/b"], r"there is val/ but no train/.*give .*/val for its images alone"),
        (["train/a", "val/a"], "train: must contain at least two folders, one for each class, got 1: a"),
        (["photos/a", "photos/b"], "got 1: photos"),
    ],
)  # fmt: skip
def test_ambiguous_folders_are_refused(tmp_path: Path, folders: list[str], told: str) -> None:
    with pytest.raises(DataError, match=told) as error:
        open_data(tree(tmp_path / "data", folders))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("folders", "classes", "ignored"),
    [
        (["train", "plane", "car"], ("car", "plane", "train"), {}),
        (["train/a", "train/b", "test"], ("a", "b"), {"in test/": 2}),
        (["train/a", "train/b", "val/a", "val/b", "masks"], ("a", "b"), {"in masks/": 2}),
        (["train/a", "train/b", "train"], ("a", "b"), {"in no class folder": 2}),
        (["a", "b", "."], ("a", "b"), {"in no class folder": 2}),
        (["a", "b", "@eaDir", ".cache"], ("a", "b"), {"in @eaDir": 2, "in .cache": 2}),
        (["train", "plane", "train/.ipynb_checkpoints"], ("plane", "train"), {"in .ipynb_checkpoints": 2}),
    ],
)  # fmt: skip
def test_images_outside_of_the_classes_are_counted(
    tmp_path: Path, folders: list[str], classes: tuple[str, ...], ignored: dict[str, int]
) -> None:
    source = open_data(tree(tmp_path / "data", folders))
    assert (source.classes, reasons(source.ignored)) == (classes, ignored)


def test_an_empty_class_names_what_is_in_it(photos: Path) -> None:
    shutil.rmtree(photos / "cat")
    (photos / "cat").mkdir()
    (photos / "cat" / "a.xcf").write_bytes(b"")
    with pytest.raises(DataError, match=r"the class cat is empty; 1 file is not used: 1 \.xcf"):
        open_data(photos)


# --- names of classes


@pytest.mark.parametrize(
    ("train", "val", "told"),
    [
        ("caf\u00e9", "cafe\u0301", r"'cafe\\u0301' = 'caf\\xe9'"),
        ("cat ", "cat", "'cat' = 'cat '"),
        (" cat", " cat", "blanks at the ends .*: ' cat'"),
    ],
)  # fmt: skip
def test_names_that_look_the_same_are_one_class(tmp_path: Path, train: str, val: str, told: str) -> None:
    folders = [f"train/{train}", "train/dog", f"val/{val}", "val/dog"]
    source = open_data(tree(tmp_path / "data", folders))
    assert source.classes == ("caf\u00e9" if "caf" in train else "cat", "dog")
    (note,) = source.remarks
    assert re.search(told, note)


def test_two_spellings_in_one_split_are_merged(tmp_path: Path) -> None:
    source = open_data(tree(tmp_path / "data", ["caf\u00e9", "cafe\u0301", "dog"]))
    assert counts(source) == {"caf\u00e9": 4, "dog": 2}


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\nb", "\udce9", "a\u202eb"])
def test_names_that_are_not_printable_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="not printable"):
        open_data(tree(tmp_path / "data", [name, "dog"]))


def test_emoji_are_names(tmp_path: Path) -> None:
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    assert open_data(tree(tmp_path / "data", [family, "dog"])).classes == ("dog", family)


def test_the_fingerprint_does_not_depend_on_the_place(photos: Path, tmp_path: Path) -> None:
    def fingerprint(folder: Path) -> str:
        return open_data(folder).load(RGB, val_share=0.5).fingerprint()

    (photos / "list.csv").write_text("file,label\ncat/0.png,cat\ncat/1.png,cat\ndog/0.png,dog\ndog/1.png,dog\n")
    before = fingerprint(photos), fingerprint(photos / "list.csv")
    moved = photos.rename(tmp_path / "moved")
    assert (fingerprint(moved), fingerprint(moved / "list.csv")) == before
