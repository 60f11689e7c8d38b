"""Where images come from: what is found, how it is split, and what bad data gets."""

from __future__ import annotations

import gzip
import shutil
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import COLORS, write_idx, write_idx_folder, write_images
from convatlas.core.preprocessing import Preprocessing
from convatlas.data.dataset import Dataset, Images
from convatlas.data.decode.pixels import read_image
from convatlas.data.open import open_data
from convatlas.data.readers.idx import IDX_PARTS
from convatlas.data.splits import VAL_SHARE, split_off
from convatlas.errors import DataError
from convatlas.tasks.classification.labels import check_same_classes

GREY, RGB = Preprocessing(resize=8, crop=8), Preprocessing(resize=8, crop=8).for_channels(3)


def load(folder: Path | str, *, seed: int = 0, share: float = VAL_SHARE, max_unreadable: float = 0.01) -> Dataset:
    source = open_data(folder)
    steps = GREY.for_channels(source.channels)
    return source.load(steps, seed=seed, val_share=share, max_unreadable=max_unreadable)


def names(images: Images | None) -> list[str]:
    assert images is not None
    return list(images.names)


def per_class(images: Images | None) -> list[int]:
    assert images is not None
    return torch.bincount(images.targets.tensor("label")).tolist()


# --- digits


@pytest.fixture(scope="module")
def digits() -> dict[int, Dataset]:
    return {seed: load("digits", seed=seed) for seed in (0, 1)}


def test_digits_are_1797_without_overlap_between_splits(digits: dict[int, Dataset]) -> None:
    data = digits[0]
    parts = [names(split) for split in (data.train, data.val, data.test)]
    assert [len(part) for part in parts] == [1150, 288, 359]
    assert set().union(*parts) == {f"digits/{i}" for i in range(1797)}
    assert data.classes == tuple("0123456789")


def test_digits_test_split_is_the_same_for_all_seeds_and_val_is_not(digits: dict[int, Dataset]) -> None:
    first, second = digits.values()
    assert first.test is not None
    assert second.test is not None
    assert first.test.fingerprint() == second.test.fingerprint()
    assert names(first.test) == names(second.test)
    assert names(first.val) != names(second.val)
    assert load("digits", seed=1).fingerprint() == second.fingerprint() != first.fingerprint()


def test_digits_splits_are_stratified(digits: dict[int, Dataset]) -> None:
    data = digits[0]
    whole = np.sum([per_class(split) for split in (data.train, data.val, data.test)], axis=0)
    for split in (data.train, data.val, data.test):
        assert split is not None
        assert np.abs(np.array(per_class(split)) - whole * len(split) / 1797).max() <= 1


def test_digits_labels_go_with_their_images(digits: dict[int, Dataset]) -> None:
    from sklearn.datasets import load_digits

    original, data = load_digits(), digits[1]
    for i in range(0, len(data.train), 100):
        number = int(data.train.names[i].removeprefix("digits/"))
        assert data.train.targets.tensor("label")[i] == original.target[number]
        assert np.abs(data.train.pixels[i, 0].numpy() / 255 - original.images[number] / 16).max() < 0.01


def test_without_a_val_share_everything_is_trained_on() -> None:
    data = load("digits", share=0)
    assert data.val is None
    assert len(data.train) == 1438


# --- IDX files


