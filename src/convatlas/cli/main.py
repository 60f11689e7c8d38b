"""The `convatlas` command: every subcommand is a thin layer over the function of the same name."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from convatlas.cli import console, use
from convatlas.cli.use import Data, Json
from convatlas.errors import ConvatlasError, brief

app = typer.Typer(
    name="convatlas",
    help="Convolutional networks from 1989 on: choose, understand, train and use them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: convatlas list, convatlas draw resnet50, convatlas fit digits --model lenet5_modern",
    pretty_exceptions_enable=False,
)

LOOK, TRAIN, USE = "Look at networks", "Train", "Use a model file"

Name = Annotated[str, typer.Argument(metavar="NAME", help="A network of `convatlas list`.")]
Size = Annotated[int | None, typer.Option(metavar="PX", help="Input size in pixels instead of the network's own.")]
Channels = Annotated[int | None, typer.Option(metavar="N", help="Channels of the input: 1 is gray, 3 is RGB.")]
Classes = Annotated[int | None, typer.Option(metavar="N", help="Number of classes instead of the paper's.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="The image: .svg, .png or .pdf.")]
Small = Annotated[bool, typer.Option("--small", help="With the stem for images of up to 64 pixels.")]
Download = Annotated[bool, typer.Option("--download", help="Allow to fetch a data set given by name.")]


@app.callback()
def options(
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
) -> None:
    if offline:
        os.environ["CONVATLAS_OFFLINE"] = "1"


@app.command("list", rich_help_panel=LOOK)
def list_(
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="Only names like this, such as 'resnet*'.")] = "*",
    family: Annotated[str | None, typer.Option(help="Only networks of this family.")] = None,
    max_params: Annotated[float | None, typer.Option(metavar="N", help="Only up to this many parameters.")] = None,
    as_json: Json = False,
) -> None:
    """List the networks, by year, with their exact cost."""
    from convatlas.models.catalog import CATALOG, facts, list_models

    rows = []
    for name in list_models(pattern, family=family, max_params=max_params):
        row, numbers = CATALOG[name], facts(name)
        taxonomy = ", ".join(row.card.taxonomy)
        rows.append((name, row.card.year, row.spec.resolution, numbers.parameters, numbers.macs, taxonomy))
    columns = ("name", "year", "input px", "parameters", "MACs", "taxonomy")
    if as_json:
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=2))
    else:
        shown = [(n, y, size, f"{p:,}", f"{m:,}", t) for n, y, size, p, m, t in rows]
        console.table(columns, shown, right=("input px", "parameters", "MACs"))


@app.command("show", rich_help_panel=LOOK)
def show_(
    name: Name,
    size: Size = None,
    channels: Channels = None,
    classes: Classes = None,
) -> None:
    """Show a network: its card, its layers, its cost."""
    from convatlas.models.describe import show as describe

    console.console.print(describe(name, size=size, channels=channels, classes=classes))


@app.command("cost", rich_help_panel=LOOK)
def cost_(
    name: Name,
    size: Size = None,
    channels: Channels = None,
    classes: Classes = None,
    as_json: Json = False,
) -> None:
    """Print the exact cost of one image through a network."""
    from convatlas.core.summary import fields
    from convatlas.core.summary import totals as sums
    from convatlas.models.catalog import measure

    measured = measure(name, size=size, channels=channels, classes=classes)
    if as_json:
        totals = {
            "parameters": measured.parameters,
            "macs": measured.macs,
            "activations": measured.activations,
            "connections": measured.connections,
            "receptive_field": list(measured.receptive_field),
        }
        layers = [
            {
                "path": layer.path, "kind": layer.kind, "output": list(layer.output.shape),
                "parameters": layer.parameters, "macs": layer.macs, "activations": layer.activations,
                "connections": layer.connections,
            }
            for layer in measured.layers
        ]  # fmt: skip
        print(json.dumps({"name": name, **totals, "layers": layers}, indent=2))
    else:
        console.console.print(fields(sums(measured)))


@app.command("compare", rich_help_panel=LOOK)
def compare_(
    networks: Annotated[list[str], typer.Argument(metavar="NAME...", help="Networks of `convatlas list`.")],
    size: Size = None,
    as_json: Json = False,
) -> None:
    """Put networks side by side: history, exact cost, and where their tables differ."""
    from convatlas.models.describe import compare

    compared = compare(*networks, size=size)
    if as_json:
        rows = [dataclasses.asdict(row) for row in compared.rows]
        print(json.dumps({"networks": rows, "cells": compared.cells}, indent=2, ensure_ascii=False))
        return
    numbers = ("year", "input px", "layers", "parameters", "MACs", "activations", "sees px")
    console.table(
        ("name", *numbers, "known for", "reported, top-1 / top-5"),
        [
            (
                row.name, row.year, row.resolution, row.depth, f"{row.parameters:,}", f"{row.macs:,}",
                f"{row.activations:,}", f"{row.receptive_field:,}", row.taxonomy, row.reported,
            )
            for row in compared.rows
        ],
        right=numbers,
    )  # fmt: skip
    console.console.print()
    for row in compared.rows:
        console.console.print(f"{row.title}: {row.innovation}")
    if compared.cells:
        console.console.print()
        cells = [(cell, *("" if v is None else v for v in values)) for cell, values in compared.cells.items()]
        console.table(("cell", *(row.name for row in compared.rows)), cells)


@app.command("draw", rich_help_panel=LOOK)
def draw_(
    name: Name,
    out: Out = None,
    size: Size = None,
    channels: Channels = None,
    classes: Classes = None,
    small: Small = False,
) -> None:
    """Draw a network: its stages as columns of boxes, branches side by side, skips as arcs."""
    from convatlas.draw.diagram import diagram, save
    from convatlas.models.catalog import build_fresh, variant

    row, stem = variant(name), "small" if small else "own"
    network = build_fresh(name, resolution=size, channels=channels, classes=classes, stem=stem, device="meta")  # type: ignore[arg-type]
    figure = diagram(network, title=f"{row.card.title} ({row.card.year})")
    console.console.print(str(save(figure, out or Path(f"{name}.svg"))))


@app.command("timeline", rich_help_panel=LOOK)
def timeline_(out: Out = None) -> None:
    """Draw the history of the networks, by what they are known for."""
    from convatlas.draw.diagram import save
    from convatlas.draw.timeline import timeline

    console.console.print(str(save(timeline(), out or Path("timeline.svg"))))


@app.command("scale", rich_help_panel=LOOK)
def scale_(
    name: Name,
    width: Annotated[float, typer.Option(help="Factor on all widths.")] = 1.0,
    depth: Annotated[float, typer.Option(help="Factor on all depths.")] = 1.0,
    size: Size = None,
    phi: Annotated[float | None, typer.Option(help="Compound scaling: depth, width and resolution together.")] = None,
    fast: Annotated[float | None, typer.Option(help="Times the MACs, mostly in width (dWr).")] = None,
    macs: Annotated[float | None, typer.Option(help="The most that fits this budget of MACs.")] = None,
    params: Annotated[float | None, typer.Option(help="The most that fits this budget of parameters.")] = None,
    rule: Annotated[
        str | None, typer.Option(help="How to grow to a budget: width (if left out), compound or fast.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Scale a network by factors, by a rule or to a budget, and print its table and exact cost."""
    from convatlas.core.cost import cost
    from convatlas.core.summary import fields
    from convatlas.core.summary import totals as sums
    from convatlas.models import scaling
    from convatlas.models.catalog import build_fresh, variant

    ways = [phi is not None, fast is not None, macs is not None or params is not None]
    if sum(ways) > 1:
        raise ConvatlasError("choose one of --phi, --fast and a budget (--macs, --params)")
    if rule is not None and not ways[2]:
        raise ConvatlasError("--rule says how to grow to a budget: give --macs or --params")
    row = variant(name)
    spec = row.spec.scaled(width=width, depth=depth, resolution=size)
    if phi is not None:
        spec = scaling.scale_compound(spec, phi)
    elif fast is not None:
        spec = scaling.scale_fast(spec, fast)
    elif ways[2]:
        spec = scaling.fit_budget(
            spec, macs=macs, params=params, rule=rule or "width",  # type: ignore[arg-type]  # checked there
            classes=row.classes, channels=row.preprocessing.channels,
        )  # fmt: skip
    measured = cost(build_fresh(spec, classes=row.classes, channels=row.preprocessing.channels, device="meta"))
    if as_json:
        print(json.dumps({"spec": spec.to_plain(), "parameters": measured.parameters, "macs": measured.macs}, indent=2))
        return
    console.console.print(repr(spec))
    console.console.print(fields(sums(measured)))


