"""Which network and which learning rate: counted, measured, raced, searched."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import convatlas as ca
from convatlas.cli.app import app
from convatlas.core.cost import cost
from convatlas.core.preprocessing import Preprocessing
from convatlas.data.dataset import Images
from convatlas.data.loader import BatchLoader
from convatlas.errors import ConvatlasError, DataError, RunError, SpecError
from convatlas.models.catalog import CATALOG, adapted, build_fresh
from convatlas.train import select_model as selection
from convatlas.train.lr_finder import HIGHEST, LOWEST, STEPS, _steepest, find_lr
from convatlas.train.recipe import Recipe
from convatlas.train.select_model import Budget, select_model
from convatlas.train.settings import Settings

TINY = ("lenet5_modern", "cifar_resnet20", "cifar_resnet32", "mobilenet_v2", "resnet18")
QUICK = Recipe(batch=16, lr=0.02)


@pytest.fixture(autouse=True)
def _a_few_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep of every family what is small: measuring all takes half a minute."""
    families = {
        name: dataclasses.replace(family, variants=rows)
        for name, family in selection.FAMILIES.items()
        if (rows := {name: row for name, row in family.variants.items() if name in TINY})
    }
    monkeypatch.setattr(selection, "FAMILIES", families)


def test_networks_that_keep_the_budget_are_counted_for_the_data(idx_folder: Path) -> None:
    made = select_model(idx_folder, Budget(params=3e5), recipe=QUICK, seconds=0.5)
    assert {entry.name for entry in made.entries} == {"lenet5_modern", "cifar_resnet20"}
    for entry in made.entries:
        own = cost(build_fresh(adapted(CATALOG[entry.name].spec, resolution=32), classes=10, channels=1, device="meta"))
        assert (entry.parameters, entry.macs) == (own.parameters, own.macs)
        assert (entry.stem, entry.size) == ("own", 32)
        assert 0 < entry.latency < 1


def test_small_images_get_small_stems_and_large_ones_the_networks_own(idx_folder: Path, images: Path) -> None:
    small = select_model(idx_folder, Budget(macs=1e8), recipe=QUICK, seconds=0.1)
    by_name = {entry.name: entry for entry in small.entries}
    assert set(by_name) == {"lenet5_modern", "cifar_resnet20", "cifar_resnet32", "mobilenet_v2"}
    assert (by_name["mobilenet_v2"].stem, by_name["mobilenet_v2"].size) == ("small", 32)
    settings = Settings(size=96)
    (large,) = select_model(images, Budget(macs=1e8), recipe=QUICK, seconds=0.1, settings=settings).entries
    assert (large.name, large.stem, large.size) == ("mobilenet_v2", "own", 96)


def test_one_of_each_family_races_and_the_better_half_goes_on(idx_folder: Path) -> None:
    made = select_model(idx_folder, Budget(macs=1e8), recipe=QUICK, seconds=3)
    raced = [entry for entry in made.entries if entry.scores]
    assert {entry.name for entry in raced} == {"lenet5_modern", "cifar_resnet32", "mobilenet_v2"}
    assert sorted(len(entry.scores) for entry in raced) == [1, 2, 2]
    assert made.best.scores[-1] == max(entry.scores[-1] for entry in raced if len(entry.scores) == 2)
    assert made.seconds == pytest.approx((0.5, 0.5 + 0.75))
    assert made.entries[-1].name == "cifar_resnet20"


def test_a_race_that_tells_nothing_is_told(idx_folder: Path, tmp_path: Path) -> None:
    assert selection.guessed(torch.tensor([0, 0, 0, 1])) == pytest.approx(0.75 + 2 * math.sqrt(0.75 * 0.25 / 4))
    assert selection.guessed(torch.eye(4)) == pytest.approx(0.25 + 2 * math.sqrt(0.25 * 0.75 / 4))
    made = select_model(idx_folder, Budget(macs=1e8), recipe=dataclasses.replace(QUICK, lr=0.0), seconds=0.1)
    assert not made.tells
    given = ["fit", str(idx_folder), "--model", "auto", "--max-macs", "100M", "--race", "0.1", "--lr", "0"]
    done = CliRunner().invoke(app, [*given, "--epochs", "1", "--out", str(tmp_path / "run")])
    assert "no better than guessing" in done.output


