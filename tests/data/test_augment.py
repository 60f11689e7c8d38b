"""Augmentation of batches equals torchvision's functions of single images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import functional as tv

from convatlas.core.preprocessing import Preprocessing
from convatlas.data import augment_ops
from convatlas.data.augment import (
    Augment,
    augment_pixels,
    crop_and_resize,
    erase,
    mix,
    mixing_partners,
    random_crops,
)
from convatlas.data.dataset import Images
from convatlas.data.loader import BatchLoader
from convatlas.data.rng import BatchRandom
from convatlas.errors import SpecError
from convatlas.tasks.known import Classification
from convatlas.tasks.targets import Targets

NONE = torch.zeros(8, dtype=torch.bool)


@pytest.fixture
def images() -> Tensor:
    """Return eight smooth images."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (8, 3, 6, 6), generator=generator).float()
    return F.interpolate(coarse, (24, 24), mode="bicubic").clamp(0, 255).round().to(torch.uint8)


def random(count: int = 8, *, seed: int = 0, epoch: int = 0) -> BatchRandom:
    return BatchRandom(torch.arange(count), seed, epoch)


# --- crops


@given(st.floats(0.02, 1), st.floats(0.2, 5))
def test_crops_are_inside_the_image_and_have_area_and_aspect_ratio_within_bounds(
    smallest: float, aspect: float
) -> None:
    start, extent = random_crops(random(64), smallest, torch.full((64,), aspect))
    assert (start >= 0).all()
    assert (start + extent <= 1 + 1e-6).all()
    ratio = extent[:, 1] / extent[:, 0] * aspect
    assert (ratio >= 0.75 - 1e-4).all()
    assert (ratio <= 4 / 3 + 1e-4).all()
    whole = ((extent - 1).abs() < 1e-6).any(1)  # the central box, if no random one fits
    assert (extent.prod(1)[~whole] >= smallest - 1e-5).all()


def test_crops_have_the_mean_area_of_torchvision() -> None:
    from torchvision.transforms import RandomResizedCrop

    _, extent = random_crops(random(4000), 0.08, torch.full((4000,), 1.5))
    torch.manual_seed(0)
    image = torch.empty(1, 400, 600)
    boxes = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    theirs = sum(height * width for _, _, height, width in boxes) / 4000 / (400 * 600)
    assert extent.prod(1).mean().item() == pytest.approx(theirs, abs=0.02)


@pytest.mark.parametrize("box", [(0, 0, 24, 24), (3, 5, 16, 12), (0, 0, 8, 8), (10, 2, 14, 20)])
@pytest.mark.parametrize("size", [8, 16, 24, 31])
def test_crop_and_resize_equals_torchvision(images: Tensor, box: tuple[int, int, int, int], size: int) -> None:
    top, left, height, width = box
    start, extent = (torch.tensor([pair]).expand(8, 2) / 24 for pair in ((top, left), (height, width)))
    ours = crop_and_resize(images.float(), start, extent, size=size, flip=NONE)
    theirs = tv.resized_crop(images.float(), top, left, height, width, [size, size], antialias=True)
    assert (ours - theirs).abs().max() < 0.01 * 255
    mirrored = crop_and_resize(images.float(), start, extent, size=size, flip=~NONE)
    assert torch.equal(mirrored, ours.flip(-1))


# --- colors


FUNCTIONS: list[tuple[Callable[..., Tensor], Callable[..., Any], list[float]]] = [
    (augment_ops.adjust_brightness, tv.adjust_brightness, [0.0, 0.5, 1.0, 1.7]),
    (augment_ops.adjust_contrast, tv.adjust_contrast, [0.0, 0.5, 1.0, 1.7]),
    (augment_ops.adjust_saturation, tv.adjust_saturation, [0.0, 0.5, 1.0, 1.7]),
    (augment_ops.sharpen, tv.adjust_sharpness, [0.0, 0.5, 1.0, 1.7]),
    (augment_ops.posterize, lambda x, bits: tv.posterize(x, int(bits)), [8, 6, 4, 2]),
    (augment_ops.solarize, tv.solarize, [255, 128, 3]),
    (augment_ops.autocontrast, lambda x, _: tv.autocontrast(x), [0]),
    (augment_ops.equalize, lambda x, _: tv.equalize(x), [0]),
]


