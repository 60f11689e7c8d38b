"""The `convatlas` command: every subcommand is a thin layer over the function of the same name."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from convatlas.cli import show
from convatlas.errors import ConvatlasError

app = typer.Typer(
    name="convatlas",
    help="Convolutional networks from 1989 on: choose, understand, train and use them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: convatlas list, convatlas show lenet5, convatlas fit digits --model lenet5_modern",
    pretty_exceptions_enable=False,
)

LOOK, TRAIN, USE = "Look at networks", "Train", "Use a model file"

Name = Annotated[str, typer.Argument(metavar="NAME", help="A network of `convatlas list`.")]
Size = Annotated[int | None, typer.Option(metavar="PX", help="Input size in pixels instead of the network's own.")]
Channels = Annotated[int | None, typer.Option(metavar="N", help="Channels of the input: 1 is grey, 3 is RGB.")]
Classes = Annotated[int | None, typer.Option(metavar="N", help="Number of classes instead of the paper's.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A sealed model file (model.safetensors).")]
Data = Annotated[
    str, typer.Argument(metavar="DATA", help="digits, mnist, fashion_mnist, or a folder of pictures or IDX files.")
]
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
    from convatlas.catalog import CATALOG, facts, names

    rows = []
    for name in names(pattern, family=family, max_params=max_params):
        row, numbers = CATALOG[name], facts(name)
        taxonomy = ", ".join(row.card.taxonomy)
        rows.append((name, row.card.year, row.spec.resolution, numbers.parameters, numbers.macs, taxonomy))
    columns = ("name", "year", "input px", "parameters", "MACs", "taxonomy")
    if as_json:
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=2))
    else:
        shown = [(n, y, size, f"{p:,}", f"{m:,}", t) for n, y, size, p, m, t in rows]
        show.table(columns, shown, right=("input px", "parameters", "MACs"))


@app.command("show", rich_help_panel=LOOK)
def show_(
    name: Name,
    size: Size = None,
    channels: Channels = None,
    classes: Classes = None,
) -> None:
    """Show a network: its card, its layers, its cost."""
    from convatlas.catalog import show as describe

    show.console.print(describe(name, size=size, channels=channels, classes=classes))


@app.command("cost", rich_help_panel=LOOK)
def cost_(
    name: Name,
    size: Size = None,
    channels: Channels = None,
    classes: Classes = None,
    as_json: Json = False,
) -> None:
    """Print the exact cost of one image through a network."""
    from convatlas.catalog import measure
    from convatlas.draw import fields
    from convatlas.draw import totals as sums

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
        show.console.print(fields(sums(measured)))


@app.command(rich_help_panel=TRAIN)
def fit(
    data: Data,
    model: Annotated[str, typer.Option(metavar="NAME", help="A network of `convatlas list`.")],
    recipe: Annotated[str | None, typer.Option(help="A recipe by name instead of the network's own.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training pictures.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures per step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Any field of the recipe; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides initial weights, order, augmentation and splits.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder, new or empty; runs/DATA-NAME if left out.")
    ] = None,
    size: Size = None,
    channels: Channels = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads; all cores if left out.")] = None,
    val_share: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of train set aside for val where the data has none.")
    ] = 0.2,
    max_broken: Annotated[
        float, typer.Option(min=0, max=1, help="Share of unreadable pictures that is left out and listed.")
    ] = 0.01,
    checkpoint_seconds: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 30.0,
    checkpoint_steps: Annotated[int, typer.Option(help="Steps between checkpoints; by time only if 0.")] = 0,
    licence: Annotated[str, typer.Option(help="Licence of the weights, sealed into the model file.")] = "",
    download: Download = False,
) -> None:
    """Train a network and seal the best weights into a model file."""
    from convatlas.catalog import variant
    from convatlas.train import recipe as recipes
    from convatlas.train.run import Settings, start

    row = variant(model)
    chosen = recipes.recipe(recipe or row.recipe)
    given = {"epochs": epochs, "batch": batch, "lr": lr}
    changes = {name: value for name, value in given.items() if value is not None} | _changes(change or [])
    settings = Settings(
        size=size, channels=channels, device=device, threads=threads, val_share=val_share, max_broken=max_broken,
        checkpoint_seconds=checkpoint_seconds, checkpoint_steps=checkpoint_steps, download=download, licence=licence,
    )  # fmt: skip
    with show.reading() as progress:
        changed = chosen.replaced(changes)
        run = start(data, model, recipe=changed, seed=seed, out=out, settings=settings, progress=progress)
    counts = ", ".join(f"{len(images):,} {split}" for split, images in run.dataset.splits.items())
    show.console.print(
        f"{model} on {run.dataset.name}: {len(run.config.classes)} classes, {counts}; seed {seed}; "
        f"{run.device.type}; run folder {run.folder}"
    )
    show.train(run)
    show.outcome(run)


def _changes(given: list[str]) -> dict[str, Any]:
    """Read FIELD=VALUE pairs; a value is a number, true, false, or text."""
    changes: dict[str, Any] = {}
    for pair in given:
        name, sign, text = pair.partition("=")
        if not sign:
            raise ConvatlasError(f"--set {pair}: expected FIELD=VALUE, such as --set smoothing=0.1")
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
    from convatlas.train.run import reopen

    with show.reading() as progress:
        opened = reopen(run, progress=progress)
    if opened.state.finished:
        show.console.print(f"{run} is finished; its model file is {opened.model_file}")
        return
    for name, (begun, now) in opened.changed_versions.items():
        show.errors.print(f"convatlas: the run began with {name} {begun}, now it is {now}: the last bits may differ")
    show.console.print(f"{opened.config.model}: going on at step {opened.state.step:,}")
    show.train(opened)
    show.outcome(opened)


@app.command(rich_help_panel=USE)
def evaluate(
    file: File,
    data: Data,
    split: Annotated[
        str | None, typer.Option(help="train, val, test or all; test if left out, or else val, or else all.")
    ] = None,
    max_broken: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of unreadable pictures to leave out; as in the training if not given."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a model file on a data set, class by class."""
    from convatlas.model import load

    model = load(file)
    with show.reading() as progress:
        split, result, broken = model.evaluate(data, split=split, max_broken=max_broken, progress=progress)
    confusion = result.confusion
    counts = list(zip(model.classes, confusion.sum(1).tolist(), confusion.diag().tolist(), strict=True))
    if as_json:
        classes = {name: {"pictures": pictures, "right": right} for name, pictures, right in counts}
        unread = [dataclasses.asdict(picture) for picture in broken]
        summary = {
            "model": str(file),
            "data": data,
            "split": split,
            **result.summary(),
            "classes": classes,
            "broken": unread,
        }
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    rows = [(name, pictures, right, f"{right / pictures:.2%}" if pictures else "") for name, pictures, right in counts]
    show.table(("class", "pictures", "right", "accuracy"), rows, right=("pictures", "right", "accuracy"))
    whole = "; all pictures: a flattering number if the network was trained on some of them"
    show.measured(split, result, whole if split == "all" else "")
    show.left_out(broken)


