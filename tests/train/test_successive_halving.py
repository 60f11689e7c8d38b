"""Successive halving: how time is shared, who is eliminated, and the ranking."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convatlas.errors import RunError
from convatlas.train.successive_halving import TrialRecord, successive_halving


class Learner:
    """A trial whose score is a constant; `fails_after` that many seconds, training raises RunError."""

    def __init__(self, score: float, fails_after: float = float("inf")) -> None:
        self.score, self.fails_after, self.seconds = score, fails_after, 0.0

    def train(self, seconds: float) -> None:
        self.seconds += seconds
        if self.seconds > self.fails_after:
            raise RunError("the loss is not finite")

    def evaluate(self) -> float:
        return self.score


def test_the_better_half_continues() -> None:
    trials = [Learner(0.1), Learner(0.4), Learner(0.3), Learner(0.2)]
    result = successive_halving(trials, 8.0)
    assert result.ranking == (1, 2, 3, 0)
    assert [len(record.scores) for record in result.records] == [1, 2, 2, 1]
    assert result.rung_seconds == (1.0, 3.0)
    assert [trial.seconds for trial in trials] == [1.0, 3.0, 3.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20, unique=True))
def test_the_best_trial_wins_and_the_time_is_used(scores: list[float]) -> None:
    trials = [Learner(score) for score in scores]
    result = successive_halving(trials, 60.0)
    assert scores[result.ranking[0]] == max(scores)
    assert sorted(result.ranking) == list(range(len(scores)))
    used = sum(trial.seconds for trial in trials)
    assert used == pytest.approx(60.0 if len(scores) > 1 else 0.0)


def test_a_failed_trial_is_eliminated() -> None:
    trials = [Learner(0.9, fails_after=0.0), Learner(0.1), Learner(0.8, fails_after=2.0), Learner(0.7)]
    result = successive_halving(trials, 8.0)
    assert result.ranking == (3, 2, 1, 0)
    assert result.records[0] == TrialRecord((), "the loss is not finite")
    assert result.records[2] == TrialRecord((0.8,), "the loss is not finite")


def test_all_trials_may_fail() -> None:
    result = successive_halving([Learner(0.5, fails_after=0.0), Learner(0.6, fails_after=0.0)], 8.0)
    assert result.ranking == (0, 1)
    assert all(record.error for record in result.records)
    assert successive_halving([], 8.0).ranking == ()
