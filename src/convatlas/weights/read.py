"""Read checkpoints, also those of other libraries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Spec
from convatlas.errors import WeightsError, brief
from convatlas.models.card import Family
from convatlas.models.catalog import FAMILIES
from convatlas.models.keys import KeyMapping, remap_keys


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint (.safetensors, or torch's format without running any code).

    Wrappers such as {"state_dict": ...} and the prefix "module." are taken off.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            plain = file.read(9)[8:] == b"{"  # safetensors: a length of 8 bytes, then JSON
        whole: Any = (
            safetensors.torch.load_file(path) if plain else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # a reader of foreign bytes raises whatever it stumbles over
        raise WeightsError(f"{path}: damaged, or not a checkpoint of tensors ({brief(error)})") from error
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(whole, Mapping) and isinstance(whole.get(wrapper), Mapping):
            whole = whole[wrapper]
    if not (isinstance(whole, Mapping) and whole and all(isinstance(value, Tensor) for value in whole.values())):
        raise WeightsError(f"{path}: holds no dictionary of tensors")
    prefix = "module." if all(key.startswith("module.") for key in whole) else ""
    return {key.removeprefix(prefix): tensor for key, tensor in whole.items()}


def family_of(spec: Spec) -> Family:
    """Return the family whose file defines this kind of spec."""
    for family in FAMILIES.values():
        if any(type(row.spec) is type(spec) for row in family.variants.values()):
            return family
    raise WeightsError(f"{type(spec).__name__} belongs to no family")


def match_checkpoint(spec: Spec, given: Checkpoint, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under our names: by its library's rules, or by the first that fit exactly.

    Raises WeightsError that tells for each of them what does not fit.
    """
    failures: dict[str, list[str]] = {}
    for library, rules in _key_mappings(spec).items():
        if given.library in (None, library):
            try:
                return remap_keys(given.tensors, rules(spec), expected)
            except WeightsError as error:
                failures.setdefault(str(error), []).append(library)
    told = "; of ".join(f"{', '.join(libraries)}: {error}" for error, libraries in failures.items())
    raise WeightsError(f"{given.where}: does not fit this {type(spec).__name__}; under the names of {told}")


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a network of so many classes and channels; `library` is whose names they carry, if that is known.

    where: what to call it in an error. preprocessing: what its images went through. names: of its classes, if known.
    """

    tensors: Mapping[str, Tensor]
    classes: int
    channels: int
    where: object
    preprocessing: Preprocessing
    library: str | None = None
    names: tuple[str, ...] = ()


def _key_mappings(spec: Spec) -> dict[str, KeyMapping]:
    """Return the key rules that a checkpoint may need: none, if it is ours, or those of a library."""
    return {"convatlas": lambda _: (), **family_of(spec).key_mappings}
