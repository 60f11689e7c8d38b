"""Networks without a classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import convatlas as ca
from convatlas.core.cost import cost
from convatlas.core.network import feature_map, taps
from convatlas.engines.folding import fold_norms
from convatlas.errors import InputError, SpecError, WeightsError
from convatlas.models.catalog import build_fresh
from tiny_networks import one_of_each_spec, tiny


@pytest.mark.parametrize("name", one_of_each_spec())
def test_features_of_every_family(name: str) -> None:
    network = build_fresh(tiny(name), classes=0, device="meta").eval()
    counted = cost(network)
    (features,) = counted.output.shape
    assert network(torch.empty(2, *network.input_shape, device="meta")).shape == (2, features)
    assert counted.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert not network.auxiliary


@pytest.mark.parametrize("name", ["googlenet", "capsnet_reduced", "nin_cifar10", "lenet5"])
def test_weights_of_the_network_with_its_classifier(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = tiny(name)
    whole = ca.build(spec, classes=3, channels=3).eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    network = ca.build(spec, classes=0, channels=3, weights=tmp_path / "weights.pth").eval()
    x = torch.randn(2, *network.input_shape)
    state = whole.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())
    with torch.no_grad():
        assert torch.allclose(fold_norms(network)(x), network(x), atol=1e-4)


def test_the_input_of_the_classifier_is_what_it_returns() -> None:
    torch.manual_seed(0)
    whole = ca.build("cifar_resnet20").eval()
    network = ca.build("cifar_resnet20", classes=0).eval()
    network.load_state_dict({key: value for key, value in whole.state_dict().items() if "out" not in key})
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(x), feature_map(taps(whole, ["head.flat"], x)["head.flat"]))


@pytest.mark.parametrize(
    ("keywords", "hint"),
    [
        ({"num_classes": 10}, "the number of outputs is classes"),
        ({"pretrained": True}, 'weights="DEFAULT"'),
        ({"in_chans": 1}, "the number of input channels is channels"),
        ({"num_frames": 8}, "the number of frames is a field of the spec"),
        ({"progress": False}, "shows its progress"),
        ({"clases": 10}, r"did you mean classes\?"),
    ],
)
def test_keywords_of_other_libraries(keywords: dict[str, object], hint: str) -> None:
    with pytest.raises(InputError, match=f"build: {next(iter(keywords))} is not a parameter.*{hint}"):
        ca.build("resnet18", **keywords)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"classes must be an integer in \[0, 2147483647\], got -1"):
        ca.build("resnet18", classes=-1)


def test_enumerations_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision.models")
    monkeypatch.setenv("CONVATLAS_OFFLINE", "1")
    with pytest.raises(WeightsError, match="resnet18-f37072fd"):  # the file that they name
        ca.build("resnet18", weights=models.ResNet18_Weights.DEFAULT)
    with pytest.raises(WeightsError, match="IMAGENET1K_V2: are weights of another network, not of resnet18"):
        ca.build("resnet18", weights=models.ResNet50_Weights.DEFAULT)
    with pytest.raises(WeightsError, match="must be a name or a file, got True"):
        ca.build("resnet18", weights=True)  # type: ignore[arg-type]