@pytest.mark.parametrize("dots", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_idx_folder_is_read_compressed_or_not_under_both_names(tmp_path: Path, compressed: bool, dots: bool) -> None:
    data = load(write_idx_folder(tmp_path / "rows", compressed=compressed, dots=dots), share=0.1)
    assert (data.name, data.classes) == ("rows", tuple("0123456789"))
    assert (len(data.train), sum(per_class(data.val)), per_class(data.test)) == (144, 16, [4] * 10)
    assert data.train.pixels.shape[1:] == (1, 8, 8)


def test_idx_pixels_and_labels_are_those_of_the_file(idx_folder: Path) -> None:
    data = open_data(idx_folder).load(Preprocessing(resize=28, crop=28))
    assert data.test is not None
    for images in (data.train, data.test):
        rows = images.pixels[:, 0].float().mean(2).argmax(1)
        assert torch.equal(rows, 4 + 2 * images.targets.tensor("label"))


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("mnist", tuple("0123456789")),
        (
            "fashion_mnist",
            ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
    ],
)
def test_real_sets_are_recognized_by_their_content(
    shared_data: Path, tmp_path: Path, name: str, classes: tuple[str, ...]
) -> None:
    folder = tmp_path / "renamed"
    folder.symlink_to(shared_data / name)
    data = open_data(folder).load(Preprocessing(resize=28, crop=28), val_share=VAL_SHARE)
    assert (data.name, data.classes) == (name, classes)
    assert data.val is not None
    assert data.test is not None
    assert (len(data.train), len(data.val), len(data.test)) == (55_000, 5_000, 10_000)
    assert per_class(data.test)[0] == {"mnist": 980, "fashion_mnist": 1000}[name]


@pytest.mark.parametrize("part", IDX_PARTS.values())
def test_a_missing_idx_file_is_named(tmp_path: Path, part: str) -> None:
    folder = write_idx_folder(tmp_path / "rows")
    (folder / f"{part}.gz").unlink()
    with pytest.raises(DataError, match=part):
        open_data(folder)


def flip_in_the_middle(raw: bytes) -> bytes:
    return raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 0xFF]) + raw[len(raw) // 2 + 1 :]


@pytest.mark.parametrize("part", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize(
    ("compressed", "damage"),
    [
        (True, lambda raw: raw[:-20]),
        (True, lambda raw: raw[: len(raw) // 2]),
        (True, flip_in_the_middle),
        (True, lambda raw: raw[:-8] + b"\0" * 8),
        (True, lambda raw: b""),
        (True, lambda raw: b"not compressed at all"),
        (False, lambda raw: raw[:-1]),
        (False, lambda raw: raw + b"\0"),
        (False, lambda raw: raw[:6]),
        (False, lambda raw: b""),
        (False, lambda raw: b"\x89PNG" + raw[4:]),
        (False, lambda raw: raw[:2] + b"\x0d" + raw[3:]),
        (False, lambda raw: b"\0\0\x08\x00"),
        (False, lambda raw: b"\0\0\x08\xff" + raw[4:]),
        (False, lambda raw: b"\0\0\x08\x04" + b"\0\x01\0\0" * 4),
    ],
    ids=[
        "compressed, end missing",
        "compressed, half",
        "compressed, one byte wrong",
        "compressed, wrong checksum",
        "compressed, empty",
        "not compressed",
        "one byte short",
        "one byte long",
        "only the magic",
        "empty",
        "a PNG",
        "floats",
        "no dimension",
        "255 dimensions",
        "dimensions that overflow to nothing",
    ],
)  # fmt: skip
def test_damaged_idx_files_are_named(
    tmp_path: Path, compressed: bool, damage: Callable[[bytes], bytes], part: str
) -> None:
    folder = write_idx_folder(tmp_path / "rows", compressed=compressed)
    file = folder / (part + ".gz" * compressed)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=part):
        load(folder)


@pytest.mark.parametrize(
    ("part", "values", "told"),
    [
        ("t10k-images-idx3-ubyte", np.zeros((39, 28, 28), np.uint8), "must hold 40 images"),
        ("t10k-images-idx3-ubyte", np.zeros((40, 784), np.uint8), "784"),
        ("t10k-labels-idx1-ubyte", np.arange(40, dtype=np.uint8) % 9, "test split lacks 9"),
        ("train-labels-idx1-ubyte", np.arange(160, dtype=np.uint8) % 9, "train split lacks 9"),
        ("t10k-labels-idx1-ubyte", np.zeros(0, np.uint8), "must hold 0 images"),
        ("train-labels-idx1-ubyte", np.zeros((160, 28, 28), np.uint8), "train-labels.*must hold one label"),
        ("train-labels-idx1-ubyte", np.zeros(160, np.uint8), "train split .*lacks|test split has"),
        ("train-images-idx3-ubyte", np.zeros((160, 0, 28), np.uint8), "train-images.*at least one pixel"),
        ("t10k-images-idx3-ubyte", np.zeros((40, 28, 0), np.uint8), "t10k-images.*at least one pixel"),
    ],
)
def test_idx_files_that_do_not_go_together_are_refused(
    tmp_path: Path, part: str, values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], told: str
) -> None:
    folder = write_idx_folder(tmp_path / "rows", compressed=False)
    write_idx(folder / part, values)
    with pytest.raises(DataError, match=told):
        load(folder)


def test_idx_files_of_one_class_are_refused(tmp_path: Path) -> None:
    folder = write_idx_folder(tmp_path / "rows", compressed=False)
    for split, count in (("train", 160), ("test", 40)):
        write_idx(folder / IDX_PARTS[split, "labels"], np.zeros(count, np.uint8))
    with pytest.raises(DataError, match="at least two classes, got 1"):
        open_data(folder)


def test_idx_files_without_images_are_refused(tmp_path: Path) -> None:
    folder = write_idx_folder(tmp_path / "rows", compressed=False)
    for split in ("train", "test"):
        write_idx(folder / IDX_PARTS[split, "labels"], np.zeros(0, np.uint8))
        write_idx(folder / IDX_PARTS[split, "images"], np.zeros((0, 28, 28), np.uint8))
    with pytest.raises(DataError, match="at least two classes"):
        open_data(folder)


@pytest.mark.parametrize("compressed", [False, True])
def test_an_idx_header_decides_how_much_is_read(tmp_path: Path, compressed: bool) -> None:
    folder = write_idx_folder(tmp_path / "rows", compressed=compressed)
    file = folder / ("train-images-idx3-ubyte" + ".gz" * compressed)
    raw = b"\0\0\x08\x03" + struct.pack(">3I", 160, 28, 28) + bytes(10**7)
    file.write_bytes(gzip.compress(raw) if compressed else raw)
    with pytest.raises(DataError, match=r"must contain 125440 bytes .*, got more"):
        open_data(folder)


# --- folders of images


@pytest.mark.parametrize("test", ["test", "testing", None])
@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("training", "valid"), ("train", "validation")])
def test_split_folders_are_found_under_all_their_names(
    own_images: Path, train: str, val: str, test: str | None
) -> None:
    if test:
        shutil.copytree(own_images / "val", own_images / test)
    (own_images / "train").rename(own_images / train)
    (own_images / "val").rename(own_images / val)
    data = load(own_images)
    assert (data.name, data.classes) == ("images", ("ant", "bee", "cat"))
    assert per_class(data.train) == per_class(data.val) == [12, 12, 12]
    assert (data.test is not None) == bool(test)
    assert all(Path(name).is_relative_to(own_images / train) for name in names(data.train))