@app.command(rich_help_panel=TRAIN)
def fit(
    data: Data,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="A network of `convatlas list`, or auto: the best within a budget.")
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS", help="Begin from library:tag or a file; with auto, from the best of a library at hand."
        ),
    ] = None,
    max_latency: Annotated[
        str | None, typer.Option(metavar="TIME", help="Of auto: for one image on this machine, such as 10ms.")
    ] = None,
    max_params: Annotated[
        str | None, typer.Option(metavar="N", help="Of auto: at most so many parameters, such as 5M.")
    ] = None,
    max_macs: Annotated[
        str | None, typer.Option(metavar="N", help="Of auto: at most so many multiply-adds, such as 300M.")
    ] = None,
    race: Annotated[float, typer.Option(metavar="SECONDS", help="Of auto: training time of the race, in all.")] = 300.0,
    recipe: Annotated[
        str | None,
        typer.Option(help="A recipe by name, or a .yaml file; the network's own, or finetune with weights, if none."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    lr: Annotated[
        str | None, typer.Option(metavar="X|find", help="Highest learning rate; find searches for one.")
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Any field of the recipe; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides initial weights, order, augmentation and splits.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder, new or empty; runs/DATA-NAME if left out.")
    ] = None,
    size: Size = None,
    small: Small = False,
    channels: Channels = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads; all cores if left out.")] = None,
    layout: Annotated[
        str, typer.Option(help="channels_last, contiguous, blocked, or auto: what is fastest here.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="float32, bfloat16, or auto: what is fastest here.")] = "auto",
    compiled: Annotated[bool, typer.Option("--compile", help="Use torch.compile: minutes first, then faster.")] = False,
    kernels: Annotated[bool, typer.Option(help="Norms by own kernels, where a C compiler is at hand.")] = True,
    keep_heap: Annotated[bool, typer.Option(help="Keep memory between the steps (glibc).")] = True,
    val_share: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of train set aside for val where the data has none.")
    ] = 0.2,
    folds: Annotated[
        int, typer.Option(metavar="K", help="Cross-validation: K runs, each measured on the fold that it did not see.")
    ] = 0,
    max_unreadable: Annotated[
        float, typer.Option(min=0, max=1, help="Share of unreadable images that is left out and listed.")
    ] = 0.01,
    log: Annotated[
        list[str] | None, typer.Option(help="Where else numbers go: tensorboard, wandb, mlflow; repeatable.")
    ] = None,
    checkpoint_seconds: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 30.0,
    checkpoint_steps: Annotated[int, typer.Option(help="Steps between checkpoints; by time only if 0.")] = 0,
    license: Annotated[str, typer.Option(help="License of the weights, sealed into the model file.")] = "",
    download: Download = False,
) -> None:
    """Train a network and seal the best weights into a model file."""
    from convatlas.models.catalog import variant
    from convatlas.train import recipe as recipes
    from convatlas.train.cross_validation import cross_validate
    from convatlas.train.fit import start
    from convatlas.train.select_model import Budget, select_model
    from convatlas.train.settings import Settings

    own = "default" if model == "auto" else variant(model).recipe
    chosen = recipes.recipe(recipe or recipes.usual(own, pretrained=weights is not None))
    find_lr = lr == "find"
    given = {"epochs": epochs, "batch": batch, "lr": None if lr is None or find_lr else _number("--lr", lr)}
    changes = {name: value for name, value in given.items() if value is not None} | _changes(change or [])
    settings = Settings(
        size=size, stem="small" if small else "own", channels=channels, device=device, threads=threads,
        layout=layout, precision=precision, compiled=compiled, kernels=kernels, keep_heap=keep_heap,
        val_share=val_share, max_unreadable=max_unreadable, log=tuple(log or ()),
        checkpoint_seconds=checkpoint_seconds, checkpoint_steps=checkpoint_steps, download=download, license=license,
    )  # fmt: skip
    changed = chosen.replaced(changes)
    limits = {"latency": max_latency, "params": max_params, "macs": max_macs}
    limited = {what: _number(f"--max-{what}", value) for what, value in limits.items() if value is not None}
    choice = None
    if model == "auto":
        with console.reading() as progress:
            choice = select_model(
                data, Budget(**limited), weights=weights, recipe=changed, seed=seed, settings=settings, seconds=race,
                progress=progress,
            )  # fmt: skip
        console.choice(choice)
        model, weights, settings = choice.best.name, choice.best.weights or None, choice.settings(settings)
    elif limited:
        raise ConvatlasError(f"--max-{next(iter(limited))} is for --model auto")
    if folds:
        if find_lr:
            raise ConvatlasError("--lr find is for one run; find the rate first, then give it to --folds")
        with console.reading() as progress:
            crossed = cross_validate(
                data, model, folds=folds, weights=weights, recipe=changed, seed=seed, out=out, settings=settings,
                drive=console.fold, progress=progress,
            )  # fmt: skip
        if choice:
            choice.write(crossed.folder / "choice.csv")
        console.folds(crossed)
        return
    with console.reading() as progress:
        run = start(
            data, model, weights=weights, recipe=changed, seed=seed, out=out, settings=settings, find_lr=find_lr,
            progress=progress,
        )  # fmt: skip
    if choice and run.distributed.is_main:
        choice.write(run.folder / "choice.csv")
    if find_lr:
        console.console.print(f"learning rate {run.config.recipe.lr:.2g}, found by a search")
    console.begun(run)
    console.train(run)
    console.outcome(run)


UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "s": 1.0, "ms": 1e-3, "us": 1e-6}


def _number(option: str, text: str) -> float:
    """Read a number that may carry a unit: 10ms, 5M, 2.5e-3."""
    found = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Z]*)\s*", text)
    try:
        return float(found[1]) * UNITS[found[2]] if found else float(text)
    except (ValueError, KeyError):
        raise ConvatlasError(
            f"{option} {text}: expected a number, perhaps with one of the units {', '.join(filter(None, UNITS))}"
        ) from None


