"""The commands that explore networks: list, show, cost, compare, draw, timeline, scale."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convatlas.cli import console
from convatlas.cli.options import (
    Channels,
    Classes,
    Figure,
    Json,
    NetworkOrModel,
    Resolution,
    SmallImages,
    complete_network,
    number,
    option,
    stem_for,
)
from convatlas.errors import InputError, nearest, printable
from convatlas.system import quantities

if TYPE_CHECKING:
    from convatlas.core.spec import Spec
    from convatlas.core.table import Table

FILTER, SCALING, BUDGET, RUNS = "Filter", "Scaling", "Budget", "Runs and model files"


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
    from convatlas.models.describe import list_networks

    rows = list_networks(pattern, family=family, max_params=max_params)
    if not rows:
        raise InputError(_nothing_matches(pattern, family, max_params))
    if as_json:
        console.print_json([row.to_plain() for row in rows])
        return
    console.table(
        ("name", "year", "input px", "parameters", "MACs", "category"),
        [(row.name, row.year, row.input_px, f"{row.parameters:,}", f"{row.macs:,}", row.category) for row in rows],
        right=("input px", "parameters", "MACs"),
    )


def _nothing_matches(pattern: str, family: str | None, max_params: int | None) -> str:
    """Return why a list is empty, and what would match."""
    from convatlas.models.describe import list_networks

    if matching := list_networks(pattern, family=family):
        smallest = min(matching, key=lambda row: row.parameters)
        return (
            f"list: no network has at most {max_params:,} parameters; the smallest one that matches, {smallest.name}, "
            f"has {smallest.parameters:,}"
        )
    message = f"list: nothing matches {pattern!r}" + (f" in family {family}" if family else "")
    for wider in (f"{pattern}*", f"*{pattern}*"):
        if number := len(list_networks(wider, family=family)):
            return f"{message}; {wider!r} matches {number}"
    names = [row.name for row in list_networks(family=family)]
    return f"{message}{nearest(pattern.lower(), names)}; `convatlas list` shows all"


def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE|RUN", autocompletion=complete_network,
            help="A network of `convatlas list`, a model file, an exported file, weights by name, or a run directory.",
        ),
    ],
    resolution: Resolution = None,
    channels: Channels = None,
    classes: Classes = None,
    small_images: SmallImages = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Show a network (history, layers, cost), a model (classes, metrics, training, license), or the state of a run."""
    from convatlas.models.describe import network_facts
    from convatlas.overview.look import show

    stem = stem_for(small_images)
    shown = show(name, resolution=resolution, channels=channels, classes=classes, stem=stem)
    if not as_json:
        console.console.print(str(shown))
    elif isinstance(shown, str):
        facts = network_facts(name, resolution=resolution, channels=channels, classes=classes, stem=stem)
        console.print_json(facts.to_plain())
    else:
        console.print_json(shown.to_plain())


def cost(
    name: NetworkOrModel,
    resolution: Resolution = None,
    channels: Channels = None,
    classes: Classes = None,
    as_json: Json = False,
) -> None:
    """Print the exact cost of one image or clip: parameters, MACs, activations, receptive field."""
    from convatlas.models.catalog import measure, resolve
    from convatlas.models.describe import totals

    network, classes, channels = network_of(name, classes, channels)
    measured = measure(network, resolution=resolution, channels=channels, classes=classes)
    known, row = resolve(network)
    if as_json:
        console.print_json({"name": known, **measured.to_plain()})
    else:
        console.console.print(str(totals(row.card, measured)))


def network_of(name: str, classes: int | None, channels: int | None) -> tuple[str | Spec, int | None, int | None]:
    """Return a network by name, or the spec of a model file or run, with its classes and channels unless given."""
    from convatlas.overview.look import is_model

    if not is_model(name):
        return name, classes, channels
    from convatlas.overview.describe import describe

    header = describe(name).header
    return header.spec, classes or header.task.outputs, channels or header.preprocessing.channels


