"""The report of a run, one self-contained HTML file, and its learning curves."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from convatlas.core.cost import cost
from convatlas.core.network import Network
from convatlas.data.dataset import Dataset, Images
from convatlas.draw import charts, style
from convatlas.errors import brief, printable
from convatlas.system.files import write_text
from convatlas.tasks.table import MetricTable, pluralize
from convatlas.tasks.task import Calibration, Result
from convatlas.train.run_folder import CURVES, REPORT
from convatlas.train.settings import RunConfig

MAX_ERRORS = 24
"""Maximum number of incorrectly predicted images that are shown."""

MAX_UNREADABLE = 50
"""Maximum number of unreadable files that are listed."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 62em; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: 0; } h2 { font-size: 1.1em; margin-top: 2em; }
.big { font-size: 2.2em; font-weight: 600; color: #1f7a8c; } .quiet { color: #616e7c; }
table { border-collapse: collapse; } td, th { padding: 0.15em 1.2em 0.15em 0; text-align: left; vertical-align: top; }
th { border-bottom: 1px solid #9aa5b1; font-weight: 600; } td.n, th.n { text-align: right; }
img { max-width: 100%; } .errors { display: flex; flex-wrap: wrap; gap: 1em; }
figure { margin: 0; width: 8.5em; font-size: 0.8em; } figure img { width: 8.5em; height: 8.5em; object-fit: contain;
image-rendering: auto; background: #f5f7f9; } figcaption { overflow-wrap: anywhere; } b.wrong { color: #d1495b; }
"""


@dataclass(frozen=True)
class ReportData:
    """The contents of a report. history: one row of metrics for each epoch. seconds: of training."""

    config: RunConfig
    dataset: Dataset
    network: Network
    results: Mapping[str, Result]
    calibration: Calibration
    history: Sequence[Mapping[str, float]]
    seconds: float


def write_reports(folder: Path, data: ReportData, note: Callable[[str], None]) -> None:
    """Write curves.png and report.html of a finished run.

    A failure, whatever it is, must not keep the run from being finished: `note` is called with a line about it.
    """
    columns = data.config.task.progress_columns
    writers: dict[str, Callable[[Path], object]] = {
        CURVES: lambda path: charts.curves(data.history, columns, path=path),
        REPORT: lambda path: write_text(path, report(data)),
    }
    for name, write in writers.items():
        try:
            write(folder / name)
        except Exception as error:
            note(f"{name} cannot be written ({type(error).__name__}: {brief(error)})")


def report(data: ReportData) -> str:
    """Return the report of a finished run as a page of HTML: metrics, curves, errors, calibration, cost, recipe."""
    config, dataset = data.config, data.dataset
    split = "test" if "test" in data.results else "val"
    result, images = data.results[split], dataset.splits[split]
    counts = ", ".join(f"{len(part):,} {name}" for name, part in dataset.splits.items())
    caveat = " The best epoch was chosen on these images, so the result is optimistically biased."
    execution = config.execution
    parts = [
        f"<h1>{_text(config.model)} on {_text(dataset.name)}</h1>",
        f"<p class=quiet>{len(config.task.classes)} classes; {counts}; seed {config.seed}; {_text(execution.device)}, "
        f"{_text(execution.memory_format)}, {_text(execution.precision)}; {data.seconds:,.0f} s of training</p>",
        f"<p><span class=big>{_text(result.value_text)}</span> on {split}: {_text(result.text())}."
        f"{caveat if split == 'val' else ''}</p>",
        _splits(data.results),
        "<h2>Learning curves</h2>",
        _figure(charts.curves(data.history, config.task.progress_columns)),
        *(f"<h2>{_text(heading)}</h2>{_figure(figure)}" for heading, figure in result.figures().items()),
        *_calibration(data.calibration),
        "<h2>Metrics by class</h2>", _result_table(result.table()),
        *_errors(result, images),
        "<h2>Cost</h2>", _pairs(cost(data.network).totals()),
        "<h2>Recipe</h2>",
        _pairs(config.recipe.to_plain() | ({"weights": config.weights} if config.weights else {})),
        "<h2>Data</h2>", _pairs({"fingerprint": config.fingerprint, **config.preprocessing.to_plain()}),
        *(f"<p>{_text(remark)}</p>" for remark in dataset.remarks),
        *_unreadable(dataset),
        "<h2>Environment</h2>", _pairs(config.versions),
    ]  # fmt: skip
    title = _text(f"{config.model} on {dataset.name}")
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
    return head + "\n".join(parts) + "</html>\n"


def _text(value: object) -> str:
    return html.escape(printable(str(value)))


def _splits(results: Mapping[str, Result]) -> str:
    """Return the metrics of every split that was evaluated."""
    summaries = {name: result.summary() for name, result in results.items()}
    keys = list(next(iter(summaries.values())))
    rows = [(name, *(_number(numbers[key]) for key in keys)) for name, numbers in summaries.items()]
    return _table(("split", *keys), rows)


def _number(value: float | int) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; all columns but the first hold numbers."""
    kinds = ["", *[" class=n"] * (len(columns) - 1)]
    head = "".join(f"<th{kind}>{_text(name)}</th>" for kind, name in zip(kinds, columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{_text(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _result_table(table: MetricTable) -> str:
    return _table(table.headings, table.texts())


def _pairs(values: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in values.items())
    return f"<table>{rows}</table>"


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _figure(figure: Any) -> str:
    return f'<p><img alt="" src="{_data(style.encode(figure), "png")}" style="max-height: 40em"></p>'


def _calibration(calibration: Calibration) -> list[str]:
    if calibration == Calibration():
        return []
    return [
        f"<p>Outputs are divided by a temperature of {calibration.temperature:.3f}, fitted on val, before they become "
        "probabilities. On the dashed line, accuracy equals confidence.</p>"
    ]


def _errors(result: Result, images: Images) -> list[str]:
    """Return the most confident errors, as images."""
    figures = [
        f'<figure><img alt="" src="{_data(_image(images.pixels[i]), "png")}"><figcaption>'
        f"<b class=wrong>{_text(prediction)}</b><br>is {_text(target)}<br>"
        f"<span class=quiet>{_text(images.names[i].rsplit('/', 1)[-1])}</span></figcaption></figure>"
        for i, prediction, target in result.worst(MAX_ERRORS)
    ]
    if not figures:
        return []
    return ["<h2>Most confident errors</h2>", f"<div class=errors>{''.join(figures)}</div>"]


def _image(pixels: Tensor) -> bytes:
    """Return pixels (channels, h, w) as PNG: grayscale, RGB, or the first three of other channels."""
    array = (pixels[:3] if pixels.shape[0] >= 3 else pixels[:1]).byte()
    image = Image.fromarray(array.permute(1, 2, 0).squeeze(-1).numpy())
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return buffer.getvalue()


def _unreadable(dataset: Dataset) -> list[str]:
    unreadable = dataset.unreadable
    if not unreadable:
        return []
    rows = [(image.path, image.reason.removeprefix(f"{image.path}: ")) for image in unreadable[:MAX_UNREADABLE]]
    more = len(unreadable) - MAX_UNREADABLE
    return [
        f"<p>Skipped {pluralize(len(unreadable), 'unreadable image')}:</p>",
        _table(("file", "reason"), rows),
        f"<p>and {more:,} more, in unreadable.csv</p>" if more > 0 else "",
    ]
