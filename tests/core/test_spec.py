"""Specs: cells, scaling, differences, and the round trip through plain data."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from convatlas.core.record import read_tagged
from convatlas.core.spec import Depth, Resolution, Row, Spec, Width, cells, diff
from convatlas.errors import SpecError
from convatlas.models.catalog import CATALOG, SPEC_TYPES
from convatlas.models.families.lenet import LeNet5

factors = st.floats(0.05, 8)
names = st.sampled_from(sorted(CATALOG))


@dataclass(frozen=True)
class Stage(Row):
    width: Width
    repeats: Depth
    stride: int = 1


@dataclass(frozen=True)
class Gated(Row):
    width: Width
    repeats: Depth
    stride: int = 1
    ratio: float = 0.25


@dataclass(frozen=True)
class Twin(Row):
    width: Width
    repeats: Depth
    stride: int = 1


@dataclass(frozen=True)
class Nested(Spec):
    stages: tuple[Stage | Gated | Twin, ...] = (Stage(16, 1), Gated(40, 3, stride=2), Stage(width=80, repeats=4))
    branches: tuple[tuple[Width, ...], ...] = ((8, 16), (24,))
    last: Stage | None = None
    name: str = "nested"
    resolution: Resolution = 64
    minimum: ClassVar[int] = 32


@dataclass(frozen=True)
class Optional(Spec):
    hidden: Width | None = 64
    resolution: Resolution = 64
    minimum: ClassVar[int] = 32


TYPES: dict[str, type[Row]] = {"Nested": Nested, "Optional": Optional, **SPEC_TYPES}
SPECS: dict[str, Spec] = {"nested": Nested(), **{name: variant.spec for name, variant in CATALOG.items()}}


def spec_from_plain(data: Any, types: dict[str, type[Row]]) -> Any:
    return read_tagged(data, (Row,), "spec", types)


def reread(spec: Row) -> Any:
    return spec_from_plain(json.loads(json.dumps(spec.to_plain())), TYPES)


@pytest.mark.parametrize("name", SPECS)
def test_plain_data_reads_back_as_the_same_spec(name: str) -> None:
    assert reread(SPECS[name]) == SPECS[name]


@given(st.sampled_from(sorted(SPECS)), factors, factors, st.integers(80, 500))
def test_plain_data_of_a_scaled_spec_reads_back(name: str, width: float, depth: float, resolution: int) -> None:
    spec = SPECS[name].scaled(width=width, depth=depth, resolution=resolution)
    assert reread(spec) == spec


def test_plain_data_holds_rows_by_type() -> None:
    plain = Nested().to_plain()
    assert plain["type"] == "Nested"
    assert plain["stages"][1] == {"type": "Gated", "width": 40, "repeats": 3, "stride": 2, "ratio": 0.25}


def test_omitted_fields_have_their_defaults() -> None:
    assert spec_from_plain({"type": "Nested"}, TYPES) == Nested()


def test_an_integer_is_read_as_a_float_for_a_float_field() -> None:
    row = {"type": "Gated", "width": 8, "repeats": 1, "ratio": 1}
    ratio = spec_from_plain(row, {"Gated": Gated}).ratio
    assert ratio == 1
    assert isinstance(ratio, float)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_scaling_by_one_changes_nothing(spec: Spec) -> None:
    assert spec.scaled() == spec
    assert spec.scaled(width=1, depth=1, resolution=spec.resolution) == spec


@given(st.sampled_from(sorted(SPECS)), factors, factors)
def test_a_larger_width_factor_never_narrows_a_cell(name: str, a: float, b: float) -> None:
    small, large = (SPECS[name].scaled(width=factor) for factor in sorted((a, b)))
    for (path, low, kind), (_, high, _) in zip(cells(small), cells(large), strict=True):
        assert low <= high if kind == "width" and low is not None else low == high, path


@given(factors)
def test_depth_is_rounded_up_and_no_other_cell_changes(factor: float) -> None:
    scaled = Nested().scaled(depth=factor)
    for before, after in zip(Nested().stages, scaled.stages, strict=True):
        assert before.repeats * factor <= after.repeats < before.repeats * factor + 1
        assert dataclasses.replace(after, repeats=before.repeats) == before
    assert dataclasses.replace(scaled, stages=Nested().stages) == Nested()


def test_scaling_reaches_widths_in_nested_rows_and_tuples() -> None:
    scaled = Nested(last=Stage(32, 1)).scaled(width=2, resolution=96)
    assert [stage.width for stage in scaled.stages] == [32, 80, 160]
    assert scaled.branches == ((16, 32), (48,))
    assert scaled.last is not None
    assert scaled.last.width == 64
    assert scaled.resolution == 96
    assert [type(stage) for stage in scaled.stages] == [Stage, Gated, Stage]


def test_an_optional_width_is_scaled_and_validated() -> None:
    assert Optional().scaled(width=2).hidden == 128
    assert Optional(hidden=None).scaled(width=2).hidden is None
    with pytest.raises(SpecError, match="Optional: hidden must be a width, an integer >= 1 or null, got 0"):
        Optional(hidden=0)


@pytest.mark.parametrize("hidden", [64, None])
def test_optional_width_reads_back(hidden: int | None) -> None:
    assert reread(Optional(hidden=hidden)) == Optional(hidden=hidden)


@given(st.floats(0.01, 1e6))
@example(9.0)
@example(18.0)
def test_default_rounding_is_a_multiple_of_8_within_10_percent_below(width: float) -> None:
    rounded = Spec.round_width(width)
    assert rounded % 8 == 0
    assert rounded >= max(8, 0.9 * width)
    assert rounded <= max(8, width + 8)


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("axis", ["width", "depth"])
def test_a_factor_must_be_positive_and_finite(axis: str, factor: float) -> None:
    with pytest.raises(SpecError, match=axis):
        Nested().scaled(**{axis: factor})  # type: ignore[arg-type]


@given(names, factors)
def test_a_spec_does_not_differ_from_itself(name: str, width: float) -> None:
    spec = SPECS[name].scaled(width=width)
    assert diff(spec, spec) == {}
    assert diff(spec, reread(spec)) == {}


def test_diff_refuses_names_of_networks() -> None:
    with pytest.raises(SpecError, match=r"expected specs, such as .*, got 'resnet50'"):
        diff(Nested(), "resnet50")  # type: ignore[arg-type]


def test_diff_names_changed_cells() -> None:
    a = Nested()
    b = dataclasses.replace(a, resolution=96, stages=(Stage(24, 1), *a.stages[1:]), branches=((8, 32), (24,)))
    assert diff(a, b) == {"stages[0].width": (16, 24), "branches[0][1]": (16, 32), "resolution": (64, 96)}
    assert diff(b, a) == {path: (right, left) for path, (left, right) in diff(a, b).items()}


def test_diff_has_none_for_a_cell_that_one_side_lacks() -> None:
    a = Nested(stages=(Stage(16, 1),))
    b = Nested(stages=(Stage(16, 1), Stage(32, 2)))
    added = {"type": "Stage", "width": 32, "repeats": 2, "stride": 1}
    assert diff(a, b) == {f"stages[1].{name}": (None, value) for name, value in added.items()}


def test_diff_of_two_families_has_the_types() -> None:
    assert diff(LeNet5(), Nested())["type"] == ("LeNet5", "Nested")


def test_diff_finds_rows_that_differ_in_type_only() -> None:
    assert diff(Nested(stages=(Stage(16, 1),)), Nested(stages=(Twin(16, 1),))) != {}


@pytest.mark.parametrize("cell", [0, -3, True, 2.5, "6", None])
def test_a_bad_cell_is_named(cell: Any) -> None:
    with pytest.raises(SpecError, match=rf"LeNet5: maps\[1\] must be a width, an integer >= 1, got {cell!r}"):
        LeNet5(maps=(6, cell))
    with pytest.raises(SpecError, match=rf"LeNet5: resolution must be a resolution, an integer >= 1, got {cell!r}"):
        LeNet5(resolution=cell)
    with pytest.raises(SpecError, match=rf"Stage: repeats must be a depth, an integer >= 1, got {cell!r}"):
        Stage(width=8, repeats=cell)


@pytest.mark.parametrize("maps", [6, [6, 16], (6,), (6, 16, 120)])
def test_cells_of_another_form_are_named(maps: Any) -> None:
    with pytest.raises(SpecError, match=r"LeNet5: maps must be a list of 2 items, got"):
        LeNet5(maps=maps)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_resolution_below_the_minimum_is_an_error_with_the_minimum(spec: Spec) -> None:
    assert spec.scaled(resolution=spec.minimum).resolution == spec.minimum
    if spec.minimum > 1:
        with pytest.raises(SpecError, match=f"resolution must be >= {spec.minimum} px"):
            spec.scaled(resolution=spec.minimum - 1)


def row(**changes: Any) -> dict[str, Any]:
    """Return a plain spec of one stage, with changes to that stage."""
    return {"type": "Nested", "stages": [{"type": "Stage", "width": 8, "repeats": 1} | changes]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"type": "Nestde"}, r"spec: type must be .*got 'Nestde' \(did you mean Nested\?\)"),
        ({"type": ["Nested"]}, r"spec: type must be .*got \['Nested'\]"),
        ({"type": None}, "spec: type must be .*got None"),
        ({"stages": []}, "spec: type must be .*got None"),
        ([], r"spec: must be a table of fields, got \[\]"),
        (None, "spec: must be a table of fields, got None"),
        ({"type": "Nested", "stagse": []}, r"spec: stagse is not a field of Nested \(did you mean stages\?\)"),
        ({"type": "Nested", "resolution": "64"}, "spec: resolution must be .*an integer >= 1, got '64'"),
        ({"type": "Nested", "resolution": True}, "spec: resolution must be .*an integer >= 1, got True"),
        ({"type": "Nested", "resolution": 64.0}, r"spec: resolution must be .*an integer >= 1, got 64\.0"),
        ({"type": "Nested", "resolution": [64]}, r"spec: resolution must be .*an integer >= 1, got \[64\]"),
        ({"type": "Nested", "resolution": None}, "spec: resolution must be .*an integer >= 1, got None"),
        ({"type": "Nested", "name": 3}, "spec: name must be a text, got 3"),
        ({"type": "Nested", "stages": 8}, "spec: stages must be a list, .*got 8"),
        ({"type": "Nested", "stages": [8]}, r"spec: stages\[0\] must be Stage or Gated or Twin, got 8"),
        ({"type": "Nested", "branches": [[8], [16, "24"]]}, r"spec: branches\[1\]\[1\] must be .*, got '24'"),
        ({"type": "Nested", "last": {"type": "Gated", "width": 8, "repeats": 1}}, r"spec\.last: type must be "),
        (row(type="Nested"), r"spec\.stages\[0\]: type must be .*got 'Nested'"),
        (row(width=8.0), r"spec\.stages\[0\]: width must be a width, an integer >= 1, got 8\.0"),
        (row(width=0), r"spec\.stages\[0\]: width must be a width, an integer >= 1, got 0"),
        (row(ratio=0.5), r"spec\.stages\[0\]: ratio is not a field of Stage"),
        ({"type": "Nested", "stages": [{"type": "Stage", "width": 8}]}, r"spec\.stages\[0\]: repeats is missing"),
        ({"type": "LeNet5", "maps": [6]}, "spec: maps must be a list of 2 items"),
        ({"type": "LeNet5", "maps": [6, 16, 120]}, "spec: maps must be a list of 2 items"),
    ],
)  # fmt: skip
def test_bad_plain_data_is_an_error_with_the_path_of_the_field(data: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec_from_plain(data, TYPES)
