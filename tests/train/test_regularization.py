"""Dropout and stochastic depth in networks of any family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import convatlas as ca
from convatlas.errors import SpecError
from convatlas.layers.channels import DropPath
from convatlas.models.catalog import build_fresh
from convatlas.train.recipe import Recipe
from convatlas.train.regularization import regularize
from convatlas.train.run import Event
from convatlas.train.settings import DataOptions, RunOptions
from convatlas.train.step import Step


def test_dropout_is_set_or_inserted_before_the_classifier() -> None:
    with_dropout = build_fresh("mobilenet_v2", classes=3)
    regularize(with_dropout, dropout=0.7, drop_path=None)
    assert [layer.p for layer in with_dropout.modules() if isinstance(layer, nn.Dropout)] == [0.7]
    without = build_fresh("resnet18", classes=3)
    names, outputs = list(without.state_dict()), without.eval()(torch.ones(1, 3, 64, 64))
    regularize(without, dropout=0.5, drop_path=None)
    assert list(without.state_dict()) == names
    assert list(without.head._modules)[-2:] == ["drop", "out"]
    assert torch.equal(without(torch.ones(1, 3, 64, 64)), outputs)
    without.train()
    assert not torch.equal(without(torch.ones(2, 3, 64, 64))[0], without(torch.ones(2, 3, 64, 64))[0])


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "mobilenet_v2", "efficientnet_b0", "regnet_y_400mf",
                                  "preact_resnet18", "inception_resnet_v2", "convnext_tiny"])  # fmt: skip
def test_stochastic_depth_rises_linearly_in_any_residual_network(name: str) -> None:
    network = build_fresh(name, classes=3, device="meta")
    names = list(network.state_dict())
    regularize(network, dropout=None, drop_path=0.2)
    rates = [layer.rate for layer in network.modules() if isinstance(layer, DropPath)]
    assert len(rates) >= 8
    assert rates == pytest.approx([0.2 * (i + 1) / len(rates) for i in range(len(rates))])
    assert list(network.state_dict()) == names


def test_a_network_without_a_place_for_the_layer_is_refused() -> None:
    with pytest.raises(SpecError, match=r"recipe: drop_path must be null .*, got 0.1; it has no residual branches"):
        regularize(build_fresh("vgg11", device="meta"), dropout=None, drop_path=0.1)
    with pytest.raises(SpecError, match=r"recipe: dropout must be null .*, got 0.5; it has no dropout layer"):
        regularize(build_fresh("capsnet", device="meta"), dropout=0.5, drop_path=None)


def test_a_regularized_run_is_resumed_bit_for_bit(images: Path, tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, batch=16, lr=0.01, dropout=0.4, drop_path=0.3)
    options = {"data_options": DataOptions(resolution=32), "options": RunOptions(checkpoint_steps=1)}
    whole = ca.fit(images, "cifar_resnet20", recipe=recipe, out=tmp_path / "whole", **options)  # type: ignore[arg-type]

    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ca.fit(images, "cifar_resnet20", recipe=recipe, out=tmp_path / "part", on_event=stop, **options)  # type: ignore[arg-type]
    part = ca.resume(tmp_path / "part")
    weights = ca.load(part.model_file).network.state_dict()
    assert all(torch.equal(tensor, whole.network.state_dict()[name]) for name, tensor in weights.items())
