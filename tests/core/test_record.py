"""Records: validation of every field, plain data and back, versions, inlined and tagged records, replaced fields."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, field
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convatlas.core.record import (
    Bounds,
    Inline,
    Record,
    above,
    at_least,
    between,
    check_version,
    describe,
    from_up_to,
    read_tagged,
)
from convatlas.errors import ConvatlasError, RunError, SpecError

Finite = Annotated[float, Bounds()]


@dataclass(frozen=True)
class Noise(Record):
    strength: Annotated[float, between(0, 1)] = 0.0
    kind: Literal["none", "gauss"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strength and self.kind == "none":
            raise SpecError("Noise: kind must not be none for a strength above 0")


@dataclass(frozen=True)
class Shape(Record):
    """The base of tagged records."""

    tagged = True


@dataclass(frozen=True)
class Circle(Shape):
    radius: Annotated[float, above(0)] = 1.0


@dataclass(frozen=True)
class Square(Shape):
    side: Annotated[int, at_least(1)]
    inner: Shape | None = None


@dataclass(frozen=True)
class Plan(Record):
    version = 3
    error = RunError

    steps: Annotated[int, at_least(1)]
    rate: Annotated[float, above(0)] = 0.1
    share: Annotated[float, from_up_to(0, 1)] = 0.5
    offset: Finite = 0.0
    limit: Annotated[int, between(1, 9)] | None = None
    name: str = ""
    active: bool = True
    mode: Literal["fast", "exact", 2] = "fast"
    sizes: tuple[Annotated[int, at_least(0)], ...] = ()
    pair: tuple[int, float] = (0, 0.0)
    notes: Mapping[str, Finite] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    shape: Shape = field(default_factory=Circle)
    shapes: tuple[Shape, ...] = ()
    noise: Annotated[Noise, Inline()] = field(default_factory=Noise)


KNOWN: dict[str, type[Record]] = {"Circle": Circle, "Square": Square}


def reread(record: Record) -> Any:
    return type(record).from_plain(json.loads(json.dumps(record.to_plain())), known=KNOWN)


# --- bounds


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "text"),
    [
        (at_least(0), [0, 1, 1e300], [-1e-9, -1], " >= 0"),
        (above(0), [1e-300, 5], [0, -0.0, -1], " > 0"),
        (between(-1, 0.5), [-1, 0, 0.5], [-1.001, 0.501], " in [-1, 0.5]"),
        (from_up_to(0, 1), [0, 0.999], [1, -0.1], " in [0, 1)"),
        (Bounds(2, 3, low_open=True), [2.001, 3], [2, 3.001], " in (2, 3]"),
        (Bounds(), [-1e300, 0, 1e300], [], ""),
        (between(0, 2**32 - 1), [0, 2**32 - 1], [2**32], " in [0, 4294967295]"),
        (between(0, 0.99999), [0.99999], [1.0], " in [0, 0.99999]"),
    ],
)
def test_bounds(bounds: Bounds, inside: list[float], outside: list[float], text: str) -> None:
    assert all(value in bounds for value in inside)
    assert not any(value in bounds for value in [*outside, math.nan, math.inf, -math.inf])
    assert str(bounds) == text


# --- validation


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"steps": True}, "steps must be an integer >= 1, got True"),
        ({"steps": 2.0}, "steps must be an integer >= 1, got 2.0"),
        ({"rate": 0.0}, "rate must be a number > 0, got 0.0"),
        ({"rate": math.nan}, "rate must be a number > 0, got nan"),
        ({"rate": math.inf}, "rate must be a number > 0, got inf"),
        ({"rate": False}, "rate must be a number > 0, got False"),
        ({"share": 1}, "share must be a number in [0, 1), got 1"),
        ({"offset": -math.inf}, "offset must be a number, got -inf"),
        ({"limit": 10}, "limit must be an integer in [1, 9] or null, got 10"),
        ({"name": None}, "name must be a text, got None"),
        ({"active": 1}, "active must be true or false, got 1"),
        ({"mode": "slow"}, "mode must be one of fast, exact, 2, got 'slow'"),
        ({"mode": 2.0}, "mode must be one of fast, exact, 2, got 2.0"),
        ({"sizes": [1]}, "sizes must be a list, each item an integer >= 0, got [1]"),
        ({"sizes": (1, -2)}, "sizes[1] must be an integer >= 0, got -2"),
        ({"pair": (1,)}, "pair must be a list of 2 items, got (1,)"),
        ({"pair": (1.5, 2.0)}, "pair[0] must be an integer, got 1.5"),
        ({"notes": []}, "notes must be a table of fields, got []"),
        ({"notes": {"a": "b"}}, "notes.a must be a number, got 'b'"),
        ({"notes": {1: 2.0}}, "notes must be a table of fields, got {1: 2.0}"),
        ({"shape": Noise()}, "shape must be Shape, got Noise(strength=0.0, kind='none')"),
        ({"shapes": (Circle(), None)}, "shapes[1] must be Shape, got None"),
    ],
)
def test_a_wrong_value_is_an_error_with_field_constraint_and_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError) as caught:
        Plan(**{"steps": 1} | changes)
    assert str(caught.value) == f"Plan: {message}"


def test_integers_are_floats_but_booleans_are_not() -> None:
    assert Plan(1, rate=2).rate == 2
    assert isinstance(reread(Plan(1, rate=2)).rate, float)
    assert reread(Plan(1, pair=(1, 2))).pair == (1, 2.0)


def test_records_are_frozen_and_compare_by_value() -> None:
    plan = Plan(3, notes={"a": 1.0})
    assert plan == Plan(3, notes={"a": 1.0}) != Plan(4, notes={"a": 1.0})
    with pytest.raises(FrozenInstanceError):
        plan.steps = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "an integer"),
        (Annotated[int, at_least(1)] | None, "an integer >= 1 or null"),
        (Literal["a", "b"] | float, "one of a, b or a number"),
        (tuple[str, ...], "a list, each item a text"),
        (tuple[int, int], "a list of 2 items"),
        (Mapping[str, int], "a table of fields"),
        (Circle, "Circle"),
    ],
)
def test_types_are_described_for_people(hint: Any, text: str) -> None:
    assert describe(hint) == text


# --- plain data


def test_plain_data_has_version_type_and_inlined_fields() -> None:
    plain = Plan(2, shape=Square(3, Circle(0.5)), sizes=(1, 2), noise=Noise(0.5, "gauss")).to_plain()
    assert plain["version"] == 3
    assert plain["sizes"] == [1, 2]
    assert plain["shape"] == {
        "type": "Square", "side": 3, "inner": {"type": "Circle", "radius": 0.5},
    }  # fmt: skip
    assert (plain["strength"], plain["kind"]) == (0.5, "gauss")
    assert "noise" not in plain
    assert "type" not in plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stepz": 2}, r"stepz is not a field of Plan \(did you mean steps\?\)"),
        ({"noise": {"strength": 0.1}}, "noise is not a field of Plan"),
        ({"strenght": 0.1}, r"strenght is not a field of Plan"),
        ({"steps": "2"}, "steps must be an integer >= 1, got '2'"),
        ({"sizes": [1, 2.5]}, r"sizes\[1\] must be an integer >= 0, got 2\.5"),
        ({"sizes": {"a": 1}}, "sizes must be a list, each item an integer >= 0"),
        ({"strength": 2}, r"strength must be a number in \[0, 1\], got 2\.0"),
        ({"pair": [1, 2, 3]}, "pair must be a list of 2 items"),
        ({"notes": {"a": None}}, r"notes\.a must be a number, got None"),
        ({"shape": {"radius": 1.0}}, "type must be the name of a known record type, got None"),
        ({"shape": {"type": "Circel"}}, r"type must be .*, got 'Circel' \(did you mean Circle\?\)"),
        ({"shape": {"type": "Noise"}}, "type must be the name of a known record type, got 'Noise'"),
        ({"shape": {"type": ["Circle"]}}, r"type must be the name of a known record type, got \['Circle'\]"),
        ({"shape": 5}, "shape must be Shape, got 5"),
        ({"shapes": [{"type": "Circle", "radius": -1}]}, "radius must be a number > 0, got -1"),
        ({"shapes": [{"type": "Square", "inner": None}]}, "side is missing"),
        ({"type": "Other"}, "must be a Plan"),
    ],
)
def test_wrong_plain_data_is_an_error_with_file_and_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvatlasError, match=rf"^run\.json[^:]*: .*{message}") as caught:
        Plan.from_plain(Plan(1).to_plain() | change, where="run.json", known=KNOWN)
    assert "\n" not in str(caught.value)


def test_errors_name_the_place_of_a_record_in_a_list() -> None:
    plain = Plan(1).to_plain() | {"shapes": [{"type": "Circle"}, {"type": "Square", "side": 1, "inner": {}}]}
    with pytest.raises(ConvatlasError, match=r"^here\.shapes\[1\]\.inner: type must be"):
        Plan.from_plain(plain, where="here", known=KNOWN)


def test_a_missing_field_is_named_and_others_have_their_defaults() -> None:
    with pytest.raises(RunError, match=r"^Plan: steps is missing$"):
        Plan.from_plain({"version": 3})
    assert Plan.from_plain({"version": 3, "steps": 1}) == Plan(1)


@pytest.mark.parametrize("data", [None, [], "steps", 3, {1: 2}])
def test_data_that_is_not_a_table_of_fields_is_refused(data: Any) -> None:
    with pytest.raises(RunError, match=r"^Plan: must be a table of fields, got "):
        Plan.from_plain(data)


@pytest.mark.parametrize("version", [None, "3", 3.0, True, 0, -1, [3]])
def test_a_damaged_version_is_refused(version: Any) -> None:
    plain = Plan(1).to_plain() | {"version": version}
    with pytest.raises(RunError, match=r"^x: version must be an integer >= 1, got .*; the file is damaged or foreign"):
        Plan.from_plain(plain, where="x")


def test_a_missing_version_is_refused() -> None:
    plain = Plan(1).to_plain()
    del plain["version"]
    with pytest.raises(RunError, match="version must be an integer >= 1, got None"):
        Plan.from_plain(plain)


def test_a_newer_version_asks_for_an_upgrade_and_an_older_one_is_read() -> None:
    with pytest.raises(RunError, match=r"^x: version must be <= 3, got 4; upgrade convatlas to read it$"):
        Plan.from_plain(Plan(1).to_plain() | {"version": 4, "unheard": 1}, where="x")
    assert Plan.from_plain(Plan(1).to_plain() | {"version": 1}, known=KNOWN) == Plan(1)
    check_version(2, 3, "x", SpecError)


def test_read_tagged_takes_the_bases_and_known_types_that_derive_from_them() -> None:
    assert read_tagged({"type": "Circle"}, (Shape,), "x", KNOWN) == Circle()
    assert read_tagged({"type": "Circle"}, (Circle,), "x", {}) == Circle()
    assert read_tagged({"type": "Shape"}, (Shape,), "x", {}) == Shape()
    assert read_tagged({"strength": 0.0}, (Noise,), "x", {}) == Noise()
    with pytest.raises(SpecError, match="x: type must be"):
        read_tagged({"type": "Square", "side": 1}, (Circle,), "x", KNOWN)
    with pytest.raises(RunError, match=r"x: must be a table of fields, got \[\]"):
        read_tagged([], (Shape,), "x", KNOWN, RunError)


# --- other values


def test_replaced_changes_own_and_inlined_fields() -> None:
    plan = Plan(1).replaced({"steps": 2, "strength": 0.5, "kind": "gauss", "sizes": [3], "rate": 1})
    assert plan == Plan(2, rate=1.0, sizes=(3,), noise=Noise(0.5, "gauss"))
    assert isinstance(plan.rate, float)
    assert plan.replaced({}) == plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": 1}, r"mine: stepz is not a field of Plan \(did you mean steps\?\)"),
        ({"noise": Noise()}, "mine: noise is not a field of Plan"),
        ({"steps": 0}, "mine: steps must be an integer >= 1, got 0"),
        ({"sizes": [1, -1]}, r"mine: sizes\[1\] must be an integer >= 0, got -1"),
        ({"strength": 3}, r"mine: strength must be a number in \[0, 1\], got 3\.0"),
        ({"strength": 0.5}, "Noise: kind must not be none for a strength above 0"),
    ],
)
def test_replaced_names_the_field_that_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvatlasError, match=f"^{message}"):
        Plan(1).replaced(changes, where="mine")


# --- round trip

finite = st.floats(allow_nan=False, allow_infinity=False)
circles = st.builds(Circle, st.floats(0, 1e9, exclude_min=True))
shapes = st.recursive(circles, lambda inner: st.builds(Square, st.integers(1, 99), st.none() | inner), max_leaves=4)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
plans = st.builds(
    Plan,
    steps=st.integers(1),
    rate=st.floats(0, exclude_min=True, allow_infinity=False),
    share=st.floats(0, 1, exclude_max=True),
    offset=finite | st.integers(-9, 9),
    limit=st.none() | st.integers(1, 9),
    name=st.text(),
    active=st.booleans(),
    mode=st.sampled_from(["fast", "exact", 2]),
    sizes=st.lists(st.integers(0), max_size=4).map(tuple),
    pair=st.tuples(st.integers(), finite),
    notes=st.dictionaries(st.text(), finite, max_size=3),
    extra=st.dictionaries(st.text(), json_values, max_size=3),
    shape=shapes,
    shapes=st.lists(shapes, max_size=3).map(tuple),
    noise=st.just(Noise()) | st.builds(Noise, st.floats(0, 1), st.just("gauss")),
)


@given(plans)
def test_plain_data_round_trips_through_json(plan: Plan) -> None:
    assert reread(plan) == plan
    assert reread(plan).to_plain() == plan.to_plain()


@given(plans, st.data())
def test_any_changed_field_changes_the_plain_data(plan: Plan, data: st.DataObject) -> None:
    other = data.draw(plans)
    assert (plan == other) == (plan.to_plain() == other.to_plain())
