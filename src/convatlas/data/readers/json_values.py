"""Values in JSON files: each is checked before it is used, and errors are one line that names the place."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convatlas.errors import DataError, foreign_errors, shorten

MAX_COORDINATE = 1e7
"""Maximum of the absolute value of a coordinate in pixels."""


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file in UTF-8, UTF-16 or UTF-32; raises DataError if it is none."""
    with foreign_errors(path, DataError, "not a JSON file"):
        return json.loads(path.read_bytes())


def shown(value: Any) -> str:
    """Return a value as an error quotes it."""
    return shorten(repr(value), 60)


def mapping(value: Any, where: object) -> Mapping[str, Any]:
    """Return a value that must be a JSON object."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: must be an object with fields, got {shown(value)}")
    return value


def field_list(data: Mapping[str, Any], field: str, where: object) -> list[Any]:
    """Return the list in a field."""
    value = data.get(field)
    if not isinstance(value, list):
        raise DataError(f"{where}: {field} must be a list, got {shown(value)}")
    return value


def numbers(value: Any, field: str, where: object, count: int | None = None) -> list[float]:
    """Return a value that must be a list of numbers, optionally of a length."""
    length = "" if count is None else f"{count} "
    if not isinstance(value, list) or (count is not None and len(value) != count):
        raise DataError(f"{where}: {field} must be a list of {length}numbers, got {shown(value)}")
    if not {*map(type, value)} <= {int, float}:
        wrong = next(item for item in value if type(item) not in (int, float))
        raise DataError(f"{where}: {field} must be a list of {length}numbers, got {shown(wrong)} in it")
    # NaN compares to nothing, but the sum of numbers with a NaN is one
    if value and not (max(value) <= MAX_COORDINATE and min(value) >= -MAX_COORDINATE and not math.isnan(sum(value))):
        wrong = next(item for item in value if not abs(item) <= MAX_COORDINATE)
        raise DataError(f"{where}: {field} must be finite numbers up to {MAX_COORDINATE:g}, got {shown(wrong)}")
    return value


def number(value: Any, field: str, where: object) -> float:
    """Return a value that must be a finite number."""
    if type(value) not in (int, float) or not abs(value) <= MAX_COORDINATE**2:
        raise DataError(f"{where}: {field} must be a finite number, got {shown(value)}")
    return float(value)


def side(value: Any, field: str, where: object) -> int:
    """Return a width or height in pixels, 0 if it is not stated."""
    if value is None:
        return 0
    if type(value) not in (int, float) or not 0 <= value <= MAX_COORDINATE or not math.isfinite(value):
        raise DataError(f"{where}: {field} must be a number of pixels, got {shown(value)}")
    pixels: int = round(value)
    return pixels


def text(value: Any, field: str, where: object) -> str:
    """Return a value that must be text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {field} must be a text, got {shown(value)}")
    return value
