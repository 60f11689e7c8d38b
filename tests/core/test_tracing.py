"""torch.fx traces every network, so that feature extractors and other tools of torch work on it."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from convatlas.models.catalog import FAMILIES, build_fresh
from tiny_networks import CLASSIFIERS, build_tiny, outputs, tiny

FIRST = [next(iter(family.variants)) for family in FAMILIES.values() if {*family.variants} <= {*CLASSIFIERS}]


def check_traced(name: str) -> None:
    """Trace a network without weights."""
    network = build_fresh(tiny(name), classes=7, channels=3, device="meta").eval()
    for mode in (True, False):
        traced = torch.fx.symbolic_trace(network.train(mode))
    assert outputs(traced, torch.empty(2, *network.input_shape, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", FIRST)
def test_every_family_is_traced(name: str) -> None:
    check_traced(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name not in FIRST])
def test_the_rest_of_the_catalog_is_traced(name: str) -> None:
    check_traced(name)


@pytest.mark.parametrize("name", ["resnet18", "capsnet", "mobilenet_v2"])
def test_a_traced_network_has_the_same_outputs(name: str) -> None:
    network, x = build_tiny(name)
    expected = outputs(network, x)
    assert torch.equal(outputs(torch.fx.symbolic_trace(network), x), expected)
    nodes = get_graph_node_names(network)[1]
    extractor = create_feature_extractor(network, {nodes[len(nodes) // 2]: "inner", nodes[-1]: "outputs"})
    with torch.no_grad():
        assert torch.equal(extractor(x)["outputs"], expected)


@pytest.mark.parametrize("name", FIRST)
def test_no_images_give_no_outputs(name: str) -> None:
    network, x = build_tiny(name)
    assert outputs(network, x[:0]).shape == (0, 7)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_capsnet_takes_any_number_of_images_after_tracing_an_example() -> None:
    network, x = build_tiny("capsnet")
    traced = torch.jit.trace(network, x, check_trace=False)
    torch.testing.assert_close(outputs(traced, torch.cat([x, x[:1]])), outputs(network, torch.cat([x, x[:1]])))