def _changes(given: list[str]) -> dict[str, Any]:
    """Read FIELD=VALUE pairs; a value is a number, true, false, or text."""
    changes: dict[str, Any] = {}
    for pair in given:
        name, sign, text = pair.partition("=")
        if not sign:
            raise ConvatlasError(f"--set {pair}: expected FIELD=VALUE, such as --set label_smoothing=0.1")
        try:
            changes[name] = json.loads(text)
        except json.JSONDecodeError:
            changes[name] = text
    return changes


@app.command(rich_help_panel=TRAIN)
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that was stopped.")],
) -> None:
    """Go on with a run that was stopped, as if it never was."""
    from convatlas.train.fit import reopen

    with console.reading() as progress:
        opened = reopen(run, progress=progress)
    if opened.state.finished:
        console.console.print(f"{run} is finished; its model file is {opened.model_file}")
        return
    for name, (begun, now) in opened.changed_versions.items():
        console.errors.print(f"convatlas: the run began with {name} {begun}, now it is {now}: the last bits may differ")
    console.console.print(f"{opened.config.model}: going on at step {opened.state.step:,}")
    console.train(opened)
    console.outcome(opened)


@app.command(rich_help_panel=TRAIN)
def demo(
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/digits-lenet5_modern if left out.")] = None,
) -> None:
    """The whole way in a minute: train on embedded digits, predict from the model file, draw an image."""
    from convatlas.cli.demo import demo as run_demo

    run_demo(out)


