"""Augmented images of detectors: boxes, masks and keypoints change as the pixels do."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.augment import Augment, jitter_colors
from convatlas.data.augment_objects import (
    MIN_AREA,
    Augmented,
    augment_objects,
    crop,
    flip,
    jitter_image,
    shift_hue,
)
from convatlas.data.rng import BatchRandom, Purpose, derive_key
from convatlas.data.segment_geometry import segment_boxes
from convatlas.errors import SpecError
from convatlas.tasks.detection.masks import encode, to_dense
from convatlas.tasks.detection.objects import Objects, Segment, no_objects

WHOLE = Preprocessing(200, 200, max_size=333, mean=(0.0,) * 3, std=(1.0,) * 3)
HEIGHT, WIDTH = SIZE = (40, 60)
FLIP_ORDER = (0, 2, 1)
ALL = Augment(flip=True, multi_scale=0.5, scale_jitter=3.0, jitter=0.4)


def rectangle(x1: float, y1: float, x2: float, y2: float) -> Segment:
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def ellipse(x1: float, y1: float, x2: float, y2: float) -> Segment:
    """Return the run lengths of an ellipse in a box."""
    rows, columns = torch.arange(HEIGHT)[:, None] + 0.5, torch.arange(WIDTH)[None] + 0.5
    inside = ((columns * 2 - x1 - x2) / (x2 - x1)) ** 2 + ((rows * 2 - y1 - y2) / (y2 - y1)) ** 2 <= 1
    return encode(inside[None])[0]


@st.composite
def objects_of_images(draw: st.DrawFn) -> Objects:
    """Return up to five objects with polygons or run lengths, keypoints and crowds; coordinates are quarter pixels."""
    corners = [
        (draw(st.integers(0, 4 * WIDTH - 16)), draw(st.integers(0, 4 * HEIGHT - 16)))
        for _ in range(draw(st.integers(0, 5)))
    ]
    boxes = [
        (x / 4, y / 4, draw(st.integers(x + 16, 4 * WIDTH)) / 4, draw(st.integers(y + 16, 4 * HEIGHT)) / 4)
        for x, y in corners
    ]
    count = len(boxes)
    keypoints = torch.zeros(count, 3, 3)
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        keypoints[i] = torch.tensor([[x1, y1, 2], [x2, y2, 1], [0, 0, 0]])
    return Objects(
        SIZE,
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor([draw(st.integers(0, 2)) for _ in boxes], dtype=torch.int64),
        segments=tuple(draw(st.sampled_from((rectangle, ellipse)))(*box) for box in boxes),
        keypoints=keypoints,
        crowd=torch.tensor([draw(st.booleans()) for _ in boxes], dtype=torch.bool),
        areas=torch.ones(count),
    )


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randint(0, 256, (3, *SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def augmented(
    objects: Objects, sample: int, augment: Augment = ALL, pixels: Tensor | None = None, epoch: int = 0
) -> Augmented:
    image = torch.zeros(3, *objects.size, dtype=torch.uint8) if pixels is None else pixels
    return augment_objects(image, objects, BatchRandom(torch.tensor([sample]), 5, epoch), augment, WHOLE, FLIP_ORDER)


# --- any augmentation


@given(objects_of_images(), st.integers(0, 10_000))
def test_boxes_are_inside_and_masks_are_inside_their_boxes(objects: Objects, sample: int) -> None:
    result = augmented(objects, sample)
    after, (height, width) = result.objects, result.image.shape[-2:]
    assert after.size == (height, width)
    x1, y1, x2, y2 = after.boxes.unbind(1)
    assert ((x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height) & (x1 < x2) & (y1 < y2)).all()
    assert after.segments is not None
    around = segment_boxes(after.segments, after.size)
    low, high = after.boxes.split(2, 1)
    assert (around[:, :2] >= low - 1).all()  # an ellipse is around pixels, a box between them
    assert (around[:, 2:] <= high + 1).all()
    assert after.keypoints is not None
    x, y, visibility = after.keypoints.unbind(-1)
    assert ((x >= 0) & (x <= width) & (y >= 0) & (y <= height)).all()
    assert (after.keypoints[visibility == 0] == 0).all()


@given(objects_of_images(), st.integers(0, 10_000))
def test_objects_are_dropped_but_never_added_and_keep_their_order(objects: Objects, sample: int) -> None:
    numbered = Objects(SIZE, objects.boxes, torch.arange(len(objects)), crowd=objects.crowd)
    kept = augmented(numbered, sample).objects
    labels = kept.labels.tolist()
    assert labels == sorted(set(labels))
    assert kept.crowd is not None
    assert numbered.crowd is not None
    assert torch.equal(kept.crowd, numbered.crowd[kept.labels])


@given(objects_of_images(), st.integers(0, 10_000))
def test_a_sample_is_the_same_whenever_it_is_drawn(objects: Objects, sample: int) -> None:
    first, _, again = augmented(objects, sample), augmented(objects, sample + 1), augmented(objects, sample)
    assert torch.equal(first.image, again.image)
    assert first.objects.to_bytes() == again.objects.to_bytes()
    assert (first.short_side, first.seed) == (again.short_side, again.seed)
    assert first.seed == derive_key(5, 0, 115, sample)
    assert first.seed != augmented(objects, sample, epoch=1).seed


def test_without_augmentation_an_image_is_divided_by_255(pixels: Tensor) -> None:
    result = augmented(no_objects(SIZE), 3, Augment(), pixels)
    assert torch.equal(result.image, pixels / 255)
    assert result.short_side == 200
    assert len(result.objects) == 0


def test_scales_are_within_their_bounds() -> None:
    sides = [augmented(no_objects(SIZE), i, Augment(multi_scale=0.5)).short_side for i in range(300)]
    assert min(sides) in range(100, 105)
    assert max(sides) in range(195, 201)
    results = [augmented(no_objects(SIZE), i, Augment(scale_jitter=2.0)) for i in range(300)]
    cropped = [result for result in results if result.objects.size != SIZE]
    assert 100 < len(cropped) < 200
    assert all(result.short_side == 200 for result in cropped)
    assert all(20 <= result.objects.size[0] <= 40 and 30 <= result.objects.size[1] <= 60 for result in cropped)
    smaller = [result.short_side for result in results if result.objects.size == SIZE]
    assert min(smaller) in range(100, 105)
    assert len(set(smaller)) > 50


def test_flips_are_half_of_the_images(pixels: Tensor) -> None:
    results = [augmented(no_objects(SIZE), i, Augment(flip=True), pixels).image for i in range(300)]
    flipped = sum(torch.equal(image, pixels.flip(-1) / 255) for image in results)
    assert 110 < flipped < 190
    assert flipped + sum(torch.equal(image, pixels / 255) for image in results) == 300


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_colors_of_any_number_of_channels_change(channels: int) -> None:
    steps = WHOLE.for_channels(channels)
    image = torch.randint(0, 256, (channels, *SIZE), dtype=torch.uint8)
    random = BatchRandom(torch.tensor([1]), 0, 0)
    result = augment_objects(image, no_objects(SIZE), random, Augment(jitter=0.5), steps).image
    assert result.shape == image.shape
    assert 0 <= result.min() < result.max() <= 1
    assert not torch.allclose(result, image / 255, atol=0.02)


def test_brightness_contrast_and_saturation_are_those_of_batches() -> None:
    image = torch.randint(0, 256, (3, *SIZE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8).float()
    for sample in range(5):
        random = BatchRandom(torch.tensor([sample]), 7, 2)
        expected = jitter_colors(image[None], random, 0.4)[0] / 255
        turns = random.uniform(Purpose.HUE, -0.04, 0.04).item()
        # torchvision rounds the weights of the luma
        assert torch.allclose(jitter_image(image / 255, random, 0.4), shift_hue(expected, turns), atol=1e-3)
        gray = image[:1] / 255
        assert torch.allclose(jitter_image(gray, random, 0.4), jitter_colors(image[None, :1], random, 0.4)[0] / 255)


@given(st.floats(-0.5, 0.5))
def test_a_shift_of_hue_equals_that_of_torchvision(turns: float) -> None:
    image = torch.randint(0, 5, (3, *SIZE), generator=torch.Generator().manual_seed(1)) / 4  # many equal channels
    assert torch.allclose(shift_hue(image, turns), v2.functional.adjust_hue(image, turns), atol=1e-5)


def test_a_factor_that_would_be_no_jitter_is_refused() -> None:
    with pytest.raises(SpecError, match=r"Augment: scale_jitter must be 0 or in \[1, 10\], got 0\.5"):
        Augment(scale_jitter=0.5)
    with pytest.raises(SpecError, match=r"multi_scale must be a number in \[0, 1\), got 1"):
        Augment(multi_scale=1.0)


# --- flips


@given(objects_of_images())
def test_a_flip_twice_is_the_identity(objects: Objects) -> None:
    pixels = torch.arange(3 * HEIGHT * WIDTH).view(3, *SIZE)
    once_pixels, once = flip(pixels, objects, FLIP_ORDER)
    twice_pixels, twice = flip(once_pixels, once, FLIP_ORDER)
    assert torch.equal(twice_pixels, pixels)
    assert torch.equal(twice.boxes, objects.boxes)
    assert twice.segments == objects.segments
    assert twice.keypoints is not None
    assert objects.keypoints is not None
    assert torch.equal(twice.keypoints, objects.keypoints)


@given(objects_of_images())
def test_a_flip_equals_that_of_torchvision(objects: Objects) -> None:
    pixels = torch.arange(3 * HEIGHT * WIDTH).view(3, *SIZE)
    assert objects.segments is not None
    runs = encode(to_dense(objects.segments, SIZE))
    image, changed = flip(pixels, Objects(SIZE, objects.boxes, objects.labels, segments=runs))
    expected_image, boxes, masks = v2.RandomHorizontalFlip(p=1)(
        tv_tensors.Image(pixels),
        tv_tensors.BoundingBoxes(objects.boxes, format="XYXY", canvas_size=SIZE),
        tv_tensors.Mask(to_dense(runs, SIZE)),
    )
    assert torch.equal(image, expected_image)
    assert torch.equal(changed.boxes, boxes)
    assert changed.segments is not None
    assert torch.equal(to_dense(changed.segments, SIZE), masks)


def test_left_and_right_change_places_and_unlabeled_points_stay_at_0() -> None:
    points = torch.tensor([[[10.0, 5, 2], [20, 6, 2], [30, 7, 1]], [[0, 0, 0], [0, 0, 0], [40, 8, 2]]])
    objects = Objects(SIZE, torch.tensor([[5.0, 0, 35, 9], [5, 0, 45, 9]]), torch.zeros(2).long(), keypoints=points)
    _, flipped = flip(torch.zeros(3, *SIZE), objects, FLIP_ORDER)
    assert flipped.keypoints is not None
    assert flipped.keypoints.tolist() == [[[50, 5, 2], [30, 7, 1], [40, 6, 2]], [[0, 0, 0], [20, 8, 2], [0, 0, 0]]]
    assert flipped.boxes.tolist() == [[25, 0, 55, 9], [15, 0, 55, 9]]
    _, plain = flip(torch.zeros(3, *SIZE), objects)
    assert plain.keypoints is not None
    assert plain.keypoints[0, :, 0].tolist() == [50, 40, 30]


# --- crops

crops = st.tuples(st.integers(0, 20), st.integers(0, 30), st.integers(5, 20), st.integers(5, 30))


@given(objects_of_images(), crops)
def test_a_crop_equals_that_of_torchvision(objects: Objects, box: tuple[int, int, int, int]) -> None:
    pixels = torch.arange(3 * HEIGHT * WIDTH).view(3, *SIZE)
    assert objects.segments is not None
    runs = encode(to_dense(objects.segments, SIZE))
    numbers = torch.arange(len(objects))
    image, with_masks = crop(pixels, Objects(SIZE, objects.boxes, numbers, segments=runs), box)
    _, plain = crop(pixels, Objects(SIZE, objects.boxes, numbers), box)
    boxes = v2.functional.crop(tv_tensors.BoundingBoxes(objects.boxes, format="XYXY", canvas_size=SIZE), *box)
    masks = v2.functional.crop(to_dense(runs, SIZE), *box)
    assert torch.equal(image, v2.functional.crop(pixels, *box))
    assert torch.equal(plain.boxes, boxes[plain.labels])
    assert with_masks.segments is not None
    assert torch.equal(to_dense(with_masks.segments, box[2:]), masks[with_masks.labels])
    area = (objects.boxes[:, 2:] - objects.boxes[:, :2]).prod(1)
    sides = boxes[:, 2:] - boxes[:, :2]
    enough = (sides.prod(1) >= MIN_AREA * area) & (sides >= 1).all(1)
    assert plain.labels.tolist() == enough.nonzero().flatten().tolist()
    assert set(with_masks.labels.tolist()) <= set(plain.labels.tolist())


@given(objects_of_images(), crops)
def test_a_cropped_polygon_is_the_cropped_mask(objects: Objects, box: tuple[int, int, int, int]) -> None:
    polygons = tuple(rectangle(*map(round, each)) for each in objects.boxes.tolist())
    boxes = torch.tensor([[*each[0][:2], *each[0][4:6]] for each in polygons]).reshape(-1, 4).float()
    _, cropped = crop(torch.zeros(3, *SIZE), Objects(SIZE, boxes, torch.arange(len(objects)), segments=polygons), box)
    assert cropped.segments is not None
    assert all(isinstance(segment, list) for segment in cropped.segments)
    expected = v2.functional.crop(to_dense(polygons, SIZE), *box)[cropped.labels]
    assert torch.equal(to_dense(cropped.segments, cropped.size), expected)
    assert torch.equal(cropped.boxes, segment_boxes(cropped.segments, cropped.size))


def test_a_box_that_is_cut_becomes_as_small_as_its_mask() -> None:
    corner = [[10.0, 10, 20, 10, 20, 38, 18, 38, 18, 12, 10, 12]]  # like the letter L, turned
    objects = Objects(SIZE, torch.tensor([[10.0, 10, 20, 38]]), torch.tensor([0]), segments=(corner,))
    _, cut = crop(torch.zeros(3, *SIZE), objects, (14, 0, 26, 60))
    assert cut.boxes.tolist() == [[18, 0, 20, 24]]
    _, whole = crop(torch.zeros(3, *SIZE), objects, (5, 5, 35, 55))
    assert whole.boxes.tolist() == [[5, 5, 15, 33]]
    assert whole.segments == ([[5, 5, 15, 5, 15, 33, 13, 33, 13, 7, 5, 7]],)


def test_small_rests_are_dropped_crowds_and_hidden_keypoints_are_kept() -> None:
    boxes = torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 20], [19, 0, 59, 20], [30, 5, 40, 15]])
    points = torch.tensor([[[5.0, 5, 2], [19.5, 19, 1], [0, 0, 0]]]).expand(4, 3, 3).clone()
    crowd = torch.tensor([False, True, False, False])
    objects = Objects(SIZE, boxes, torch.arange(4), keypoints=points, crowd=crowd, areas=torch.ones(4))
    _, cropped = crop(torch.zeros(3, *SIZE), objects, (0, 19, 40, 41))
    assert cropped.labels.tolist() == [1, 2, 3]  # a twentieth is left of the first
    assert cropped.boxes.tolist() == [[0, 0, 1, 20], [0, 0, 40, 20], [11, 5, 21, 15]]
    assert cropped.keypoints is not None
    assert cropped.keypoints[0].tolist() == [[0, 0, 0], [0.5, 19, 1], [0, 0, 0]]
    assert cropped.areas is None
    _, empty = crop(torch.zeros(3, *SIZE), objects, (30, 0, 10, 10))
    assert (len(empty), empty.size) == (0, (10, 10))


def test_factors_of_scale_are_uniform_in_their_logarithm() -> None:
    results = [augmented(no_objects((100, 100)), i, Augment(scale_jitter=4.0)) for i in range(400)]
    logs = [
        math.log(100 / r.objects.size[0]) if r.objects.size[0] < 100 else math.log(r.short_side / 200) for r in results
    ]
    assert abs(sum(logs) / len(logs)) < 0.15
    assert abs(sum(x * x for x in logs) / len(logs) - math.log(4) ** 2 / 3) < 0.1
