"""Model selection: candidates within a budget, their latency, and their comparison on the data."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path

import pytest
import torch

import convatlas as ca
from commands import Command
from convatlas.core.cost import cost
from convatlas.data.open import open_data
from convatlas.errors import DataError, RunError, SpecError
from convatlas.models.catalog import CATALOG, adapted, build_fresh
from convatlas.train import select_model as selecting
from convatlas.train.candidates import Budget, Candidate, ModelSelection
from convatlas.train.recipe import Recipe
from convatlas.train.select_model import select_model
from convatlas.train.settings import DataOptions
from convatlas.train.trial import NetworkTrial

TINY = ("lenet5_modern", "cifar_resnet20", "cifar_resnet32", "mobilenet_v2", "resnet18")
QUICK = Recipe(batch=16, lr=0.02)


@pytest.fixture(autouse=True)
def _few_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce every family to its small networks: timing all of them takes half a minute."""
    families = {
        name: dataclasses.replace(family, variants=rows)
        for name, family in selecting.FAMILIES.items()
        if (rows := {name: row for name, row in family.variants.items() if name in TINY})
    }
    monkeypatch.setattr(selecting, "FAMILIES", families)


def test_candidates_are_counted_for_the_data(idx_folder: Path) -> None:
    selection = select_model(idx_folder, Budget(params=3e5), recipe=QUICK, search_time=0.5)
    assert {candidate.name for candidate in selection.candidates} == {"lenet5_modern", "cifar_resnet20"}
    for candidate in selection.candidates:
        spec = adapted(CATALOG[candidate.name].spec, resolution=32)
        counted = cost(build_fresh(spec, classes=10, channels=1, device="meta"))
        assert (candidate.params, candidate.macs) == (counted.parameters, counted.macs)
        assert (candidate.stem, candidate.resolution) == ("default", 32)
        assert candidate.latency_s > 0


def test_stem_and_resolution_fit_the_images(idx_folder: Path, images: Path) -> None:
    small = select_model(idx_folder, Budget(macs=1e8), recipe=QUICK, search_time=0.1)
    by_name = {candidate.name: candidate for candidate in small.candidates}
    assert set(by_name) == {"lenet5_modern", "cifar_resnet20", "cifar_resnet32", "mobilenet_v2"}
    assert (by_name["mobilenet_v2"].stem, by_name["mobilenet_v2"].resolution) == ("cifar", 32)
    options = DataOptions(resolution=96)
    large = select_model(images, Budget(macs=1e8), recipe=QUICK, search_time=0.1, data_options=options)
    assert [(each.name, each.stem, each.resolution) for each in large.candidates] == [("mobilenet_v2", "default", 96)]
    assert large.conclusive
    assert large.best.scores == ()