def compare(
    networks: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...|RUN...", autocompletion=complete_network,
            help="Networks of `convatlas list`; or run directories and model files; of both, the networks.",
        ),
    ],
    resolution: Resolution = None,
    bench: Annotated[
        bool, option("Measure the latency of each run or model file: one image, engine torch.", panel=RUNS)
    ] = False,
    csv: Annotated[
        Path | None,
        option("Write the table of runs to this CSV file.", "--csv", "--out", "-o", metavar="FILE", panel=RUNS),
    ] = None,
    plot: Annotated[
        Path | None,
        option("Plot the accuracy of runs against latency (with --bench) or parameters into this file (.png, .svg, "
               ".pdf).", metavar="FILE", panel=RUNS),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Compare networks (history, cost, specs), or runs and model files (accuracy, cost, latency, training)."""
    from convatlas.models.describe import compare
    from convatlas.overview.look import is_model, network_of

    if all(map(is_model, networks)):
        _compare_runs(networks, resolution=resolution, bench=bench, csv=csv, plot=plot, as_json=as_json)
        return
    if bench or csv or plot:
        raise InputError("compare: --bench, --csv and --plot are for runs and model files, not for networks by name")
    comparison = compare(*map(network_of, networks), resolution=resolution)
    if as_json:
        console.print_json(comparison.to_plain())
        return
    _print_table(comparison.facts_table())
    console.console.print()
    for line in comparison.innovations():
        console.console.print(line)
    if comparison.cells:
        console.console.print()
        _print_table(comparison.cells_table())


def _compare_runs(
    sources: list[str], *, resolution: int | None, bench: bool, csv: Path | None, plot: Path | None, as_json: bool
) -> None:  # fmt: skip
    """Compare runs and model files; damaged ones are reported, and the exit code is then 2."""
    from convatlas.draw.style import check_figure_path
    from convatlas.overview.compare import compare_runs
    from convatlas.overview.look import check_resolution

    check_resolution(resolution)
    if plot is not None:  # before the measurement
        check_figure_path(plot)
    with console.progress_bar() as progress:
        comparison = compare_runs(*sources, bench=bench, progress=progress)
    if csv is not None:
        comparison.write_csv(csv)
    if plot is not None:
        comparison.plot(plot)
    if as_json:
        console.print_json(comparison.to_plain())
    else:
        _print_table(comparison.table())
        for note in comparison.notes:
            console.console.print(note)
    for reason in comparison.skipped.values():
        console.errors.print(printable(f"skipped: {reason}"))
    for error in comparison.failed.values():
        console.print_error(error)
    if comparison.failed:
        raise typer.Exit(2)


def _print_table(table: Table) -> None:
    console.table(table.columns, table.rows, right=[table.columns[i] for i in table.right])


def draw(
    name: NetworkOrModel,
    out: Figure = None,
    resolution: Resolution = None,
    channels: Channels = None,
    classes: Classes = None,
    small_images: SmallImages = False,
) -> None:
    """Draw a network: stages as columns of boxes, branches side by side, shortcuts as arcs."""
    from convatlas.core.cost import cost
    from convatlas.draw.diagram import diagram
    from convatlas.models.catalog import build_fresh, resolve

    table, classes, channels = network_of(name, classes, channels)
    known, row = resolve(table)
    network = build_fresh(
        table, resolution=resolution, channels=channels, classes=classes, stem=stem_for(small_images), device="meta",
    )  # fmt: skip
    path = out or Path(f"{known}.svg")
    diagram(network, title=f"{row.card.title} ({row.card.year})", path=path)
    console.console.print(str(path))
    if remark := cost(network).remark:
        console.errors.print(remark)


def timeline(out: Figure = None) -> None:
    """Draw the history of the networks, by category."""
    from convatlas.draw.timeline import timeline

    path = out or Path("timeline.svg")
    timeline(path=path)
    console.console.print(str(path))


def scale(
    name: NetworkOrModel,
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
    from convatlas.models.catalog import build_fresh, resolve
    from convatlas.models.scaling import fit_budget, scale_compound, scale_fast

    has_budget = macs is not None or params is not None
    if sum([phi is not None, fast is not None, has_budget]) > 1:
        raise InputError("scale: give only one of --phi, --fast and a budget (--macs, --params)")
    if rule is not None and not has_budget:
        raise InputError("--rule: needs a budget; add --macs or --params")
    network, classes, channels = network_of(name, None, None)
    _, row = resolve(network)
    classes, channels = classes or row.classes, channels or row.preprocessing.channels
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
        counts = {"input_px": spec.resolution, "parameters": measured.parameters, "macs": measured.macs}
        console.print_json({"spec": spec.to_plain(), **counts})
        return
    console.console.print(repr(spec))
    console.console.print(str(measured.table()))
