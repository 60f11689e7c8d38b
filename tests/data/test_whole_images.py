"""Whole images: decoded once into a cache of images of different sizes, or streamed; and their batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.data import pixel_cache
from convatlas.data.augment import Augment
from convatlas.data.dataset import Images, concatenate_images
from convatlas.data.decode.pixels import read_image
from convatlas.data.loader import BatchLoader
from convatlas.data.manifest import Manifest
from convatlas.data.prepare import prepare_split
from convatlas.data.samples import Samples
from convatlas.data.stream import prefetch
from convatlas.data.whole_images import WholeImages
from convatlas.errors import DataError, SpecError
from convatlas.tasks.detection.objects import Objects, no_objects
from convatlas.tasks.known import ObjectDetection
from convatlas.tasks.targets import Batch, Targets

STEPS = Preprocessing(64, 64, max_size=107, mean=(0.0,) * 3, std=(1.0,) * 3)
SIZES = ((12, 20), (31, 9), (16, 16), (7, 40), (25, 18))
ROTATED = 6
"""The EXIF orientation of images that are to be rotated by 90 degrees."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the cache nor the memory can hold the images."""
    monkeypatch.setattr(pixel_cache, "CACHE_LIMIT", 100)
    monkeypatch.setattr(pixel_cache, "MEMORY_LIMIT", 100)


def one_object(size: tuple[int, int], label: int) -> Objects:
    return Objects(size, torch.tensor([[1.0, 2, size[1] - 2, size[0] - 1]]), torch.tensor([label]))


def targets_of(sizes: Sequence[tuple[int, int]]) -> Targets:
    return Targets(objects=[one_object(size, i) if i % 3 else no_objects(size) for i, size in enumerate(sizes)])


