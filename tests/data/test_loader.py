"""Batches: everything random is a function of (seed, epoch, sample), whatever the batch, its order and the process."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.augment import Augment, augment_pixels
from convatlas.data.dataset import Images
from convatlas.data.loader import BatchLoader
from convatlas.data.rng import BatchRandom, derive_key, epoch_order, random_bits, uniform
from convatlas.errors import SpecError
from convatlas.tasks.known import Classification
from convatlas.tasks.targets import Batch, Targets

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
PREPROCESSING = Preprocessing(resize=6, crop=6, fill=9, mean=(0.5,) * 3, std=(0.5,) * 3)
TASK = Classification(("a", "b", "c", "d"))

keys = st.integers(0, MASK)
samples = st.lists(st.integers(0, 2**40), min_size=1, max_size=20)


def mix(state: int) -> int:
    """The output function of SplitMix64 (Steele, Lea, Flood 2014) in unbounded integers."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


@given(keys, samples)
def test_random_bits_are_splitmix64(key: int, numbers: list[int]) -> None:
    expected = [mix((key + number * GOLDEN) & MASK) for number in numbers]
    assert [bits & MASK for bits in random_bits(key, torch.tensor(numbers)).tolist()] == expected


def test_random_bits_equal_the_published_sequence() -> None:
    # the first outputs of SplitMix64 with seed 1234567, as in the reference implementation's tests
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [bits & MASK for bits in random_bits(1234567, torch.arange(1, 4)).tolist()] == expected


@given(st.lists(st.integers(0, MASK), min_size=1, max_size=4))
def test_derived_keys_chain_splitmix64(numbers: list[int]) -> None:
    key = 0
    for number in numbers:
        key = mix((key + (number + 1) * GOLDEN) & MASK)
    assert derive_key(*numbers) == key


def test_derived_keys_differ_in_every_number_and_in_their_order() -> None:
    found = {derive_key(a, b, c) for a in range(10) for b in range(10) for c in range(10)}
    assert len(found) == 1000
    assert len({derive_key(0), derive_key(0, 0), derive_key(0, 0, 0)}) == 3


@given(keys, samples)
def test_uniform_takes_the_upper_24_bits(key: int, numbers: list[int]) -> None:
    expected = [(mix((key + number * GOLDEN) & MASK) >> 40) / 2**24 for number in numbers]
    assert uniform(key, torch.tensor(numbers)).tolist() == expected


def test_uniform_is_flat_and_uncorrelated_between_neighbors() -> None:
    drawn = uniform(derive_key(3, 1), torch.arange(100_000))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.005)
    counts = torch.histc(drawn, 20, 0, 1)
    assert ((counts - 5000).abs() < 350).all()  # five standard deviations
    assert abs(torch.corrcoef(torch.stack([drawn[:-1], drawn[1:]]))[0, 1].item()) < 0.02


@given(st.integers(0, 2**32), st.integers(0, 1000), st.integers(1, 300))
def test_epoch_order_is_a_permutation(seed: int, epoch: int, count: int) -> None:
    assert epoch_order(seed, epoch, count).sort().values.tolist() == list(range(count))


def test_epoch_order_depends_on_seed_and_epoch_alone() -> None:
    first = epoch_order(0, 0, 100)
    assert torch.equal(first, epoch_order(0, 0, 100))
    assert not torch.equal(first, epoch_order(1, 0, 100))
    assert not torch.equal(first, epoch_order(0, 1, 100))


@pytest.fixture
def images() -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (23, 3, 6, 6), dtype=torch.uint8, generator=generator)
    return Images(pixels, Targets(label=torch.arange(23) % 4), [f"image {i}" for i in range(23)])


def pixels_of(images: Images) -> Tensor:
    assert isinstance(images.pixels, Tensor)
    return images.pixels


