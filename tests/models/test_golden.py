"""Stats of every network: the committed table, the collected facts, and published integers."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest

from convatlas.core.cost import cost
from convatlas.models.catalog import CATALOG, entry_of, measure, stats
from convatlas.models.describe import describe
from convatlas.models.families import inception_resnet
from convatlas.models.families.inception_resnet import InceptionResNet
from convatlas.models.index import is_complete, read_description, read_entries

FACTS_FILE = Path(__file__).parents[2] / "../shared/facts/architecture-facts.csv"

# parameters and MACs that are printed, or that independent implementations count
PRINTED = {
    "efficientnet_b0": (5_288_548, 385_814_752), "efficientnet_b1": (7_794_184, 686_802_832),
    "efficientnet_b2": (9_109_994, 993_561_872), "efficientnet_b3": (12_233_232, 1_827_141_392),
    "efficientnet_b4": (19_341_616, 4_393_771_024), "efficientnet_b5": (30_389_784, 10_266_384_752),
    "efficientnet_b6": (43_040_704, 19_067_593_536), "efficientnet_b7": (66_347_960, 37_745_884_192),
    "efficientnet_lite0": (4_652_008, 385_187_552), "efficientnet_lite4": (13_006_568, 2_553_034_336),
    "efficientnet_v2_b0": (7_139_704, 718_086_176), "efficientnet_v2_b3": (14_358_406, 3_011_458_816),
    "mobilenet_v1_025": (470_072, 41_030_272), "mobilenet_v3_large_075": (3_993_528, 154_560_624),
    "mobilenet_v3_small_minimal": (2_044_736, 52_288_448),
    "alexnet_2012": (60_965_224, 724_406_816), "zfnet": (62_357_608, None), "nin_cifar10": (966_986, 222_486_528),
    "nin_imagenet": (7_595_176, None), "wrn28_10": (36_479_194, None), "inception_v2": (11_295_240, None),
    "nasnet_a_mobile": (5_289_978, None), "preact_resnet18": (11_687_848, None), "preact_resnet50": (25_549_480, None),
    "preact_resnet101": (44_541_608, None), "preact_resnet152": (60_185_256, None),
    "preact_resnet200": (64_666_280, None), "capsnet": (8_215_568, None), "r3d_18": (33_371_472, None),
    "mc3_18": (11_695_440, None), "i3d": (12_697_264, None), "r2plus1d_18": (31_505_325, None),
    "cifar_resnet20": (269_722, None),
}  # fmt: skip

FIELDS = {
    "alexnet": 195, "alexnet_2012": 195, "vgg16": 212, "mobilenet_v1": 315, "inception_v3": 1311,
    "inception_resnet_v2": 3039,
}  # fmt: skip

# names of our networks in the collected facts, where they differ from the title
CALLED = {
    "ConvNet1989": "convnet1989", "LeNet-1": "lenet1", "LeNet-5": "lenet5",
    "AlexNet (2014, one weird trick)": "alexnet", "GoogLeNet (Inception v1)": "googlenet",
    "Wide ResNet-28-10 (CIFAR-10)": "wrn28_10", "MobileNet v1 1.0": "mobilenet_v1",
    "MobileNet v2 1.0": "mobilenet_v2", "MobileNet v3 large 1.0": "mobilenet_v3_large",
    "MobileNet v3 small 1.0": "mobilenet_v3_small", "MnasNet-A1 1.0": "mnasnet_a1", "MnasNet-B1 1.0": "mnasnet1_0",
    "MnasNet-B1 0.5": "mnasnet0_5", "MnasNet-B1 0.75": "mnasnet0_75", "MnasNet-B1 1.3": "mnasnet1_3",
    "NASNet-A mobile (4 @ 1056)": "nasnet_a_mobile", "NASNet-A large (6 @ 4032)": "nasnet_a_large",
    "CapsNet (MNIST)": "capsnet",
}  # fmt: skip


ACCEPT = "if the change is intended: python tests/models/accept_golden.py"


@pytest.mark.parametrize("name", CATALOG)
def test_the_index_equals_what_is_counted(name: str) -> None:
    row, measured = CATALOG[name], measure(name)
    assert read_entries()[name] == entry_of(name, row, measured), ACCEPT
    text = describe(row.card, measured)
    assert read_description(name) == text, ACCEPT
    card = row.card
    parts = [card.title, card.paper, card.innovation, card.note, *card.categories]
    if card.reported is not None:
        parts.append(card.reported.conditions)
    parts += [f"{measured.parameters:,}", f"{measured.macs:,}"]
    assert all(part in text for part in parts)
    assert all(layer.path in text for layer in measured.layers if layer.parameters)


def test_the_index_has_an_entry_for_every_network_in_order() -> None:
    assert list(read_entries()) == list(CATALOG)
    assert is_complete(), ACCEPT


@pytest.mark.parametrize("name", PRINTED)
def test_published_parameters_and_macs(name: str) -> None:
    parameters, macs = PRINTED[name]
    assert stats(name).parameters == parameters
    assert macs is None or stats(name).macs == macs


@pytest.mark.parametrize("name", FIELDS)
def test_published_receptive_fields(name: str) -> None:
    assert stats(name).receptive_field_px == FIELDS[name]


def test_capsnet_without_decoder() -> None:
    spec = replace(CATALOG["capsnet"].spec, decoder=None)  # type: ignore[type-var]
    assert cost(spec.build(classes=10, channels=1)).parameters == 6_804_224


@pytest.mark.parametrize(("name", "parameters"), [("googlenet", 13_004_888), ("inception_v3", 27_161_264)])
def test_auxiliary_heads_count_as_parameters_but_not_as_macs(name: str, parameters: int) -> None:
    plain = measure(name)
    measured = cost(replace(CATALOG[name].spec, auxiliary=True).build(classes=1000, channels=3))  # type: ignore[type-var]
    assert measured.parameters == parameters
    assert measured.macs == plain.macs


def test_inception_resnet_v1_is_the_independent_count_but_for_a_block_and_an_embedding() -> None:
    """That implementation has a sixth block of type C, and a layer of 512 units before the classes: 23,995,624."""
    *stages, last = inception_resnet.V1.stages
    spec = replace(inception_resnet.V1, stages=(*stages, replace(last, depth=6)))
    assert isinstance(spec, InceptionResNet)
    measured = cost(spec.build(classes=1000, channels=3)).parameters
    head, embedded = 1792 * 1000 + 1000, 1792 * 512 + 2 * 512 + 512 * 1000 + 1000
    assert measured - head + embedded == 23_995_624


def collected() -> list[tuple[str, dict[str, str]]]:
    """Return (our name, row) of the collected facts on networks of the catalog."""
    if not FACTS_FILE.is_file():
        return []
    titles = {row.card.title: name for name, row in CATALOG.items()}
    with FACTS_FILE.open(encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    return [(name, row) for row in rows if (name := CALLED.get(row["name"], titles.get(row["name"], "")))]


@pytest.mark.skipif(not FACTS_FILE.is_file(), reason=f"the collected facts are not there ({FACTS_FILE})")
def test_collected_facts_cover_most_networks() -> None:
    assert len(collected()) >= 95


@pytest.mark.parametrize(("name", "row"), collected(), ids=[name for name, _ in collected()])
def test_stats_equal_the_collected_facts(name: str, row: dict[str, str]) -> None:
    number = stats(name)
    libraries = [row[f"{what}_computed_{library}"] for what, library in (("params", "torchvision"), ("params", "timm"))]
    exact = {int(value) for value in libraries if value}
    # these of torchvision come with auxiliary heads, or are other networks (see the rows named ..._torchvision)
    others = {13_004_888, 27_161_264, 5_495_976, 6_432_512, 39_381_472}
    # and these of timm are without the norm in the stem
    bare = {25_549_352, 44_541_480, 60_185_128} if name.startswith("preact") else set()
    if not exact <= others | bare:
        assert number.parameters in exact
    elif not row["params"]:
        pytest.fail(f"the facts have no number of parameters for {name}")
    if row["macs_computed_torchvision"] and name not in ("regnet_x_400mf", "regnet_y_800mf", "regnet_y_8gf"):
        assert number.macs == int(row["macs_computed_torchvision"])
    written = re.fullmatch(r"([\d.]+)M", row["params"])
    if written and name != "inception_resnet_v1":
        assert number.parameters == pytest.approx(float(written[1]) * 1e6, rel=0.05)


def test_stats_are_positive() -> None:
    for name in CATALOG:
        facts = stats(name)
        numbers = (facts.parameters, facts.macs, facts.activations, facts.receptive_field_px, facts.layers)
        assert min(numbers) > 0, name
