"""What tests of the command share: its answer, and how an error looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What a command answered: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


def check_refused(outcome: Outcome, *named: str) -> None:
    """Check for exit code 2 and a single line of error that names these things."""
    assert outcome.code == 2, outcome
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("convatlas: ")
    assert all(name in lines[0] for name in named), lines[0]
    assert "Traceback" not in outcome.out