AUGMENTS = [
    Augment(max_shift=2), Augment(flip=True), Augment(max_shift=3, flip=True), Augment(jitter=0.4),
    Augment(policy="trivial"),
    Augment(policy="rand", magnitude=15), Augment(min_crop_area=0.2, flip=True),
]  # fmt: skip


@pytest.mark.parametrize("augment", AUGMENTS)
@given(st.permutations(range(23)), st.integers(1, 23))
def test_augmentation_does_not_depend_on_the_batch(augment: Augment, order: list[int], batch: int) -> None:
    pixels = torch.arange(23 * 3 * 36).view(23, 3, 6, 6).to(torch.uint8)
    whole = augment_pixels(pixels, BatchRandom(torch.arange(23), 5, 2), augment, size=6, fill=9)
    for chosen in torch.tensor(order).split(batch):
        assert torch.equal(
            augment_pixels(pixels[chosen], BatchRandom(chosen, 5, 2), augment, size=6, fill=9), whole[chosen]
        )


@pytest.mark.parametrize("augment", AUGMENTS)
def test_augmentation_depends_on_seed_and_epoch(augment: Augment, images: Images) -> None:
    numbers = torch.arange(23)
    first = augment_pixels(pixels_of(images), BatchRandom(numbers, 0, 0), augment, size=6)
    assert torch.equal(first, augment_pixels(pixels_of(images), BatchRandom(numbers, 0, 0), augment, size=6))
    assert not torch.equal(first, augment_pixels(pixels_of(images), BatchRandom(numbers, 0, 1), augment, size=6))
    assert not torch.equal(first, augment_pixels(pixels_of(images), BatchRandom(numbers, 1, 0), augment, size=6))


@pytest.mark.parametrize("shift", [1, 2, 7])
def test_shift_equals_a_naive_loop(shift: int, images: Images) -> None:
    numbers = torch.arange(23)
    shifted = augment_pixels(pixels_of(images), BatchRandom(numbers, 3, 4), Augment(max_shift=shift), size=6, fill=9)
    span = 2 * shift + 1
    down, right = ((uniform(derive_key(3, 4, 2 + axis), numbers) * span).long().tolist() for axis in (0, 1))
    for i, image in enumerate(pixels_of(images)):
        expected = torch.full_like(image, 9)
        for y in range(6):
            for x in range(6):
                source_y, source_x = y + down[i] - shift, x + right[i] - shift
                if 0 <= source_y < 6 and 0 <= source_x < 6:
                    expected[:, y, x] = image[:, source_y, source_x]
        assert torch.equal(shifted[i], expected)


def test_every_offset_of_a_shift_is_about_equally_frequent() -> None:
    pixels = torch.zeros(5000, 1, 5, 5, dtype=torch.uint8)
    pixels[:, :, 2, 2] = 1
    counts = augment_pixels(pixels, BatchRandom(torch.arange(5000), 0, 0), Augment(max_shift=2), size=6).sum(
        0, dtype=torch.int64
    )[0]
    assert ((counts - 200).abs() < 75).all()  # 25 offsets, five standard deviations


def test_flip_mirrors_about_half_of_the_images() -> None:
    pixels = torch.arange(4, dtype=torch.uint8).expand(1000, 1, 2, 4).contiguous()
    flipped = augment_pixels(pixels, BatchRandom(torch.arange(1000), 0, 0), Augment(flip=True), size=6)
    mirrored = (flipped == pixels.flip(-1)).flatten(1).all(1)
    kept = (flipped == pixels).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert 420 < int(mirrored.sum()) < 580


def test_without_augmentation_images_are_unchanged(images: Images) -> None:
    assert torch.equal(
        augment_pixels(pixels_of(images), BatchRandom(torch.arange(23), 0, 0), Augment(), size=6), pixels_of(images)
    )


def test_a_negative_shift_is_refused() -> None:
    with pytest.raises(SpecError, match="Augment: max_shift must be an integer >= 0, got -1"):
        Augment(max_shift=-1)


