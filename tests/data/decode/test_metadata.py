"""Damaged metadata costs no good pixels, nothing is printed, and the first bytes of a file decide on its format."""

from __future__ import annotations

import io
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from convatlas.data.decode import files
from convatlas.data.decode.decoders import pillow_values, read_values
from convatlas.data.decode.headers import read_header
from convatlas.data.decode.pixels import read_image
from convatlas.data.open import open_data
from convatlas.data.threads import map_in_threads
from convatlas.errors import DataError
from image_files import (
    ALPHA,
    GRAY,
    RGB,
    chunk,
    decoded,
    exif,
    in_depth,
    jpeg_with,
    on_white,
    png,
    saved,
    segment,
    tiff,
    with_alpha,
)

PLAIN_JPEG = decoded(jpeg_with(b""))
DEFLATED = zlib.compress(bytes(3_000_000))
PNG_METADATA = {
    "EXIF of garbage": chunk(b"eXIf", b"garbage"),
    "EXIF that is cut off": chunk(b"eXIf", exif(1)[:13]),
    "huge profile": chunk(b"iCCP", b"x\0\0" + DEFLATED),
    "profile of an unknown method": chunk(b"iCCP", b"x\0\7abc"),
    "huge text": chunk(b"zTXt", b"x\0\0" + DEFLATED),
    "text of an unknown method": chunk(b"zTXt", b"x\0\7abc"),
    "raw profile of garbage": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 8\nnothing"),
    "raw profile that is huge": chunk(b"zTXt", b"Raw profile type exif\0\0" + DEFLATED),
    "short pHYs": chunk(b"pHYs", b"\0"), "short gAMA": chunk(b"gAMA", b"\0"), "short sRGB": chunk(b"sRGB", b""),
    "short cHRM": chunk(b"cHRM", b"\0"), "short tRNS": chunk(b"tRNS", b"\0"),
    "wrong checksum of tIME": chunk(b"tIME", b"abcdefg")[:-1] + b"?",
    "wrong checksum of tEXt": chunk(b"tEXt", b"a\0b")[:-1] + b"?",
    "wrong checksum of tRNS": chunk(b"tRNS", RGB[0, 0].astype(">u2").tobytes())[:-1] + b"?",
    "invalid animation": chunk(b"acTL", bytes(8)), "short animation": chunk(b"acTL", b""),
    "frame out of order": chunk(b"fcTL", struct.pack(">7I", 9, 5, 7, 0, 0, 0, 0)[:26]),
}  # fmt: skip
JPEG_METADATA = {
    "negative width beside orientation": segment(0xE1, b"Exif\0\0" + exif(1, more=struct.pack("<HHIi", 256, 9, 1, -5))),
    "EXIF of garbage": segment(0xE1, b"Exif\0\0garbage"),
    "EXIF with a cycle": segment(0xE1, b"Exif\0\0" + exif(1)[:-4] + struct.pack("<I", 8)),
    "doubled identifier": segment(0xE1, b"Exif\0\0Exif\0\0" + exif(1)),
    "short profile": segment(0xE2, b"ICC_PROFILE\0"),
    "index of further images": segment(0xE2, b"MPF\0" + b"II*\0\xff\xff\xff\xff"),
    "Photoshop's block": segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\xff\xff\xff\xff"),
    "comment": segment(0xFE, b"\xff\xd9\xff\xda"),
    "XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='6'>"),
}


@pytest.mark.parametrize("name", PNG_METADATA)
@pytest.mark.parametrize("bits", [8, 16])
def test_png_with_damaged_metadata_is_read(name: str, bits: int) -> None:
    for place in ("before", "after"):
        data = png(in_depth(RGB, bits), **{place: PNG_METADATA[name]})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(decoded(data), RGB)
            assert not read_header("x", data=data).rotated


