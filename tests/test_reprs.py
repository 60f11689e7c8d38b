"""What a notebook shows: the result of every public function fits a screen."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import pytest
import torch

import convatlas as ca
from convatlas.core.network import Network
from convatlas.core.table import SCREEN_CHARACTERS, SCREEN_LINES, Table, Text, fit_screen
from convatlas.engines.network_engine import EngineConfig, NetworkEngine
from convatlas.models.catalog import CATALOG
from convatlas.tasks.known import Classification
from convatlas.weights.modelfile import Header

ON_RESNET50: dict[str, Callable[[Network], Any]] = {
    "build": lambda network: network,
    "compare": lambda _: ca.compare("resnet50", "resnet101", "se_resnet50", "vgg16"),
    "cost": ca.cost,
    "diagram": ca.diagram,
    "diff": lambda _: ca.diff(ca.spec("resnet50"), ca.spec("wide_resnet50_2")),
    "feature_info": ca.feature_info,
    "fit_budget": lambda _: ca.fit_budget(ca.spec("lenet1"), params="5k"),
    "list_models": lambda _: ca.list_models("resnet*"),
    "list_weights": lambda _: ca.list_weights("resnet50"),
    "param_groups_by_depth": ca.param_groups_by_depth,
    "scale_compound": lambda _: ca.scale_compound(ca.spec("resnet50"), 1),
    "scale_fast": lambda _: ca.scale_fast(ca.spec("resnet50"), 2),
    "show": lambda _: ca.show("resnet50"),
    "spec": lambda _: ca.spec("resnet50"),
    "summary": ca.summary,
    "taps_at_strides": lambda network: ca.taps_at_strides(network, [8, 16, 32]),
    "variant": lambda _: ca.variant("resnet50"),
}


@pytest.fixture(scope="module")
def network() -> Network:
    with torch.device("meta"):
        return CATALOG["resnet50"].spec.build(classes=1000, channels=3)


def fits_a_screen(text: str) -> bool:
    return text.count("\n") < SCREEN_LINES and len(text) <= SCREEN_CHARACTERS


@pytest.mark.parametrize("name", ON_RESNET50)
def test_the_repr_of_a_result_fits_a_screen(name: str, network: Network) -> None:
    result = ON_RESNET50[name](network)
    assert fits_a_screen(repr(result))
    assert " object at 0x" not in repr(result)
    if not isinstance(result, list | dict | Network):
        assert hasattr(result, "_repr_html_") or len(repr(result)) <= 1000


@pytest.mark.parametrize("name", CATALOG)
def test_specs_and_rows_of_the_catalog_fit_a_screen(name: str) -> None:
    row = CATALOG[name]
    assert fits_a_screen(repr(row.spec))
    assert fits_a_screen(repr(row))
    assert row.spec._repr_html_().startswith("<table>")


def test_a_network_shows_its_parts_and_prints_its_layers(network: Network) -> None:
    assert repr(network).splitlines() == [
        "Network of 25,557,032 parameters for inputs of 3 x 224 x 224",
        "stem      ConvNorm, MaxPool2d",
        "stages.0  3 x Bottleneck",
        "stages.1  4 x Bottleneck",
        "stages.2  6 x Bottleneck",
        "stages.3  3 x Bottleneck",
        "head      AdaptiveAvgPool2d, Flatten, Linear",
    ]
    assert "(out): Linear(in_features=2048, out_features=1000, bias=True)" in str(network)


def test_weights_show_no_class_names() -> None:
    published = ca.list_weights("resnet18")
    assert repr(published[0]).startswith("<Weights resnet18@torchvision:IMAGENET1K_V1: 224 px, 1,000 classes, ")
    assert "<td" in published._repr_html_()  # type: ignore[attr-defined]
    assert repr(ca.list_weights("lenet5")) == "[]"


def test_engines_show_what_they_run() -> None:
    row = CATALOG["lenet1"]
    header = Header("lenet1", Classification(tuple("0123456789")), row.spec, row.preprocessing)
    engine = NetworkEngine(EngineConfig(), row.spec.build(classes=10, channels=1).eval(), header, batch=1)
    assert repr(engine) == "<NetworkEngine: torch, channels_last>"
    assert repr(engine.running()).startswith("<TorchEngine: torch, channels_last, ")


@pytest.mark.parametrize(
    "text", ["", "a", "a\nb", "x" * 5000, "x" * 500 + "\ny", "\n".join(["y" * 90] * 40), "\n" * 99]
)
def test_any_text_is_cut_to_a_screen(text: str) -> None:
    for shown in (
        fit_screen(text),
        repr(Text(text)),
        repr(Table(("column",), tuple((line,) for line in text.split("\n")))),
    ):
        assert fits_a_screen(shown)
    assert str(Text(text)) == text
    assert Text("a <b>")._repr_html_() == "<pre>a &lt;b&gt;</pre>"


def test_star_import_shadows_no_builtin_and_dir_is_the_public_names() -> None:
    assert not set(ca.__all__) & set(dir(builtins))
    assert dir(ca) == sorted([*ca.__all__, "__version__"])


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'list_model' \(did you mean list_models\?\)"):
        _ = ca.list_model
    for name in ("list_networks", "networks"):
        with pytest.raises(AttributeError, match=r"did you mean list_models\?"):
            getattr(ca, name)