data_app = typer.Typer(help="Data sets: what is wrong with them.", no_args_is_help=True)
app.add_typer(data_app, name="data", rich_help_panel=TRAIN)


@data_app.command("check")
def data_check(
    data: Data,
    sheet: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw a contact sheet of image files.")] = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Look at every image: unreadable ones, sizes, few of a class, copies, the same in two splits."""
    from convatlas.data.check import check
    from convatlas.data.open import find

    with console.reading() as progress:
        source = find(data, download=download, progress=progress)
        if sheet is not None and source.listings["train"].pixels is not None:
            raise ConvatlasError(f"--sheet: {data} holds arrays; a sheet is of image files")
        checked = check(source, progress=progress)
    if sheet is not None:
        from convatlas.draw.contact_sheet import draw_sheet

        draw_sheet(checked, sheet)
    if as_json:
        print(json.dumps(_told(checked), indent=2, ensure_ascii=False))
        return
    splits = list(checked.counts)
    rows = [(name, *(f"{checked.counts[s][i]:,}" for s in splits)) for i, name in enumerate(checked.classes)]
    console.table(("class", *splits), [*rows, ("", *(f"{sum(checked.counts[s]):,}" for s in splits))], right=splits)
    console.console.print()
    small, middle, large = (f"{w} x {h}" for w, h in checked.sizes)
    console.console.print(f"sizes: {small} to {large}, the middle one {middle}")
    console.console.print(f"stored as {', '.join(f'{mode} ({n:,})' for mode, n in checked.modes.items())}")
    for line in checked.findings() or ["nothing to complain about"]:
        console.console.print(f"- {line}")
    for image in checked.unreadable[:10]:
        console.console.print(f"  {image.name}: {image.unreadable}")
    for group in [*checked.leaks, *checked.contradictions][:10]:
        console.console.print("  " + " = ".join(f"{p.name} ({p.split}, {checked.named(p)})" for p in group[:4]))
    if sheet is not None:
        console.console.print(str(sheet))


def _told(checked: Any) -> dict[str, Any]:
    """Return the findings as plain data; images by name."""

    def names(groups: Any) -> list[list[str]]:
        return [[image.name for image in group] for group in groups]

    return {
        "name": checked.name, "classes": list(checked.classes), "counts": dict(checked.counts),
        "sizes": list(checked.sizes), "modes": checked.modes, "findings": checked.findings(),
        "unreadable": {image.name: image.unreadable for image in checked.unreadable}, "same": names(checked.same),
        "near": names(checked.near), "leaks": names(checked.leaks), "contradictions": names(checked.contradictions),
        "rotated": [image.name for image in checked.images if image.rotated],
    }  # fmt: skip


for command in (use.predict, use.evaluate, use.export, use.bench, use.serve):
    app.command(rich_help_panel=USE)(command)

weights_app = typer.Typer(help="Published weights: what there is, fetch, bring in, check.", no_args_is_help=True)
app.add_typer(weights_app, name="weights", rich_help_panel=USE)
Published = Annotated[
    str, typer.Argument(metavar="WEIGHTS", help="Published weights, network@library:tag; `convatlas weights list`.")
]


@weights_app.command("list")
def weights_list(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Only those of this network.")] = None,
    as_json: Json = False,
) -> None:
    """List published weights: what is claimed for them, their license, and whether they are at hand."""
    from convatlas.weights.pretrained import all_weights, list_weights

    found = list(all_weights()) if name is None else list_weights(name)
    if as_json:
        keys = ("name", "url", "digest", "license", "recipe")
        rows = [
            {key: getattr(w, key) for key in keys}
            | {
                "reported_metrics": dict(w.reported_metrics),
                "preprocessing": w.preprocessing.to_plain(),
                "classes": len(w.classes),
            }
            | {"file": str(w.file) if w.file else None}
            for w in found
        ]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    if not found:
        console.console.print(f"{name}: no weights are published by the libraries that are installed here")
        return
    console.table(
        ("weights", "px", "reported_metrics", "license", "at hand"),
        [
            (
                w.name, w.preprocessing.size, ", ".join(f"{what} {value:g}" for what, value in w.reported_metrics.items()),
                w.license or "not stated", "yes" if w.file else "",
            )
            for w in found
        ],
        right=("px",),
    )  # fmt: skip


@weights_app.command("pull")
def weights_pull(name: Published) -> None:
    """Fetch weights into the cache and check their digest."""
    from convatlas.weights.fetch import pull
    from convatlas.weights.pretrained import find_weights

    with console.reading() as progress:
        path = pull(find_weights(name), progress=progress)
    console.console.print(str(path))


@weights_app.command("import")
def weights_import(
    name: Published,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The published file, brought here by hand.")],
) -> None:
    """Bring in a file where there is no network: check its digest and put it into the cache."""
    from convatlas.weights.fetch import import_file
    from convatlas.weights.pretrained import find_weights

    console.console.print(str(import_file(find_weights(name), file)))


@weights_app.command("verify")
def weights_verify(
    name: Annotated[
        str, typer.Argument(metavar="WEIGHTS", help="Published weights, network@library:tag, or a network and --file.")
    ],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Images with labels.csv, or a folder per class.")],
    file: Annotated[Path | None, typer.Option(help="The weights, where they are not in the cache.")] = None,
    ledger: Annotated[Path | None, typer.Option(metavar="CSV", help="Add what was measured to it, as a row.")] = None,
    as_json: Json = False,
) -> None:
    """Measure weights on labeled images, beside their own library's class, image by image."""
    from convatlas.inference.verify import record, verify

    with console.reading() as progress:
        row = verify(name, data, file=file, progress=progress)
    if ledger is not None:
        record(row, shlex.join(["convatlas", *sys.argv[1:]]), ledger)
    low, high = row.interval
    if as_json:
        told = {**dataclasses.asdict(row), "top1": row.top1, "top5": row.top5, "interval": [low, high]}
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return
    n = f"{row.count:,}"
    measured = {"convatlas": (row.right1, row.right5)} | ({row.library: row.peer[:2]} if row.peer else {})
    lines = [
        (side, f"{first} of {n}", f"{first / row.count:.2%}", f"{five} of {n}", f"{five / row.count:.2%}")
        for side, (first, five) in measured.items()
    ]
    columns = ("", "top-1", "share", "top-5", "share")
    console.table(columns, lines, right=columns[1:])
    console.console.print(f"top-1 lies between {low:.1%} and {high:.1%} (95 %)")
    if row.peer:
        console.console.print(
            f"the five most probable classes are the same, in the same order, for {row.peer[2]} of {n} images; "
            f"largest difference of a probability {row.difference:.1e}"
        )
    if row.reported_metrics:
        console.console.print(
            f"reported: {row.reported_metrics}" + ("" if row.published else ", of the published file")
        )
    console.console.print(f"sha256 {row.digest}" + ("" if row.published else ": not the published file"))


def main() -> None:
    """Run the command; errors that a user can mend are one line, with exit code 2."""
    if os.environ.get("RANK", "0") != "0":  # of several processes the first one speaks
        console.console.quiet = True
    try:
        app(standalone_mode=True)
    except ConvatlasError as error:
        console.errors.print(f"convatlas: {error}", style="red")
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        from convatlas.train.cpu.execution import out_of_memory

        if not out_of_memory(error):
            raise
        console.errors.print(
            f"convatlas: memory does not suffice ({brief(error)}); use a smaller --batch or --size, or fewer images",
            style="red",
        )
        sys.exit(2)
    except OSError as error:  # what no check foresaw: a path that is too long, a folder that may not be read
        console.errors.print(f"convatlas: {error.filename or 'file'}: {error.strerror or error}", style="red")
        sys.exit(2)