def test_labels_are_the_folders_of_the_images(images: Path) -> None:
    data = load(images)
    for part in (data.train, data.val):
        assert part is not None
        assert [Path(name).parent.name for name in part.names] == [
            data.classes[i] for i in part.targets.tensor("label")
        ]
        means = part.pixels.float().mean((2, 3))
        expected = torch.tensor([COLORS[data.classes[i]] for i in part.targets.tensor("label")]).float()
        assert (means - expected).abs().max() < 30


def test_one_folder_is_split_by_seed_and_class(images: Path) -> None:
    whole = {str(path) for path in (images / "train").rglob("*.*")}
    first, again, other = (load(images / "train", seed=seed) for seed in (0, 0, 1))
    assert first.test is None
    assert {*names(first.train), *names(first.val)} == whole
    assert len(first.train) + len(names(first.val)) == len(whole)
    assert max(per_class(first.val)) - min(per_class(first.val)) <= 1
    assert sum(per_class(first.val)) == round(0.2 * 36)
    assert first.fingerprint() == again.fingerprint()
    assert names(first.val) != names(other.val)


def test_train_without_val_is_split_and_test_is_left_alone(own_images: Path) -> None:
    (own_images / "val").rename(own_images / "test")
    data = load(own_images)
    assert (per_class(data.test), sum(per_class(data.val))) == ([12, 12, 12], 7)
    assert all("/train/" in name for name in [*names(data.train), *names(data.val)])


