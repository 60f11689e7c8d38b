"""Insertion and deletion curves, and the control maps beside them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from convatlas.explanation.control_maps import edge_map, random_map
from convatlas.explanation.faithfulness import (
    BATCH,
    Curves,
    Faithfulness,
    area,
    blur,
    mean_color,
    measure_faithfulness,
    rank_pixels,
)

SIZE = (24, 24)


def noisy_image(seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, *SIZE), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


SQUARE = torch.zeros(SIZE)
SQUARE[4:10, 12:18] = 1


def confidence_in_square(image: Tensor) -> object:
    """Return a function of pixels: the share of the square whose pixels are those of the image."""
    inside = SQUARE.bool()
    return lambda pixels: (pixels == image).all(-3)[..., inside].float().mean(-1)


def flat(value: float) -> Curves:
    curve = torch.full((3,), value)
    return Curves(curve, torch.zeros(3))


def test_the_area_under_a_curve_is_that_of_trapezoids() -> None:
    assert area(torch.tensor([0.0, 1.0])) == 0.5
    assert area(torch.tensor([0.0, 1.0, 1.0])) == 0.75
    assert area(torch.full((17,), 0.3)) == pytest.approx(0.3)


def test_a_map_of_the_pixels_that_the_network_uses_is_faithful() -> None:
    image = noisy_image()
    measured = measure_faithfulness(confidence_in_square(image), image, SQUARE, (6, 6))  # type: ignore[arg-type]
    assert measured.heatmap.insertion[:2].tolist() == [0, 1]  # 36 pixels of 576: one step of 16
    assert measured.heatmap.deletion[:2].tolist() == [1, 0]
    assert measured.heatmap.difference == pytest.approx(15 / 16)
    assert measured.is_better
    assert measured.verdict.startswith("insertion minus deletion 0.94, better than an edge map (")


def test_the_opposite_map_is_no_better_than_the_control_maps() -> None:
    image = noisy_image()
    measured = measure_faithfulness(confidence_in_square(image), image, 1 - SQUARE, (6, 6))  # type: ignore[arg-type]
    assert measured.heatmap.difference == pytest.approx(-15 / 16)
    assert not measured.is_better
    assert "no better than an edge map" in measured.verdict
    assert "a random map" in measured.verdict


def test_a_map_is_compared_with_each_control_map() -> None:
    start, warning = "insertion minus deletion 0.50,", ": do not rely on this map"
    for random, edges, verdict in (
        (0.1, 0.5, f"no better than an edge map (0.50){warning}"),
        (0.6, 0.5, f"no better than an edge map (0.50) and a random map (0.60){warning}"),
        (0.49, 0.1, f"not clearly better than a random map (0.49){warning}"),
        (0.1, 0.2, "better than an edge map (0.20) and a random map (0.10)"),
    ):
        measured = Faithfulness(flat(0.5), flat(random), flat(edges))
        assert measured.verdict == f"{start} {verdict}"
        assert measured.is_better == (not verdict.endswith(warning))


def test_a_difference_that_rounds_to_zero_has_no_sign() -> None:
    assert Faithfulness(flat(-0.001), flat(-0.002), flat(-0.1)).verdict.startswith(
        "insertion minus deletion 0.00, not clearly better than a random map (0.00)"
    )


def test_all_curves_share_their_ends_and_every_image_is_computed_once() -> None:
    image, batches = noisy_image(), []

    def confidence(pixels: Tensor) -> Tensor:
        batches.append(len(pixels))
        return pixels.float().mean((1, 2, 3)) / 255

    measured = measure_faithfulness(confidence, image, SQUARE, (3, 3), steps=8)
    assert sum(batches) == 6 * 8 - 3
    assert max(batches) <= BATCH
    for curves in (measured.heatmap, measured.random, measured.edges):
        assert len(curves.insertion) == len(curves.deletion) == 9
        assert curves.insertion[-1] == curves.deletion[0] == measured.heatmap.deletion[0]
        assert curves.insertion[0] == measured.heatmap.insertion[0]


def test_equal_pixels_are_in_the_order_of_the_random_map() -> None:
    image = noisy_image()
    noise = random_map(image, (6, 6), SIZE)
    assert torch.equal(rank_pixels(torch.zeros(SIZE), noise), rank_pixels(noise, noise))
    assert rank_pixels(noise, noise).flatten().sort().values.tolist() == list(range(SQUARE.numel()))
    ranks = rank_pixels(SQUARE, noise)
    assert ranks[SQUARE.bool()].max() == 35


def test_the_random_map_is_a_function_of_the_image() -> None:
    assert torch.equal(random_map(noisy_image(), (4, 4), SIZE), random_map(noisy_image(), (4, 4), SIZE))
    assert not torch.equal(random_map(noisy_image(), (4, 4), SIZE), random_map(noisy_image(1), (4, 4), SIZE))


def test_the_edge_map_marks_edges_on_the_grid_of_the_map() -> None:
    image = torch.zeros(1, 24, 24)
    image[..., 12:] = 200
    fine = edge_map(image, SIZE, SIZE)
    assert fine.argmax(1).unique().tolist() == [11]
    assert fine[:, :10].max() == fine[:, 14:].max() == 0
    coarse = edge_map(image, (3, 3), SIZE)
    assert coarse.shape == SIZE
    assert coarse[:, 12].min() > coarse[:, 0].max()


def test_clips_are_changed_in_space_and_time() -> None:
    clip = torch.randint(0, 256, (4, 3, *SIZE), dtype=torch.uint8)
    heatmap = torch.rand(4, *SIZE)
    measured = measure_faithfulness(lambda x: x.float().mean((1, 2, 3, 4)) / 255, clip, heatmap, (2, 3, 3), steps=4)
    assert len(measured.edges.deletion) == 5
    assert mean_color(clip).unique(dim=0).shape[0] == 1
    assert edge_map(clip, (4, *SIZE), (4, *SIZE)).shape == (4, *SIZE)


@pytest.mark.parametrize("shape", [(3, 24, 24), (1, 5, 40), (2, 3, 16, 16)])
def test_blurred_and_mean_images_keep_shape_type_and_mean(shape: tuple[int, ...]) -> None:
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    for changed in (blur(pixels), mean_color(pixels)):
        assert (changed.shape, changed.dtype) == (pixels.shape, pixels.dtype)
        assert changed.float().std() < pixels.float().std()
    constant = torch.full(shape, 77, dtype=torch.uint8)
    assert torch.equal(blur(constant), constant)
    assert torch.equal(mean_color(constant), constant)
    wide_range = torch.rand(shape) * 1000
    assert blur(wide_range).dtype == torch.float32
