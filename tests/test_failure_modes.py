"""Failures while training: unreadable images, out of memory, a full disk, a read-only cache, a clock that jumps."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

import convatlas as ca
from commands import Command, Outcome, check_refused
from conftest import COLORS, write_images
from convatlas.data.decode.headers import read_header
from convatlas.data.decode.pixels import read_image
from convatlas.errors import DataError
from convatlas.train import run_folder
from convatlas.train.cpu import tune
from convatlas.train.resume import open_run
from convatlas.train.run import Run
from convatlas.train.settings import ExecutionOptions


def process(*arguments: object, **environment: str) -> Outcome:
    """Run Python in another process, in which limits can be set."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CONVATLAS_OFFLINE": "1"} | environment,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


def same_weights(a: Path, b: Path) -> bool:
    left, right = load_file(a), load_file(b)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def check_whole(folder: Path) -> list[str]:
    """Check that every file in a run directory is complete; return the names of the files."""
    names = sorted(path.name for path in folder.iterdir())
    assert not [name for name in names if name.startswith(".")]
    assert open_run(folder).config.to_plain()  # reads run.json, and checkpoint.pt if it exists
    for name in (run_folder.MODEL, run_folder.LAST):
        if name in names:
            assert all(value.isfinite().all() for value in ca.load(folder / name).module.parameters())
    return names


# --- unusual and unreadable images

RANDOM = np.random.default_rng(0)
BLOCKS = np.kron(RANDOM.integers(0, 256, (3, 4, 3)), np.ones((8, 8, 1))).astype(
    np.uint8
)  # 24 x 32, which JPEG keeps nearly unchanged


def jpeg(path: Path, image: NDArray[np.uint8] = BLOCKS, **how: Any) -> bytes:
    Image.fromarray(image).save(path, "JPEG", quality=95, **how)
    return path.read_bytes()


def png(width: int, height: int, pixels: bytes) -> bytes:
    """Return a grayscale PNG with any size in its header."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


BOMB = png(60_000, 60_000, bytes(1000))

# name of the file, what writes it, and a part of the error
UNREADABLE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "half of a JPEG": ("half.jpg", lambda p: p.write_bytes(jpeg(p)[: len(jpeg(p)) // 2]), "runcated"),
    "nine tenths of a JPEG": ("tenths.jpg", lambda p: p.write_bytes(jpeg(p)[: len(jpeg(p)) * 9 // 10]), "runcated"),
    "no bytes, JPEG": ("nothing.jpg", lambda p: p.write_bytes(b""), "not an image"),
    "no bytes, PNG": ("nothing.png", lambda p: p.write_bytes(b""), "not an image"),
    "text": ("text.jpg", lambda p: p.write_text("<html>404 not found</html>\n" * 99), "not an image"),
    "decompression bomb": ("bomb.png", lambda p: p.write_bytes(BOMB), "3600000000 pixels"),
}


def png_named_jpeg(path: Path) -> NDArray[np.uint8]:
    Image.fromarray(BLOCKS).save(path, "PNG")
    return BLOCKS


def cmyk_jpeg(path: Path) -> NDArray[np.uint8]:
    Image.fromarray(BLOCKS).convert("CMYK").save(path, quality=95, subsampling=0)
    return BLOCKS


def deep_png(path: Path) -> NDArray[np.uint8]:
    values = RANDOM.integers(0, 65536, (24, 32)).astype(np.uint16)
    Image.fromarray(values).save(path)
    assert Image.open(path).mode == "I;16"
    return np.repeat((values / 257).round().astype(np.uint8)[..., None], 3, axis=2)


def transparent_palette(path: Path) -> NDArray[np.uint8]:
    image = Image.new("P", (32, 24), 1)
    image.putpalette([0, 0, 255, 255, 0, 0])
    image.paste(0, (16, 0, 32, 24))
    image.save(path, transparency=0)
    expected = np.full((24, 32, 3), 255, np.uint8)
    expected[:, :16] = (255, 0, 0)
    return expected


def animation(path: Path) -> NDArray[np.uint8]:
    first, *others = (Image.new("RGB", (32, 24), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    first.save(path, save_all=True, append_images=others)
    assert Image.open(path).n_frames == 3
    return np.broadcast_to(np.uint8([255, 0, 0]), (24, 32, 3))


def rotated(path: Path) -> NDArray[np.uint8]:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees to the right, it is upright
    jpeg(path, np.ascontiguousarray(np.rot90(BLOCKS)), exif=exif, subsampling=0)
    return BLOCKS


LARGE = 3000
"""Replaces Pillow's limit of 89 million pixels: above it Pillow warns, above twice of it it refuses."""


