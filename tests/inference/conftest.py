"""A model of color images, and one of its images as a file and as values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convatlas.inference.load import load
from convatlas.inference.model import Model
from convatlas.train.run import Run


@pytest.fixture(scope="module")
def model(colored: Run) -> Model:
    return load(colored.model_file)


@pytest.fixture(scope="module")
def file(images: Path) -> Path:
    return images / "val" / "bee" / "01.png"


@pytest.fixture(scope="module")
def values(file: Path) -> Any:
    return np.array(Image.open(file))
