"""Read the image or video files of a multipart form while its body arrives (RFC 7578)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from python_multipart.multipart import MultipartParser

from convatlas.errors import DataError, foreign_errors
from convatlas.inference.contents import EncodedFile

MAX_FIELDS = 64
"""Maximum number of parts of a form that are no files; they are ignored."""

MAX_NAME = 200
"""Maximum number of characters of the name of a file."""

_PARAMETER = re.compile(r';\s*([\w.!#$&+^`|~-]+)(\*?)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)', re.DOTALL)
_WINDOWS_PATH = re.compile(r"(?:[A-Za-z]:|\\)\\.*\\|[A-Za-z]:\\")


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    name: str | None = None  # None: not a file


class FormReader:
    """Collects the image or video files of a form.

    Names are read as UTF-8 or else as Latin-1, whatever `charset` the client gives. A part is a file if it has a file
    name, as `filename` or as `filename*` (RFC 5987), or the type of an image or video.
    """

    def __init__(self, content_type: str, max_files: int, noun: str = "image") -> None:
        boundary = parameters(content_type).get("boundary", "")
        if not boundary:
            raise DataError("a form must have a boundary in its content type")
        self._max_files, self._noun = max_files, noun
        self._files: list[_Part] = []
        self._num_fields = 0
        self._part = _Part()
        self._is_complete = False
        self._key, self._value = bytearray(), bytearray()
        with foreign_errors("the form", DataError):
            self._parser = MultipartParser(boundary.encode("latin-1"), {
                "on_part_begin": self._begin_part, "on_header_field": self._extend_key,
                "on_header_value": self._extend_value, "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers, "on_part_data": self._extend_data, "on_end": self._end,
            })  # fmt: skip

    def write(self, data: bytes) -> None:
        """Read the next bytes of the body. Raises DataError for a bad form."""
        with foreign_errors("the form", DataError):
            self._parser.write(data)

    def clear(self) -> None:
        """Drop all data."""
        for part in self._files:
            part.data.clear()

    def files(self) -> list[EncodedFile]:
        """Return the files, once the body is complete. Raises DataError if the form is not."""
        if not self._is_complete:
            raise DataError("the form: must end with its boundary and --; it is cut off")
        files = []
        for number, part in enumerate(self._files):
            files.append(EncodedFile(part.name or f"{self._noun} {number}", bytes(part.data)))
            part.data = bytearray()
        return files

    def _begin_part(self) -> None:
        self._part = _Part()

    def _extend_key(self, data: bytes, start: int, end: int) -> None:
        self._key += data[start:end]

    def _extend_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._part.headers[bytes(self._key).lower()] = bytes(self._value)
        self._key, self._value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        headers = self._part.headers
        given = parameters(headers.get(b"content-disposition", b"").decode("latin-1"))
        kind = headers.get(b"content-type", b"").lower()
        if "filename" in given or kind.startswith((b"image/", b"video/", b"application/octet-stream")):
            self._part.name = _file_name(given.get("filename", ""))
            self._files.append(self._part)
        else:
            self._num_fields += 1
        if len(self._files) > self._max_files or self._num_fields > MAX_FIELDS:
            raise DataError(f"a form must have at most {self._max_files} {self._noun}s and {MAX_FIELDS} other fields")

    def _end(self) -> None:
        self._is_complete = True

    def _extend_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.name is not None:
            self._part.data += data[start:end]


def parameters(header: str) -> dict[str, str]:
    """Return the parameters of a header such as `form-data; name="images"; filename="a.png"`, by lower-case name.

    header: decoded as Latin-1. Extended values (`filename*=utf-8''a.png`) replace plain ones.
    """
    plain, extended = {}, {}
    for key, star, value in _PARAMETER.findall(header):
        if star:
            charset, _, encoded = value.strip().strip('"').partition("'")
            raw = unquote_to_bytes(encoded.partition("'")[2])
            text = raw.decode("latin-1")
            if charset.lower() not in ("iso-8859-1", "latin-1"):
                text = decode_name(raw)
            extended[key.lower()] = text.encode("utf-8").decode("latin-1")
        elif value.startswith('"'):
            plain[key.lower()] = value[1:-1].replace('\\"', '"').replace("\\\\", "\\")
        else:
            plain[key.lower()] = value.strip()
    return plain | extended


def decode_name(raw: bytes) -> str:
    """Return bytes as text: UTF-8, or else Latin-1."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _file_name(text: str) -> str:
    return _WINDOWS_PATH.sub("", decode_name(text.encode("latin-1")))[:MAX_NAME]
