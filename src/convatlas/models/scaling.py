"""Scaling rules: a network grown or shrunk as a whole, by one number or to a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain, islice, permutations, takewhile
from typing import Literal, TypeVar, get_args

from convatlas.core.cost import cost
from convatlas.core.spec import Spec, cells, changed
from convatlas.errors import SpecError
from convatlas.models.catalog import build_fresh, resolve

AnySpec = TypeVar("AnySpec", bound=Spec)

Rule = Literal["width", "compound", "fast"]
"""How a network grows to a budget: in width alone; in depth, width and resolution (`compound`); mostly in width, and a
little in depth and resolution (`fast`). A budget of parameters leaves the resolution as it is.
"""


LIMIT = 32
"""The largest compound coefficient, and the power of two of the largest factor on the MACs: no network is so large."""


def scale_compound(spec: AnySpec, phi: float, *, alpha: float = 1.2, beta: float = 1.1, gamma: float = 1.15) -> AnySpec:
    """Return the network scaled in depth by alpha^phi, width by beta^phi, resolution by gamma^phi.

    Tan and Le 2019, equation 3. MACs grow about as (alpha beta² gamma²)^phi; the published constants give 1.92^phi. The
    published B1 to B7 were trimmed by hand and are rows of the catalog.
    """
    if not all(isinstance(base, int | float) and base >= 1 for base in (alpha, beta, gamma)):
        raise SpecError(f"compound: alpha, beta and gamma are numbers from 1 on, not {alpha}, {beta}, {gamma}")
    if not -LIMIT <= phi <= LIMIT:
        raise SpecError(f"compound: phi lies between {-LIMIT} and {LIMIT}, not {phi}")
    return _scaled(spec, depth=alpha**phi, width=beta**phi, resolution=gamma**phi)


def scale_fast(spec: AnySpec, scale: float, *, alpha: float = 0.8) -> AnySpec:
    """Return the network with about `scale` times the MACs, grown in a way that keeps activations, and so time, low.

    The rule dWr of Dollár et al. 2021 (arXiv 2103.06877, section 3.2): depth by s^((1 - alpha) / 2), width by
    s^(alpha / 2), resolution by s^((1 - alpha) / 4). With alpha = 1 only the width grows; 1/3 grows all alike.
    """
    if not (0 < scale <= 2.0**LIMIT and 0 <= alpha <= 1):
        raise SpecError(f"fast: scale is above 0, up to 2^{LIMIT}, alpha between 0 and 1, not {scale} and {alpha}")
    rest = (1 - alpha) / 2
    return _scaled(spec, depth=scale**rest, width=scale ** (alpha / 2), resolution=scale ** (rest / 2))


def _scaled(spec: AnySpec, *, depth: float, width: float, resolution: float) -> AnySpec:
    pixels = max(spec.minimum, round(spec.resolution * resolution))
    return spec.scaled(depth=depth, width=width, resolution=pixels)


def fit_budget(
    spec: AnySpec,
    *,
    macs: float | None = None,
    params: float | None = None,
    rule: Rule = "width",
    classes: int | None = None,
    channels: int | None = None,
) -> AnySpec:
    """Return the network scaled to the most that fits a budget: `macs` for one image, `params`, or both.

    The result is under every budget, and within 3 % of the one that binds wherever the steps of the network's cells
    allow it: the scale is searched first, then single cells are moved by one step. Raises SpecError if even the
    smallest network of the family is over the budget.
    """
    budget = {"macs": macs, "parameters": params}
    limits = [limit for limit in budget.values() if limit is not None]
    if not limits or not all(math.isfinite(limit) and limit > 0 for limit in limits):
        raise SpecError("fit_budget: give macs, params or both, as positive numbers")
    if rule not in get_args(Rule):
        raise SpecError(f"fit_budget: rule is one of {', '.join(get_args(Rule))}, not {rule!r}")
    resolve(spec)

    @cache
    def share(candidate: Spec) -> float:
        """Return the largest share of a budget that the candidate takes; above 1 it does not fit."""
        measured = cost(build_fresh(candidate, classes=classes, channels=channels, device="meta"))
        taken = {"macs": measured.macs, "parameters": measured.parameters}
        return max(taken[what] / limit for what, limit in budget.items() if limit is not None)

    best = _refined(_largest(spec, share, rule, fixed=macs is None), share, pixels=macs is not None)
    if share(best) > 1:
        others = [other for other in get_args(Rule) if other != rule]
        raise SpecError(
            f"fit_budget: the smallest {type(spec).__name__} that the rule {rule} finds takes {share(best):.2f} times "
            f"the budget; try rule {' or '.join(others)}, or a smaller resolution"
        )
    if share(best) < CLOSE:  # a network of few cells: another depth may land closer
        for path, value, kind in cells(spec):
            if kind == "depth":
                for other in _tried(spec, path, (value + step for step in (1, -1, 2, -2) if value + step > 0)):
                    fitted = _refined(_largest(other, share, rule, fixed=macs is None), share, pixels=macs is not None)
                    best = max((s for s in (best, fitted) if share(s) <= 1), key=share)
                    if share(best) >= CLOSE:
                        return best
    return best


def _largest(spec: AnySpec, share: Callable[[Spec], float], rule: Rule, *, fixed: bool) -> AnySpec:
    """Return the largest network of the rule that is not over the budget, or the smallest there is."""
    scale = _grower(spec, rule, fixed=fixed)
    low = high = 1.0
    while share(scale(low)) > 1 and low > 2**-24:
        low /= 2
    while share(scale(high)) <= 1 and high < 2**24:
        high *= 2
    best, low = scale(low), min(low, high / 2)
    for _ in range(20):
        middle = math.sqrt(low * high)
        candidate = scale(middle)
        low, high = (middle, high) if share(candidate) <= 1 else (low, middle)
        if share(best) < share(candidate) <= 1:
            best = candidate
    return best


def _grower(spec: AnySpec, rule: Rule, *, fixed: bool) -> Callable[[float], AnySpec]:
    """Return the function from a factor on the MACs to the scaled network; `fixed` keeps the resolution."""

    def scale(factor: float) -> AnySpec:
        if rule == "width":
            scaled = spec.scaled(width=math.sqrt(factor))
        elif rule == "fast":
            scaled = scale_fast(spec, factor)
        else:
            scaled = scale_compound(spec, math.log(factor) / math.log(1.2 * 1.1**2 * 1.15**2))
        return scaled.scaled(resolution=spec.resolution) if fixed else scaled

    return scale


CLOSE = 0.97
"""How much of a budget a network should take at least."""


def _refined(best: AnySpec, share: Callable[[Spec], float], *, pixels: bool) -> AnySpec:
    """Move single cells up, the best first, and then one up and one down, until the network is close to the budget."""
    for _ in range(8):
        kinds = {path: (kind, value) for path, value, kind in cells(best) if kind and value is not None}
        movable = [path for path, (kind, _) in kinds.items() if pixels or kind != "resolution"]
        up, down = ({p: list(_steps(best, *kinds[p], up=way)) for p in movable} for way in (True, False))
        if share(best) >= CLOSE:
            break
        singles = (takewhile(lambda spec: share(spec) <= 1, _tried(best, path, up[path])) for path in movable)
        if better := [spec for spec in chain(*singles) if share(spec) > share(best)]:
            best = max(better, key=share)
            continue
        pairs = (
            spec
            for more, less in permutations(movable, 2)
            for lower in _tried(best, less, down[less][:3])
            for spec in _tried(lower, more, up[more])
        )
        best = max((best, *(spec for spec in islice(pairs, 200) if share(spec) <= 1)), key=share)
        break
    return best


def _steps(spec: Spec, kind: str, value: int, *, up: bool) -> Iterator[int]:
    """Yield the values one, two, four ... steps away from that of a cell."""
    sign, last = (1, value) if up else (-1, value)
    for step in (1, 2, 4, 8, 16):
        if kind != "width":
            other = value + sign * step
        else:
            other = next((w for d in range(1, 17) if (w := spec.round_width(last + sign * step * d)) != last), last)
        if other < 1 or other == last:
            return
        last = other
        yield other


def _tried(spec: AnySpec, path: str, values: Iterable[int]) -> Iterator[AnySpec]:
    """Yield the spec with each of the values in a cell, as far as they are allowed there."""
    for value in values:
        try:
            yield changed(spec, {path: value})
        except SpecError:
            return
