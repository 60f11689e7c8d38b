"""Image files as arrays for display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from convatlas.core.resampling import resize
from convatlas.data.decode.files import read_bytes
from convatlas.data.decode.headers import read_header
from convatlas.data.decode.pixels import read_shares
from convatlas.errors import DataError

MAX_SIDE = 512
"""Maximum height and width of an image for display, in pixels."""


def display_image(
    path: str | Path, *, data: bytes | None = None, max_side: int | None = MAX_SIDE
) -> NDArray[Any] | None:
    """Return an image file as floats from 0 to 1, (height, width, 3), or None if it is unreadable.

    data: the bytes of the file, if they were read already. max_side: larger images are resized to so many pixels,
    because a sheet keeps all its images in memory; None keeps their size.
    Images with more than 8 bits are stretched to the whole range; of many channels the first three are shown.
    """
    try:
        data = read_bytes(path) if data is None else data
        header = read_header(path, data=data)
        share = read_shares(path, 3 if header.channels in (1, 3) else header.channels, data=data)
    except DataError:
        return None
    share = share[:3] if len(share) > 2 else share[:1].expand(3, -1, -1)
    if header.high_bit_depth:
        share = (share - share.min()) / (share.max() - share.min()).clamp(min=1e-12)
    factor = 1.0 if max_side is None else max_side / max(share.shape[-2:])
    if factor < 1:
        height, width = (max(1, round(side * factor)) for side in share.shape[-2:])
        share = resize(share, (height, width), "bilinear", antialias=True)
    array: NDArray[Any] = share.permute(1, 2, 0).numpy()
    return array