def large(path: Path) -> NDArray[np.uint8]:
    values = RANDOM.integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return values


# name of the file, and a function that writes it and returns the pixels that must be read
UNUSUAL: dict[str, tuple[str, Callable[[Path], NDArray[np.uint8]]]] = {
    "PNG with the suffix of a JPEG": ("png.jpg", png_named_jpeg),
    "CMYK": ("cmyk.jpg", cmyk_jpeg),
    "16 bits": ("deep.png", deep_png),
    "palette with transparency": ("palette.png", transparent_palette),
    "animation": ("moving.gif", animation),
    "EXIF orientation": ("rotated.jpg", rotated),
    "large": ("large.png", large),
}

bombs_are_expected = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower Pillow's limit, so that a small image is above it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", LARGE)


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unreadable_image_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    name, write, message = UNREADABLE[kind]
    write(tmp_path / name)
    for read in (lambda path: read_image(path, 3), lambda path: read_image(path, 1)):
        with pytest.raises(DataError, match=message) as caught:
            read(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(caught.value)


@bombs_are_expected
@pytest.mark.usefixtures("low_limit")
@pytest.mark.parametrize("kind", UNUSUAL)
def test_an_unusual_image_is_read(tmp_path: Path, kind: str) -> None:
    name, write = UNUSUAL[kind]
    expected = write(tmp_path / name)
    read = read_image(tmp_path / name, 3)
    assert read.dtype == torch.uint8
    difference = np.abs(read.numpy().astype(int).transpose(1, 2, 0) - expected)
    assert difference.max() <= (12 if name in ("cmyk.jpg", "rotated.jpg") else 0)  # the loss of JPEG
    assert read_image(tmp_path / name, 1).shape == (1, *expected.shape[:2])


@pytest.mark.parametrize("read", [read_header, lambda path: read_image(path, 3)], ids=["header", "image"])
@pytest.mark.parametrize("side", [60_000, 2**31 - 1])
def test_a_decompression_bomb_takes_no_memory(tmp_path: Path, side: int, read: Callable[[Path], object]) -> None:
    (tmp_path / "bomb.png").write_bytes(png(side, side, bytes(1000)))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**26, limits[1]))
    try:
        with pytest.raises(DataError, match=r"bomb\.png: cannot be read: .*pixels"):
            read(tmp_path / "bomb.png")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@bombs_are_expected
def test_an_image_of_90_million_pixels_is_read(tmp_path: Path) -> None:
    """Pillow warns of it, and would refuse twice as many pixels."""
    side = 9460
    Image.new("1", (side, side), 1).save(tmp_path / "map.png", compress_level=1)
    assert read_image(tmp_path / "map.png", 1).sum(dtype=torch.int64) == 255 * side**2


