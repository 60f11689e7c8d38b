"""Images are decoded once; pixels from the cache, from memory and from streaming are the same."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import convatlas as ca
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.resampling import resize
from convatlas.data import pixel_cache
from convatlas.data.dataset import Dataset
from convatlas.data.decode.files import UnavailableError
from convatlas.data.decode.pixels import load_image
from convatlas.data.open import open_data
from convatlas.data.pixel_cache import PixelWriter
from convatlas.data.stream import Streamed, prefetch
from convatlas.errors import DataError, MachineError
from convatlas.train.recipe import Recipe
from convatlas.train.state import Epoch

STEPS = Preprocessing(resize=12, crop=8).for_channels(3)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def load(folder: Path, **how: object) -> Dataset:
    return open_data(folder).load(STEPS, **how)  # type: ignore[arg-type]


def same(a: Dataset, b: Dataset) -> bool:
    pairs = [(a.splits[split], b.splits[split]) for split in a.splits]
    return a.fingerprint() == b.fingerprint() and all(
        torch.equal(x.pixels, y.pixels)
        and x.targets.to_bytes() == y.targets.to_bytes()
        and list(x.names) == list(y.names)
        for x, y in pairs
    )


@pytest.mark.parametrize("for_random_crop", [False, True])
def test_the_second_time_nothing_is_decoded(
    images: Path, cache: Path, for_random_crop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(images, for_random_crop=for_random_crop)
    assert len(list(cache.glob("*.raw"))) == len(list(cache.glob("*.json"))) == 2
    monkeypatch.setattr("convatlas.data.stores.load_image", lambda *_, **__: pytest.fail("an image was read"))
    second = load(images, for_random_crop=for_random_crop)
    assert same(first, second)
    assert first.train.pixels.shape[-1] == (12 if for_random_crop else 8)
    if for_random_crop:
        assert first.train.aspects is not None
        assert second.train.aspects is not None
        assert torch.equal(first.train.aspects, second.train.aspects)
        assert 0.4 < first.train.aspects.min() < 1 < first.train.aspects.max() < 2.5


def test_pixels_in_memory_are_those_of_the_cache(images: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = load(images)
    shutil.rmtree(cache)
    monkeypatch.setattr(pixel_cache, "CACHE_LIMIT", 0)
    assert same(held, load(images))
    assert not list(cache.glob("*.raw"))


def test_a_moved_folder_is_known_by_its_contents_and_a_changed_image_is_not(
    own_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load(own_images)
    moved = own_images.rename(tmp_path / "moved")
    with monkeypatch.context() as patch:
        patch.setattr("convatlas.data.stores.load_image", lambda *_, **__: pytest.fail("an image was read"))
        after = load(moved)
    assert torch.equal(before.train.pixels, after.train.pixels)
    assert before.fingerprint() == after.fingerprint()
    a, b = sorted((moved / "train" / "ant").glob("*.png"))[:2]
    shutil.copy(a, b)
    assert load(moved).fingerprint() != before.fingerprint()


def test_unreadable_images_are_cached_with_their_present_names(own_images: Path, tmp_path: Path) -> None:
    (own_images / "train" / "ant" / "00.jpg").write_bytes(b"no image")
    first = load(own_images, max_unreadable=0.1)
    second = load(own_images.rename(tmp_path / "moved"), max_unreadable=0.1)
    assert len(first.train) == len(second.train) == 35
    assert first.unreadable[0].reason.endswith("not an image")
    assert second.unreadable[0].path == str(tmp_path / "moved" / "train" / "ant" / "00.jpg")
    assert second.unreadable[0].reason.startswith(second.unreadable[0].path)


NOTES = {
    "bad notes": "{}",
    "no JSON": "[" * 10_000,
    "a list": "[]",
    "wrong types": '{"unreadable": [], "aspects": {}}',
    "texts": json.dumps({"unreadable": {}, "aspects": ["1.0"] * 36}),
    "not a number": json.dumps({"unreadable": {}, "aspects": [float("nan")] * 36}),
    "a wrong index": json.dumps({"unreadable": {"-1": "gone"}, "aspects": [1.0] * 35}),
    "a reason that is no text": json.dumps({"unreadable": {"1": 1}, "aspects": [1.0] * 35}),
}


@pytest.mark.parametrize("damage", ["truncated", "no notes", *NOTES])
def test_a_damaged_cache_is_rebuilt(images: Path, cache: Path, damage: str) -> None:
    pixels = load(images).train.pixels.clone()  # the mapped ones end with their file
    for raw in cache.glob("*.raw"):
        notes = raw.with_suffix(".json")
        if damage == "truncated":
            with raw.open("r+b") as file:
                file.truncate(100)
        elif damage == "no notes":
            notes.unlink()
        else:
            notes.write_text(NOTES[damage])
    assert torch.equal(load(images).train.pixels, pixels)


def test_images_stay_in_memory_if_the_disk_is_full_or_the_cache_is_not_writable(
    images: Path, cache: Path, full_disk: Callable[[int], AbstractContextManager[None]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with full_disk(1000):
        held = load(images)
    assert not list(cache.glob("*"))
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("not a folder")
    assert same(held, load(images))


def test_the_least_recently_used_pixels_are_deleted_first(
    images: Path, own_images: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(images)
    for path in cache.glob("*"):
        os.utime(path, (1, 1))
    old = {path.name for path in cache.glob("*")}
    (own_images / "train" / "ant" / "00.jpg").unlink()
    (own_images / "val" / "ant" / "00.jpg").unlink()
    monkeypatch.setattr(pixel_cache, "CACHE_LIMIT", 3 * 36 * 3 * 8 * 8)
    load(own_images)
    kept = {path.name for path in cache.glob("*")}
    assert len(kept & old) == 2  # one split of the old ones still fits
    assert len(kept) == 6


def test_arrays_get_the_channels_of_the_network_or_are_refused(idx_folder: Path, tmp_path: Path) -> None:
    gray, rgb = (open_data(idx_folder).load(STEPS.for_channels(n)).train.pixels for n in (1, 3))
    assert isinstance(gray, Tensor)
    assert torch.equal(torch.as_tensor(rgb), gray.expand(-1, 3, -1, -1))
    x = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    steps = Preprocessing(8, 8)
    for name, values in (("wide", x), ("deep", x.astype(np.uint16) * 257)):
        np.savez(tmp_path / f"{name}.npz", x=values, y=np.arange(8) % 2)
        pixels = open_data(tmp_path / f"{name}.npz").load(steps).train.pixels
        luma = torch.from_numpy(x @ np.array([0.299, 0.587, 0.114])).round()
        assert (torch.as_tensor(pixels)[:, 0] - luma).abs().max() <= 1
    with pytest.raises(DataError, match=r"has 1 channel\(s\), the network reads 5; see --channels"):
        open_data(idx_folder).load(STEPS.for_channels(5))


def test_an_image_that_may_be_readable_later_is_not_cached_as_unreadable(
    images: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: str, *arguments: Any, **keywords: Any) -> tuple[Tensor, float]:
        if path.endswith("02.jpg"):
            raise UnavailableError(f"{path}: cannot be read: Input/output error")
        return load_image(path, *arguments, **keywords)

    monkeypatch.setattr("convatlas.data.stores.load_image", failing)
    with pytest.raises(DataError, match="Input/output error"):
        load(images)
    assert not [path for path in cache.iterdir() if path.is_file()]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: you tried to allocate 9 bytes")])
def test_an_image_that_memory_does_not_suffice_for_is_unreadable_this_time(
    own_images: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    large = own_images / "train" / "ant" / "00.jpg"
    Image.new("RGB", (50, 50)).save(large)

    def failing(pixels: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if pixels.shape[-1] == 50:
            raise error
        return resize(pixels, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("convatlas.core.preprocessing.resize", failing)
        short = load(own_images, max_unreadable=0.1)
    assert [image.reason for image in short.unreadable] == [f"{large}: cannot be read: out of memory"]
    assert len(short.train) == 35
    assert len(load(own_images).train) == 36


def test_thin_images_are_prepared_in_little_memory(own_images: Path) -> None:
    for name, size in (("train/ant/00.jpg", (60_000, 1)), ("val/ant/00.jpg", (1, 60_000))):
        Image.new("RGB", size, "white").save(own_images / name, "PNG")
    for for_random_crop in (False, True):
        data = load(own_images, for_random_crop=for_random_crop)
        white = [torch.as_tensor(images.pixels).flatten(1).amin(1) == 255 for images in data.splits.values()]
        assert [int(each.sum()) for each in white] == [1, 1]


def test_unfinished_files_of_killed_processes_are_deleted(images: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, own = (cache / f".abc.{platform.node()}.{pid}.part" for pid in (dead.pid, os.getpid()))
    for path in (left, own):
        path.write_text("begun")
    load(images)
    assert not left.exists()
    assert own.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_error_of_the_disk_while_pixels_are_written_is_one_line() -> None:
    writer = PixelWriter(10**6, torch.uint8, Path("/dev/full"))
    with pytest.raises(MachineError, match=r"/dev/full: cannot be written \(.*No space left"):
        writer.write(torch.zeros(10**6, dtype=torch.uint8))


# --- no room on the disk nor in memory


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the cache nor the memory can hold the images."""
    monkeypatch.setattr(pixel_cache, "CACHE_LIMIT", 100)
    monkeypatch.setattr(pixel_cache, "MEMORY_LIMIT", 100)


