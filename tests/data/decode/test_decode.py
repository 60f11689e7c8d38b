"""Images with more than 8 bits, floats, and other channels than grayscale and RGB, from file to prediction."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import convatlas as ca
from convatlas.core.preprocessing import Preprocessing
from convatlas.data.decode.display import display_image
from convatlas.data.decode.headers import read_header
from convatlas.data.decode.pixels import pixels_of, read_image, read_shares
from convatlas.data.manifest import Manifest
from convatlas.data.open import open_data
from convatlas.data.statistics import channels_and_depth
from convatlas.data.threads import map_in_threads
from convatlas.errors import DataError, SpecError
from convatlas.train.preparation import preprocessing_for
from convatlas.train.recipe import Recipe
from convatlas.train.settings import DataOptions

RANDOM = np.random.default_rng(0)


def color_png(path: Path, values: NDArray[np.uint16]) -> None:
    """Write a PNG of 16 bits and 2 to 4 channels, which Pillow cannot."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def write(path: Path, values: NDArray[Any]) -> None:
    """Write values in the format of the path's ending."""
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".tif" and values.ndim == 3:
        pytest.importorskip("tifffile").imwrite(path, values, planarconfig="contig")
    elif values.ndim == 3:
        color_png(path, values)
    else:
        Image.fromarray(values).save(path)


GRAY16 = RANDOM.integers(0, 65536, (7, 9)).astype(np.uint16)
COLOR16 = RANDOM.integers(0, 65536, (7, 9, 3)).astype(np.uint16)
BANDS16 = RANDOM.integers(0, 65536, (7, 9, 13)).astype(np.uint16)
FLOATS = RANDOM.normal(0, 500, (7, 9)).astype(np.float32)
HIGH_BIT_DEPTH = [
    ("gray.png", GRAY16), ("gray.tif", GRAY16), ("gray.npy", GRAY16), ("color.png", COLOR16),
    ("color.tif", COLOR16), ("color.npy", COLOR16), ("bands.tif", BANDS16), ("bands.npy", BANDS16),
    ("floats.tif", FLOATS), ("floats.npy", FLOATS), ("bytes.npy", (BANDS16 >> 8).astype(np.uint8)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "values"), HIGH_BIT_DEPTH)
def test_every_bit_and_every_channel_of_a_file_is_read(tmp_path: Path, name: str, values: NDArray[Any]) -> None:
    write(tmp_path / name, values)
    channels = 1 if values.ndim == 2 else values.shape[2]
    full = 1 if values.dtype == np.float32 else np.iinfo(values.dtype).max
    shares = read_shares(tmp_path / name, channels)
    expected = values.reshape(*values.shape[:2], channels).astype(np.float32) / full
    assert torch.equal(shares, torch.from_numpy(expected.transpose(2, 0, 1).copy()))
    header = read_header(tmp_path / name)
    assert (header.size, header.channels, header.high_bit_depth) == ((9, 7), channels, values.dtype != np.uint8)


@pytest.mark.parametrize(("name", "values"), HIGH_BIT_DEPTH[:6])
def test_where_8_bits_are_read_16_are_rounded(tmp_path: Path, name: str, values: NDArray[Any]) -> None:
    write(tmp_path / name, values)
    channels = 1 if values.ndim == 2 else 3
    expected = (values.reshape(7, 9, channels) / 257).round().astype(np.uint8).transpose(2, 0, 1)
    assert np.array_equal(read_image(tmp_path / name, channels).numpy(), expected)


def test_transparent_pixels_of_16_bits_become_white(tmp_path: Path) -> None:
    values = np.zeros((2, 2, 4), np.uint16)
    values[0, 0] = (1000, 2000, 3000, 65535)
    color_png(tmp_path / "x.png", values)
    shares = read_shares(tmp_path / "x.png", 3)
    assert torch.allclose(shares[:, 0, 0] * 65535, torch.tensor([1000.0, 2000.0, 3000.0]), atol=1)
    assert shares[:, 1].eq(1).all()
    assert read_shares(tmp_path / "x.png", 4)[3, 0].tolist() == [1, 0]


