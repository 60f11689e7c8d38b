"""Tables that list images, groups that stay together, and arrays."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import COLORS
from convatlas.core.preprocessing import Preprocessing
from convatlas.data.dataset import Dataset
from convatlas.data.open import open_data
from convatlas.errors import DataError

STEPS = Preprocessing(resize=8, crop=8)


def load(data: Path | str, *, seed: int = 0, share: float = 0.0) -> Dataset:
    source = open_data(data)
    return source.load(STEPS.for_channels(source.channels), seed=seed, val_share=share)


def table(
    folder: Path, *, name: str = "list.csv", header: str = "file,label,split,group", separator: str = ","
) -> Path:
    """Write a table of the images of a folder; four images in turn are a group."""
    rows = [
        f"{split}/{label}/{file.name},{label},{split},{label}{i // 4}"
        for split in ("train", "val")
        for label in COLORS
        for i, file in enumerate(sorted((folder / split / label).iterdir()))
    ]
    columns = header.count(",") + 1
    text = "\n".join([header, *(",".join(row.split(",")[:columns]) for row in rows)])
    path = folder / name
    path.write_text(text.replace(",", separator) + "\n")
    return path


@pytest.mark.parametrize(("separator", "name"), [(",", "list.csv"), ("\t", "list.tsv"), (";", "list.csv")])
def test_a_table_holds_what_the_folders_hold(own_images: Path, separator: str, name: str) -> None:
    listed, folders = load(table(own_images, separator=separator, name=name)), load(own_images)
    assert (listed.name, listed.classes) == ("list", folders.classes)
    for split, images in folders.splits.items():
        theirs = listed.splits[split]
        assert {*zip(theirs.names, theirs.targets.tensor("label").tolist(), strict=True)} == {
            *zip(images.names, images.targets.tensor("label").tolist(), strict=True)
        }


def test_other_names_of_columns_and_no_split(own_images: Path) -> None:
    data = load(table(own_images, header="Path,Class"), share=0.25)
    assert open_data(own_images / "list.csv").splits["train"].groups is None
    assert data.val is not None
    assert (len(data.train), len(data.val)) == (54, 18)


def test_groups_stay_together(own_images: Path) -> None:
    source = open_data(table(own_images, header="file,label,split,group"))
    held = {}
    for part in source.splits.values():
        assert part.groups is not None
        held |= dict(zip(part.names, part.groups.tolist(), strict=True))
    text = (own_images / "list.csv").read_text().replace(",val,", ",train,")
    (own_images / "list.csv").write_text(text)
    splits = set()
    for seed in range(4):
        data = load(own_images / "list.csv", seed=seed, share=0.25)
        assert data.val is not None
        sides = [{held[name] for name in part.names} for part in (data.train, data.val)]
        assert not sides[0] & sides[1]
        assert torch.bincount(data.val.targets.tensor("label"), minlength=3).min() > 0
        splits.add(tuple(sorted(sides[1])))
    assert len(splits) > 1


def test_images_without_a_group_are_on_their_own(own_images: Path) -> None:
    path = table(own_images)
    path.write_text("\n".join(line.replace(",ant0", ",") for line in path.read_text().splitlines()))
    groups = open_data(path).splits["train"].groups
    assert groups is not None
    assert int((torch.bincount(groups) == 1).sum()) == 4


def test_columns_of_classes_may_have_any_name(own_images: Path) -> None:
    folder = own_images / "train" / "ant"
    rows = ["file,Source,image,subject,group", "00.jpg,1,0,1,p1", "01.png,0,1,0,p2"]
    (folder / "list.csv").write_text("\n".join(rows))
    source = open_data(folder / "list.csv")
    assert source.classes == ("Source", "image", "subject")
    assert source.splits["train"].targets.tensor("label").sum(0).tolist() == [1, 1, 1]
    (folder / "list.csv").write_text("file,cat,patient\n00.jpg,1,p7\n")
    with pytest.raises(
        DataError, match=r"line 2: patient must be 0 or 1, got 'p7'.*every column but file, split and group"
    ):
        open_data(folder / "list.csv")


def test_groups_that_cannot_be_shared_out_are_told(own_images: Path) -> None:
    path = table(own_images)
    path.write_text(path.read_text().replace(",val,", ",train,").replace("ant1", "ant0").replace("ant2", "ant0"))
    with pytest.raises(DataError, match=r"too few groups|cannot be split"):
        load(path, share=0.25)


@pytest.mark.parametrize(
    ("text", "told"),
    [("a,b\n1,2\n", "there is no column file, path, image, video, filename; columns found: a, b; expected"),
     ("file,label\nnone.jpg,cat\n", "does not exist"),
     ("file,label\n", "has no rows"), ("file,label\n00.jpg,\n", "line 2: no label"),
     ("file,label,split\n00.jpg,ant,holdout\n", "split must be train, val or test, got 'holdout'"),
     ("file,label,split\n00.jpg,ant,val\n", "no row is of the split train"),
     ("file,label\n00.jpg,ant\n00.jpg,bee\n", "line 3: 00.jpg is in line 2 already"),
     ("file,label\n00.jpg,ant\n", "two classes"), ("file,label\n\udcff.jpg,ant\n", "UTF-8")],
)  # fmt: skip
def test_tables_that_cannot_be_used_are_told(own_images: Path, text: str, told: str) -> None:
    folder = own_images / "train" / "ant"
    (folder / "list.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=told):
        open_data(folder / "list.csv")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("file,label\n00.jpg,salt, pepper\n", "line 2: has 3 cells, the header has 2 columns.*got pepper"),
        ("file,label,label\n00.jpg,a,b\n", "two columns label"),
        ("file,label,Label\n00.jpg,a,b\n", "two columns label"),
        ("file,File,label\n00.jpg,00.jpg,b\n", "two columns file"),
        ("file,caf\u00e9,cafe\u0301\n00.jpg,0,1\n", "two columns caf\u00e9"),
        *((f"file,label\n00.jpg,ant\n01.png,{nan}\n", f"line 3: no label .*{nan} is a missing value")
          for nan in ("nan", "NaN", "<NA>")),
        ("file,labels\n00.jpg,ant|nan\n", "line 2: no label"),
        ("file,label\n00.jpg,ant\nx/../00.jpg,bee\n", "x/../00.jpg is in line 2 already"),
        ("file,label\n00.jpg,ant\n.//00.jpg,bee\n", ".//00.jpg is in line 2 already"),
        ("file,label\n00.jpg,a\x1b[31m\n", "line 2: .*not printable"),
        ('file,label\n00.jpg,"a\nb"\n', "line 3: .*not printable"),
        ('file,label\n00.jpg,"ant\n01.png,bee\n', "line 2: unexpected end of data; check its quotes"),
        ("file,label\n00.jpg," + "a" * 200_000, "line 2: field larger than field limit"),
        ("file,label\n0\0.jpg,ant\n", "does not exist"),
        ("file,label\n" + "x" * 5000 + ".jpg,ant\n", "does not exist"),
    ],
)  # fmt: skip
def test_tables_are_not_guessed_at(own_images: Path, text: str, told: str) -> None:
    folder = own_images / "train" / "ant"
    (folder / "x").mkdir()
    (folder / "list.csv").write_bytes(text.encode())
    with pytest.raises(DataError, match=told) as error:
        open_data(folder / "list.csv")
    assert str(error.value).isprintable()
    assert len(str(error.value)) <= 2000


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables_are_read_in_every_encoding(own_images: Path, encoding: str, end: str) -> None:
    folder = own_images / "train" / "ant"
    lines = ["", "file; label", "00.jpg; ant;", "", '01.png; "b;e"', "02.jpg;\u00fc"]
    (folder / "list.csv").write_bytes(end.join(lines).encode(encoding))
    assert open_data(folder / "list.csv").classes == ("ant", "b;e", "\u00fc")


def test_blanks_around_names_are_reported(own_images: Path) -> None:
    folder = own_images / "train" / "ant"
    rows = ["file,label,group", "00.jpg ,ant ,1", "01.png,ant, 1 ", '02.jpg," bee", nan ']
    (folder / "list.csv").write_text("\n".join(rows))
    source = open_data(folder / "list.csv")
    assert source.classes == ("ant", "bee")
    assert source.remarks == (
        "class names that differ only in Unicode normalization or blanks are one class: 'ant' = 'ant '",
        "blanks at the ends are not part of the class name: ' bee'",
    )
    groups = source.splits["train"].groups
    assert groups is not None
    assert len(set(groups.tolist())) == 2


def test_names_in_another_normalization_are_the_same(own_images: Path) -> None:
    folder = own_images / "train" / "ant"
    (folder / "00.jpg").rename(folder / "e\u0301.jpg")
    rows = ["file,label", "\u00e9.jpg,caf\u00e9", "01.png,cafe\u0301", "02.jpg,bee"]
    (folder / "list.csv").write_text("\n".join(rows))
    source = open_data(folder / "list.csv")
    assert source.classes == ("bee", "caf\u00e9")
    assert source.remarks == (
        "class names that differ only in Unicode normalization or blanks are one class: 'cafe\\u0301' = 'caf\\xe9'",
    )


def test_a_link_before_two_dots_leads_elsewhere(own_images: Path) -> None:
    folder = own_images / "train" / "ant"
    (folder / "link").symlink_to(own_images / "train" / "bee")
    (own_images / "train" / "00.jpg").write_bytes((folder / "02.jpg").read_bytes())
    (folder / "list.csv").write_text("file,label\n00.jpg,ant\nlink/../00.jpg,bee\n")
    assert set(open_data(folder / "list.csv").splits["train"].names) == {
        str(folder / "00.jpg"), str((own_images / "train" / "00.jpg").resolve())
    }  # fmt: skip


def test_a_relative_and_an_absolute_path_are_one_file(own_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own_images / "train" / "ant"
    (folder / "list.csv").write_text(f"file,label\n00.jpg,ant\n{folder / '00.jpg'},bee\n")
    monkeypatch.chdir(own_images)
    with pytest.raises(DataError, match=r"line 3: .*00\.jpg is in line 2 already"):
        open_data("train/ant/list.csv")


def test_a_missing_group_is_no_group(own_images: Path) -> None:
    path = table(own_images)
    path.write_text(path.read_text().replace(",ant0", ",nan"))
    groups = open_data(path).splits["train"].groups
    assert groups is not None
    assert int((torch.bincount(groups) == 1).sum()) == 4


def test_parquet_is_read_or_says_what_it_needs(own_images: Path) -> None:
    path = own_images / "list.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"pyarrow|not a Parquet table"):
        open_data(path)


def test_lists_in_parquet_are_classes_and_only_a_bar_stands_between_them(own_images: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = own_images / "train" / "ant"
    held = {"file": ["00.jpg", "01.png"], "labels": [["Washington, DC", "ant"], ["ant"]]}
    parquet.write_table(arrow.table(held), folder / "list.parquet")
    (folder / "list.csv").write_text('file,labels\n00.jpg,"Washington, DC|ant"\n01.png,ant\n')
    for name in ("list.parquet", "list.csv"):
        assert open_data(folder / name).classes == ("Washington, DC", "ant")


# --- arrays


@pytest.mark.parametrize("shape", [(20, 9, 7), (20, 9, 7, 1), (20, 9, 7, 3)])
def test_numpy_files_are_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    y = np.arange(20) % 4
    np.savez(tmp_path / "four.npz", x=x, y=y, x_test=x[:8], y_test=y[:8], classes=np.array(["a", "b", "c", "d"]))
    source = open_data(tmp_path / "four.npz")
    assert (source.classes, source.channels) == (("a", "b", "c", "d"), 3 if shape[-1] == 3 else 1)
    listed = source.splits["train"].pixels
    assert listed is not None
    expected = x.reshape(20, 9, 7, -1).transpose(0, 3, 1, 2)
    assert np.array_equal(listed.numpy(), expected)
    data = load(tmp_path / "four.npz")
    assert data.test is not None
    assert len(data.test) == 8


@pytest.mark.parametrize(
    ("arrays", "told"),
    [({"a": np.zeros(3)}, "must hold the arrays x and y"),
     ({"x": np.zeros((4, 3)), "y": np.arange(4)}, "images must be numbers"),
     ({"x": np.full((4, 3, 3), np.inf), "y": np.arange(4)}, "NaN or infinity"),
     ({"x": np.zeros((4, 3, 3), np.uint8), "y": np.arange(3)}, "one target for each of 4 images"),
     ({"x": np.zeros((4, 3, 3), np.uint8), "y": np.full(4, 0.5), "classes": np.array(["a", "b"])},
      "labels must be class numbers, got 0.5"),
     ({"x": np.zeros((4, 3, 3), np.uint8), "y": np.zeros(4, int)}, "at least two classes, found 1"),
     ({"x": np.zeros((4, 3, 3), np.uint8), "y": np.arange(4), "classes": np.array(["a", "b", "b", "c"])},
      "must differ"),
     ({"x": np.zeros((4, 3, 3), np.uint8), "y": np.arange(4), "x_val": np.zeros((4, 3, 3))}, "x_val alone"),
     ({"x": np.zeros((4, 3, 3), np.uint8), "y": np.arange(4), "x_val": np.zeros((4, 3, 3), np.uint8),
       "y_val": np.ones((4, 4), np.uint8)}, "in all splits"),
     ({"x": np.array([{}], dtype=object), "y": np.arange(1)}, "not a NumPy file of plain arrays")],
)  # fmt: skip
def test_numpy_files_that_are_something_else_are_told(
    tmp_path: Path, arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]], told: str
) -> None:
    np.savez(tmp_path / "file.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=told):
        open_data(tmp_path / "file.npz")
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(DataError, match="not a NumPy file"):
        open_data(tmp_path / "text.npz")


def test_cifar_is_read_from_its_folder_as_torchvision_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {"data": random.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(20)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda _: True)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
    source = open_data(tmp_path / "data")
    assert source.splits["train"].pixels is not None
    assert (source.name, source.classes, source.channels) == ("cifar10", tuple("abcdefghij"), 3)
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 100, "test": 20}


def test_a_named_set_that_is_not_there_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    with pytest.raises(
        DataError, match=r"cifar10 is missing or incomplete in .*`convatlas data check cifar10 --download`"
    ) as error:
        open_data("cifar10")
    assert "download=True" not in str(error.value)
    monkeypatch.setenv("CONVATLAS_OFFLINE", "1")
    with pytest.raises(DataError, match="internet access is disabled"):
        open_data("cifar10", download=True)
