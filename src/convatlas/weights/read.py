"""Read a checkpoint for a network: its tensors by our names, and what was removed or chosen on the way."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Spec
from convatlas.errors import SpecError, WeightsError, listed, printable
from convatlas.models.card import Library, Variant
from convatlas.models.catalog import CATALOG
from convatlas.models.keys import match_shapes
from convatlas.weights.files import CheckpointFile, read_checkpoint_file
from convatlas.weights.finite import check_numbers
from convatlas.weights.match import Match, match_names, rules_of
from convatlas.weights.sizes import Sizes, sizes_of
from convatlas.weights.state_dicts import StateDict, find_state_dicts

_OTHER_FUNCTION = re.compile(r"tf_(efficientnet|mobilenetv3|mixnet)|.*blur")
"""Networks of timm that have the tensors of others, but not their function."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a network, and what is known about them.

    tensors: by our names, without the head if the file has no classifier. num_classes: 0 if it has none. channels: of
    the input. where: the file or the name of the weights, for error messages.
    preprocessing: of the images that the network was trained on.
    library: the library whose tensor names the file uses. class_names: empty if unknown.
    cells: the cells of the spec that belong to these tensors, such as {"padding": "same"}.
    original: the tensors by the names of the library. notes: what was removed from the file or chosen in it.
    """

    tensors: Mapping[str, Tensor]
    num_classes: int
    channels: int
    where: object
    preprocessing: Preprocessing
    library: str
    class_names: tuple[str, ...] = ()
    cells: Mapping[str, Any] = field(default_factory=dict)
    original: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def spec_for(self, spec: Spec) -> Spec:
        """Return the spec with the cells of these weights."""
        return spec.replaced(self.cells)

    @property
    def note(self) -> str:
        """The notes as one line; empty if there are none."""
        return printable(f"{self.where}: {'; '.join(self.notes)}") if self.notes else ""

    def log_notes(self) -> None:
        """Log the notes as one line, in the first of several processes."""
        if self.notes and os.environ.get("RANK", "0") == "0":
            logging.getLogger("convatlas").warning("%s", self.note)


def read_checkpoint(
    path: Path, spec: Spec, *, name: str, row: Variant, key: str = "", library: Library | None = None,
    file: CheckpointFile | None = None,
) -> Checkpoint:  # fmt: skip
    """Read the tensors of a network from a file or a folder; runs no code.

    spec, name, row: the network, its name, and its row of the catalog. key: the state dict or the prefix in the file
    that is used; by default the one that fits, averaged weights (EMA) before others, as timm and torchvision do.
    library: whose tensor names the file has, if that is known. file: its content, if it was read before.
    Raises WeightsError that names the tensor for everything that is not exactly this network.
    """
    file = read_checkpoint_file(path) if file is None else file
    cells, notes = _cells_of(file, name, row)
    rules = rules_of(spec)
    if library is not None:
        rules = {library: rules[library]}
    sizes = sizes_of(spec)
    chosen, match, others = choose_state_dict(find_state_dicts(file.content, path), key, path, spec, rules, sizes)
    named = {name: chosen.tensors[key] for name, key in match.names.items()}
    num_classes = 0 if match.missing else sizes.classes_of(named) or row.classes
    channels = sizes.channels_of(named) or row.preprocessing.channels
    expected = {
        name: tensor for name, tensor in sizes.tensors(num_classes or 2, channels).items() if name not in match.missing
    }
    # counters of batches where the network's norms are constants
    named = {name: tensor for name, tensor in named.items() if name in expected}
    try:
        tensors = match_shapes(named, expected)
    except WeightsError as error:
        raise WeightsError(f"{path}: does not fit this {type(spec).__name__}; {error}") from error
    check_numbers(
        path, {match.names[name]: tensor for name, tensor in named.items()},
        {match.names[name]: expected[name] for name in named}, WeightsError,
    )  # fmt: skip
    if name in CATALOG and not cells and match.library == "timm" and "timm" not in row.upstream and row.relatives:
        relative = next((each for each in row.relatives if not _OTHER_FUNCTION.match(each)), next(iter(row.relatives)))
        cells = row.relatives[relative]
        notes.append(f"taken as {relative} of timm, because the file does not name its network")
    preprocessing = _preprocessing_of(file.config)
    if preprocessing:
        notes.append("preprocessing of config.json used")
    return Checkpoint(
        tensors, num_classes, channels, path, preprocessing or row.preprocessing, match.library, cells=cells,
        original={match.stripped[key]: tensor for key, tensor in chosen.tensors.items() if key in match.stripped},
        notes=(*notes, *_notes(path, chosen, match, others)),
    )  # fmt: skip


def choose_state_dict(
    state_dicts: Sequence[StateDict], key: str, path: Path, spec: Spec, rules: Mapping[str, Any], sizes: Sizes
) -> tuple[StateDict, Match, list[str]]:
    """Return the state dict that is used, how it fits, and the keys of others of about its size."""
    candidates = [each for each in state_dicts if not key or each.key == key]
    if not candidates:
        candidates = [part for each in state_dicts if (part := each.part(f"{key.removesuffix('.')}.")).tensors]
    if not candidates:
        known = listed(each.key or "the file itself" for each in state_dicts)
        raise WeightsError(
            f"{path}: {key} must be a state dict in the file or a prefix of its names; there are {known}"
        )
    large = [each for each in candidates if 2 * len(each.tensors) >= len(sizes.base)]
    fitting: list[tuple[StateDict, Match]] = []
    errors: list[tuple[int, WeightsError]] = []
    for each in large or candidates:
        try:
            fitting.append((each, match_names(each.tensors, rules, sizes)))
        except WeightsError as error:
            errors.append((len(each.tensors), error))
        if fitting and each.rank < 2:
            break
    if not fitting:
        _, first = max(errors, key=lambda pair: pair[0])
        raise WeightsError(f"{path}: does not fit this {type(spec).__name__}; {first}") from first
    usual = [pair for pair in fitting if pair[0].rank < 2]
    if len(fitting) > 1 and not usual:
        names = listed(each.key for each, _ in fitting)
        raise WeightsError(
            f"{path}: more than one state dict fits: {names}; choose one with {path}:{fitting[0][0].key}"
        )
    chosen, match = (usual or fitting)[0]
    return chosen, match, [each.key for each in large if each is not chosen and each.key]


def _notes(path: Path, chosen: StateDict, match: Match, others: Sequence[str]) -> Iterator[str]:
    """Yield what a user should know about how a file was read."""
    if chosen.key:
        ema = ", the averaged weights (EMA)" if chosen.rank == 0 else ""
        rest = f", not {listed(others, 3)}; choose it with {path}:{others[0]}" if others else ""
        yield f"{chosen.key} used{ema}{rest}"
    for prefix, count in match.prefixes.items():
        yield f"prefix {prefix} removed from {count:,} names"
    if ignored := [*chosen.others, *match.ignored]:
        yield f"not weights and ignored: {listed(ignored, 3)}"
    if match.missing:
        other = f"; {listed(match.head, 3)} not used" if match.head else ""
        yield f"the head is initialized anew (missing {listed(match.missing, 3)}{other})"


def _cells_of(file: CheckpointFile, name: str, row: Variant) -> tuple[Mapping[str, Any], list[str]]:
    """Return the cells of the network that the file names, with a note if there are any.

    Raises WeightsError if that network is known to be another one.
    """
    named = file.architecture
    if named in row.relatives:
        return row.relatives[named], [f"taken as {named}, which the file names"]
    own = {name, name.removesuffix("-custom"), *row.upstream.values()}
    if named and named not in own:
        upstream = {each for row in CATALOG.values() for _, each in row.sources}
        if named in CATALOG or named in upstream or _OTHER_FUNCTION.match(named):
            raise WeightsError(
                f"{file.path}: must be weights of {name}, but the file names {named}, which is another network, even "
                "if all tensors have the same shapes"
            )
    return {}, []


def _preprocessing_of(config: Mapping[str, Any]) -> Preprocessing | None:
    """Return the preprocessing in the config.json of timm's hub; None if it is not stated there completely."""
    stated = config.get("pretrained_cfg", config)
    try:
        if stated.get("crop_mode", "center") != "center":
            return None
        size = stated["input_size"][-1]
        return Preprocessing(
            resize=int(size / stated["crop_pct"]), crop=size, interpolation=stated["interpolation"],
            mean=tuple(map(float, stated["mean"])), std=tuple(map(float, stated["std"])),
        )  # fmt: skip
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, ZeroDivisionError, OverflowError, SpecError):
        return None
