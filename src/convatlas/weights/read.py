"""Read checkpoints of convatlas and of other libraries, and match their tensors with a network."""

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


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a network, and what is known about them.

    tensors: by the names in the file. num_classes, channels: outputs and input channels of the network.
    where: the file or the name of the weights, for error messages.
    preprocessing: of the images that the network was trained on.
    library: the library whose tensor names the file uses; None if unknown. class_names: empty if unknown.
    """

    tensors: Mapping[str, Tensor]
    num_classes: int
    channels: int
    where: object
    preprocessing: Preprocessing
    library: str | None = None
    class_names: tuple[str, ...] = ()


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name: .safetensors, or torch's format, read without running code.

    Wrappers such as {"state_dict": ...} and the prefix "module." are removed. Raises WeightsError for other files.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            is_safetensors = file.read(9)[8:] == b"{"  # the length of the header in 8 bytes, then JSON
        content: Any = (
            safetensors.torch.load_file(path)
            if is_safetensors
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # damaged bytes make these readers raise almost anything
        raise WeightsError(f"{path}: damaged, or not a checkpoint of tensors ({brief(error)})") from error
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not (isinstance(content, Mapping) and content and all(isinstance(each, Tensor) for each in content.values())):
        raise WeightsError(f"{path}: must contain a dictionary of tensors")
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): tensor for key, tensor in content.items()}


def family_of(spec: Spec) -> Family:
    """Return the family that defines this type of spec."""
    for family in FAMILIES.values():
        if any(type(row.spec) is type(spec) for row in family.variants.values()):
            return family
    raise WeightsError(f"{type(spec).__name__}: belongs to no family of the catalog")


def key_mappings(spec: Spec) -> dict[str, KeyMapping]:
    """Return the key rules by library; those of convatlas are empty."""
    return {"convatlas": lambda _: (), **family_of(spec).key_mappings}


def match_checkpoint(spec: Spec, checkpoint: Checkpoint, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by our names.

    The rules are those of its library, or if that is unknown, the first ones that match exactly.
    expected: the state dict of a network with the checkpoint's classes and channels.
    Raises WeightsError that lists for each library what does not match.
    """
    failures: dict[str, list[str]] = {}
    for library, rules in key_mappings(spec).items():
        if checkpoint.library in (None, library):
            try:
                return remap_keys(checkpoint.tensors, rules(spec), expected)
            except WeightsError as error:
                failures.setdefault(str(error), []).append(library)
    reasons = "; ".join(f"with the names of {', '.join(libraries)}: {error}" for error, libraries in failures.items())
    raise WeightsError(f"{checkpoint.where}: does not fit this {type(spec).__name__}; {reasons}")
