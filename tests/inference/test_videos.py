"""Prediction of videos: every kind of input, evenly spaced clips, clips along time, long films, errors of one video."""

from __future__ import annotations

import dataclasses
import io
import itertools
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import convatlas as ca
from convatlas.core.clips import ClipSampling
from convatlas.core.preprocessing import Preprocessing
from convatlas.data import frame_reader
from convatlas.data.decode.video import open_video
from convatlas.data.frame_reader import FrameReader, Part
from convatlas.data.readers.files import video_source
from convatlas.data.samples import Samples
from convatlas.errors import DataError
from convatlas.inference import videos
from convatlas.inference.contents import EncodedFile
from convatlas.inference.model import Ensemble, Model
from convatlas.inference.options import PredictOptions
from convatlas.models.catalog import variant
from convatlas.tasks.known import Classification, VideoClassification
from convatlas.tasks.targets import Targets
from convatlas.tasks.video.prediction import VideoPrediction
from convatlas.weights.modelfile import Header, write_model_file
from random_video_model import CLASSES, random_video_model
from server import Site, serving
from video_files import moving_square, set_display_matrix, write_frames, write_gif, write_sound, write_video

pytest.importorskip("av")

CLIPS = Path(__file__).parents[3] / "shared" / "data" / "video_clips"


@pytest.fixture(scope="module")
def model() -> Model:
    return random_video_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.mp4", moving_square(40, seed=1), rate=20)
    write_video(folder / "deep" / "b.mkv", moving_square(30, seed=2), rate=10)
    write_gif(folder / "c.gif", moving_square(12, seed=3), seconds=0.1)
    write_frames(folder / "d", moving_square(25, seed=4))
    (folder / "notes.txt").write_text("x")
    return folder


def predict(model: Model | Ensemble, given: Any, **how: Any) -> list[VideoPrediction]:
    predictions = model.predict(given, **how)
    assert all(isinstance(prediction, VideoPrediction) for prediction in predictions)
    return predictions  # type: ignore[return-value]


def sampled(file: Path, rate: float = 10) -> np.ndarray:
    with open_video(file) as opened:
        return np.stack(list(opened.sampled(rate)))


def same(left: VideoPrediction, right: VideoPrediction) -> bool:
    return not left.error and dict(left.probabilities) == pytest.approx(dict(right.probabilities), abs=1e-6)


# --- kinds of inputs


def test_files_bytes_arrays_and_tensors_get_the_same_prediction(model: Model, folder: Path) -> None:
    file = folder / "a.mp4"
    frames = sampled(file)
    given: list[Any] = [
        file, str(file), file.read_bytes(), io.BytesIO(file.read_bytes()), EncodedFile("x", file.read_bytes()), frames,
        torch.from_numpy(frames).permute(0, 3, 1, 2),
    ]  # fmt: skip
    first, *others = predict(model, given)
    assert all(same(other, first) for other in others)
    assert [p.source for p in others] == [str(file), "video 2", "video 3", "x", "video 5", "video 6"]
    assert {p.seconds for p in (first, *others)} == {2.0}
    for each in given[:3] + given[4:]:
        (single,) = predict(model, each)
        assert same(single, first)
    with file.open("rb") as opened:
        assert same(predict(model, opened)[0], first)
    pair = predict(model, np.stack([frames, frames]))
    assert [same(each, first) for each in pair] == [True, True]


def test_probabilities_are_the_mean_over_evenly_spaced_clips(model: Model, folder: Path) -> None:
    steps = model.header.preprocessing
    frames = torch.from_numpy(sampled(folder / "a.mp4")).permute(0, 3, 1, 2).contiguous()
    clips = torch.stack([steps.resize_and_crop(frames[start : start + 4]) for start in (0, 8, 16)])
    expected = model.engine.outputs(clips).softmax(1).mean(0)
    (found,) = predict(model, folder / "a.mp4")
    assert [found.probabilities[name] for name in model.classes] == pytest.approx(expected.tolist(), abs=1e-6)
    assert sum(found.probabilities.values()) == pytest.approx(1)