def test_nested_images_are_found(own_images: Path) -> None:
    write_images(own_images / "train" / "ant" / "garden" / "2024", COLORS["ant"], count=3)
    assert per_class(load(own_images).train) == [15, 12, 12]


@pytest.mark.parametrize(
    "junk",
    [
        "train/ant/.hidden.png", "train/ant/._00.jpg", "train/ant/notes.txt", "train/ant/Thumbs.db", "train/ant/png",
        "train/list.csv", "labels.csv", ".cache/x.png", "train/.ipynb_checkpoints/x.png", "train/ant/folder.png/x.txt",
        "train/ant/.ipynb_checkpoints/00-checkpoint.jpg",
    ],
)  # fmt: skip
def test_hidden_files_and_other_files_are_ignored(own_images: Path, junk: str) -> None:
    before = load(own_images).fingerprint()
    (own_images / junk).parent.mkdir(parents=True, exist_ok=True)
    (own_images / junk).write_bytes(b"no image")
    assert load(own_images).fingerprint() == before


def test_extensions_are_read_in_any_case(own_images: Path) -> None:
    before = load(own_images).fingerprint()
    (own_images / "train/ant/01.png").rename(own_images / "train/ant/01.PNG")
    assert load(own_images).fingerprint() == before


# --- single images

UPRIGHT = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
ORIENTATIONS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    # how the stored rows are turned to stand upright (EXIF 2.32, tag 0x0112)
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("extension", ["png", "tif"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, extension: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"turned.{extension}"
    Image.fromarray(UPRIGHT).save(file, exif=exif)
    expected = ORIENTATIONS[orientation](UPRIGHT).transpose(2, 0, 1)
    assert np.array_equal(read_image(file, 3).numpy(), expected)


RED, WHITE = [255, 0, 0], [255, 255, 255]
RED_LUMA = [76]


def red(mode: str) -> Image.Image:
    """Return a red image in this mode; the ones with transparency have a second, see-through half."""
    image = Image.new("RGBA", (8, 4), (255, 0, 0, 255))
    if mode in ("RGBA", "LA", "P see-through"):
        image.paste((0, 0, 255, 0), (4, 0, 8, 4))
    if mode == "P see-through":
        palette = Image.new("P", (8, 4), 1)
        palette.putpalette([0, 0, 255, 255, 0, 0])
        palette.paste(0, (4, 0, 8, 4))
        palette.info["transparency"] = 0
        return palette
    return image.convert("RGB").convert(mode) if mode in ("L", "1", "CMYK", "P") else image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "extension", "color"),
    [
        ("RGB", "png", RED), ("RGBA", "png", RED), ("RGBA", "webp", RED), ("P", "png", RED), ("P", "gif", RED),
        ("P see-through", "png", RED), ("P see-through", "gif", RED), ("CMYK", "tif", RED), ("L", "png", RED_LUMA * 3),
        ("LA", "png", RED_LUMA * 3), ("L", "pgm", RED_LUMA * 3), ("RGB", "ppm", RED), ("RGB", "bmp", RED),
    ],
)  # fmt: skip
def test_every_mode_is_read_and_transparency_is_white(
    tmp_path: Path, mode: str, extension: str, color: list[int]
) -> None:
    file = tmp_path / f"red.{extension}"
    red(mode).save(file, **({"lossless": True} if extension == "webp" else {}))
    rgb, gray = read_image(file, 3), read_image(file, 1)
    assert (rgb.shape, rgb.dtype, gray.shape) == ((3, 4, 8), torch.uint8, (1, 4, 8))
    assert rgb[:, 0, 0].tolist() == color
    assert gray[:, 0, 0].tolist() == RED_LUMA
    if mode in ("RGBA", "LA", "P see-through"):
        assert rgb[:, 0, 7].tolist() == WHITE


def test_black_and_white_images_have_two_values(tmp_path: Path) -> None:
    dots = UPRIGHT[..., 0] > 127
    Image.fromarray(dots).save(tmp_path / "dots.png")
    assert Image.open(tmp_path / "dots.png").mode == "1"
    assert np.array_equal(read_image(tmp_path / "dots.png", 1)[0].numpy(), dots * 255)


