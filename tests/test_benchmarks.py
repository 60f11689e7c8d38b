"""Every benchmark can be started: what it imports exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import load_script

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.stem)
def test_a_benchmark_can_be_imported(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    assert load_script(file).__doc__
