"""The learning-rate finder: its curve, its suggestion, and runs that use it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import convatlas as ca
from commands import Command
from convatlas.core.preprocessing import Preprocessing
from convatlas.data.dataset import Images
from convatlas.data.loader import BatchLoader
from convatlas.errors import RunError
from convatlas.models.catalog import CATALOG, build_fresh
from convatlas.tasks.known import Classification
from convatlas.tasks.targets import Targets
from convatlas.train.lr_finder import MAX_LR, MIN_LR, NUM_STEPS, find_lr, suggest_lr
from convatlas.train.recipe import Recipe


@pytest.fixture
def loader() -> BatchLoader:
    """Batches of 200 images with a bright row for each of ten classes."""
    labels = torch.arange(200) % 10
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 100, (200, 1, 32, 32), generator=generator, dtype=torch.uint8)
    pixels[torch.arange(200), 0, 4 + 2 * labels] = 250
    steps = Preprocessing(32, 32, mean=(0.2,), std=(0.3,))
    images = Images(pixels, Targets(label=labels), [""] * 200)
    return BatchLoader(images, steps, Classification(tuple("0123456789")), batch=32, seed=0)


def test_the_suggestion_is_where_the_loss_falls(loader: BatchLoader) -> None:
    torch.manual_seed(0)
    network, recipe = build_fresh("lenet5_modern", classes=10, channels=1), Recipe(batch=32)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    curve = find_lr(network, loader, recipe, seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert MIN_LR == curve.lrs[0] < curve.suggestion < curve.lrs[-1] <= MAX_LR
    assert list(curve.lrs) == sorted(curve.lrs)
    assert len(curve.lrs) == len(curve.losses) <= NUM_STEPS
    assert 1e-4 < curve.suggestion < 1
    assert curve.suggestion < curve.lrs[curve.losses.index(min(curve.losses))]
    assert find_lr(network, loader, recipe, seed=0) == curve
    assert str(curve).startswith(f"learning rate {curve.suggestion:.2g}: ")


@pytest.mark.parametrize(
    "losses", [[1.0 + 0.1 * i for i in range(60)], [2.0] * 60, [1.0, 0.9, 5.0], []],
    ids=["rising", "constant", "short", "none"],
)  # fmt: skip
def test_a_loss_that_never_falls_is_an_error(losses: list[float]) -> None:
    with pytest.raises(RunError, match="lr: the loss does not fall"):
        suggest_lr([10.0 ** (i / 10 - 6) for i in range(len(losses))], losses)


def test_class_weights_and_clipping_are_used(loader: BatchLoader) -> None:
    network = build_fresh(CATALOG["lenet5_modern"].spec, classes=10, channels=1)
    recipe = Recipe(batch=20, lr=0.01)
    plain = find_lr(network, loader, recipe, seed=0)
    weighted = find_lr(network, loader, recipe, seed=0, class_weights=torch.linspace(0.1, 1.9, 10))
    clipped = find_lr(network, loader, dataclasses.replace(recipe, grad_clip=0.01), seed=0)
    assert plain.losses != weighted.losses
    assert plain.losses != clipped.losses


def test_a_run_uses_the_suggestion(idx_folder: Path, tmp_path: Path, convatlas: Command) -> None:
    out = tmp_path / "run"
    arguments = ("fit", idx_folder, "--model", "lenet5_modern", "--lr", "find", "--epochs", "2", "--out")
    outcome = convatlas(*arguments, out)
    assert outcome.code == 0, outcome.err
    assert "learning-rate finder" in outcome.out
    assert (out / "lr_finder.png").stat().st_size > 1000
    lr = ca.resume(out).config.recipe.lr
    assert convatlas(*arguments, tmp_path / "again").code == 0
    assert ca.resume(tmp_path / "again").config.recipe.lr == lr
    outcome = convatlas("fit", idx_folder, "--model", "lenet5_modern", "--lr", "quickly")
    assert outcome.code == 2
    assert "must be a number or find, got quickly" in outcome.err
