"""Scaling: the published roundings, the invariants of the rules, and budgets that are used up."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convatlas.core.cost import Cost, cost
from convatlas.core.spec import Spec, cells, diff, replace_cells
from convatlas.errors import SpecError
from convatlas.models.catalog import CATALOG, build_fresh
from convatlas.models.families.efficientnet import B0
from convatlas.models.scaling import compound_factors, fast_factors, fit_budget, scale_compound, scale_fast
from tiny_networks import CLASSIFIERS, one_of_each_spec, tiny

SCALED = one_of_each_spec()


def measured(spec: Spec, *, classes: int = 1000, channels: int = 3) -> Cost:
    return cost(build_fresh(spec, classes=classes, channels=channels, device="meta"))


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize(("width", "depth"), [(0.5, 1), (1.7, 1), (1, 2), (1.4, 1.8), (0.3, 0.3), (0.05, 1)])
def test_every_family_scales(name: str, width: float, depth: float) -> None:
    spec = CATALOG[name].spec
    scaled = spec.scaled(width=width, depth=depth)
    after, before = measured(scaled, classes=10), measured(spec, classes=10)
    if width == 1:  # not every table has depths
        assert after.parameters >= before.parameters
    else:
        assert (after.parameters > before.parameters) == (width > 1)
    assert after.output.shape == (10,)
    assert all(parameter.numel() for parameter in build_fresh(scaled, classes=10, device="meta").parameters())


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"width": 0}, r"width must be a factor in \(0, 65,536\], got 0"), ({"width": 1e9}, "width must"),
        ({"width": math.nan}, "width must"), ({"depth": 1e6}, r"depth must be a factor in \(0, 1,024\]"),
        ({"depth": -1}, "depth must"), ({"depth": "2"}, "depth must"), ({"width": True}, "width must"),
    ],
)  # fmt: skip
def test_factors_beyond_any_network_are_refused(factors: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        CATALOG["resnet50"].spec.scaled(**factors)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scale_compound("resnet18", 1), r"scale_compound: spec must be a spec, .*ca\.spec\('resnet18'\)"),
        (lambda: scale_fast("resnet18", 2), "scale_fast: spec must be"),
        (lambda: fit_budget(None, macs=1e6), "got None"),
        (lambda: scale_compound(B0, "1"), "phi must be in"),
        (lambda: scale_fast(B0, None), "scale must be in"),
    ],
)
def test_arguments_of_other_types_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        call()


@pytest.mark.parametrize("name", CATALOG)
def test_a_factor_of_one_changes_nothing(name: str) -> None:
    assert CATALOG[name].spec.scaled() == CATALOG[name].spec


def test_compound_scaling_grows_macs_as_printed() -> None:
    """About twice the MACs for each step of phi (section 3.3); rounding makes it jagged."""
    macs = [measured(scale_compound(B0, phi)).macs for phi in range(5)]
    assert all(1.75 <= after / before <= 2.6 for before, after in pairwise(macs))
    assert scale_compound(B0, 0) == B0


@given(phi=st.floats(-32, 32), alpha=st.floats(1, 2), beta=st.floats(1, 2), gamma=st.floats(1, 2))
def test_compound_factors_grow_macs_by_their_product(phi: float, alpha: float, beta: float, gamma: float) -> None:
    factors = compound_factors(phi, alpha=alpha, beta=beta, gamma=gamma)
    assert factors.macs == pytest.approx((alpha * beta**2 * gamma**2) ** phi, rel=1e-9)


def test_published_compound_coefficients_about_double_the_macs() -> None:
    assert compound_factors(1).macs == pytest.approx(1.92, abs=0.005)


@given(scale=st.floats(2.0**-20, 2.0**32), alpha=st.floats(0, 1))
def test_fast_factors_grow_macs_by_the_scale(scale: float, alpha: float) -> None:
    assert fast_factors(scale, alpha=alpha).macs == pytest.approx(scale, rel=1e-9)


@pytest.mark.parametrize("name", SCALED)
def test_neutral_scales_change_nothing(name: str) -> None:
    spec = CATALOG[name].spec
    assert scale_compound(spec, 0) == spec
    assert scale_fast(spec, 1) == spec


@pytest.mark.parametrize(("phi", "parameters"), [(0.5, None), (1, 9_109_994), (2, 12_233_232), (3.5, 19_341_616)])
def test_compound_scaling_gives_the_published_networks_where_they_follow_the_formula(
    phi: float, parameters: int | None
) -> None:
    got = measured(scale_compound(B0, phi)).parameters
    assert got > 5_288_548
    if parameters is not None:
        assert got == pytest.approx(parameters, rel=0.12)


@pytest.mark.parametrize("alpha", [0.0, 1 / 3, 0.8, 1.0])
@pytest.mark.parametrize("scale", [2.0, 4.0, 8.0])
def test_fast_scaling_gives_about_the_macs_asked_for(alpha: float, scale: float) -> None:
    spec = CATALOG["regnet_y_1_6gf"].spec
    assert measured(scale_fast(spec, scale, alpha=alpha)).macs / measured(spec).macs == pytest.approx(scale, rel=0.35)


def test_fast_scaling_keeps_activations_lower_than_uniform_scaling() -> None:
    spec = CATALOG["regnet_y_1_6gf"].spec
    assert measured(scale_fast(spec, 4)).activations < measured(scale_fast(spec, 4, alpha=1 / 3)).activations


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_b0", "lenet5", "vgg11", "capsnet_reduced"])
@pytest.mark.parametrize("factor", [0.4, 1.9])
@pytest.mark.parametrize("what", ["macs", "params"])
def test_budget_is_used_up_to_three_percent(name: str, factor: float, what: str) -> None:
    row = CATALOG[name]
    size = {"classes": row.classes, "channels": row.preprocessing.channels}
    field = {"macs": "macs", "params": "parameters"}[what]
    limit = factor * getattr(measured(row.spec, **size), field)
    result = fit_budget(row.spec, **{what: limit}, **size)  # type: ignore[arg-type]
    assert 0.97 <= getattr(measured(result, **size), field) / limit <= 1


@pytest.mark.slow
@settings(max_examples=60)
@given(st.sampled_from(sorted(CLASSIFIERS)), st.floats(0.35, 3), st.sampled_from(["macs", "params"]))
def test_any_budget_of_any_network_is_used_up(name: str, factor: float, what: str) -> None:
    test_budget_is_used_up_to_three_percent(name, factor, what)


@pytest.mark.parametrize("rule", ["width", "compound", "fast"])
def test_budget_by_rule(rule: str) -> None:
    limit = 600e6
    result = fit_budget(B0, macs=limit, rule=rule)  # type: ignore[arg-type]
    assert 0.97 <= measured(result).macs / limit <= 1
    # depths are rounded up, so that any growth deepens every row
    deeper = {cell for cell in diff(B0, result) if cell.endswith("depth")}
    assert len(deeper) == (0 if rule == "width" else 7)


def test_both_budgets_hold() -> None:
    result = measured(fit_budget(B0, macs=200e6, params=2e6))
    assert result.macs <= 200e6
    assert result.parameters <= 2e6


def test_budget_of_parameters_leaves_the_resolution() -> None:
    assert fit_budget(B0, params=9e6, rule="compound").resolution == B0.resolution


@pytest.mark.parametrize(
    ("budget", "message"),
    [({}, "macs"), ({"macs": -1}, "positive"), ({"params": 10}, "smallest"), ({"macs": 1e8, "rule": "wide"}, "rule")],
)
def test_bad_budgets_are_refused(budget: dict[str, float], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        fit_budget(B0, **budget)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "call",
    [
        lambda: scale_compound(B0, 1, alpha=0.5),
        lambda: scale_fast(B0, -1),
        lambda: scale_fast(B0, 2, alpha=2),
        lambda: scale_compound(B0, 1e4),
        lambda: scale_compound(B0, math.nan),
        lambda: scale_fast(B0, math.inf),
        lambda: fit_budget(B0, macs=math.nan),
    ],
)
def test_bad_rules_are_refused(call: object) -> None:
    with pytest.raises(SpecError):
        call()  # type: ignore[operator]


@given(st.sampled_from(sorted(CLASSIFIERS)), st.data())
def test_any_cell_can_be_changed(name: str, data: st.DataObject) -> None:
    spec = tiny(name)
    path, value, _ = data.draw(st.sampled_from([c for c in cells(spec) if c[2] == "width" and c[1] is not None]))
    other = replace_cells(spec, {path: 2 * value})
    assert set(diff(spec, other)) == {path}
    # another network, and not always a larger one: MobileNet v3 expands nothing where a block is as wide as its input
    after, before = measured(other), measured(spec)
    assert (after.layers, after.auxiliary) != (before.layers, before.auxiliary)


@pytest.mark.parametrize(("values", "message"), [({"rows[0].wdith": 3}, "did you mean"), ({"stem": 0}, "integer >= 1")])
def test_unknown_cells_and_wrong_values_are_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        replace_cells(B0, values)


@given(st.floats(0.05, 20), st.integers(1, 4000))
def test_rounding_is_to_eights_and_never_far_below(factor: float, width: int) -> None:
    rounded = Spec.round_width(width * factor)
    assert rounded % 8 == 0
    assert rounded >= min(8, 0.9 * width * factor)
    assert rounded <= max(8, width * factor + 8)
    assert math.isfinite(rounded)
