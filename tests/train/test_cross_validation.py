"""Cross-validation: every image is measured once, by a network that did not see it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import convatlas as ca
from convatlas.cli.app import app
from convatlas.data.open import find
from convatlas.data.samples import Listing
from convatlas.data.splits import fold_numbers
from convatlas.errors import DataError, RunError
from convatlas.train.cross_validation import cross_validate
from convatlas.train.recipe import Recipe
from convatlas.train.settings import Settings

QUICK = Recipe(epochs=2, batch=16, lr=0.02)


def listing(labels: torch.Tensor, groups: torch.Tensor | None = None) -> Listing:
    return Listing(labels, [""] * len(labels), groups=groups)


@given(st.integers(0, 1000), st.integers(2, 6), st.integers(2, 4))
def test_every_fold_has_its_share_of_every_class(seed: int, count: int, classes: int) -> None:
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, classes, 90))
    labels[: classes * count] = torch.arange(classes).repeat(count)
    folds = fold_numbers(listing(labels), count, seed=seed, where="x")
    assert torch.equal(folds.unique(), torch.arange(1, count + 1))
    for label in range(classes):
        had = torch.bincount(folds[labels == label], minlength=count + 1)[1:]
        assert had.max() - had.min() <= 1
    assert torch.equal(folds, fold_numbers(listing(labels), count, seed=seed, where="x"))


@given(st.integers(0, 1000), st.integers(2, 5))
def test_folds_of_several_classes_share_them_out(seed: int, count: int) -> None:
    labels = (torch.from_numpy(np.random.default_rng(seed).random((80, 4))) < 0.3).float()
    folds = fold_numbers(listing(labels), count, seed=seed, where="x")
    assert sorted(folds.unique().tolist()) == list(range(1, count + 1))
    rare = int(labels.sum(0).argmin())
    had = torch.bincount(folds[labels[:, rare].bool()], minlength=count + 1)[1:]
    assert had.max() - had.min() <= 1


def test_groups_stay_together() -> None:
    groups = torch.arange(60) // 3
    labels = groups % 2
    folds = fold_numbers(listing(labels, groups), 4, seed=0, where="x")
    assert all(len(folds[groups == group].unique()) == 1 for group in groups.unique())
    with pytest.raises(DataError, match="too few groups"):
        fold_numbers(listing(labels, labels), 2, seed=0, where="x")
    with pytest.raises(DataError, match="every class needs at least 40 images"):
        fold_numbers(listing(labels), 40, seed=0, where="x")


@pytest.fixture
def flat(images: Path) -> Path:
    """The images of the training split, a folder for each class."""
    return images / "train"


def test_every_image_is_measured_once_by_a_network_that_did_not_see_it(flat: Path, tmp_path: Path) -> None:
    crossed = cross_validate(flat, "lenet5_modern", folds=3, recipe=QUICK, out=tmp_path / "x")
    seen = [set(run.dataset.val.names) for run in crossed.runs if run.dataset.val]
    assert len(set.union(*seen)) == sum(map(len, seen)) == 36
    assert all(not set(run.dataset.train.names) & set(part) for run, part in zip(crossed.runs, seen, strict=True))
    assert crossed.scores == tuple(run.results["val"].accuracy for run in crossed.runs)
    assert crossed.mean == pytest.approx(float(np.mean(crossed.scores)))
    assert crossed.deviation == pytest.approx(float(np.std(crossed.scores, ddof=1)))
    rows = list(csv.DictReader((tmp_path / "x" / "folds.csv").open()))
    assert [float(row["accuracy"]) for row in rows] == list(crossed.scores)
    # the sealed file knows which images it did not see
    split, result, _ = ca.evaluate(crossed.runs[1].model_file, flat)
    assert (split, result.errors, len(result.labels)) == ("val", crossed.runs[1].results["val"].errors, 12)


def test_a_cross_validation_that_was_stopped_goes_on(flat: Path, tmp_path: Path) -> None:
    whole = cross_validate(flat, "lenet5_modern", folds=3, recipe=QUICK, out=tmp_path / "whole")
    steps = 0

    def stop(event: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 9:
            raise KeyboardInterrupt

    given = {"folds": 3, "recipe": QUICK, "out": tmp_path / "part", "settings": Settings(checkpoint_steps=1)}
    with pytest.raises(KeyboardInterrupt):
        cross_validate(flat, "lenet5_modern", watch=stop, **given)
    assert not (tmp_path / "part" / "folds.csv").exists()
    part = cross_validate(flat, "lenet5_modern", **given)
    assert part.scores == whole.scores
    for one, other in zip(part.runs, whole.runs, strict=True):
        mine, theirs = one.network.state_dict(), other.network.state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    with pytest.raises(RunError, match="another cross-validation"):
        cross_validate(flat, "lenet5_modern", **given | {"folds": 2})
    with pytest.raises(RunError, match=r"another cross-validation \(model, recipe\)"):
        cross_validate(flat, "lenet4", **given | {"recipe": QUICK.replaced({"epochs": 7})})


def test_what_cannot_be_crossed_is_told(images: Path, flat: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has a val split of its own"):
        cross_validate(images, "lenet5_modern", out=tmp_path / "x")
    for folds in (1, 37):
        with pytest.raises(RunError, match="folds: a number from 2"):
            cross_validate(flat, "lenet5_modern", folds=folds, out=tmp_path / "x")
    with pytest.raises(DataError, match="every class needs at least 20 images"):
        cross_validate(flat, "lenet5_modern", folds=20, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_from_the_command_line(flat: Path, tmp_path: Path) -> None:
    given = [
        "fit",
        str(flat),
        "--model",
        "lenet5_modern",
        "--folds",
        "2",
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "x"),
    ]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    assert "accuracy over 2 folds: " in done.output
    assert find(flat).listings.keys() == {"train"}