def test_the_warning_of_a_library_about_a_large_image_is_not_printed(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        write_images(tmp_path / "data" / name, COLORS[name], count=2)
    (tmp_path / "data/ant/large.png").write_bytes(png(9460, 9460, bytes(1000)))
    outcome = process("-m", "convatlas", "data", "check", tmp_path / "data")
    assert "1 image is unreadable" in outcome.out
    assert (outcome.code, outcome.err) == (1, "")


def contents(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Return what must not change of each file: modification time, mode, and the digest of its bytes."""
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_mode, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.rglob("*")
        if path.is_file()
    }


@dataclass(frozen=True)
class Mixed:
    """A folder of 201 ordinary images and 13 that are unusual or unreadable.

    unreadable: path -> part of the error. readable: split -> number of readable images.
    """

    folder: Path
    unreadable: dict[str, str]
    readable: dict[str, int]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    folder = tmp_path_factory.mktemp("failures") / "images"
    for seed, (name, color) in enumerate(COLORS.items()):
        write_images(folder / "train" / name, color, count=54, seed=seed)
        write_images(folder / "val" / name, color, count=13, seed=10 + seed)
    places = ["train/ant", "train/bee", "val/cat", "train/cat", "val/ant"]
    unreadable = {}
    for i, (name, write, message) in enumerate(UNREADABLE.values()):
        path = folder / places[i % len(places)] / name
        write(path)
        unreadable[str(path)] = message
    for i, (name, write_unusual) in enumerate(UNUSUAL.values()):
        write_unusual(folder / places[i % len(places)] / name)
    files = [path for path in contents(folder) if path not in unreadable]
    readable = {split: sum(f"/{split}/" in path for path in files) for split in ("train", "val")}
    before = contents(folder)
    yield Mixed(folder, unreadable, readable)
    assert contents(folder) == before, "an image was changed"


@bombs_are_expected
@pytest.mark.usefixtures("low_limit")
def test_data_check_lists_exactly_the_unreadable_images(convatlas: Command, mixed: Mixed) -> None:
    plain = json.loads(convatlas("data", "check", mixed.folder, "--json").out)
    assert plain["unreadable"].keys() == mixed.unreadable.keys()
    assert all(message in plain["unreadable"][path] for path, message in mixed.unreadable.items())
    assert {split: sum(counts) for split, counts in plain["counts"].items()} == mixed.readable
    assert plain["rotated"] == [path for path in contents(mixed.folder) if path.endswith("rotated.jpg")]
    outcome = convatlas("data", "check", mixed.folder)
    assert (outcome.code, outcome.err) == (1, "")
    assert f"error: {len(mixed.unreadable)} images are unreadable" in outcome.out
    assert sum(any(f"    {path}: " in line for path in mixed.unreadable) for line in outcome.out.splitlines()) == 6


@bombs_are_expected
@pytest.mark.usefixtures("low_limit")
def test_a_training_skips_exactly_the_unreadable_images(convatlas: Command, mixed: Mixed, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    outcome = convatlas(
        "fit", mixed.folder, "--model", "lenet5_modern", "--epochs", 2, "--batch", 16, "--max-unreadable", 0.1,
        "--out", folder,
    )  # fmt: skip
    assert (outcome.code, outcome.err) == (0, "")
    with (folder / run_folder.UNREADABLE).open() as file:
        rows = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert rows.keys() == mixed.unreadable.keys()
    for path, message in mixed.unreadable.items():
        assert rows[path].startswith(f"{path}: ")
        assert message in rows[path]
    counts = "3 classes, " + ", ".join(f"{count} {split}" for split, count in mixed.readable.items())
    assert counts in outcome.out
    assert f"skipped: {len(mixed.unreadable)} unreadable files in total" in outcome.out
    dataset = open_run(folder).dataset
    used = {name for images in dataset.splits.values() for name in images.names}
    assert used == contents(mixed.folder).keys() - mixed.unreadable.keys()
    check_whole(folder)
    # the colors of the classes are easy to tell apart, and the unusual images are few
    plain = json.loads(convatlas("evaluate", folder / run_folder.MODEL, mixed.folder, "--json").out)
    assert (plain["split"], plain["n"]) == ("val", mixed.readable["val"])
    assert {image["path"] for image in plain["unreadable"]} == mixed.unreadable.keys()
    assert plain["accuracy"] > 0.8


@bombs_are_expected
@pytest.mark.usefixtures("low_limit")
def test_too_many_unreadable_images_are_refused_before_the_start(
    convatlas: Command, mixed: Mixed, tmp_path: Path
) -> None:
    outcome = convatlas("fit", mixed.folder, "--model", "lenet5_modern", "--epochs", 1, "--out", tmp_path / "run")
    total = sum(mixed.readable.values()) + len(mixed.unreadable)
    check_refused(outcome, f"{len(mixed.unreadable)} of {total} images", "1.0%", "--max-unreadable", str(mixed.folder))
    assert not (tmp_path / "run").exists()


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda data: empty(data / "train/bee"), ["train/bee", "bee is empty"]),
        (lambda data: empty(data / "val/bee"), ["val/bee", "bee is empty"]),
    ],
    ids=["empty in train", "empty in val"],
)
def test_an_empty_class_is_refused_by_name(
    convatlas: Command, own_images: Path, tmp_path: Path, damage: Callable[[Path], None], named: list[str]
) -> None:  # fmt: skip
    damage(own_images)
    more = ["--model", "lenet5_modern", "--out", tmp_path / "run"]
    check_refused(convatlas("fit", own_images, *more), str(own_images), *named)
    assert not (tmp_path / "run").exists()
    checked = convatlas("data", "check", own_images)
    assert (checked.code, "1 class folder has no images" in checked.out) == (1, True)
    assert named[0] in checked.out


def test_a_class_that_a_split_lacks_is_refused_by_a_training(
    convatlas: Command, own_images: Path, tmp_path: Path
) -> None:  # fmt: skip
    shutil.rmtree(own_images / "val/bee")
    lacks = "the val split lacks bee"
    check_refused(convatlas("fit", own_images, "--model", "lenet5_modern", "--out", tmp_path / "run"), lacks)
    assert not (tmp_path / "run").exists()
    checked = convatlas("data", "check", own_images)
    assert checked.code == 1
    assert f"error: {lacks}" in checked.out


# --- a much too high learning rate


OFTEN = ["--checkpoint-every", 1]


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("lenet5_modern", []),
        ("lenet5_modern", ["--set", "grad_clip=1", "--set", "ema_decay=0.9"]),
        ("lenet5_modern", ["--batch", 512]),  # with so few steps, the loss on val is the first that is not finite
        (
            "cifar_resnet20",
            ["--resolution", 16, "--batch", 32, "--memory-format", "contiguous", "--precision", "float32"],
        ),
        ("lenet5_modern", OFTEN),
        ("lenet5_modern", ["--set", "optimizer=adamw", *OFTEN]),
    ],
    ids=["default", "grad_clip and EMA", "few steps", "batch norms", "checkpoints", "AdamW and checkpoints"],
)
def test_a_much_too_high_learning_rate_ends_in_one_line(
    convatlas: Command, tmp_path: Path, model: str, more: list[object]
) -> None:
    checkpoint = ["checkpoint.pt"] if 1 in more else []
    folder, files = tmp_path / "run", [*checkpoint, "diagnostics.csv", "run.json"]
    parts = ["loss on val", "learning rate"] if 512 in more else ["10 steps up to step", "not finite", "than 1e+06"]
    outcome = convatlas("fit", "digits", "--model", model, "--lr", 1e6, "--out", folder, *more)
    check_refused(outcome, *parts)
    assert check_whole(folder) == files
    # a resumed run is the same run
    again = convatlas("resume", folder)
    assert (again.code, again.err) == (2, outcome.err)
    assert check_whole(folder) == files


def test_a_much_too_high_learning_rate_leaves_the_initial_weights(
    convatlas: Command, model_file: Path, tmp_path: Path
) -> None:
    outcome = convatlas(
        "fit", "digits", "--model", "lenet5_modern", "--weights", model_file, "--lr", 1e6, "--batch", 64,
        "--set", "head_epochs=0", "--out", tmp_path / "run",
    )  # fmt: skip
    check_refused(outcome, "not finite", "learning rate")
    assert check_whole(tmp_path / "run") == ["checkpoint.pt", "diagnostics.csv", "run.json"]
    run, initial = open_run(tmp_path / "run"), ca.load(model_file).module.state_dict()
    assert run.state.step == 0
    assert all(torch.equal(value, initial[name]) for name, value in run.network.state_dict().items())


def test_a_saturated_network_is_finite_at_a_much_too_high_learning_rate(convatlas: Command, tmp_path: Path) -> None:
    """Its gradients vanish: it learns nothing, and its files are complete."""
    how = ["--model", "lenet1", "--epochs", 2, "--lr", 1e6, "--out", tmp_path / "run"]
    assert convatlas("fit", "digits", *how).code == 0
    assert {run_folder.MODEL, run_folder.LAST, run_folder.CHECKPOINT, run_folder.REPORT} <= set(
        check_whole(tmp_path / "run")
    )


# --- out of memory

# the command line, in a process that can grow by so many MiB from a point on: the first argument says where
SHORT = """
import ctypes, resource, sys
from pathlib import Path

import torch

import convatlas.train.fit
from convatlas.cli import app as cli
from convatlas.train.fit import fit
from convatlas.train.run import Run
from convatlas.train.settings import ExecutionOptions
from convatlas.train.step import StepRunner

how, room, spare = sys.argv[1], int(sys.argv[2]) * 2**20, sys.argv[3]
torch.backends.mkldnn.enabled = how != "torch convolutions"
most = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (2**44, most))  # far away, but visible to retain_malloc, as one set at the start
# what is imported when it is first used is imported before memory is short
fit("digits", "lenet1", epochs=1, out=spare, execution=ExecutionOptions(threads=1))
ctypes.CDLL(None).malloc_trim(0)

def limit():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, most))

