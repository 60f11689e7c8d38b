"""Data sets of torchvision, laid out in small as torchvision lays them out, read by torchvision's own classes."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

import convatlas as ca
from convatlas.data.open import open_data
from convatlas.data.readers.torchvision import FOLDERS, SETS
from convatlas.errors import DataError
from convatlas.train.recipe import Recipe
from convatlas.train.settings import DataOptions


def image(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(shade).normal(shade, 10, (24, 30, 3))
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(path)


def pets(root: Path) -> None:
    base = root / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    for split, count in (("trainval", 8), ("test", 3)):
        lines = []
        for label, breed in enumerate(("Abyssinian", "great_pyrenees"), 1):
            for i in range(count):
                name = f"{breed}_{split}{i}"
                image(base / "images" / f"{name}.jpg", 60 * label)
                lines.append(f"{name} {label} 1 1")
        (base / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")


def dtd(root: Path) -> None:
    base = root / "dtd" / "dtd"
    for split in ("train", "val", "test"):
        lines = []
        for label, name in enumerate(("banded", "dotted")):
            for i in range(5):
                image(base / "images" / name / f"{split}{i}.jpg", 60 + 90 * label)
                lines.append(f"{name}/{split}{i}.jpg")
        (base / "labels").mkdir(exist_ok=True)
        (base / "labels" / f"{split}1.txt").write_text("\n".join(lines) + "\n")


def food(root: Path) -> None:
    base, meta = root / "food-101", root / "food-101" / "meta"
    meta.mkdir(parents=True)
    for split in ("train", "test"):
        listed = {name: [f"{name}/{split}{i}" for i in range(4)] for name in ("pho", "waffles")}
        (meta / f"{split}.json").write_text(json.dumps(listed))
        for label, names in enumerate(listed.values()):
            for name in names:
                image(base / "images" / f"{name}.jpg", 60 + 90 * label)


def eurosat(root: Path) -> None:
    for label, name in enumerate(("Forest", "River")):
        for i in range(8):
            image(root / "eurosat" / "2750" / name / f"{name}_{i}.jpg", 60 + 90 * label)


def imagenette(root: Path) -> None:
    for split in ("train", "val"):
        for label, name in enumerate(("n01440764", "n02102040")):
            for i in range(4):
                image(root / "imagenette2" / split / name / f"{i}.JPEG", 60 + 90 * label)


MADE = {
    "oxford_iiit_pet": (pets, ("Abyssinian", "Great Pyrenees"), {"train": 16, "test": 6}),
    "dtd": (dtd, ("banded", "dotted"), {"train": 10, "val": 10, "test": 10}),
    "food101": (food, ("pho", "waffles"), {"train": 8, "test": 8}),
    "eurosat": (eurosat, ("Forest", "River"), {"train": 16}),
    "imagenette": (imagenette, ("tench", "English springer"), {"train": 8, "val": 8}),
}


@pytest.mark.parametrize("name", MADE)
def test_a_folder_of_torchvision_is_recognized_and_read(tmp_path: Path, name: str) -> None:
    make, classes, counts = MADE[name]
    make(tmp_path)
    source = open_data(tmp_path)
    assert (source.name, source.classes, source.channels) == (name, classes, 3)
    assert {split: len(listing) for split, listing in source.splits.items()} == counts
    for listing in source.splits.values():
        assert set(listing.targets.tensor("label").tolist()) == {0, 1}
        assert all(Path(path).is_file() for path in listing.names)
    assert open_data(source.location).classes == classes


def test_such_data_is_trained_on_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "cache"))
    dtd(tmp_path / "cache" / "dtd")
    recipe = Recipe(epochs=2, batch=8, lr=0.01)
    run = ca.fit("dtd", "lenet5_modern", recipe=recipe, out=tmp_path / "run", data_options=DataOptions(resolution=28))
    assert set(run.results) == {"val", "test"}
    assert ca.resume(tmp_path / "run").state.finished


@pytest.mark.parametrize("name", SETS)
def test_torchvision_has_the_set_and_its_splits(name: str) -> None:
    kind = getattr(datasets, SETS[name].kind)
    for options in SETS[name].splits.values():
        inspect.signature(kind).bind("root", download=False, **options)


@pytest.mark.parametrize("name", SETS)
def test_a_set_that_is_not_there_is_told_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=f"^{name} is missing or incomplete in .*--download") as error:
        open_data(name)
    assert "\n" not in str(error.value)
    monkeypatch.setenv("CONVATLAS_OFFLINE", "1")
    with pytest.raises(DataError, match=f"{name}: "):
        open_data(name, download=True)


def test_every_folder_has_one_name() -> None:
    assert len(FOLDERS) == sum(bool(held.folder) for held in SETS.values())
