"""Relatives: networks of timm with the tensors of ours, whose weights bring padding and norm settings of their own."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from convatlas.inference.load import load
from convatlas.layers.channels import SamePad
from convatlas.models.catalog import CATALOG, spec
from convatlas.weights import pretrained
from convatlas.weights.build import build
from convatlas.weights.modelfile import write_model_file
from convatlas.weights.open import WEIGHTS_CELLS
from convatlas.weights.pretrained import Weights, find_weights, list_weights
from tiny_networks import outputs
from upstream import RELATIVES, scramble, timms

NAME, RELATIVE = "mobilenet_v3_small", "tf_mobilenetv3_small_100"
TAG = f"timm:{RELATIVE}.in1k"


@pytest.mark.parametrize(("name", "relative"), RELATIVES)
def test_cells_belong_to_weights_and_change_the_spec(name: str, relative: str) -> None:
    row = CATALOG[name]
    assert row.relatives[relative].keys() <= WEIGHTS_CELLS
    assert row.spec.replaced(row.relatives[relative]) != row.spec


def test_tag_names_the_relative_and_the_default_is_that_of_the_network() -> None:
    names = [weights.name for weights in list_weights("efficientnet_b0")]
    assert "efficientnet_b0@timm:tf_efficientnet_b0.ns_jft_in1k" in names
    assert find_weights("efficientnet_b0@timm:DEFAULT").upstream == "efficientnet_b0"
    record = find_weights("efficientnet_b7@timm:tf_efficientnet_b7.ap_in1k")
    assert (record.upstream, record.preprocessing.mean, record.spec.resolution) == (
        "tf_efficientnet_b7", (0.5,) * 3, 600,
    )  # fmt: skip
    assert record.spec == spec("efficientnet_b7").replaced({"padding": "same", "eps": 1e-3, "momentum": 0.1})
    assert record.to_plain()["cells"] == {"padding": "same", "eps": 1e-3, "momentum": 0.1}


@pytest.fixture(scope="module")
def peer() -> nn.Module:
    network = timms(RELATIVE)
    scramble(network)
    return network.eval()


@pytest.fixture
def record(peer: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """The record of published weights, with those of `peer` in the cache."""
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "cache"))
    record = find_weights(f"{NAME}@{TAG}")
    record.cache_path.parent.mkdir(parents=True)
    torch.save(peer.state_dict(), record.cache_path)
    digest = hashlib.sha256(record.cache_path.read_bytes()).hexdigest()
    record = replace(record, sha256_prefix=digest)
    monkeypatch.setitem(pretrained._RECORDS, "timm", lambda *_: [record])
    return record


def test_published_weights_bring_their_cells(record: Weights, peer: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 64, 50)
    expected = outputs(peer, x)

    def check(network: nn.Module) -> None:
        assert any(isinstance(layer, SamePad) for layer in network.modules())
        got: Tensor = outputs(network.eval(), x)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))

    check(build(NAME, weights=TAG))
    loaded = load(record.name)
    check(loaded.module)
    assert loaded.header.spec == record.spec

    # a model file of them starts another network by its name
    path = tmp_path / "model.safetensors"
    write_model_file(path, loaded.module, loaded.header)
    check(build(NAME, weights=path))


def test_row_without_the_cells_has_other_outputs(record: Weights, peer: nn.Module) -> None:
    """The tensors alone do not tell."""
    x = torch.randn(2, 3, 64, 64)
    plain = build(NAME)
    plain.load_state_dict(build(NAME, weights=TAG).state_dict())
    assert float((outputs(plain.eval(), x) - outputs(peer, x)).abs().max()) > 1e-3