def limited_steps(self):
    limit()
    yield from steps(self)

def limited_choice(*arguments, **options):
    limit()
    return choose_plan(*arguments, **options)

def print_micro_batch(self, *arguments):
    outputs = backward(self, *arguments)
    print("micro-batch of", self.micro_batch)
    return outputs

steps, choose_plan = Run.steps, convatlas.train.fit.choose_plan
backward = StepRunner.backward_with_oom_retry
StepRunner.backward_with_oom_retry = print_micro_batch
if how == "timing":
    convatlas.train.fit.choose_plan = limited_choice
else:
    Run.steps = limited_steps
sys.argv = ["convatlas", *sys.argv[4:]]
cli.main()
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4,096 arrays, which are one batch; a bright row shows the class."""
    path = tmp_path_factory.mktemp("rows") / "rows.npz"
    labels = np.arange(4096) % 4
    pixels = np.random.default_rng(0).integers(0, 200, (4096, 28, 28), dtype=np.uint8)
    pixels[np.arange(4096), 4 + 4 * labels] = 250
    np.savez(path, x=pixels, y=labels, x_val=pixels[:64], y_val=labels[:64])
    return path


def short_of_memory(how: str, room: int, rows: Path, folder: Path) -> Outcome:
    memory_format = "auto" if how == "timing" else "channels_last"
    return process(
        "-c", SHORT, how, room, folder.with_name("first"), "fit", rows, "--model", "lenet5_modern", "--epochs", 1,
        "--batch", 4096, "--threads", 1, "--precision", "float32", "--memory-format", memory_format, "--out", folder,
        CONVATLAS_CACHE=str(folder.with_name("cache")),
        MALLOC_ARENA_MAX="1",  # a thread that waits for another in malloc would reserve 64 MiB for itself
    )  # fmt: skip


@pytest.mark.parametrize(
    ("how", "room"), [pytest.param("torch convolutions", 200, marks=pytest.mark.slow), ("oneDNN", 120)]
)
def test_a_batch_that_does_not_fit_into_memory_is_split_into_micro_batches(
    rows: Path, tmp_path: Path, how: str, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole batch needs more than 300 MiB."""
    outcome = short_of_memory(how, room, rows, tmp_path / "run")
    assert (outcome.code, outcome.err) == (0, "")
    (micro_batch,) = (int(line.split()[-1]) for line in outcome.out.splitlines() if line.startswith("micro-batch of"))
    assert 0 < micro_batch < 4096
    # failed attempts have no effect
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", how == "oneDNN")
    ca.fit(
        rows, "lenet5_modern", recipe="default", out=tmp_path / "expected",
        epochs=1, batch=4096, micro_batch=micro_batch,
        execution=ExecutionOptions(
            threads=1, memory_format="channels_last", precision="float32", retain_malloc=False
        ),
    )  # fmt: skip
    assert same_weights(tmp_path / "run" / run_folder.LAST, tmp_path / "expected" / run_folder.LAST)


