"""Fixtures of the tests of the command."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from convatlas.train.run import Run


@pytest.fixture
def model_file(colored: Run, tmp_path: Path) -> Path:
    """A copy of a model file trained on the images of the tests."""
    return Path(shutil.copy(colored.model_file, tmp_path / "model.safetensors"))
