"""Commands that explore networks and list weights: their numbers are those of the API."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import Command, check_refused
from convatlas.cli import console
from convatlas.core.cost import cost
from convatlas.models.catalog import CATALOG, spec, stats
from convatlas.models.describe import list_models
from convatlas.models.index import read_description
from convatlas.weights.build import build
from tiny_networks import one_of_each_spec


def test_a_narrow_terminal_cuts_no_name_and_no_number(
    convatlas: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "console", console.plain(force_terminal=True, width=40, color_system=None))
    rows = [("resnet50", "25,557,032", "depth, multi-path"), ("mobilenet_v3_small_minimal", "2,044,736", "search")]
    console.table(("name", "parameters", "category"), rows, right=["parameters"])
    printed = capsys.readouterr().out
    assert all(name in printed and number in printed for name, number, _ in rows)
    assert "…" not in printed
    assert convatlas("compare", "resnet50", "lenet5").out.count("resnet50") == 1


def test_list_names_every_network_with_its_cost(convatlas: Command) -> None:
    rows = json.loads(convatlas("list", "--json").out)
    assert [row["name"] for row in rows] == list_models()
    assert sorted(row["name"] for row in rows) == sorted(CATALOG)
    for row in rows:
        facts = stats(row["name"])
        assert row == {key: facts.to_plain()[key] for key in row}
    shown = convatlas("list").out
    assert all(row["name"] in shown and f"{row['macs']:,}" in shown for row in rows)


def test_list_filters(convatlas: Command) -> None:
    assert len(convatlas("list", "--family", "lenet").out.splitlines()) == 1 + len(list_models(family="lenet"))
    few = json.loads(convatlas("list", "--max-params", "20000", "--json").out)
    assert [row["name"] for row in few] == list_models(max_params=20_000)
    assert 0 < len(few) < len(CATALOG)


@pytest.mark.parametrize("name", ["lenet5", "resnet50", "r3d_18", "boosted_resnet18"])
def test_show_prints_the_description_of_the_index(convatlas: Command, name: str) -> None:
    outcome = convatlas("show", name)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == read_description(name) + "\n"


def test_show_counts_what_differs_from_the_defaults(convatlas: Command) -> None:
    small = convatlas("show", "resnet18", "--small-images", "--classes", 10).out
    assert "555,422,720 for one image of 3 x 32 x 32" in small
    assert "remark" not in small
    plain = json.loads(convatlas("show", "resnet18", "--small-images", "--classes", 10, "--json").out)
    assert (plain["input_px"], plain["macs"], plain["parameters"]) == (32, 555_422_720, 11_173_962)
    assert json.loads(convatlas("show", "ResNet18", "--json").out) == stats("resnet18").to_plain()
    assert "from stages.3.0.sum.body.conv2.conv on" in convatlas("show", "resnet18", "--resolution", 32).out
    assert "use 33 px or more" in convatlas("cost", "resnet18", "--resolution", 32).out


@pytest.mark.parametrize("name", ["ResNet50", "resnet-50", "ResNet 50", "RESNET50"])
def test_names_ignore_case_and_hyphens(convatlas: Command, name: str) -> None:
    assert convatlas("show", name).out == convatlas("show", "resnet50").out
    assert json.loads(convatlas("cost", name, "--json").out)["name"] == "resnet50"
    assert json.loads(convatlas("compare", name, "vgg16", "--json").out)["networks"][0]["name"] == "resnet50"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mobilenet",), "list: nothing matches 'mobilenet'; 'mobilenet*' matches 11"),
        (("net50",), "list: nothing matches 'net50'; '*net50*' matches"),
        (("zzz*",), "list: nothing matches 'zzz*'; `convatlas list` shows all"),
        (("resnett50",), "(did you mean resnet50?)"),
        (
            ("vgg*", "--max-params", "5"),
            "no network has at most 5 parameters; the smallest one that matches, vgg11, has",
        ),
        (("--family", "resnett"), "unknown family 'resnett' (did you mean resnet?)"),
    ],
)
def test_a_list_is_never_empty(convatlas: Command, arguments: tuple[str, ...], message: str) -> None:
    for form in ((), ("--json",)):
        outcome = convatlas("list", *arguments, *form)
        assert outcome.out == ""
        check_refused(outcome, message)


def test_unknown_networks_are_refused_with_the_nearest_name(convatlas: Command) -> None:
    for command in (("show", "resnet5O"), ("compare", "vgg16", "resnet5O"), ("cost", "resnet5O"), ("draw", "resnet5O")):
        check_refused(convatlas(*command), "unknown network 'resnet5O' (did you mean resnet50?)")


@pytest.mark.parametrize("name", one_of_each_spec())
def test_cost_is_that_of_the_api(convatlas: Command, name: str) -> None:
    size = max(80, spec(name).resolution)
    plain = json.loads(convatlas("cost", name, "--resolution", size, "--channels", 3, "--classes", 7, "--json").out)
    measured = cost(build(spec(name).scaled(resolution=size), classes=7, channels=3, device="meta"))
    for field in ("parameters", "macs", "activations", "connections"):
        assert plain[field] == getattr(measured, field)
        assert [layer[field] for layer in plain["per_layer"]] == [getattr(layer, field) for layer in measured.layers]
    assert plain["receptive_field_px"] == max(measured.receptive_field)
    assert (plain["layers"], plain["input_px"]) == (measured.output.depth, size)
    assert f"{measured.macs:,}" in convatlas("cost", name, "--resolution", size, "--channels", 3, "--classes", 7).out


def test_list_by_pattern(convatlas: Command) -> None:
    rows = json.loads(convatlas("list", "resnet*", "--json").out)
    assert [row["name"] for row in rows] == list_models("resnet*")
    assert len(rows) > 5


def test_compare_shows_numbers_innovations_and_cells(convatlas: Command) -> None:
    out = convatlas("compare", "resnet50", "resnet101").out
    assert all(text in out for text in ("25,557,032", "44,549,160", "depths[2]", "Identity shortcuts"))
    plain = json.loads(convatlas("compare", "resnet50", "vgg16", "--json").out)
    assert [row["layers"] for row in plain["networks"]] == [50, 16]
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
    assert {"name", "sha256", "license", "reported_metrics", "preprocessing"} <= rows[0].keys()
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