RECIPES = {
    "plain": Recipe(epochs=2, batch=7, lr=0.01),
    "crops and mixtures": Recipe(epochs=2, batch=7, lr=0.01).replaced(
        {"min_crop_area": 0.5, "mixup": 0.2, "cutmix": 1.0}
    ),
}


@pytest.mark.parametrize("plan", RECIPES)
def test_streamed_images_give_the_same_bits(
    images: Path, cache: Path, tmp_path: Path, request: pytest.FixtureRequest, plan: str
) -> None:
    held = ca.fit(images, "lenet5_modern", recipe=RECIPES[plan], out=tmp_path / "held")
    shutil.rmtree(cache)
    request.getfixturevalue("no_room")
    streamed = ca.fit(images, "lenet5_modern", recipe=RECIPES[plan], out=tmp_path / "streamed")
    assert isinstance(streamed.dataset.train.pixels, Streamed)
    assert not list(cache.glob("*.raw"))
    assert len(list(cache.glob("*.json"))) == 2
    first, second = held.network.state_dict(), streamed.network.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert streamed.config.fingerprint == held.config.fingerprint
    split, result, *_ = ca.evaluate(streamed.model_file, images, split="all")
    assert (split, result.n) == ("all", 72)
    assert "<figure>" in (streamed.folder / "report.html").read_text()
    assert ca.resume(tmp_path / "streamed").state.finished


