"""Compound scaling found for a network and data: the grid of the paper, the family, and single dimensions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import convatlas as ca
from commands import Command, check_refused
from convatlas.errors import DivergedError
from convatlas.models.catalog import build_fresh
from convatlas.models.families.resnet import ResNet
from convatlas.models.scaling import compound_factors
from convatlas.search.scale_search import PUBLISHED, scaling_grid, series, spread
from convatlas.train.fit import fit
from convatlas.train.settings import DataOptions

SMALL = ResNet("basic", (1, 1), (8, 16), stem=8, small_stem=True, resolution=12)


@pytest.fixture(scope="module")
def small_run(idx_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run of `SMALL`."""
    out = tmp_path_factory.mktemp("runs") / "small"
    return fit(str(idx_folder), SMALL, epochs=1, out=out, data_options=DataOptions(resolution=12)).folder


def test_the_grid_has_the_published_coefficients() -> None:
    grid = scaling_grid()
    assert PUBLISHED in grid
    assert all(1.9 - 1e-9 <= compound_factors(1, alpha=a, beta=b, gamma=c).macs <= 2.1 + 1e-9 for a, b, c in grid)
    assert all(min(point) >= 1 for point in grid)
    chosen = spread(grid, 5)
    assert chosen[0] == PUBLISHED
    assert len(set(chosen)) == 5
    assert spread(grid, len(grid))[:5] == chosen
    assert sorted(spread(grid, 10**6)) == sorted(grid)


def test_the_published_networks_are_exact() -> None:
    exact = {
        "efficientnet_b0": 5_288_548, "efficientnet_b1": 7_794_184, "efficientnet_b2": 9_109_994,
        "efficientnet_b3": 12_233_232, "efficientnet_b4": 19_341_616, "efficientnet_b5": 30_389_784,
        "efficientnet_b6": 43_040_704, "efficientnet_b7": 66_347_960,
    }  # fmt: skip
    assert {name: ca.cost(build_fresh(name, device="meta")).parameters for name in exact} == exact


