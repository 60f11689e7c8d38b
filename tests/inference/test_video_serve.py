"""The server with a network that reads clips: uploads of videos, clips along time, limits while decoding."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from convatlas.data.decode.video_frames import AnimationSource
from convatlas.errors import EngineError
from convatlas.inference.model import Model
from convatlas.inference.serve.limits import FRAME_FACTOR, Limits
from http_client import FORM, ask, form, running
from random_video_model import random_video_model
from video_files import moving_square, write_gif, write_sound, write_video

pytest.importorskip("fastapi")
pytest.importorskip("av")

from convatlas.inference.contents import EncodedFile
from convatlas.inference.serve.batcher import Batcher

LIMITS = Limits(
    request_bytes=300_000, image_pixels=FRAME_FACTOR * 64 * 48, video_seconds=3, video_frames=80, video_clips=9
)


@pytest.fixture(scope="module")
def model() -> Model:
    return random_video_model()


@pytest.fixture(scope="module")
def port(model: Model) -> Iterator[int]:
    with running(model, LIMITS) as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(3):
        write_video(folder / f"film{seed}.mp4", moving_square(40, seed=seed), rate=20)
    write_gif(folder / "film.gif", moving_square(12), seconds=0.1)
    write_sound(folder / "sound.mp4")
    return folder


def test_a_video_is_predicted_as_by_predict(port: int, model: Model, folder: Path) -> None:
    file = folder / "film0.mp4"
    for every in (None, 0.3):
        (expected,) = model.predict([file], every=every, top=3)
        status, content = ask(
            port, f"/predict?every={every}" if every else "/predict", file.read_bytes(), kind="video/mp4"
        )
        (found,) = content["predictions"]
        assert (status, found["source"]) == (200, "video 0")
        plain = expected.to_plain()
        assert found["seconds"] == plain["seconds"] == 2.0
        assert found["probabilities"] == pytest.approx(plain["probabilities"], abs=1e-6)
        assert [each["start"] for each in found["moments"]] == [each["start"] for each in plain["moments"]]
        for left, right in zip(found["moments"], plain["moments"], strict=True):
            assert left["probabilities"] == pytest.approx(right["probabilities"], abs=1e-6)
        assert len(found["moments"]) == (6 if every else 0)


def test_videos_of_a_form_are_predicted_in_order_and_unreadable_ones_have_errors(port: int, folder: Path) -> None:
    names = ["film0.mp4", "sound.mp4", "film.gif", "film1.mp4"]
    sent = [(name, (folder / name).read_bytes()) for name in names] + [("x.mp4", b"no video" * 100)]
    status, content = ask(port, "/predict?top=1&every=0.5", form(sent), kind=FORM)
    assert status == 200
    predictions = content["predictions"]
    assert [each["source"] for each in predictions] == [*names, "x.mp4"]
    assert [bool(each["error"]) for each in predictions] == [False, True, False, False, True]
    assert "no video stream" in predictions[1]["error"]
    assert all(len(each["probabilities"]) == 1 for each in predictions[0]["moments"])


def test_clients_at_the_same_time_get_their_own_predictions(model: Model, folder: Path) -> None:
    files = [folder / f"film{seed}.mp4" for seed in range(3)] * 4
    expected = [prediction.to_plain()["probabilities"] for prediction in model.predict(files)]
    with running(model, Limits(batch=4, wait_s=0.01)) as port, ThreadPoolExecutor(6) as clients:
        found = list(
            clients.map(lambda file: ask(port, "/predict?every=1", file.read_bytes(), kind="video/mp4"), files)
        )
        _, metrics = ask(port, "/metrics")
    assert [status for status, _ in found] == [200] * len(files)
    for (_, content), each in zip(found, expected, strict=True):
        assert content["predictions"][0]["probabilities"] == pytest.approx(each, abs=1e-6)
    assert f"convatlas_videos_total {len(files):.1f}" in metrics
    assert 'convatlas_batch_bucket{le="4.0"}' in metrics


def video(path: Path, frames: Any, **how: Any) -> bytes:
    return write_video(path, frames, **how).read_bytes()


def test_videos_beyond_the_limits_are_refused_with_the_reason(port: int, folder: Path, tmp_path: Path) -> None:
    cases = {
        "must be at most 3 s long, got 3.1 s": video(tmp_path / "long.mp4", moving_square(31), rate=10),
        "must have <= 80 frames, got more": video(tmp_path / "many.mp4", moving_square(81), rate=60),
        "a frame must have <= 3,072 pixels, got 66 x 48": video(tmp_path / "wide.mp4", moving_square(10, 48, 66)),
        "must be at least as long as a clip": video(tmp_path / "short.mp4", moving_square(3), rate=20),
        "must be at most 3 s long": video(tmp_path / "gap.mkv", moving_square(4), times=[0, 0.1, 0.2, 500]),
    }  # fmt: skip
    for message, data in cases.items():
        status, content = ask(port, body=data, kind="video/mp4")
        assert (status, content["predictions"][0]["label"]) == (422, None)
        assert message in content["predictions"][0]["error"], content
    assert ask(port, body=bytes(300_001), kind="video/mp4") == (
        413,
        {"detail": "a request must have at most 300,000 bytes"},
    )
    good = (folder / "film0.mp4").read_bytes()
    status, content = ask(port, "/predict?every=0.1", good, kind="video/mp4")
    assert (status, "at most 9 clips along time, got 20" in content["predictions"][0]["error"]) == (422, True)
    for query, message in (("0.01", "every must be >= 0.100 s"), ("0", "every"), ("nan", "every"), ("often", "every")):
        status, content = ask(port, f"/predict?every={query}", good, kind="video/mp4")
        assert (status, message in content["detail"]) == (422, True), content
    assert ask(port, body=good, kind="audio/mp4")[0] == 415
    assert ask(port, body=good, kind="video/mp4")[0] == 200


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_animations_beyond_the_limits_are_refused_before_they_are_decoded(
    port: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(count: int, side: int) -> bytes:
        first, *others = (Image.new("RGB", (side, side), (number, 0, 0)) for number in range(count))
        first.save(file := io.BytesIO(), kind, save_all=True, append_images=others, duration=20, lossless=True)
        return file.getvalue()

    cases = {"must have <= 80 frames, got more": encode(81, 4), "a frame must have <= 3,072": encode(3, 100)}
    monkeypatch.setattr(AnimationSource, "_decoded", lambda source: pytest.fail("was decoded"))
    for message, data in cases.items():
        status, content = ask(port, body=data, kind="image/png")
        assert (status, message in content["predictions"][0]["error"]) == (422, True), content


def test_a_header_that_states_a_short_duration_does_not_hide_a_long_video(port: int, tmp_path: Path) -> None:
    data = bytearray(video(tmp_path / "long.mp4", moving_square(70), rate=10))
    place = data.index(b"mvhd")
    data[place + 20 : place + 24] = (100).to_bytes(4, "big")
    status, content = ask(port, body=bytes(data), kind="video/mp4")
    assert (status, "must be at most 3 s long" in content["predictions"][0]["error"]) == (422, True)


def test_the_memory_for_videos_does_not_depend_on_the_queue(model: Model) -> None:
    steps = model.header.preprocessing
    assert Limits().of_videos.frame_pixels >= 3840 * 2160
    assert Limits(queue=1).memory_bytes(steps) == Limits(queue=1000).memory_bytes(steps)
    assert Limits(batch=64).memory_bytes(steps) > Limits(batch=1).memory_bytes(steps)


def test_a_damaged_video_is_an_error_after_clips_were_computed(port: int, tmp_path: Path) -> None:
    data = bytearray(video(tmp_path / "film.avi", moving_square(40), rate=20, codec="mjpeg"))
    end = int(0.7 * len(data))
    data[end : end + 4000] = bytes(4000)
    status, content = ask(port, "/predict?every=0.3", bytes(data), kind="video/x-msvideo")
    assert (status, bool(content["predictions"][0]["error"])) in ((200, False), (422, True))
    assert ask(port, "/health")[0] == 200


def test_the_description_has_sampling_options_and_limits(port: int) -> None:
    _, content = ask(port, "/")
    assert content["preprocessing"]["sampling"] == {"frames": 4, "rate": 10, "clips": 3}
    assert (content["noun"], content["options"]) == ("video", ["threshold", "every", "top"])
    assert "a video 3 s, 80 frames of 3,072 pixels, and 9 clips along time" in content["limits"]
    _, api = ask(port, "/openapi.json")
    operation = api["paths"]["/predict"]["post"]
    assert content["limits"] in operation["description"]
    assert "every" in {each["name"] for each in operation["parameters"]}
    assert set(api["components"]["schemas"]["Prediction"]["properties"]) >= {"seconds", "moments"}
    assert "dance.mp4" in ask(port, "/docs", headers={"Accept": "text/html"})[1]


def test_animated_images_are_videos(port: int, folder: Path) -> None:
    status, content = ask(port, "/predict?top=2", (folder / "film.gif").read_bytes(), kind="image/gif")
    assert (status, len(content["predictions"][0]["probabilities"])) == (200, 2)


def test_a_failure_of_the_network_ends_one_request(folder: Path, model: Model) -> None:
    class Failing:
        name = "failing"

        def outputs(self, pixels: torch.Tensor) -> torch.Tensor:
            raise EngineError("out of memory")

    async def predict() -> list[Any]:
        batcher = Batcher(Model(None, model.header, Failing()), LIMITS)
        batcher.start()
        try:
            return await batcher.decode_outputs([EncodedFile("a.mp4", (folder / "film0.mp4").read_bytes())], 0.5)
        finally:
            await batcher.stop()

    (error,) = asyncio.run(predict())
    assert isinstance(error, EngineError)
    assert "out of memory" in str(error)
    assert json.dumps(str(error))
