"""Recipes from files, dropout and stochastic depth of any family, and where else the numbers of a run go."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import convatlas as ca
from convatlas.errors import RunError, SpecError
from convatlas.layers.channels import DropPath
from convatlas.models.catalog import build_fresh
from convatlas.train.recipe import RECIPES, Recipe, recipe
from convatlas.train.regularization import regularize
from convatlas.train.settings import Settings

# --- recipes from files


def test_a_recipe_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "recipe: finetune\nepochs: 3\nlr: 0.02  # lower\nmixup: 0.4\npolicy: trivial\nclip: 1e0\ndropout: null\n"
    )
    read = recipe(str(file))
    assert read == RECIPES["finetune"].replaced(
        {"epochs": 3, "lr": 0.02, "mixup": 0.4, "policy": "trivial", "grad_clip": 1.0}
    )
    file.write_text("batch: 7\n")
    assert recipe(str(file)) == Recipe(batch=7, augment=RECIPES["default"].augment)
    file.write_text(json.dumps(RECIPES["imagenet"].to_plain()))  # what a run wrote down is a recipe, too
    assert recipe(str(file)) == RECIPES["imagenet"]


@pytest.mark.parametrize(
    ("text", "told"),
    [("epochs: many", "epochs: expected int"), ("epoks: 3", "epoks: no such field"), ("[1, 2]", "expected fields"),
     ("a: [", "is no YAML"), ("recipe: mine", "'mine' is not one of"), ("recipe: [1]", "is not one of"),
     ("1: 2", "expected fields"),
     ("!!python/object/apply:os.system ['true']", "is no YAML"), ("", "expected fields"), ("lr: -1", "recipe.lr")],
)  # fmt: skip
def test_a_file_that_is_no_recipe_is_told_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "mine.yml").write_text(text)
    with pytest.raises(SpecError, match=told) as error:
        recipe(str(tmp_path / "mine.yml"))
    assert "mine.yml" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(SpecError, match=r"no\.yaml: cannot be read"):
        recipe(str(tmp_path / "no.yaml"))


# --- dropout and stochastic depth


def test_dropout_is_set_or_put_before_the_classifier() -> None:
    own = build_fresh("mobilenet_v2", classes=3)
    regularize(own, dropout=0.7, drop_path=None)
    assert [layer.p for layer in own.modules() if isinstance(layer, nn.Dropout)] == [0.7]
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
def test_stochastic_depth_grows_with_depth_in_any_residual_network(name: str) -> None:
    network = build_fresh(name, classes=3, device="meta")
    names = list(network.state_dict())
    regularize(network, dropout=None, drop_path=0.2)
    rates = [layer.rate for layer in network.modules() if isinstance(layer, DropPath)]
    assert len(rates) >= 8
    assert rates == pytest.approx([0.2 * (i + 1) / len(rates) for i in range(len(rates))])
    assert list(network.state_dict()) == names


def test_what_a_network_does_not_have_is_told() -> None:
    with pytest.raises(SpecError, match="no residual branches"):
        regularize(build_fresh("vgg11"), dropout=None, drop_path=0.1)
    with pytest.raises(SpecError, match="no dropout"):
        regularize(build_fresh("capsnet"), dropout=0.5, drop_path=None)
    for field in ("dropout", "drop_path"):
        with pytest.raises(SpecError, match=field):
            Recipe().replaced({field: 1.0})
        with pytest.raises(SpecError, match=field):
            Recipe().replaced({field: "half"})


def test_a_run_with_dropout_and_stochastic_depth_is_sealed_resumed_and_the_same(images: Path, tmp_path: Path) -> None:
    plan = Recipe(epochs=2, batch=16, lr=0.01, dropout=0.4, drop_path=0.3)
    settings = Settings(size=32, checkpoint_steps=1)
    whole = ca.fit(images, "cifar_resnet20", recipe=plan, out=tmp_path / "whole", settings=settings)

    def stop(event: Any) -> None:
        if not isinstance(event, dict) and event.number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ca.fit(images, "cifar_resnet20", recipe=plan, out=tmp_path / "part", settings=settings, watch=stop)
    part = ca.resume(tmp_path / "part")
    sealed = ca.load(part.model_file).network.state_dict()
    assert all(torch.equal(tensor, whole.network.state_dict()[name]) for name, tensor in sealed.items())


# --- where else numbers go


def test_tensorboard_has_the_numbers_of_steps_and_epochs(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = Settings(log=("tensorboard",), checkpoint_steps=1)
    recipe = Recipe(epochs=3, batch=16, lr=0.01)

    def stop(event: Any) -> None:
        if not isinstance(event, dict) and event.number == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ca.fit(images, "lenet5_modern", recipe=recipe, out=tmp_path / "run", settings=settings, watch=stop)
    run = ca.resume(tmp_path / "run")
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    told = [(event.step, event.value) for event in found.Scalars("epoch/val_accuracy")]
    assert told == [(3 * row["epoch"] - 1, pytest.approx(row["val_accuracy"])) for row in run.state.history]
    assert [event.step for event in found.Scalars("step/loss")] == [0]
    assert found.Scalars("val/accuracy")[0].value == pytest.approx(run.results["val"].accuracy)


class Recorder:
    """Stands for the library of a service that is not here."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*values: Any, **named: Any) -> Recorder:
            self.calls.append((name, named or values))
            if name in ("log", "log_metrics"):
                self.calls.append(("step", named["step"]))
            return self

        return call


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_services_get_the_same_numbers(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, name, recorder)  # type: ignore[arg-type]
    run = ca.fit(
        images, "lenet5_modern", recipe=Recipe(epochs=2, batch=16, lr=0.01), out=tmp_path / "run",
        settings=Settings(log=(name,)),
    )  # fmt: skip
    names = [call for call, _ in recorder.calls]
    assert names[-1] in ("finish", "end_run")
    assert {step for call, step in recorder.calls if call == "step"} == {0, 2, 5, 6}
    assert len(run.state.history) == 2


def test_a_logger_that_is_unknown_or_not_installed_is_told(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match="log: 'comet' is not one of"):
        Settings(log=("comet",))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RunError, match="log: wandb is not installed"):
        ca.fit(images, "lenet5_modern", out=tmp_path / "run", settings=Settings(log=("wandb",)))
