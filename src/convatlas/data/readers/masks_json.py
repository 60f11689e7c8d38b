"""Masks in JSON files: polygons and run lengths as COCO writes them, checked before a decoder reads them."""

from __future__ import annotations

from typing import Any

from convatlas.data.readers.json_values import MAX_COORDINATE, numbers, shown
from convatlas.errors import DataError
from convatlas.tasks.detection import masks
from convatlas.tasks.detection.objects import Segment

MIN_NUMBERS = 6
"""Minimum number of coordinates of a polygon."""

MAX_PIXELS = 2**31 - 1
"""Maximum number of pixels of a mask."""


def read_segment(value: Any, where: object) -> Segment | None:
    """Return a mask: polygons, or compressed run lengths; None if it is missing or empty.

    Raises DataError for polygons with fewer than three points or an odd number of coordinates, and for run lengths
    that do not add up to the number of pixels.
    """
    if value is None or value == []:
        return None
    if isinstance(value, dict):
        return _read_runs(value, where)
    if not isinstance(value, list):
        raise DataError(f"{where}: segmentation must be polygons or run lengths, got {shown(value)}")
    if type(value[0]) in (int, float):
        value = [value]
    polygons = []
    for polygon in value:
        points = numbers(polygon, "segmentation", where)
        if not points:
            continue
        if len(points) % 2:
            raise DataError(f"{where}: a polygon must be pairs of x and y, got {len(points)} numbers")
        if len(points) < MIN_NUMBERS:
            raise DataError(f"{where}: a polygon must have three or more points, got {len(points) // 2}")
        polygons.append(list(map(float, points)))
    return polygons or None


def _read_runs(value: dict[str, Any], where: object) -> Segment | None:
    size = numbers(value.get("size"), "size of the mask", where, 2)
    height, width = size
    if not all(type(side) is int and 0 < side <= MAX_COORDINATE for side in size) or height * width > MAX_PIXELS:
        raise DataError(f"{where}: size of the mask must be [height, width] in pixels, got {shown(size)}")
    counts = value.get("counts")
    if isinstance(counts, str):
        runs = _decompress(counts, where)
    else:
        runs = [int(run) if float(run).is_integer() else -1 for run in numbers(counts, "counts", where)]
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise DataError(
            f"{where}: the run lengths must be >= 0 and add up to {width} x {height} = {height * width} pixels, got "
            f"{sum(runs)}"
        )
    if not any(runs[1::2]):
        return None
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts}
    return masks.to_runs({"size": [height, width], "counts": runs}, (int(height), int(width)))


def _decompress(text: str, where: object) -> list[int]:
    """Return the run lengths in COCO's text: numbers of 5 bits for each character, as differences from the third on."""
    runs: list[int] = []
    number, bits = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or bits > 60:
            raise DataError(f"{where}: counts must be compressed run lengths, got {shown(text)}")
        number |= (code & 31) << bits
        bits += 5
        if not code & 32:
            if code & 16:
                number -= 1 << bits
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number, bits = 0, 0
    if bits:
        raise DataError(f"{where}: counts end within a number: {shown(text)}")
    return runs
