"""Fixtures: tiny data made from a seed, small trained runs, servers, and the real data if it is available."""

from __future__ import annotations

import gzip
import resource
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from numpy.typing import NDArray
from PIL import Image

from commands import Command, Outcome
from convatlas.cli import app as cli
from convatlas.data.readers.idx import IDX_PARTS
from convatlas.train.fit import fit
from convatlas.train.run import Run
from convatlas.train.settings import ExecutionOptions
from server import CONTENT, Site, serving

settings.register_profile("quick", deadline=None, max_examples=30)
settings.load_profile("quick")

COLORS = {"ant": (200, 60, 40), "bee": (60, 190, 70), "cat": (50, 70, 210)}


@pytest.fixture(scope="session", autouse=True)
def _one_thread_and_a_cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVATLAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")  # of child processes: the workers of the test run use all cores
        yield


def write_images(folder: Path, color: tuple[int, int, int], *, count: int = 12, seed: int = 0) -> None:
    """Write noisy images of one color and of different sizes, PNG and JPEG in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for i in range(count):
        shape = (int(random.integers(20, 40)), int(random.integers(20, 40)), 3)
        noisy = np.clip(random.normal(color, 40, shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i:02}.{'png' if i % 2 else 'jpg'}")


def write_idx(path: Path, values: NDArray[np.uint8]) -> None:
    """Write an IDX file of bytes, compressed if its name ends in .gz."""
    raw = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(raw, compresslevel=1) if path.suffix == ".gz" else raw)


def write_idx_folder(folder: Path, *, compressed: bool = True, dots: bool = False) -> Path:
    """Write the four files of a synthetic MNIST: 160 training and 40 test images, a bright row for each digit."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for split, count in (("train", 160), ("test", 40)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = random.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        images[np.arange(count), 4 + 2 * labels] = 250
        for what, values in (("images", images), ("labels", labels)):
            name = IDX_PARTS[split, what].replace("-idx", ".idx" if dots else "-idx")
            write_idx(folder / (name + ".gz" * compressed), values)
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of train/ and val/ with 12 colored images in each of three classes; read only."""
    folder = tmp_path_factory.mktemp("data") / "images"
    for seed, (name, color) in enumerate(COLORS.items()):
        write_images(folder / "train" / name, color, seed=seed)
        write_images(folder / "val" / name, color, seed=10 + seed)
    return folder


@pytest.fixture
def own_images(images: Path, tmp_path: Path) -> Path:
    """A copy of `images` that a test may change."""
    return Path(shutil.copytree(images, tmp_path / "images"))


@pytest.fixture(scope="session")
def idx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four compressed IDX files; read only."""
    return write_idx_folder(tmp_path_factory.mktemp("data") / "rows")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of one epoch on the embedded digits."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    return fit(
        "digits", "lenet5_modern", recipe="default", epochs=1, out=out,
        execution=ExecutionOptions(device="cpu", threads=1),
    )  # fmt: skip


@pytest.fixture(scope="session")
def model_file(trained: Run) -> Path:
    """The model file of `trained`; read only."""
    return trained.model_file


@pytest.fixture(scope="session")
def colored(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of two epochs on `images`."""
    out = tmp_path_factory.mktemp("runs") / "images"
    return fit(
        images, "lenet5_modern", recipe="default", epochs=2, batch=8, out=out,
        execution=ExecutionOptions(device="cpu", threads=1),
    )  # fmt: skip


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """Return a context in which no file of this process can grow beyond a number of bytes, as on a full disk."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout."""
    folder = Path(__file__).parents[1] / "../shared/data"
    if not folder.is_dir():
        pytest.skip(f"the real data is not available ({folder})")
    return folder.resolve()


@pytest.fixture
def convatlas(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs the command line in this process; an exception other than SystemExit fails."""
    monkeypatch.setenv("CONVATLAS_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["convatlas", *map(str, arguments)])
        code: object = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        assert isinstance(code, int)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Site]]:
    """Return a function that starts a server of files {path: contents}, which stops after the test."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("CONVATLAS_OFFLINE", raising=False)
    with ExitStack() as stack:
        yield lambda files=None, **how: stack.enter_context(serving(Site(files or {"/file": CONTENT}, **how)))
