"""The registry of tasks: which ones data readers and model files know."""

from __future__ import annotations

from typing import TypeVar

from convatlas.errors import SpecError, nearest
from convatlas.tasks.task import Task

TASKS: dict[str, type[Task]] = {}
"""The registered tasks by class name; readers try them in reverse order."""

AnyTask = TypeVar("AnyTask", bound=type[Task])


def register(task: AnyTask) -> AnyTask:
    """Class decorator that registers a task for data readers and model files."""
    TASKS[task.__name__] = task
    return task


def known_losses() -> list[str]:
    """Return the names of all losses of all tasks."""
    return list(dict.fromkeys(loss for task in TASKS.values() for loss in task.losses))


def check_loss(loss: str) -> None:
    """Raise SpecError unless a registered task supports the loss, or it is "auto"."""
    known = ["auto", *known_losses()]
    if loss not in known:
        raise SpecError(f"recipe: loss must be one of {', '.join(known)}, got {loss!r}{nearest(loss, known)}")
