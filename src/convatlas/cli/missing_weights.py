"""What the command does if the weights that a training starts from are not in the cache: it asks once, or stops."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from convatlas.cli import console
from convatlas.errors import InputError, WeightsNotCachedError
from convatlas.system.download import offline

Outcome = TypeVar("Outcome")

QUESTION = "[d]ownload, [r]andom weights, or [s]top? "


def with_weights(start: Callable[[Mapping[str, Any]], Outcome], options: Mapping[str, Any]) -> Outcome:
    """Return what `start` returns for the options of a training; if weights are missing, for those that a person chose.

    Raises InputError if nobody can be asked, or the answer is to stop.
    """
    try:
        return start(options)
    except WeightsNotCachedError as error:
        download = "CONVATLAS_OFFLINE is set" if offline() else "--download downloads the published weights"
        fixes = f"{download}, --weights none starts from random ones"
        if not _can_ask():
            raise InputError(f"{error.problem}; {fixes}") from None
        answer = _ask(error)
        if answer is None:
            raise InputError(f"stopped; {fixes}") from None
    return start({**options, **answer})


def _can_ask() -> bool:
    """Return whether a person sees the question and can answer it."""
    return "RANK" not in os.environ and sys.stdin.isatty() and sys.stderr.isatty()


def _ask(error: WeightsNotCachedError) -> dict[str, Any] | None:
    """Return the options that the answer changes; None to stop."""
    size = f" ({error.size_mib:,.0f} MiB)" if error.size_mib else ""
    console.print_warning(f"{error.problem}{size}")
    answers: dict[str, dict[str, Any] | None] = {"d": {"download": True}, "r": {"weights": "none"}, "s": None}
    question = QUESTION
    if offline():
        del answers["d"]
        question = QUESTION.replace("[d]ownload, ", "offline: ")
    while True:
        console.errors.print(question, end="")
        line = sys.stdin.readline()
        if not line:
            return None
        answer = line.strip().lower()[:1]
        if answer in answers:
            return answers[answer]