@app.command(rich_help_panel=USE)
def predict(
    file: File,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Picture files, or folders of them.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to print.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
) -> None:
    """Name what is in pictures. Unreadable ones are reported, the others answered; the exit code is then 2."""
    from convatlas.model import load

    if as_json and as_csv:
        raise ConvatlasError("choose one of --json and --csv")
    model = load(file)
    predictions = model.predict(_pictures(images))
    top = min(top, len(model.classes))
    good = [p for p in predictions if not p.error]
    if as_json:
        for p in predictions:
            line = {"source": p.source, "error": p.error} if p.error else {
                "source": p.source, "label": p.label, "probability": p.probability, "probabilities": p.probabilities,
            }  # fmt: skip
            print(json.dumps(line, ensure_ascii=False))
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["source", "label", "probability", *model.classes, "error"])
        for p in predictions:
            numbers = [f"{p.probabilities[name]:.6f}" if not p.error else "" for name in (p.label, *model.classes)]
            writer.writerow([p.source, p.label, *numbers, p.error])
    elif good:
        rows = [(p.source, *(f"{q:7.2%}  {name}" for name, q in list(p.probabilities.items())[:top])) for p in good]
        show.table(("picture", "most probable", *("next",) * (top - 1)), rows)
    broken = [p for p in predictions if p.error]
    for p in broken:
        show.errors.print(f"convatlas: {p.error}", style="red")
    if broken:
        raise typer.Exit(2)


def _pictures(paths: list[Path]) -> list[Path]:
    """Replace folders by the picture files in them, in order of their names."""
    from convatlas.data.images import pictures_in

    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = pictures_in(path)
            if not inside:
                raise ConvatlasError(f"{path}: there are no pictures in this folder")
            found += inside
        else:
            found.append(path)
    return found


@app.command(rich_help_panel=TRAIN)
def demo(
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/digits-lenet5_modern if left out.")] = None,
) -> None:
    """The whole way in a minute: train on embedded digits, predict from the model file, draw a picture."""
    from convatlas.cli.demo import demo as run_demo

    run_demo(out)


def main() -> None:
    """Run the command; errors that a user can mend are one line, with exit code 2."""
    try:
        app(standalone_mode=True)
    except ConvatlasError as error:
        show.errors.print(f"convatlas: {error}", style="red")
        sys.exit(2)
    except OSError as error:  # what no check foresaw: a path that is too long, a folder that may not be read
        show.errors.print(f"convatlas: {error.filename or 'file'}: {error.strerror or error}", style="red")
        sys.exit(2)
