"""Netpbm files that Pillow does not read or cuts to 8 bits: PGM and PPM with other maxima than 255, PAM, color PFM."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convatlas.data.decode.layout import Layout
from convatlas.errors import DataError

_SPACE = rb"(?:\s|#[^\r\n]*[\r\n])+"
_PNM = re.compile(rb"P([2356])" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,5})\s")
_PFM = re.compile(rb"PF\s+(\d{1,9})\s+(\d{1,9})\s+([-+.\deE]{1,20})\s")
_PAM = re.compile(rb"P7\s(.{1,2000}?)ENDHDR\s", re.DOTALL)
_COMMENT = re.compile(rb"#[^\r\n]*")


@dataclass(frozen=True)
class Netpbm:
    """start: position of the samples in the file, in bytes. dtype: of a sample; None for text.

    bottom_up: whether the last row comes first.
    """

    layout: Layout
    start: int
    dtype: np.dtype[Any] | None
    bottom_up: bool = False


def read_netpbm_header(data: bytes, name: object) -> Netpbm | None:
    """Return the header of a Netpbm file; None for other files, and those of 8 bits, which Pillow reads."""
    head = data[:10_000]
    if match := _PNM.match(head):
        maximum = int(match[4])
        if maximum == 255:
            return None
        layout = _layout(int(match[2]), int(match[3]), 3 if match[1] in b"36" else 1, maximum, name)
        return Netpbm(layout, match.end(), None if match[1] in b"23" else _dtype(maximum))
    if match := _PAM.match(head):
        fields = dict(re.findall(rb"(WIDTH|HEIGHT|DEPTH|MAXVAL)\s+(\d{1,9})", _COMMENT.sub(b"", match[1])))
        width, height, depth, maximum = (int(fields.get(key, 0)) for key in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL"))
        return Netpbm(_layout(width, height, depth, maximum, name), match.end(), _dtype(maximum))
    if match := _PFM.match(head):
        layout = Layout((int(match[1]), int(match[2])), "rgb", "RGB;32F", kind="f", bits=32)
        layout.check_size(name)
        return Netpbm(layout, match.end(), np.dtype("<f4" if match[3].startswith(b"-") else ">f4"), bottom_up=True)
    return None


def _layout(width: int, height: int, depth: int, maximum: int, name: object) -> Layout:
    if not 1 <= maximum <= 65535 or not 1 <= depth <= 4:
        raise DataError(
            f"{name}: cannot be read: maximum and depth must be in [1, 65535] and [1, 4], got {maximum} and {depth}"
        )
    bits, mode = maximum.bit_length(), ("L", "LA", "RGB", "RGBA")[depth - 1]
    layout = Layout(
        (width, height), "gray" if depth < 3 else "rgb", f"{mode};{bits}" if bits > 8 else mode, bits=bits,
        maximum=maximum, alpha=depth - 1 if depth in (2, 4) else None,
    )  # fmt: skip
    layout.check_size(name)
    return layout


def _dtype(maximum: int) -> np.dtype[Any]:
    return np.dtype(">u2" if maximum > 255 else "u1")


def read_netpbm(data: bytes, header: Netpbm, name: object) -> NDArray[Any]:
    """Return the samples of a Netpbm file."""
    layout = header.layout
    width, height = layout.size
    count = width * height * layout.samples
    try:
        if header.dtype is None:
            text = _COMMENT.sub(b"", data[header.start :]).split(maxsplit=count)[:count]
            values = np.array(text).astype(np.int64).clip(0, layout.maximum)
        else:
            values = np.frombuffer(data, header.dtype, count, header.start)
        values = values.reshape(height, width, layout.samples)
    except ValueError:
        raise DataError(f"{name}: cannot be read: truncated") from None
    return (values[::-1] if header.bottom_up else values).astype(values.dtype.newbyteorder("="))
