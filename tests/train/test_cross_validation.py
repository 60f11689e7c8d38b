"""Cross-validation: every image is evaluated once, by a network that was not trained on it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import convatlas as ca
from commands import Command
from convatlas.data.splits import fold_numbers
from convatlas.errors import DataError, RunError
from convatlas.train.cross_validation import FoldEnd, FoldEvent, FoldStart, cross_validate
from convatlas.train.recipe import Recipe
from convatlas.train.settings import DataOptions, RunOptions
from convatlas.train.state import Epoch
from convatlas.train.step import Step

QUICK = Recipe(epochs=2, batch=16, lr=0.02)


@given(st.integers(0, 1000), st.integers(2, 6), st.integers(2, 4))
def test_folds_are_stratified(seed: int, count: int, classes: int) -> None:
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, classes, 90))
    labels[: classes * count] = torch.arange(classes).repeat(count)
    folds = fold_numbers(labels, None, count, seed=seed, where="x")
    assert torch.equal(folds.unique(), torch.arange(1, count + 1))
    for label in range(classes):
        sizes = torch.bincount(folds[labels == label], minlength=count + 1)[1:]
        assert sizes.max() - sizes.min() <= 1
    assert torch.equal(folds, fold_numbers(labels, None, count, seed=seed, where="x"))


@given(st.integers(0, 1000), st.integers(2, 5))
def test_folds_of_multilabel_images_are_stratified_by_the_rarest_class(seed: int, count: int) -> None:
    labels = (torch.from_numpy(np.random.default_rng(seed).random((80, 4))) < 0.3).float()
    folds = fold_numbers(labels, None, count, seed=seed, where="x")
    assert sorted(folds.unique().tolist()) == list(range(1, count + 1))
    rare = int(labels.sum(0).argmin())
    sizes = torch.bincount(folds[labels[:, rare].bool()], minlength=count + 1)[1:]
    assert sizes.max() - sizes.min() <= 1


def test_groups_stay_together() -> None:
    groups = torch.arange(60) // 3
    labels = groups % 2
    folds = fold_numbers(labels, groups, 4, seed=0, where="x")
    assert all(len(folds[groups == group].unique()) == 1 for group in groups.unique())
    with pytest.raises(DataError, match="too few groups"):
        fold_numbers(labels, labels, 2, seed=0, where="x")
    with pytest.raises(DataError, match="every class needs at least 40 images"):
        fold_numbers(labels, None, 40, seed=0, where="x")


@pytest.fixture
def flat(images: Path) -> Path:
    """The images of the train split, a folder for each class."""
    return images / "train"


def test_every_image_is_evaluated_once_and_not_trained_on(flat: Path, tmp_path: Path) -> None:
    events: list[FoldEvent] = []
    outcome = cross_validate(flat, "lenet5_modern", folds=3, recipe=QUICK, out=tmp_path / "x", on_event=events.append)
    val = [set(run.dataset.val.names) for run in outcome.runs if run.dataset.val]
    assert len(set.union(*val)) == sum(map(len, val)) == 36
    assert all(not set(run.dataset.train.names) & names for run, names in zip(outcome.runs, val, strict=True))
    assert outcome.scores == tuple(run.results["val"].score for run in outcome.runs)
    assert outcome.mean == pytest.approx(float(np.mean(outcome.scores)))
    assert outcome.std == pytest.approx(float(np.std(outcome.scores, ddof=1)))
    rows = list(csv.DictReader((tmp_path / "x" / "folds.csv").open()))
    assert [float(row["accuracy"]) for row in rows] == list(outcome.scores)
    assert [(row["fold"], row["n"]) for row in rows] == [("1", "12"), ("2", "12"), ("3", "12")]
    assert str(outcome).splitlines()[0].split() == ["fold", "images", "accuracy"]
    assert f"mean {outcome.mean:.4f}, standard deviation {outcome.std:.4f}" in str(outcome)
    # the model file records its fold
    split, result, *_ = ca.evaluate(outcome.runs[1].model_file, flat)
    assert (split, result.n, result.score) == ("val", 12, outcome.scores[1])
    # 2 epochs of 24 images in batches of 16
    kinds = [FoldStart, Step, Step, Epoch, Step, Step, Epoch, FoldEnd]
    assert [type(event) for event in events] == 3 * kinds
    ends = [event for event in events if isinstance(event, FoldEnd)]
    assert [(end.number, end.folds) for end in ends] == [(1, 3), (2, 3), (3, 3)]
    assert tuple(end.score for end in ends) == outcome.scores


def test_an_interrupted_cross_validation_is_resumed(flat: Path, tmp_path: Path) -> None:
    whole = cross_validate(flat, "lenet5_modern", folds=3, recipe=QUICK, out=tmp_path / "whole")
    steps = 0

    def stop(event: FoldEvent) -> None:
        nonlocal steps
        steps += isinstance(event, Step)
        if steps == 7:
            raise KeyboardInterrupt

    options: dict[str, Any] = {
        "folds": 3, "recipe": QUICK, "out": tmp_path / "part", "options": RunOptions(checkpoint_steps=1)
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        cross_validate(flat, "lenet5_modern", on_event=stop, **options)
    assert not (tmp_path / "part" / "folds.csv").exists()
    part = cross_validate(flat, "lenet5_modern", **options)
    assert part.scores == whole.scores
    for resumed, uninterrupted in zip(part.runs, whole.runs, strict=True):
        weights, expected = resumed.network.state_dict(), uninterrupted.network.state_dict()
        assert all(torch.equal(weights[name], expected[name]) for name in weights)
    with pytest.raises(RunError, match=r"another cross-validation \(different channels\)"):
        cross_validate(flat, "lenet5_modern", **options, data_options=DataOptions(channels=1))
    with pytest.raises(RunError, match=r"another cross-validation \(different fold\)"):
        cross_validate(flat, "lenet5_modern", **options | {"folds": 2})
    with pytest.raises(RunError, match=r"another cross-validation \(different model and recipe\)"):
        cross_validate(flat, "lenet4", **options | {"recipe": QUICK.replaced({"epochs": 7})})


def test_wrong_folds_are_refused(images: Path, flat: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must not have a val split"):
        cross_validate(images, "lenet5_modern", out=tmp_path / "x")
    for folds in (1, 37):
        with pytest.raises(RunError, match=rf"folds: must be an integer in \[2, 36\] .*, got {folds}"):
            cross_validate(flat, "lenet5_modern", folds=folds, out=tmp_path / "x")
    with pytest.raises(DataError, match="every class needs at least 20 images"):
        cross_validate(flat, "lenet5_modern", folds=20, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_from_the_command_line(flat: Path, tmp_path: Path, convatlas: Command) -> None:
    arguments = ("--model", "lenet5_modern", "--folds", "2", "--epochs", "1", "--out", tmp_path / "x")
    outcome = convatlas("fit", flat, *arguments)
    assert outcome.code == 0, outcome.err
    assert "accuracy over 2 folds: " in outcome.out
    assert "fold 2 of 2" in outcome.out
