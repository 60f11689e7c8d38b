"""The task that annotated objects allow: boxes, masks or keypoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from convatlas.errors import DataError, listed, nearest
from convatlas.tasks.detection.base import objects_of
from convatlas.tasks.detection.skeleton import Skeleton
from convatlas.tasks.known import TASKS
from convatlas.tasks.targets import Targets
from convatlas.tasks.task import Task

FIELDS: Mapping[str, tuple[str, ...]] = {"boxes": (), "masks": ("segments",), "keypoints": ("keypoints",)}
"""What a network predicts -> the fields of `Objects` that its task needs besides boxes and labels."""

OPTIONAL = ("segments", "keypoints")
"""The fields of `Objects` that not every task needs."""

MEANING = {"segments": "masks", "keypoints": "keypoints"}


def task_predicting(predicts: str, reads: str = Task.reads) -> type[Task]:
    """Return the first registered task whose networks predict "classes", "boxes" and so on, from images or clips."""
    return next(task for task in TASKS.values() if (task.predicts, task.reads) == (predicts, reads))


def task_named(name: str) -> type[Task]:
    """Return the registered task of a short name; raises DataError for an unknown one."""
    tasks = {task.short_name: task for task in TASKS.values()}
    if name not in tasks:
        raise DataError(f"task must be one of {listed(tasks)}, got {name!r}{nearest(name, tasks)}")
    return tasks[name]


def task_of_objects(predicts: str, classes: tuple[str, ...], skeleton: Skeleton | None = None) -> Task:
    """Return the task of these classes; skeleton: of the keypoints, if networks predict them."""
    more: dict[str, Any] = {"skeleton": skeleton} if predicts == "keypoints" else {}
    return task_predicting(predicts)(classes, **more)


def missing_field(predicts: str, targets: Sequence[Targets]) -> str:
    """Return what the objects lack for a task, such as "masks"; "" if they have everything."""
    objects = [each for part in targets for each in objects_of(part)]
    lacking = (field for field in FIELDS[predicts] if all(getattr(each, field) is None for each in objects))
    return MEANING.get(next(lacking, ""), "")


def only_fields(targets: Targets, predicts: str) -> Targets:
    """Return targets whose objects have only what a task needs."""
    dropped: dict[str, Any] = {field: None for field in OPTIONAL if field not in FIELDS[predicts]}
    objects = [replace(each, **dropped) for each in objects_of(targets)]
    return targets.with_columns(objects=objects)
