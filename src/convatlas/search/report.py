"""The report of a search: what was tried and why, as one HTML page, a CSV table and figures; at any time."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from convatlas.core.spec import cells
from convatlas.core.table import Table
from convatlas.draw import page, search
from convatlas.errors import SearchError
from convatlas.search.contestant import Contestant
from convatlas.search.settings import SearchSettings
from convatlas.search.standings import Standing, front, has_failed, is_final, standings
from convatlas.search.store import Evaluation, elapsed, quiet
from convatlas.system.files import write_text
from convatlas.system.quantities import TIME

REPORT, TRIALS_TABLE, FRONT = "report.html", "trials.csv", "front.png"

MIN_FOR_IMPORTANCE = 8
"""Fewest candidates with results for which the importance of choices is computed."""

MAX_LINEAGE = 8
"""Most steps of the lineage of the winner."""


def verdict(compared: Sequence[Standing], found: Sequence[Standing]) -> str:
    """Return which network won, and against which, in a few words. compared: the finalists, or all standings, found."""
    best = compared[0]
    text = f"{best.name} wins with {best.accuracy:.2%} on val at {1000 * best.latency:.3g} ms"
    other = next((each for each in (*compared, *found) if each.is_candidate is not best.is_candidate), None)
    if other is None:
        return f"{text}."
    nouns = {"candidate": "best candidate", "baseline": "best baseline", "pretrained": "best pretrained network"}
    text += f"; the {nouns[other.contestant.kind]}, {other.name}, "
    if other.fidelity < best.fidelity:
        text += f"had {other.accuracy:.2%} after {other.fidelity / best.fidelity:.0%} of the training"
        then = dict(best.curve).get(other.fidelity)
        text += "." if then is None else f", against {then:.2%}."
    else:
        text += f"has {other.accuracy:.2%}."
    return text if best.is_candidate else f"{text} The search did not beat it, so it is the answer."


def write_report(
    folder: Path, settings: SearchSettings, evaluations: Sequence[Evaluation], *, best: Path | None = None,
    results: Mapping[str, str] = MappingProxyType({}), is_selection: bool = False,
) -> Path:  # fmt: skip
    """Write report.html, trials.csv and front.png into the directory of a search, and return the page.

    best: the run directory of the winner, once there is one. results: of its final training, by split, in words.
    is_selection: the search was a model selection, which is not continued.
    Raises SearchError if no evaluation has ended.
    """
    found = standings(evaluations)
    if not found:
        errors = [each.error for each in evaluations if has_failed(each)]
        failed = f"; the last of {len(errors)} that failed: {errors[-1]}" if errors else ""
        raise SearchError(f"{folder}: no evaluation is complete yet, try again later{failed}")
    finals = standings(evaluations, time_s=settings.time_s)
    compared = finals if any(each.contestant.to_end for each in finals) else found
    first = compared[0]
    title = f"{'Model selection' if is_selection else 'Search'} on {Path(settings.data).name}"
    tried = [_tried(each, evaluations, settings, found) for each in found]
    limit = settings.limits.latency_s
    chart = search.front_chart(
        tried, [each.name for each in front(found)], first.name,
        limit=None if limit is None else 1000 * limit, path=folder / FRONT,
    )  # fmt: skip
    write_text(folder / TRIALS_TABLE, trials_csv(evaluations))
    options = {name: list(map(_text, values)) for name, values in settings.choices.items()}
    candidates = [each for each in tried if each.choices]
    coordinates = search.parallel_coordinates(candidates, options) if candidates else None
    parts = [
        page.header(title, f"{settings.networks}; {settings.limits}"),
        page.summary_card(
            f"{first.accuracy:.2%}", "accuracy on val of the winner",
            sentences=[verdict(compared, found), *_final_texts(results), _latency_text(settings)],
            facts=_facts(settings, evaluations, found) | ({} if is_selection else _time(settings, evaluations)),
        ),
        "" if is_selection else _commands(folder, settings, best),
        page.section(
            "Accuracy and latency",
            _figure(chart, "Filled: all of the time of a trial. The dashed line is the Pareto front.", "Pareto front"),
        ),
        page.section("Finalists", page.table(_standings_table(finals))) if finals else "",
        page.section("Networks", page.table(_standings_table(found))),
        page.section(
            "Choices",
            _figure(coordinates, "A line is a candidate.", "Parallel coordinates") if coordinates else "",
            _importance(evaluations, settings),
        ) if candidates else "",
        page.section(
            "Lineage of the best candidate", page.listing(lineage(compared, evaluations, settings)),
            lead="Each line is a candidate, the earlier one that is most like it, and what differs.",
        ) if candidates else "",
        page.section("The winner", page.pairs(_cells(first.contestant))),
        page.section("Failed", page.table(failures) if (failures := _failures(evaluations)).rows else ""),
    ]  # fmt: skip
    path = folder / REPORT
    write_text(path, page.document(title, parts))
    return path


def _figure(figure: Any, reading: str, title: str) -> str:
    return page.figure(page.PageFigure(figure, reading, {}), title)


def _tried(
    each: Standing, evaluations: Sequence[Evaluation], settings: SearchSettings, found: Sequence[Standing]
) -> search.Tried:  # fmt: skip
    codes = evaluations[each.number].choices
    space = settings.choices
    return search.Tried(
        each.contestant.name, each.contestant.kind, 1000 * each.latency, 100 * each.accuracy,
        each.fidelity == found[0].fidelity, {name: _text(space[name][code]) for name, code in codes.items()},
    )  # fmt: skip


def _text(option: Any) -> str:
    return str(option)


def _final_texts(results: Mapping[str, str]) -> list[str]:
    return [f"After the final training, {split}: {text}." for split, text in results.items()]


def _latency_text(settings: SearchSettings) -> str:
    where = "measured on this machine" if settings.measures else "predicted"
    text = f"Latencies are {where}, of one image."
    model = settings.latency
    return text if model is None else f"{text} The model that screens candidates: {model.describe()}."


def _facts(
    settings: SearchSettings, evaluations: Sequence[Evaluation], found: Sequence[Standing]
) -> dict[str, str]:  # fmt: skip
    states = [each.state for each in evaluations]
    return {
        "evaluations": str(states.count("complete")),
        "networks": str(len(found)),
        "of them for all of the time": str(sum(each.fidelity == found[0].fidelity for each in found)),
        "failed": str(sum(map(has_failed, evaluations))),
        "disturbed latencies": str(sum(map(_is_disturbed, evaluations))),
        "continued": str(sum(each.is_continued for each in evaluations)),
        "limits": str(settings.limits),
        "seed": str(settings.seed),
    }


def _is_disturbed(each: Evaluation) -> bool:
    return bool(each.metrics.get("disturbed")) or "disturbed the measurement" in each.error


def _time(settings: SearchSettings, evaluations: Sequence[Evaluation]) -> dict[str, str]:
    spent = settings.setup_s + elapsed([each for each in evaluations if not is_final(each)])
    return {"time": f"{spent / 60:.0f} of {settings.time_s / 60:.0f} min before the finalists"}


def _commands(folder: Path, settings: SearchSettings, best: Path | None) -> str:
    hours = TIME.format(round(2 * settings.time_s))
    data, out = shlex.quote(settings.data), shlex.quote(str(folder))
    lines = {"continue, or give it more time": f"convatlas search {data} --out {out} --time {hours}"}
    if best is not None:
        run = shlex.quote(str(best))
        lines |= {
            "predict": f"convatlas predict {run} IMAGES",
            "evaluate": f"convatlas evaluate {run} {data}",
            "export": f"convatlas export {run} model.onnx",
        }
    return page.commands("Commands", lines)


def _standings_table(found: Sequence[Standing]) -> Table:
    rows = tuple(
        (each.name, each.contestant.kind, f"{each.fidelity:.0%}", f"{each.accuracy:.2%}", f"{1000 * each.latency:.3g}",
         f"{each.parameters:,}", f"{each.macs:,}")
        for each in found
    )  # fmt: skip
    columns = ("network", "kind", "training", "accuracy", "ms", "parameters", "MACs")
    return Table(columns, rows, right=frozenset(range(2, len(columns))))


def _failures(evaluations: Sequence[Evaluation]) -> Table:
    rows = tuple((str(each.number), str(each.plain["name"]), each.error) for each in evaluations if has_failed(each))
    return Table(("trial", "network", "why"), rows)


def _cells(contestant: Contestant) -> dict[str, Any]:
    plain = {path: value for path, value, _ in cells(contestant.spec) if not path.endswith("type")}
    return {"spec": type(contestant.spec).__name__, **plain}


def importance(evaluations: Sequence[Evaluation], settings: SearchSettings) -> dict[str, float]:
    """Return the importance of each choice for the accuracy, by Optuna's functional ANOVA, the largest first.

    Of all candidates at the lowest fidelity, at which all can be compared; empty for fewer than eight.
    """
    import optuna

    distribution = optuna.distributions.CategoricalDistribution
    space = settings.choices
    low = settings.fidelities[0]
    chosen = [each for each in evaluations if each.state == "complete" and each.choices and each.fidelity == low]
    if len(chosen) < MIN_FOR_IMPORTANCE:
        return {}
    with quiet(optuna):
        study = optuna.create_study(direction="maximize")
    for each in chosen:
        study.add_trial(optuna.trial.create_trial(
            value=each.metrics["accuracy"], params=dict(each.choices),
            distributions={name: distribution(tuple(range(len(space[name])))) for name in each.choices},
        ))  # fmt: skip
    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (RuntimeError, ValueError):  # all accuracies are the same
        return {}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _importance(evaluations: Sequence[Evaluation], settings: SearchSettings) -> str:
    found = importance(evaluations, settings)
    rows = tuple((name, f"{share:.1%}") for name, share in found.items() if share >= 0.005)
    if not rows:
        return ""
    table = page.table(Table(("choice", "importance for accuracy"), rows, right=frozenset({1})))
    return page.subheading("Importance (functional ANOVA)") + table


def lineage(
    found: Sequence[Standing], evaluations: Sequence[Evaluation], settings: SearchSettings
) -> list[str]:  # fmt: skip
    """Return how the choices of the best candidate came about, the first one last.

    The surrogate compares all candidates and has no parents: of each candidate the line names the earlier one that
    shares the most choices with it, and the choices in which they differ.
    """
    first = {str(each.plain["name"]): each for each in reversed(evaluations) if each.choices}
    here = next((each for each in found if each.is_candidate), None)
    if here is None:
        return []
    scores = {str(each.plain["name"]): each.metrics["accuracy"] for each in evaluations if each.state == "complete"}
    space = settings.choices
    lines: list[str] = []
    current = first[here.name]
    while len(lines) < MAX_LINEAGE:
        earlier = [
            each for each in first.values() if each.number < current.number and str(each.plain["name"]) in scores
        ]
        if not earlier:
            break
        parent = max(earlier, key=lambda each: (_shared(each, current), each.number))
        changed = [
            f"{name} {_text(space[name][parent.choices[name]])} -> {_text(space[name][code])}"
            for name, code in current.choices.items()
            if parent.choices[name] != code
        ]
        lines.append(f"{_scored(current, scores)} from {_scored(parent, scores)}: {', '.join(changed)}")
        current = parent
    return lines


def _scored(each: Evaluation, scores: Mapping[str, float]) -> str:
    name = str(each.plain["name"])
    return f"{name} ({scores[name]:.2%})" if name in scores else name


def _shared(one: Evaluation, other: Evaluation) -> int:
    return sum(one.choices[name] == code for name, code in other.choices.items())


def trials_csv(evaluations: Sequence[Evaluation]) -> str:
    """Return all evaluations as CSV."""
    names = {"latency": "latency_s", "seconds": "training_s"}
    metrics = list(dict.fromkeys(name for each in evaluations for name in each.metrics))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["number", "name", "kind", "seed", "fidelity", "state", "begin_s", "end_s",
                     *(names.get(name, name) for name in metrics), "error"])  # fmt: skip
    for each in evaluations:
        plain = each.plain
        writer.writerow([
            each.number, plain["name"], plain["kind"], plain["seed"], each.fidelity, each.state, each.begin, each.end,
            *(each.metrics.get(name, "") for name in metrics), each.error,
        ])  # fmt: skip
    return text.getvalue()
