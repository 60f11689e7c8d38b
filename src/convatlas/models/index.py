"""The index of the catalog: what `list`, `show` and `compare` print of every network at its defaults.

Counting all networks takes torch and seconds; the index takes neither. It is two files that are written together from
the catalog, and that the tests compare with it: index.jsonl (facts and cells, one network a line) and
descriptions.json.gz (texts of `show`).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convatlas.errors import SpecError, nearest

if TYPE_CHECKING:
    from convatlas.core.cost import Cost
    from convatlas.models.card import Variant

FOLDER = Path(__file__).parent
FACTS_FILE, DESCRIPTIONS_FILE = FOLDER / "index.jsonl", FOLDER / "descriptions.json.gz"

SESSION_NAMES: set[str] = set()
"""Networks that were registered in this session; the index lacks them."""


@dataclass(frozen=True)
class NetworkFacts:
    """A network in one row: its history, and its exact numbers for one image.

    input_px: side of the image. layers: number of layers with weights on the longest path from the image to the scores,
    without gates. receptive_field_px: along the longest axis. top1_percent, top5_percent: reported accuracy, None if
    there is none; box_ap_percent, mask_ap_percent, keypoint_ap_percent: that of detectors. reported_on: data set,
    source and protocol.
    """

    name: str
    title: str
    year: int
    category: str
    input_px: int
    layers: int
    parameters: int
    macs: int
    activations: int
    receptive_field_px: int
    top1_percent: float | None
    top5_percent: float | None
    reported_on: str
    innovation: str
    box_ap_percent: float | None = None
    mask_ap_percent: float | None = None
    keypoint_ap_percent: float | None = None

    @classmethod
    def of(cls, name: str, row: Variant, measured: Cost) -> NetworkFacts:
        """Return the facts of a network with this row of the catalog and this cost."""
        card, reported = row.card, row.card.reported
        return cls(
            name, card.title, card.year, ", ".join(card.categories), measured.input.shape[-1], measured.output.depth,
            measured.parameters, measured.macs, measured.activations, max(measured.receptive_field),
            reported.top1 if reported else None, reported.top5 if reported else None,
            reported.conditions if reported else "", card.innovation,
            *((reported.box_ap, reported.mask_ap, reported.keypoint_ap) if reported else ()),
        )  # fmt: skip

    def to_plain(self) -> dict[str, Any]:
        """Return the facts as plain data; None for what is unknown."""
        return asdict(self) | {"reported_on": self.reported_on or None}


@dataclass(frozen=True)
class Entry:
    """A network of the index: its facts, the cells of its spec by path, and its family in `catalog.FAMILIES`.

    The first cell is the type of the spec. A network that belongs to no family has an empty one.
    """

    facts: NetworkFacts
    cells: Mapping[str, Any]
    family: str = ""


@cache
def read_entries() -> dict[str, Entry]:
    """Return network name -> entry, in the order of the catalog."""
    _, *lines = FACTS_FILE.read_text(encoding="utf-8").splitlines()
    entries = (
        Entry(NetworkFacts(**line["facts"]), line["cells"], family=line["family"]) for line in map(json.loads, lines)
    )
    return {entry.facts.name: entry for entry in entries}


def read_description(name: str) -> str:
    """Return what `show` prints of a network of the index."""
    return _read_descriptions()[name]


@cache
def _read_descriptions() -> dict[str, str]:
    texts: dict[str, str] = json.loads(gzip.decompress(DESCRIPTIONS_FILE.read_bytes()))
    return texts


def write_index(entries: Iterable[Entry], descriptions: Mapping[str, str]) -> None:
    """Write both files of the index."""
    lines = [{"families": _digest_of_families()}, *map(asdict, entries)]
    FACTS_FILE.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8", newline="\n")
    DESCRIPTIONS_FILE.write_bytes(gzip.compress(json.dumps(descriptions).encode(), mtime=0))
    read_entries.cache_clear()
    _read_descriptions.cache_clear()
    is_current.cache_clear()


def is_complete() -> bool:
    """Return whether the index has every network, as it is: nothing was registered, and no family changed since."""
    return not SESSION_NAMES and is_current()


@cache
def is_current() -> bool:
    """Return whether no family changed since the index was written; where there is no source code, none did."""
    with FACTS_FILE.open(encoding="utf-8") as lines:
        recorded = json.loads(next(lines))["families"]
    return _digest_of_families() in ("", recorded)


def _digest_of_families() -> str:
    """Return the SHA-256 of the source code of all families, and of detectors; "" where there is none."""
    sources = [file for room in ("families", "detection") for file in sorted((FOLDER / room).glob("*.py"))]
    digest = hashlib.sha256()
    for file in sources:
        digest.update(file.read_text(encoding="utf-8").encode())  # as text: line ends differ between systems
    return digest.hexdigest() if sources else ""


def find_name(name: object, names: Iterable[str]) -> str | None:
    """Return the network that a user means: names ignore case, and hyphens, dots and spaces where that is unambiguous.

    "ResNet50", "resnet-50" and "ResNet 50" are resnet50. None if there is no such network.
    """
    if not isinstance(name, str):
        return None
    known = list(names)
    for simplify in (str, _with_underscores, _without_separators):
        matches = [each for each in known if simplify(each) == simplify(name)]
        if len(matches) == 1:
            return matches[0]
    return None


def _with_underscores(name: str) -> str:
    return re.sub(r"[-. ]", "_", name.strip().lower())


def _without_separators(name: str) -> str:
    return _with_underscores(name).replace("_", "")


def unknown_network(name: object, names: Iterable[str]) -> SpecError:
    """Return the error for a name that no network has."""
    return SpecError(f"unknown network {name!r}{nearest(str(name).lower(), names)}; `convatlas list` shows all")
