"""Videos as training and evaluation read them: frames at the network's rate, clips, cache, streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convatlas.core.clips import ClipSampling
from convatlas.core.preprocessing import Preprocessing
from convatlas.data import pixel_cache
from convatlas.data.augment import Augment
from convatlas.data.dataset import Dataset
from convatlas.data.frame_reader import open_reader
from convatlas.data.loader import BatchLoader
from convatlas.data.open import open_data
from convatlas.data.videos import Videos, load_clips
from convatlas.engines.evaluation import compute_outputs
from convatlas.errors import DataError
from video_files import moving_square, write_video

pytest.importorskip("av")

STEPS = Preprocessing(
    resize=20, width=26, crop=16, antialias=False, mean=(0.4,) * 3, std=(0.2,) * 3,
    sampling=ClipSampling(frames=4, rate=10, clips=3),
)  # fmt: skip
AUGMENT = Augment(
    min_crop_area=0.3, flip=True, max_shift=1, jitter=0.3, random_erasing=0.5, mixup=0.4, cutmix=0.4, policy="rand"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of three videos in train and one in val, of 1 to 2 seconds."""
    root = tmp_path_factory.mktemp("videos") / "data"
    for split, count in (("train", 3), ("val", 1)):
        for label, step in (("left", -2), ("right", 2)):
            for i in range(count):
                frames = moving_square(30 + 10 * i, 24, 32, seed=i, step=step)
                write_video(root / split / label / f"{i}.mp4", frames, rate=30)
    return root


def load(folder: Path, *, steps: Preprocessing = STEPS, crop: bool = True) -> Dataset:
    return open_data(folder, reads="clips").load(steps, for_random_crop=crop, for_random_clips=True)


def loader(data: Dataset, augment: Augment = AUGMENT, **options: Any) -> BatchLoader:
    return BatchLoader(data.train, STEPS, data.task, batch=4, seed=3, augment=augment, **options)


def test_train_has_all_frames_and_val_the_clips_of_evaluation(folder: Path) -> None:
    data = load(folder)
    assert isinstance(data.train.pixels, Videos)
    assert sorted(data.train.pixels.counts) == [10, 10, 14, 14, 17, 17]
    assert data.train.pixels[0].shape[1:] == (3, 20, 20)
    assert data.train.aspects is not None
    assert data.train.aspects.tolist() == pytest.approx([1.3] * 6)
    assert data.val is not None
    assert data.val.pixels[torch.arange(2)].shape == (2, 3, 4, 3, 16, 16)
    for i, name in enumerate(data.val.names):
        with open_reader(name, STEPS) as reader:
            frames = reader.all_frames()
        clips = torch.stack([frames[start : start + 4] for start in (0, 3, 6)])
        assert torch.equal(clips, load_clips(name, STEPS))
        assert torch.equal(clips, data.val.pixels[i])


@pytest.mark.parametrize("crop", [False, True])
def test_cached_and_streamed_videos_give_the_same_batches(
    folder: Path, crop: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "cache"))
    augment = AUGMENT if crop else Augment(flip=True)
    data = load(folder, crop=crop)
    expected = list(loader(data, augment).epoch(1))
    with monkeypatch.context() as patch:
        patch.setattr("convatlas.data.stores.open_reader", lambda *_, **__: pytest.fail("a video was decoded again"))
        again = load(folder, crop=crop)
    monkeypatch.setattr(pixel_cache, "CACHE_LIMIT", 0)
    monkeypatch.setattr(pixel_cache, "MEMORY_LIMIT", 0)
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "none"))
    streamed = load(folder, crop=crop)
    assert isinstance(streamed.train.pixels, Videos)
    assert all(isinstance(video, str) for video in streamed.train.pixels.videos)
    for each in (again, streamed):
        assert each.fingerprint() == data.fingerprint()
        for batch, other in zip(loader(each, augment).epoch(1), expected, strict=True):
            assert torch.equal(batch.inputs, other.inputs)
        assert each.val is not None
        assert data.val is not None
        assert torch.equal(each.val.pixels[torch.arange(2)], data.val.pixels[torch.arange(2)])
    # notes of streamed videos are known, too: nothing is decoded before it is used
    monkeypatch.setattr("convatlas.data.stores.open_reader", lambda *_, **__: pytest.fail("a video was decoded"))
    load(folder, crop=crop)


