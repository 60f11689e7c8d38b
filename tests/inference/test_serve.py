"""The server: predictions, limits, refused requests, concurrent clients, and a graceful stop."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from commands import Command, check_refused
from convatlas.inference.contents import EncodedFile
from convatlas.inference.load import load
from convatlas.inference.model import Model
from convatlas.inference.serve.limits import Limits
from convatlas.train.run import Run
from http_client import FORM, ask, form, running

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from convatlas.inference.serve.batcher import Batcher, QueueFullError


@pytest.fixture(scope="module")
def model(colored: Run) -> Model:
    return load(colored.model_file)


@pytest.fixture(scope="module")
def port(model: Model) -> Iterator[int]:
    with running(model, Limits(request_bytes=300_000, request_images=5, image_pixels=1_000_000)) as found:
        yield found


@pytest.fixture(scope="module")
def files(images: Path) -> list[Path]:
    return sorted((images / "val").rglob("*.*"))


def test_one_image_is_predicted_as_by_predict(port: int, model: Model, files: list[Path]) -> None:
    for file, expected in zip(files[:6], model.predict(files[:6]), strict=True):
        status, content = ask(port, body=file.read_bytes())
        (plain,) = content["predictions"]
        assert status == 200
        assert plain["label"] == expected.to_plain()["label"]
        assert plain["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)


def test_many_images_are_predicted_in_order_and_unreadable_ones_have_errors(
    port: int, model: Model, files: list[Path]
) -> None:
    sent = [(file.name, file.read_bytes()) for file in files[:3]] + [("unreadable.png", b"nothing")]
    status, content = ask(port, "/predict?top=1", form(sent), kind=FORM)
    assert status == 200
    *good, bad = content["predictions"]
    assert [each["label"] for each in good] == [p.label for p in model.predict(files[:3])]
    assert [each["source"] for each in good] == [file.name for file in files[:3]]
    assert all(len(each["probabilities"]) == 1 for each in good)
    assert (list(bad), bad["label"], bad["error"]) == (list(good[0]), None, "unreadable.png: not an image")


def test_threshold(port: int, files: list[Path]) -> None:
    _, content = ask(port, "/predict?threshold=1", files[0].read_bytes())
    assert (content["predictions"][0]["label"], content["predictions"][0]["labels"]) == (None, [])


def large() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((1001, 1000), np.uint8)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    ("path", "body", "kind", "status", "message"),
    [
        ("/predict", b"", "image/png", 422, "no image"),
        ("/predict", b"nothing", "image/png", 422, "not an image"),
        ("/predict", b"x" * 300_001, "image/png", 413, "300,000 bytes"),
        ("/predict", large(), "image/png", 422, "must have at most 1,000,000 pixels (L), got 1000 x 1001"),
        ("/predict", b"{}", "application/json", 415, "application/json"),
        ("/predict", b"no form", FORM, 400, ""),
        ("/predict", b"no form", "multipart/form-data", 400, ""),
        ("/predict", form([(f"{i}", b"x") for i in range(6)]), FORM, 400, "at most 5 images"),
        ("/predict", form([("a", b"x"), ("b", b"y")]), FORM, 422, "not an image"),
        ("/predict", form([]), FORM, 422, "no image"),
        ("/predict?top=0", b"x", "image/png", 422, "top"),
        ("/predict?top=many", b"x", "image/png", 422, "top"),
        ("/predict?threshold=7", b"x", "image/png", 422, "threshold"),
        ("/predict?threshold=nan", b"x", "image/png", 422, "threshold"),
        (
            "/predict?every=1",
            b"x",
            "image/png",
            422,
            "every must not be given, because the model is for classification",
        ),
        ("/predict", b"x", "video/mp4", 415, "content type must be image/..."),
        ("/../../etc/passwd", None, "", 404, "Not Found"),
        ("/static/model.safetensors", None, "", 404, "Not Found"),
        ("/predict", None, "", 405, ""),
    ],
)
def test_bad_requests_get_a_reason(
    port: int, path: str, body: bytes | None, kind: str, status: int, message: str
) -> None:
    found, content = ask(port, path, body, kind=kind)
    assert found == status
    assert message in json.dumps(content)
    assert ask(port, "/health")[0] == 200


def test_description_and_metrics(port: int, model: Model) -> None:
    status, content = ask(port, "/")
    assert (status, content["classes"]) == (200, list(model.classes))
    _, api = ask(port, "/openapi.json")
    assert "multipart/form-data" in api["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert ask(port, body=b"nothing")[0] == 422
    _, metrics = ask(port, "/metrics")
    assert 'convatlas_requests_total{status="422"}' in metrics
    assert "convatlas_batch_bucket" in metrics


def test_a_token_is_required_if_one_is_set(model: Model, files: list[Path]) -> None:
    with running(model, token="secret") as port:
        for token, status in (("", 401), ("wrong", 401), ("secret", 200)):
            assert ask(port, body=files[0].read_bytes(), token=token)[0] == status
            for path in ("/", "/metrics", "/openapi.json"):
                assert ask(port, path, token=token)[0] == status
        assert ask(port, "/health")[0] == 200


def test_concurrent_clients_share_batches(model: Model, files: list[Path]) -> None:
    expected = {file: p.label for file, p in zip(files, model.predict(files), strict=True)}
    sent = files * 6
    with running(model, Limits(batch=8, wait_s=0.02)) as port:
        with ThreadPoolExecutor(32) as clients:
            found = list(clients.map(lambda file: ask(port, body=file.read_bytes()), sent))
        _, metrics = ask(port, "/metrics")
    assert [status for status, _ in found] == [200] * len(sent)
    assert [content["predictions"][0]["label"] for _, content in found] == [expected[file] for file in sent]
    (batches,) = [line for line in metrics.splitlines() if line.startswith("convatlas_batch_count")]
    assert float(batches.split()[1]) < len(sent) / 2


def test_a_full_queue_refuses_images_and_completes_the_others(model: Model, files: list[Path]) -> None:
    image = EncodedFile("x", files[0].read_bytes())

    async def crowd() -> tuple[list[Any], Any]:
        batcher = Batcher(model, Limits(queue=4, wait_s=0.05))
        batcher.start()
        waiting = [asyncio.create_task(batcher.decode_outputs([image] * 2)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await batcher.decode_outputs([image])
        answered = await asyncio.gather(*waiting)
        again = await batcher.decode_outputs([image])
        await batcher.stop()
        return answered, again

    answered, again = asyncio.run(crowd())
    assert [len(each) for each in answered] == [2, 2]
    assert isinstance(again[0], torch.Tensor)


def test_a_failing_engine_gives_500_and_the_server_continues(model: Model, files: list[Path]) -> None:
    class FailingEngine:
        name = "failing"
        failing = True

        def outputs(self, pixels: torch.Tensor) -> torch.Tensor:
            if self.failing:
                raise RuntimeError("no memory")
            return model.engine.outputs(pixels)

    engine = FailingEngine()
    with running(Model(model.network, model.header, engine)) as port:
        assert ask(port, body=files[0].read_bytes())[0] == 500
        engine.failing = False
        assert ask(port, body=files[0].read_bytes())[0] == 200


def test_the_command_serves_until_sigterm(colored: Run, files: list[Path], tmp_path: Path) -> None:
    """Requests that were accepted before SIGTERM are completed."""
    command = [sys.executable, "-m", "convatlas", "serve", str(colored.model_file), "--port", "0", "--engine", "torch"]
    environment = {key: value for key, value in os.environ.items() if key != "CONVATLAS_TOKEN"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment)
    try:
        assert process.stderr is not None
        lines: list[str] = []
        while "on http://127.0.0.1:" not in "".join(lines[-1:]):
            lines.append(next(process.stderr))
        assert lines[-2].startswith("memory for requests: at most ")
        port = int(lines[-1].split("127.0.0.1:")[1].split()[0])
        with ThreadPoolExecutor(8) as clients:
            answers = [clients.submit(ask, port, body=file.read_bytes()) for file in files[:16]]
            while not any(answer.done() for answer in answers):
                time.sleep(0.005)
            process.send_signal(signal.SIGTERM)
            statuses = []
            for answer in answers:
                try:
                    statuses.append(answer.result()[0])
                except OSError:  # no longer accepted
                    continue
        assert statuses
        assert set(statuses) == {200}
        assert process.wait(60) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()


def test_an_address_in_use_gives_one_line(convatlas: Command, colored: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = convatlas("serve", colored.model_file, "--port", port, "--engine", "torch")
    check_refused(refused, f"127.0.0.1:{port}: cannot listen there")


def test_limits_that_exclude_each_other_give_one_line(convatlas: Command, colored: Run) -> None:
    refused = convatlas("serve", colored.model_file, "--max-bytes", "1MiB", "--max-memory", "1MiB")
    check_refused(refused, "--max-memory must be at least twice --max-bytes, 2,097,152 bytes, got 1,048,576")