@pytest.mark.parametrize(("how", "room"), [("preparing", 12), ("timing", 100)])
def test_out_of_memory_anywhere_is_one_line(rows: Path, tmp_path: Path, how: str, room: int) -> None:
    """Memory for less than the inputs of a batch, 16 MiB; or for less than a step whose plans are timed."""
    outcome = short_of_memory(how, room, rows, tmp_path / "run")
    if outcome.code:
        check_refused(outcome, "out of memory")
    else:
        assert (how, outcome.err) == ("timing", "")  # to choose a plan without timing is as good


# --- a full disk

# the command line on a disk of 6 MiB that is filled up at a step, and emptied before `resume`
FULL = """
import contextlib, io, json, shutil, subprocess, sys
from pathlib import Path

from convatlas.cli import app as cli
from convatlas.train.run import Run
from convatlas.train.step import Step

disk, out, points, how = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", disk], check=True)
steps = Run.steps

def fill():
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))

def command(*arguments):
    sys.argv = ["convatlas", *map(str, arguments)]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    return [code, errors.getvalue()]

outcomes = {}
for name, point in points.items():
    def filling(run):
        for event in steps(run):
            if point == (event.number if isinstance(event, Step) else f"epoch {event.number}"):
                fill()
            yield event
    Run.steps = filling
    failed = command("fit", "digits", *how, "--out", disk / "run")
    shutil.copytree(disk / "run", out / name / "failed")
    (disk / "filler").unlink()
    Run.steps = steps
    resumed = command("resume", disk / "run")
    shutil.copytree(disk / "run", out / name / "resumed")
    shutil.rmtree(disk / "run")
    outcomes[name] = [failed, resumed]
print(json.dumps(outcomes))
"""