@pytest.mark.parametrize(
    ("modes", "channels"), [(["L"], 1), (["1"], 1), (["LA"], 1), (["L", "RGB"], 3), (["P"], 3), (["RGBA"], 3)]
)
def test_channels_are_those_of_the_images(tmp_path: Path, modes: list[str], channels: int) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for i in range(6):
            red(modes[i % len(modes)]).save(tmp_path / name / f"{i}.png")
    assert open_data(tmp_path).channels == channels


# --- what cannot be read


def huge(raw: bytes) -> bytes:
    """A bitmap whose header promises 100,000 x 100,000 pixels."""
    return b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0" + b"\xa0\x86\x01\0" * 2 + b"\x01\0\x18\0" + bytes(24)


BREAK: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "text": lambda raw: b"<html>404 not found</html>",
    "truncated": lambda raw: raw[: len(raw) // 2],
    "only the head": lambda raw: raw[:30],
    "huge": huge,
}


@pytest.mark.parametrize("name", ["00.jpg", "01.png"])
@pytest.mark.parametrize("damage", BREAK)
def test_unreadable_images_are_skipped_and_listed_up_to_max_unreadable(
    own_images: Path, damage: str, name: str
) -> None:
    file = own_images / "train/bee" / name
    file.write_bytes(BREAK[damage](file.read_bytes()))
    data = load(own_images, max_unreadable=1 / 72)
    assert [unreadable.path for unreadable in data.unreadable] == [str(file)]
    assert str(file) in data.unreadable[0].reason
    assert per_class(data.train) == [12, 11, 12]
    assert str(file) not in data.train.names
    with pytest.raises(DataError, match=rf"bee/{name}.*1 of 72"):
        load(own_images, max_unreadable=0.01)


def test_labels_still_go_with_images_after_an_unreadable_one(own_images: Path) -> None:
    (own_images / "train/ant/00.jpg").write_bytes(b"")
    data = load(own_images, max_unreadable=0.5)
    assert [Path(name).parent.name for name in data.train.names] == [
        data.classes[i] for i in data.train.targets.tensor("label")
    ]
    assert data.train.pixels.float().mean((2, 3)).argmax(1).tolist() == data.train.targets.tensor("label").tolist()


def test_unreadable_images_are_counted_over_all_splits(own_images: Path) -> None:
    for split in ("train", "val"):
        (own_images / split / "ant/00.jpg").write_bytes(b"")
    assert len(load(own_images, max_unreadable=2 / 72).unreadable) == 2
    with pytest.raises(DataError, match="2 of 72"):
        load(own_images, max_unreadable=1 / 72)


def test_a_class_of_which_nothing_is_left_is_named(own_images: Path) -> None:
    for file in (own_images / "val/cat").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match="val split lacks cat"):
        load(own_images, max_unreadable=1)


def empty_a_class(folder: Path) -> None:
    shutil.rmtree(folder / "train/bee")
    (folder / "train/bee").mkdir()


def keep_one_class(folder: Path) -> None:
    for name in ("bee", "cat"):
        shutil.rmtree(folder / "train" / name)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (empty_a_class, "train/bee: the class bee is empty"),
        (keep_one_class, "train: must contain at least two folders.*got 1"),
        (lambda folder: shutil.rmtree(folder / "val/bee"), "val split lacks bee"),
        (lambda folder: shutil.rmtree(folder / "train/bee"), "val split .*not in train: bee"),
        (lambda folder: (folder / "val/bee").rename(folder / "val/wasp"), "lacks bee .*not in train: wasp"),
        (lambda folder: shutil.rmtree(folder / "train"), "no train/"),
        (lambda folder: shutil.rmtree(folder), "no such folder"),
        (lambda folder: [shutil.rmtree(folder), folder.write_text("a file")], "must be a folder, a table"),
        (lambda folder: [shutil.rmtree(folder), folder.mkdir()], "at least two folders"),
        (lambda folder: [shutil.rmtree(folder / "train"), (folder / "train").write_text("")], "no train/"),
    ],
    ids=[
        "empty class", "one class", "missing in val", "missing in train", "other name in val", "no train", "no folder",
        "a file", "empty folder", "train is a file",
    ],
)  # fmt: skip
def test_folders_that_cannot_be_trained_on_are_named(
    own_images: Path, damage: Callable[[Path], object], told: str
) -> None:
    damage(own_images)
    with pytest.raises(DataError, match=told) as caught:
        load(own_images)
    assert str(own_images) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [1, 2])
