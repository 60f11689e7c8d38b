"""Diagrams, outlines, the timeline and comparisons."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from torch import nn

from convatlas.core.compose import Chain, Concat, Product, Sum
from convatlas.core.cost import cost
from convatlas.core.outline import Box, Outline, Parallel, Series, outline
from convatlas.draw.diagram import diagram, size
from convatlas.draw.timeline import entries, timeline
from convatlas.errors import InputError, MachineError, SpecError
from convatlas.layers.conv import ConvNorm
from convatlas.models.catalog import CATALOG, build_fresh
from convatlas.models.describe import compare
from tiny_networks import every_network, tiny

DRAWN = sorted({type(row.spec): name for name, row in CATALOG.items()}.values())


def walked(item: Outline | None) -> Iterator[Outline]:
    """Yield an outline and all inside it."""
    if item is None:
        return
    yield item
    for inner in item.items if isinstance(item, Series) else item.branches if isinstance(item, Parallel) else ():
        yield from walked(inner)


def signs(name: str) -> set[str]:
    return {item.sign for item in walked(outline(build_fresh(name, device="meta"))) if isinstance(item, Parallel)}


@every_network
def test_every_network_has_an_outline_of_some_size(name: str) -> None:
    told = outline(build_fresh(name, device="meta"))
    assert told is not None
    assert min(size(told)) > 0
    boxes = [item for item in walked(told) if isinstance(item, Box)]
    assert not [box for box in boxes if not all(box.lines)]
    unknown = [box.lines[0] for box in boxes if box.kind == "other" and not box.lines[0].startswith("routing")]
    assert not unknown


@pytest.mark.parametrize(
    ("name", "expected"),
    [("vgg16", set()), ("resnet50", {"+"}), ("densenet121", {"‖"}), ("googlenet", {"‖"}), ("se_resnet50", {"+", "×"}),
     ("inception_resnet_v2", {"+", "‖"}), ("mobilenet_v3_large", {"+", "×"}), ("boosted_resnet18", {"+", "‖"})],
)  # fmt: skip
def test_signs_tell_the_architecture(name: str, expected: set[str]) -> None:
    assert signs(name) == expected


def test_repeats_are_folded_and_norms_told_with_their_convolution() -> None:
    told = outline(build_fresh("resnet50", device="meta").stages[2])
    assert isinstance(told, Series)
    first, others = told.items
    assert isinstance(others, Series)
    assert (others.title, others.times, others.varies) == ("bottleneck", 5, False)
    assert isinstance(first, Series)
    boxes = [item.lines for item in walked(others) if isinstance(item, Box)]
    assert boxes == [("1×1, 256", "BN ReLU"), ("3×3, 256", "BN ReLU"), ("1×1, 1024", "BN"), ("ReLU",)]


def test_repeats_with_other_widths_are_folded_and_say_so() -> None:
    told = outline(build_fresh("googlenet", device="meta").stages[1])
    assert isinstance(told, Series)
    module = told.items[-1]
    assert isinstance(module, Parallel)
    assert (module.times, module.varies, len(module.branches)) == (5, True, 4)


def test_identity_branches_are_arcs() -> None:
    told = outline(Sum(body=ConvNorm(3, 3), skip=nn.Identity()))
    assert isinstance(told, Parallel)
    assert told.branches[1] is None


def test_a_stride_that_keeps_the_time_says_so() -> None:
    assert outline(nn.Conv3d(3, 8, (3, 7, 7), stride=(1, 2, 2))) == Box(("3×7×7, 8, /1×2×2",), "conv")
    assert outline(nn.Conv3d(3, 8, 3, stride=2)) == Box(("3×3×3, 8, /2",), "conv")
    assert outline(nn.MaxPool3d((1, 2, 2))) == Box(("max 1×2×2, /1×2×2",), "pool")


def test_wide_blocks_that_repeat_are_drawn_once() -> None:
    figure = diagram(build_fresh("nasnet_a_mobile", device="meta"))
    assert figure.get_size_inches()[0] < 12
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts.count("2 × reduction cell") == 1
    assert texts.count("4 × normal cell") == 3
    assert texts.count("normal cell") == 1


def test_notebooks_show_a_drawing_without_pyplot() -> None:
    figure = diagram(build_fresh("lenet1", device="meta"))
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    assert len(pickle.loads(pickle.dumps(figure)).axes) == 1


def test_unknown_layers_show_their_name() -> None:
    class Mystery(nn.Module):
        pass

    assert outline(Chain(Mystery())) == Box(("Mystery",), "other")


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("ending", ["svg", "png"])
def test_diagrams_are_written(name: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"diagram.{ending}"
    diagram(build_fresh(tiny(name), device="meta"), title=name, path=path)
    if ending == "png":
        width, height = Image.open(path).size
        assert min(width, height) > 300
    else:
        assert "<svg" in path.read_text(encoding="utf-8")[:1000]


@pytest.mark.parametrize(
    ("name", "error"), [("image.gif", InputError), ("image", InputError), ("none/image.svg", MachineError)]
)
def test_drawings_that_cannot_be_written_are_refused(name: str, error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error):
        timeline(path=tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_timeline_goes_from_1989_on_and_has_every_family(tmp_path: Path) -> None:
    found = entries()
    assert (found[0].year, found[0].title) == (1989, "ConvNet 1989")
    assert found[-1].year == 2022
    assert {entry.title for entry in found} == {row.card.family for row in CATALOG.values()}
    figure = timeline(path=tmp_path / "timeline.pdf")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert all(texts.count(entry.title) == len(entry.categories) for entry in found)
    assert (tmp_path / "timeline.pdf").stat().st_size > 5_000


# --- comparisons


def test_comparison_counts_and_finds_the_cells_that_differ() -> None:
    compared = compare("resnet50", "resnet101", "se_resnet50")
    assert [row.parameters for row in compared.rows] == [25_557_032, 44_549_160, 28_088_024]
    assert compared.cells == {"depths[2]": (6, 23, 6), "squeeze": (0, 0, 16)}
    assert compare("resnet50", "vgg16").cells == {}


def test_comparison_at_one_size_and_of_specs() -> None:
    compared = compare("resnet18", CATALOG["resnet18"].spec.scaled(width=2), resolution=64)
    assert [row.input_px for row in compared.rows] == [64, 64]
    assert compared.rows[1].name == "resnet18-custom"
    assert "widths[0]" in compared.cells


def test_unknown_network_is_refused_by_comparison() -> None:
    with pytest.raises(SpecError, match="did you mean resnet50"):
        compare("resnet50", "resnet5O")


@pytest.mark.parametrize(
    ("name", "layers"),
    [("resnet18", 18), ("resnet50", 50), ("resnet152", 152), ("vgg16", 16), ("vgg19", 19), ("densenet121", 121),
     ("densenet201", 201), ("cifar_resnet110", 110), ("convnext_tiny", 59), ("convnet1989", 4), ("lenet5", 5),
     ("alexnet", 8), ("googlenet", 22), ("preact_resnet200", 200)],
)  # fmt: skip
def test_depth_is_what_the_name_says(name: str, layers: int) -> None:
    assert cost(build_fresh(name, device="meta")).output.depth == layers


def test_gates_and_short_branches_are_not_depth() -> None:
    gate = Product(nn.Identity(), Chain(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 3, 1)))
    assert cost(Chain(nn.Conv2d(3, 3, 1), gate), (3, 8, 8)).output.depth == 1
    branches = Concat(nn.Conv2d(3, 3, 1), Chain(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)))
    assert cost(branches, (3, 8, 8)).output.depth == 2
