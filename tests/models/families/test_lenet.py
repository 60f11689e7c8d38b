"""The LeNet line against the printed tables, and against naive loops over those tables."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from convatlas.core.cost import cost
from convatlas.core.network import Network
from convatlas.layers.lenet import (
    C3_LINKS,
    H2_LINKS,
    LENET1_LINKS,
    Links,
    ScaledTanh,
    SparseConnectionConv2d,
    Subsample,
    class_codes,
    stretch_links,
)
from convatlas.models.catalog import CATALOG, FAMILIES
from convatlas.models.families.lenet import LeNet5
from convatlas.weights.build import build

Array = NDArray[np.float64]

# typed again from the papers; nothing here is taken from the library
PRINTED_H2 = [range(8)] * 4 + [range(4, 12)] * 4 + [[0, 1, 2, 3, 8, 9, 10, 11]] * 4
PRINTED_C3 = (
    [sorted((i, (i + 1) % 6, (i + 2) % 6)) for i in range(6)]
    + [sorted((i, (i + 1) % 6, (i + 2) % 6, (i + 3) % 6)) for i in range(6)]
    + [[0, 1, 3, 4], [1, 2, 4, 5], [0, 2, 3, 5], [0, 1, 2, 3, 4, 5]]
)
PRINTED_LENET1 = "1 | 1 2 | 1 2 | 2 | 1 2 | 1 2 | 3 | 3 4 | 3 4 | 4 | 3 4 | 3 4"

# name: parameters, connections, multiply-adds
PRINTED_TOTALS = {
    "convnet1989": (9_760, 64_660, 63_660),
    "lenet1": (2_578, 98_442, None),
    "lenet4": (16_998, 258_306, None),
    "lenet5": (60_000, 340_908, 326_520),
    "lenet5_modern": (61_706, None, None),
}

# name: {layer of the paper: (paths in the tree, maps, side or None, parameters, connections)}
PRINTED_LAYERS = {
    "convnet1989": {
        "H1": (("stem.h1", "stem.h1_bias"), 12, 8, 1_068, 19_968),
        "H2": (("stages.0.h2", "stages.0.h2_bias"), 12, 4, 2_592, 38_592),
        "H3": (("head.h3",), 30, None, 5_790, 5_790),
        "out": (("head.out",), 10, None, 310, 310),
    },
    "lenet1": {
        "C1": (("stem.h1",), 4, 24, 104, 59_904),
        "S1": (("stem.h2",), 4, 12, 8, 2_880),
        "C2": (("stages.0.h3",), 12, 8, 512, 32_768),
        "S2": (("stages.0.h4",), 12, 4, 24, 960),
        "out": (("head.out",), 10, None, 1_930, 1_930),
    },
    "lenet5": {
        "C1": (("stem.c1",), 6, 28, 156, 122_304),
        "S2": (("stem.s2",), 6, 14, 12, 5_880),
        "C3": (("stages.0.c3",), 16, 10, 1_516, 151_600),
        "S4": (("stages.0.s4",), 16, 5, 32, 2_000),
        "C5": (("head.c5",), 120, 1, 48_120, 48_120),
        "F6": (("head.f6",), 84, None, 10_164, 10_164),
        "out": (("head.penalty",), 10, None, 0, 840),
    },
}


@pytest.mark.parametrize("name", PRINTED_TOTALS)
def test_totals_are_the_printed_ones(name: str) -> None:
    measured = cost(build(name))
    parameters, connections, macs = PRINTED_TOTALS[name]
    assert measured.parameters == parameters
    assert connections is None or measured.connections == connections
    assert macs is None or measured.macs == macs


@pytest.mark.parametrize(
    ("name", "layer"), [(name, layer) for name, layers in PRINTED_LAYERS.items() for layer in layers]
)
def test_layers_are_the_printed_ones(name: str, layer: str) -> None:
    paths, maps, side, parameters, connections = PRINTED_LAYERS[name][layer]
    rows = [row for row in cost(build(name)).layers if row.path in paths]
    assert [row.path for row in rows] == list(paths)
    assert rows[-1].output.shape == ((maps,) if side is None else (maps, side, side))
    assert sum(row.parameters for row in rows) == parameters
    assert sum(row.connections for row in rows) == connections


@pytest.mark.parametrize("name", PRINTED_LAYERS)
def test_printed_layers_are_all_the_layers(name: str) -> None:
    assert sum(row[3] for row in PRINTED_LAYERS[name].values()) == PRINTED_TOTALS[name][0]
    assert sum(row[4] for row in PRINTED_LAYERS[name].values()) == PRINTED_TOTALS[name][1]


@pytest.mark.parametrize(("name", "units"), [("convnet1989", 1_256), ("lenet1", 4_635 - 1)])
def test_units_with_the_inputs_are_the_printed_ones(name: str, units: int) -> None:
    # LeNet-1's 4,635 counts the unit that is always on and feeds the biases
    measured = cost(build(name))
    assert measured.input.size + measured.activations == units


def test_lenet4_is_marked_as_a_reconstruction() -> None:
    assert "reconstruction" in CATALOG["lenet4"].card.title


def test_lenet5_sees_its_whole_input() -> None:
    assert cost(build("lenet5")).receptive_field == (32, 32)


def test_link_tables_are_the_printed_ones() -> None:
    assert [list(row) for row in C3_LINKS] == PRINTED_C3
    assert [list(row) for row in H2_LINKS] == [list(row) for row in PRINTED_H2]
    printed = [[int(i) - 1 for i in row.split()] for row in PRINTED_LENET1.split("|")]
    assert [list(row) for row in LENET1_LINKS] == printed


@pytest.mark.parametrize(("links", "count"), [(C3_LINKS, 60), (H2_LINKS, 96), (LENET1_LINKS, 20)])
def test_link_table_has_the_printed_number_of_links(links: Links, count: int) -> None:
    assert sum(map(len, links)) == count


def test_every_map_of_s2_feeds_ten_maps_of_c3() -> None:
    assert [sum(source in row for row in C3_LINKS) for source in range(6)] == [10] * 6


tables = st.sampled_from([C3_LINKS, H2_LINKS, LENET1_LINKS])


@given(tables)
def test_stretching_to_the_printed_size_changes_nothing(links: Links) -> None:
    assert stretch_links(links, 1 + max(map(max, links)), len(links)) == links


@given(tables, st.integers(1, 40), st.integers(1, 40))
def test_stretched_table_links_every_map(links: Links, inputs: int, outputs: int) -> None:
    stretched = stretch_links(links, inputs, outputs)
    assert len(stretched) == outputs
    assert all(row and list(row) == sorted(set(row)) for row in stretched)
    assert {source for row in stretched for source in row} <= set(range(inputs))
    if outputs >= len(links):
        assert {source for row in stretched for source in row} == set(range(inputs))


def squash(a: Array) -> Array:
    return 1.7159 * np.tanh(2 / 3 * a)


def correlate(plane: Array, kernel: Array, stride: int) -> Array:
    """Slide `kernel` over one plane, position by position."""
    size, span = (len(plane) - len(kernel)) // stride + 1, len(kernel)
    out = np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            top, left = row * stride, column * stride
            out[row, column] = np.sum(plane[top : top + span, left : left + span] * kernel)
    return out


def linked(maps: Array, table: list[range] | list[list[int]], kernels: Array, stride: int) -> Array:
    """Sum, for each row of the table, the correlations of its maps with its own kernels; kernels in table order."""
    following = iter(kernels)
    return np.stack([sum(correlate(maps[source], next(following), stride) for source in row) for row in table])


def subsample(maps: Array, gain: Array, bias: Array) -> Array:
    count, size, _ = maps.shape
    out = np.zeros((count, size // 2, size // 2))
    for m, row, column in np.ndindex(out.shape):
        window = maps[m, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        out[m, row, column] = gain[m] * window.sum() + bias[m]
    return out


def full(inputs: Array, weight: Array, bias: Array) -> Array:
    return np.array([sum(w * x for w, x in zip(row, inputs, strict=True)) for row in weight]) + bias


def border(maps: Array) -> Array:
    """Put a border of two background pixels (-1) around each map."""
    size = maps.shape[1]
    out = np.full((len(maps), size + 4, size + 4), -1.0)
    out[:, 2:-2, 2:-2] = maps
    return out


def naive_convnet1989(w: dict[str, Array], image: Array) -> Array:
    h1 = squash(linked(border(image[None]), [[0]] * 12, w["stem.h1.weight"], 2) + w["stem.h1_bias.bias"])
    h2 = squash(linked(border(h1), PRINTED_H2, w["stages.0.h2.weight"], 2) + w["stages.0.h2_bias.bias"])
    h3 = squash(full(h2.ravel(), w["head.h3.weight"], w["head.h3.bias"]))
    return squash(full(h3, w["head.out.weight"], w["head.out.bias"]))


def naive_lenet5(w: dict[str, Array], image: Array) -> Array:
    c1 = linked(image[None], [[0]] * 6, w["stem.c1.weight"][:, 0], 1) + w["stem.c1.bias"][:, None, None]
    s2 = squash(subsample(squash(c1), w["stem.s2.gain"], w["stem.s2.bias"]))
    c3 = linked(s2, PRINTED_C3, w["stages.0.c3.weight"], 1) + w["stages.0.c3.bias"][:, None, None]
    s4 = squash(subsample(squash(c3), w["stages.0.s4.gain"], w["stages.0.s4.bias"]))
    c5 = squash(full(s4.ravel(), w["head.c5.weight"].reshape(120, 400), w["head.c5.bias"]))
    f6 = squash(full(c5, w["head.f6.weight"], w["head.f6.bias"]))
    penalty = [sum((x - code) ** 2 for x, code in zip(f6, row, strict=True)) for row in w["head.penalty.codes"]]
    return -np.array(penalty)


@pytest.mark.parametrize(
    ("name", "naive", "side"), [("convnet1989", naive_convnet1989, 16), ("lenet5", naive_lenet5, 32)]
)
def test_forward_equals_naive_loops_over_the_printed_tables(name: str, naive, side: int) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(5)
    network = build(name)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.15, generator=generator)
    images = torch.rand(2, 1, side, side, generator=generator) * 2 - 1
    weights = {path: tensor.double().numpy() for path, tensor in network.state_dict().items()}
    expected = np.stack([naive(weights, image[0].double().numpy()) for image in images])
    with torch.no_grad():
        np.testing.assert_allclose(network(images).double().numpy(), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(network.double()(images.double()).numpy(), expected, rtol=1e-10)


def test_bitmaps_are_ten_different_images_of_7_by_12() -> None:
    bitmaps = class_codes(10, 84)
    assert bitmaps.shape == (10, 7 * 12)
    assert set(bitmaps.unique().tolist()) == {-1.0, 1.0}
    assert len(bitmaps.unique(dim=0)) == 10


def test_fewer_classes_take_the_first_bitmaps() -> None:
    assert torch.equal(class_codes(4, 84), class_codes(10, 84)[:4])


@pytest.mark.parametrize(("classes", "features"), [(11, 84), (37, 84), (10, 42), (37, 42), (37, 8), (10, 4)])
def test_codes_of_other_sizes_are_signs_that_differ_between_classes(classes: int, features: int) -> None:
    drawn = class_codes(classes, features)
    assert drawn.shape == (classes, features)
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert len(drawn.unique(dim=0)) == classes


def test_codes_do_not_depend_on_the_global_generator() -> None:
    torch.manual_seed(1)
    first, after_first = class_codes(37, 84), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after_first, torch.rand(1))
    assert torch.equal(first, class_codes(37, 84))


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("channels", [1, 3, 13])
@pytest.mark.parametrize("classes", [2, 10, 37])
@pytest.mark.parametrize("name", FAMILIES["lenet"].variants)
def test_any_classes_channels_and_widths_run_forward_and_backward(
    name: str, classes: int, channels: int, factor: float
) -> None:
    spec = CATALOG[name].spec
    network = build(spec.scaled(width=factor, resolution=spec.resolution + 4), classes=classes, channels=channels)
    y = network(torch.randn(2, *network.input_shape))
    assert y.shape == (2, classes)
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", FAMILIES["lenet"].variants)
def test_state_dict_holds_weights_and_codes_but_no_link_tables(name: str) -> None:
    network = build(name)
    assert set(network.state_dict()) - {path for path, _ in network.named_parameters()} <= {"head.penalty.codes"}


def bounds(network: Network) -> dict[str, Tensor]:
    """Return 2.4 / F for every weight and bias of the layers with weights, F the inputs of the unit it belongs to."""
    expected: dict[str, Tensor] = {}
    for path, layer in network.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            fan_in = torch.tensor(float(math.prod(layer.weight.shape[1:])))
            expected |= {f"{path}.weight": fan_in, f"{path}.bias": fan_in}
        elif isinstance(layer, Subsample):
            expected |= {f"{path}.gain": torch.tensor(4.0), f"{path}.bias": torch.tensor(4.0)}
        elif isinstance(layer, SparseConnectionConv2d):
            fan_ins = torch.tensor([float(len(row)) for row in layer.links]) * layer.kernel**2
            rows = torch.tensor([target for target, row in enumerate(layer.links) for _ in row])
            expected[f"{path}.weight"] = fan_ins[rows].view(-1, 1, 1)
            if layer.bias is not None:
                expected[f"{path}.bias"] = fan_ins
    return {path: 2.4 / fan_in for path, fan_in in expected.items()}


@pytest.mark.parametrize("name", ["convnet1989", "lenet1", "lenet4", "lenet5"])
def test_weights_fill_the_range_of_2_4_over_fan_in(name: str) -> None:
    torch.manual_seed(0)
    networks = [build(name) for _ in range(20)]
    for path, bound in bounds(networks[0]).items():
        shares = torch.stack([(network.get_parameter(path) / bound).detach() for network in networks])
        assert shares.abs().max() <= 1, path
        assert shares.max() > 0.7, path
        assert shares.min() < -0.7, path


@pytest.mark.parametrize("value", [1.0, -1.0, 0.0])
def test_scaled_tanh_keeps_plus_and_minus_one(value: float) -> None:
    assert ScaledTanh()(torch.tensor(value)).item() == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "background", "foreground"),
    [("convnet1989", -1.0, 1.0), ("lenet1", -1.0, 1.0), ("lenet4", -0.1, 1.175), ("lenet5", -0.1, 1.175)],
)
def test_default_preprocessing_has_the_printed_range(name: str, background: float, foreground: float) -> None:
    steps = CATALOG[name].preprocessing
    side = steps.resize
    images = torch.cat([torch.zeros(1, 1, side, side), torch.full((1, 1, side, side), 255)]).byte()
    black, white = steps.normalize(steps.resize_and_crop(images))
    assert black.shape == (1, steps.resolution, steps.resolution)
    torch.testing.assert_close(black, torch.full_like(black, background))
    assert white[0, side // 2 + steps.pad, side // 2 + steps.pad].item() == pytest.approx(foreground, abs=1e-6)
    if steps.pad:
        assert white[0, 0, 0].item() == pytest.approx(background, abs=1e-6)


def test_output_of_lenet5_is_largest_for_the_class_whose_bitmap_f6_shows() -> None:
    head = LeNet5().build(classes=10, channels=1).head
    scores = head.score(head.penalty(class_codes(10, 84)))
    assert torch.equal(scores.argmax(1), torch.arange(10))
    assert torch.equal(scores.diagonal(), torch.zeros(10))
    for a, b in itertools.combinations(range(10), 2):
        assert scores[a, b] == -4 * (class_codes(10, 84)[a] != class_codes(10, 84)[b]).sum()
