"""The parts of a page about the result of a model on one split: summary, figures, metrics by class, worst errors."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from convatlas.core.table import Table
from convatlas.draw.page import (
    Thumbnail,
    beside,
    figure,
    paragraph,
    section,
    summary_card,
    table,
    thumbnails,
)
from convatlas.tasks.result import Baseline, Result
from convatlas.tasks.table import pluralize

MAX_ERRORS = 24
"""Maximum number of the worst images that are shown."""

MAX_UNREADABLE = 50
"""Maximum number of unreadable files that are listed."""

MAX_COLUMNS_BESIDE = 6
"""Maximum number of columns of a table beside a figure."""

MAX_WIDTH_BESIDE = 6.6
"""Maximum width in inches of a figure beside other parts."""

METRIC_NAMES = {
    "n": "{noun}s", "num_errors": "{noun}s wrong", "top5": "top-5 accuracy", "macro_f1": "macro F1",
    "micro_f1": "micro F1", "ece": "expected calibration error", "missed": "missed objects", "false": "false objects",
    "clip_accuracy": "accuracy of single clips", "clip_top5": "top-5 accuracy of single clips",
    "clip_mAP": "mAP of single clips",
}  # fmt: skip
"""Names of metrics that are not their key."""

AVERAGES = re.compile(r"(\w+)_(ap|ar|pck)_?(\w*)")
"""Keys of averages of a detector, such as box_ap50 or mask_ap_small."""

MAX_SIDE = 1280
"""Longest side in pixels of an image on a page."""

WIDE = 1.8
"""Images with a larger ratio of width to height, such as two side by side, get the place of three."""

MIN_JPEG_SIDE = 64
"""Smaller images are stored without loss, and enlarged pixel by pixel."""


class PixelReader(Protocol):
    """The pixels of images by number, (channels, h, w) from 0 to 255."""

    def __getitem__(self, index: int, /) -> Tensor: ...


def as_sentence(words: str) -> str:
    """Return words with a capital letter and a period."""
    return f"{words[0].upper()}{words[1:]}." if words else ""


def result_summary(
    result: Result, split: str, *, baseline: Baseline | None, sentences: Sequence[str], facts: Mapping[str, str]
) -> str:
    """Return the headline of a result with its interval and verdict, sentences about it, and facts."""
    numbers, key = result.summary(), result.headline
    bounds = (numbers.get(f"{key}_low"), numbers.get(f"{key}_high"))
    interval = None
    if bounds[0] is not None and bounds[1] is not None and bounds[0] < bounds[1]:  # that of mAP may have no width
        interval = float(bounds[0]), float(bounds[1])
    name = f"{result.headline_name or key} on {pluralize(result.n, f'{split} {result.noun}'.strip())}"
    verdict = result.verdict(baseline)
    return summary_card(
        result.value_text, name, interval=interval, warning=f"The result is {verdict}." if verdict else "",
        sentences=sentences, facts=facts,
    )  # fmt: skip


def metric_name(key: str, noun: str = "image") -> str:
    """Return the name of a metric of `Result.summary` for people. noun: what is counted; see `Result.noun`."""
    for end, bound in (("_low", "from"), ("_high", "to")):
        if key.endswith(end):
            return f"95 % interval {bound}"
    if average := AVERAGES.fullmatch(key):
        kind, name, rest = average.groups()
        between = "@0." if name == "pck" else " " * rest.isalpha()
        return f"{kind} {name.upper()}{between}{rest}"
    return METRIC_NAMES.get(key, key.replace("_", " ")).format(noun=noun)


def metrics_table(results: Mapping[str, Result]) -> str:
    """Return the metrics of every split, one metric a row."""
    summaries = {split: result.summary() for split, result in results.items()}
    keys = list(dict.fromkeys(key for numbers in summaries.values() for key in numbers))
    noun = next((result.noun for result in results.values()), "image")
    rows = tuple(
        (metric_name(key, noun), *(_number(numbers.get(key)) for numbers in summaries.values())) for key in keys
    )
    return table(Table(("metric", *summaries), rows, right=frozenset(range(1, len(summaries) + 1))))


def _number(value: float | int | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def result_sections(result: Result, pixels: PixelReader, names: Sequence[str], *, more: str = "") -> list[str]:
    """Return the figures of a result, its metrics by class, further tables, and its most confident errors.

    pixels, names: the images and their names. more: a narrow section beside the figures.
    """
    rows = result.table()
    tables = {"Metrics by class": rows, **result.more_tables()}
    by_class = "".join(section(title, table(each.to_text())) for title, each in tables.items())
    wide: list[str] = []
    narrow: list[str] = []
    for title, each in result.figures().items():
        is_wide = each.beside is not None or each.figure.get_figwidth() > MAX_WIDTH_BESIDE
        (wide if is_wide else narrow).append(section(title, figure(each, title)))
    if len(rows.columns) > MAX_COLUMNS_BESIDE:
        parts = [*wide, beside(*narrow, more), by_class]
    elif len(narrow) > 1:
        parts = [*wide, beside(narrow[0] + more, by_class + "".join(narrow[1:]))]
    else:
        parts = [*wide, beside(by_class + more, *narrow)]
    return [*parts, errors_section(result, pixels, names)]


def unreadable_files(files: Sequence[tuple[str, str]], *, all_in: str = "") -> str:
    """Return the files that were skipped and the reasons. all_in: a file that lists all of them."""
    if not files:
        return ""
    rows = tuple((path, reason.removeprefix(f"{path}: ")) for path, reason in files[:MAX_UNREADABLE])
    shown = paragraph(f"{pluralize(len(files), 'unreadable image')} skipped:") + table(Table(("file", "reason"), rows))
    more = len(files) - len(rows)
    return shown + (paragraph(f"and {more:,} more{all_in and f', in {all_in}'}") if more else "")


def errors_section(result: Result, pixels: PixelReader, names: Sequence[str]) -> str:
    """Return the worst images, with what the result draws on them; empty if there are none."""
    shown = [
        _thumbnail(result.annotated(i, pixels[i]), prediction, right, names[i].replace("\\", "/").rsplit("/", 1)[-1])
        for i, prediction, right in result.worst(MAX_ERRORS)
    ]
    lead = f"{result.worst_lead} A click enlarges an image."
    return section(result.worst_heading, thumbnails(shown), lead=lead) if shown else ""


def _thumbnail(pixels: Tensor, prediction: str, right: str, name: str) -> Thumbnail:
    """Return an image (channels, h, w): grayscale, RGB, or the first three of other channels."""
    array = (pixels[:3] if pixels.shape[0] >= 3 else pixels[:1]).byte()
    small = min(array.shape[1:]) < MIN_JPEG_SIDE
    buffer = io.BytesIO()
    kind = "png" if small else "jpeg"
    image = Image.fromarray(array.permute(1, 2, 0).squeeze(-1).numpy())
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    wide = array.shape[2] > WIDE * array.shape[1]
    lines: dict[str, Any] = {"subsampling": 0} if wide else {}  # thin lines keep their color
    image.save(buffer, format=kind, quality=85, **lines)
    return Thumbnail(buffer.getvalue(), kind, (prediction, right, name), pixelated=small, wide=wide)
