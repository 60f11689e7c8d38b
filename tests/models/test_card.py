"""Cards, reported metrics and catalog rows."""

from __future__ import annotations

import pytest

from convatlas.errors import InputError, SpecError
from convatlas.models.card import Card, Family, ReportedMetrics, error_rate, imagenet, torchvision_and_timm
from convatlas.models.catalog import CATALOG
from convatlas.models.describe import compare, list_models, show
from convatlas.models.families.resnet import CARD, R18


def test_unknown_library_is_refused() -> None:
    with pytest.raises(
        SpecError, match=r"upstream must name one of torchvision, timm, got 'torchvisoin'.*did you mean"
    ):
        imagenet(R18, CARD, upstream={"torchvisoin": "resnet18"})  # type: ignore[dict-item]


def test_family_does_not_change_the_rows() -> None:
    rows = {"a": imagenet(R18, CARD, upstream=torchvision_and_timm("resnet18"))}
    before = dict(rows)
    assert Family(rows).variants == before == rows


@pytest.mark.parametrize("wrong", [(-1.0, None), (None, 100.5), (None, None)])
def test_metrics_are_percentages(wrong: tuple[float | None, float | None]) -> None:
    with pytest.raises(SpecError, match="ReportedMetrics"):
        ReportedMetrics(*wrong)


def test_error_rate_becomes_accuracy() -> None:
    assert error_rate(8.75, "CIFAR-10").top1 == 91.25


def test_card_without_category_is_refused() -> None:
    with pytest.raises(SpecError, match="categories must be among"):
        Card("X", 2000, "a paper", (), "an innovation")


def test_variant_of_another_paper_starts_a_family_and_has_no_metrics_of_its_base() -> None:
    base = Card("Base", 2000, "a paper", ("depth",), "an innovation", ReportedMetrics(50.0))
    assert (base.of("Base-2").family, base.of("Other", paper="another").family) == ("Base", "Other")
    assert base.of("Base-2").reported is None


def test_top5_is_never_below_top1() -> None:
    for name, row in CATALOG.items():
        metrics = row.card.reported
        if metrics is not None and metrics.top1 is not None and metrics.top5 is not None:
            assert metrics.top1 < metrics.top5, name


def test_show_prints_reported_numbers_with_unit_and_source() -> None:
    assert "top-1 76.4 %, top-5 92.9 % (ImageNet-1K, paper)" in show("resnet101")
    assert "top-1 91.25 % (CIFAR-10, paper)" in show("cifar_resnet20")
    assert "reported" not in show("lenet5_modern")


def test_compare_has_reported_numbers() -> None:
    first, second = compare("resnet101", "lenet5_modern").rows
    assert (first.top1_percent, first.top5_percent, first.reported_on) == (76.4, 92.9, "ImageNet-1K, paper")
    assert (second.top1_percent, second.top5_percent, second.reported_on) == (None, None, "")


def test_list_models_filters() -> None:
    assert list_models("vgg*", max_params=130e6) == []
    assert "vgg11" in list_models("VGG*", max_params=133e6)
    assert list_models(max_params="20k") == list_models(max_params=20_000)
    for limit in ("5ms", [5], True):
        with pytest.raises(InputError, match="list_models: max_params: "):
            list_models(max_params=limit)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"unknown family 'resnett'.*did you mean resnet"):
        list_models(family="resnett")
