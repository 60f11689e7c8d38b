"""The weights that a training starts from: published or imported ones where they are cached, else random ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from convatlas.core.spec import Spec
from convatlas.errors import WeightsError, WeightsNotCachedError
from convatlas.models.catalog import CATALOG, Stem
from convatlas.system.progress import Progress
from convatlas.weights.detector import networks_with_weights, points_of, with_points
from convatlas.weights.fetch import is_published_file, pull, wrong_digest
from convatlas.weights.imported import ImportedWeights, list_imported
from convatlas.weights.inflate import Inflation, image_network
from convatlas.weights.open import published_weights
from convatlas.weights.pretrained import Weights, has_cached_files, list_weights
from convatlas.weights.sizes import sizes_of

AUTO, NONE = "auto", "none"
"""Published or imported weights, if the network has some; random weights."""


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a training starts from.

    name: an argument of `open_weights`; empty for random weights. reason: why these, in a few words; empty for those
    that were named.
    """

    name: str = ""
    reason: str = ""


def choose_weights(
    weights: str | Path | None, spec: Spec, *, network: str, stem: Stem = "default", inflate: Inflation | None = None,
    download: bool = False, progress: Progress | None = None,
) -> InitialWeights:  # fmt: skip
    """Return the weights that a training starts from.

    weights: "auto"; "none" or None; or weights by name or file, see `open_weights`.
    spec, network: the network and its name. stem: of the network. inflate: take weights of its counterpart for images;
    see `open_weights`. download: allow to download published weights.
    "auto" takes, first for the network and then for the body of a detector, in this order: the library's default if it
    is cached, other cached weights, imported ones, and with `download` the default. Cached files that are not the
    published ones are never used.
    Raises WeightsNotCachedError if only a download would give published weights.
    """
    if inflate is not None:
        if weights is None or str(weights) == NONE:
            raise WeightsError(f"inflate: needs weights, got {inflate} with random ones")
        network, row = image_network(spec, inflate)
        spec = row.spec
    if weights is None or str(weights) == NONE:
        return InitialWeights(reason="as chosen")
    if str(weights) == AUTO:
        chosen = _choose_automatically(spec, network, stem, download, progress)
        if inflate is not None and not chosen.name:
            raise WeightsError(f"inflate: needs weights, but {chosen.reason}")
        return chosen
    record = published_weights(weights, spec, network)
    if record is None:
        return InitialWeights(str(weights))
    if not _is_at_hand(record):
        _require_download(record, download, record.cached_file)
        pull(record, replace=True, progress=progress)
    return InitialWeights(record.name)


def _choose_automatically(
    spec: Spec, network: str, stem: Stem, download: bool, progress: Progress | None
) -> InitialWeights:
    networks = {name: part for name, part in networks_with_weights(spec, network).items() if name in CATALOG}
    if not networks:
        return InitialWeights(reason=f"no weights of {network} are published")
    if stem != "default":
        return InitialWeights(reason="published weights do not fit the stem for small images")
    published = {name: _published(name) for name in networks}
    imported = {name: list_imported(name) for name in networks}
    known = " or ".join(networks)
    if not any(published.values()) and not any(imported.values()):
        publishers = " and ".join(dict.fromkeys(library for name in networks for library, _ in CATALOG[name].sources))
        missing = f"the library that publishes them, {publishers}, is not installed"
        return InitialWeights(reason=missing if publishers else f"no library publishes weights of {known}")
    for name, part in networks.items():
        published[name] = [each for each in published[name] if _fits(each.spec, part)]
        imported[name] = [each for each in imported[name] if _fits(each.header.spec, part)]
    if not any(published.values()) and not any(imported.values()):
        return InitialWeights(reason=f"published weights of {known} do not fit its changed spec")
    every = [each for name in networks for each in published[name]]
    other = [each.cached_file for each in every if each.cached_file and not _is_at_hand(each)]
    note = f"; {other[0]} is not used, because it is not the published file" if other else ""
    for name in networks:
        for weights, reason in _at_hand(published[name], imported[name]):
            return InitialWeights(weights, reason + note)
    _require_download(every[0], download, other[0] if other else None)
    pull(every[0], replace=True, progress=progress)
    return InitialWeights(every[0].name, "downloaded")


def _published(name: str) -> list[Weights]:
    """Return the published weights of a network, from the first library that has some and those with cached files.

    Others are not read, because that takes seconds.
    """
    published: list[Weights] = []
    for library in dict.fromkeys(library for library, _ in CATALOG[name].sources):
        if not published or has_cached_files(library):
            published += list_weights(name, library)
    return published


def cached_weights(spec: Spec, *, network: str, stem: Stem = "default", library: str | None = None) -> str:
    """Return the name of weights that `choose_weights` takes without a download, or an empty text.

    library: only the published weights of this library.
    """
    if library is None:
        try:
            return choose_weights(AUTO, spec, network=network, stem=stem).name
        except WeightsNotCachedError:
            return ""
    try:
        published = list_weights(network, library)
    except WeightsError:
        return ""
    return next((each.name for each in published if _is_at_hand(each)), "")


def _at_hand(published: list[Weights], imported: list[ImportedWeights]) -> Iterator[tuple[str, str]]:
    """Yield (name, how they got here) of the weights that need no download, the preferred ones first."""
    for weights in published:
        if _is_at_hand(weights):
            yield weights.name, "cached"
    for each in imported:
        yield each.name, "imported"


def _is_at_hand(weights: Weights) -> bool:
    """Return whether the published file is in the cache."""
    return weights.cached_file is not None and is_published_file(weights, weights.cached_file)


def _require_download(weights: Weights, download: bool, other: Path | None) -> None:
    """Raise WeightsNotCachedError unless downloads are allowed; other: a cached file that is not the published one."""
    if not download:
        problem = wrong_digest(weights, other) if other else f"{weights.name}: published weights are not in the cache"
        raise WeightsNotCachedError(weights.name, problem, weights.size_mib)


def _fits(spec: Spec, other: Spec) -> bool:
    """Return whether two networks have the same tensors, with equal numbers of classes, channels and keypoints."""
    spec = with_points(spec, points_of(other))
    if spec == other:
        return True
    ours, theirs = sizes_of(spec).base, sizes_of(other).base
    return {name: each.shape for name, each in ours.items()} == {name: each.shape for name, each in theirs.items()}
