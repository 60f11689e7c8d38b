"""Model selection: networks of the catalog within limits, their latency, and their comparison on the data."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import convatlas as ca
from commands import Command, Outcome
from convatlas.core.cost import cost
from convatlas.data.open import open_data
from convatlas.errors import ConvatlasError, RunError, SearchError
from convatlas.models.catalog import CATALOG, adapted, build_fresh
from convatlas.search import catalog_networks
from convatlas.search.catalog_networks import CatalogNetwork, find_networks, largest_of_families
from convatlas.search.evaluation import Evaluator
from convatlas.search.limits import Limits
from convatlas.search.select_model import ModelSelection, Selected, select_model
from convatlas.train.recipe import Recipe
from convatlas.train.run import Run
from convatlas.train.settings import DataOptions

TINY = ("lenet5_modern", "cifar_resnet20", "cifar_resnet32", "mobilenet_v2", "resnet18")
QUICK = Recipe(batch=16, lr=0.02)


@pytest.fixture(autouse=True)
def _few_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce every family to its small networks: counting all of them takes seconds."""
    families = {
        name: dataclasses.replace(family, variants=rows)
        for name, family in catalog_networks.FAMILIES.items()
        if (rows := {name: row for name, row in family.variants.items() if name in TINY})
    }
    monkeypatch.setattr(catalog_networks, "FAMILIES", families)


@pytest.fixture(scope="module")
def selection(idx_folder: Path) -> ModelSelection:
    with pytest.MonkeyPatch.context() as patch:
        _few_networks.__wrapped__(patch)  # type: ignore[attr-defined]
        return select_model(idx_folder, Limits(macs=1e8), recipe=QUICK, search_time=3)


def fit_auto(convatlas: Command, data: Path, out: Path, *limits: str) -> Outcome:
    outcome = convatlas("fit", data, "--model", "auto", *limits, "--epochs", "1", "--batch", "16", "--out", out)
    assert outcome.code == 0, outcome.err
    return outcome


def test_networks_are_counted_for_the_data(selection: ModelSelection) -> None:
    """One network of each family: its largest one within the limits."""
    assert {each.name for each in selection.candidates} == {"lenet5_modern", "cifar_resnet32", "mobilenet_v2"}
    for each in selection.candidates:
        spec = adapted(CATALOG[each.name].spec, stem=each.stem, resolution=32)
        counted = cost(build_fresh(spec, classes=10, channels=1, device="meta"))
        assert (each.parameters, each.macs) == (counted.parameters, counted.macs)
        assert (each.stem, each.resolution) == ("cifar" if each.name == "mobilenet_v2" else "default", 32)
        assert each.latency_s > 0


def test_large_images_get_other_stems(images: Path) -> None:
    options = DataOptions(resolution=96)
    large = select_model(images, Limits(macs=1e8), recipe=QUICK, search_time=0.1, data_options=options)
    assert [(each.name, each.stem, each.resolution) for each in large.candidates] == [("mobilenet_v2", "default", 96)]
    assert large.conclusive
    assert large.best.scores == ()


def test_networks_start_from_weights_at_hand(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def at_hand(_: object, *, network: str, stem: str, library: str | None) -> str:
        return f"{network}@mine" if (network, stem, library) == ("mobilenet_v2", "default", None) else ""

    monkeypatch.setattr(catalog_networks, "cached_weights", at_hand)
    source, options = open_data(images), DataOptions(resolution=96)
    for weights, expected in (("auto", ["", "mobilenet_v2@mine"]), ("none", ["", ""]), ("torchvision", [])):
        found = find_networks(source, 3, options, weights)
        assert sorted(each.weights for each in found if each.name in ("mobilenet_v2", "resnet18")) == expected


def test_the_largest_of_each_family_within_the_limits_competes() -> None:
    networks = [
        CatalogNetwork(name, "resnet" if "resnet" in name else name, "default", 32, 1, macs)
        for name, macs in (("cifar_resnet20", 2), ("cifar_resnet32", 3), ("mobilenet_v2", 1), ("resnet18", 4))
    ]
    asked: list[str] = []

    def latency_of(network: CatalogNetwork) -> float | None:
        asked.append(network.name)
        return None if network.macs > 3 else 0.001 * network.macs

    found = largest_of_families(networks, latency_of)
    assert {(each.name, each.latency_s) for each in found} == {("cifar_resnet32", 0.003), ("mobilenet_v2", 0.001)}
    assert asked == ["resnet18", "cifar_resnet32", "mobilenet_v2"]  # the other one need not be measured


def test_the_best_are_trained_longer(selection: ModelSelection) -> None:
    assert sorted(len(each.scores) for each in selection.candidates) == [1, 2, 2]
    assert len(selection.best.scores) == 2
    assert min(each.scores[0] for each in selection.candidates) == min(
        each.scores[0] for each in selection.candidates if len(each.scores) == 1
    )
    first, last = selection.seconds
    assert last == pytest.approx(4 * first)
    assert 3 * first + 2 * (last - first) == pytest.approx(3)
    assert selection.metric == "accuracy"
    assert f"best of 3 networks: {selection.best.name}" in str(selection)
    options = selection.data_options(DataOptions(val_share=0.3))
    assert options == DataOptions(stem=selection.best.stem, resolution=selection.best.resolution, val_share=0.3)


def test_data_in_memory_is_compared_too_and_the_process_stays_as_it_was() -> None:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (120, 32, 32), dtype=np.uint8), np.arange(120) % 3
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    selection = select_model((images, labels), Limits(params=3e5), recipe=QUICK, search_time=0.3)
    assert {each.name for each in selection.candidates} == {"lenet5_modern", "cifar_resnet20"}
    assert selection.best.scores
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_an_inconclusive_search_is_reported(idx_folder: Path, tmp_path: Path, convatlas: Command) -> None:
    limits = ("--max-params", "300k", "--search-time", "100ms", "--lr", "0")
    outcome = fit_auto(convatlas, idx_folder, tmp_path / "run", *limits)
    assert "no candidate is clearly better than always predicting" in outcome.err
    assert "increase --search-time" in outcome.err