def test_a_scale_search(convatlas: Command, idx_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "scaling"
    arguments = ("scale-search", "cifar_resnet20", idx_folder, "--number", 2, "--epochs", 1, "--sizes", "1",
                 "--resolution", 12, "--out", out)  # fmt: skip
    assert convatlas(*arguments).code == 0
    result = json.loads((out / "scaling.json").read_text())
    assert {result["alpha"], result["beta"], result["gamma"]} <= {each for point in scaling_grid() for each in point}
    assert [each["rule"] for each in result["compared"]] == ["compound", "fast", "depth", "width", "resolution"]
    assert [each["phi"] for each in result["members"]] == [0.0, 1.0]
    assert result["members"][1]["macs"] > result["base"]["macs"]
    assert all(0.8 < each["macs"] / result["members"][1]["macs"] < 1.25 for each in result["compared"])
    assert result["grid"][0]["accuracies"] >= result["grid"][1]["accuracies"]
    assert (out / "scaling.png").stat().st_size > 1000
    written = {path: path.stat().st_mtime for path in (out / "runs").glob("*/model.safetensors")}
    again = convatlas(*arguments, "--json")  # everything is trained already
    assert json.loads(again.out)["grid"][0]["accuracies"] == result["grid"][0]["accuracies"]
    assert {path: path.stat().st_mtime for path in (out / "runs").glob("*/model.safetensors")} == written
    assert json.loads(again.out)["base"]["latency_ms"] == result["base"]["latency_ms"]
    assert all(1.8 <= each["macs"] / result["base"]["macs"] <= 2.2 for each in result["grid"])
    check_refused(convatlas(*arguments, "--recipe", "scratch-small"), "has a scale search with another recipe")


def test_latencies_that_double_are_looked_for_all_over_the_grid(
    idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latencies that are as the MACs stand in for measured ones."""
    from convatlas.search import scale_search as module

    lab = module._Laboratory.open(
        "cifar_resnet20", str(idx_folder), tmp_path / "out", 1, (0,), "torch", 32, None, lambda *_: None
    )
    monkeypatch.setattr(lab, "latency_of", lambda spec: 1e-9 * lab.counts_of(spec).macs)
    base = lab.measure("base", 0.0, (1.0, 1.0, 1.0))
    found = list(lab.grid(base, "latency", 1000))
    assert all(1.9 <= each.latency_s / base.latency_s <= 2.1 for each in found)
    alphas = [each.alpha for each in found]
    assert {min(alphas[:3]), max(alphas[:3])} == {min(alphas), max(alphas)}


def test_the_fast_rule_trains_no_grid(convatlas: Command, idx_folder: Path, small_run: Path, tmp_path: Path) -> None:
    """The network is that of a run, such as the answer of a search."""
    out = tmp_path / "scaling"
    outcome = convatlas("scale-search", small_run, idx_folder, "--rule", "fast", "--epochs", 1, "--sizes", "1",
                        "--resolution", 12, "--out", out)  # fmt: skip
    assert outcome.code == 0, outcome.err
    result = json.loads((out / "scaling.json").read_text())
    assert (result["alpha"], result["beta"], result["gamma"]) == pytest.approx((2**0.1, 2**0.4, 2**0.05))
    assert [each["rule"] for each in result["compared"]] == ["fast", "depth", "width", "resolution"]
    assert len(result["grid"]) == 1
    assert result["base"]["spec"] == SMALL.to_plain()


def test_a_network_that_does_not_train_is_told(
    idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convatlas.search import scale_search as module

    accuracy = module._Laboratory._accuracy

    def diverging(lab: module._Laboratory, scaled: module.Scaled, seed: int) -> float:
        if scaled.rule == "width":
            raise DivergedError("the loss is not finite")
        return accuracy(lab, scaled, seed)

    monkeypatch.setattr(module._Laboratory, "_accuracy", diverging)
    result = module.scale_search(
        SMALL, str(idx_folder), rule="fast", epochs=1, sizes=(1,), resolution=12, out=tmp_path / "out", progress=False
    )
    assert {each.rule: each.error for each in result.compared} == {
        "fast": "", "depth": "", "width": "the loss is not finite", "resolution": "",
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "scaling.json").read_text())["compared"][2]["error"]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--doubled", "params"), ["must be macs or latency"]),
        (("--rule", "dwr"), ["rule must be one of compound, fast"]),
        (("--sizes", "1,x"), ["--sizes: must be numbers separated by commas"]),
        (("--sizes", "1,0"), ["sizes must be numbers > 0, got 1.0, 0.0"]),
        (("--sizes", "nan"), ["sizes must be numbers > 0"]),
        (("--number", 1), ["--number"]),
    ],
)
def test_what_is_refused(
    convatlas: Command, idx_folder: Path, tmp_path: Path, more: tuple[object, ...], named: list[str]
) -> None:
    check_refused(convatlas("scale-search", "cifar_resnet20", idx_folder, "--out", tmp_path / "out", *more), *named)


def test_series_begin_at_the_base() -> None:
    from convatlas.search.counts import Counts
    from convatlas.search.scale_search import Scaled, ScaleSearch

    def scaled(rule: str, macs: int, accuracy: float) -> Scaled:
        counts = Counts(1, macs, 1, 1)
        return Scaled(rule, 1.0, 1.2, 1.1, 1.15, ca.spec("lenet5"), counts, 0.001, (accuracy,))

    base = scaled("base", 10**6, 0.5)
    compared = (scaled("compound", 2 * 10**6, 0.6), scaled("width", 2 * 10**6, 0.55))
    result = ScaleSearch(Path(), base, (base,), (), (base,), compared)
    assert series(result) == {"compound": [(1.0, 50.0), (2.0, 60.0)], "width": [(1.0, 50.0), (2.0, pytest.approx(55))]}
