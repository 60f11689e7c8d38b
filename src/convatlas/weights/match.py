"""Match the tensor names of a checkpoint with a network: the key rules of a library, and prefixes to remove."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from convatlas.core.spec import Spec
from convatlas.errors import WeightsError, listed
from convatlas.models.card import Family
from convatlas.models.catalog import FAMILIES
from convatlas.models.keys import Rules, compare_names, is_counter, rename, rename_all
from convatlas.weights.sizes import Sizes

MAX_PREFIX = 6
"""Maximum number of parts of a prefix such as "module.net.encoder."."""


@dataclass(frozen=True)
class Match:
    """How the tensors of a checkpoint fit a network.

    library: whose names they have. names: our name -> the name in the file. stripped: name in the file -> that of the
    library. prefixes: what was removed from how many names. ignored: tensors of at most one element beside weights.
    head: tensors of a classifier that the network does not have. missing: tensors of the network's head that the file
    does not have; empty if it has all.
    """

    library: str
    names: Mapping[str, str]
    stripped: Mapping[str, str]
    prefixes: Mapping[str, int]
    ignored: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def family_of(spec: Spec) -> Family:
    """Return the family that defines this type of spec."""
    for family in FAMILIES.values():
        if any(type(row.spec) is type(spec) for row in family.variants.values()):
            return family
    raise WeightsError(f"{type(spec).__name__}: belongs to no family of the catalog")


def rules_of(spec: Spec) -> dict[str, Rules]:
    """Return the key rules for a spec by library; those of convatlas are empty."""
    return {"convatlas": (), **family_of(spec).rules(spec)}


def match_names(tensors: Mapping[str, Tensor], rules: Mapping[str, Rules], sizes: Sizes) -> Match:
    """Find the library and the prefix with which the names of a checkpoint are those of a network.

    Every tensor of the network must be there, but for those of the head if all tensors of a classifier are missing.
    rules: of the libraries that are tried.
    Raises WeightsError that lists for each library what does not match.
    """
    for library, each in rules.items():  # the ordinary case
        try:
            names = rename_all(tensors, each)
            compare_names(names, sizes.base)
        except WeightsError:
            continue
        return Match(library, names, {key: key for key in tensors}, {})
    prefixes = list(_prefixes(tensors, len(sizes.base)))
    expected = {name for name in sizes.base if not is_counter(name)}
    attempts = [
        _Attempt(tensors, library, each, start, expected) for library, each in rules.items() for start in prefixes
    ]
    best = max(attempts, key=lambda attempt: attempt.score)
    if 2 * best.score < len(expected):
        raise WeightsError(_reasons(tensors, rules, sizes))
    rivals = [each.prefix for each in attempts if each.library == best.library and each.score == best.score]
    if len(rivals) > 1:
        shown = listed(each or "no prefix" for each in rivals)
        raise WeightsError(f"more than one part fits the network: {shown}; choose one with FILE:PREFIX")
    return best.finish(sizes)


class _Attempt:
    """The names that fit a network after one prefix was removed, under the rules of one library."""

    def __init__(
        self, tensors: Mapping[str, Tensor], library: str, rules: Rules, prefix: str, expected: set[str]
    ) -> None:
        self.tensors, self.library, self.rules, self.prefix, self.expected = tensors, library, rules, prefix, expected
        self.stripped: dict[str, str] = {}
        self.names: dict[str, str] = {}
        for key in tensors:
            if key.startswith(prefix):
                self._take(key, prefix, expected)

    def _take(self, key: str, prefix: str, wanted: set[str]) -> bool:
        """Use a tensor of the file, without `prefix`, if the network needs it; returns whether it does."""
        name = rename(key[len(prefix) :], self.rules)
        fits = (name in wanted or is_counter(name)) and name not in self.names
        if fits:
            self.names[name] = key
        if fits or not name:  # a tensor without a place here
            self.stripped[key] = key[len(prefix) :]
        return fits or not name

    @property
    def score(self) -> int:
        """Number of tensors of the network that the file has."""
        return len(self.names.keys() & self.expected)

    def finish(self, sizes: Sizes) -> Match:
        """Account for every other tensor; raises WeightsError that names those which cannot be."""
        prefixes = Counter({self.prefix: len(self.stripped)}) if self.prefix else Counter()
        rest = [key for key in self.tensors if key not in self.stripped]
        missing = self.expected - self.names.keys()
        for start in dict.fromkeys(start for key in rest for start in _starts(key)):
            keys = [key for key in rest if key.startswith(start)]
            if keys and missing and all(rename(key[len(start) :], self.rules) in missing for key in keys):
                for key in keys:
                    self._take(key, start, missing)
                prefixes += Counter({start: len(keys)}) if start else Counter()
                missing -= self.names.keys()
                rest = [key for key in rest if key not in keys]
        ignored = [key for key in rest if self.tensors[key].numel() <= 1]
        rest = [key for key in rest if key not in ignored]
        no_head = bool(missing) and self._is_headless(missing, sizes)
        head = [key for key in rest if no_head and self._is_of_head(key)]
        rest = [key for key in rest if key not in head]
        if rest or (missing and not no_head):
            parts = [
                f"{what} {listed(sorted(names), 3)}"
                for what, names in (("missing", missing), ("unexpected", rest))
                if names
            ]
            removed = f" (after the prefix {self.prefix} was removed)" if self.prefix else ""
            raise WeightsError(
                f"with the names of {self.library}{removed}: checkpoint: tensors do not match this network: "
                f"{'; '.join(parts)}"
            )
        return Match(
            self.library, self.names, self.stripped, dict(prefixes), tuple(ignored), tuple(head), tuple(sorted(missing))
        )

    def _is_headless(self, missing: set[str], sizes: Sizes) -> bool:
        """Return whether exactly the classifier is missing, with or without other layers of the head."""
        classifier = {name for name in sizes.by_class if not name.startswith("auxiliary.")}
        return classifier <= missing and all(name.startswith(("head.", "auxiliary.")) for name in missing)

    def _is_of_head(self, key: str) -> bool:
        """Return whether a tensor is of another classifier: at its place, or in a part without other weights."""
        parts = key.removeprefix(self.prefix).split(".")
        places = (".".join([*parts[:end], "weight"]) for end in range(1, len(parts)))
        if any(rename(place, self.rules).startswith("head.") for place in places):
            return True
        return not any(name.split(".")[0] == parts[0] for name in self.stripped.values())


def _starts(key: str) -> Iterator[str]:
    """Yield "", "a.", "a.b." for a.b.weight: what may be removed from its beginning."""
    parts = key.split(".")[:-1]
    yield from ("".join(f"{part}." for part in parts[:end]) for end in range(min(len(parts), MAX_PREFIX) + 1))


def _prefixes(tensors: Mapping[str, Tensor], size: int) -> Iterator[str]:
    """Yield the beginnings that at least half as many names have as the network has tensors; first the empty one."""
    counts = Counter(start for key in tensors for start in _starts(key))
    yield ""
    yield from (start for start, count in counts.items() if start and 2 * count >= size)


def _reasons(tensors: Mapping[str, Tensor], rules: Mapping[str, Rules], sizes: Sizes) -> str:
    """Return for each library which names are missing or unexpected."""
    failures: dict[str, list[str]] = {}
    for library, each in rules.items():
        try:
            compare_names(rename_all(tensors, each), sizes.base)
        except WeightsError as error:
            failures.setdefault(str(error), []).append(library)
    return "; ".join(f"with the names of {', '.join(libraries)}: {text}" for text, libraries in failures.items())