POINTS: dict[str, int | str] = {run_folder.CHECKPOINT: 9, run_folder.MODEL: 17, run_folder.LAST: "epoch 2"}
"""The file that cannot be written -> the step or epoch after which the disk is full; 18 steps are an epoch."""


@pytest.fixture(scope="module")
def own_mounts() -> list[str]:
    """Return the start of a command line that can mount disks for itself only."""
    prefixes = (["unshare", "--user", "--map-root-user", "--mount"], ["unshare", "--mount"])
    for prefix in prefixes:
        if shutil.which("unshare") and not subprocess.run([*prefix, "true"], capture_output=True).returncode:
            return prefix
    pytest.skip("this machine does not allow to mount disks; tests/weights/test_modelfile.py limits file sizes instead")


def test_a_full_disk_is_an_error_and_the_run_is_resumed_when_it_has_space(
    convatlas: Command, own_mounts: list[str], tmp_path: Path
) -> None:
    how = ["--model", "lenet5_modern", "--epochs", "2", "--batch", "64", "--threads", "1", "--checkpoint-every", "4"]
    whole, disk = tmp_path / "whole", tmp_path / "disk"
    disk.mkdir()
    assert convatlas("fit", "digits", *how, "--out", whole).code == 0
    done = subprocess.run(
        [*own_mounts, sys.executable, "-c", FULL, disk, tmp_path / "out", json.dumps(POINTS), *how],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name, (failed, resumed) in json.loads(done.stdout).items():
        check_refused(Outcome(failed[0], "", failed[1]), f"{disk / 'run' / name}: cannot be written", "No space left")
        folder = tmp_path / "out" / name / "failed"
        check_whole(folder)
        steps = {run_folder.CHECKPOINT: 8, run_folder.MODEL: 16, run_folder.LAST: 36}
        assert open_run(folder).state.step == steps[name]
        assert resumed == [0, ""]
        for file in (run_folder.MODEL, run_folder.LAST):
            assert same_weights(tmp_path / "out" / name / "resumed" / file, whole / file)


# --- a cache that cannot be written


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("not a folder")
    return folder / "file" / "cache"


def without_permission(folder: Path) -> Path:
    if os.geteuid() == 0:
        pytest.skip("root can write everywhere")
    (folder / "cache").mkdir(mode=0o555)
    return folder / "cache"


@pytest.mark.parametrize("place", [below_a_file, without_permission, lambda _: Path("/proc/cache")],
                         ids=["below a file", "without permission", "on /proc"])  # fmt: skip
def test_without_a_cache_images_are_kept_in_memory(
    place: Callable[[Path], Path], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "MIN_MACS_TO_TUNE", 0)  # plans are timed, and the choice cannot be stored
    how: dict[str, Any] = {"recipe": "default", "epochs": 2, "batch": 8}
    cache = place(tmp_path)
    with monkeypatch.context() as patch:
        patch.setenv("CONVATLAS_CACHE", str(cache))
        without = ca.fit(images, "lenet5_modern", out=tmp_path / "without", **how)
    assert not cache.exists() or not any(cache.iterdir())
    assert check_whole(without.folder)
    # under the same plan, with a cache
    cached = ca.fit(images, "lenet5_modern", out=tmp_path / "cached", execution=without.config.execution, **how)
    assert same_weights(without.folder / run_folder.LAST, cached.folder / run_folder.LAST)
    assert without.config.fingerprint == cached.config.fingerprint


# --- a clock that jumps


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that lets all clocks jump by these hours in turn, after each step and epoch."""

    def jump(*hours: float) -> None:
        late = 0.0

        def shifted(clock: Callable[[], float]) -> Callable[[], float]:
            return lambda: clock() + late

        def steps(self: Run) -> Iterator[Any]:
            nonlocal late
            for number, event in enumerate(ordinary(self)):
                yield event
                late += 3600 * hours[number % len(hours)]

        ordinary = Run.steps
        for name in ("time", "monotonic", "perf_counter"):
            monkeypatch.setattr(time, name, shifted(getattr(time, name)))
        monkeypatch.setattr(Run, "steps", steps)

    return jump


@pytest.mark.parametrize(
    "hours", [[3.0], [-5.0], [3.0, -5.0, 7.0, -5.0]], ids=["forwards", "backwards", "back and forth"]
)
def test_a_clock_that_jumps_does_not_change_the_weights(
    convatlas: Command, jumping: Callable[..., None], colored: Run, images: Path, tmp_path: Path, hours: list[float]
) -> None:
    jumping(*hours)
    assert convatlas(*arguments_of(colored, images, tmp_path / "run")).code == 0
    for file in (run_folder.MODEL, run_folder.LAST):
        assert same_weights(tmp_path / "run" / file, colored.folder / file)


def arguments_of(like: Run, images: Path, folder: Path) -> list[object]:
    """Return the command line of a run that equals `colored`."""
    execution = like.config.execution
    return [
        "fit", images, "--model", "lenet5_modern", "--epochs", 2, "--batch", 8, "--device", "cpu", "--threads", 1,
        "--memory-format", execution.memory_format, "--precision", execution.precision, "--checkpoint-every", "10ms",
        "--out", folder,
    ]  # fmt: skip


@pytest.mark.parametrize("hours", [[3.0], [-5.0]], ids=["forwards", "backwards"])
def test_the_seconds_of_a_run_never_decrease(
    convatlas: Command, jumping: Callable[..., None], colored: Run, images: Path, tmp_path: Path, hours: list[float]
) -> None:
    jumping(*hours)
    assert convatlas(*arguments_of(colored, images, tmp_path / "run")).code == 0
    with (tmp_path / "run" / run_folder.METRICS).open() as file:
        seconds = [float(row["elapsed_s"]) for row in csv.DictReader(file)]
    assert 0 <= seconds[0] <= seconds[1]
    assert ca.load(tmp_path / "run" / run_folder.MODEL).header.training.elapsed_s >= 0
