"""The command `recipes`: how networks are trained."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from convatlas.cli import console
from convatlas.cli.options import Json


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show all fields of this recipe, or of a .yaml file.")
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """List the recipes: what they are for, and the fields in which they differ from the default recipe."""
    from convatlas.train.recipe import PURPOSES, RECIPES, get_recipe, recipe_changes

    if name is not None:
        plain = get_recipe(name).to_plain()
        if as_json:
            console.print_json(plain)
        else:
            console.table(("field", "value"), [(field, _text(value)) for field, value in plain.items()])
        return
    changes = {name: recipe_changes(recipe) for name, recipe in RECIPES.items()}
    if as_json:
        console.print_json([
            {"name": name, "purpose": PURPOSES[name], "changes": fields} for name, fields in changes.items()
        ])  # fmt: skip
        return
    for name, fields in changes.items():
        text = " ".join(f"{field}={_text(value)}" for field, value in fields.items())
        console.console.print(name, style="bold")
        console.console.print(f"  {PURPOSES[name]}")
        console.console.print(f"  {text or 'all fields: convatlas recipes default'}")


def _text(value: Any) -> str:
    """Return a value as `--set` takes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
