"""XML files of annotations: parsed without entities, and the numbers in them."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from convatlas.data.readers.json_values import MAX_COORDINATE, shown
from convatlas.errors import DataError, foreign_errors

MAX_LOOKS = 20
"""Maximum number of files of a folder of which the first bytes are read, to recognize annotations."""

MAX_XML_BYTES = 2**30
"""Maximum size of an XML file."""


def begins_with(file: Path, tag: str) -> bool:
    """Return whether an XML file contains a tag in its first bytes."""
    try:
        with file.open("rb") as opened:
            head = opened.read(2**12).replace(b"\0", b"")
    except OSError:
        return False
    return re.search(rb"<" + tag.encode() + rb"[\s>]", head) is not None


def parse_xml(file: Path, name: str) -> ElementTree.Element:
    """Return the root of an XML file; a document type, in which entities are declared, is refused."""
    if file.stat().st_size > MAX_XML_BYTES:
        raise DataError(f"{name}: an annotation file must have <= {MAX_XML_BYTES:,} bytes")
    with foreign_errors(name, DataError, "not an XML file"):
        parser = ElementTree.XMLParser(target=_NoDoctype())
        parser.feed(file.read_bytes())
        root: ElementTree.Element = parser.close()
        return root


class _NoDoctype(ElementTree.TreeBuilder):
    """A builder that refuses a document type before any entity is expanded."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("document types are refused")


def xml_number(text: str | None, where: str, field: str) -> float:
    """Return the number in a text of XML; raises DataError if it is none, or is not finite."""
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not abs(value) <= MAX_COORDINATE:
        raise DataError(f"{where}: {field} must be a number of pixels, got {shown(text)}")
    return value
