"""The report of a run: one HTML file that needs no other."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from convatlas.core.cost import cost
from convatlas.core.summary import totals
from convatlas.data.dataset import Images
from convatlas.draw import charts, style
from convatlas.tasks.classification import metrics
from convatlas.tasks.classification.results import Result, Tags

if TYPE_CHECKING:
    from convatlas.train.run import Run

MISTAKES, UNREADABLE = 24, 50
"""So many images, and files that could not be read, are shown at most."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 62em; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: 0; } h2 { font-size: 1.1em; margin-top: 2em; }
.big { font-size: 2.2em; font-weight: 600; color: #1f7a8c; } .quiet { color: #616e7c; }
table { border-collapse: collapse; } td, th { padding: 0.15em 1.2em 0.15em 0; text-align: left; vertical-align: top; }
th { border-bottom: 1px solid #9aa5b1; font-weight: 600; } td.n, th.n { text-align: right; }
img { max-width: 100%; } .mistakes { display: flex; flex-wrap: wrap; gap: 1em; }
figure { margin: 0; width: 8.5em; font-size: 0.8em; } figure img { width: 8.5em; height: 8.5em; object-fit: contain;
image-rendering: auto; background: #f5f7f9; } figcaption { overflow-wrap: anywhere; } b.wrong { color: #d1495b; }
"""


def report(run: Run) -> str:
    """Return the page of a finished run: what it reached, on what, how, and where it is wrong."""
    config, split = run.config, "test" if "test" in run.results else "val"
    result, images = run.results[split], run.dataset.splits[split]
    numbers = result.summary()
    chosen = " The best epoch was chosen on these images, so the number flatters." if split == "val" else ""
    parts = [
        f"<h1>{_text(config.model)} on {_text(run.dataset.name)}</h1>",
        f"<p class=quiet>{len(config.classes)} classes; {_counts(run)}; seed {config.seed}; "
        f"{_text(config.settings.device)}, {_text(run.execution)}; {run.state.seconds:,.0f} s of training</p>",
        f"<p>{_headline(split, numbers)}{chosen}</p>",
        _splits(run),
        "<h2>Learning</h2>", _figure(charts.curves(run.state.history)),
        "<h2>Where it is wrong</h2>", *_where(result, config.classes),
        *_mistakes(result, images, config.classes),
        "<h2>Is it as sure as it is right?</h2>", _figure(charts.reliability(result)),
        f"<p>Outputs are divided by a temperature of {run.temperature:.3f}, fitted on val, before they become "
        "probabilities. Dots on the dashed line: right as often as it says.</p>",
        "<h2>Cost</h2>", _pairs(totals(cost(run.network))),
        "<h2>How it was trained</h2>",
        _pairs(config.recipe.to_plain() | ({"weights": config.weights} if config.weights else {})),
        "<h2>Data</h2>", _pairs({"fingerprint": config.fingerprint, **config.preprocessing.to_plain()}),
        *_unreadable(run),
        "<h2>Made with</h2>", _pairs(config.versions),
    ]  # fmt: skip
    title = _text(f"{config.model} on {run.dataset.name}")
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
    return head + "\n".join(parts) + "</html>\n"


def _text(value: object) -> str:
    return html.escape(str(value))


def _counts(run: Run) -> str:
    return ", ".join(f"{len(images):,} {split}" for split, images in run.dataset.splits.items())


def _headline(split: str, numbers: Mapping[str, float | int]) -> str:
    if "map" in numbers:
        return (
            f"<span class=big>{numbers['map']:.2%}</span> is the mean average precision on {split}. 95 % interval "
            f"{numbers['map_low']:.2%} to {numbers['map_high']:.2%}. Every class is right for "
            f"{numbers['images'] - numbers['errors']:,} of {numbers['images']:,} images."
        )
    return (
        f"<span class=big>{numbers['accuracy']:.2%}</span> of the {split} images are right: {numbers['errors']:,} "
        f"of {numbers['images']:,} are wrong. 95 % interval {numbers['accuracy_low']:.2%} to "
        f"{numbers['accuracy_high']:.2%}."
    )


SHARES = {
    "map": "mAP", "accuracy": "accuracy", "top5": "top 5", "balanced_accuracy": "balanced", "macro_f1": "macro F1",
    "micro_f1": "micro F1",
}  # fmt: skip


def _splits(run: Run) -> str:
    """Return the numbers of every split that was measured."""
    summaries = {name: each.summary() for name, each in run.results.items()}
    shares = [key for key in SHARES if all(key in numbers for numbers in summaries.values())]
    rows = [
        (
            name, f"{numbers['images']:,}", f"{numbers['errors']:,}", *(f"{numbers[key]:.2%}" for key in shares),
            f"{numbers['loss']:.4f}", f"{numbers['ece']:.2%}",
        )
        for name, numbers in summaries.items()
    ]  # fmt: skip
    told = (SHARES[key] for key in shares)
    return _table(("split", "images", "wrong", *told, "loss", "calibration error"), rows)


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table whose columns are numbers, but for the first."""
    kinds = ["", *[" class=n"] * (len(columns) - 1)]
    head = "".join(f"<th{kind}>{_text(name)}</th>" for kind, name in zip(kinds, columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{_text(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _pairs(values: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in values.items())
    return f"<table>{rows}</table>"


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _figure(figure: Any) -> str:
    return f'<p><img alt="" src="{_data(style.png(figure), "png")}" style="max-height: 40em"></p>'


def _where(result: Result, classes: Sequence[str]) -> list[str]:
    if not isinstance(result, Tags):
        return [_figure(charts.confusion(result, classes)), _classes(result, classes)]
    found, overlooked, invented = result.counts.tolist()
    thresholds = result.thresholds.expand(len(classes)).tolist()
    rows = [
        (
            name, f"{found[i] + overlooked[i]:,}", f"{found[i]:,}", f"{invented[i]:,}", _share(precision),
            _share(2 * found[i] / max(1, 2 * found[i] + overlooked[i] + invented[i])), f"{thresholds[i]:.2%}",
        )
        for i, (name, precision) in enumerate(zip(classes, result.precisions.tolist(), strict=True))
    ]  # fmt: skip
    columns = ("class", "images", "found", "seen where it is not", "average precision", "F1", "said from")
    return [_figure(charts.precision_recall(result, classes)), _table(columns, rows)]


def _share(value: float) -> str:
    return f"{value:.2%}" if value == value else ""


def _classes(result: Result, classes: Sequence[str]) -> str:
    counts = result.confusion
    rows = zip(
        classes, counts.sum(1).tolist(), metrics.recall(counts).tolist(), metrics.f1(counts).tolist(), strict=True
    )
    told = [(name, f"{count:,}", *map(_share, values)) for name, count, *values in rows]
    return _table(("class", "images", "right", "F1"), told)


def _mistakes(result: Result, images: Images, classes: Sequence[str]) -> list[str]:
    """Return the wrong answers that were given with the most confidence, as images."""
    wrong = result.wrong.nonzero().flatten()
    if not len(wrong):
        return ["<p>No image is wrong.</p>"]
    worst = wrong[result.confidence[wrong].argsort(descending=True)][:MISTAKES].tolist()
    shown = []
    for i in worst:
        shown.append(
            f'<figure><img alt="" src="{_data(_image(images.pixels[i]), "png")}"><figcaption>'
            f"{_mistake(result, i, classes)}<br>"
            f"<span class=quiet>{_text(images.names[i].rsplit('/', 1)[-1])}</span></figcaption></figure>"
        )
    return ["<h2>The surest mistakes</h2>", f"<div class=mistakes>{''.join(shown)}</div>"]


def _mistake(result: Result, i: int, classes: Sequence[str]) -> str:
    if isinstance(result, Tags):
        told = [f"{'' if wrong_said else 'no '}{classes[label]}" for label, wrong_said in (
            (label, bool(result.predicted[i, label]))
            for label in (result.predicted[i] != result.labels[i].bool()).nonzero().flatten().tolist()
        )]  # fmt: skip
        true = ", ".join(classes[label] for label in result.labels[i].nonzero().flatten().tolist()) or "of no class"
        return f"<b class=wrong>{_text(', '.join(told))}</b><br>is {_text(true)}"
    said, true = classes[int(result.predicted[i])], classes[int(result.labels[i])]
    return f"<b class=wrong>{_text(said)}</b> {float(result.confidence[i]):.1%}<br>is {_text(true)}"


def _image(pixels: Tensor) -> bytes:
    """Return pixels (channels, h, w) as PNG: gray, RGB, or the first three of other channels."""
    array = (pixels[:3] if pixels.shape[0] >= 3 else pixels[:1]).byte()
    image = Image.fromarray(array.permute(1, 2, 0).squeeze(-1).numpy())
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return buffer.getvalue()


def _unreadable(run: Run) -> list[str]:
    unreadable = run.dataset.unreadable
    if not unreadable:
        return []
    rows = [(image.path, image.reason.removeprefix(f"{image.path}: ")) for image in unreadable[:UNREADABLE]]
    more = (
        f"<p>and {len(unreadable) - UNREADABLE:,} more, in unreadable.csv</p>" if len(unreadable) > UNREADABLE else ""
    )
    return [
        f"<p>{len(unreadable):,} images could not be read and were left out:</p>",
        _table(("file", "why"), rows),
        more,
    ]
