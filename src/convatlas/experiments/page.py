"""What an experiment leaves: a page in Markdown with its figure, its numbers in JSON, and the table of all verdicts."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from convatlas._version import __version__
from convatlas.core.table import Table
from convatlas.draw.style import save_figure
from convatlas.errors import ExperimentError, brief
from convatlas.experiments.experiment import VERDICTS, Experiment, Size, Verdict
from convatlas.experiments.results import Results
from convatlas.experiments.tuning import TUNING_SEED
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
    """Return the seeds of the rows that are in the table, without that of trials that choose a rate."""
    return sorted({row.seed for row in results if experiment.metrics.keys() & row.metrics.keys()} - {TUNING_SEED})


def _finite(values: Any) -> dict[str, Any]:
    """Return values for JSON, which has no NaN and infinity."""
    numbers = (int, float)
    return {
        key: None if isinstance(value, numbers) and not abs(value) < float("inf") else value
        for key, value in values.items()
    }


def page(experiment: Experiment, size: Size, results: Results, verdict: Verdict) -> str:
    """Return the page of an experiment in Markdown."""
    seeds = ", ".join(map(str, _seeds(experiment, results)))
    minutes = sum(row.seconds for row in results) / 60
    flags = f" --{size}" if size != "default" else ""
    data = " --data FOLDER" if experiment.needs else ""
    parts = [
        f"# {experiment.title}",
        f"**Claim.** {experiment.claim}",
        f"**Source.** {experiment.source}",
        f"**Verdict: {verdict.word}.** {verdict.reason}"
        + (" The size of this run is smoke: its verdict means nothing." if size == "smoke" else ""),
        f"![{experiment.title}]({experiment.name}.png)",
        f"## Protocol\n\n{experiment.protocol}" + (_settings(size, results) if size != "default" else ""),
        f"## What counts as confirmed\n\n{experiment.criterion[:1].upper()}{experiment.criterion[1:]} Written before "
        "the run.",
        f"## Numbers\n\nMean and standard deviation over the seeds {seeds}.{_choices(experiment, results)}\n\n"
        + markdown_table(numbers(experiment, results)),
    ]
    if verdict.effects:
        effects = "\n".join(f"- {effect.text()}" for effect in verdict.effects)
        parts.append(
            "Differences, paired by seed, with Hedges' g as the effect size; the intervals cover what the seeds draw, "
            f"and no other data set:\n\n{effects}"
        )
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


def _settings(size: Size, results: Results) -> str:
    """Return the numbers that all trials of another size than the default one have."""
    values: dict[str, set[float]] = {}
    for row in results:
        for name, value in row.settings.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                values.setdefault(name, set()).add(value)
    known = ", ".join(f"{name.replace('_', ' ')} {max(found):,}" for name, found in values.items() if len(found) == 1)
    return f"\n\nThe numbers above are those of the default size; this run has size {size}{': ' * bool(known)}{known}."


def _choices(experiment: Experiment, results: Results) -> str:
    """Return a note on the rows of trials that choose a rate, if the table has some."""
    found = any(row.seed == TUNING_SEED and experiment.metrics.keys() & row.metrics.keys() for row in results)
    return f" Trials with seed {TUNING_SEED} choose a rate; their rows have one seed." if found else ""


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


def markdown_table(table: Table) -> str:
    rule = ["---:" if i in table.right else "---" for i in range(len(table.columns))]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in (table.columns, rule, *table.rows))


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def index(folder: Path) -> str:
    """Return the table of the verdicts whose numbers lie in a folder."""
    found = _summaries(folder.glob("*.json"))
    rows = [
        (f"[{each['title']}]({each['name']}.md)", each["claim"], f"**{each['verdict']}**", each["reason"])
        for each in found
    ]
    counts = Counter(each["verdict"] for each in found)
    head = (
        "# Statements of textbooks, tested\n\nEach statement is an experiment that says beforehand what would confirm "
        "it, has at least three seeds, and may end as not confirmed. `convatlas experiment --list` lists them, "
        "`convatlas experiment NAME` runs one. A verdict holds for the networks, images and training times of its "
        f"page, which are small, and for no others: each page says what would change it. Of {len(found)} statements, "
        f"{', '.join(f'{counts[word]} {word}' for word in VERDICTS)}.\n\n"
    )
    return head + markdown_table(Table(("experiment", "claim", "verdict", "why"), tuple(rows))) + "\n"


def _summaries(files: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the summaries in files, as `summary` returns them. Raises ExperimentError for a file of something else."""
    found = []
    for file in sorted(files):
        try:
            plain: dict[str, Any] = json.loads(file.read_bytes())
            found.append({name: plain[name] for name in ("name", "title", "claim", "verdict", "reason")})
        except (ValueError, KeyError, TypeError) as error:
            raise ExperimentError(f"{file}: is no result of an experiment ({brief(error)}); move it away") from error
    return found
