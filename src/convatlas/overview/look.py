"""Show and compare: networks of the catalog by name, or model files and runs. Names need no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from convatlas.errors import InputError
from convatlas.models import index

if TYPE_CHECKING:
    from convatlas.core.spec import Spec
    from convatlas.core.table import Text
    from convatlas.models.catalog import Stem
    from convatlas.models.describe import Comparison
    from convatlas.overview.compare import RunComparison
    from convatlas.overview.describe import ModelDescription

MODEL_SUFFIXES = (".safetensors", ".onnx", ".xml", ".pt2", ".pt", ".pth")
"""Suffixes by which the name of a file is recognized that does not exist."""


def is_model(source: object) -> bool:
    """Return whether a text, path or run means a model file, weights by name or a run, rather than a network."""
    if isinstance(source, os.PathLike):
        return True
    if not isinstance(source, str) or not source.strip() or index.find_name(source, index.read_entries()):
        return False
    path = Path(source).expanduser()
    return "@" in source or path.name != source or path.suffix.lower() in MODEL_SUFFIXES or path.exists()


def network_of(source: str | os.PathLike[str] | Spec) -> str | Spec:
    """Return the name of a network, or a spec, as it is; of a model file, weights or a run, the spec."""
    if isinstance(source, os.PathLike) or is_model(source):
        from convatlas.overview.describe import describe

        return describe(_name_of(source)).header.spec
    return source


def show(
    source: str | os.PathLike[str] | Spec, *, resolution: int | None = None, channels: int | None = None,
    classes: int | None = None, stem: Stem = "default",
) -> Text | ModelDescription:  # fmt: skip
    """Describe a network of the catalog, a spec, a model file, an exported file, weights by name, or a run directory.

    resolution, channels, classes, stem: of a network, see `convatlas.build`. A name of the catalog comes first.
    """
    if not isinstance(source, os.PathLike) and not is_model(source):
        from convatlas.models.describe import show as show_network

        return show_network(source, resolution=resolution, channels=channels, classes=classes, stem=stem)
    if (resolution, channels, classes, stem) != (None, None, None, "default"):
        raise InputError(f"{source}: resolution, channels, classes and stem are for networks of the catalog")
    from convatlas.overview.describe import describe

    return describe(_name_of(source))


def compare(
    *sources: str | os.PathLike[str] | Spec, resolution: int | None = None, bench: bool = False
) -> Comparison | RunComparison:  # fmt: skip
    """Compare networks of the catalog, or specs; or runs, run directories and model files, see `compare_runs`.

    If any source is a network, runs and model files are compared as networks. resolution: of networks, in pixels; by
    default each at its own. bench: measure the latency of models.
    """
    for source in sources:
        _check_kind(source)
    if sources and all(map(is_model, sources)):
        check_resolution(resolution)
        from convatlas.overview.compare import compare_runs

        return compare_runs(*map(_name_of, sources), bench=bench)
    if bench:
        raise InputError("compare: bench is for models and runs; `convatlas bench NAME...` measures networks")
    from convatlas.models.describe import compare as compare_networks

    return compare_networks(*map(network_of, sources), resolution=resolution)


def _name_of(source: object) -> str:
    return os.fspath(source) if isinstance(source, os.PathLike) else str(source)


def _check_kind(source: object) -> None:
    """Raise InputError for what is no name, path, run or spec, such as a network or a model."""
    if isinstance(source, str | os.PathLike):
        return
    from convatlas.core.spec import Spec

    if not isinstance(source, Spec):
        kinds = "names or specs of networks, or runs, run directories and model files"
        raise InputError(f"compare: must be {kinds}, got {type(source).__name__}")


def check_resolution(resolution: int | None) -> None:
    """Raise InputError for a resolution of runs and model files, which have one of their own."""
    if resolution is not None:
        raise InputError("compare: the resolution can be changed for networks by name, not for trained models")
