"""Tags of TIFF files and of EXIF, which has the same structure; what is damaged is left out."""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping

ORIENTATION = 0x0112

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF files: classic and BigTIFF, both byte orders."""

_TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 6: "b", 7: "s", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
"""Number of a tag's type -> its character in `struct`, of integers and text: no other tags are needed."""

_MAX_BYTES = 2**20

Tags = Mapping[int, tuple[int, ...]]
"""Number of a tag -> its values; the text of a text tag as its bytes."""


def read_tags(data: bytes, wanted: Collection[int]) -> dict[int, tuple[int, ...]]:
    """Return tags of the first directory of a TIFF file or of EXIF; empty if there is none.

    The first one of two equal tags counts, as in libtiff.
    """
    return {tag: values for tag, values, _ in reversed(_entries(data, wanted))}


def orientation_of(tags: Tags) -> int:
    """Return the orientation, 1 to 8; 1, upright, for other values."""
    value = tags.get(ORIENTATION, (1,))[:1]
    return value[0] if value and value[0] in range(1, 9) else 1


def exif_orientation(exif: bytes) -> int:
    """Return the orientation in EXIF, with or without the identifier in front; 1 if it has none."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    return orientation_of(read_tags(exif, (ORIENTATION,)))


def set_upright(data: bytes) -> bytes:
    """Return a TIFF file with the orientation 1."""
    changed = bytearray(data)
    for _, _, offset in _entries(data, (ORIENTATION,)):
        changed[offset : offset + 2] = struct.pack(_byte_order(data) + "H", 1)
    return bytes(changed)


def _byte_order(data: bytes) -> str:
    return "<" if data.startswith(b"II") else ">"


def _entries(data: bytes, wanted: Collection[int]) -> list[tuple[int, tuple[int, ...], int]]:
    """Return (tag, values, offset of the values in bytes) of the first directory."""
    found: list[tuple[int, tuple[int, ...], int]] = []
    if not data.startswith(TIFF):
        return found
    order = _byte_order(data)
    big = 43 in data[2:4]
    entry, inline = (order + "HHQ", 8) if big else (order + "HHI", 4)
    size = 12 + inline if big else 8 + inline
    try:
        (offset,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, offset)
        offset += 8 if big else 2
        for start in range(offset, min(offset + count * size, len(data) - size + 1), size):
            tag, kind, length = struct.unpack_from(entry, data, start)
            if tag not in wanted or kind not in _TYPES:
                continue
            values_size = struct.calcsize(order + _TYPES[kind]) * length
            at = start + size - inline
            if values_size > inline:
                (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, at)
            if values_size > _MAX_BYTES or at + values_size > len(data):
                continue
            code = "B" if _TYPES[kind] == "s" else _TYPES[kind]
            found.append((tag, struct.unpack_from(f"{order}{length}{code}", data, at), at))
    except (struct.error, OverflowError):
        pass  # the directory ends too early
    return found
