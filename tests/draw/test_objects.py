"""Objects on their images: what is drawn where, in colors that can be told apart, on images of any size."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from convatlas.draw.objects import MIN_SIDE, PALETTE, class_color, draw_beside, draw_objects, shrink

GRAY = torch.full((3, 480, 640), 120, dtype=torch.uint8)
BOX = torch.tensor([[100.0, 100.0, 300.0, 250.0]])


def test_a_box_has_the_color_of_its_class_and_nothing_else_changes() -> None:
    drawn = draw_objects(GRAY, BOX, ["cat"], colors=[class_color(0)])
    assert drawn.shape == GRAY.shape
    assert drawn.dtype == torch.uint8
    assert tuple(drawn[:, 175, 100].tolist()) == class_color(0)
    assert torch.equal(drawn[:, 110:240, 110:290], GRAY[:, 110:240, 110:290])
    assert torch.equal(drawn[:, 300:], GRAY[:, 300:])
    label = drawn[:, 85:99, 100:120].flatten(1)
    assert set(class_color(0)) & set(label.unique().tolist())
    assert (GRAY == 120).all()  # the image itself is not drawn on


def test_a_mask_is_translucent_with_an_outline() -> None:
    mask = torch.zeros(480, 640, dtype=torch.uint8)
    mask[120:220, 120:280] = 1
    drawn = draw_objects(GRAY, BOX, ["cat"], colors=[class_color(4)], masks=[mask])
    expected = 0.55 * GRAY[:, 170, 200].float() + 0.45 * torch.tensor(class_color(4))
    assert (drawn[:, 170, 200] - expected).abs().max() <= 1
    assert tuple(drawn[:, 120, 200].tolist()) == class_color(4)
    assert torch.equal(drawn[:, 240, 200], GRAY[:, 240, 200])


def test_points_with_a_positive_score_are_drawn_and_joined() -> None:
    points = torch.tensor([[[120.0, 200.0, 2.0], [280.0, 200.0, 1.0], [200.0, 120.0, 0.0]]])
    drawn = draw_objects(GRAY, BOX, ["cat"], colors=[class_color(0)], keypoints=points, edges=[(0, 1), (1, 2)])
    assert tuple(drawn[:, 200, 200].tolist()) == PALETTE[0]
    assert tuple(drawn[:, 200, 120].tolist()) == class_color(0)
    assert torch.equal(drawn[:, 115:130, 190:210], GRAY[:, 115:130, 190:210])


def test_scores_are_part_of_the_label() -> None:
    plain, scored = (draw_objects(GRAY, BOX, ["cat"], colors=[(0, 0, 0)], scores=scores) for scores in (None, [0.87]))
    assert not torch.equal(plain, scored)


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (700, 2), (64, 48), (3000, 2000)], ids=str)
def test_images_of_any_size(size: tuple[int, int]) -> None:
    height, width = size
    image = torch.full((1, *size), 50, dtype=torch.uint8)
    boxes = [[0, 0, width, height], [-5, -5, 2, 2], [width - 1, height - 1, width + 9, height + 9]]
    mask = torch.ones(size)
    drawn = draw_objects(image, boxes, ["a", "b", "c"], colors=[class_color(i) for i in range(3)], masks=[mask] * 3)
    factor = drawn.shape[1] // height
    assert drawn.shape == (3, factor * height, factor * width)
    assert max(drawn.shape) >= min(MIN_SIDE, max(size))
    assert factor == 1 or max(size) < MIN_SIDE


def test_small_objects_of_a_large_image_are_not_covered() -> None:
    image = torch.zeros(1, 3000, 4000, dtype=torch.uint8)
    boxes = torch.tensor([[1000.0, 1000.0, 1060.0, 1060.0]])
    drawn = draw_objects(image, boxes, ["car"], colors=[(255, 255, 255)], keypoints=[[[1030.0, 1030.0, 1.0]]])
    inside = drawn[:, 1000:1060, 1000:1060] > 0
    assert inside.float().mean() < 0.2
    rows, columns = drawn.amax(0).nonzero().unbind(1)
    assert (rows.amax() - rows.amin(), columns.amax() - columns.amin()) < (120, 120)


def test_no_objects_leave_the_image_as_it_is() -> None:
    assert torch.equal(draw_objects(GRAY, torch.zeros(0, 4), [], colors=[]), GRAY)
    assert torch.equal(draw_objects(GRAY.float(), [], [], colors=[]), GRAY)


def test_labels_do_not_cover_each_other() -> None:
    """Of many objects at one place, those that come first have labels."""
    boxes = BOX.repeat(30, 1)
    many = draw_objects(GRAY, boxes, ["cat"] * 30, colors=[class_color(0)] * 30)
    assert torch.equal(many[:, 300:], GRAY[:, 300:])


@pytest.mark.parametrize("name", ["猫", "\u0642\u0637", "a\nb", "$x$", "x" * 500, "", "\ud800"])
def test_names_of_any_characters(name: str) -> None:
    drawn = draw_objects(GRAY, BOX, [name], colors=[class_color(0)])
    assert torch.equal(drawn[:, 300:], GRAY[:, 300:])


def test_colors_are_stable_and_differ() -> None:
    assert class_color(0) == PALETTE[0]
    colors = [class_color(i) for i in range(3 * len(PALETTE))]
    assert min(sum(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in combinations(colors, 2)) >= 30
    assert class_color(3 * len(PALETTE)) == colors[0]


def test_images_side_by_side() -> None:
    both = draw_beside([("annotated", GRAY), ("predicted", GRAY)])
    height, width = both.shape[1:]
    assert width > 1280
    assert torch.equal(both[:, height - 480 :, :640], GRAY)
    assert torch.equal(both[:, height - 480 :, width - 640 :], GRAY)


def test_large_images_are_shrunk() -> None:
    assert shrink(torch.zeros(3, 1000, 2000, dtype=torch.uint8), 500).shape == (3, 250, 500)
    assert torch.equal(shrink(GRAY, 640), GRAY)
    assert shrink(torch.zeros(3, 1, 5000), 100).shape == (3, 1, 100)