def test_clips_are_those_of_evaluation(
    model: Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = model.header.preprocessing
    shutil.copy(folder / "a.mp4", tmp_path / "a #1 -b.mp4")
    names = [f"{folder}/{name}" for name in ("a.mp4", "deep/b.mkv", "c.gif", "d", "a.mp4#t=0.5,1.5")]
    names += [str(tmp_path / "a #1 -b.mp4"), str(tmp_path / "a #1 -b.mp4#t=0.2")]
    samples = Samples(names, Targets(label=torch.arange(len(names)) % 2))
    source = video_source("data", str(tmp_path), VideoClassification(("a", "b")), {"train": samples})
    found = {}
    for kept_bytes in (2**26, 1):  # the second makes every video a long one
        monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / str(kept_bytes)))
        monkeypatch.setattr(frame_reader, "KEPT_BYTES", kept_bytes)
        data = source.load(steps).train
        assert sorted(data.names) == sorted(names)
        found[kept_bytes] = data.pixels[torch.arange(len(names))]
        for name, clips in zip(data.names, found[kept_bytes], strict=True):
            (views,) = videos.load_clips(name, name, [steps], PredictOptions())
            assert torch.equal(views.pixels, clips)
    assert torch.equal(found[1], found[2**26])


def test_long_films_that_end_early_have_the_clips_of_their_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Preprocessing(8, 8, mean=(0.5,) * 3, std=(0.5,) * 3, sampling=ClipSampling(4, 10, 3))

    def frames(first: int, count: int | None) -> Iterator[int]:
        return iter(range(first, 17 if count is None else min(17, first + count)))

    def prepare(number: int) -> Tensor:
        return torch.full((3, 8, 8), number, dtype=torch.uint8)

    reader = FrameReader(frames, prepare, lambda: 2.0, steps, "film")
    for kept_bytes in (2**26, 1):
        monkeypatch.setattr(frame_reader, "KEPT_BYTES", kept_bytes)
        assert reader.even_clips()[:, 0, 0, 0, 0].tolist() == [0, 6, 13]


def test_folders_patterns_and_parts_of_files(model: Model, folder: Path) -> None:
    names = [str(folder / name) for name in ("a.mp4", "c.gif", "d", "deep/b.mkv")]
    predictions = model.predict(folder)
    assert [p.source for p in predictions] == names
    assert predictions.remarks[0].startswith("1 file is not used: 1 .txt")
    assert [p.seconds for p in predict(model, folder)] == pytest.approx([2, 1.2, 1, 3])
    assert [p.source for p in predict(model, f"{folder}/[ad]*")] == [names[0], names[2]]
    assert predict(model, folder / "d")[0].source == names[2]
    assert [p.seconds for p in predict(model, [f"{names[0]}#t=0.5,1.5", f"{names[2]}#fps=5"])] == pytest.approx([1, 5])
    whole, part = predict(model, [sampled(folder / "a.mp4")[5:15], f"{names[0]}#t=0.5,1.5"])
    assert same(part, whole)


def test_urls_are_fetched_only_on_request(model: Model, folder: Path) -> None:
    (expected,) = predict(model, f"{folder}/a.mp4#t=0.5,1.5")
    with serving(Site({"/a.mp4": (folder / "a.mp4").read_bytes()})) as site:
        (found,) = predict(model, f"{site.url}a.mp4#t=0.5,1.5", fetch=True)
        with pytest.raises(DataError, match="videos are downloaded only with --fetch"):
            model.predict(f"{site.url}a.mp4")
    assert same(found, expected)