@pytest.mark.usefixtures("no_room")
def test_streamed_images_are_read_once_before_training(own_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_images / "train" / "ant" / "00.jpg").write_bytes(b"no image")
    first = load(own_images, max_unreadable=0.1)
    assert [Path(unreadable.path).name for unreadable in first.unreadable] == ["00.jpg"]
    monkeypatch.setattr("convatlas.data.stores.load_image", lambda *_, **__: pytest.fail("an image was read"))
    again = load(own_images, max_unreadable=0.1)
    assert again.unreadable == first.unreadable
    assert again.train.names == first.train.names


@pytest.mark.usefixtures("no_room")
def test_a_streamed_image_that_disappears_ends_the_run_and_is_named(own_images: Path, tmp_path: Path) -> None:
    gone = own_images / "train" / "bee" / "03.png"

    def remove(event: object) -> None:
        if isinstance(event, Epoch) and gone.exists():
            gone.rename(tmp_path / "elsewhere.png")

    recipe = Recipe(epochs=2, batch=7, lr=0.01)
    with pytest.raises(DataError, match=r"bee/03\.png: no such file"):
        ca.fit(own_images, "lenet5_modern", recipe=recipe, out=tmp_path / "run", on_event=remove)
    (tmp_path / "elsewhere.png").rename(gone)
    part = ca.resume(tmp_path / "run")
    whole = ca.fit(own_images, "lenet5_modern", recipe=recipe, out=tmp_path / "whole")
    first, second = part.network.state_dict(), whole.network.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("no_room")
def test_streaming_ends_once_there_is_room(images: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(load(images).train.pixels, Streamed)
    monkeypatch.setattr(pixel_cache, "CACHE_LIMIT", 10**9)
    assert isinstance(load(images).train.pixels, torch.Tensor)
    assert len(list(cache.glob("*.raw"))) == 2


def test_the_next_batch_is_decoded_in_the_background() -> None:
    order: list[str] = []
    read = [threading.Event() for _ in range(5)]
    read[4].set()

    class Slow(Streamed):
        def __getitem__(self, which: object) -> torch.Tensor:
            number = int(which[0])  # type: ignore[index]
            order.append(f"read {number}")
            read[number].set()
            return torch.zeros(1)

    batches = [torch.tensor([i]) for i in range(4)]
    for numbers, _ in prefetch(Slow([], torch.load, (), torch.uint8), batches):
        read[int(numbers[0]) + 1].wait()
        order.append(f"used {int(numbers[0])}")
    assert order.index("read 1") < order.index("used 0") < order.index("read 3") < order.index("used 3")
    assert [name for name in order if name.startswith("used")] == [f"used {i}" for i in range(4)]
