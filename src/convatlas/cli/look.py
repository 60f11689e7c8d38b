"""The commands that explore networks: list, show, cost, compare, draw, timeline, scale."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convatlas.cli import console
from convatlas.cli.options import (
    Channels,
    Classes,
    Figure,
    Json,
    Name,
    Resolution,
    SmallImages,
    number,
    option,
)
from convatlas.errors import InputError
from convatlas.system import quantities

FILTER, SCALING, BUDGET = "Filter", "Scaling", "Budget"


def list_(
    pattern: Annotated[
        str, typer.Argument(metavar="PATTERN", help="A glob pattern of names, for example 'resnet*'.")
    ] = "*",
    family: Annotated[str | None, option("List only this family.", metavar="NAME", panel=FILTER)] = None,
    max_params: Annotated[
        int | None,
        option("Maximum number of parameters, for example 30M.", metavar="COUNT", panel=FILTER, read=quantities.count),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the networks by year, with their exact cost."""
    from convatlas.models.catalog import CATALOG, list_models, stats

    columns = ("name", "year", "resolution", "parameters", "macs", "category")
    rows = []
    for name in list_models(pattern, family=family, max_params=max_params):
        row, counts = CATALOG[name], stats(name)
        category = ", ".join(row.card.categories)
        rows.append((name, row.card.year, row.spec.resolution, counts.parameters, counts.macs, category))
    if as_json:
        console.print_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    console.table(
        ("name", "year", "input px", "parameters", "MACs", "category"),
        [(name, year, px, f"{parameters:,}", f"{macs:,}", text) for name, year, px, parameters, macs, text in rows],
        right=("input px", "parameters", "MACs"),
    )


def show(name: Name, resolution: Resolution = None, channels: Channels = None, classes: Classes = None) -> None:
    """Show a network: its history, its layers and its cost."""
    from convatlas.models.describe import show

    console.console.print(show(name, resolution=resolution, channels=channels, classes=classes))


def cost(
    name: Name,
    resolution: Resolution = None,
    channels: Channels = None,
    classes: Classes = None,
    as_json: Json = False,
) -> None:
    """Print the exact cost of one image: parameters, MACs, activations, receptive field."""
    from convatlas.models.catalog import measure

    measured = measure(name, resolution=resolution, channels=channels, classes=classes)
    if as_json:
        console.print_json({"name": name, **measured.to_plain()})
    else:
        console.console.print(str(measured.table()))


def compare(
    networks: Annotated[list[str], typer.Argument(metavar="NAME...", help="Networks of `convatlas list`.")],
    resolution: Resolution = None,
    as_json: Json = False,
) -> None:
    """Compare networks: history, exact cost, and the cells in which their specs differ."""
    from convatlas.models.describe import compare

    comparison = compare(*networks, resolution=resolution)
    if as_json:
        console.print_json(comparison.to_plain())
        return
    numbers = ("year", "input px", "layers", "parameters", "MACs", "activations", "RF px")
    console.table(
        ("name", *numbers, "reported top-1", "top-5", "category"),
        [
            (
                row.name, row.year, row.resolution, row.depth, f"{row.parameters:,}", f"{row.macs:,}",
                f"{row.activations:,}", f"{row.receptive_field:,}", *map(_percent, (row.top1, row.top5)), row.category,
            )
            for row in comparison.rows
        ],
        right=(*numbers, "reported top-1", "top-5"),
    )  # fmt: skip
    console.console.print()
    for row in comparison.rows:
        console.console.print(f"{row.title}: {row.innovation}")
    if comparison.cells:
        console.console.print()
        cells = [(cell, *("" if v is None else v for v in values)) for cell, values in comparison.cells.items()]
        console.table(("cell", *(row.name for row in comparison.rows)), cells)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:g} %"


def draw(
    name: Name,
    out: Figure = None,
    resolution: Resolution = None,
    channels: Channels = None,
    classes: Classes = None,
    small_images: SmallImages = False,
) -> None:
    """Draw a network: stages as columns of boxes, branches side by side, shortcuts as arcs."""
    from convatlas.draw.diagram import diagram
    from convatlas.models.catalog import build_fresh, variant

    card = variant(name).card
    network = build_fresh(
        name, resolution=resolution, channels=channels, classes=classes, stem="cifar" if small_images else "default",
        device="meta",
    )  # fmt: skip
    path = out or Path(f"{name}.svg")
    diagram(network, title=f"{card.title} ({card.year})", path=path)
    console.console.print(str(path))


def timeline(out: Figure = None) -> None:
    """Draw the history of the networks, by category."""
    from convatlas.draw.timeline import timeline

    path = out or Path("timeline.svg")
    timeline(path=path)
    console.console.print(str(path))


def scale(
    name: Name,
    width: Annotated[
        float, option("Factor on all widths.", metavar="FACTOR", panel=SCALING, read=number)
    ] = 1.0,
    depth: Annotated[
        float, option("Factor on all depths.", metavar="FACTOR", panel=SCALING, read=number)
    ] = 1.0,
    resolution: Resolution = None,
    phi: Annotated[
        float | None,
        option("Coefficient of compound scaling (depth, width and resolution together, as in EfficientNet).",
               metavar="PHI", panel=SCALING, read=number),
    ] = None,
    fast: Annotated[
        float | None,
        option("Factor on the MACs, for fast scaling (mostly in width, as in RegNet's dWr).",
               metavar="FACTOR", panel=SCALING, read=number),
    ] = None,
    macs: Annotated[
        int | None,
        option("Maximum number of MACs for one image, for example 300M.",
               metavar="COUNT", panel=BUDGET, read=quantities.count),
    ] = None,
    params: Annotated[
        int | None,
        option("Maximum number of parameters, for example 5M.", metavar="COUNT", panel=BUDGET, read=quantities.count),
    ] = None,
    rule: Annotated[
        str | None,
        option("Scaling rule with which the budget is met: width (the default), compound or fast.",
               metavar="NAME", panel=BUDGET),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Scale a network by factors, by a scaling rule or to a budget; print its spec and exact cost."""
    from convatlas.core.cost import cost
    from convatlas.models.catalog import build_fresh, variant
    from convatlas.models.scaling import fit_budget, scale_compound, scale_fast

    has_budget = macs is not None or params is not None
    if sum([phi is not None, fast is not None, has_budget]) > 1:
        raise InputError("scale: give only one of --phi, --fast and a budget (--macs, --params)")
    if rule is not None and not has_budget:
        raise InputError("--rule: needs a budget; add --macs or --params")
    row = variant(name)
    classes, channels = row.classes, row.preprocessing.channels
    spec = row.spec.scaled(width=width, depth=depth, resolution=resolution)
    if phi is not None:
        spec = scale_compound(spec, phi)
    elif fast is not None:
        spec = scale_fast(spec, fast)
    elif has_budget:
        spec = fit_budget(
            spec, macs=macs, params=params, rule=rule or "width",  # type: ignore[arg-type]  # fit_budget checks it
            classes=classes, channels=channels,
        )  # fmt: skip
    measured = cost(build_fresh(spec, classes=classes, channels=channels, device="meta"))
    if as_json:
        console.print_json({"spec": spec.to_plain(), "parameters": measured.parameters, "macs": measured.macs})
        return
    console.console.print(repr(spec))
    console.console.print(str(measured.table()))