def test_multi_label_grayscale_and_rotated_videos(folder: Path, tmp_path: Path) -> None:
    labels = random_video_model(multilabel=True)
    (prediction,) = predict(labels, folder / "a.mp4", threshold=0.0)
    assert set(prediction.labels) == set(labels.classes)
    assert not predict(random_video_model(channels=1), folder / "a.mp4")[0].error
    turned = tmp_path / "turned.mp4"
    shutil.copy(folder / "a.mp4", turned)
    set_display_matrix(turned, rotation=180)
    upright = sampled(folder / "a.mp4")[:, ::-1, ::-1]
    assert same(predict(labels, turned)[0], predict(labels, upright.copy())[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            np.zeros((9, 8, 8, 3)),
            r"frames must be uint8 \(frames, height, width, channels\), got float64 \(9, 8, 8, 3\)",
        ),
        (np.zeros((8, 8, 3), np.uint8), "got uint8 \\(8, 8, 3\\)"),
        (torch.zeros(9, 8, 8), r"frames must be uint8 \(frames, channels, height, width\)"),
        (np.zeros((3, 8, 8, 3), np.uint8), "a video must be at least as long as a clip, 4 frames at 10 per second"),
        (np.zeros((9, 8, 8, 2), np.uint8), "2 channel"),
        (np.zeros((9, 0, 8, 3), np.uint8), "video 0: "),
        (object(), "is not a video, but object"),
        (b"no video", "video 0: "),
        (b"", "video 0: "),
        (io.StringIO("x"), "must be in binary mode"),
        ("missing.mp4", "missing.mp4: no such file"),
        ("", "the name of the file is empty"),
        ("missing/*.mp4", "nothing matches"),
        ({"a": 1}, "videos: must be a video or an iterable of videos, got dict"),
    ],
)
def test_what_is_no_video_is_an_error_in_one_line(model: Model, given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        model.predict(given)


def test_an_unreadable_video_is_an_error_among_the_predictions_of_the_others(
    model: Model, folder: Path, tmp_path: Path
) -> None:
    data = bytearray((folder / "a.mp4").read_bytes())
    sound, short = write_sound(tmp_path / "sound.mp4"), write_video(tmp_path / "short.mp4", moving_square(5), rate=20)
    (tmp_path / "empty").mkdir()
    given = [folder / "a.mp4", sound, short, bytes(data[: len(data) // 2]), tmp_path / "empty", folder / "deep/b.mkv"]
    for every in (None, 0.4):
        found = predict(model, given, every=every)
        assert [bool(p.error) for p in found] == [False, True, True, True, True, False]
        assert [p.source for p in found][:3] == [str(each) for each in given[:3]]
        assert all(p.error.startswith(p.source) and "\n" not in p.error for p in found if p.error)
        assert "has no video stream" in found[1].error
        assert found[2].seconds is None
        assert found[2].to_plain()["moments"] == []


@pytest.mark.parametrize("name", ["a.mp4", "c.gif", "deep/b.mkv"])
def test_damaged_bytes_give_a_prediction_or_one_line(model: Model, folder: Path, name: str) -> None:
    random = np.random.default_rng(0)
    data = (folder / name).read_bytes()
    given = []
    for number in range(12):
        changed = bytearray(data if number % 3 else data[: random.integers(len(data))])
        for place in random.integers(0, max(1, len(changed)), 6):
            changed[place : place + 4] = random.bytes(4)
        given.append(bytes(changed))
    for every in (None, 0.5):
        for prediction in predict(model, given, every=every):
            assert bool(prediction.error) != bool(prediction.probabilities)
            assert "\n" not in prediction.error


def test_networks_that_compute_nan_give_errors(model: Model, folder: Path) -> None:
    class NotFinite:
        name = "torch"

        def outputs(self, pixels: Tensor) -> Tensor:
            dark = pixels.float().mean((1, 2, 3, 4)) < 1
            return model.engine.outputs(pixels).where(~dark[:, None], torch.nan)

    damaged = dataclasses.replace(model, engine_override=NotFinite())
    frames = sampled(folder / "a.mp4")
    dark = frames.copy()
    dark[4:8] = 0  # in none of the evenly spaced clips
    good, bad = predict(damaged, [frames, dark], every=0.2)
    assert (bool(good.error), bad.error) == (False, "video 1: the network computes NaN or infinity for this video")
    assert not predict(damaged, [dark])[0].error


# --- along time


def test_clips_along_time_are_those_of_the_parts_of_the_video(model: Model, folder: Path) -> None:
    frames = sampled(folder / "a.mp4")
    (found,) = predict(model, folder / "a.mp4", every=0.5)
    assert [(m.start, m.end) for m in found.moments] == [(0, 0.4), (0.5, 0.9), (1.0, 1.4), (1.5, 1.9)]
    for moment in found.moments:
        first = round(moment.start * 10)
        (part,) = predict(model, frames[first : first + 4])
        assert dict(moment.prediction.probabilities) == pytest.approx(dict(part.probabilities), abs=1e-6)
        assert moment.prediction.label == part.label
    (alone,) = predict(model, folder / "a.mp4")
    assert (dict(alone.probabilities), alone.moments) == (dict(found.probabilities), ())


@pytest.mark.parametrize(
    ("every", "starts"),
    [(0.1, list(range(17))), (0.25, [0, 3, 5, 8, 10, 13, 15]), (0.4, [0, 4, 8, 12, 16]), (1, [0, 10]), (1.7, [0]),
     (9, [0])],
)  # fmt: skip
@pytest.mark.parametrize("batch", [1, 3])
def test_clips_start_at_the_frames_next_to_multiples_while_a_whole_clip_fits(
    model: Model, every: float, starts: list[int], batch: int
) -> None:
    (found,) = predict(model, moving_square(20, 16, 20), every=every, batch=batch)
    assert [m.start for m in found.moments] == pytest.approx([start / 10 for start in starts])
    assert [m.end for m in found.moments] == pytest.approx([start / 10 + 0.4 for start in starts])


def test_times_of_parts_are_those_of_the_file(model: Model, folder: Path) -> None:
    (part,) = predict(model, f"{folder}/a.mp4#t=1,2", every=0.5)
    assert [m.start for m in part.moments] == [1.0, 1.5]
    (whole,) = predict(model, folder / "a.mp4", every=0.5)
    assert dict(part.moments[0].prediction.probabilities) == pytest.approx(
        dict(whole.moments[2].prediction.probabilities), abs=1e-6
    )


def test_threshold_and_top_apply_to_clips_along_time(model: Model, folder: Path) -> None:
    (found,) = predict(model, folder / "a.mp4", every=0.5, threshold=1.0, top=1)
    assert (found.label, {m.prediction.label for m in found.moments}) == (None, {None})
    assert {len(m.prediction.probabilities) for m in found.moments} == {1}
    assert {run.text for run in found.runs} == {"unknown"}


def test_every_is_refused_below_a_frame_and_other_options_for_videos(model: Model, folder: Path) -> None:
    with pytest.raises(DataError, match=r"every must be >= 0.100 s, one frame at 10 per second, got 0.05 s"):
        predict(model, folder / "a.mp4", every=0.05)
    for wrong in (0, -1, float("nan"), "often"):
        with pytest.raises(DataError, match="every must be a number > 0"):
            predict(model, folder / "a.mp4", every=wrong)
    for option in ({"tta": "flip"}, {"tile": 64}, {"nms": 0.5}, {"classes": ["wave"]}):
        with pytest.raises(DataError, match=f"{next(iter(option))} must not be given, because the model is for video"):
            predict(model, folder / "a.mp4", **option)


# --- ensembles


def test_ensembles_average_probabilities_of_videos_and_along_time(model: Model, folder: Path) -> None:
    order = ("wave", "clap", "jump")
    other = random_video_model(seed=1, frames=6, rate=20, size=24, classes=order)
    both = Ensemble((model, other))
    for every in (None, 0.5):
        first, second, mean = (predict(each, folder / "a.mp4", every=every)[0] for each in (model, other, both))
        for name in order:
            expected = (first.probabilities[name] + second.probabilities[name]) / 2
            assert mean.probabilities[name] == pytest.approx(expected, abs=1e-6)
    assert len(mean.moments) == 4
    assert (mean.moments[0].start, mean.moments[0].end) == (0, 0.4)
    expected = (
        first.moments[1].prediction.probabilities["jump"] + second.moments[1].prediction.probabilities["jump"]
    ) / 2
    assert mean.moments[1].prediction.probabilities["jump"] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(DataError, match="cannot be averaged"):
        predict(Ensemble((model, random_video_model(multilabel=True))), folder / "a.mp4")


# --- long films and streams


def test_long_films_are_predicted_as_others(model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [folder / "a.mp4", folder / "deep/b.mkv", folder / "c.gif", folder / "d", sampled(folder / "a.mp4")]
    for every in (None, 0.3, 0.7):
        monkeypatch.setattr(frame_reader, "KEPT_BYTES", 2**26)
        expected = predict(model, files, every=every)
        monkeypatch.setattr(frame_reader, "KEPT_BYTES", 1)
        found = predict(model, files, every=every)
        for left, right in zip(found, expected, strict=True):
            assert same(left, right)
            assert left.to_plain()["moments"] == right.to_plain()["moments"]


@pytest.mark.parametrize("every", [0.1, 0.3, 5.0])
def test_the_memory_does_not_depend_on_the_duration(every: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_reader, "KEPT_BYTES", 1000)
    steps = Preprocessing(8, 8, mean=(0.5,) * 3, std=(0.5,) * 3, sampling=ClipSampling(4, 10, 3))
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()

    def prepare(number: int) -> Tensor:
        frame = torch.full((3, 8, 8), number % 251, dtype=torch.uint8)
        alive.add(frame)
        return frame

    def frames(first: int, count: int | None) -> Iterator[int]:
        return iter(range(first, 2000 if count is None else min(2000, first + count)))

    reader = FrameReader(frames, prepare, lambda: 200.0, steps, "film")
    starts: list[int] = []
    for part in reader.parts(every, 5):
        assert isinstance(part, Part)
        assert len(alive) <= 2 * 4 + 1
        assert len(part.starts) <= 5
        for start, clip in zip(part.starts, part.pixels, strict=True):
            assert clip[:, 0, 0, 0].tolist() == [number % 251 for number in range(start, start + 4)]
        starts += part.starts if part.seconds is None else []
    assert starts == list(range(0, 1997, round(every * 10)))
    assert part.starts == [0, 998, 1996]


def test_a_stream_is_read_one_batch_ahead_and_can_be_closed(model: Model, folder: Path) -> None:
    for every in (None, 0.5):
        taken: list[int] = []

        def endless(taken: list[int] = taken) -> Iterator[Path]:
            for number in itertools.count():
                taken.append(number)
                yield folder / "a.mp4"

        stream = model.stream(endless(), PredictOptions(batch=4, every=every))
        assert [next(stream).source for _ in range(5)] == [str(folder / "a.mp4")] * 5
        stream.close()  # type: ignore[attr-defined]
        assert len(taken) <= 8


# --- files and real clips


def test_models_are_loaded_from_files_and_videos_predicted_in_one_call(
    model: Model, folder: Path, tmp_path: Path
) -> None:
    write_model_file(tmp_path / "model.safetensors", model.module, model.header)
    (found,) = ca.predict(tmp_path / "model.safetensors", folder / "a.mp4", every=1, top=2)
    assert isinstance(found, VideoPrediction)
    assert (len(found.moments), len(found.probabilities)) == (2, 2)
    assert "video" in repr(ca.predict(tmp_path / "model.safetensors", [folder / "a.mp4"]))


@pytest.mark.skipif(not CLIPS.is_dir(), reason="needs ../shared/data/video_clips")
def test_real_clips_have_the_same_prediction_as_file_bytes_and_frames() -> None:
    model = random_video_model(frames=8, rate=12.5)
    for file in (CLIPS / "apply_eye_makeup.avi",):
        frames = sampled(file, 12.5)
        first, *others = predict(model, [file, file.read_bytes(), frames, torch.from_numpy(frames).movedim(-1, 1)])
        assert all(same(other, first) for other in others)
        assert first.seconds == pytest.approx(len(frames) / 12.5, abs=0.08)


def test_grayscale_and_read_only_frames_are_read(model: Model, recwarn: pytest.WarningsRecorder) -> None:
    frames = moving_square(9)
    frames.setflags(write=False)
    assert not predict(model, frames)[0].error
    gray = frames[..., :1]
    assert same(*predict(model, [gray, np.repeat(gray, 3, -1)]))
    assert not recwarn.list


def test_a_network_for_images_refuses_a_video_by_name(folder: Path) -> None:
    spec = variant("lenet5_modern").spec
    header = Header("images", Classification(CLASSES), spec, Preprocessing(resize=32, crop=32, mean=(0.4,), std=(0.2,)))
    with pytest.raises(DataError, match=r"a.mp4: is a video, and this network reads images"):
        Model(spec.build(classes=3, channels=1), header).predict(folder / "a.mp4")
