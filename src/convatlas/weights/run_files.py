"""The model file of a run directory: wherever a model file is read, a run directory is accepted, too."""

from __future__ import annotations

from pathlib import Path

from convatlas.errors import ModelFileError, listed

MODEL = "model.safetensors"
"""The model file of the best epoch."""

CONFIG = "run.json"
"""The configuration, by which a run directory is recognized."""


def is_run(folder: str | Path) -> bool:
    """Return whether a path is a run directory."""
    return (Path(folder) / CONFIG).is_file()


def model_file_of(path: str | Path) -> Path:
    """Return the model file of a run directory or of another folder; the path itself if it is not a folder.

    Raises ModelFileError that names the way on if there is none.
    """
    path = Path(path).expanduser()
    file = path / MODEL
    if file.is_file() or not path.is_dir():
        return file if path.is_dir() else path
    if is_run(path):
        raise ModelFileError(
            f"{path}: the run has no model yet, its first epoch has not ended; `convatlas resume {path}` continues"
        )
    runs = sorted(folder.name for folder in path.iterdir() if is_run(folder))
    if runs:
        raise ModelFileError(f"{path}: contains {len(runs)} runs; choose one of them: {listed(runs)}")
    raise ModelFileError(f"{path}: not a run directory (there is no {CONFIG}), and it contains no {MODEL}")
