"""Class names as they are compared: printable, in Unicode's composed form, without blanks at the ends."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from convatlas.errors import DataError, listed, printable

_RIGHT = {"left": "right", "Left": "Right", "LEFT": "RIGHT"}


def class_name(text: str, where: object) -> str:
    """Return a name of a folder or a label as the name of a class; raises DataError if it is not printable.

    Names that differ only in Unicode normalization (NFC, NFD) or in blanks at the ends are the same class.
    """
    name = unicodedata.normalize("NFC", text).strip()
    if printable(name) != name:
        raise DataError(f"{where}: the class {name!r} has a name that is not printable; rename it")
    return name


def mirrored_classes(classes: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs of classes whose names differ only in left and right: a horizontal flip exchanges them."""
    known = set(classes)
    mirrored = (
        (name, re.sub("left", lambda match: _RIGHT.get(match[0], "right"), name, flags=re.IGNORECASE)) for name in known
    )
    return sorted((name, other) for name, other in mirrored if name != other and other in known)


def spelling_notes(spellings: Iterable[str]) -> tuple[str, ...]:
    """Return a line about names that were written in several ways, or with blanks at the ends; none if there are none.

    spellings: the names as they were written.
    """
    written: dict[str, set[str]] = {}
    for text in spellings:
        written.setdefault(unicodedata.normalize("NFC", text).strip(), set()).add(text)
    notes = []
    several = [name for name, texts in written.items() if len(texts) > 1]
    if several:
        shown = listed(" = ".join(map(ascii, sorted(written[name]))) for name in several)
        notes.append(f"class names that differ only in Unicode normalization or blanks are one class: {shown}")
    trimmed = [text for texts in written.values() if len(texts) == 1 for text in texts if text != text.strip()]
    if trimmed:
        notes.append(f"blanks at the ends are not part of the class name: {listed(map(repr, trimmed))}")
    return tuple(notes)
