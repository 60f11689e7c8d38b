"""Choices in the cells of records: templates, their records, and plain data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import pytest

import convatlas as ca
from convatlas.core.choice import Template, choose
from convatlas.core.record import Record, at_least
from convatlas.errors import SpecError
from convatlas.models.catalog import SPEC_TYPES
from convatlas.models.families.efficientnet import B0, EfficientNet, MBConvRow
from convatlas.models.families.resnet import ResNet
from convatlas.train.recipe import Recipe

SPACE: Any = EfficientNet(
    (MBConvRow(1, 3, 16, 1), MBConvRow(choose(3, 6), choose(3, 5), choose(16, 24), 2, 2)),
    stem=choose(16, 32, name="channels"), head=choose(640, 1280),
)  # fmt: skip


def test_a_record_with_choices_is_a_template() -> None:
    assert isinstance(SPACE, Template)
    assert SPACE.choices == {
        "rows[1].expand": (3, 6), "rows[1].kernel": (3, 5), "rows[1].width": (16, 24), "channels": (16, 32),
        "head": (640, 1280),
    }  # fmt: skip
    assert SPACE.first == EfficientNet((MBConvRow(1, 3, 16, 1), MBConvRow(3, 3, 16, 2, 2)), stem=16, head=640)
    filled = SPACE.fill({"rows[1].kernel": 5, "channels": 32})
    assert (filled.rows[1].kernel, filled.stem, filled.head) == (5, 32, 640)
    assert ca.build(filled, classes=3).spec == filled


def test_choices_replace_cells_of_a_spec() -> None:
    template: Any = replace(B0, rows=(*B0.rows[:-1], replace(B0.rows[-1], width=choose(160, 320))))
    assert template.choices == {"rows[6].width": (160, 320)}
    assert template.matching(B0) == {"rows[6].width": 320}
    assert template.fill(template.matching(B0)) == B0
    assert template.matching(replace(B0, stem=16)) is None


def test_equal_names_are_one_choice() -> None:
    kernel = choose(3, 5, name="kernel")
    template: Any = EfficientNet((MBConvRow(1, kernel, 16, 1), MBConvRow(3, kernel, 16, 1)))
    assert template.choices == {"kernel": (3, 5)}
    assert {row.kernel for row in template.fill({"kernel": 5}).rows} == {5}
    assert template.matching(EfficientNet((MBConvRow(1, 3, 16, 1), MBConvRow(3, 5, 16, 1)))) is None
    with pytest.raises(SpecError, match="cells named 'kernel' must have the same options"):
        EfficientNet((MBConvRow(1, kernel, 16, 1), MBConvRow(3, choose(3, 7, name="kernel"), 16, 1)))


def test_plain_data_of_a_template() -> None:
    plain = SPACE.to_plain()
    assert plain["stem"] == {"choose": [16, 32], "name": "channels"}
    assert EfficientNet.from_plain(plain, known=SPEC_TYPES) == SPACE


def test_rows_and_other_records_can_be_options() -> None:
    template: Any = EfficientNet((choose(MBConvRow(1, 3, 16, 1), MBConvRow(1, 5, 8, 2)),))
    assert template.fill({"rows[0]": MBConvRow(1, 5, 8, 2)}).rows[0].kernel == 5
    assert EfficientNet.from_plain(template.to_plain(), known=SPEC_TYPES) == template
    recipe: Any = Recipe(lr=choose(0.01, 0.1))
    assert recipe.fill({"lr": 0.1}) == Recipe(lr=0.1)
    inlined: Any = Recipe.from_plain({**Recipe().to_plain(), "flip": {"choose": [True, False]}})
    assert Recipe.from_plain(inlined.to_plain()) == inlined
    assert inlined.choices == {"augment.flip": (True, False)}


def test_a_record_of_the_space_has_the_options_of_the_choices() -> None:
    template: Any = EfficientNet((MBConvRow(1, 3, 16, 1),), drop_path=choose(0.0, 0.25))
    chosen = template.matching(EfficientNet((MBConvRow(1, 3, 16, 1),), drop_path=0))
    assert chosen == {"drop_path": 0.0}
    assert type(chosen["drop_path"]) is float


@dataclass(frozen=True)
class Size(Record):
    low: Annotated[int, at_least(0)] = 0
    high: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            raise SpecError(f"Size: low must be <= high, got {self.low} > {self.high}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: choose(), "must have at least one option"),
        (lambda: choose(3, 5, 3), "the options must be different, got 3 twice"),
        (lambda: choose(choose(1, 2), 3), "must not have choices of its own"),
        (lambda: choose((choose(1, 2), 2), (3, 3)), "must not have choices of its own"),
        (lambda: choose(1, name=3), "name must be a text"),
        (lambda: Size(choose(1, "2")), "Size: low must be an integer >= 0, got '2'"),
        (lambda: Size(choose(-1, 2)), "Size: low must be an integer >= 0, got -1"),
        (lambda: Size(choose(1, 20)), "Size: low must be <= high, got 20 > 10"),
        (lambda: Size.from_plain({"low": {"choose": []}}), "Size.low: choose: must have at least one option"),
        (lambda: Size.from_plain({"low": {"choose": [1, -2]}}), "low must be an integer >= 0, got -2"),
        (lambda: Size.from_plain({"low": {"choose": [1], "names": "x"}}), "names is not a field of a choice"),
        (lambda: Size.from_plain({"low": {"choose": [1], 3: 3}}), "3 is not a field of a choice"),
        (
            lambda: ResNet("basic", choose((1, 2), (1, 2, 3)), (16, 32)),
            r"one value for each of 2 widths, got \(1, 2, 3",
        ),
        (lambda: Size(choose(1, 2)).fill({"low": 3}), r"low must be one of \(1, 2\), got 3"),
        (lambda: Size(choose(1, 2)).fill({"lov": 1}), "there is no choice 'lov'"),
    ],
)
def test_what_is_refused(make: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make()


def test_lists_are_tuples_in_templates() -> None:
    template: Any = ResNet("basic", [choose(1, 2), 2], [16, 32])
    assert template.choices == {"depths[0]": (1, 2)}
    assert template.first.widths == (16, 32)


def test_a_template_is_not_a_network() -> None:
    with pytest.raises(AttributeError, match="build: fill the choices"):
        SPACE.build(classes=2, channels=3)
    with pytest.raises(TypeError):
        Size(1, 2, choose(3, 4))
