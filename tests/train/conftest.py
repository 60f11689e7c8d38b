"""Data on which a training takes a moment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from convatlas.train import report


@pytest.fixture(scope="session")
def rows_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of 28 px in two classes: a bright row shows the class. Read only."""
    path = tmp_path_factory.mktemp("data") / "rows.npz"
    labels = np.arange(24) % 2
    pixels = np.random.default_rng(0).integers(0, 100, (24, 28, 28), dtype=np.uint8)
    pixels[np.arange(24), 4 + 8 * labels] = 250
    np.savez(path, x=pixels, y=labels)
    return path


@pytest.fixture(scope="module")
def no_figures() -> Iterator[None]:
    """Runs without figures, which take longer than such a training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "report", lambda _: "report")
        patch.setattr(report.charts, "curves", lambda *_, path: path.touch())
        patch.setattr(report.charts, "lr_finder", lambda *_, path: path.touch())
        yield