def test_the_orientation_of_a_tiff_is_applied(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = np.arange(6 * 5 * 4, dtype=np.uint16).reshape(4, 6, 5)
    for orientation in range(1, 9):
        tag = [(0x0112, 3, 1, orientation, True)]
        tifffile.imwrite(tmp_path / "many.tif", values, planarconfig="contig", photometric="minisblack", extratags=tag)
        tifffile.imwrite(tmp_path / "one.tif", values[..., 0], extratags=tag)
        many, one = read_shares(tmp_path / "many.tif", 5), read_shares(tmp_path / "one.tif", 1)
        assert torch.equal(many[:1], one)  # Pillow rotated the second one


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.npy", b"no array", "not an image"),
        ("y.npy", b"\x93NUMPY\1\0damaged", "cannot be read"),
        ("x.tif", b"II*\0nothing", "not an image|cannot be read|holds no page"),
        ("x.png", b"", "not an image"),
    ],
)
def test_files_that_are_not_images_are_refused(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    for read in (lambda p: read_image(p, 3), read_header):
        with pytest.raises(DataError, match=rf"\w\.\w+: ({told})"):
            read(tmp_path / name)


def test_errors_of_our_own_code_are_not_unreadable_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(GRAY16).save(tmp_path / "x.png")
    monkeypatch.setattr("convatlas.data.decode.pixels.in_channels", None)
    with pytest.raises(TypeError, match="not callable"):
        read_image(tmp_path / "x.png", 1)


def test_reading_in_threads_leaves_warning_filters_alone_and_large_images_do_not_warn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(COLOR16.astype(np.uint8)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # of 63
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        images = list(map_in_threads(lambda _: read_image(tmp_path / "x.png", 3), range(200)))
        assert warnings.filters == before
    assert all(torch.equal(image, images[0]) for image in images)


def test_pickled_arrays_are_not_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((3, 3), None), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path / "x.npy", 1)


def test_a_tiff_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "x.tif", BANDS16, planarconfig="contig", photometric="minisblack")
    raw = bytearray((tmp_path / "x.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        for tag in ("ImageWidth", "ImageLength"):
            held = file.pages[0].tags[tag]
            raw[held.valueoffset : held.valueoffset + held.valuebytecount] = struct.pack("<I", 60_000)
    (tmp_path / "x.tif").write_bytes(raw)
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path / "x.tif", 13)


@pytest.mark.parametrize(
    ("values", "channels", "window", "told"),
    [(np.zeros((3, 3, 2), np.uint8), 3, None, "2 channel"), (np.full((3, 3), np.nan), 1, (0, 1), "NaN or infinity"),
     (np.full((3, 3), 80.5), 1, None, "got 80.5"), (np.zeros(3), 1, None, "an array"),
     (np.zeros((0, 3)), 1, None, "an array"), (np.full((3, 3), "a"), 1, None, "an array")],
)  # fmt: skip
def test_arrays_that_are_not_images_are_refused(values: NDArray[Any], channels: int, window: Any, told: str) -> None:
    with pytest.raises(DataError, match=f"^it: .*{told}"):
        pixels_of(values, channels, "it", window)


def test_most_images_decide_what_a_folder_holds(tmp_path: Path) -> None:
    names = [str(tmp_path / f"{i}.png") for i in range(5)]
    for name in names:
        Image.fromarray(GRAY16).save(name)
    assert channels_and_depth(names, Manifest("x")) == (1, True)
    for name in names[:3]:
        Image.fromarray((COLOR16 >> 8).astype(np.uint8)).save(name)
    assert channels_and_depth(names, Manifest("x")) == (3, False)
    (tmp_path / "4.png").write_bytes(b"")
    assert channels_and_depth(names[4:], Manifest("x")) == (3, False)


def test_a_window_is_two_numbers_that_rise() -> None:
    for window in ((1, 1), (2, 1), (0, float("inf"))):
        with pytest.raises(SpecError, match="window"):
            Preprocessing(8, 8, window=window)
    plain = Preprocessing(8, 8, window=(0.0, 0.5)).to_plain()
    assert Preprocessing.from_plain(plain).window == (0.0, 0.5)
    for window in ([1], "ab", [0, "1"], [0, 1, 2]):
        with pytest.raises(SpecError, match="window"):
            Preprocessing.from_plain(plain | {"window": window})


# --- from a folder to answers


def folder_of(root: Path, ending: str, low: NDArray[Any], high: NDArray[Any], noise: float) -> Path:
    """Write 40 images of two classes, two levels with a little noise, as train/ and val/."""
    random = np.random.default_rng(1)
    for split, count in (("train", 14), ("val", 6)):
        for name, level in (("high", high), ("low", low)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                shape = (12, 12) if level.ndim == 0 else (12, 12, len(level))
                values = (level + random.normal(0, noise, shape)).astype(level.dtype)
                write(root / split / name / f"{i}{ending}", values)
    return root


SPEC = ca.spec("cifar_resnet20").scaled(resolution=20)
BANDS = np.array([900] * 6, np.uint16)
CASES = {
    # 1000 and 1100 of 65535 are the same of 255
    "16 bits": (".png", np.array(1000, np.uint16), np.array(1100, np.uint16), 10),
    "floats": (".tif", np.array(-300, np.float32), np.array(2800, np.float32), 400),
    "six bands": (".npy", BANDS, BANDS + np.array([0, 0, 0, 0, 90, 0], np.uint16), 20),
    "bytes of five bands": (".npy", np.array([9, 9, 9, 9, 60], np.uint8), np.array([9, 60, 9, 9, 9], np.uint8), 1),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("crop", [False, True])
def test_prepared_images_keep_what_8_bits_and_three_channels_would_lose(tmp_path: Path, case: str, crop: bool) -> None:
    ending, low, high, noise = CASES[case]
    source = open_data(folder_of(tmp_path / "data", ending, low, high, noise))
    steps = preprocessing_for(source, Preprocessing(resize=20, crop=20), SPEC, source.channels, 0, DataOptions())
    assert steps.channels == (1 if low.ndim == 0 else len(low))
    assert (steps.window is None) == (low.dtype == np.uint8)
    data = source.load(steps, for_random_crop=crop)
    assert data.val is not None
    inputs = steps.normalize(data.train.pixels)
    assert inputs.mean().abs() < 0.5
    assert 0.5 < inputs.std() < 1.5
    # the nearer mean of a class, of the means of each channel, is enough
    colors, labels = inputs.mean((2, 3)), data.train.targets.tensor("label")
    centers = torch.stack([colors[labels == label].mean(0) for label in (0, 1)])
    predicted = torch.cdist(steps.normalize(data.val.pixels).mean((2, 3)), centers).argmin(1)
    assert predicted.tolist() == data.val.targets.tensor("label").tolist()


@pytest.mark.parametrize(("case", "crop"), [("16 bits", 0.5), ("six bands", 0.0)])
def test_a_network_learns_it(tmp_path: Path, case: str, crop: float) -> None:
    ending, low, high, noise = CASES[case]
    folder = folder_of(tmp_path / "data", ending, low, high, noise)
    recipe = Recipe(epochs=12, batch=8, lr=0.02).replaced({"min_crop_area": crop, "flip": True, "max_shift": 1})
    run = ca.fit(folder, "lenet5_modern", recipe=recipe, out=tmp_path / "run", data_options=DataOptions(resolution=20))
    assert run.results["val"].score == 1
    answers = ca.load(run.model_file).predict(sorted((folder / "val").rglob(f"*{ending}")))
    assert [answer.label for answer in answers] == ["high"] * 6 + ["low"] * 6
    again = ca.load(run.model_file).predict(pixels(folder, ending))
    assert again[0].probabilities == pytest.approx(answers[0].probabilities, abs=1e-6)
    assert ca.resume(run.folder).results["val"].score == 1
    assert "<img" in (run.folder / "report.html").read_text()


def pixels(folder: Path, ending: str) -> NDArray[Any]:
    first = min((folder / "val").rglob(f"*{ending}"))
    return np.load(first) if ending == ".npy" else np.array(Image.open(first))


@pytest.mark.parametrize("kind", [np.uint16, np.float32, np.float64])
def test_arrays_keep_their_depth(tmp_path: Path, kind: type) -> None:
    labels = np.arange(40) % 2
    values = (np.full((40, 8, 8), 1000) + 100 * labels[:, None, None]).astype(kind)
    np.savez(tmp_path / "x.npz", x=values, y=labels)
    source = open_data(tmp_path / "x.npz")
    assert source.high_bit_depth
    held = source.statistics(1)
    assert held is not None
    steps = Preprocessing(8, 8, window=held.window, mean=held.mean, std=held.std)
    data = source.load(steps, val_share=0.2)
    assert sorted(set(data.train.pixels.flatten().tolist())) == [0, 255]
    assert steps.normalize(data.whole.pixels).std() == pytest.approx(1, abs=0.01)


def test_what_is_set_aside_is_not_measured(tmp_path: Path) -> None:
    labels = np.arange(40) % 2
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).integers(0, 60000, (40, 8, 8), dtype=np.uint16), y=labels)
    source = open_data(tmp_path / "x.npz")
    for cut in ({"seed": 1, "val_share": 0.2}, {"seed": 1, "fold": (2, 4)}):
        held, train = source.statistics(1, **cut), source.with_val(**cut)["train"].pixels  # type: ignore[arg-type]
        assert held is not None
        assert train is not None
        assert held.window == (float(train.min()), float(train.max()))
        assert held != source.statistics(1)


def test_images_without_any_contrast_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.full((8, 4, 4), 700, np.uint16), y=np.arange(8) % 2)
    with pytest.raises(DataError, match="all pixels of all images"):
        open_data(tmp_path / "x.npz").statistics(1)


def test_integers_beyond_16_bits_are_refused_and_not_wrapped(tmp_path: Path) -> None:
    path = tmp_path / "deep.tif"
    Image.fromarray(np.full((8, 8), 70000, np.int32)).save(path)
    with pytest.raises(DataError, match=r"deep\.tif.*70000"):
        read_image(path, 1)


@pytest.mark.parametrize(
    ("shape", "expected"), [((40, 30), (40, 30)), ((1024, 256), (512, 128)), ((1, 6000), (1, 512))]
)
def test_images_for_display_have_a_maximum_size(
    tmp_path: Path, shape: tuple[int, int], expected: tuple[int, int]
) -> None:
    Image.fromarray(np.full(shape, 51, np.uint8)).save(tmp_path / "x.png")
    image = display_image(tmp_path / "x.png")
    assert image is not None
    assert image.shape == (*expected, 3)
    assert image == pytest.approx(0.2)
