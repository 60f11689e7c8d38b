"""What an experiment leaves: a page in Markdown with its figure, its numbers in JSON, and the table of all verdicts."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from convatlas._version import __version__
from convatlas.core.table import Table
from convatlas.draw.style import save_figure
from convatlas.errors import ExperimentError, brief
from convatlas.experiments.experiment import Experiment, Size, Verdict
from convatlas.experiments.results import Results
from convatlas.system.cores import count_cores
from convatlas.system.files import write_text

INDEX = "README.md"


def write_page(experiment: Experiment, size: Size, results: Results, folder: Path) -> Verdict:
    """Write NAME.md, NAME.png and NAME.json into a folder, renew its table of verdicts, and return the verdict."""
    verdict = experiment.judge(results)
    folder.mkdir(parents=True, exist_ok=True)
    save_figure(experiment.draw(results), folder / f"{experiment.name}.png")
    write_text(folder / f"{experiment.name}.json", json.dumps(summary(experiment, size, results, verdict), indent=1))
    write_text(folder / f"{experiment.name}.md", page(experiment, size, results, verdict))
    write_text(folder / INDEX, index(folder))
    return verdict


def summary(experiment: Experiment, size: Size, results: Results, verdict: Verdict) -> dict[str, Any]:
    """Return an experiment in plain data: verdict, effects, and the metrics of every trial."""
    return {
        "name": experiment.name, "title": experiment.title, "claim": experiment.claim, "size": size,
        "verdict": verdict.word, "reason": verdict.reason, "seeds": len(_seeds(experiment, results)),
        "cpu_seconds": round(sum(row.seconds for row in results)),
        "effects": [_finite(asdict(effect)) for effect in verdict.effects],
        "rows": [
            {"arm": row.arm, "seed": row.seed, "settings": dict(row.settings), "metrics": _finite(row.metrics)}
            for row in results
        ],
    }  # fmt: skip


def _seeds(experiment: Experiment, results: Results) -> list[int]:
    """Return the seeds of the rows that are in the table; trials of a rate have one of their own."""
    return sorted({row.seed for row in results if any(metric in row.metrics for metric in experiment.metrics)})


def _finite(values: Any) -> dict[str, Any]:
    """Return values for JSON, which has no NaN and infinity."""
    numbers = (int, float)
    return {
        key: None if isinstance(value, numbers) and not abs(value) < float("inf") else value
        for key, value in values.items()
    }


def page(experiment: Experiment, size: Size, results: Results, verdict: Verdict) -> str:
    """Return the page of an experiment in Markdown."""
    seeds = sorted({row.seed for row in results if experiment.metrics.keys() & row.metrics.keys()})
    minutes = sum(row.seconds for row in results) / 60
    flags = " --full" if size == "full" else ""
    data = " --data FOLDER" if experiment.needs else ""
    parts = [
        f"# {experiment.title}",
        f"**Claim.** {experiment.claim}",
        f"**Source.** {experiment.source}",
        f"**Verdict: {verdict.word}.** {verdict.reason}",
        f"![{experiment.title}]({experiment.name}.png)",
        f"## Protocol\n\n{experiment.protocol}",
        f"## What counts as confirmed\n\nWritten before the run: {experiment.criterion}",
        f"## Numbers\n\nMean and standard deviation over the seeds {', '.join(map(str, seeds))}.\n\n"
        + markdown_table(numbers(experiment, results)),
    ]
    if verdict.effects:
        effects = "\n".join(f"- {effect.text()}" for effect in verdict.effects)
        parts.append(f"Differences, paired by seed, with Hedges' g as the effect size:\n\n{effects}")
    parts += [
        f"## What would change it\n\n{experiment.would_change}",
        f"## Repeat it\n\n```bash\nconvatlas experiment {experiment.name.replace('_', '-')}{flags}{data}\n```\n\n"
        f"{_needs(experiment)}{len(results)} trials, {minutes:.1f} minutes of CPU time, each trial on one thread. "
        f"Machine of these numbers: {count_cores()} cores ({platform.machine()}), torch {torch.__version__}, convatlas "
        f"{__version__}. The same seeds give the same numbers on the same machine.",
    ]
    return "\n\n".join(parts) + "\n"


def _needs(experiment: Experiment) -> str:
    return f"Needs {', '.join(f'`{name}`' for name in experiment.needs)}. " if experiment.needs else ""


def numbers(experiment: Experiment, results: Results) -> Table:
    """Return the mean and the standard deviation of each metric of each arm; empty where an arm has no such metric.

    An arm without any of them, such as a trial of a rate, has no row.
    """
    rows = []
    for arm in results.arms:
        of_arm = results.of(arm)
        cells = []
        for metric in experiment.metrics:
            known = all(metric in row.metrics for row in of_arm)
            cells.append(_number(results.mean(arm, metric), results.spread(arm, metric)) if known else "")
        if any(cells):
            rows.append((arm, str(len({row.seed for row in of_arm})), *cells))
    columns = ("arm", "seeds", *experiment.metrics.values())
    return Table(columns, tuple(rows), right=frozenset(range(1, len(columns))))


def _number(mean: float, spread: float) -> str:
    """Return "0.836 ± 0.0016", or the mean alone if all seeds have the same value."""
    text = f"{mean:,.0f}" if abs(mean) >= 1000 else f"{mean:.4g}"
    return text if spread <= 1e-12 * abs(mean) else f"{text} ± {spread:.2g}"


def _with_spread(mean: float, spread: float) -> str:
    """Return "0.8365 ± 0.0016", or "19,306" where all seeds have the same number."""
    digits = f"{mean:,.0f}" if abs(mean) >= 10_000 else f"{mean:.4g}"
    return f"{digits} ± {spread:.2g}" if spread else digits


def markdown_table(table: Table) -> str:
    rule = ["---:" if i in table.right else "---" for i in range(len(table.columns))]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in (table.columns, rule, *table.rows))


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def index(folder: Path) -> str:
    """Return the table of the verdicts whose numbers lie in a folder."""
    rows = [
        (f"[{each['title']}]({each['name']}.md)", each["claim"], f"**{each['verdict']}**", each["reason"])
        for each in _summaries(folder.glob("*.json"))
    ]
    head = (
        "# Statements of textbooks, tested\n\nEach statement is an experiment that says beforehand what would confirm "
        "it, has at least three seeds, and may fail. `convatlas experiment --list` lists them, `convatlas experiment "
        "NAME` runs one.\n\n"
    )
    return head + markdown_table(Table(("experiment", "claim", "verdict", "why"), tuple(rows))) + "\n"


def _summaries(files: Iterable[Path]) -> list[dict[str, Any]]:
    found = []
    for file in sorted(files):
        try:
            found.append(json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ExperimentError(f"{file}: is damaged ({brief(error)}); delete it") from error
    return found
