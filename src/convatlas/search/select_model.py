"""Model selection: the networks of the catalog within limits, compared by successive halving on the data.

It is a search with the method "catalog" that ends before the training of the winner.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from convatlas.data.readers.memory import Data
from convatlas.errors import RunError, SearchError
from convatlas.models.card import LIBRARIES
from convatlas.models.catalog import FAMILIES, Stem
from convatlas.search.contestant import Contestant
from convatlas.search.counts import Counts
from convatlas.search.evaluation import TRIALS
from convatlas.search.launch import start
from convatlas.search.limits import Limits
from convatlas.search.report import write_report
from convatlas.search.settings import SearchSettings
from convatlas.search.setup import SearchOptions, halving_s, set_up
from convatlas.search.standings import has_failed, promoted, standings
from convatlas.search.store import Evaluation, TrialStore
from convatlas.search.worker import Worker
from convatlas.system.cores import count_cores
from convatlas.system.devices import resolve_device
from convatlas.system.files import write_text
from convatlas.system.progress import Progress, progress_callback
from convatlas.tasks.result import Baseline
from convatlas.train.cpu.execution import process_settings
from convatlas.train.distributed import init_distributed
from convatlas.train.initial_weights import AUTO, NONE
from convatlas.train.recipe import Recipe
from convatlas.train.recipe_fields import RecipeFields, check_fields
from convatlas.train.resume import open_run
from convatlas.train.run_folder import write_table
from convatlas.train.settings import DataOptions, ExecutionOptions, RunOptions

CANDIDATES, SELECTION = "candidates.csv", "selection.html"
"""Files in the run directory of the best network: all candidates, and the report of their comparison."""

_OF_FIT = ("out", "options", "find_lr", "on_event")
_NOTHING_KEPT = "select_model trains nothing that is kept; give it to fit, with the selected network"


@dataclass(frozen=True)
class Selected:
    """A network of the catalog in a model selection, with the input that it was trained with.

    parameters, macs, latency_s: for one image. weights: name of those that it started from; empty for random ones.
    scores: on val after each fidelity that it reached. error: why it could not be trained, or empty.
    """

    name: str
    stem: Stem
    resolution: int
    parameters: int
    macs: int
    latency_s: float
    reads: str = "images"
    weights: str = ""
    scores: tuple[float, ...] = ()
    error: str = ""

    def to_plain(self) -> dict[str, Any]:
        """Return the network as a row of candidates.csv; scores are separated by spaces."""
        family = next(family for family, rows in FAMILIES.items() if self.name in rows.variants)
        return {
            "name": self.name, "family": family, "stem": self.stem, "input_px": self.resolution,
            "parameters": self.parameters, "macs": self.macs, "weights": self.weights or None,
            "latency_ms": 1000 * self.latency_s, "scores": " ".join(map(str, self.scores)) or None,
            "error": self.error or None,
        }  # fmt: skip


@dataclass(frozen=True)
class ModelSelection:
    """The networks that were compared, the best first.

    metric: name of the score, empty if only one network is within the limits and none was trained. seconds: of training
    up to each score. baseline: what the best must be better than, on the evaluated images. page: the report, in HTML.
    threads: with which latencies were measured.
    """

    candidates: tuple[Selected, ...]
    metric: str = ""
    seconds: tuple[float, ...] = ()
    baseline: Baseline | None = None
    page: str = ""
    threads: int = 1

    @property
    def best(self) -> Selected:
        return self.candidates[0]

    @property
    def conclusive(self) -> bool:
        """Whether the best network is better than chance, or the only candidate."""
        return not self.best.scores or self.baseline is None or self.best.scores[-1] > self.baseline.upper_bound

    @property
    def warning(self) -> str:
        """What to do if the search is inconclusive; empty if it is conclusive."""
        if self.conclusive or self.baseline is None:
            return ""
        score, limit = self.baseline.score, min(1.0, self.baseline.upper_bound)
        return (
            f"search inconclusive: after {self.seconds[-1]:.0f} s, no candidate is clearly better than "
            f"{self.baseline.text} ({score:.2%}, and up to {limit:.1%} by chance on so small a val split); increase "
            "--search-time, download weights (`convatlas weights pull`), or name a network"
        )

    def write(self, folder: Path) -> None:
        """Write candidates.csv, and the report if networks were compared."""
        write_table(folder / CANDIDATES, [candidate.to_plain() for candidate in self.candidates])
        if self.page:
            write_text(folder / SELECTION, self.page)

    def data_options(self, options: DataOptions | None = None) -> DataOptions:
        """Return options for a run with the best network: stem and resolution are replaced."""
        return dataclasses.replace(options or DataOptions(), stem=self.best.stem, resolution=self.best.resolution)

    def __repr__(self) -> str:
        lines = [f"best of {len(self.candidates)} networks: {self.best.name}"]
        for each in self.candidates:
            scores = each.error or ", ".join(f"{score:.1%}" for score in each.scores)
            lines.append(
                f"  {each.name:<24} {each.resolution:>4} px {each.parameters / 1e6:>7.2f} M params "
                f"{each.macs / 1e6:>8.1f} M MACs {1000 * each.latency_s:>7.1f} ms  {scores}".rstrip()
            )
        return "\n".join([*lines, *([self.warning] if self.warning else [])])


def select_model(
    data: Data,
    limits: Limits,
    *,
    task: str | None = None,
    weights: str | None = AUTO,
    recipe: str | Recipe | None = None,
    seed: int = 0,
    download: bool = False,
    search_time: float = 300.0,
    data_options: DataOptions | None = None,
    execution: ExecutionOptions | None = None,
    progress: Progress | bool = True,
    **fields: Unpack[RecipeFields],
) -> ModelSelection:
    """Find the networks of the catalog within limits on this machine, and compare them by training on the data.

    Latencies are those of the engine torch on the CPU, with the threads of `execution` or all cores. Of each family,
    the network with the most multiply-adds within the limits competes; of more than eight, those with the best reported
    accuracy. They are compared after a quarter of their training time, and the best third, at least two, after all of
    it.
    weights: "auto": each network starts from its published weights if they are cached, or from imported ones, else
        from random weights. "none": all start from random weights. "torchvision" or "timm": only networks with cached
        weights of this library, which they start from.
    recipe, fields: as for `fit`; epochs and schedule are not used.
    download: allow to download the data set; weights are never downloaded.
    search_time: seconds of all trainings together, with their evaluations after each epoch.
    progress: a callback, True for a progress bar in terminals and notebooks, or False.
    Raises SearchError if no network is within the limits, and RunError in distributed training.
    """
    check_fields(select_model, fields, dict.fromkeys((*_OF_FIT, *RunOptions.hints()), _NOTHING_KEPT))
    weights = NONE if weights is None else weights
    if weights not in (AUTO, NONE, *LIBRARIES):
        raise RunError(f"weights: must be {', '.join((AUTO, NONE, *LIBRARIES))} for a model selection, got {weights}")
    if limits == Limits():
        raise SearchError(f"limits: one of {', '.join(Limits.hints())} must be given")
    execution = execution or ExecutionOptions()
    if init_distributed(resolve_device(execution.device)).world_size > 1:
        raise RunError("model selection runs in one process; run it first, then train its choice with torchrun")
    with (
        process_settings(threads=execution.threads),
        progress_callback(progress) as show,
        tempfile.TemporaryDirectory(prefix="convatlas-selection-") as name,
    ):
        folder = Path(name)
        if isinstance(recipe, Recipe):
            file = folder / "recipe.yaml"
            file.write_text(json.dumps(recipe.to_plain()))
            recipe = str(file)
        options = SearchOptions(
            methods=("catalog",), seed=seed, recipe=recipe, fields=dict(fields), weights=weights, task=task,
            data_options=data_options or DataOptions(), execution=execution, download=download, workers=1,
            latency_threads=execution.threads or count_cores(),
        )  # fmt: skip
        in_memory = None if isinstance(data, str | Path) else data
        settings, contestants = set_up(data, limits, search_time, options, progress=show)
        if len(contestants) == 1:
            return ModelSelection((_selected(contestants[0], settings),), threads=settings.latency_threads)
        settings = dataclasses.replace(settings, training_s=halving_s(search_time, len(contestants)))
        store = start(folder, settings, contestants)
        evaluations = _evaluate_all(folder, settings, store, in_memory, show)
        return _ranked(folder, settings, contestants, evaluations, in_memory)


def _evaluate_all(
    folder: Path, settings: SearchSettings, store: TrialStore, in_memory: Data | None, progress: Progress
) -> list[Evaluation]:  # fmt: skip
    """Evaluate all networks, then the best ones longer, and return the evaluations."""
    number = len(store.evaluations())
    total = number + promoted(number)

    def show(evaluation: Evaluation, everything: Sequence[Evaluation], left: float) -> None:
        ended = sum(each.state in ("complete", "failed") for each in everything)
        progress("successive halving", ended, max(total, ended))

    worker = Worker(folder, settings, store, data=in_memory, on_evaluation=show)
    while worker.step():
        pass
    return store.evaluations()


def _selected(
    contestant: Contestant, settings: SearchSettings, scores: Sequence[float] = (), error: str = ""
) -> Selected:  # fmt: skip
    spec = contestant.spec
    counts = Counts.of(spec, classes=settings.classes, channels=settings.channels)
    assert contestant.latency_s is not None
    return Selected(
        contestant.network, contestant.stem, spec.resolution, counts.parameters, counts.macs, contestant.latency_s,
        spec.reads, contestant.weights, tuple(scores), error,
    )  # fmt: skip


def _ranked(
    folder: Path, settings: SearchSettings, contestants: Sequence[Contestant], evaluations: Sequence[Evaluation],
    in_memory: Data | None,
) -> ModelSelection:  # fmt: skip
    """Return the networks, the best first; those that could not be trained last."""
    scores: dict[str, list[float]] = {each.name: [] for each in contestants}
    for each in evaluations:
        if each.state == "complete":
            scores[str(each.plain["name"])].append(each.metrics["accuracy"])
    errors = {
        str(each.plain["name"]): each.error for each in evaluations
        if each.state == "failed" and (has_failed(each) or not scores[str(each.plain["name"])])
    }  # fmt: skip
    found = standings(evaluations)
    if not found:
        name, error = next(iter(errors.items()))
        raise RunError(f"no candidate could be trained; {name}: {error}")
    order = [each.contestant.name for each in found]
    ranked = sorted(contestants, key=lambda each: order.index(each.name) if each.name in order else len(order))
    best = open_run(folder / TRIALS / found[0].contestant.name, data=in_memory)
    result, val = best.validate(), best.dataset.val
    assert result is not None
    assert val is not None
    page = write_report(folder, settings, evaluations, is_selection=True).read_text(encoding="utf-8")
    return ModelSelection(
        tuple(_selected(each, settings, scores[each.name], errors.get(each.name, "")) for each in ranked),
        result.headline_name or result.headline, tuple(share * settings.training_s for share in settings.fidelities),
        best.task.baseline(val.targets), page, settings.latency_threads,
    )  # fmt: skip
