"""Recipes: fields, YAML files, and errors in one line."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

import convatlas as ca
from commands import Command
from convatlas.errors import InputError, SpecError
from convatlas.search.select_model import select_model
from convatlas.train.cross_validation import cross_validate
from convatlas.train.fit import fit, prepare_run
from convatlas.train.recipe import PURPOSES, RECIPES, Recipe, get_recipe
from convatlas.train.recipe_fields import RecipeFields


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


def test_the_keywords_of_a_training_are_the_fields_of_a_recipe() -> None:
    assert list(RecipeFields.__annotations__) == list(Recipe().to_plain())
    for function in (fit, prepare_run, cross_validate, select_model):
        assert not RecipeFields.__annotations__.keys() & inspect.signature(function).parameters.keys()


@pytest.mark.parametrize(
    ("keyword", "hint"),
    [
        ("epoch", "did you mean epochs?"), ("num_classes", "the classes are those of the data"),
        ("pretrained", 'weights="none" from random ones'), ("batch_size", "is batch"), ("learning_rate", "is lr"),
        ("threads", "ca.ExecutionOptions(threads=...)"), ("val_share", "ca.DataOptions(val_share=...)"),
        ("overrides", "such as epochs=3"), ("verbose", "progress=False"), ("wieghts", "did you mean weights?"),
    ],
)  # fmt: skip
def test_another_keyword_is_refused_with_a_hint(keyword: str, hint: str) -> None:
    with pytest.raises(InputError) as error:
        ca.fit("digits", "lenet5", **{keyword: 1})
    assert str(error.value).startswith(f"fit: {keyword} is not a parameter")
    assert hint in str(error.value)


@pytest.mark.parametrize("keyword", ["out", "options", "license", "checkpoint_steps"])
def test_the_selection_of_a_model_has_no_options_of_a_run(keyword: str) -> None:
    with pytest.raises(InputError, match=f"select_model: {keyword} is not a parameter; .* trains nothing that is kept"):
        ca.select_model("digits", ca.Limits(params=1e5), **{keyword: 1})


def test_few_images_are_trained_for_a_minimum_number_of_steps() -> None:
    recipe = Recipe(epochs=5, min_steps=40, head_epochs=1, warmup=1.0)
    longer = recipe.lengthened(2)
    assert (longer.epochs, longer.head_epochs, longer.warmup) == (20, 16, 4.0)
    assert longer.lengthened(2) == longer
    assert recipe.lengthened(8) == recipe.lengthened(100) == recipe
    assert Recipe(epochs=5, min_steps=40).lengthened(3) == Recipe(epochs=14, min_steps=40)
    # given epochs are exact
    assert recipe.replaced({"epochs": 3}) == Recipe(epochs=3, head_epochs=1, warmup=1.0)
    assert recipe.replaced({"epochs": 3, "min_steps": 9}).lengthened(1).epochs == 9


def test_the_command_lists_the_recipes(convatlas: Command) -> None:
    out = convatlas("recipes").out
    for name in RECIPES:
        assert f"{name}\n  {PURPOSES[name]}\n" in out
    assert "label_smoothing=0.1 head_epochs=1 layer_decay=0.8" in out
    plain = json.loads(convatlas("recipes", "--json").out)
    for row in plain:
        assert RECIPES["default"].replaced(row["changes"]) == RECIPES[row["name"]].replaced(
            {"min_steps": row["changes"].get("min_steps", 0)}
        )
    assert json.loads(convatlas("recipes", "finetune", "--json").out) == RECIPES["finetune"].to_plain()
    assert convatlas("recipes", "finetun").code == 2
    help_page = " ".join(convatlas("fit", "--help").out.split())
    assert all(name in help_page for name in RECIPES)
