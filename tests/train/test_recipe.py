"""Recipes: fields, YAML files, and errors in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from convatlas.errors import SpecError
from convatlas.train.recipe import RECIPES, Recipe, get_recipe


def test_a_recipe_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "recipe: finetune\nepochs: 3\nlr: 0.02  # lower\nmixup: 0.4\npolicy: trivial\ngrad_clip: 1e0\ndropout: null\n"
    )
    assert get_recipe(str(file)) == RECIPES["finetune"].replaced(
        {"epochs": 3, "lr": 0.02, "mixup": 0.4, "policy": "trivial", "grad_clip": 1.0}
    )
    file.write_text("batch: 7\n")
    assert get_recipe(str(file)) == Recipe(batch=7, augment=RECIPES["default"].augment)
    file.write_text(json.dumps(RECIPES["imagenet"].to_plain()))  # a recipe as written to run.json
    assert get_recipe(str(file)) == RECIPES["imagenet"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: many", "epochs must be an integer >= 1, got 'many'"), ("epoks: 3", "epoks is not a field of Recipe"),
        ("[1, 2]", "must be fields of a recipe"), ("a: [", "not a YAML file"),
        ("recipe: mine", "recipe must be one of .*, got 'mine'"), ("recipe: [1]", "recipe must be one of"),
        ("1: 2", "must be fields of a recipe"), ("!!python/object/apply:os.system ['true']", "not a YAML file"),
        ("", "must be fields of a recipe"), ("lr: -1", r"lr must be a number >= 0, got -1"),
    ],
)  # fmt: skip
def test_an_error_in_a_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yml").write_text(text)
    with pytest.raises(SpecError, match=message) as error:
        get_recipe(str(tmp_path / "mine.yml"))
    assert "mine.yml" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(SpecError, match=r"no\.yaml: unreadable: "):
        get_recipe(str(tmp_path / "no.yaml"))


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"unknown recipe 'finetun' \(did you mean finetune\?\)"):
        get_recipe("finetun")


@pytest.mark.parametrize(
    ("field", "value"), [("dropout", 1.0), ("dropout", "half"), ("drop_path", 1.0), ("drop_path", "half")]
)
def test_rates_are_below_one(field: str, value: Any) -> None:
    with pytest.raises(SpecError, match=rf"{field} must be a number in \[0, 1\) or null, got"):
        Recipe().replaced({field: value})
