"""JPEG files without metadata, which may be damaged."""

from __future__ import annotations

import struct

SIGNATURE = b"\xff\xd8"

_START_OF_SCAN, _COMMENT, _APP0, _APP1, _APP14, _APP15 = 0xDA, 0xFE, 0xE0, 0xE1, 0xEE, 0xEF


def split_exif(data: bytes) -> tuple[bytes, bytes]:
    """Return a JPEG file without the segments that its pixels do not need, and its EXIF.

    JFIF (APP0) and Adobe's segment (APP14) stay: they state the color space. A file with damaged segments stays as it
    is, and has no EXIF.
    """
    kept, exif = [data[:2]], b""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], struct.unpack_from(">H", data, place + 2)[0]
        end = place + 2 + length
        if marker == 0xFF:  # a byte that fills
            place += 1
        elif marker == _START_OF_SCAN:
            return b"".join([*kept, data[place:]]), exif
        elif marker < 0xC0 or 0xD0 <= marker <= 0xD9 or length < 2:
            break
        else:
            if marker == _APP1 and data.startswith(b"Exif\0\0", place + 4):
                exif = exif or data[place + 4 : end]
            if marker in (_APP0, _APP14) or not (_APP0 <= marker <= _APP15 or marker == _COMMENT):
                kept.append(data[place:end])
            place = end
    return data, b""