def image(size: tuple[int, int], seed: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    """Return image files of different sizes; the last one is stored rotated."""
    (tmp_path / "images").mkdir()
    names = [str(tmp_path / "images" / f"{i}.{'jpg' if i % 2 else 'png'}") for i in range(len(SIZES))]
    for i, (name, size) in enumerate(zip(names[:-1], SIZES, strict=False)):
        image(size, i).save(name)
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    image(SIZES[-1][::-1], 4).save(names[-1], exif=exif)
    return Samples(names, targets_of(SIZES))


def prepare(samples: Samples, steps: Preprocessing = STEPS) -> Images:
    images, unreadable = prepare_split(samples, "train", steps, for_random_crop=False, manifest=Manifest("here"))
    assert not unreadable
    return images


def whole(images: Images) -> WholeImages:
    assert isinstance(images.pixels, WholeImages)
    return images.pixels


def all_equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# --- pixels


def test_images_keep_their_size_and_are_decoded_once(
    samples: Samples, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = whole(prepare(samples))
    expected = [read_image(name, 3) for name in samples.names]
    assert [tuple(each.shape) for each in expected] == [(3, *size) for size in SIZES]
    assert list(images.sizes) == list(SIZES)
    assert not images.is_streamed
    assert all_equal(images.batch(torch.arange(5)), expected)
    (raw,) = cache.glob("*.raw")
    assert raw.stat().st_size == sum(3 * height * width for height, width in SIZES)
    monkeypatch.setattr("convatlas.data.stores.load_image", lambda *_, **__: pytest.fail("an image was decoded"))
    again = prepare(samples)
    assert all_equal(whole(again).batch(torch.arange(5)), expected)
    assert again.fingerprint() == prepare(samples).fingerprint()


def test_other_resolutions_use_the_same_pixels(samples: Samples, cache: Path) -> None:
    prepare(samples)
    prepare(samples, STEPS.for_resolution(320))
    assert len(list(cache.glob("*.raw"))) == 1
    prepare(samples, STEPS.for_channels(1))
    assert len(list(cache.glob("*.raw"))) == 2


@pytest.mark.usefixtures("no_room")
def test_streamed_images_are_decoded_when_they_are_indexed(samples: Samples, cache: Path) -> None:
    images = whole(prepare(samples))
    assert images.is_streamed
    assert not list(cache.glob("*.raw"))
    assert all_equal(images.batch(torch.arange(5)), [read_image(name, 3) for name in samples.names])
    Path(samples.names[2]).unlink()
    with pytest.raises(DataError, match=r"2\.png: no such file"):
        images.image(2)
    image((5, 5), 0).save(samples.names[2])
    with pytest.raises(DataError, match=r"2\.png: .* for 16 x 16 pixels, the image has 5 x 5"):
        images.image(2)


@pytest.mark.parametrize("streamed", [False, True])
def test_unreadable_images_are_left_out_with_their_objects(
    samples: Samples, streamed: bool, request: pytest.FixtureRequest
) -> None:
    if streamed:
        request.getfixturevalue("no_room")
    Path(samples.names[1]).write_bytes(b"no image")
    Path(samples.names[3]).unlink()
    for _ in range(2):
        images, unreadable = prepare_split(samples, "train", STEPS, for_random_crop=False, manifest=Manifest("here"))
        assert [Path(each.path).name for each in unreadable] == ["1.jpg", "3.jpg"]
        assert [Path(name).name for name in images.names] == ["0.png", "2.png", "4.png"]
        assert [objects.size for objects in images.targets["objects"]] == [SIZES[0], SIZES[2], SIZES[4]]
        assert list(whole(images).sizes) == [SIZES[0], SIZES[2], SIZES[4]]
        assert all_equal(whole(images).batch(torch.arange(3)), [read_image(name, 3) for name in images.names])


def test_a_size_that_is_not_that_of_the_file_is_named(samples: Samples, cache: Path) -> None:
    sizes = [*SIZES[:-1], SIZES[-1][::-1]]
    with pytest.raises(DataError, match=r"4\.png: its annotations are for 25 x 18 pixels, the image has 18 x 25; "):
        prepare(replace(samples, targets=targets_of(sizes)))
    assert not list(cache.glob("*"))
    with pytest.raises(DataError, match="in memory: its annotations are for"):
        prepare(Samples(["in memory"], targets_of([(3, 4)]), [torch.zeros(3, 4, 3, dtype=torch.uint8)]))


def test_images_in_memory(samples: Samples) -> None:
    pixels = [read_image(name, 3) for name in samples.names]
    images = prepare(replace(samples, pixels=pixels))
    assert all_equal(whole(images).batch(torch.arange(5)), pixels)
    gray = prepare(replace(samples, pixels=pixels), STEPS.for_channels(1))
    assert [tuple(each.shape) for each in whole(gray).batch(torch.arange(5))] == [(1, *size) for size in SIZES]
    assert images.fingerprint() == gray.fingerprint()
    changed = [each.clone() for each in pixels]
    changed[3][0, 0, 0] ^= 1
    assert prepare(replace(samples, pixels=changed)).fingerprint() != images.fingerprint()
    equal = torch.randint(0, 256, (4, 3, 6, 8), dtype=torch.uint8)
    stacked = prepare(Samples(list("abcd"), targets_of([(6, 8)] * 4), equal))
    assert all_equal(whole(stacked).batch(torch.arange(4)), equal.unbind())


def test_images_of_16_bits_fill_their_window(tmp_path: Path) -> None:
    names, values = [], []
    for i, size in enumerate(SIZES):
        values.append(np.random.default_rng(i).integers(0, 2**16, size, dtype=np.uint16))
        names.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(values[-1]).save(names[-1])
    steps = replace(STEPS.for_channels(1), window=(0.25, 0.75))
    for _ in range(2):
        images = whole(prepare(Samples(names, targets_of(SIZES)), steps))
        for pixels, expected in zip(steps.normalize(images.batch(torch.arange(5))), values, strict=True):
            assert pixels.dtype == torch.float32
            shares = ((expected / 65535 - 0.25) / 0.5).clip(0, 1)
            assert np.allclose(pixels[0].numpy(), shares, atol=1e-6)


@pytest.mark.parametrize("streamed", [False, True])
def test_subsets_and_concatenations(samples: Samples, streamed: bool, request: pytest.FixtureRequest) -> None:
    if streamed:
        request.getfixturevalue("no_room")
    images = prepare(samples)
    parts = [images.subset(torch.tensor(numbers)) for numbers in ([4, 0], [1], [3, 2])]
    joined = whole(concatenate_images(parts))
    expected = whole(images).batch(torch.tensor([4, 0, 1, 3, 2]))
    assert all_equal(joined.batch(torch.arange(5)), expected)
    assert list(joined.sizes) == [SIZES[i] for i in (4, 0, 1, 3, 2)]
    assert joined.is_streamed is streamed
    batches = list(prefetch(joined, torch.arange(5).split(2)))
    assert [numbers.tolist() for numbers, _ in batches] == [[0, 1], [2, 3], [4]]
    assert all_equal([each for _, pixels in batches for each in pixels], expected)


def test_preprocessing_of_whole_images() -> None:
    pixels = torch.randint(0, 256, (3, 30, 50), dtype=torch.uint8)
    (view,) = STEPS.tta_views(pixels, "none")
    assert torch.equal(view, pixels)
    with pytest.raises(SpecError, match="tta must be none for networks that read whole images, got 'flip'"):
        STEPS.tta_views(pixels, "flip")
    with pytest.raises(DataError, match=r"this network reads 3 channel\(s\), the image has 1"):
        STEPS.resize_and_crop(pixels[:1])
    inputs = STEPS.normalize([pixels, pixels[:, :5]])
    assert all_equal(inputs, [pixels / 255, pixels[:, :5] / 255])
    assert torch.equal(STEPS.denormalize(inputs[0][None])[0], pixels)
    larger = STEPS.for_resolution(800)
    assert (larger.resize, larger.crop, larger.max_size, larger.resolution) == (800, 800, 1338, 800)


# --- batches

TASK = ObjectDetection(tuple("abcdefghijklm"))
AUGMENT = Augment(flip=True, multi_scale=0.5, scale_jitter=2.0, jitter=0.3)
COUNT = 13


@pytest.fixture(scope="module")
def images() -> Images:
    generator = torch.Generator().manual_seed(0)
    sizes = [(10 + i, 30 - i) for i in range(COUNT)]
    pixels = [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    return prepare(Samples([str(i) for i in range(COUNT)], targets_of(sizes), pixels))


def loader(images: Images, batch: int, rank: int = 0, world_size: int = 1, seed: int = 1) -> BatchLoader:
    return BatchLoader(
        images, STEPS, TASK, batch=batch, seed=seed, augment=AUGMENT, shard=lambda numbers: numbers[rank::world_size]
    )


def by_sample(batches: Sequence[Batch]) -> dict[int, tuple[object, ...]]:
    """Return everything random of each sample, by its number."""
    rows: dict[int, tuple[object, ...]] = {}
    for batch in batches:
        columns = [batch.targets[name] for name in ("objects", "short_side", "seed")]
        for number, inputs, objects, short_side, seed in zip(
            batch.indices.tolist(), batch.inputs, *columns, strict=True
        ):
            assert number not in rows
            assert objects.size == inputs.shape[-2:]
            rows[number] = (inputs.numpy().tobytes(), objects.to_bytes(), short_side, seed)
    return rows


@settings(max_examples=20)
@given(st.integers(1, COUNT + 3), st.integers(0, 3), st.integers(1, 4))
def test_a_sample_does_not_depend_on_batches_and_processes(
    images: Images, batch: int, epoch: int, world_size: int
) -> None:
    expected = by_sample(list(loader(images, COUNT).epoch(epoch)))
    assert sorted(expected) == list(range(COUNT))
    shares = [list(loader(images, batch, rank, world_size).epoch(epoch)) for rank in range(world_size)]
    assert by_sample([each for share in shares for each in share]) == expected
    for parts in zip(*shares, strict=True):
        assert {part.size for part in parts} == {sum(len(part.inputs) for part in parts)}
    assert by_sample(list(loader(images, COUNT).epoch(epoch + 1))) != expected
    assert by_sample(list(loader(images, COUNT, seed=2).epoch(epoch))) != expected


@pytest.mark.parametrize("cores", [1, 5])
def test_a_sample_does_not_depend_on_the_number_of_threads(
    images: Images, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = by_sample(list(loader(images, 4).epoch(6)))
    monkeypatch.setattr("convatlas.data.threads.count_cores", lambda: cores)
    assert by_sample(list(loader(images, 4).epoch(6))) == expected


@pytest.mark.parametrize("start", range(5))
def test_an_epoch_continues_at_any_batch(images: Images, start: int) -> None:
    complete, rest = list(loader(images, 3).epoch(2)), list(loader(images, 3).epoch(2, start=start))
    assert [part.indices.tolist() for part in rest] == [part.indices.tolist() for part in complete[start:]]
    assert by_sample(rest) == by_sample(complete[start:])


def test_any_samples_can_be_taken(images: Images) -> None:
    expected = by_sample(list(loader(images, 5).epoch(4)))
    taken = by_sample([loader(images, 5).take(torch.tensor([7, 2]), 4)])
    assert taken == {number: expected[number] for number in (7, 2)}


@pytest.mark.usefixtures("no_room")
def test_streamed_images_give_the_same_batches(samples: Samples) -> None:
    streamed = prepare(samples)
    in_memory = prepare(replace(samples, pixels=[read_image(name, 3) for name in samples.names]))
    assert whole(streamed).is_streamed
    assert by_sample(list(loader(streamed, 2).epoch(0))) == by_sample(list(loader(in_memory, 2).epoch(0)))


@pytest.mark.usefixtures("no_room")
def test_a_file_that_disappears_is_named(samples: Samples) -> None:
    batches = loader(prepare(samples), 1)
    for name in samples.names:
        Path(name).unlink()
    with pytest.raises(DataError, match="no such file"):
        list(batches.epoch(0))


def test_pixels_of_the_cache_are_not_changed(samples: Samples) -> None:
    images = prepare(samples)
    for epoch in range(4):
        list(loader(images, 5).epoch(epoch))
    assert all_equal(whole(images).batch(torch.arange(5)), [read_image(name, 3) for name in samples.names])
