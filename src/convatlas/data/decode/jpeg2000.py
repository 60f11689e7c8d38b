"""JPEG 2000 files of more than 8 bits, which Pillow cuts to 8."""

from __future__ import annotations

import struct
from typing import Any

from numpy.typing import NDArray

from convatlas.data.decode.files import UnavailableError
from convatlas.data.decode.layout import Layout
from convatlas.data.decode.pillow import silence_loggers
from convatlas.errors import DataError, foreign_errors
from convatlas.system.extras import import_optional

SIGNATURES = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")

_COLORS = {1: ("gray", "L", None), 2: ("gray", "LA", 1), 3: ("rgb", "RGB", None), 4: ("rgb", "RGBA", 3)}
"""Number of components -> color, mode and number of the opacity."""


def high_bit_depth_layout(data: bytes, name: object) -> Layout | None:
    """Return the layout of a JPEG 2000 file of more than 8 bits; None for others."""
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(data) < start + 42:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
    (count,) = struct.unpack_from(">H", data, start + 40)
    depths = set(data[start + 42 : start + 42 + 3 * count : 3])  # one byte of three of each component
    if max(depths, default=0) & 127 < 8:
        return None
    box = data.find(b"colr\x01", 0, start)
    space = struct.unpack_from(">I", data, box + 7)[0] if 0 < box < start - 11 else 16
    if count not in _COLORS or len(depths) != 1 or space not in (16, 17):
        raise DataError(f"{name}: cannot be read: JPEG 2000 of more than 8 bits must be gray or RGB, of one depth")
    color, mode, alpha = _COLORS[count]
    depth = depths.pop()
    layout = Layout(
        (right - left, bottom - top), color, f"{mode};{(depth & 127) + 1}", kind="i" if depth > 127 else "u",
        bits=(depth & 127) + 1, alpha=alpha,
    )  # fmt: skip
    layout.check_size(name)
    return layout


def read_samples(data: bytes, name: object) -> NDArray[Any]:
    """Return the samples of a JPEG 2000 file."""
    imagecodecs = import_optional("imagecodecs", "convatlas[data]", where=name, error=UnavailableError)
    with foreign_errors(name, DataError), silence_loggers("imagecodecs"):
        values: NDArray[Any] = imagecodecs.jpeg2k_decode(data)
    return values
