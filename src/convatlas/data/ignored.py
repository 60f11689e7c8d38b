"""Files of a folder that are not used, and why."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from convatlas.errors import listed, printable, shorten

MAX_EXAMPLES = 3
"""Maximum number of files that are named in the line."""

DANGLING = "dangling links"
"""Reason of links that lead nowhere."""

INSTALL = "pip install 'convatlas[data]'"
"""The command that installs the libraries which read further formats."""

_NEEDED = re.compile(r"(\.\w+) \(.+ is not installed\)")


def not_installed(suffix: str, library: str) -> str:
    """Return the reason of images that a missing library reads."""
    return f"{suffix} ({library} is not installed)"


@dataclass(frozen=True)
class Ignored:
    """Files that are not used: reason -> their names. A reason completes "6 ...", such as ".heic" or "in @eaDir"."""

    reasons: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.reasons.values()))

    @property
    def unsupported(self) -> dict[str, tuple[str, ...]]:
        """{suffix: files} of images that a library which is not installed reads."""
        return {match[1]: names for reason, names in self.reasons.items() if (match := _NEEDED.fullmatch(reason))}

    @property
    def dangling(self) -> tuple[str, ...]:
        """Links that lead nowhere."""
        return self.reasons.get(DANGLING, ())

    @property
    def others(self) -> Ignored:
        """The files that are neither `unsupported` nor `dangling`."""
        used = {DANGLING, *filter(_NEEDED.fullmatch, self.reasons)}
        return Ignored({reason: names for reason, names in self.reasons.items() if reason not in used})

    def __add__(self, other: Ignored) -> Ignored:
        reasons = dict(self.reasons)
        for reason, names in other.reasons.items():
            reasons[reason] = reasons.get(reason, ()) + names
        return Ignored(reasons)

    def text(self) -> str:
        """Return one line, such as "7 files are not used: 6 .heic, 1 hidden (a.heic, ...)"; "" without files."""
        if not self.reasons:
            return ""
        largest = sorted(self.reasons.items(), key=lambda pair: (-len(pair[1]), pair[0]))
        counts = listed(f"{len(names):,} {_in_number(reason, len(names))}" for reason, names in largest)
        examples = [shorten(_short(names[0]), 60) for _, names in largest[:MAX_EXAMPLES]]
        more = ", ..." if len(self) > len(examples) else ""
        subject = "1 file is" if len(self) == 1 else f"{len(self):,} files are"
        fix = f"; to read {listed(self.unsupported)}: {INSTALL}" if self.unsupported else ""
        return printable(f"{subject} not used: {counts} ({', '.join(examples)}{more}){fix}")


def _in_number(reason: str, count: int) -> str:
    return re.sub(r"\b(link|file|image)s\b", r"\1", reason, count=1) if count == 1 else reason


def _short(name: str) -> str:
    """Return the last two parts of a path."""
    return "/".join(Path(name).parts[-2:])


class IgnoredFiles:
    """Collects the files of an `Ignored` while folders are listed."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, name: str) -> None:
        self._names[reason].append(name)

    def build(self) -> Ignored:
        return Ignored({reason: tuple(names) for reason, names in self._names.items()})
