"""Scaling rules: a whole network made larger or smaller, by one number or to a budget.

MACs of a convolutional network grow with depth x width² x resolution². The rules state their factors so that this
product is what was asked for (`Factors.macs`); the scaled network deviates from it only because cells are rounded.
`fit_budget` searches in these rules, and guarantees more: the network is never over the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice, permutations, takewhile
from numbers import Real
from typing import Literal, TypeVar, get_args

from convatlas.core.cost import cost
from convatlas.core.spec import Spec, cells, replace_cells
from convatlas.errors import SpecError
from convatlas.models.catalog import build_fresh, resolve
from convatlas.system.quantities import COUNT, as_number

AnySpec = TypeVar("AnySpec", bound=Spec)

Rule = Literal["width", "compound", "fast"]
"""How `fit_budget` scales: width only; depth, width and resolution (`compound`); mostly width, and a little depth and
resolution (`fast`). With a budget of parameters only, the resolution does not change.
"""

MAX_PHI = 32
"""Largest compound coefficient; no network is so large."""

MAX_LOG2_SCALE = 32
"""Binary logarithm of the largest factor on the MACs."""

MIN_BUDGET_FRACTION = 0.97
"""Fraction of the budget above which the search ends."""

_MAX_LOG2_SEARCH = 24  # binary logarithm of the largest and smallest factor that the search tries
_NUM_BISECTIONS = 20
_MAX_REFINEMENTS = 8
_MAX_PAIRS = 200  # pairs of cells that are tried, one up and one down
_CELL_STEPS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Factors:
    """Factors on depths, widths and the resolution."""

    depth: float
    width: float
    resolution: float

    @property
    def macs(self) -> float:
        """The factor on the MACs, before rounding."""
        return self.depth * self.width**2 * self.resolution**2


def compound_factors(phi: float, *, alpha: float = 1.2, beta: float = 1.1, gamma: float = 1.15) -> Factors:
    """Return alpha^phi, beta^phi, gamma^phi (Tan and Le 2019, equation 3).

    Invariant: MACs grow by (alpha beta² gamma²)^phi, which is 1.92^phi for the published constants.
    """
    if not all(isinstance(base, int | float) and base >= 1 for base in (alpha, beta, gamma)):
        raise SpecError(f"scale_compound: alpha, beta and gamma must be numbers >= 1, got {alpha}, {beta}, {gamma}")
    if not (isinstance(phi, Real) and -MAX_PHI <= phi <= MAX_PHI):
        raise SpecError(f"scale_compound: phi must be in [{-MAX_PHI}, {MAX_PHI}], got {phi!r}")
    return Factors(depth=alpha**phi, width=beta**phi, resolution=gamma**phi)


def fast_factors(scale: float, *, alpha: float = 0.8) -> Factors:
    """Return s^((1 - alpha) / 2), s^(alpha / 2), s^((1 - alpha) / 4): dWr of Dollár et al. 2021, section 3.2.

    Invariant: MACs grow by `scale`, for every alpha. With alpha = 1 only the width grows; 1/3 grows all alike.
    """
    numbers = isinstance(scale, Real) and isinstance(alpha, Real)
    if not (numbers and 0 < scale <= 2.0**MAX_LOG2_SCALE and 0 <= alpha <= 1):
        raise SpecError(
            f"scale_fast: scale must be in (0, 2^{MAX_LOG2_SCALE}] and alpha in [0, 1], got {scale} and {alpha}"
        )
    rest = (1 - alpha) / 2
    return Factors(depth=scale**rest, width=scale ** (alpha / 2), resolution=scale ** (rest / 2))


def scale_compound(spec: AnySpec, phi: float, *, alpha: float = 1.2, beta: float = 1.1, gamma: float = 1.15) -> AnySpec:
    """Return the network scaled in depth by alpha^phi, width by beta^phi, resolution by gamma^phi.

    Tan and Le 2019, equation 3. phi = 0 is the same network. The published B1 to B7 were trimmed by hand and are rows
    of the catalog.
    """
    _check_spec("scale_compound", spec)
    return _scaled(spec, compound_factors(phi, alpha=alpha, beta=beta, gamma=gamma))


def scale_fast(spec: AnySpec, scale: float, *, alpha: float = 0.8) -> AnySpec:
    """Return the network with about `scale` times the MACs, scaled so that activations, and so time, grow slowly.

    Dollár et al. 2021 (arXiv 2103.06877). scale = 1 is the same network. alpha: see `fast_factors`.
    """
    _check_spec("scale_fast", spec)
    return _scaled(spec, fast_factors(scale, alpha=alpha))


def _check_spec(function: str, spec: object) -> None:
    if not isinstance(spec, Spec):
        fix = f"; ca.spec({spec!r}) returns one" if isinstance(spec, str) else ""
        raise SpecError(f"{function}: spec must be a spec, got {spec!r}{fix}")


def _scaled(spec: AnySpec, factors: Factors) -> AnySpec:
    pixels = max(spec.minimum, round(spec.resolution * factors.resolution))
    return spec.scaled(depth=factors.depth, width=factors.width, resolution=pixels)


def fit_budget(
    spec: AnySpec,
    *,
    macs: float | str | None = None,
    params: float | str | None = None,
    rule: Rule = "width",
    classes: int | None = None,
    channels: int | None = None,
) -> AnySpec:
    """Return the largest network of the rule within a budget: `macs` for one image, `params`, or both.

    Budgets are numbers, or texts such as "150M".

    Invariant: the result is within every budget, and takes at least 97 % of the tightest one wherever the steps of the
    network's cells allow it: the scale is searched first, then single cells are moved by one step. Raises SpecError if
    even the smallest network of the rule is over the budget.
    """
    _check_spec("fit_budget", spec)
    given = {"macs": macs, "params": params}
    limits = {
        name: as_number(limit, COUNT, f"fit_budget: {name}") for name, limit in given.items() if limit is not None
    }
    if not limits or not all(math.isfinite(limit) and limit > 0 for limit in limits.values()):
        raise SpecError(f"fit_budget: macs or params must be given as positive numbers, got {macs} and {params}")
    if rule not in get_args(Rule):
        raise SpecError(f"fit_budget: rule must be one of {', '.join(get_args(Rule))}, got {rule!r}")
    resolve(spec)
    keep_resolution = macs is None

    @cache
    def fraction(candidate: Spec) -> float:
        """Return the fraction of the tightest budget that the candidate takes; above 1 it is over the budget."""
        measured = cost(build_fresh(candidate, classes=classes, channels=channels, device="meta"))
        taken = {"macs": measured.macs, "params": measured.parameters}
        return max(taken[what] / limit for what, limit in limits.items())

    def fit(start: AnySpec) -> AnySpec:
        return _refine(_search_scale(start, fraction, rule, keep_resolution), fraction, keep_resolution)

    best = fit(spec)
    if fraction(best) > 1:
        others = " or ".join(other for other in get_args(Rule) if other != rule)
        raise SpecError(
            f"fit_budget: the budget must allow the smallest {type(spec).__name__} of rule {rule}, which takes "
            f"{fraction(best):.2f} times the budget; use rule {others}, or a smaller resolution"
        )
    if fraction(best) < MIN_BUDGET_FRACTION:  # a network of few cells: another depth may come closer
        for start in _other_depths(spec):
            best = max((candidate for candidate in (best, fit(start)) if fraction(candidate) <= 1), key=fraction)
            if fraction(best) >= MIN_BUDGET_FRACTION:
                break
    return best


def _other_depths(spec: AnySpec) -> Iterator[AnySpec]:
    """Yield the spec with each single depth one or two larger or smaller."""
    for path, value, kind in cells(spec):
        if kind == "depth":
            yield from _with_values(spec, path, (value + step for step in (1, -1, 2, -2) if value + step > 0))


def _search_scale(spec: AnySpec, fraction: Callable[[Spec], float], rule: Rule, keep_resolution: bool) -> AnySpec:
    """Return the largest network of the rule within the budget, or the smallest there is, by bisection."""
    scale = _scale_by(spec, rule, keep_resolution)
    low = high = 1.0
    while fraction(scale(low)) > 1 and low > 2**-_MAX_LOG2_SEARCH:
        low /= 2
    while fraction(scale(high)) <= 1 and high < 2**_MAX_LOG2_SEARCH:
        high *= 2
    best, low = scale(low), min(low, high / 2)
    for _ in range(_NUM_BISECTIONS):
        middle = math.sqrt(low * high)
        candidate = scale(middle)
        low, high = (middle, high) if fraction(candidate) <= 1 else (low, middle)
        if fraction(best) < fraction(candidate) <= 1:
            best = candidate
    return best


def _scale_by(spec: AnySpec, rule: Rule, keep_resolution: bool) -> Callable[[float], AnySpec]:
    """Return the function from a factor on the MACs to the scaled network."""

    def scale(factor: float) -> AnySpec:
        if rule == "width":
            scaled = spec.scaled(width=math.sqrt(factor))
        elif rule == "fast":
            scaled = scale_fast(spec, factor)
        else:
            scaled = scale_compound(spec, math.log(factor) / math.log(compound_factors(1).macs))
        return scaled.scaled(resolution=spec.resolution) if keep_resolution else scaled

    return scale


def _refine(best: AnySpec, fraction: Callable[[Spec], float], keep_resolution: bool) -> AnySpec:
    """Move single cells up, the best one first, then pairs of one up and one down, until the budget is used."""
    for _ in range(_MAX_REFINEMENTS):
        kinds = {path: (kind, value) for path, value, kind in cells(best) if kind and value is not None}
        movable = [path for path, (kind, _) in kinds.items() if not (keep_resolution and kind == "resolution")]
        larger, smaller = ({p: list(_steps(best, *kinds[p], up=up)) for p in movable} for up in (True, False))
        if fraction(best) >= MIN_BUDGET_FRACTION:
            break
        singles = (takewhile(lambda spec: fraction(spec) <= 1, _with_values(best, p, larger[p])) for p in movable)
        if better := [spec for spec in chain(*singles) if fraction(spec) > fraction(best)]:
            best = max(better, key=fraction)
            continue
        pairs = (
            spec
            for up, down in permutations(movable, 2)
            for lowered in _with_values(best, down, smaller[down][:3])
            for spec in _with_values(lowered, up, larger[up])
        )
        best = max((best, *(spec for spec in islice(pairs, _MAX_PAIRS) if fraction(spec) <= 1)), key=fraction)
        break
    return best


def _steps(spec: Spec, kind: str, value: int, *, up: bool) -> Iterator[int]:
    """Yield the values that are one, two, four ... steps away from that of a cell."""
    sign, last = (1, value) if up else (-1, value)
    for step in _CELL_STEPS:
        if kind != "width":
            other = value + sign * step
        else:
            other = next((w for d in range(1, 17) if (w := spec.round_width(last + sign * step * d)) != last), last)
        if other < 1 or other == last:
            return
        last = other
        yield other


def _with_values(spec: AnySpec, path: str, values: Iterable[int]) -> Iterator[AnySpec]:
    """Yield the spec with each of the values in a cell, up to the first one that the cell does not allow."""
    for value in values:
        try:
            yield replace_cells(spec, {path: value})
        except SpecError:
            return
