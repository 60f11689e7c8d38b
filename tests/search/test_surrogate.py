"""The Gaussian process: gradients, a posterior that is extended, and what it learns."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import check_grad

from convatlas.search.space import Space
from convatlas.search.surrogate import GaussianProcess, Posterior, standardize

SPACE = Space({"a": list("xyz"), "b": list("xyz"), "c": [1, 2, 4, 8], "noise": list("xy")})


def values(codes: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return codes[:, 0] * 1.0 + (codes[:, 0] == codes[:, 1]) + 0.5 * codes[:, 2] + random.normal(0, 0.01, len(codes))


def test_the_gradient_of_the_likelihood() -> None:
    random = np.random.default_rng(0)
    codes = SPACE.sample(25, random)
    positions, y = SPACE.positions(codes), standardize(values(codes, random))
    process = GaussianProcess(SPACE.ordered, noise=0.05)
    distances = [process._distance(positions, positions, name).astype(float) for name in range(4)]
    logs = process._logs + random.normal(0, 0.3, 5)
    error = check_grad(lambda x: process._loss(x, distances, y)[0], lambda x: process._loss(x, distances, y)[1], logs)
    assert error < 1e-3


def test_predictions_and_what_does_not_matter() -> None:
    random = np.random.default_rng(0)
    codes = SPACE.sample(45, random)
    process = GaussianProcess(SPACE.ordered, noise=0.05)
    process.fit(SPACE.positions(codes), values(codes, random))
    every = SPACE.all()
    mean, std = Posterior(process, SPACE.positions(codes), SPACE.positions(every)).predict(values(codes, random))
    truth = values(every, random)
    assert np.corrcoef(mean, truth)[0, 1] > 0.97
    assert np.mean(np.abs(mean - truth) < 3 * std) > 0.9
    assert process.weights[3] == process.weights.min()


@pytest.mark.parametrize("added", [1, 7])
def test_an_extended_posterior_is_the_one_that_is_computed_at_once(added: int) -> None:
    random = np.random.default_rng(0)
    codes = SPACE.sample(30, random)
    places, y = SPACE.positions(codes), values(codes, random)
    process = GaussianProcess(SPACE.ordered, noise=0.05)
    process.fit(places[:20], y[:20])
    pool = SPACE.positions(SPACE.all())
    at_once = Posterior(process, places[: 20 + added], pool)
    extended = Posterior(process, places[:20], pool)
    for place in places[20 : 20 + added]:
        extended.add(place)
    for one, other in zip(at_once.predict(y[: 20 + added]), extended.predict(y[: 20 + added]), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
