"""Networks that are registered for a session."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import convatlas as ca
from convatlas.core.network import Network
from convatlas.core.spec import Resolution, Spec, Width
from convatlas.errors import ConvatlasError, ModelFileError, RunError, SpecError
from convatlas.layers.conv import ConvNorm
from convatlas.layers.heads import pooled
from convatlas.models.catalog import CATALOG, SPEC_TYPES
from convatlas.train.fit import prepare_run
from convatlas.weights.modelfile import Header, read_model_file, write_model_file


@dataclass(frozen=True)
class OneStage(Spec):
    width: Width = 8
    resolution: Resolution = 32

    def build(self, *, classes: int, channels: int) -> Network:
        stem, stages = ConvNorm(channels, self.width), ca.Chain(ConvNorm(self.width, self.width, stride=2))
        shape = self.input_shape(channels)
        return Network(stem=stem, stages=stages, head=pooled(self.width, classes), input_shape=shape)


@pytest.fixture
def registered() -> Iterator[str]:
    ca.register("one_stage", OneStage())
    yield "one_stage"
    ca.unregister("one_stage")
    assert "one_stage" not in CATALOG
    assert "OneStage" not in SPEC_TYPES


def test_it_is_in_the_catalog(registered: str) -> None:
    assert registered in ca.list_models()
    assert ca.build(registered, classes=3)(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert ca.cost(ca.build(registered, classes=0)).output.shape == (8,)
    assert "one_stage" in str(ca.show(registered))
    assert "one_stage" in str(ca.compare(registered, "lenet5"))
    assert ca.build(OneStage(width=16), classes=2).spec == OneStage(width=16)


def test_a_spec_of_a_family_has_its_history() -> None:
    wide = ca.spec("cifar_resnet20").scaled(width=2)
    ca.register("wide20", wide, classes=5)
    try:
        row = ca.variant("wide20")
        assert (row.card.paper, row.classes) == (ca.variant("cifar_resnet20").card.paper, 5)
        assert row.preprocessing == ca.variant("cifar_resnet20").preprocessing
    finally:
        ca.unregister("wide20")


def test_files_can_be_read_while_it_is_registered(tmp_path: Path) -> None:
    x, y = np.zeros((8, 32, 32, 3), np.uint8), np.arange(8) % 2
    ca.register("one_stage", OneStage())
    try:
        run = prepare_run((x, y), "one_stage", out=tmp_path / "run", epochs=1, batch=4)
        header = Header("one_stage", run.config.task, run.config.spec, run.config.preprocessing)
        write_model_file(tmp_path / "model.safetensors", run.network, header)
        read_model_file(tmp_path / "model.safetensors")
    finally:
        ca.unregister("one_stage")
    hint = r"a spec class of one's own is known after ca\.register\(name, OneStage\(\.\.\.\)\)"
    with pytest.raises(ModelFileError, match=hint):
        ca.load(tmp_path / "model.safetensors")
    with pytest.raises(RunError, match=hint):
        ca.resume(tmp_path / "run", data=(x, y), progress=False)


@dataclass(frozen=True)
class NoNetwork(OneStage):
    def build(self, *, classes: int, channels: int) -> Any:
        return torch.nn.Linear(channels, classes)


def same_name() -> Spec:
    @dataclass(frozen=True)
    class ResNet(OneStage):
        pass

    return ResNet()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("resnet18", OneStage()), "there is a network resnet18 already; choose another name"),
        (("one_stage", OneStage(width=9)), r"one_stage already; ca\.unregister\(\"one_stage\"\) removes it"),
        (("One Stage", OneStage()), "lower-case letters"),
        (("a" * 65, OneStage()), "at most 64 lower-case letters"),
        (("other", OneStage(), "a card"), "card must be a Card, got str"),
        (("other", "resnet18"), "spec must be a Spec, got str"),
        (("other", NoNetwork()), "must return a Network, got Linear"),
        (("other", same_name()), "another spec class is called ResNet; rename it"),
    ],
)
def test_what_is_refused(registered: str, arguments: tuple[Any, ...], problem: str) -> None:
    with pytest.raises(ConvatlasError, match=problem):
        ca.register(*arguments)
    assert "other" not in CATALOG
    assert "NoNetwork" not in SPEC_TYPES


def test_only_registered_networks_can_be_removed() -> None:
    for name in ("resnet18", ["resnet18"]):
        with pytest.raises(SpecError, match="was not registered in this session"):
            ca.unregister(name)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"got OneStage; ca\.register\(name, spec\) adds"):
        ca.build(OneStage())
