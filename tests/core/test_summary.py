"""Cost and layer table as text and HTML."""

from __future__ import annotations

from torch import nn

from convatlas.core.compose import Chain
from convatlas.core.cost import cost
from convatlas.core.summary import summary
from convatlas.core.table import Table, by_x

TREE = Chain(conv=nn.Conv2d(3, 8, 3), act=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1))


def test_summary_is_a_table_of_layers() -> None:
    assert (
        str(summary(TREE, (3, 8, 8)))
        == repr(summary(TREE, (3, 8, 8)))
        == """\
layer  kind               output     RF (px)  parameters   MACs
input                     3 x 8 x 8  1 x 1
conv   Conv2d             8 x 6 x 6  3 x 3           224  7,776
pool   AdaptiveAvgPool2d  8 x 1 x 1  all
total                                                224  7,776"""
    )


def test_cost_prints_its_totals() -> None:
    measured = cost(TREE, (3, 8, 8))
    assert str(measured).splitlines()[0].split() == ["parameters", "224"]
    assert repr(measured).splitlines()[-1].split(maxsplit=2)[2] == "3 x 3 px"
    assert measured._repr_html_().startswith("<table><tbody><tr><td")


def test_html_has_headings_alignment_and_no_markup_of_the_cells() -> None:
    html = Table(("name", "n"), (("<b>", "1"),), right=frozenset({1}))._repr_html_()
    assert "<th" in html
    assert "&lt;b&gt;" in html
    assert html.count("text-align: right") == 2


def test_pairs_without_a_value_are_left_out() -> None:
    assert str(Table.of_pairs({"a": "1", "none": "", "long": "2"})) == "a     1\nlong  2"
    assert str(Table.of_pairs({})) == ""


def test_sizes_are_joined_by_x() -> None:
    assert by_x((6, 28, 28)) == "6 x 28 x 28"
