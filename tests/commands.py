"""What tests of the command share: its outcome, a short training, and how an error looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """Exit code, standard output and standard error of a command."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


def fit_arguments(data: object, out: object, *more: object) -> list[object]:
    """Return the arguments of a training of two epochs."""
    return ["fit", data, "--model", "lenet5_modern", "--epochs", 2, "--batch", 8, "--out", out, *more]


def check_refused(outcome: Outcome, *named: str) -> None:
    """Check for exit code 2 and a single line of error that contains these texts."""
    assert outcome.code == 2, outcome
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("convatlas: ")
    assert all(name in lines[0] for name in named), lines[0]
    assert "Traceback" not in outcome.out
