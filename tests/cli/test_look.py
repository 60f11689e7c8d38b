"""Commands that explore networks and list weights: their numbers are those of the API."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import Command
from convatlas.core.cost import cost
from convatlas.models.catalog import CATALOG, list_models, spec
from convatlas.weights.build import build


def test_list_names_every_network_with_its_cost(convatlas: Command) -> None:
    rows = json.loads(convatlas("list", "--json").out)
    assert [row["name"] for row in rows] == list_models()
    for row in rows:
        measured = cost(build(row["name"], device="meta"))
        assert (row["parameters"], row["macs"]) == (measured.parameters, measured.macs)
    shown = convatlas("list").out
    assert all(row["name"] in shown and f"{row['macs']:,}" in shown for row in rows)


def test_list_filters(convatlas: Command) -> None:
    assert len(convatlas("list", "--family", "lenet").out.splitlines()) == 1 + len(list_models(family="lenet"))
    few = json.loads(convatlas("list", "--max-params", "20000", "--json").out)
    assert [row["name"] for row in few] == list_models(max_params=20_000)
    assert 0 < len(few) < len(CATALOG)


@pytest.mark.parametrize("name", CATALOG)
def test_show_prints_card_layers_and_totals(convatlas: Command, name: str) -> None:
    outcome, card = convatlas("show", name), CATALOG[name].card
    assert (outcome.code, outcome.err) == (0, "")
    measured = cost(build(name, device="meta"))
    texts = [card.title, card.paper, card.innovation, card.note, *card.categories]
    if card.reported is not None:
        texts.append(card.reported.conditions)
    assert all(text in outcome.out for text in texts)
    assert f"{measured.parameters:,}" in outcome.out
    assert f"{measured.macs:,}" in outcome.out
    assert all(layer.path in outcome.out for layer in measured.layers if layer.parameters)


@pytest.mark.parametrize("name", CATALOG)
def test_cost_is_that_of_the_api(convatlas: Command, name: str) -> None:
    size = max(80, spec(name).resolution)
    plain = json.loads(convatlas("cost", name, "--resolution", size, "--channels", 3, "--classes", 7, "--json").out)
    measured = cost(build(spec(name).scaled(resolution=size), classes=7, channels=3, device="meta"))
    for field in ("parameters", "macs", "activations", "connections"):
        assert plain[field] == getattr(measured, field)
        assert [layer[field] for layer in plain["layers"]] == [getattr(layer, field) for layer in measured.layers]
    assert plain["receptive_field"] == list(measured.receptive_field)
    assert f"{measured.macs:,}" in convatlas("cost", name, "--resolution", size, "--channels", 3, "--classes", 7).out


def test_list_by_pattern(convatlas: Command) -> None:
    rows = json.loads(convatlas("list", "resnet*", "--json").out)
    assert [row["name"] for row in rows] == list_models("resnet*")
    assert len(rows) > 5


def test_compare_shows_numbers_innovations_and_cells(convatlas: Command) -> None:
    out = convatlas("compare", "resnet50", "resnet101").out
    assert all(text in out for text in ("25,557,032", "44,549,160", "depths[2]", "Identity shortcuts"))
    plain = json.loads(convatlas("compare", "resnet50", "vgg16", "--json").out)
    assert [row["depth"] for row in plain["networks"]] == [50, 16]
    assert plain["cells"] == {}


def test_scale_by_factor_rule_and_budget(convatlas: Command) -> None:
    factors = ("--width", 1.2, "--depth", 1.4, "--resolution", 300)
    plain = json.loads(convatlas("scale", "efficientnet_b0", *factors, "--json").out)
    assert (plain["parameters"], plain["macs"]) == (12_233_232, 1_827_141_392)
    fitted = json.loads(convatlas("scale", "mobilenet_v2", "--macs", 150e6, "--json").out)
    assert 0.97 * 150e6 <= fitted["macs"] <= 150e6
    assert "EfficientNet(" in convatlas("scale", "efficientnet_b0", "--phi", 1).out
    assert convatlas("scale", "efficientnet_b0", "--fast", 2).code == 0
    assert convatlas("scale", "efficientnet_b0", "--phi", 1, "--macs", 1e8).code == 2
    assert (
        "rule must be one of width, compound, fast, got 'x'"
        in convatlas("scale", "efficientnet_b0", "--macs", 1e8, "--rule", "x").err
    )


def test_draw_and_timeline_write_images(convatlas: Command, tmp_path: Path) -> None:
    for command in (("draw", "resnet18", "--small-images"), ("timeline",)):
        path = tmp_path / f"{command[0]}.svg"
        assert convatlas(*command, "--out", path).out.strip() == str(path)
        assert path.stat().st_size > 5_000
    assert "must be one of .svg, .png, .pdf, got .gif" in convatlas("draw", "resnet18", "-o", tmp_path / "x.gif").err
    assert convatlas("draw", "lenet5", "--small-images", "-o", tmp_path / "x.svg").code == 2


def test_weights_are_listed_and_refused_in_one_line(convatlas: Command, tmp_path: Path) -> None:
    assert "resnet50@torchvision:IMAGENET1K_V2" in convatlas("weights", "list", "resnet50").out
    rows = json.loads(convatlas("weights", "list", "resnet50", "--json").out)
    assert {"name", "sha256_prefix", "license", "reported_metrics", "preprocessing"} <= rows[0].keys()
    assert "no weights, neither imported" in convatlas("weights", "list", "capsnet").out
    for command in (
        ("pull", "resnet18@torchvision:IMAGENET1K_V1"),
        ("import", "resnet18@torchvision:IMAGENET1K_V1", tmp_path / "none.pth"),
        ("verify", "resnet18@torchvision:IMAGENET1K_V9", tmp_path),
        ("verify", "resnet18", tmp_path, "--file", tmp_path / "none.pth"),
    ):
        outcome = convatlas("weights", *command)
        assert outcome.code == 2
        assert len(outcome.err.strip().splitlines()) == 1