def loader(images: Images, *, batch: int = 5, seed: int = 1, shuffle: bool = True) -> BatchLoader:
    return BatchLoader(images, PREPROCESSING, TASK, batch=batch, seed=seed, shuffle=shuffle, augment=AUGMENTS[2])


@pytest.mark.parametrize("start", range(6))
def test_an_epoch_started_at_a_batch_has_the_same_remaining_batches(start: int, images: Images) -> None:
    whole, rest = list(loader(images).epoch(3)), list(loader(images).epoch(3, start=start))
    assert len(rest) == len(whole) - start
    for expected, batch in zip(whole[start:], rest, strict=True):
        assert isinstance(batch.inputs, Tensor)
        assert isinstance(expected.inputs, Tensor)
        assert torch.equal(batch.inputs, expected.inputs)
        assert torch.equal(batch.targets.tensor("label"), expected.targets.tensor("label"))
        assert torch.equal(batch.indices, expected.indices)
        assert batch.size == expected.size


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch", [1, 5, 23, 100])
def test_an_epoch_has_every_sample_once(batch: int, shuffle: bool, images: Images) -> None:
    batches = list(loader(images, batch=batch, shuffle=shuffle).epoch(0))
    indices = torch.cat([b.indices for b in batches])
    assert len(batches) == loader(images, batch=batch).steps
    assert [b.size for b in batches] == [len(b.inputs) for b in batches]
    assert indices.sort().values.tolist() == list(range(23))
    assert (indices.tolist() == list(range(23))) is not shuffle
    label = torch.cat([b.targets.tensor("label") for b in batches])
    assert torch.equal(label, images.targets.tensor("label")[indices])


def test_the_inputs_of_a_sample_do_not_depend_on_the_batch(images: Images) -> None:
    def inputs(batch: int) -> Tensor:
        batches = loader(images, batch=batch).epoch(2)
        return torch.cat([b.inputs for b in batches if isinstance(b.inputs, Tensor)])

    assert len(inputs(1)) == 23
    assert torch.equal(inputs(1), inputs(23))


@pytest.mark.parametrize("augment", [AUGMENTS[2], Augment(mixup=0.4, cutmix=1.0)])
def test_shards_make_up_the_batches_of_one_process(augment: Augment, images: Images) -> None:
    def batches(rank: int, world_size: int) -> list[Batch]:
        shares = BatchLoader(
            images, PREPROCESSING, TASK, batch=5, seed=1, augment=augment, shard=lambda x: x[rank::world_size]
        )
        return list(shares.epoch(1))

    for whole, *parts in zip(batches(0, 1), batches(0, 2), batches(1, 2), strict=True):
        assert isinstance(whole.inputs, Tensor)
        for rank, part in enumerate(parts):
            assert isinstance(part.inputs, Tensor)
            assert torch.equal(part.inputs, whole.inputs[rank::2])
            assert torch.equal(TASK.labels(part.targets), TASK.labels(whole.targets)[rank::2])
            assert torch.equal(part.indices, whole.indices[rank::2])
            assert part.size == whole.size == len(whole.inputs)


def test_mixed_batches_have_the_labels_of_both_images(images: Images) -> None:
    mixed = BatchLoader(images, PREPROCESSING, TASK, batch=23, seed=1, augment=Augment(mixup=0.4))
    (batch,) = mixed.epoch(0)
    shares, label = batch.targets.tensor("mixed"), batch.targets.tensor("label")
    assert shares.shape == (23, 4)
    assert torch.allclose(shares.sum(1), torch.ones(23))
    assert (shares.gather(1, label[:, None]) > 0).all()
    assert torch.equal(label, images.targets.tensor("label")[batch.indices])
    plain = BatchLoader(images, PREPROCESSING, TASK, batch=23, seed=1)
    assert "mixed" not in next(plain.epoch(0)).targets
