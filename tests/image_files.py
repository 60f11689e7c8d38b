"""Tiny image files of every kind, and the 8-bit image that each of them is."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from convatlas.data.decode.pixels import read_image

Array = NDArray[Any]

HEIGHT, WIDTH = 7, 5
_Y, _X = np.mgrid[0:HEIGHT, 0:WIDTH]
GRAY = ((_X * 51 + _Y * 17) % 256).astype(np.uint8)
RGB = np.stack([GRAY, _Y * 42, _X * _Y * 10], 2).astype(np.uint8)
ALPHA = ((_X + _Y) * 25).astype(np.uint8)
LAB = np.stack(
    [GRAY // 2 + 80, (_X * 4 - 8).astype(np.int8).view(np.uint8), (_Y * 3 - 9).astype(np.int8).view(np.uint8)], 2
)
PALETTE = np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) * 7 % 256]).astype(np.uint16) * 257


def on_white(color: Array, alpha: Array) -> Array:
    """Return a color on white, rounded."""
    share = alpha.astype(float)[..., None] / 255
    result: Array = (color.reshape(HEIGHT, WIDTH, -1) * share + 255 * (1 - share)).round().astype(np.uint8)
    return result


def with_alpha(color: Array, alpha: Array = ALPHA) -> Array:
    """Return a color with its opacity behind."""
    return np.concatenate([color.reshape(HEIGHT, WIDTH, -1), alpha[..., None]], 2)


def in_depth(values: Array, bits: int) -> Array:
    """Return 8-bit values in more or fewer bits."""
    dtype = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32 if bits <= 32 else np.uint64
    exact = np.array([(int(v) * (2**bits - 1) * 2 + 255) // 510 for v in values.ravel()], dtype=object)
    return exact.astype(dtype).reshape(values.shape)


def tiff(values: Array, **options: Any) -> bytes:
    """Return a TIFF file."""
    file = io.BytesIO()
    pytest.importorskip("tifffile").imwrite(file, values, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def transparency(color: Array) -> bytes:
    """Return the chunk of a PNG file that names the transparent color."""
    return chunk(b"tRNS", color.astype(">u2").tobytes())


def big_endian(values: Array, bits: int) -> bytes:
    return in_depth(values, bits).astype(f">u{bits // 8}").tobytes()


def png(values: Array, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """Return a PNG file of 1 to 4 channels; before, after: chunks around its pixels."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    bits = values.dtype.itemsize * 8
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, bits, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + pixels + after + chunk(b"IEND", b"")