@pytest.mark.parametrize(("ours", "theirs", "strengths"), FUNCTIONS, ids=[row[0].__name__ for row in FUNCTIONS])
def test_operations_equal_torchvision(
    images: Tensor, ours: Callable[..., Tensor], theirs: Callable[..., Tensor], strengths: list[float]
) -> None:
    for strength in strengths:
        got = ours(images.float(), torch.full((8,), float(strength)))
        expected = theirs(images, strength).float()
        assert (got - expected).abs().max() < 2, strength  # torchvision truncates to integers, twice


def test_policies_keep_the_range_of_values(images: Tensor) -> None:
    many = images.repeat(64, 1, 1, 1)
    for policy in ("trivial", "rand"):
        changes = augment_pixels(many, random(512), Augment(policy=policy), size=24)
        assert changes.min() >= 0
        assert changes.max() <= 255
        same = (changes == many).flatten(1).all(1).float().mean().item()
        assert 0.001 < same < 0.4
    gray = augment_pixels(many[:, :1], random(512), Augment(policy="trivial"), size=24)
    assert gray.shape == (512, 1, 24, 24)


# --- erasing and mixing


def test_a_rectangle_is_erased_in_a_share_of_the_images() -> None:
    inputs = torch.ones(2000, 1, 20, 20)
    hidden = erase(inputs, random(2000), 0.25) == 0
    touched = hidden.flatten(1).any(1)
    assert touched.float().mean().item() == pytest.approx(0.25, abs=0.04)
    area = hidden[touched].flatten(1).float().mean(1)
    assert area.min() > 0
    assert area.max() < 0.4
    rows, columns = hidden.any(3)[touched, 0], hidden.any(2)[touched, 0]
    assert torch.equal(hidden[touched, 0], rows[:, :, None] & columns[:, None, :])


def test_mixing_partners_are_other_images() -> None:
    chosen = mixing_partners(random(500), 500)
    assert (chosen != torch.arange(500)).all()
    assert 250 < len(chosen.unique()) < 400


@pytest.mark.parametrize("augment", [Augment(mixup=0.4), Augment(cutmix=1.0), Augment(mixup=0.2, cutmix=1.0)])
def test_the_weight_of_the_label_is_the_share_of_the_image(augment: Augment) -> None:
    inputs, others = torch.ones(400, 1, 32, 32), torch.zeros(400, 1, 32, 32)
    mixed, own = mix(inputs, others, random(400), augment)
    assert torch.allclose(mixed.mean((1, 2, 3)), own, atol=1e-5)
    pasted = ((mixed == 0) | (mixed == 1)).flatten(1).all(1)
    assert pasted.float().mean().item() == pytest.approx(
        1.0 if not augment.mixup else 0.5 if augment.cutmix else 0.0, abs=0.12
    )
    # a rectangle across the border is smaller
    expected = 0.66 if not augment.mixup else 0.5 if not augment.cutmix else 0.58
    assert own.mean().item() == pytest.approx(expected, abs=0.05)


def test_mixing_is_a_function_of_seed_epoch_and_image() -> None:
    pixels = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images = Images(pixels, Targets(label=torch.arange(20) % 4), [str(i) for i in range(20)])
    augment, task = Augment(mixup=0.4, cutmix=1.0), Classification(("a", "b", "c", "d"))
    loaders = [
        BatchLoader(images, Preprocessing(8, 8), task, batch=batch, seed=3, augment=augment) for batch in (20, 7)
    ]
    for epoch in (0, 5):
        whole, parts = ([*loader.epoch(epoch)] for loader in loaders)
        inputs = torch.cat([part.inputs for part in parts if isinstance(part.inputs, Tensor)])
        labels = [part.targets.tensor("mixed") for part in parts]
        assert isinstance(whole[0].inputs, Tensor)
        assert torch.equal(whole[0].inputs, inputs)
        assert torch.equal(whole[0].targets.tensor("mixed"), torch.cat(labels))
        assert torch.allclose(torch.cat(labels).sum(1), torch.ones(20))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_crop_area": 1.5}, r"min_crop_area must be a number in \[0, 1\], got 1\.5"),
        ({"max_shift": -1}, "max_shift must be an integer >= 0, got -1"),
        ({"policy": "auto"}, "policy must be one of .*, got 'auto'"),
        ({"jitter": -0.1}, r"jitter must be a number in \[0, 1\], got -0\.1"),
        ({"random_erasing": 2}, r"random_erasing must be a number in \[0, 1\], got 2"),
        ({"magnitude": 31}, r"magnitude must be an integer in \[\d, 30\], got 31"),
    ],
)
def test_impossible_augmentations_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=f"Augment: {message}"):
        Augment(**values)