def test_classes_too_small_to_be_split_are_refused(tmp_path: Path, count: int) -> None:
    for name, color in COLORS.items():
        write_images(tmp_path / name, color, count=count)
    if count == 1:
        with pytest.raises(DataError, match="2 images"):
            load(tmp_path)
    else:
        assert per_class(load(tmp_path).train) == [1, 1, 1]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("list.csv", r"list\.csv: no such file$"), ("a/b.npz", "a/b.npz: no such file$"),
        ("a/b", "a/b: no such folder$"), ("~/nothing/here", r"/nothing/here: no such folder$"),
        ("", "has no name"), ("x" * 5000, "no such folder"), ("a\0b", r"a\\x00b: no such folder"),
        (Path("digits"), "digits: no such folder$"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(data: str | Path, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=told) as error:
        open_data(data)
    assert str(error.value).isprintable()


def test_a_tilde_is_the_home_directory(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(images.parent))
    assert open_data("~/images").location == str(images)


def test_a_dangling_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to("/gone")
    with pytest.raises(DataError, match="data: a link to /gone, which does not exist"):
        open_data(tmp_path / "data")


def test_two_data_sets_in_one_folder_are_refused(tmp_path: Path) -> None:
    for name in ("dtd", "eurosat"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="contains the data sets dtd, eurosat"):
        open_data(tmp_path)


def test_unknown_names_get_the_nearest_known_one() -> None:
    with pytest.raises(DataError, match=r"digit: no such folder \(did you mean digits\?\)"):
        open_data("digit")


def test_a_named_set_that_is_not_cached_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"mnist is not in .*--download"):
        open_data("mnist")


def test_classes_are_matched_by_name_in_any_order() -> None:
    check_same_classes(("ant", "bee", "cat"), ("cat", "ant", "bee"), split="val", where="here")
    with pytest.raises(DataError, match=r"here: the val split lacks cat and has .*: dog"):
        check_same_classes(("ant", "bee", "cat"), ("dog", "bee", "ant"), split="val", where="here")


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [("cat", "Cat", "'cat' is not 'Cat'"), ("a b", "a  b", "'a b' is not 'a  b'"),
     ("\ufb01n", "fin", r"'\\ufb01n' is not 'fin'"), ("cat", "dog", "by name$")],
)  # fmt: skip
def test_names_that_look_the_same_are_told_apart(ours: str, theirs: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        check_same_classes((ours, "x"), (theirs, "x"), split="val", where="here")


def test_a_thousand_missing_classes_are_one_short_line() -> None:
    with pytest.raises(DataError, match="and 990 more") as error:
        check_same_classes([str(i) for i in range(1000)], [], split="val", where="here")
    assert len(str(error.value)) < 200


def test_progress_counts_every_image(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int]] = []
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))

    def progress(task: str, done: int, total: int) -> None:
        told.append((task, done, total))

    open_data(images, progress=progress).load(RGB, progress=progress)
    assert Counter(what for what, _, _ in told) == dict.fromkeys(
        ("reading files", "decoding train", "reading val", "decoding val"), 36
    )
    assert told[-1] == ("decoding val", 36, 36)


def test_a_rare_class_stays_on_both_sides() -> None:
    labels = torch.tensor([0] * 1000 + [1] * 1000 + [2] * 2)
    rest, part = split_off(labels, 0.2, seed=0, where="data")
    assert torch.bincount(labels[rest]).tolist()[2] == torch.bincount(labels[part]).tolist()[2] == 1
    assert sorted([*rest.tolist(), *part.tolist()]) == list(range(len(labels)))


def test_training_images_of_a_folder_do_not_come_class_after_class(images: Path) -> None:
    labels = load(images).train.targets.tensor("label")
    assert labels.tolist() != labels.sort().values.tolist()
