"""The commands on weights: list, pull, import, verify."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from convatlas.cli import console
from convatlas.cli.options import DATA, MODEL, OUTPUT, Json, PretrainedWeights, integer, number, option
from convatlas.errors import InputError


def list_(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="List only the weights of this network.")
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """List published and imported weights: reported metrics, license, and whether they are cached."""
    from convatlas.weights.imported import list_imported
    from convatlas.weights.pretrained import all_weights, list_weights

    published = list(all_weights()) if name is None else list_weights(name)
    imported = list_imported(name)
    if as_json:
        console.print_json([*(w.to_plain() for w in imported), *(w.to_plain() for w in published)])
        return
    if not (published or imported):
        console.console.print(f"{name}: no weights, neither imported nor in the libraries that are installed here")
        return

    def text(metrics: Mapping[str, float]) -> str:
        return ", ".join(f"{metric} {value:g}" for metric, value in metrics.items())

    rows = [
        (
            w.name,
            w.header.preprocessing.resolution,
            text(w.header.training.reported_metrics),
            w.header.license,
            "imported",
        )
        for w in imported
    ] + [
        (w.name, w.preprocessing.resolution, text(w.reported_metrics), w.license, "yes" if w.cached_file else "")
        for w in published
    ]
    console.table(
        ("weights", "px", "reported metrics", "license", "cached"),
        [(name, size, metrics, license or "not stated", cached) for name, size, metrics, license, cached in rows],
        right=("px",),
    )


def pull(name: PretrainedWeights) -> None:
    """Download weights into the cache and check their SHA-256."""
    from convatlas.weights.fetch import pull, warn_without_digest
    from convatlas.weights.pretrained import find_weights

    weights = find_weights(name)
    was_cached = weights.cached_file is not None
    with console.progress_bar() as progress:
        path = pull(weights, replace=True, progress=progress)
    if was_cached:
        warn_without_digest(weights)
    console.console.print(str(path))


def _statistics(flag: str, text: str | None) -> tuple[float, ...] | None:
    """Read one number for all channels, or one for each, such as 0.485,0.456,0.406; fractions such as 127/255."""
    if text is None:
        return None
    try:
        return tuple(float(Fraction(part.strip())) for part in text.split(","))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise InputError(f"{flag}: must be a number, or one for each channel such as 0.5,0.4,0.4, got {text}") from None


def _metric(text: str) -> tuple[str, float]:
    name, sign, value = text.rpartition("=")
    if not (sign and name.strip()):
        raise ValueError(f"must be METRIC=VALUE such as top1=70.9, got {text}")
    return name.strip(), number(value)


def import_(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A network of `convatlas list`; or, for the copy of a published file, its "
                       "weights, NETWORK@LIBRARY:TAG."),
    ],
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A checkpoint: a file, the index of shards, or the folder of a hub "
                       "snapshot; FILE:KEY for one of its state dicts."),
    ],
    tag: Annotated[
        str | None, option("The weights are NETWORK@TAG from then on.", metavar="TAG", panel=MODEL)
    ] = None,
    classes: Annotated[
        str | None,
        option("Class names in the order of the outputs: a text file with one a line, a folder with one folder for "
               "each class, a,b,c, imagenet (the default for 1,000 outputs) or kinetics400.",
               metavar="NAMES", panel=MODEL),
    ] = None,
    mean: Annotated[
        str | None,
        option("Mean that is subtracted from values in [0, 1], such as 0.5 or 0.485,0.456,0.406.", metavar="X[,X,X]",
               panel=DATA),
    ] = None,
    std: Annotated[
        str | None,
        option("Standard deviation by which the result is divided.", metavar="X[,X,X]", panel=DATA),
    ] = None,
    resize: Annotated[
        int | None, option("Length of the short side after resizing.", metavar="PX", panel=DATA, read=integer(1))
    ] = None,
    crop: Annotated[
        int | None,
        option("Side of the central crop, the input of the network.", metavar="PX", panel=DATA, read=integer(1)),
    ] = None,
    interpolation: Annotated[
        str | None, option("Interpolation of the resize: nearest, bilinear or bicubic.", metavar="NAME", panel=DATA)
    ] = None,
    rotation: Annotated[
        int | None,
        option("Rotation of the input, 0 or 180 degrees, for weights that are stored rotated.", metavar="DEGREES",
               panel=DATA, read=integer(0)),
    ] = None,
    license: Annotated[str, option("License of the weights.", metavar="NAME", panel=OUTPUT)] = "",
    reported: Annotated[
        list[str] | None,
        option("A metric that the publisher reports, for example top1=70.9; repeatable.", metavar="METRIC=VALUE",
               panel=OUTPUT),
    ] = None,
) -> None:  # fmt: skip
    """Import a weights file: with --tag, one from elsewhere becomes a model, NETWORK@TAG, for all other commands.

    Without --tag, the file must be the published one of NETWORK@LIBRARY:TAG, and is put into the cache.
    """
    from convatlas.inference.verify import describe_protocol
    from convatlas.weights.fetch import import_published
    from convatlas.weights.imported import import_weights
    from convatlas.weights.pretrained import find_weights

    preprocessing = {
        "mean": _statistics("--mean", mean), "std": _statistics("--std", std), "resize": resize, "crop": crop,
        "interpolation": interpolation, "rotation": rotation,
    }  # fmt: skip
    stated = {field: value for field, value in preprocessing.items() if value is not None}
    if tag is None:
        if "@" not in name:
            raise InputError(f"--tag: is missing; {name}@TAG is the name of the weights after the import")
        if stated or classes or license or reported:
            raise InputError(f"{name}: published weights have their own record; other options need --tag")
        console.console.print(str(import_published(find_weights(name), file)))
        return
    if "@" in name:
        raise InputError(f"NAME: must be a network of `convatlas list` with --tag, got {name}")
    try:
        metrics = dict(map(_metric, reported or ()))
    except ValueError as error:
        raise InputError(f"--reported: {error}") from None
    imported = import_weights(
        name, file, tag=tag, classes=classes, preprocessing=stated, license=license,
        reported_metrics=metrics,
    )  # fmt: skip
    header = imported.header
    console.console.print(
        f"{imported.name}: {len(header.classes):,} classes; {describe_protocol(header.preprocessing)}"
    )
    console.console.print(f"stored in {imported.path}")


def verify(
    name: Annotated[
        str,
        typer.Argument(
            metavar="WEIGHTS",
            help="Pretrained weights, NETWORK@LIBRARY:TAG; imported ones, NETWORK@TAG; or a network and --file.",
        ),
    ],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="A folder of images or videos with labels.csv, or with a folder for each class."
        ),
    ],
    file: Annotated[
        Path | None, option("The weights file, if it is not in the cache.", metavar="FILE", panel=DATA)
    ] = None,
    append: Annotated[
        Path | None, option("Append the result to this CSV file, as a row.", metavar="CSV", panel=OUTPUT)
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure weights on labeled images and compare them with the library they come from, image by image."""
    from convatlas.inference.verify import append_row, verify

    with console.progress_bar() as progress:
        row = verify(name, data, file=file, progress=progress)
    if append is not None:
        append_row(row, shlex.join(["convatlas", *sys.argv[1:]]), append)
    if as_json:
        console.print_json(row.to_plain())
        return
    columns = ("", "top-1", "accuracy", "top-5", "accuracy")
    console.table(columns, row.rows(), right=columns[1:])
    for line in row.notes():
        console.console.print(line)
