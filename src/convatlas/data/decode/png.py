"""PNG files without the chunks that pixels do not need, such as text and profiles, which may be damaged."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from convatlas.data.decode.layout import Layout
from convatlas.data.decode.tags import exif_orientation
from convatlas.errors import DataError

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_COLORS = {0: ("gray", "L"), 2: ("rgb", "RGB"), 3: ("palette", "P"), 4: ("gray", "LA"), 6: ("rgb", "RGBA")}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Color type -> color and mode; bits."""

_PALETTE = 3

_MAX_EXIF = 2**20
_MAX_COMPRESSION = 1100
"""Maximum size of pixels over that of the file; deflate reaches 1,032."""


@dataclass(frozen=True)
class Png:
    """The layout of a PNG file, and `data`: a file with only the chunks that pixels need."""

    layout: Layout
    data: bytes


def read_png(data: bytes, name: object) -> Png:
    """Return the layout of a PNG file, and the file without metadata and further frames; the pixels are not decoded."""
    kept, exif, profile, transparency = [SIGNATURE], b"", b"", b""
    header: tuple[int, ...] = ()
    has_pixels = False
    for kind, start, end in _chunks(data):
        if kind == b"IHDR" and start + 25 <= min(end, len(data)):
            header = struct.unpack_from(">IIBBBBB", data, start + 8)
        elif kind == b"eXIf":
            exif = exif or data[start + 8 : end - 4]
        elif kind in (b"tEXt", b"zTXt"):
            profile = profile or _raw_profile(kind, data[start + 8 : end - 4])
        elif kind == b"tRNS" and not has_pixels and header and _is_valid_transparency(data[start:end], header):
            transparency = data[start + 8 : end - 4]
            if header[3] == _PALETTE:  # that of gray and RGB is part of the layout
                kept.append(data[start:end])
        has_pixels |= kind == b"IDAT"
        if kind in (b"IHDR", b"PLTE", b"IDAT"):
            kept.append(data[start:end])
    if not header or header[2] not in _DEPTHS.get(header[3], ()):
        raise DataError(f"{name}: cannot be read: damaged header of a PNG file")
    if not has_pixels:
        raise DataError(f"{name}: cannot be read: the PNG file holds no pixels")
    kept.append(b"\0\0\0\0IEND\xaeB`\x82")
    return Png(_layout(header, transparency, exif_orientation(exif or profile), len(data), name), b"".join(kept))


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of each chunk."""
    place = len(SIGNATURE)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if not kind.isalpha() or kind == b"IEND":
            return
        yield kind, place, place + length + 12
        place += length + 12


def _layout(header: tuple[int, ...], transparency: bytes, orientation: int, size: int, name: object) -> Layout:
    width, height, bits, number = header[:4]
    color, mode = _COLORS[number]
    transparent: tuple[int, ...] = ()
    if number != _PALETTE:
        mode = {1: "1", 16: f"{mode};16"}.get(bits, mode)
        scale = 1 if bits >= 8 else 255 // (2**bits - 1)  # Pillow decodes fewer than 8 bits to 8
        stored = struct.unpack(f">{len(transparency) // 2}H", transparency)
        transparent = tuple((value & (2**bits - 1)) * scale for value in stored)
    layout = Layout(
        (width, height), color, mode, bits=bits, alpha={4: 1, 6: 3}.get(number), orientation=orientation,
        transparent=transparent,
    )  # fmt: skip
    layout.check_size(name)
    if height * ((width * layout.samples * bits + 7) // 8) > _MAX_COMPRESSION * size:
        raise DataError(f"{name}: cannot be read: truncated: {width} x {height} pixels cannot be in {size:,} bytes")
    return layout


def _is_valid_transparency(chunk: bytes, header: tuple[int, ...]) -> bool:
    """Return whether a tRNS chunk has its checksum and the length that the color type demands."""
    length = len(chunk) - 12
    fits = {0: length == 2, 2: length == 6, 3: 1 <= length <= 256}.get(header[3], False)
    return fits and struct.unpack(">I", chunk[-4:])[0] == zlib.crc32(chunk[4:-4])


def _raw_profile(kind: bytes, text: bytes) -> bytes:
    """Return EXIF that ImageMagick wrote as hexadecimal text."""
    key, _, value = text.partition(b"\0")
    if key not in (b"Raw profile type exif", b"Raw profile type APP1"):
        return b""
    with suppress(ValueError, zlib.error):
        value = zlib.decompressobj().decompress(value[1:], _MAX_EXIF) if kind == b"zTXt" else value
        return bytes.fromhex("".join(value.decode("latin-1").split("\n")[3:]))
    return b""