def test_a_network_that_breaks_down_leaves_the_race(idx_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(runner: selection._Runner, seconds: float) -> None:
        if runner.entry.name == "mobilenet_v2":
            raise RunError("the loss is not finite")

    monkeypatch.setattr(selection._Runner, "run", run)
    made = select_model(idx_folder, Budget(macs=1e8), recipe=QUICK, seconds=1)
    told = {entry.name: entry.told for entry in made.entries}
    assert told["mobilenet_v2"] == "the loss is not finite"
    assert made.best.name != "mobilenet_v2"


def test_the_race_leaves_no_network_untrained(idx_folder: Path) -> None:
    with pytest.raises(RunError, match="no network could be trained"):
        select_model(idx_folder, Budget(macs=1e8), recipe=Recipe(batch=16, lr=1e30), seconds=30)


def test_a_budget_is_a_limit_above_zero() -> None:
    for budget in ({}, {"latency": 0.0}, {"params": -1.0}, {"macs": math.nan}):
        with pytest.raises(SpecError, match="budget"):
            Budget(**budget)


def test_what_cannot_be_chosen_is_told(idx_folder: Path, images: Path) -> None:
    for budget in (Budget(params=10), Budget(latency=1e-7)):
        with pytest.raises(RunError, match="no network of the catalog keeps it"):
            select_model(idx_folder, budget)
    with pytest.raises(DataError, match="val share"):
        select_model(idx_folder, Budget(macs=1e8), settings=Settings(val_share=0), seconds=0.1)
    # no published weights are at hand here
    with pytest.raises(RunError, match=r"with weights of torchvision at hand keeps it.*weights pull"):
        select_model(images, Budget(macs=1e10), weights="torchvision")
    with pytest.raises(RunError, match="the name of a library, torchvision or timm, not torchvison"):
        select_model(images, Budget(macs=1e10), weights="torchvison")


def test_a_network_that_the_recipe_is_not_for_is_left_out(idx_folder: Path) -> None:
    recipe = dataclasses.replace(QUICK, drop_path=0.1, class_weight_power=1.0)
    made = select_model(idx_folder, Budget(macs=1e8), recipe=recipe, seconds=0.5)
    told = {entry.name: entry.told for entry in made.entries}
    assert told["lenet5_modern"] == "recipe.drop_path: the network has no residual branches"
    assert made.best.name in ("cifar_resnet32", "mobilenet_v2")


def test_from_the_command_line(idx_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = ["fit", str(idx_folder), "--model", "auto", "--max-macs", "100M", "--max-latency", "2s", "--race", "1"]
    done = CliRunner().invoke(app, [*given, "--epochs", "1", "--batch", "16", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "ms / image" in done.output
    best = next(line for line in done.output.splitlines() if line.startswith("the best: ")).split()[-1]
    rows = list(csv.DictReader((out / "choice.csv").open()))
    assert rows[0]["name"] == best
    assert ca.load(out / "model.safetensors").header.name == best
    assert ca.resume(out).state.finished


def test_the_best_is_cross_validated(idx_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    given = ["fit", str(idx_folder), "--model", "auto", "--max-params", "100k", "--race", "1", "--folds", "2"]
    done = CliRunner().invoke(app, [*given, "--epochs", "1", "--batch", "16", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert {path.name for path in out.iterdir()} == {"fold-1", "fold-2", "folds.csv", "choice.csv"}


def test_limits_are_for_auto(idx_folder: Path) -> None:
    done = CliRunner().invoke(app, ["fit", str(idx_folder), "--model", "lenet5_modern", "--max-params", "5M"])
    assert isinstance(done.exception, ConvatlasError)
    assert "--model auto" in str(done.exception)


@pytest.mark.parametrize(
    ("text", "value"), [("10ms", 0.01), ("5M", 5e6), ("300k", 3e5), ("1e-3", 1e-3), ("2.5 G", 2.5e9), ("7", 7.0)]
)
def test_numbers_may_carry_a_unit(text: str, value: float) -> None:
    assert _number("--x", text) == pytest.approx(value)
    for wrong in ("fast", "10 miles", "", "M", "1.2.3"):
        with pytest.raises(ConvatlasError, match="--x"):
            _number("--x", wrong)


# --- the learning rate


def feed_of(labels: torch.Tensor) -> BatchLoader:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 100, (len(labels), 1, 32, 32), generator=generator, dtype=torch.uint8)
    pixels[torch.arange(len(labels)), 0, 4 + 2 * labels] = 250
    steps = Preprocessing(32, 32, mean=(0.2,), std=(0.3,))
    return BatchLoader(Images(pixels, labels, [""] * len(labels)), steps, batch=32, seed=0, classes=10)


def test_a_rate_is_found_where_the_loss_falls(idx_folder: Path) -> None:
    torch.manual_seed(0)
    network, recipe = build_fresh("lenet5_modern", classes=10, channels=1), Recipe(batch=32)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    rates = find_lr(network, feed_of(torch.arange(200) % 10), recipe, seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert LOWEST == rates.rates[0] < rates.chosen < rates.rates[-1] <= HIGHEST
    assert list(rates.rates) == sorted(rates.rates)
    assert len(rates.rates) <= STEPS
    assert 1e-4 < rates.chosen < 1
    assert rates.chosen < rates.rates[rates.losses.index(min(rates.losses))]
    assert find_lr(network, feed_of(torch.arange(200) % 10), recipe, seed=0) == rates


def test_a_loss_that_never_falls_is_told() -> None:
    for losses in ([1.0 + 0.1 * i for i in range(60)], [2.0] * 60, [1.0, 0.9, 5.0], []):
        with pytest.raises(RunError, match="lr: the loss does not fall"):
            _steepest([10.0 ** (i / 10 - 6) for i in range(len(losses))], losses)


def test_the_search_knows_balance_and_clipping() -> None:
    network = build_fresh(CATALOG["lenet5_modern"].spec, classes=10)
    loader, recipe = feed_of(torch.arange(200) % 10), Recipe(batch=20, lr=0.01)
    plain = find_lr(network, loader, recipe, seed=0)
    for other in (
        find_lr(network, loader, recipe, seed=0, class_weights=torch.linspace(0.1, 1.9, 10)),
        find_lr(network, loader, dataclasses.replace(recipe, grad_clip=0.01), seed=0),
    ):
        assert other.losses != plain.losses


def test_a_run_begins_with_the_rate_that_was_found(idx_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = ["fit", str(idx_folder), "--model", "lenet5_modern", "--lr", "find", "--epochs", "2", "--out", str(out)]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    assert "found by a search" in done.output
    assert (out / "rates.png").stat().st_size > 1000
    rate = ca.resume(out).config.recipe.lr
    again = CliRunner().invoke(app, [*given[:-1], str(tmp_path / "again")])
    assert again.exit_code == 0
    assert ca.resume(tmp_path / "again").config.recipe.lr == rate
    wrong = CliRunner().invoke(app, [*given[:5], "quickly"])
    assert isinstance(wrong.exception, ConvatlasError)
