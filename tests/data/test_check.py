"""The check of a data set reports each fault, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from convatlas.cli.app import app
from convatlas.core.preprocessing import Preprocessing
from convatlas.data.check import Check, check
from convatlas.data.decode.display import display_image
from convatlas.data.open import open_data
from convatlas.data.splits import VAL_SHARE
from convatlas.draw.contact_sheet import contact_sheet


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Smooth images of 96 x 80 pixels: 12 to train and 4 for val in each of two classes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for label in ("cat", "dog"):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
                coarse.resize((96, 80), Image.Resampling.BICUBIC).save(folder / f"{i:02}.png")
    return tmp_path / "photos"


def check_folder(folder: Path) -> Check:
    return check(open_data(folder))


def test_a_good_data_set_has_no_findings(photos: Path) -> None:
    checked = check_folder(photos)
    assert checked.findings() == []
    assert checked.counts == {"train": [12, 12], "val": [4, 4]}
    assert (checked.modes, checked.sizes) == ({"RGB": 32}, ((96, 80),) * 3)


def test_copies_and_leaks_are_found(photos: Path) -> None:
    first = photos / "train" / "cat" / "00.png"
    shutil.copy(first, photos / "train" / "cat" / "copy.png")
    shutil.copy(photos / "train" / "dog" / "01.png", photos / "val" / "dog" / "leak.png")
    shutil.copy(photos / "train" / "dog" / "02.png", photos / "train" / "cat" / "other.png")
    checked = check_folder(photos)
    names = [{Path(p.name).name for p in group} for group in checked.duplicates]
    assert sorted(map(sorted, names)) == [["00.png", "copy.png"], ["01.png", "leak.png"], ["02.png", "other.png"]]
    assert [{p.split for p in group} for group in checked.leaks] == [{"train", "val"}]
    assert [{p.labels for p in group} for group in checked.label_conflicts] == [{(0,), (1,)}]
    assert checked.near_duplicates == ()
    assert "3 images are duplicates of another one" in checked.findings()


@pytest.mark.parametrize("how", ["smaller", "jpeg", "brighter"])
def test_near_duplicates_are_found(photos: Path, how: str) -> None:
    image = Image.open(photos / "train" / "cat" / "03.png")
    target = photos / "val" / "cat" / "near.png"
    if how == "smaller":
        image.resize((72, 64)).save(target)
    elif how == "jpeg":
        image.save(target.with_suffix(".jpg"), quality=40)
    else:
        image.point(lambda value: min(255, int(value * 1.1))).save(target)
    checked = check_folder(photos)
    ((a, b),) = checked.near_duplicates
    assert {Path(a.name).stem, Path(b.name).stem} == {"03", "near"}
    assert len(checked.leaks) == 1


def test_unreadable_high_bit_depth_and_rotated_images_are_reported(photos: Path) -> None:
    cat = photos / "train" / "cat"
    (cat / "00.png").write_bytes(b"no image")
    whole = (cat / "01.png").read_bytes()
    (cat / "01.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.full((80, 96), 5000, np.uint16)).save(cat / "02.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(cat / "03.png").convert("RGB").save(cat / "rotated.jpg", exif=exif)
    (cat / "03.png").unlink()
    checked = check_folder(photos)
    assert {Path(p.name).name for p in checked.unreadable} == {"00.png", "01.png"}
    assert [Path(p.name).name for p in checked.images if p.rotated] == ["rotated.jpg"]
    assert checked.counts["train"] == [10, 12]
    findings = " ".join(checked.findings())
    for part in ("2 images are unreadable", "1 images are rotated", "1 images have more than 8 bits"):
        assert part in findings


ODD = {
    "noise": np.random.default_rng(0).random((9, 9)) * 5,
    "negative": -np.random.default_rng(0).random((9, 9)),
    "shares": np.random.default_rng(0).random((9, 9)),
    "nan": np.full((9, 9), np.nan),
    "four channels": np.zeros((9, 9, 4), np.uint8),
    "gray and alpha": np.zeros((9, 9, 2), np.uint8),
    "one dimension": np.zeros(9, np.uint8),
    "16 bits": np.full((9, 9, 3), 5000, np.uint16),
    "signed": np.full((9, 9), -5, np.int16),
    "text": np.array([["a"]]),
    "nothing": np.zeros((0, 9), np.uint8),
}


@pytest.mark.parametrize("majority", ["8-bit", "float", "16-bit", "five channels"])
def test_check_and_fit_refuse_the_same_files(tmp_path: Path, majority: str) -> None:
    values = {
        "8-bit": np.arange(243, dtype=np.uint8).reshape(9, 9, 3), "float": np.arange(81).reshape(9, 9) * 2.5 - 7,
        "16-bit": np.arange(81, dtype=np.uint16).reshape(9, 9) * 500,
        "five channels": np.arange(405, dtype=np.float32).reshape(9, 9, 5) / 405,
    }[majority]  # fmt: skip
    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(10):
            np.save(tmp_path / "data" / label / f"{i}.npy", values)
    for name, array in ODD.items():
        np.save(tmp_path / "data" / "a" / f"{name}.npy", array)
    Image.new("LAB", (9, 9)).save(tmp_path / "data" / "a" / "lab.tif")
    Image.new("CMYK", (9, 9)).save(tmp_path / "data" / "a" / "cmyk.jpg")
    source = open_data(tmp_path / "data")
    statistics = source.statistics(source.channels, val_share=VAL_SHARE)
    steps = Preprocessing(resize=8, crop=8).for_channels(source.channels)
    steps = replace(steps, window=statistics.window if statistics else None)
    fitted = source.load(steps, val_share=VAL_SHARE, max_unreadable=1)
    checked = check(source)
    assert {image.path for image in fitted.unreadable} == {image.name for image in checked.unreadable}
    assert 3 < len(fitted.unreadable) <= len(ODD) + 2
    assert "images are unreadable, more than" in checked.refusal


def test_data_that_fit_refuses_is_a_finding(tmp_path: Path) -> None:
    for label, count in (("a", 5), ("b", 1)):
        (tmp_path / label).mkdir()
        for i in range(count):
            Image.new("L", (9, 9), 10 * i).save(tmp_path / label / f"{i}.png")
    refusal = "cannot be trained on: .*every class needs at least 2 images"
    assert any(re.match(refusal, line) for line in check_folder(tmp_path).findings())


def test_images_of_floats_are_checked_and_drawn(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(3):
            values = np.random.default_rng(i + 7 * (label == "b")).normal(100, 50, (80, 80)).astype(np.float32)
            np.save(tmp_path / "data" / label / f"{i}.npy", values)
    checked = check(open_data(tmp_path / "data"))
    assert not checked.unreadable
    assert not checked.duplicates
    rows = [(caption, [display_image(file) for file in files]) for caption, files in checked.sheet()]
    contact_sheet(rows, path=tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        seen = np.asarray(sheet.convert("L"))
    assert seen.std() > 20
    assert ((seen > 60) & (seen < 200)).mean() > 0.05  # grays, not lines and letters alone


def test_a_rare_class_is_named(photos: Path) -> None:
    for i in range(1, 12):
        (photos / "train" / "cat" / f"{i:02}.png").unlink()
    assert any("cat" in line for line in check_folder(photos).findings())


def test_flat_and_small_images_are_not_near_duplicates(photos: Path, idx_folder: Path) -> None:
    for i in range(3):
        Image.new("RGB", (96, 80), (40 * i, 10, 10)).save(photos / "train" / "cat" / f"flat{i}.png")
    assert check_folder(photos).near_duplicates == ()
    assert check_folder(idx_folder).near_duplicates == ()


def test_the_command_prints_a_table_json_and_a_sheet(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "train" / "dog" / "01.png", photos / "val" / "dog" / "leak.png")
    sheet = tmp_path / "sheet.png"
    plain = CliRunner().invoke(app, ["data", "check", str(photos), "--sheet", str(sheet)])
    assert plain.exit_code == 0, plain.output
    assert "1 groups of duplicates are in more than one split" in plain.output
    assert Image.open(sheet).size[0] > 800
    told = json.loads(CliRunner().invoke(app, ["data", "check", str(photos), "--json"]).stdout)
    assert told["counts"] == {"train": [12, 12], "val": [4, 5]}
    assert len(told["leaks"]) == 1
