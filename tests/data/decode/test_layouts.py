"""However a file stores its pixels, its image is the same: in 8 and 16 bits, at any depth, inverted, rotated."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import image_files
from convatlas.data.decode.headers import read_header
from convatlas.data.decode.pixels import read_shares
from convatlas.errors import DataError
from image_files import (
    ALPHA,
    GRAY,
    LAB,
    PAIRS,
    RGB,
    chunk,
    decoded,
    in_depth,
    on_white,
    png,
    saved,
    tiff,
    transparency,
    with_alpha,
)


def difference(data: bytes, image: NDArray[Any]) -> int:
    """Return the largest difference between the pixels of a file and an 8-bit image."""
    return int(np.abs(decoded(data).astype(int) - image.reshape(*image.shape[:2], -1)).max())


@pytest.mark.parametrize("name", PAIRS)
def test_an_image_in_8_and_16_bits_is_the_same(name: str) -> None:
    file, image = PAIRS[name]
    assert difference(file(8), image) <= 1
    assert difference(file(16), image) <= 1
    headers = [read_header("x", data=file(bits)) for bits in (8, 16)]
    assert [header.high_bit_depth for header in headers] == [False, True]
    assert {(header.size, header.channels) for header in headers} == {
        (image.shape[1::-1], 3 if "rgb" in name or image.shape[2:] == (3,) else 1)
    }


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 9, 10, 12, 14, 15, 24, 32, 64])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb"])
def test_every_depth_reaches_from_black_to_white(bits: int, photometric: str) -> None:
    if bits > 16 and photometric == "rgb":
        pytest.skip("tifffile does not write it")
    image = RGB if photometric == "rgb" else GRAY
    stored = in_depth(image, bits)
    shown = (stored.astype(float) / (2**bits - 1) * 255).round().astype(np.uint8)
    stored = stored if photometric != "miniswhite" else np.array(2**bits - 1, stored.dtype) - stored
    if bits == 1 and photometric != "rgb":
        stored = stored.astype(bool)
    data = tiff(stored, photometric=photometric, bitspersample=None if bits == 64 else bits)
    assert difference(data, shown) <= 1
    assert {decoded(data).min(), decoded(data).max()} == {shown.min(), shown.max()}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_as_stored(dtype: type) -> None:
    for values, photometric in ((GRAY / 255, "minisblack"), (1 - GRAY / 255, "miniswhite"), (RGB / 255, "rgb")):
        data = tiff(values.astype(dtype), photometric=photometric)
        assert difference(data, RGB if photometric == "rgb" else GRAY) <= 1
        assert read_header("x", data=data).high_bit_depth


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_by_every_reader(bits: int, orientation: int) -> None:
    turned = {
        1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.swapaxes(0, 1), 6: np.rot90(RGB, -1),
        7: RGB[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(RGB),
    }[orientation]  # fmt: skip
    values, tag = in_depth(RGB, bits), [(0x0112, 3, 1, orientation, True)]
    exif = image_files.chunk(b"eXIf", image_files.exif(orientation))
    raw = b"Raw profile type exif\0\nexif\n   26\n" + image_files.exif(orientation).hex().encode()
    for data in (
        png(values, before=exif), png(values, after=exif), png(values, before=image_files.chunk(b"tEXt", raw)),
        tiff(values, photometric="rgb", extratags=tag),
        tiff(values, photometric="rgb", compression="lzw", extratags=tag),
        tiff(np.moveaxis(values, 2, 0), photometric="rgb", planarconfig="separate", extratags=tag),
    ):  # fmt: skip
        assert difference(data, turned) <= 1
        assert read_header("x", data=data).rotated == (orientation != 1)


@pytest.mark.parametrize("encoding", ["cielab", "icclab"])
def test_lab_becomes_srgb_as_lcms_converts_it(encoding: str) -> None:
    deep = np.stack([LAB[..., 0].astype(np.uint16) * 257, *(LAB[..., i].astype(np.uint16) * 256 for i in (1, 2))], 2)
    lab = LAB.copy()
    if encoding == "icclab":
        lab[..., 1:] ^= 0x80
        deep[..., 1:] ^= 0x8000
        deep[..., 0] = (LAB[..., 0] / 255 * 65280).round()
    expected = Image.fromarray(LAB, "LAB").convert("RGB")
    for values in (lab, deep):
        assert difference(tiff(values, photometric=encoding), np.asarray(expected)) <= 2


def test_further_bands_are_channels() -> None:
    for bits in (8, 16):
        bands = in_depth(np.concatenate([RGB, RGB[..., :1]], 2), bits)
        data = tiff(bands, photometric="rgb", extrasamples=["unspecified"])
        assert read_header("x", data=data).channels == 4
        assert np.array_equal(decoded(data, 4)[..., 3], RGB[..., 0])
        assert difference(data, RGB) == 0  # a network of RGB reads the colors
        data = tiff(bands[..., :2], photometric="minisblack", planarconfig="contig", extrasamples=["unspecified"])
        assert read_header("x", data=data).channels == 2
        with pytest.raises(DataError, match="has 2 channel"):
            decoded(data, 3)
        kept = tiff(in_depth(with_alpha(RGB), bits), photometric="rgb", extrasamples=["unassalpha"])
        assert np.array_equal(decoded(kept, 4)[..., 3], ALPHA)


REFUSED = {
    "negative gray": (lambda: tiff(GRAY.astype(np.int16) - 100, photometric="minisblack"), r"must be in \[0, 32767\]"),
    "negative colors": (lambda: tiff(RGB.astype(np.int16) - 100, photometric="rgb"), r"integers must be in"),
    "negative bytes": (lambda: tiff(RGB.view(np.int8), photometric="rgb"), r"integers must be in \[0, 127\]"),
    "int32 beyond 16 bits": (lambda: tiff(GRAY.astype(np.int32) + 70000, photometric="minisblack"), "65535"),
    "complex": (lambda: tiff(GRAY.astype(np.complex64), photometric="minisblack"), "complex numbers"),
    "color filter array": (lambda: tiff(GRAY, photometric="cfa"), "color filter array"),
    "LogLuv": (lambda: tiff(RGB, photometric=32845), "LogLuv"),
    "float palette": (lambda: tiff(np.zeros((7, 5, 3), np.float32), photometric="cielab"), "lab of 32-bit floats"),
    "no pixels": (lambda: png(RGB)[:33] + png(RGB)[-12:], "holds no pixels"),
    "truncated PGM": (lambda: b"P5 5 7 65535\n" + bytes(69), "truncated"),
    "truncated PPM": (lambda: b"P3 5 7 100\n1 2 3", "truncated"),
    "truncated BMP": (lambda: image_files.bmp(np.zeros((7, 5), np.uint16), (0xF800, 0x7E0, 0x1F))[:-9], "truncated"),
    "overlapping masks": (lambda: image_files.bmp(np.zeros((7, 5), np.uint16), (0xF0F0, 0x7E0, 0x1F)), "lie together"),
    "empty": (lambda: b"P5 0 7 65535\n", "must be >= 1"),
    "PostScript": (lambda: saved(Image.fromarray(RGB), "EPS"), "EPS is not supported"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_by_name(name: str) -> None:
    make, message = REFUSED[name]
    data = make()
    with pytest.raises(DataError, match=f"^x: cannot be read: .*{message}"):
        decoded(data)


@pytest.mark.parametrize("image", [GRAY, RGB], ids=["gray", "rgb"])
@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.uint64])
def test_an_8_bit_image_may_have_a_wide_type(dtype: type, image: NDArray[np.uint8]) -> None:
    assert difference(tiff(image.astype(dtype), photometric="minisblack" if image.ndim == 2 else "rgb"), image) == 0


def test_signed_integers_that_are_not_negative_are_read() -> None:
    half = GRAY // 2
    assert difference(tiff(half.astype(np.int8), photometric="minisblack"), (half / 127 * 255).round()) <= 1
    assert (
        difference(
            tiff(half.astype(np.int16) * 257, photometric="minisblack"), (half.astype(int) * 257 / 32767 * 255).round()
        )
        <= 1
    )
    assert (
        difference(tiff(GRAY.astype(np.int32) * 257, photometric="minisblack"), GRAY) == 0
    )  # as Pillow stores 16 bits


def test_old_tags_are_read_as_libtiff_reads_them() -> None:
    data = bytearray(tiff(GRAY, photometric="minisblack", metadata=None))
    place = data.index(struct.pack("<HH", 262, 3))
    data[place : place + 2] = struct.pack("<H", 65000)  # without PhotometricInterpretation
    assert difference(bytes(data), GRAY) == 0


@pytest.mark.parametrize("name", [name for name in PAIRS if "lzma" not in name])
def test_without_extras_an_image_is_the_same_or_the_fix_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file, image = PAIRS[name]
    files = [file(8), file(16)]
    monkeypatch.setitem(sys.modules, "tifffile", None)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    monkeypatch.setattr("convatlas.data.decode.tiff.is_installed", lambda *_: False)
    for data in files:
        try:
            assert difference(data, image) <= 1
        except DataError as error:
            assert str(error).endswith("is not installed; pip install 'convatlas[data]'")  # noqa: PT017


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("name", ["5-6-5", "5-5-5", "1-5-5-5", "4-4-4-4", "8-8-8", "8-8-8-8", "10-10-10", "10-10-10-2"])
def test_bit_fields_of_bmp(bits: int, name: str) -> None:
    widths = {"1-5-5-5": (5, 5, 5, 1)}.get(name, tuple(map(int, name.split("-"))))
    if sum(widths) > bits:
        pytest.skip("more bits than a pixel has")
    samples = [RGB[..., 0], RGB[..., 1], RGB[..., 2], ALPHA]
    pixels, masks, shift, shown = np.zeros((7, 5), np.uint32), [], 0, []
    for width, values in zip(widths, samples, strict=False):
        stored = (values.astype(float) / 255 * (2**width - 1)).round().astype(np.uint32)
        pixels |= stored << shift
        masks.append((2**width - 1) << shift)
        shown.append((stored / (2**width - 1) * 255).round().astype(np.uint8))
        shift += width
    image = np.stack(shown[:3], 2)
    image = on_white(image, shown[3]) if len(shown) == 4 else image
    file = image_files.bmp(pixels.astype(f"<u{bits // 8}"), tuple(masks))
    assert difference(file, image) <= 1
    if len(masks) == 3:
        assert difference(image_files.bmp(pixels.astype(f"<u{bits // 8}"), tuple(masks), v4=False), image) <= 1


def test_an_opacity_of_zero_everywhere_is_none() -> None:
    file = image_files.bmp(np.full((7, 5), 0x1F, "<u2"), (0x7C00, 0x3E0, 0x1F, 0x8000))
    assert decoded(file)[0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("maximum", [1, 9, 31, 100, 1000, 4095])
def test_the_maximum_of_a_pgm_is_white(maximum: int) -> None:
    values = (GRAY.astype(int) * maximum // 255).astype(">u2" if maximum > 255 else "u1")
    image = (values / maximum * 255).round().astype(np.uint8)
    assert difference(b"P5\n#c\n5 #c\n7\n%d\n" % maximum + values.tobytes(), image) <= 1
    assert difference(b"P2 5 7 %d\n#c\n" % maximum + " ".join(map(str, values.ravel())).encode(), image) <= 1


def test_color_pfm() -> None:
    data = b"PF\n5 7\n-1.0\n" + (RGB[::-1] / 255).astype("<f4").tobytes()
    assert difference(data, RGB) <= 1


def test_shares_keep_all_bits() -> None:
    values = (np.arange(35).reshape(7, 5) * 123_456_789 % 2**32).astype(np.uint32)
    shares = read_shares("x", 1, data=tiff(values, photometric="minisblack"))[0].numpy()
    assert np.allclose(shares, values / (2**32 - 1), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("identify"), reason="ImageMagick is not installed")
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 10, 12, 14, 16, 32])
@pytest.mark.parametrize("options", ["", "-compress LZW", "-compress Zip", "-interlace plane", "-endian MSB"])
@pytest.mark.parametrize("source", ["gray", "rgb", "rgba"])
def test_imagemagick_decodes_its_own_files_the_same(tmp_path: Path, source: str, options: str, depth: int) -> None:
    image = {"gray": GRAY, "rgb": RGB, "rgba": with_alpha(RGB)}[source]
    convert = str(Path(str(shutil.which("identify"))).with_name("convert"))
    (tmp_path / "x.png").write_bytes(png(image))
    subprocess.run([convert, "x.png", "-depth", str(depth), *options.split(), "x.tif"], cwd=tmp_path, check=True)
    flat = ["-background", "white", "-alpha", "remove", "-depth", "8", "-strip", "RGB:-"]
    found = subprocess.run([convert, "x.tif", *flat], cwd=tmp_path, check=True, capture_output=True).stdout
    assert difference((tmp_path / "x.tif").read_bytes(), np.frombuffer(found, np.uint8).reshape(7, 5, 3)) <= 1


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_gray_of_few_bits_is_white(bits: int, channels: int) -> None:
    gray = np.arange(16, dtype=np.uint8).reshape(2, 8) % 2**bits
    rows = np.packbits(np.unpackbits(gray[..., None], axis=2)[..., 8 - bits :].reshape(2, -1), axis=1)
    header = struct.pack(">IIBBBBB", 8, 2, bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + transparency(np.array([0])) + chunk(b"IDAT", pixels)
    expected = np.where(gray == 0, 255, gray.astype(int) * 255 // (2**bits - 1))
    assert np.array_equal(decoded(file, channels), np.repeat(expected[..., None], channels, axis=2))


@pytest.mark.parametrize("tag", [256, 257])
def test_a_tiff_without_all_of_its_tiles_is_truncated(tag: int) -> None:
    data = bytearray(tiff(RGB, photometric="rgb", tile=(16, 16), metadata=None))
    place = data.index(struct.pack("<HH", tag, 4))
    data[place + 8 : place + 10] = struct.pack("<H", 60000)
    with pytest.raises(DataError, match=r"truncated: strips or tiles are missing"):
        decoded(bytes(data))
