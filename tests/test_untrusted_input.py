"""Malformed, hostile and fuzzed inputs, several hundred: no crash, no hang, no unpickling, one-line errors."""

from __future__ import annotations

import io
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convatlas.errors import ConvatlasError
from convatlas.inference.contents import EncodedFile
from convatlas.inference.load import load
from convatlas.inference.model import Model
from convatlas.train.run import Run
from http_client import FORM, ask, form, running

IMAGES, FILES, REQUESTS = 160, 80, 80
"""Number of inputs of each kind."""


class Trap:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def fuzzed(data: bytes, seed: int) -> bytes:
    """Return data with some bytes changed, deleted or repeated, or truncated."""
    random = np.random.default_rng(seed)
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 12))):
        place = int(random.integers(0, min(len(changed), 400 if seed % 2 else len(changed))))
        match int(random.integers(0, 4)):
            case 0:
                changed[place] = int(random.integers(0, 256))
            case 1:
                changed[place : place + 4] = b"\xff\xff\xff\xff"
            case 2:
                del changed[place : place + int(random.integers(1, 20))]
            case _:
                changed[place:place] = changed[place : place + 30]
    return bytes(changed[: int(random.integers(1, len(changed) + 1))] if seed % 5 == 0 else changed)


def encoded(kind: str) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    file = io.BytesIO()
    if kind == "npy":
        np.save(file, values)
    else:
        Image.fromarray(values).save(file, kind)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def hostile(trap: Path) -> list[bytes]:
    """Return hand-made malicious files."""
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("x/data.pkl", pickle.dumps(Trap(trap)))
    objects = io.BytesIO()
    np.save(objects, np.array([Trap(trap)], dtype=object), allow_pickle=True)
    return [
        png + chunk(b"IDAT", zlib.compress(bytes(1000))), b"", b"\0" * 5000, b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM",
        pickle.dumps(Trap(trap)), archive.getvalue(), objects.getvalue(), b"II*\0" + b"\xff" * 400,
        b"%PDF-1.7\n", b"<svg onload='x'/>", b"RIFF\xff\xff\xff\xffWEBPVP8 ", b"P6\n99999999 99999999\n255\n",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def model(colored: Run) -> Model:
    return load(colored.model_file)


def corpus(trap: Path) -> list[bytes]:
    kinds = [encoded(kind) for kind in ("png", "jpeg", "gif", "bmp", "webp", "tiff", "ppm", "npy")]
    return [*hostile(trap), *(fuzzed(kinds[seed % len(kinds)], seed) for seed in range(IMAGES - 14))]


@pytest.fixture(scope="module")
def images_of_all_kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[bytes]]:
    trap = tmp_path_factory.mktemp("trap") / "sprung"
    yield corpus(trap)
    assert not trap.exists(), "an object was unpickled"


@pytest.mark.filterwarnings("ignore")  # of libraries, about what they repair
def test_fuzzed_images_give_predictions_or_one_line_errors(model: Model, images_of_all_kinds: list[bytes]) -> None:
    found = model.predict([EncodedFile(f"p{i}", data) for i, data in enumerate(images_of_all_kinds)])
    assert len(found) == IMAGES
    for i, each in enumerate(found):
        assert bool(each.error) != bool(each.text)
        assert not each.error or (each.error.startswith(f"p{i}: ") and "\n" not in each.error), each.error
    assert sum(bool(each.error) for each in found) > IMAGES // 3


@pytest.mark.filterwarnings("ignore")
def test_the_server_survives_fuzzed_requests(model: Model, images_of_all_kinds: list[bytes]) -> None:
    good = encoded("png")
    with running(model) as port:
        for i, data in enumerate(images_of_all_kinds):
            status, _ = ask(port, body=form([("x", data)]) if i % 2 else data, kind=FORM if i % 2 else "image/x")
            assert status in (200, 422)
        for seed in range(REQUESTS):
            raw(port, seed)
        status, content = ask(port, body=good)
        assert (status, len(content["predictions"])) == (200, 1)


def raw(port: int, seed: int) -> None:
    """Send an almost valid request, and close the connection."""
    image = encoded("png")
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM if seed % 2 else 'image/png'}\r\n"
    body = form([("a", image)]) if seed % 2 else image
    request = fuzzed(f"{head}Content-Length: {len(body)}\r\n\r\n".encode(), seed) + body[: seed * 97 % len(body)]
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.settimeout(0.05)
        try:
            connection.sendall(request)
            connection.recv(1000)
        except OSError:
            return  # the server waits for the rest, or closed the connection


def test_fuzzed_model_files_are_refused_in_one_line(model_file: Path, tmp_path: Path) -> None:
    whole = model_file.read_bytes()
    trap = tmp_path / "sprung"
    made = [*hostile(trap), *(fuzzed(whole, seed) for seed in range(FILES - 14))]
    torch.save({"x": Trap(trap)}, tmp_path / "weights.pth")
    for i, data in enumerate([*made, (tmp_path / "weights.pth").read_bytes()]):
        if data == whole:
            continue
        path = tmp_path / f"{i}.{'onnx' if i % 3 == 0 else 'safetensors'}"
        path.write_bytes(data)
        with pytest.raises(ConvatlasError) as refused:
            load(path)
        assert str(refused.value).startswith(str(path))
        assert "\n" not in str(refused.value)
    assert not trap.exists()


OFFLINE = """
import sys
from pathlib import Path
import convatlas as ca
model, image, folder = sys.argv[1:]
net = ca.load(model)
expected = net.predict(image)[0].text
made = ca.export(net, "onnx", Path(folder) / "x.onnx", check=image)
assert ca.load(made.path).predict(image)[0].text == expected
sys.path[:0] = ["tests", "tests/inference"]
from http_client import ask, running
with running(net) as port:
    assert ask(port, body=Path(image).read_bytes())[0] == 200
print("done")
"""


def test_nothing_needs_internet_access(colored: Run, images: Path, tmp_path: Path) -> None:
    """Import, predict, export and serve in a network namespace that has only a loopback device."""
    unshare, ip = shutil.which("unshare"), shutil.which("ip")
    if not unshare or subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespaces here")
    up = f"{ip} link set lo up && " if ip else ""
    image = next((images / "val/ant").glob("*.png"))
    script = tmp_path / "offline.py"
    script.write_text(OFFLINE)
    command = f'{up}"{sys.executable}" "{script}" "{colored.model_file}" "{image}" "{tmp_path}"'
    done = subprocess.run(
        [unshare, "-rn", "sh", "-c", command], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("done\n")