@pytest.mark.parametrize("name", JPEG_METADATA)
def test_jpeg_with_damaged_metadata_is_read(name: str) -> None:
    data = jpeg_with(JPEG_METADATA[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(decoded(data), PLAIN_JPEG)
        assert not read_header("x", data=data).rotated


@pytest.mark.parametrize(
    ("tag", "turned"),
    [
        (exif(6), True), (exif(struct.pack("<I", 6), 4), True),
        (exif(6, more=struct.pack("<HHIi", 256, 9, 1, -5)), True),
        (exif(6, more=struct.pack("<HHII", 0x8769, 4, 1, 8)), True),  # EXIF inside that leads back
        (b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0), True),
        (exif(0), False), (exif(9), False), (exif(b"6\0\0\0", 2, count=2), False), (exif(6, number=0x0113), False),
        (exif(struct.pack("<f", 1.5), 11), False), (exif(6, 3, count=2**31), False), (exif(6)[:20], False),
    ],
)  # fmt: skip
def test_orientations_from_1_to_8_are_applied_and_others_ignored(tag: bytes, turned: bool) -> None:
    jpeg = jpeg_with(segment(0xE1, b"Exif\0\0" + tag))
    assert np.array_equal(decoded(jpeg), np.rot90(PLAIN_JPEG, -1) if turned else PLAIN_JPEG)
    assert read_header("x", data=jpeg).rotated == turned
    for bits in (8, 16):
        data = png(in_depth(RGB, bits), after=chunk(b"eXIf", tag))
        assert np.array_equal(decoded(data), np.rot90(RGB, -1) if turned else RGB)
    webp = saved(Image.fromarray(RGB), "WEBP", lossless=True, exif=tag)
    assert np.array_equal(decoded(webp), np.rot90(RGB, -1) if turned else RGB)


def test_images_of_pillow_are_read_as_their_files() -> None:
    tag = [(0x0112, 3, 1, 6, True)]
    for data in (
        tiff(np.moveaxis(in_depth(RGB, 16), 2, 0), photometric="rgb", planarconfig="separate", extratags=tag),
        png(in_depth(with_alpha(RGB), 16)), png(in_depth(RGB, 16), after=chunk(b"eXIf", exif(6))),
        b"P6 5 7 1000\n" + in_depth(RGB, 16).astype(">u2").tobytes(),
    ):  # fmt: skip
        with Image.open(io.BytesIO(data)) as image:
            assert np.array_equal(pillow_values(image, 3, "x"), read_values(data, 3, "x"))
            image.load()  # still possible
    rotated = Image.fromarray(RGB)
    rotated.getexif()[0x0112] = 6
    assert np.array_equal(pillow_values(rotated, 3, "x"), np.rot90(RGB, -1))
    damaged = Image.fromarray(RGB)
    damaged.info["exif"] = b"Exif\0\0garbage"
    assert np.array_equal(pillow_values(damaged, 3, "x"), RGB)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_of_pillow_becomes_gray_or_rgb(mode: str, channels: int) -> None:
    image = Image.fromarray(with_alpha(RGB))
    image = image.convert("LA").convert("La") if mode == "La" else image
    image = (
        image.convert("RGB").convert(mode) if mode in ("RGBX", "CMYK", "YCbCr", "LAB", "HSV") else image.convert(mode)
    )
    values = pillow_values(image, channels, "x")
    assert values.dtype == np.uint8
    if "A" in mode.upper() and mode not in ("LAB", "PA"):
        gray = np.asarray(Image.fromarray(RGB).convert("L"))
        color = on_white(RGB if "RGB" in mode else gray, ALPHA)
        expected = np.asarray(
            Image.fromarray(np.broadcast_to(color, (7, 5, 3)).copy()).convert("L" if channels == 1 else "RGB")
        )
        assert np.abs(values.astype(int) - expected).max() <= (3 if mode.endswith("a") else 1)


def frames(kind: str) -> bytes:
    images = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    return saved(
        images[0], kind, save_all=True, append_images=images[1:], **({"lossless": True} if kind == "WEBP" else {})
    )


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_is_read(kind: str) -> None:
    assert np.array_equal(decoded(frames(kind)), RGB)


def npy(values: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


CONTENTS: dict[str, Callable[[], bytes]] = {
    "png": lambda: png(RGB), "npy": lambda: npy(RGB), "bmp": lambda: saved(Image.fromarray(RGB), "BMP"),
    "tiff": lambda: tiff(RGB, photometric="rgb"), "ppm": lambda: b"P6 5 7 255\n" + RGB.tobytes(),
    "tga": lambda: saved(Image.fromarray(RGB), "TGA"), "qoi": lambda: saved(Image.fromarray(RGB), "QOI"),
    "ico": lambda: saved(Image.fromarray(RGB), "ICO", sizes=[(5, 7)]),
    "jp2": lambda: saved(Image.fromarray(RGB), "JPEG2000"), "sgi": lambda: saved(Image.fromarray(RGB), "SGI"),
    "pcx": lambda: saved(Image.fromarray(RGB), "PCX"),
}  # fmt: skip


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", ["x.npy", "x.png", "x.tif", "P5 x"])
def test_the_first_bytes_decide_on_the_format(tmp_path: Path, content: str, name: str) -> None:
    data = CONTENTS[content]()
    (tmp_path / name).write_bytes(data)
    assert np.array_equal(read_image(tmp_path / name, 3).numpy().transpose(1, 2, 0), RGB)
    assert np.array_equal(decoded(data), RGB)
    assert read_header(tmp_path / name).size == (5, 7)


@pytest.mark.parametrize(
    ("ending", "kind"),
    [(".jfif", "JPEG"), (".jpe", "JPEG"), (".avif", "AVIF"), (".jp2", "JPEG2000"), (".tga", "TGA"), (".ico", "ICO"),
     (".apng", "PNG"), (".webp", "WEBP"), (".pbm", "PPM"), (".qoi", "QOI"), (".dib", "DIB"), (".pcx", "PCX")],
)  # fmt: skip
def test_endings_of_formats_that_are_read_count_in_folders(tmp_path: Path, ending: str, kind: str) -> None:
    for i in range(4):
        folder = tmp_path / "data" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.kron(RGB, np.ones((4, 4, 1), np.uint8)))
        (folder / f"{i}{ending.upper() if i > 1 else ending}").write_bytes(saved(image, kind))
    source = open_data(tmp_path / "data")
    assert len(source.splits["train"]) == 4
    assert ending in files.EXTENSIONS


def test_heic_is_read_with_its_library_and_otherwise_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    image, file = np.kron(GRAY, np.ones((8, 8), np.uint8)), io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(image).convert("RGB")).save(file, quality=100)
    data = file.getvalue()
    assert np.abs(decoded(data)[..., 0].astype(int) - image).max() <= 3
    assert read_header("x", data=data).size == (40, 56)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for read in (decoded, lambda data: read_header("x", data=data)):
        with pytest.raises(
            files.UnavailableError, match=r"pillow_heif is not installed; pip install 'convatlas\[data\]'"
        ):
            read(data)


