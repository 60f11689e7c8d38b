"""The report of a run, one self-contained HTML file, and its learning curves."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from convatlas.core.cost import Cost, Totals, totals_of
from convatlas.core.network import Network
from convatlas.core.table import Table
from convatlas.data.dataset import Dataset
from convatlas.draw import charts
from convatlas.draw.page import (
    PageFigure,
    beside,
    code,
    commands,
    document,
    figure,
    fold,
    header,
    listing,
    pairs,
    paragraph,
    section,
    table,
)
from convatlas.errors import brief, shorten
from convatlas.explanation.statistics import MeasuredStep
from convatlas.system.files import write_text
from convatlas.tasks.result import Result
from convatlas.tasks.result_page import (
    as_sentence,
    metrics_table,
    result_sections,
    result_summary,
    unreadable_files,
)
from convatlas.tasks.table import pluralize
from convatlas.tasks.task import Calibration
from convatlas.train.diagnosis import Diagnosis
from convatlas.train.fit_command import fit_command, nearest_recipe
from convatlas.train.run_folder import CURVES, MODEL, REPORT, UNREADABLE
from convatlas.train.settings import RunConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_FACT = 30
"""Maximum length of a fact in the summary; of a longer one the middle is left out."""

MAX_CLASSES = 200
"""Maximum number of classes whose images are counted in a table."""


@dataclass(frozen=True)
class ReportData:
    """The contents of a report.

    folder: the run directory. history: one row of metrics for each epoch. seconds: of training. diagnostics: measured
    steps. curves: the learning curves, if they are drawn already.
    """

    folder: Path
    config: RunConfig
    dataset: Dataset
    network: Network
    results: Mapping[str, Result]
    calibration: Calibration
    history: Sequence[Mapping[str, float]]
    seconds: float
    diagnostics: tuple[MeasuredStep, ...] = ()
    curves: Figure | None = None

    @property
    def split(self) -> str:
        """The split that the report is about."""
        return "test" if "test" in self.results else "val"

    @property
    def model_file(self) -> Path:
        return self.folder / MODEL

    @property
    def best_epoch(self) -> int:
        """The number of the epoch in the model file; 0 for a run without epochs."""
        return int(max((row["epoch"] for row in self.history if row.get("best")), default=0))


def write_reports(folder: Path, data: ReportData, note: Callable[[str], None]) -> None:
    """Write curves.png and report.html of a finished run.

    A failure, whatever it is, must not keep the run from being finished: `note` is called with a line about it.
    """

    def write_curves(path: Path) -> None:
        nonlocal data
        drawn = charts.curves(data.history, data.config.task.progress_columns, path=path)
        data = dataclasses.replace(data, curves=drawn)

    writers: dict[str, Callable[[Path], object]] = {
        CURVES: write_curves,
        REPORT: lambda path: write_text(path, report(data)),
    }
    for name, write in writers.items():
        try:
            write(folder / name)
        except Exception as error:
            note(f"{name} cannot be written ({type(error).__name__}: {brief(error)})")


def report(data: ReportData) -> str:
    """Return the report of a finished run as a page of HTML, the result first."""
    config, result, images = data.config, data.results[data.split], data.dataset.splits[data.split]
    counts = ", ".join(f"{len(part):,} {name}" for name, part in data.dataset.splits.items())
    counted = totals_of(data.network)
    title = f"{config.model} on {data.dataset.name}"
    classes = pluralize(len(config.task.classes), "class")
    return document(title, [
        header(title, f"{classes}; {config.task.noun}s: {counts}; seed {config.seed}"),
        result_summary(
            result, data.split, baseline=config.task.baseline(images.targets), sentences=_sentences(data),
            facts=_facts(data, counted),
        ),
        _next_commands(data.model_file, config.task.noun),
        beside(
            section("Learning curves", figure(_curves(data), "learning curves")),
            section("Metrics", metrics_table(data.results), _calibration(data.calibration)), first=True,
        ),
        *result_sections(result, images.pixels, images.names),
        _flow_section(data),
        _data_section(data),
        beside(_how_it_was_run(data), section("Cost of the network", pairs(_totals(counted)))),
        _recipe_section(data),
    ])  # fmt: skip


def _sentences(data: ReportData) -> list[str]:
    """Return the result in words, and what limits it."""
    result, config = data.results[data.split], data.config
    sentences = [as_sentence(result.text())]
    if data.split == "val":
        sentences.append(
            f"The best epoch was chosen on these {config.task.noun}s, so the result is optimistically biased; only a "
            "test split gives an unbiased one."
        )
    last = 1 < config.recipe.epochs == len(data.history) == data.best_epoch
    if last and data.dataset.val is not None and result.score < 1:
        sentences.append("The last epoch was the best one: a longer training may be better.")
    if data.dataset.unreadable:
        sentences.append(f"{pluralize(len(data.dataset.unreadable), f'unreadable {config.task.noun}')} skipped.")
    return sentences


def _facts(data: ReportData, counted: Cost | Totals) -> dict[str, str]:
    config, epochs = data.config, len(data.history)
    chosen = f"{data.best_epoch} of {epochs}" if data.dataset.val is not None else f"{epochs}, the last one"
    return {
        "epoch": chosen,
        "training time": _duration(data.seconds),
        "time per epoch": _duration(data.seconds / max(1, epochs)),
        "initial weights": shorten(Path(config.weights).name, MAX_FACT) or "random",
        "input": config.preprocessing.input_text,
        "parameters": _count(counted.parameters),
        f"MACs for one {config.task.reads[:-1]}": _count(counted.macs),
        "model file": _file_size(data.model_file),
    }


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _count(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def _file_size(path: Path) -> str:
    return f"{path.stat().st_size / 2**20:.2f} MiB" if path.is_file() else ""


def _next_commands(model_file: Path, noun: str) -> str:
    """Return the commands that use the model. noun: what it predicts, "image" or "video"."""
    model = shlex.quote(str(model_file))
    return commands("Next steps", {
        f"predict new {noun}s": f"convatlas predict {model} {noun.upper()}S",
        "export it": f"convatlas export {model} --to onnx",
        "serve it over HTTP": f"convatlas serve {model}",
    })  # fmt: skip


def _curves(data: ReportData) -> PageFigure:
    reading = "Loss (logarithmic axis) of each epoch, measured while the network trains, with augmentation."
    if data.dataset.val is not None:
        reading = (
            "Loss (logarithmic axis) and metric after each epoch. Train is measured while the network trains, with "
            "augmentation and in training mode, so it is often above val, which is measured after the epoch."
            if any("val_loss" in row for row in data.history)
            else f"{reading[:-1]}, and the metric of val after it."
        )
    return PageFigure(data.curves or charts.curves(data.history, data.config.task.progress_columns), reading, {})


def _flow_section(data: ReportData) -> str:
    """Return gradients, updates and dead units by layer and epoch, and what goes wrong."""
    if not data.diagnostics:
        return ""
    diagnosis = Diagnosis.of(data.config.model, data.config, data.diagnostics, data.history)
    reading = (
        "Layers from the input (top) to the output, in one step of each epoch; darker is larger. Gradients that vanish "
        "fade towards the top; a light row of update-to-weight ratios is a layer that hardly learns."
    )
    numbers = fold("The most extreme numbers, and from where on they are wrong", table(diagnosis.table()))
    lines = [line.strip() for line in diagnosis.verdict().splitlines()]
    return section(
        "Gradients and activations by layer", listing([as_sentence(line) for line in lines]),
        figure(PageFigure(diagnosis.figure(), reading, {}), "gradients and activations by layer"), numbers,
    )  # fmt: skip


def _totals(counted: Cost | Totals) -> dict[str, str]:
    """Return the cost of the network, without the connections, which only papers of the 1990s count."""
    return {name: value for name, value in counted.totals().items() if name != "connections"}


def _calibration(calibration: Calibration) -> str:
    if calibration.temperature == Calibration().temperature:
        return ""
    return paragraph(
        f"Outputs are divided by a temperature of {calibration.temperature:.3f}, fitted on val, before they become "
        "probabilities."
    )


def _data_section(data: ReportData) -> str:
    """Return the path of the data, the images of each class and split, and what was skipped."""
    config, dataset = data.config, data.dataset
    about = pairs({"path": config.data, "fingerprint": config.fingerprint})
    steps = fold("Preprocessing", pairs(config.preprocessing.to_plain()))
    unreadable = [(image.path, image.reason) for image in dataset.unreadable]
    faults = [fault.text() for fault in config.annotation_faults]
    left_out = listing((*dataset.remarks, *faults)) + unreadable_files(unreadable, all_in=UNREADABLE)
    return section("Data", beside(_class_counts(dataset), f"{about}{left_out}{steps}"))


def _class_counts(dataset: Dataset) -> str:
    counts = {split: dataset.task.class_counts(images.targets) for split, images in dataset.splits.items()}
    present = {split: numbers.tolist() for split, numbers in counts.items() if numbers is not None}
    if not present:
        return ""
    rows = [(name, *(f"{numbers[i]:,}" for numbers in present.values())) for i, name in enumerate(dataset.classes)]
    more = paragraph(f"and {len(rows) - MAX_CLASSES:,} more classes") if len(rows) > MAX_CLASSES else ""
    columns = ("class", *present)
    return table(Table(columns, tuple(rows[:MAX_CLASSES]), right=frozenset(range(1, len(columns))))) + more


def _how_it_was_run(data: ReportData) -> str:
    config = data.config
    execution = config.execution
    threads = f", {pluralize(execution.threads, 'thread')}" if execution.threads else ""
    command = fit_command(config)
    facts = {
        "run directory": data.folder,
        "device": f"{execution.device}{threads}",
        "arithmetic": f"{execution.precision}, {execution.memory_format}",
        "seconds per epoch": _spread(_epoch_seconds(data.history)),
        "versions": ", ".join(f"{name} {version}" for name, version in config.versions.items()),
    }
    return section("How it was run", paragraph("The command that repeats it:") + code(command) if command else "",
                   pairs(facts))  # fmt: skip


def _spread(values: Sequence[float]) -> str:
    """Return the median, and the smallest and the largest value."""
    if not values:
        return ""
    return f"{median(values):.1f} (median), {min(values):.1f} to {max(values):.1f}"


def _epoch_seconds(history: Sequence[Mapping[str, float]]) -> list[float]:
    """Return the seconds of each epoch from those since the start."""
    ends = [row.get("elapsed_s", 0.0) for row in history]
    return [end - start for start, end in zip([0.0, *ends], ends, strict=False)]


def _recipe_section(data: ReportData) -> str:
    """Return the recipe as differences from the nearest one with a name; all fields in a fold."""
    name, changes = nearest_recipe(data.config.recipe)
    every = fold("All fields of the recipe", pairs(data.config.recipe.to_plain()))
    if not changes:
        return section("Recipe", every, lead=f"The recipe {name}, unchanged.")
    rows = tuple((field, _value(own), _value(base)) for field, (base, own) in changes.items())
    return section("Recipe", table(Table(("field", "this run", name), rows)), every, lead=f"As {name}, but for:")


def _value(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
