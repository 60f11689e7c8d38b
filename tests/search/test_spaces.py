"""Search spaces of specs: published networks are points of them, and their cost is exact before they are built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import convatlas as ca
from convatlas.core.choice import choose
from convatlas.core.cost import cost
from convatlas.core.spec import Spec
from convatlas.errors import SearchError
from convatlas.models.catalog import build_fresh
from convatlas.models.families.mnasnet import A1, B1
from convatlas.search.counts import CostTable, Counts
from convatlas.search.space import SpecSpace
from convatlas.search.spaces import DEFAULT_SPACE, SPACES, named_space, read_space, space_at, stated_resolution

POINTS: dict[str, list[Spec]] = {
    "mnasnet": [A1, replace(B1, momentum=0.1)],  # the momentum belongs to B1's weights
    "efficientnet": [replace(ca.spec("efficientnet_b0"), drop_path=0.0)],
    "mixed": [replace(ca.spec("efficientnet_b0"), drop_path=0.0)],
    "mobilenet_v2": [ca.spec("mobilenet_v2")],
    "mobilenet_v3": [ca.spec("mobilenet_v3_large")],
    "residual": [ca.spec("regnet_x_400mf")],
    "resnet": [ca.spec("resnet18"), ca.spec("resnet34"), ca.spec("resnet50")],
    "densenet": [ca.spec("densenet121")],
}  # fmt: skip


@pytest.mark.parametrize("name", SPACES)
def test_published_networks_are_points_of_the_spaces(name: str) -> None:
    space = SpecSpace(named_space(name))
    for spec in POINTS[name]:
        assert space.value(space.decode(space.encode(spec))) == spec
    with pytest.raises(SearchError, match="must be a network of the space"):
        space.encode(ca.spec("lenet5"))


def test_networks_for_small_images_are_points_of_the_default_space() -> None:
    space = SpecSpace(named_space(DEFAULT_SPACE, width=0.25, small=True))
    for name in ("cifar_resnet20", "cifar_resnet32"):
        assert space.value(space.decode(space.encode(ca.spec(name)))) == ca.spec(name)


COUNTED = ("mnasnet", "resnet")
"""Spaces that are counted by the fast tests: rows of blocks, and numbers for stages. All others in the slow ones."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in COUNTED else pytest.mark.slow) for name in SPACES]
)
def test_counts_of_a_table_are_those_of_whole_networks(name: str) -> None:
    space = SpecSpace(named_space(name, width=0.25, small=True))
    table = CostTable(space, classes=10, channels=3)
    random = np.random.default_rng(1)
    drawn = space.sample(20, random)
    mutants = space.mutate(drawn, random, changes=2)
    for codes in (*drawn, *mutants, *drawn[:3]):
        candidate = space.decode(codes)
        spec = space.value(candidate)
        counted = table.counts(candidate)
        assert counted == Counts.of(spec, classes=10, channels=3)
    whole = cost(build_fresh(spec, classes=10, channels=3, device="meta"))
    assert (counted.parameters, counted.macs) == (whole.parameters, whole.macs)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "googlenet", "lenet5"])
def test_counts_of_a_network(name: str, tmp_path: Path) -> None:
    from convatlas.inference.benchmark import build_untrained
    from convatlas.weights.modelfile import write_model_file

    model = build_untrained(name)
    row = ca.variant(name)
    counts = Counts.of(row.spec, classes=row.classes, channels=row.preprocessing.channels)
    assert model.network is not None
    write_model_file(tmp_path / "model.safetensors", model.network, model.header)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert counts.file_bytes == pytest.approx(size, rel=0.01, abs=8192)
    activations = counts.memory_bytes - 4 * counts.parameters
    largest = max(np.prod(layer.output.shape) + np.prod(layer.input.shape) for layer in cost(model.network).layers)
    assert 4 * largest <= activations <= 4 * 3 * largest


def test_spaces_are_read_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "type: ResNet\nblock: {choose: [basic, bottleneck]}\ndepths: [{choose: [1, 2]}, 2]\nwidths: [16, 32]\n"
        "small_stem: true\nresolution: 32\n"
    )
    template = read_space(path)
    assert template.choices == {"block": ("basic", "bottleneck"), "depths[0]": (1, 2)}
    assert space_at(str(path), 0.5, True, 24).template.first.resolution == 24
    assert stated_resolution(str(path)) == template.first.resolution
    assert stated_resolution("resnet") is None
    named = template.replaced({"resolution": choose(24, 32, name="side")})
    assert space_at(named, 1.0, True, 64).choices["side"] == (24, 32)
    for text, message in [
        ("type: ResNett\n", "type must be the name of a spec"),
        ("type: ResNet\nblock: basic\ndepths: [1]\nwidths: [8]\n", "has no choices"),
        ("[", "not a YAML file"),
    ]:
        path.write_text(text)
        with pytest.raises(SearchError, match=message):
            read_space(path)
    with pytest.raises(SearchError, match=r"no space 'mobilenetv2' \(did you mean mobilenet_v2"):
        named_space("mobilenetv2")


def test_explore_a_space_of_specs() -> None:
    space = named_space("resnet", width=0.25, small=True)

    def evaluate(spec: Spec, fidelity: float) -> dict[str, float]:
        counts = Counts.of(spec, classes=10, channels=3)
        return {"accuracy": -abs(counts.parameters - 100_000), "latency": counts.macs / 1e6}

    study = ca.search.explore(space, evaluate, budget=6, fidelities=(1,), progress=False)
    assert len(study.complete) == 6
    assert set(study.complete[0].candidate) == set(space.choices)