def test_candidates_start_from_weights_at_hand(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def at_hand(_: object, *, network: str, stem: str, library: str | None) -> str:
        return f"{network}@mine" if (network, stem, library) == ("mobilenet_v2", "default", None) else ""

    monkeypatch.setattr(selecting, "cached_weights", at_hand)
    source, options = open_data(images), DataOptions(resolution=96)
    for weights, expected in (("auto", ["mobilenet_v2@mine"]), ("none", [""]), ("torchvision", [])):
        candidates = selecting.find_candidates(source, 3, Budget(macs=1e8), options, weights)
        assert [candidate.weights for candidate in candidates] == expected


def test_one_network_of_each_family_is_trained(idx_folder: Path) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    selection = select_model(idx_folder, Budget(macs=1e8), recipe=QUICK, search_time=3)
    trained = [candidate for candidate in selection.candidates if candidate.scores]
    assert {candidate.name for candidate in trained} == {"lenet5_modern", "cifar_resnet32", "mobilenet_v2"}
    assert sorted(len(candidate.scores) for candidate in trained) == [1, 2, 2]
    assert selection.best.scores[-1] == max(each.scores[-1] for each in trained if len(each.scores) == 2)
    assert selection.rung_seconds == pytest.approx((0.5, 0.5 + 0.75))
    assert selection.candidates[-1].name == "cifar_resnet20"
    assert selection.metric == "accuracy"
    assert f"best of 4 networks: {selection.best.name}" in str(selection)
    options = selection.data_options(DataOptions(val_share=0.3))
    assert options == DataOptions(stem=selection.best.stem, resolution=selection.best.resolution, val_share=0.3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_an_inconclusive_search_is_reported(idx_folder: Path, tmp_path: Path, convatlas: Command) -> None:
    selection = select_model(idx_folder, Budget(params=3e5), recipe=QUICK, lr=0.0, search_time=0.1)
    assert not selection.conclusive
    assert "no candidate is clearly better than always predicting" in str(selection)
    assert "increase --search-time" in selection.warning
    limits = ("--max-params", "300k", "--search-time", "100ms", "--lr", "0")
    outcome = convatlas(
        "fit", idx_folder, "--model", "auto", *limits, "--epochs", "1", "--out", tmp_path / "run"
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "no candidate is clearly better than always predicting" in outcome.err


def test_a_candidate_whose_training_fails_is_eliminated(idx_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = NetworkTrial.train

    def failing(trial: NetworkTrial, seconds: float) -> None:
        if trial.preprocessing.mean == CATALOG["mobilenet_v2"].preprocessing.for_channels(1).mean:
            raise RunError("the loss is not finite")
        train(trial, seconds)

    monkeypatch.setattr(NetworkTrial, "train", failing)
    selection = select_model(idx_folder, Budget(macs=1e8), recipe=QUICK, search_time=1)
    errors = {candidate.name: candidate.error for candidate in selection.candidates}
    assert errors["mobilenet_v2"] == "the loss is not finite"
    assert selection.best.name != "mobilenet_v2"
    assert not selection.best.error


def test_if_no_candidate_can_be_trained_it_is_an_error(idx_folder: Path) -> None:
    with pytest.raises(RunError, match="no candidate could be trained; "):
        select_model(idx_folder, Budget(macs=1e8), recipe=Recipe(batch=16, lr=1e30), search_time=30)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "Budget: one of latency_s, params, macs must be given"),
        ({"latency_s": 0.0}, "Budget: latency_s must be a number > 0, got 0.0"),
        ({"params": -1.0}, "Budget: params must be a number > 0, got -1.0"),
        ({"macs": math.nan}, "Budget: macs must be a number > 0, got nan"),
    ],
)
def test_a_budget_is_positive(limits: dict[str, float], message: str) -> None:
    with pytest.raises(SpecError) as error:
        Budget(**limits)
    assert str(error.value) == message


def test_impossible_selections_are_refused(idx_folder: Path, images: Path) -> None:
    for budget in (Budget(params=10), Budget(latency_s=1e-7)):
        with pytest.raises(RunError, match="budget: too low for every network of the catalog on this machine"):
            select_model(idx_folder, budget)
    with pytest.raises(DataError, match="val share"):
        select_model(idx_folder, Budget(macs=1e8), data_options=DataOptions(val_share=0), search_time=0.1)
    # the cache of the tests has no weights
    with pytest.raises(RunError, match=r"with cached torchvision weights on this machine.*weights pull"):
        select_model(images, Budget(macs=1e10), weights="torchvision")
    with pytest.raises(
        RunError, match="weights: must be auto, none, torchvision, timm for a model selection, got torchvison"
    ):
        select_model(images, Budget(macs=1e10), weights="torchvison")


def test_a_network_that_does_not_fit_the_recipe_is_not_trained(idx_folder: Path) -> None:
    recipe = dataclasses.replace(QUICK, drop_path=0.1, class_weight_power=1.0)
    selection = select_model(idx_folder, Budget(macs=1e8), recipe=recipe, search_time=0.5)
    errors = {candidate.name: candidate.error for candidate in selection.candidates}
    assert errors["lenet5_modern"].startswith("recipe: drop_path must be null for this network, got 0.1")
    assert selection.best.name in ("cifar_resnet32", "mobilenet_v2")


def test_a_selection_is_written_as_csv(tmp_path: Path) -> None:
    candidates = (
        Candidate("a", "f", "default", 32, 10, 20, 0.001, scores=(0.5, 0.75)),
        Candidate("b", "g", "cifar", 32, 11, 21, 0.002, error="failed"),
    )
    ModelSelection(candidates, "accuracy", (1.0, 2.0), 0.1).write(tmp_path / "candidates.csv")
    rows = list(csv.DictReader((tmp_path / "candidates.csv").open()))
    assert [(row["name"], row["scores"], row["error"]) for row in rows] == [("a", "0.5 0.75", ""), ("b", "", "failed")]
    assert [(row["input_px"], row["parameters"], row["latency_ms"]) for row in rows] == [
        ("32", "10", "1.0"),
        ("32", "11", "2.0"),
    ]


def test_from_the_command_line(idx_folder: Path, tmp_path: Path, convatlas: Command) -> None:
    out = tmp_path / "run"
    limits = ("--max-macs", "100M", "--max-latency", "1h", "--search-time", "1s")
    outcome = convatlas(
        "fit", idx_folder, "--model", "auto", *limits, "--epochs", "1", "--batch", "16", "--out", out
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "ms / image" in outcome.out
    best = next(line for line in outcome.out.splitlines() if line.startswith("selected: ")).split()[-1]
    rows = list(csv.DictReader((out / "candidates.csv").open()))
    assert rows[0]["name"] == best
    assert ca.load(out / "model.safetensors").header.name == best
    assert ca.resume(out).state.finished


def test_the_best_candidate_is_cross_validated(idx_folder: Path, tmp_path: Path, convatlas: Command) -> None:
    out = tmp_path / "runs"
    limits = ("--max-params", "100k", "--search-time", "1s", "--folds", "2")
    outcome = convatlas(
        "fit", idx_folder, "--model", "auto", *limits, "--epochs", "1", "--batch", "16", "--out", out
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert {path.name for path in out.iterdir()} == {"fold-1", "fold-2", "folds.csv", "candidates.csv"}


def test_limits_need_model_auto(idx_folder: Path, convatlas: Command) -> None:
    outcome = convatlas("fit", idx_folder, "--model", "lenet5_modern", "--max-params", "5M")
    assert outcome.code == 2
    assert "--model auto" in outcome.err