def test_a_network_whose_training_fails_is_eliminated(idx_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = Evaluator.train

    def failing(evaluator: Evaluator, run: Run, is_enough: object) -> None:
        if run.config.model == "lenet5_modern":
            raise RunError("the loss is not finite")
        train(evaluator, run, is_enough)  # type: ignore[arg-type]

    monkeypatch.setattr(Evaluator, "train", failing)
    selection = select_model(idx_folder, Limits(params=3e5), recipe=QUICK, search_time=0.3)
    assert [(each.name, each.error) for each in selection.candidates] == [
        ("cifar_resnet20", ""), ("lenet5_modern", "the loss is not finite")
    ]  # fmt: skip
    monkeypatch.undo()


def test_if_no_network_can_be_trained_it_is_an_error(idx_folder: Path) -> None:
    with pytest.raises(RunError, match="no candidate could be trained; "):
        select_model(idx_folder, Limits(params=3e5), recipe=Recipe(batch=16, lr=1e30), search_time=30)


def test_impossible_selections_are_refused(idx_folder: Path, images: Path) -> None:
    with pytest.raises(SearchError, match="limits: one of latency_s, params, macs, file_bytes, memory_bytes must be"):
        select_model(idx_folder, Limits())
    for limits in (Limits(params=10), Limits(latency_s=1e-7)):
        with pytest.raises(SearchError, match="limits: too low for every network of the catalog on this machine"):
            select_model(idx_folder, limits)
    with pytest.raises(ConvatlasError, match="val share"):
        select_model(idx_folder, Limits(params=3e5), data_options=DataOptions(val_share=0), search_time=0.1)
    # the cache of the tests has no weights
    with pytest.raises(SearchError, match=r"with cached torchvision weights on this machine.*weights pull"):
        select_model(images, Limits(macs=1e10), weights="torchvision")
    with pytest.raises(
        RunError, match="weights: must be auto, none, torchvision, timm for a model selection, got torchvison"
    ):
        select_model(images, Limits(macs=1e10), weights="torchvison")


def test_a_network_that_does_not_fit_the_recipe_is_not_trained(idx_folder: Path) -> None:
    recipe = dataclasses.replace(QUICK, drop_path=0.1, class_weight_power=1.0)
    selection = select_model(idx_folder, Limits(params=3e5), recipe=recipe, search_time=0.3)
    errors = {candidate.name: candidate.error for candidate in selection.candidates}
    assert errors["lenet5_modern"].startswith("recipe: drop_path must be null for this network, got 0.1")
    assert selection.best.name == "cifar_resnet20"


def test_a_selection_is_written_as_csv_and_page(tmp_path: Path) -> None:
    networks = (
        Selected("lenet5", "default", 32, 10, 20, 0.001, scores=(0.5, 0.75)),
        Selected("mobilenet_v2", "cifar", 32, 11, 21, 0.002, error="failed"),
    )
    ModelSelection(networks, "accuracy", (1.0, 2.0), page="<html>").write(tmp_path)
    rows = list(csv.DictReader((tmp_path / "candidates.csv").open()))
    assert [(row["name"], row["scores"], row["error"]) for row in rows] == [
        ("lenet5", "0.5 0.75", ""),
        ("mobilenet_v2", "", "failed"),
    ]
    assert [(row["input_px"], row["parameters"], row["latency_ms"]) for row in rows] == [
        ("32", "10", "1.0"),
        ("32", "11", "2.0"),
    ]
    assert (tmp_path / "selection.html").read_text() == "<html>"


def test_from_the_command_line(idx_folder: Path, tmp_path: Path, convatlas: Command) -> None:
    out = tmp_path / "run"
    limits = ("--max-macs", "100M", "--max-latency", "1h", "--search-time", "1s")
    outcome = fit_auto(convatlas, idx_folder, out, *limits)
    assert "ms / image" in outcome.out
    best = next(line for line in outcome.out.splitlines() if line.startswith("selected: ")).split()[-1]
    rows = list(csv.DictReader((out / "candidates.csv").open()))
    assert rows[0]["name"] == best
    assert best in (out / "selection.html").read_text()
    assert ca.load(out / "model.safetensors").header.name == best
    assert ca.resume(out).state.finished


def test_the_best_network_is_cross_validated(idx_folder: Path, tmp_path: Path, convatlas: Command) -> None:
    out = tmp_path / "runs"
    limits = ("--max-params", "100k", "--search-time", "1s", "--folds", "2")
    fit_auto(convatlas, idx_folder, out, *limits)
    assert {path.name for path in out.iterdir()} == {"fold-1", "fold-2", "folds.csv", "candidates.csv"}