def test_nothing_is_printed_about_damaged_files(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [tiff(RGB, photometric="rgb", compression=c) for c in ("lzw", "zlib", "jpeg", "packbits", "zstd")]
    good += [saved(Image.fromarray(RGB), kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "JPEG2000", "AVIF")]
    good += [saved(Image.fromarray(GRAY > 99), "TIFF", compression="group4"), png(in_depth(RGB, 16)), frames("PNG")]
    damaged = [data[:cut] + bytes(40) + data[cut + 40 :] for data in good for cut in range(20, len(data), 61)]
    damaged += [data[:cut] for data in good for cut in range(20, len(data), 61)]

    def read(data: bytes) -> None:
        for work in (lambda: decoded(data), lambda: read_header("x", data=data)):
            try:
                work()
            except DataError as error:
                assert str(error).startswith("x: ")  # noqa: PT017

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        list(map_in_threads(read, damaged))
        monkeypatch.setattr("convatlas.data.decode.tiff.is_installed", lambda *_: False)
        list(map_in_threads(read, damaged))  # TIFF with Pillow's libtiff
        assert warnings.filters == before
    assert capfd.readouterr() == ("", "")


def test_an_image_that_does_not_fit_into_memory_is_an_error_of_that_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    for target in ("convert.scale_integers", "decoders.to_values", "decoders.pillow_samples", "pillow.Image.open"):
        with monkeypatch.context() as patch:
            patch.setattr(f"convatlas.data.decode.{target}", fail)
            with pytest.raises(DataError, match=r"^x: cannot be read"):
                decoded(png(RGB))


@pytest.mark.parametrize("bits", [8, 16])
def test_changed_tags_are_read_or_refused(bits: int) -> None:
    random = np.random.default_rng(bits)
    palette = np.zeros((3, 2**bits), np.uint16)
    bases = [
        tiff(in_depth(RGB, bits), photometric="rgb"),
        tiff(in_depth(GRAY, bits), photometric="palette", colormap=palette),
        tiff(in_depth(with_alpha(RGB), bits), photometric="rgb", extrasamples=["assocalpha"], compression="lzw"),
        tiff(GRAY.astype(np.float32), photometric="minisblack", extratags=[(42113, 2, 6, "-9999", True)]),
    ]
    for i in range(160):
        data = bytearray(bases[i % len(bases)])
        entry = 10 + 12 * int(random.integers(0, struct.unpack_from("<H", data, 8)[0]))
        for place, code, values in (
            (2, "<H", range(20)), (4, "<I", (0, 1, 2, 5, 2**31)), (8, "<I", (0, 1, 2, 3, 255, 65535, 2**32 - 1)),
        ):  # fmt: skip
            if random.random() < 0.6:
                struct.pack_into(code, data, entry + place, int(random.choice(values)))
        for read in (decoded, lambda data: read_header("x", data=data)):
            try:
                read(bytes(data))
            except DataError as error:
                assert str(error).startswith("x: ")  # noqa: PT017