def bmp(pixels: Array, masks: tuple[int, ...], *, v4: bool = True) -> bytes:
    """Return a BMP file of bit fields."""
    height, width = pixels.shape
    row = (width * pixels.itemsize + 3) // 4 * 4
    rows = b"".join(line.tobytes().ljust(row, b"\0") for line in pixels[::-1])
    header = struct.pack(
        "<IiiHHIIiiII", 108 if v4 else 40, width, height, 1, pixels.itemsize * 8, 3, len(rows), 0, 0, 0, 0
    )
    fields = struct.pack(f"<{len(masks)}I", *masks).ljust(68 if v4 else 12, b"\0")
    start = 14 + len(header) + len(fields)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + header + fields + rows


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return a file that Pillow writes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: Any, kind: int = 3, *, count: int = 1, more: bytes = b"", number: int = 0x0112) -> bytes:
    """Return EXIF with an orientation tag of any type, and more entries of 12 bytes behind it."""
    value = orientation if isinstance(orientation, bytes) else struct.pack("<HH", orientation, 0)
    entries = struct.pack("<HHI", number, kind, count) + value + more
    return b"II*\0" + struct.pack("<IH", 8, len(entries) // 12) + entries + bytes(4)


def jpeg_with(segments: bytes, values: Array = RGB) -> bytes:
    """Return a JPEG file with segments of metadata."""
    data = saved(Image.fromarray(np.kron(values, np.ones((8, 8, 1), np.uint8))), "JPEG", quality=95)
    return data[:2] + segments + data[2:]


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _planes(values: Array) -> Array:
    return np.moveaxis(values, 2, 0)


def _tiff_pairs() -> dict[str, tuple[Callable[[int], bytes], Array]]:
    """Return name -> (function from the bits, 8 or 16, to a file; its image)."""

    def file(values: Array, **options: Any) -> Callable[[int], bytes]:
        return lambda bits: tiff(in_depth(values, bits), **options)

    pairs: dict[str, tuple[Callable[[int], bytes], Array]] = {}
    for compression in (None, "lzw", "zlib", "packbits", "zstd", "lzma"):
        predictor = compression in ("lzw", "zlib", "zstd", "lzma")
        common: dict[str, Any] = {"compression": compression, "predictor": predictor}
        for order in "<>":
            name = f"{compression or 'raw'} {order}"
            pairs[f"gray {name}"] = file(GRAY, photometric="minisblack", byteorder=order, **common), GRAY
            pairs[f"inverted {name}"] = file(255 - GRAY, photometric="miniswhite", byteorder=order, **common), GRAY
            pairs[f"rgb {name}"] = file(RGB, photometric="rgb", byteorder=order, **common), RGB
            pairs[f"planes {name}"] = (
                file(_planes(RGB), photometric="rgb", planarconfig="separate", byteorder=order, **common), RGB,
            )  # fmt: skip
    premultiplied = with_alpha((RGB * (ALPHA[..., None] / 255)).round().astype(np.uint8))
    for name, color in (("rgb", RGB), ("gray", GRAY[..., None])):
        kind = {"photometric": "rgb" if name == "rgb" else "minisblack"}
        channels = slice(None) if name == "rgb" else [0, 3]
        for alpha, values in (("unassalpha", with_alpha(RGB)), ("assocalpha", premultiplied)):
            values, options = values[..., channels], {**kind, "extrasamples": [alpha]}
            image = on_white(color, ALPHA)
            pairs[f"{name} {alpha}"] = file(values, planarconfig="contig", **options), image
            pairs[f"{name} {alpha} planes"] = file(_planes(values), planarconfig="separate", **options), image
    cmyk = with_alpha(RGB, ALPHA // 2)
    as_rgb = ((1 - RGB / 255) * (1 - (ALPHA // 2)[..., None] / 255) * 255).round().astype(np.uint8)
    pairs["cmyk"] = file(cmyk, photometric="separated", planarconfig="contig"), as_rgb
    pairs["cmyk planes"] = file(_planes(cmyk), photometric="separated", planarconfig="separate"), as_rgb
    deep_palette = np.zeros((3, 65536), np.uint16)
    deep_palette[:, np.arange(256) * 257] = PALETTE
    colors = (PALETTE // 257).T.astype(np.uint8)[GRAY]
    pairs["palette"] = (
        lambda bits: tiff(
            in_depth(GRAY, bits), photometric="palette", colormap=PALETTE if bits == 8 else deep_palette
        ), colors,
    )  # fmt: skip
    pairs["tiles"] = file(np.tile(RGB, (3, 4, 1)), photometric="rgb", tile=(16, 16)), np.tile(RGB, (3, 4, 1))
    pairs["strips"] = file(RGB, photometric="rgb", rowsperstrip=2), RGB
    pairs["bigtiff"] = file(RGB, photometric="rgb", bigtiff=True), RGB
    return pairs


PAIRS: Mapping[str, tuple[Callable[[int], bytes], Array]] = {
    **{f"tiff {name}": pair for name, pair in _tiff_pairs().items()},
    "png gray": (lambda bits: png(in_depth(GRAY, bits)), GRAY),
    "png rgb": (lambda bits: png(in_depth(RGB, bits)), RGB),
    "png gray and alpha": (lambda bits: png(in_depth(with_alpha(GRAY), bits)), on_white(GRAY, ALPHA)),
    "png rgb and alpha": (lambda bits: png(in_depth(with_alpha(RGB), bits)), on_white(RGB, ALPHA)),
    "png gray transparent": (
        lambda bits: png(in_depth(GRAY, bits), before=transparency(in_depth(GRAY[2:3, 2], bits))),
        on_white(GRAY, np.where(GRAY[2, 2] == GRAY, 0, 255)),
    ),
    "png rgb transparent": (
        lambda bits: png(in_depth(RGB, bits), before=transparency(in_depth(RGB[2, 2], bits))),
        on_white(RGB, np.where((RGB[2, 2] == RGB).all(2), 0, 255)),
    ),
    "pgm": (lambda bits: b"P5 5 7 %d\n" % (2**bits - 1) + big_endian(GRAY, bits), GRAY),
    "ppm": (lambda bits: b"P6 5 7 %d\n" % (2**bits - 1) + big_endian(RGB, bits), RGB),
    "plain ppm": (
        lambda bits: b"P3\n# x\n5 7 %d\n" % (2**bits - 1) + " ".join(map(str, in_depth(RGB, bits).flat)).encode(), RGB,
    ),
    "pam": (
        lambda bits: b"P7\nWIDTH 5\nHEIGHT 7\nDEPTH 4\nMAXVAL %d\nTUPLTYPE RGB_ALPHA\nENDHDR\n" % (2**bits - 1)
        + big_endian(with_alpha(RGB), bits), on_white(RGB, ALPHA),
    ),
    "jpeg xl": (
        lambda bits: bytes(pytest.importorskip("imagecodecs").jpegxl_encode(in_depth(RGB, bits), lossless=True)), RGB,
    ),
    "jpeg 2000": (
        lambda bits: bytes(pytest.importorskip("imagecodecs").jpeg2k_encode(in_depth(RGB, bits), reversible=True)), RGB,
    ),
}  # fmt: skip
"""Name -> (function from the bits, 8 or 16, to a file; the 8-bit image that both are)."""


def decoded(data: bytes, channels: int = 3) -> Array:
    """Return pixels (height, width, channels)."""
    return read_image("x", channels, data=data).numpy().transpose(1, 2, 0)
