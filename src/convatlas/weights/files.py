"""Read checkpoint files: safetensors, torch's format, shards with an index, and the folder of a hub snapshot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch

from convatlas.errors import WeightsError, foreign_errors, listed, shorten
from convatlas.weights.run_files import is_run, model_file_of
from convatlas.weights.torch_file import read_torch_file

_SNAPSHOT_FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
"""What the weights in the folder of a hub snapshot are called; the first one that exists is read."""

_INDEX = ".index.json"

_MAX_JSON = 2**26
"""Largest index or configuration that is read, in bytes."""


@dataclass(frozen=True)
class CheckpointFile:
    """The content of a checkpoint.

    path: the file that was read. content: tensors by name, or plain data that contains them.
    architecture: the network that the file or the config.json beside it names; empty if none is named.
    config: the content of the config.json beside it; empty if there is none.
    """

    path: Path
    content: Any
    architecture: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)


def split_key(weights: str | Path) -> tuple[Path, str]:
    """Return the path and the key of "FILE" or "FILE:KEY"; the key is empty if none is given."""
    path = Path(weights).expanduser()
    if not path.exists():
        before, colon, key = str(weights).rpartition(":")
        if colon and before and Path(before).expanduser().exists():
            return Path(before).expanduser(), key
    return path, ""


def read_checkpoint_file(path: Path) -> CheckpointFile:
    """Read a file, the shards of an index, or the weights in a folder; runs no code.

    Raises WeightsError, in one line, for anything that is not a checkpoint.
    """
    if path.is_dir():
        path = weights_in(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    content = _read_shards(path) if path.name.endswith(_INDEX) else _read_one(path)
    config = _read_config(path)
    return CheckpointFile(path, content, _architecture(config, content), config)


def weights_in(folder: Path) -> Path:
    """Return the file of weights in a folder: a run directory, or the snapshot of a hub.

    Raises WeightsError or ModelFileError if there is none.
    """
    if is_run(folder):
        return model_file_of(folder)
    for name in _SNAPSHOT_FILES:
        if (folder / name).is_file():
            return folder / name
    suffixes = (".safetensors", ".pth", ".pt", ".bin", ".th")
    files = sorted(file for file in folder.iterdir() if file.suffix in suffixes and file.is_file())
    if len(files) == 1:
        return files[0]
    names = listed(file.name for file in files) if files else "none"
    raise WeightsError(f"{folder}: a folder must contain model.safetensors or one other checkpoint, got {names}")


def _read_one(path: Path) -> Any:
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"  # the length of the header in 8 bytes, then JSON
    if not is_safetensors:
        return read_torch_file(path)
    with foreign_errors(path, WeightsError, "damaged, or not a safetensors file"):
        return safetensors.torch.load_file(path)


def _read_shards(path: Path) -> dict[str, Any]:
    index = _read_json(path)
    files = index.get("weight_map") if isinstance(index, Mapping) else None
    if not (isinstance(files, Mapping) and files and all(isinstance(file, str) for file in files.values())):
        raise WeightsError(f"{path}: must have a weight_map from names of tensors to files")
    tensors: dict[str, Any] = {}
    for name in sorted(set(files.values())):
        if Path(name).name != name:
            raise WeightsError(f"{path}: shards must be files beside the index, got {name}")
        shard = path.with_name(name)
        if not shard.is_file():
            raise WeightsError(f"{shard}: no such file; {path.name} needs {len(set(files.values()))} shards")
        content = _read_one(shard)
        wanted = [key for key, file in files.items() if file == name]
        missing = [key for key in wanted if not isinstance(content, Mapping) or key not in content]
        if missing:
            raise WeightsError(f"{shard}: must contain {listed(missing, 3)}, which {path.name} lists")
        tensors |= {key: content[key] for key in wanted}
    return tensors


def _read_json(path: Path) -> Any:
    if path.stat().st_size > _MAX_JSON:
        raise WeightsError(f"{path}: must have at most {_MAX_JSON:,} bytes")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: damaged, not JSON ({shorten(str(error), 100)})") from error


def _read_config(path: Path) -> Mapping[str, Any]:
    """Return the config.json beside a file with the name of a hub's file; empty if there is none."""
    config = path.with_name("config.json")
    plain = _read_json(config) if path.name in _SNAPSHOT_FILES and config.is_file() else {}
    return plain if isinstance(plain, Mapping) else {}


def _architecture(config: Mapping[str, Any], content: Any) -> str:
    """Return the name of the network in config.json (timm), or in the checkpoint of a training script."""
    named: Any = config.get("architecture")
    if named is None and isinstance(content, Mapping):
        args = content.get("args")
        options = args if isinstance(args, Mapping) else vars(args) if hasattr(args, "__dict__") else {}
        named = next((each for each in (content.get("arch"), options.get("model"), options.get("arch")) if each), None)
    return named.partition(".")[0] if isinstance(named, str) else ""
