"""Errors that a user can act on: one line that names the place, what is wrong and how to fix it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

MAX_MESSAGE = 2000
"""Maximum number of characters of an error message."""


class ConvatlasError(Exception):
    """Base of every error that the user's input can cause; the command line prints it as one line and exits with 2.

    The message is always one printable line: file names, contents of files and messages of other libraries that it
    quotes may hold line breaks, terminal escapes and characters that no encoding has.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(shorten(printable(str(message)), MAX_MESSAGE))


class InputError(ConvatlasError):
    """An argument that is not possible: an unknown suffix, a wrong unit, two options that exclude each other."""


class SpecError(ConvatlasError):
    """A network description that cannot be built: a bad cell, an image too small, an unknown name."""


class CostError(ConvatlasError):
    """A layer whose cost is not known, or whose input does not fit it."""


class DataError(ConvatlasError):
    """Data that cannot be read or does not fit: a missing folder, an empty class, an unreadable image.

    kind: groups the problems of a data set, such as "missing_files"; see `data.findings`. subject: what the error is
    about in short, such as the file.
    """

    def __init__(self, message: object = "", *, kind: str = "", subject: str = "") -> None:
        super().__init__(message)
        self.kind, self.subject = kind, subject


class ModelFileError(ConvatlasError):
    """A model file that is damaged, foreign, or from a newer version."""


class WeightsError(ConvatlasError):
    """Published weights that are unknown, cannot be fetched, are damaged, or do not fit the network."""


class WeightsNotCachedError(WeightsError):
    """Published weights that a training would start from, but that are not in the cache.

    name: of the weights, such as "resnet50@torchvision:IMAGENET1K_V2". problem: what is missing, without the fix.
    size_mib: size of the download; None if unknown.
    """

    def __init__(self, name: str, problem: str, size_mib: float | None = None) -> None:
        super().__init__(
            f'{problem}; download=True downloads the published weights, weights="none" starts from random ones'
        )
        self.name, self.problem, self.size_mib = name, problem, size_mib


class EngineError(ConvatlasError):
    """An engine that is not installed, or that cannot run a network."""


class RunError(ConvatlasError):
    """A training run that cannot start, continue or be read."""


class DivergedError(RunError):
    """A training whose loss or gradients are not finite."""


class ExperimentError(ConvatlasError):
    """An experiment that does not exist, or whose log is of another version or damaged."""


class SearchError(ConvatlasError):
    """A search space, a budget or the metrics of a candidate that cannot be used."""


class MachineError(ConvatlasError):
    """Something that this machine cannot do: a missing device, a file that cannot be written, a full disk."""


_TERMINAL_ESCAPE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_])")


_JOINERS = "\u200c\u200d\u3000"
"""Invisible characters that emoji and several scripts need."""


def printable(text: str) -> str:
    """Return text as one line that any terminal and any encoding of Unicode can print.

    Terminal escapes are removed, line breaks become spaces, other control characters and lone surrogates (bytes of file
    names that are not UTF-8) become escapes such as \\x00.
    """
    line = " ".join(_TERMINAL_ESCAPE.sub("", text).splitlines())
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() or c in _JOINERS else _escape(c) for c in line)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as Python holds it in names of files
        return f"\\x{code - 0xDC00:02x}"
    return " " if character.isspace() else character.encode("unicode_escape").decode("ascii")


def shorten(text: str, limit: int) -> str:
    """Return text of at most `limit` characters: the middle of a longer one is left out."""
    if len(text) <= limit:
        return text
    head = (limit - 5) * 2 // 3
    return f"{text[:head]} ... {text[len(text) - (limit - 5 - head) :]}"


def listed(names: Iterable[object], limit: int = 10) -> str:
    """Return names as text: "a, b, c", and of many the first ones and the number of the others."""
    texts = [shorten(str(name), 80) for name in names]
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit:,} more" if len(texts) > limit else "")


def brief(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    lines = [line for line in map(printable, str(error).splitlines()) if line.strip()]
    return shorten(lines[0].strip(), 300) if lines else type(error).__name__


@contextmanager
def foreign_errors(
    where: object,
    error: type[ConvatlasError],
    problem: str = "cannot be read",
    describe: Callable[[BaseException], str] = brief,
) -> Iterator[None]:
    """Turn whatever another library raises inside into one line: `where`: `problem` (its message).

    describe: returns the message of an error in a few words.
    Only calls of other libraries on data from outside belong inside, so that a bug of ours keeps its traceback.
    """
    try:
        yield
    except ConvatlasError:
        raise
    except Exception as cause:
        raise error(f"{where}: {problem} ({describe(cause)})") from cause


def check_keywords(
    function: str, keywords: Iterable[str], known: Collection[str], hints: Mapping[str, str] | None = None
) -> None:
    """Raise InputError for the first of `keywords` that is not known, with its hint or the nearest known one."""
    for name in keywords:
        if name not in known:
            hint = (hints or {}).get(name)
            fix = f"; {hint}" if hint else nearest(name, known)
            raise InputError(f"{function}: {name} is not a parameter{fix}")


def nearest(name: str, names: Iterable[str]) -> str:
    """Return " (did you mean X?)" for the closest of `names`, or an empty string."""
    close = difflib.get_close_matches(name[:200], list(names), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""
