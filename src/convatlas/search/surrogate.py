"""A Gaussian process on candidates of a search space: the expected value of those that were not evaluated."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize

Array = NDArray[np.floating]

SCALE = 2.4
"""Sum of the weights of all names before the data: candidates that share no choice have a correlation of 0.09."""

PRECISION = 0.1
"""Of the normal prior of the logarithm of a weight."""

MAX_FITTED = 500
"""Weights are fitted to at most so many candidates, the last ones."""


class GaussianProcess:
    """A Gaussian process whose covariance is exp(-sum of weight x distance over the names), plus noise.

    The distance of two choices is 0 or 1, or the difference of their ranks if they are ordered, so a weight says how
    much a name matters (automatic relevance determination). Weights and noise are those of the largest likelihood
    (Rasmussen and Williams 2006, section 5.4.1, and 2.2 for the predictions).
    positions (n, names): see `Space.positions`. ordered (names,).
    """

    def __init__(self, ordered: NDArray[np.bool_], *, noise: float) -> None:
        self.ordered = ordered
        self._log_prior = np.log(SCALE / len(ordered))
        self._logs = np.append(np.full(len(ordered), self._log_prior), np.log(noise))

    @property
    def weights(self) -> Array:
        """How much each name matters, (names,)."""
        weights: Array = np.exp(self._logs[:-1])
        return weights

    def fit(self, positions: Array, values: Array) -> None:
        """Choose weights and noise by the values (n,)."""
        positions, values = positions[-MAX_FITTED:], standardize(values[-MAX_FITTED:])
        distances = [self._distance(positions, positions, name) for name in range(len(self.ordered))]
        low, high = np.log(1e-4), np.log(10.0)
        bounds = [(low, high)] * len(distances) + [(np.log(1e-5), np.log(3.0))]
        done = minimize(
            self._loss, self._logs, (distances, values), jac=True, method="L-BFGS-B", bounds=bounds,
            options={"maxiter": 25},
        )  # fmt: skip
        self._logs = done.x

    def _loss(self, logs: Array, distances: list[Array], values: Array) -> tuple[float, Array]:
        """Return the negative logarithm of likelihood x prior, and its gradient."""
        weights, noise, n = np.exp(logs[:-1]), np.exp(logs[-1]), len(values)
        smooth = np.exp(-sum(weight * distance for weight, distance in zip(weights, distances, strict=True)))
        lower = np.linalg.cholesky(smooth + noise * np.eye(n))
        inverse = cho_solve((lower, True), np.eye(n))
        solved = inverse @ values
        amplitude = max(values @ solved / n, 1e-12)
        off = logs[:-1] - self._log_prior
        loss = 0.5 * n * np.log(amplitude) + np.log(np.diag(lower)).sum() + 0.5 * PRECISION * off @ off
        slope = 0.5 * (inverse - np.outer(solved, solved) / amplitude)
        smooth *= slope
        of_weights = [-np.vdot(smooth, distance) * weight for weight, distance in zip(weights, distances, strict=True)]
        return float(loss), np.append(of_weights + PRECISION * off, np.trace(slope) * noise)

    def covariance(self, first: Array, second: Array) -> Array:
        """Return the covariance of two sets of candidates without noise, (n, m), for an amplitude of 1."""
        exponent = np.zeros((len(first), len(second)), dtype=np.float32)
        for name, weight in enumerate(self.weights.astype(np.float32)):
            exponent -= weight * self._distance(first, second, name)
        return np.exp(exponent, out=exponent)

    @property
    def noise(self) -> float:
        return float(np.exp(self._logs[-1]))

    def _distance(self, first: Array, second: Array, name: int) -> Array:
        difference = first[:, name, None] - second[None, :, name]
        return np.abs(difference) if self.ordered[name] else (difference != 0).astype(np.float32)


class Posterior:
    """A Gaussian process after some values, at the candidates of a pool.

    A further candidate costs (evaluated x pool) operations, because the factors are extended instead of computed again.
    """

    def __init__(self, process: GaussianProcess, positions: Array, pool: Array) -> None:
        self._process, self._positions, self._pool = process, positions, pool
        covariance = process.covariance(positions, positions).astype(np.float64)
        covariance[np.diag_indices(len(positions))] += process.noise
        self._lower = np.linalg.cholesky(covariance)
        cross = process.covariance(positions, pool)
        self._solved = solve_triangular(self._lower.astype(np.float32), cross, lower=True, check_finite=False)
        self._explained = np.einsum("ij,ij->j", self._solved, self._solved)

    def keep(self, indices: NDArray[np.int64], *, room: int) -> None:
        """Keep these candidates of the pool only, and make room for that many further values."""
        n = len(self._positions)
        self._pool, self._explained = self._pool[indices], self._explained[indices]
        solved = np.empty((n + room, len(indices)), dtype=np.float32)
        solved[:n] = self._solved[:n, indices]
        self._solved = solved

    def add(self, position: Array) -> None:
        """Add an evaluated candidate, (names,)."""
        row, n = position[None], len(self._positions)
        link = solve_triangular(self._lower, self._process.covariance(self._positions, row)[:, 0], lower=True)
        corner = np.sqrt(max(1 + self._process.noise - link @ link, 1e-9))
        lower = np.zeros((n + 1, n + 1))
        lower[:n, :n], lower[n, :n], lower[n, n] = self._lower, link, corner
        self._lower, self._positions = lower, np.concatenate((self._positions, row))
        if n == len(self._solved):
            self._solved = np.concatenate((self._solved, np.empty_like(self._solved)))
        new = self._process.covariance(row, self._pool)[0] - link.astype(np.float32) @ self._solved[:n]
        new /= np.float32(corner)
        self._solved[n] = new
        self._explained += new**2

    def predict(self, values: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation at the pool, (pool,) each, for the values of the evaluated candidates."""
        mean, scale = values.mean(), values.std() + 1e-12
        whitened = solve_triangular(self._lower, (values - mean) / scale, lower=True)
        amplitude = max(whitened @ whitened / len(values), 1e-12)
        means = mean + scale * (whitened.astype(np.float32) @ self._solved[: len(whitened)])
        return means, scale * np.sqrt(amplitude * np.clip(1 - self._explained, 1e-6, None))


def standardize(values: Array) -> Array:
    standard: Array = (values - values.mean()) / (values.std() + 1e-12)
    return standard
