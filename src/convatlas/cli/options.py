"""Flags and arguments that several commands share, and the values that flags take."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convatlas.errors import InputError
from convatlas.system import quantities

if TYPE_CHECKING:
    from convatlas.models.catalog import Stem

DATA, MODEL, SEARCH, RECIPE = "Data", "Model", "Model selection (--model auto)", "Recipe"
EXECUTION, LIMITS, OUTPUT = "Execution", "Limits", "Output"


def option(
    help: str, *names: str, panel: str, metavar: str | None = None, read: Callable[[str], object] | None = None,
    default: str | None = None, **more: Any,
) -> Any:  # fmt: skip
    """Return a typer option.

    read: turns the text of the value into what the command gets; a ValueError becomes a one-line usage error.
    default: how the default is written, where it is not simply the value.
    """
    parser = None if read is None else _parser(read)
    return typer.Option(
        *names, help=help, metavar=metavar, rich_help_panel=panel, parser=parser,
        show_default=True if default is None else default, **more,
    )  # fmt: skip


def _parser(read: Callable[[str], object]) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        if not isinstance(value, str):  # a default
            return value
        try:
            return read(value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return parse


def integer(low: int | None = None, high: int | None = None) -> Callable[[str], int]:
    """Return a reader of integers between two bounds."""
    bounds = "".join(f" {sign} {bound}" for sign, bound in ((">=", low), ("and <=", high)) if bound is not None)

    def read(text: str) -> int:
        try:
            value = int(text)
            valid = (low is None or value >= low) and (high is None or value <= high)
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(f"must be an integer{bounds}, got {text}")
        return value

    return read


def number(text: str) -> float:
    """Read a number without a unit."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"must be a number, got {text}") from None


def probability(text: str) -> float:
    """Read a probability."""
    value = number(text)
    if not 0 <= value <= 1:
        raise ValueError(f"must be a probability in [0, 1], got {text}")
    return value


def assignments(pairs: Sequence[str], example: str) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of each NAME=VALUE of --set; a value is JSON (a number, true, false, null) or text.

    example: how a pair is written, such as "FIELD=VALUE such as label_smoothing=0.1".
    """
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign:
            raise InputError(f"--set: must be {example}, got {pair}")
        try:
            yield name, json.loads(text)
        except json.JSONDecodeError:
            yield name, text


def stem_for(small_images: bool) -> Stem:
    """Return the stem of the flag --small-images."""
    return "cifar" if small_images else "default"


def complete_network(incomplete: str) -> list[str]:
    """Return the networks that begin with what was typed, for the completion of the shell."""
    from convatlas.models.describe import list_models

    return list_models(f"{incomplete}*")


NetworkOrModel = Annotated[
    str,
    typer.Argument(
        metavar="NAME|FILE|RUN", help="A network of `convatlas list`, or that of a model file or run directory.",
        autocompletion=complete_network,
    ),
]  # fmt: skip
ModelFile = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model file or run directory, an exported file (.onnx, .xml), or weights by name "
        "(NETWORK@LIBRARY:TAG, NETWORK@TAG).",
    ),
]
DataSet = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A data set by name, a folder of images or videos, a CSV or Parquet table, arrays (see docs/data.md), or "
        "images with boxes, masks or keypoints: COCO, Pascal VOC, YOLO, VIA, ... (see docs/detection-data.md).",
    ),
]
PretrainedWeights = Annotated[
    str, typer.Argument(metavar="WEIGHTS", help="Pretrained weights of `convatlas weights list`: NETWORK@LIBRARY:TAG.")
]

Resolution = Annotated[
    int | None,
    option("Side of the input image in pixels, of detectors its short side, instead of the default of the network.",
           metavar="PX", panel=MODEL, read=integer(1)),
]  # fmt: skip
Channels = Annotated[
    int | None,
    option("Number of input channels: 1 for grayscale, 3 for RGB.", metavar="N", panel=MODEL, read=integer()),
]
Classes = Annotated[
    int | None,
    option("Number of classes, instead of that of the paper.", metavar="N", panel=MODEL, read=integer()),
]
SmallImages = Annotated[
    bool, option("Use the stem for images of up to 64 px, as on CIFAR.", "--small-images", panel=MODEL)
]
Download = Annotated[bool, option("Allow the download of a data set given by name.", "--download", panel=DATA)]
DownloadAll = Annotated[
    bool, option("Allow downloads: of a data set given by name, and of published weights.", "--download", panel=DATA)
]
MaxUnreadable = Annotated[
    float,
    option("Maximum share of unreadable images or videos, which are skipped and listed; more are an error.",
           metavar="SHARE", panel=DATA, read=quantities.share, default="1%"),
]  # fmt: skip
MaxUnreadableLikeTraining = Annotated[
    float | None,
    option("Maximum share of unreadable images or videos, which are skipped and listed; by default that of the "
           "training.", metavar="SHARE", panel=DATA, read=quantities.share),
]  # fmt: skip
Device = Annotated[
    str, option("Device of torch: cpu, cuda, mps, or auto for the fastest one.", metavar="NAME", panel=EXECUTION)
]
Engine = Annotated[
    str,
    option("Inference engine: torch, compile, onnxruntime, openvino, or auto for the fastest one that is installed.",
           metavar="NAME", panel=EXECUTION),
]  # fmt: skip
Batch = Annotated[
    int | None,
    option("Number of images or clips in a batch.", metavar="N", panel=EXECUTION, read=integer(1),
           default="16, 4 clips, or 1 for detectors"),
]  # fmt: skip
ValShare = Annotated[
    float,
    option("Share of the training images that becomes the val split, if the data has none.",
           metavar="SHARE", panel=DATA, read=quantities.share, default="20%"),
]  # fmt: skip
RecipeChanges = Annotated[
    list[str] | None,
    option("Set a field of the recipe, for example label_smoothing=0.1; repeatable.", "--set",
           metavar="FIELD=VALUE", panel=RECIPE),
]  # fmt: skip
LatencyEngine = Annotated[
    str,
    option("Inference engine that latencies are measured on: torch, onnxruntime or openvino.", metavar="NAME",
           panel=EXECUTION),
]  # fmt: skip
Fetch = Annotated[
    bool, option("Allow the download of images or videos from http:// and https:// URLs.", "--fetch", panel=DATA)
]
Figure = Annotated[
    Path | None,
    option("File of the figure; its suffix is .svg, .png or .pdf.", "--out", "-o", metavar="FILE", panel=OUTPUT),
]
Json = Annotated[bool, option("Print JSON instead of a table.", "--json", panel=OUTPUT)]
JsonLines = Annotated[bool, option("Print one JSON object per line.", "--json", panel=OUTPUT)]