def test_a_clip_is_a_function_of_seed_epoch_and_video(folder: Path) -> None:
    data = load(folder)
    first, second = (list(loader(data).epoch(epoch)) for epoch in (0, 1))
    assert not torch.equal(first[0].inputs, second[0].inputs)
    whole = loader(data).take(torch.arange(6), 0)
    for batch in first:
        alone = loader(data).take(batch.indices, 0)
        assert torch.equal(alone.inputs, batch.inputs)
        for i, number in enumerate(batch.indices.tolist()):
            torch.testing.assert_close(batch.inputs[i], whole.inputs[number])
    rest = list(loader(data).epoch(0, start=1))
    assert torch.equal(rest[0].inputs, first[1].inputs)


def test_all_frames_of_a_clip_are_augmented_alike(folder: Path) -> None:
    data = load(folder)
    assert isinstance(data.train.pixels, Videos)
    still = [video[:1].expand(len(video), -1, -1, -1) for video in map(data.train.pixels.__getitem__, range(6))]
    images = Videos(still, data.train.pixels.counts, STEPS, for_random_crop=True)
    frozen = BatchLoader(
        type(data.train)(images, data.train.targets, data.train.names, "", data.train.aspects), STEPS, data.task,
        batch=6, seed=1, augment=AUGMENT,
    )  # fmt: skip
    inputs = next(frozen.epoch(0)).inputs
    assert isinstance(inputs, torch.Tensor)
    assert inputs.shape == (6, 3, 4, 16, 16)
    torch.testing.assert_close(inputs, inputs[:, :, :1].expand_as(inputs), rtol=0, atol=1e-5)


def test_a_rank_without_clips_has_an_empty_batch(folder: Path) -> None:
    for batch in loader(load(folder), shard=lambda indices: indices[:0]).epoch(0):
        assert isinstance(batch.inputs, torch.Tensor)
        assert batch.inputs.shape == (0, 3, 4, 16, 16)


def test_random_clips_are_at_every_place(folder: Path) -> None:
    data = load(folder, crop=False)
    videos = data.train.pixels
    assert isinstance(videos, Videos)
    number = int(np.argmax(videos.counts))
    clips = {videos.at_random(0, epoch)[torch.tensor([number])][0].numpy().tobytes() for epoch in range(200)}
    places = {videos.clip(number, i, 4).numpy().tobytes() for i in range(videos.counts[number] - 3)}
    assert clips == places


def test_outputs_are_those_of_the_clips(folder: Path) -> None:
    data = load(folder)
    assert data.val is not None
    outputs = compute_outputs(lambda pixels: pixels.float().mean((1, 3, 4)), data.val)
    pixels = data.val.pixels[torch.arange(2)]
    assert torch.equal(outputs, pixels.float().mean((2, 4, 5)))


def test_short_videos_are_left_out(folder: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "a" / "short.mp4", moving_square(6, 24, 32), rate=30)
    for name in ("a", "b"):
        write_video(tmp_path / name / "long.mp4", moving_square(40, 24, 32), rate=30)
    source = open_data(tmp_path, reads="clips")
    with pytest.raises(DataError, match=r"short.mp4: a video must be at least as long as a clip, 4 frames at 10 per"):
        source.load(STEPS, for_random_clips=True, val_share=0)
    data = source.load(STEPS, for_random_clips=True, max_unreadable=0.5)
    (short,) = data.unreadable
    assert "(0.40 s), got 2 (0.20 s); lower --frames, raise --frame-rate" in short.reason


def test_the_cache_is_used_by_other_numbers_of_clips(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(folder)
    monkeypatch.setattr("convatlas.data.stores.open_reader", lambda *_, **__: pytest.fail("a video was decoded again"))
    load(folder, steps=STEPS.replaced({"sampling": {"frames": 4, "rate": 10.0, "clips": 2}}))
