"""The settings of a search, which all of its workers read: `search.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from convatlas.core.preprocessing import Preprocessing
from convatlas.core.record import Record, above, at_least, between
from convatlas.errors import SearchError, brief
from convatlas.models.catalog import SPEC_TYPES
from convatlas.search.budgeted import BudgetedSpace
from convatlas.search.latency import LatencyMeter, LatencyModel
from convatlas.search.limits import Limits, Objective, hard_limits
from convatlas.search.space import SpecSpace
from convatlas.system.files import write_text
from convatlas.tasks.known import TASKS
from convatlas.tasks.task import Task
from convatlas.train.settings import DataOptions, ExecutionOptions

SETTINGS = "search.json"
"""File of the settings in the directory of a search."""


Candidates = Literal["none", "quick", "random", "supernet"]
"""How candidates are chosen: by two Gaussian processes, at random, or by their accuracy in a supernet."""

SUPERNET_SHARE, RANKING_SHARE = 0.25, 0.05
"""Shares of the time in which a supernet is trained, and in which it ranks candidates."""


@dataclass(frozen=True)
class SearchSettings(Record):
    """What a search was started with, and what was measured at its start.

    space: a spec with choices as plain data; None if nothing is drawn from one. task, preprocessing, train_images: of
    the data. time_s: of the whole search. search_share: of it until the finalists are chosen.
    training_s: of a candidate at full fidelity. fidelities: shares of it after which candidates are compared.
    recipe: name or file, None for that of the network. fields: of the recipe. engine, latency_threads: of the network
    when it is deployed. latency: predicts latencies; None if all are measured.
    measures: whether latencies are measured on this machine, or predicted by a model of another one.
    candidates: how they are chosen; "none" if only baselines and pretrained networks compete. most_macs: of a candidate
    that learns enough in its time; None without a cap.
    task_name: of the task, if it is not that of the data. note: what the user should know about the space.
    execution: of the training steps of each worker. storage: the URL of a database; None for a journal file. study: the
    name of the study in it.
    """

    version = 1
    error = SearchError

    data: str
    space: Mapping[str, Any] | None
    space_name: str
    limits: Limits
    task: Task
    preprocessing: Preprocessing
    data_options: DataOptions
    train_images: Annotated[int, at_least(1)]
    time_s: Annotated[float, above(0)]
    setup_s: Annotated[float, at_least(0)]
    search_share: Annotated[float, above(0)]
    training_s: Annotated[float, above(0)]
    fidelities: tuple[float, ...]
    engine: str
    latency_threads: Annotated[int, at_least(1)]
    latency: LatencyModel | None
    measures: bool
    study: str
    seed: Annotated[int, between(0, 2**32 - 1)]
    objective: Objective
    execution: ExecutionOptions
    workers: Annotated[int, at_least(1)]
    candidates: Candidates = "quick"
    most_macs: int | None = None
    task_name: str | None = None
    note: str = ""
    recipe: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    storage: str | None = None

    @property
    def classes(self) -> int:
        return self.task.outputs

    @property
    def channels(self) -> int:
        return self.preprocessing.channels

    @property
    def search_s(self) -> float:
        """Seconds of evaluations, until the finalists are chosen."""
        return self.search_share * self.time_s - self.setup_s

    @property
    def supernet_s(self) -> float:
        """Seconds in which a supernet is trained."""
        return SUPERNET_SHARE * self.time_s

    @property
    def ranking_s(self) -> float:
        """Seconds in which a supernet ranks candidates."""
        return RANKING_SHARE * self.time_s

    @cached_property
    def spec_space(self) -> SpecSpace | None:
        """The space without its limits."""
        if self.space is None:
            return None
        kind = SPEC_TYPES[self.space["type"]]
        return SpecSpace(kind.from_plain(self.space, where=SETTINGS, known=SPEC_TYPES))

    @cached_property
    def budgeted_space(self) -> BudgetedSpace:
        """The candidates within the limits that learn enough in their time, of a search that has candidates."""
        assert self.spec_space is not None
        assert self.latency is not None
        limits = self.hard_limits
        if self.most_macs is not None:
            limits = replace(limits, macs=min(self.most_macs, limits.macs or math.inf))
        return BudgetedSpace(self.spec_space, limits, self.latency, classes=self.classes, channels=self.channels)

    @property
    def networks(self) -> str:
        """What competes, in a few words."""
        return "networks of the catalog" if self.space is None else f"{self.space_name} space"

    @property
    def choices(self) -> Mapping[str, tuple[Any, ...]]:
        """The choices of the space and their options."""
        return {} if self.spec_space is None else self.spec_space.choices

    @property
    def measures_here(self) -> bool:
        """Whether this process measures latencies; on another kind of machine, the model of the first one predicts."""
        return self.measures and (self.latency is None or self.latency.is_of_this_machine)

    @property
    def hard_limits(self) -> Limits:
        """The limits that no network may exceed: with a soft objective, not that of the latency."""
        return hard_limits(self.limits, self.objective)

    @property
    def meter(self) -> LatencyMeter:
        """What measures latencies in the form that is deployed."""
        return LatencyMeter(self.preprocessing, self.task, self.engine, self.latency_threads)

    def write(self, folder: Path) -> None:
        """Write search.json."""
        write_text(folder / SETTINGS, json.dumps(self.to_plain(), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> SearchSettings:
        """Read search.json; raises SearchError if it is missing or damaged."""
        path = folder / SETTINGS
        if not path.is_file():
            raise SearchError(f"{folder}: is not the directory of a search (there is no {SETTINGS})")
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise SearchError(f"{path}: damaged ({brief(error)})") from error
        return cls.from_plain(plain, where=str(path), known={**SPEC_TYPES, **TASKS})
