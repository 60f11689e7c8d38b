"""NumPy files: types of images and labels, and files that are damaged or foreign."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from convatlas.data.open import open_data
from convatlas.data.source import Source
from convatlas.errors import DataError
from convatlas.models.catalog import CATALOG
from convatlas.tasks.known import Classification, MultilabelClassification

N = 12
X = np.random.default_rng(0).integers(0, 256, (N, 8, 7), dtype=np.uint8)
Y = np.arange(N) % 3
NAMES = np.array(["ant", "bee", "cat"])


def read(folder: Path, **arrays: Any) -> Source:
    np.savez(folder / "it.npz", **({"x": X, "y": Y} | arrays))
    return open_data(folder / "it.npz")


def pixels(source: Source) -> torch.Tensor:
    found = source.splits["train"].pixels
    assert found is not None
    return found


def labels(source: Source) -> list[Any]:
    found: list[Any] = source.splits["train"].targets.tensor("label").tolist()
    return found


# --- images


@pytest.mark.parametrize("kind", ["i2", "i4", "i8", "u4", "u8", ">i4", "f2", "f4", "f8"])
def test_whole_numbers_of_8_bits_are_uint8(tmp_path: Path, kind: str) -> None:
    source = read(tmp_path, x=X.astype(kind), x_val=np.zeros_like(X, kind), y_val=Y)
    assert torch.equal(pixels(source), torch.from_numpy(X)[:, None])
    assert not source.high_bit_depth
    assert source.remarks == (f"images are {np.dtype(kind)} of whole numbers from 0 to 255, and are read as uint8",)


def test_floats_and_deep_images_keep_their_window(tmp_path: Path) -> None:
    for values in (X / 255, X.astype("u2") * 257):
        source = read(tmp_path, x=values)
        assert source.high_bit_depth
        assert source.remarks == ()
        assert torch.allclose(pixels(source), torch.from_numpy(X)[:, None] / 255)
    source = read(tmp_path, x=X + 0.5)
    assert source.high_bit_depth
    assert source.remarks == ("images are floats from 0.5 to 255.5: the network will not read image files",)
    assert read(tmp_path, x=X > 100).remarks == ()


def test_images_may_have_the_channels_first(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (N, 8, 7, 3), dtype=np.uint8)
    last, first = read(tmp_path, x=rgb), read(tmp_path, x=rgb.transpose(0, 3, 1, 2))
    assert torch.equal(pixels(last), pixels(first))
    assert (last.remarks, first.remarks) == ((), (f"images {(N, 3, 8, 7)} are read as (n, channels, height, width)",))
    assert torch.equal(pixels(read(tmp_path, x=X[:, None])), pixels(read(tmp_path, x=X)))


# --- labels


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (Y[:, None], "0 1 2"), (Y.astype("f4"), "0 1 2"), (Y.astype("u8"), "0 1 2"), (Y.astype(">i2"), "0 1 2"),
        (NAMES[Y], "ant bee cat"), (NAMES.astype("S")[Y], "ant bee cat"), (NAMES[Y][:, None], "ant bee cat"),
        (Y > 0, "false true"), ((Y > 0)[:, None], "false true"), ((Y > 0).astype("i8")[:, None], "0 1"),
    ],
)  # fmt: skip
def test_labels_of_any_type_are_class_numbers(tmp_path: Path, y: NDArray[Any], classes: str) -> None:
    source = read(tmp_path, y=y, x_val=X, y_val=y)
    assert isinstance(source.task, Classification)
    assert source.classes == tuple(classes.split())
    assert labels(source) == np.minimum(Y, len(source.classes) - 1).tolist()


@pytest.mark.parametrize("names", [NAMES, NAMES.astype("S"), np.array([1, 22, 333]), np.array([" ant ", "bee", "cat"])])
def test_class_names_of_any_type(tmp_path: Path, names: NDArray[Any]) -> None:
    expected = ("1", "22", "333") if names.dtype.kind == "i" else ("ant", "bee", "cat")
    assert read(tmp_path, classes=names).classes == expected


def test_named_labels_are_in_the_order_of_the_names(tmp_path: Path) -> None:
    source = read(tmp_path, y=NAMES[Y], classes=np.array(["cat", "ant", "bee"]))
    assert (source.classes, labels(source)[:3]) == (("cat", "ant", "bee"), [1, 2, 0])


def test_zeros_and_ones_of_several_classes_are_several_labels(tmp_path: Path) -> None:
    assert isinstance(read(tmp_path, y=np.eye(3)[Y]).task, MultilabelClassification)
    one = read(tmp_path, y=(Y > 0)[:, None], classes=np.array(["ant"]))  # one name: present or not
    assert isinstance(one.task, MultilabelClassification)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"y": Y + 0.5}, r"train: labels must be class numbers, got 0\.5"),
        ({"y": np.where(Y == 1, np.nan, Y)}, "train: labels must be class numbers, got nan"),
        ({"y": np.where(Y == 1, np.inf, Y)}, "train: labels must be class numbers, got inf"),
        ({"y": Y * 1e300}, r"train: labels must be class numbers, got 1e\+300"),
        *(({"y": np.array([*[0] * (N - 1), value], dtype=np.uint64)}, f"each of at least one of 12 images, got {value}")
          for value in (10**8, 2**62, 2**64 - 1)),
        ({"y": Y - 1}, r"labels must be integers in \[0, 1\], got -1 to 1"),
        ({"y": NAMES[Y], "x_val": X, "y_val": Y}, "val: labels|labels must be"),
        ({"y": NAMES[Y], "x_val": X, "y_val": np.array(["dog"] * N)}, "dog"),
        ({"y": np.array(["", "a", "b"])[Y]}, "the name of a class must not be empty"),
        ({"y": np.array([b"\xff", b"a", b"b"])[Y]}, r"train: names must be UTF-8 text, got b'\\xff'"),
        ({"y": np.array([[b"a", b"b"]] * N)}, "labels must be 0 or 1 for each of 2 classes"),
        ({"y": np.array(3)}, "one target for each of 12 images"),
        ({"y": np.array([{}] * N)}, "Object arrays cannot be loaded"),
        ({"classes": np.array("ant")}, "classes: must be names"),
        ({"classes": np.array([0.5, 1, 2])}, "classes: must be names"),
        ({"classes": np.array([b"\xff", b"a", b"b"])}, "classes: names must be UTF-8"),
        ({"classes": np.array(["a", "a", "b"])}, "the names must differ"),
        ({"x": X.astype("u2")}, "uint16 values of 0 to 255, where 65535 is white; convert to uint8"),
        ({"x": X.astype("i1")}, "int8 values must be from 0 to 255"),
        ({"x": X.astype("i8") * 2}, "int64 values must be from 0 to 255"),
        ({"x_val": X + 0.5, "y_val": Y}, "float64 above 1 and uint8, whose scales differ"),
        ({"x": X.astype("c8")}, "images must be numbers"),
        ({"x": np.zeros((N, 0, 8))}, "images must be numbers"),
        ({"x": np.where(X == 7, np.nan, X / 255)}, "NaN or infinity"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_name(tmp_path: Path, arrays: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=rf"it\.npz: .*({reason})"):
        read(tmp_path, **arrays)


def test_arrays_that_are_not_used_are_named(tmp_path: Path) -> None:
    assert read(tmp_path, x_valid=X, ids=Y).remarks == ("arrays that are not used: x_valid, ids",)


# --- files


def flip(data: bytes, *places: int) -> bytes:
    changed = bytearray(data)
    for place in places:
        changed[place] ^= 0xFF
    return bytes(changed)


def set_field(data: bytes, local: int, central: int, value: int) -> bytes:
    """Set a field of two bytes of the first member in both of its headers."""
    changed, start = bytearray(data), data.index(b"PK\1\2")
    for place in (local, start + central):
        changed[place : place + 2] = value.to_bytes(2, "little")
    return bytes(changed)


def with_header(_: bytes) -> bytes:
    header, file = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 8, 3)})
    with zipfile.ZipFile(file, "w") as members:
        members.writestr("x.npy", header.getvalue())
    return file.getvalue()


def with_member(content: bytes) -> Callable[[bytes], bytes]:
    def change(_: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as members:
            members.writestr("x.npy", content)
        return file.getvalue()

    return change


def array_file(_: bytes) -> bytes:
    file = io.BytesIO()
    np.save(file, X)
    return file.getvalue()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-300],
    "half": lambda data: data[: len(data) // 2],
    "a flipped bit": lambda data: flip(data, 90),
    "a damaged stream": lambda data: flip(data, *range(60, 130, 7)),
    "encrypted": lambda data: set_field(data, 6, 8, 1),
    "an unknown method": lambda data: set_field(data, 8, 10, 99),
    "a .npy file": array_file,
    "a huge header": with_header,
    "an open header": with_member(b"\x93NUMPY\1\0\x10\0{'descr': ((((((("),
    "an evil header": with_member(b"\x93NUMPY\1\0\x18\0" + b"9" * 24),
    "no header": with_member(b""),
    "text": lambda data: b"x,y\n1,2\n",
}


def test_what_could_be_meant_otherwise_is_noted(tmp_path: Path) -> None:
    one_hot = read(tmp_path, y=np.eye(3)[Y])
    assert isinstance(one_hot.task, MultilabelClassification)
    assert one_hot.remarks[0].startswith("labels (n, classes) are read for multi-label classification, but each image")
    assert read(tmp_path, y=np.ones((N, 3))).remarks == ()
    five = read(tmp_path, x=np.zeros((N, 5, 8, 7), np.uint8))
    assert five.channels == 7
    assert five.remarks == ("images (12, 5, 8, 7) are read as (n, height, width, channels)",)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_one_line(tmp_path: Path, damage: str) -> None:
    np.savez_compressed(tmp_path / "good.npz", x=X, y=Y)
    path = tmp_path / "it.npz"
    path.write_bytes(DAMAGES[damage]((tmp_path / "good.npz").read_bytes()))
    with pytest.raises(DataError, match=r"it\.npz: not a NumPy file of plain arrays \(.+\)$") as error:
        open_data(path)
    assert "\n" not in str(error.value)


def test_training_needs_images_of_every_class(tmp_path: Path) -> None:
    source = read(tmp_path, y=np.array([0, 1, 3] * 4))
    with pytest.raises(DataError, match="the train split lacks 2"):
        source.load(CATALOG["lenet5_modern"].preprocessing)
    part = source.load(CATALOG["lenet5_modern"].preprocessing, all_classes=False)
    assert len(part.train) == 12
