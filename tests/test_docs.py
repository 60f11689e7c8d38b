"""The worked example of the documentation works: the code that it shows is run."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from convatlas.core.cost import cost
from convatlas.draw.diagram import diagram
from convatlas.errors import SpecError

PAGE = Path(__file__).parents[1] / "docs" / "adding-an-architecture.md"


@pytest.fixture(scope="module")
def example() -> Any:
    """The family file that the page shows, as a module."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    module = ModuleType("example_family")
    sys.modules[module.__name__] = module
    exec(compile("\n\n".join(blocks), str(PAGE), "exec"), module.__dict__)
    return module


@pytest.mark.parametrize(("name", "layers", "millions"), [("vovnet39", 39, 22.6), ("vovnet57", 57, 36.6)])
def test_example_is_the_network_of_the_paper(example: Any, name: str, layers: int, millions: float) -> None:
    with torch.device("meta"):
        network = example.FAMILY.variants[name].spec.build(classes=1000, channels=3)
    assert cost(network).parameters == pytest.approx(millions * 1e6, rel=0.01)
    assert cost(network).output.depth == layers + 1  # they count the convolutions
    assert diagram(network, title=name) is not None


def test_example_knows_its_smallest_image_and_scales(example: Any) -> None:
    spec = example.FAMILY.variants["vovnet27_slim"].spec.scaled(width=0.25, resolution=29)
    assert spec.build(classes=4, channels=3).eval()(torch.zeros(2, 3, 29, 29)).shape == (2, 4)
    with pytest.raises(SpecError, match=r"resolution must be >= 29 px"):
        spec.scaled(resolution=28)
