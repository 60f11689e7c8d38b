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

from commands import Command
from convatlas.cli.app import app
from convatlas.core.preprocessing import Preprocessing
from convatlas.data.check import check, check_data
from convatlas.data.data_report import DataReport
from convatlas.data.decode.display import display_image
from convatlas.data.duplicates import MAX_DIFFERENT_BITS, MAX_ONES, MIN_ONES, find_near_duplicates
from convatlas.data.inspect_images import CheckedImage
from convatlas.data.open import open_data, open_for_training
from convatlas.data.splits import VAL_SHARE
from convatlas.draw.contact_sheet import contact_sheet
from convatlas.errors import DataError


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


def check_folder(folder: Path) -> DataReport:
    return check(open_data(folder))


def texts(report: DataReport, severity: str = "") -> list[str]:
    return [each.text for each in report.findings if severity in ("", each.severity)]


def kinds(report: DataReport) -> dict[str, tuple[str, int]]:
    """Return {kind: (severity, count)} of the findings."""
    return {each.kind: (each.severity, each.count) for each in report.findings}


def test_a_good_data_set_has_no_findings(photos: Path) -> None:
    checked = check_folder(photos)
    assert (checked.findings, checked.has_errors, checked.summary()) == ((), False, "no problems found")
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
    assert kinds(checked) == {
        "leaks": ("error", 1), "label_conflicts": ("warning", 1), "duplicates": ("warning", 3)
    }  # fmt: skip
    assert "3 images are duplicates of another one" in texts(checked)


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
    findings = " ".join(texts(checked))
    for part in ("2 images are unreadable, more than 1% of 32", "1 image is rotated",
                 "1 image has more than 8 bits", "pixel formats: RGB (29), "):  # fmt: skip
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
    assert any("images are unreadable, more than" in text for text in texts(checked, "error"))


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


def test_captions_of_duplicates_name_all_classes(tmp_path: Path) -> None:
    for label in ("Ants (wild)", "bees", "wasps of Europe"):
        (tmp_path / label).mkdir()
        for i in range(3):
            values = np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / label / f"{i}.png")
    rows = check(open_data(tmp_path)).sheet()
    figure = contact_sheet([(caption, []) for caption, _ in rows])
    texts = [" ".join(text.get_text().split()) for text in figure.texts]
    assert "duplicates train/Ants (wild), train/bees, train/wasps of Europe" in texts


def test_a_rare_class_is_named(photos: Path) -> None:
    for i in range(1, 12):
        (photos / "train" / "cat" / f"{i:02}.png").unlink()
    (finding,) = check_folder(photos).findings
    assert (finding.kind, finding.severity, finding.examples) == ("imbalanced_classes", "warning", ("cat (1)",))
    assert finding.text == "1 class has less than 10% of the images of the largest one: cat (1)"
    assert "class_weight_power" in finding.fix


def test_flat_and_small_images_are_not_near_duplicates(photos: Path, idx_folder: Path) -> None:
    for i in range(3):
        Image.new("RGB", (96, 80), (40 * i, 10, 10)).save(photos / "train" / "cat" / f"flat{i}.png")
    assert check_folder(photos).near_duplicates == ()
    assert check_folder(idx_folder).near_duplicates == ()


def test_the_command_prints_a_table_json_and_a_sheet(photos: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    good = CliRunner().invoke(app, ["data", "check", str(photos)])
    assert (good.exit_code, "no problems found" in good.output) == (0, True)
    shutil.copy(photos / "train" / "dog" / "01.png", photos / "val" / "dog" / "leak.png")
    plain = CliRunner().invoke(app, ["data", "check", str(photos), "--sheet", str(sheet)])
    assert plain.exit_code == 1, plain.output
    assert "error: 1 group of equal or nearly equal images is in more than one split" in plain.output
    assert plain.output.endswith("1 error, 1 warning\n" + f"{sheet}\n")
    assert not [line for line in plain.output.splitlines() if line != line.rstrip()]
    assert Image.open(sheet).size[0] > 800
    outcome = CliRunner().invoke(app, ["data", "check", str(photos), "--json"])
    told = json.loads(outcome.stdout)
    assert (outcome.exit_code, told["counts"]) == (1, {"train": [12, 12], "val": [4, 5]})
    assert (len(told["leaks"]), told["num_errors"], told["num_warnings"]) == (1, 1, 1)
    assert {"kind", "severity", "text", "count", "examples", "fix"} == set(told["findings"][0])
    assert all(re.fullmatch("[a-z_]+", key) for key in told)


def test_wrong_usage_is_an_error_of_its_own(photos: Path, tmp_path: Path, convatlas: Command) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 8, 8), np.uint8), y=np.array([0, 1, 0, 1]))
    for arguments, part in (
        ([str(photos), "--sheet", "sheet.txt"], ".png"),
        ([str(tmp_path / "gone")], "no such folder"),
        ([str(tmp_path / "x.npz"), "--sheet", "sheet.png"], "contains arrays"),
    ):
        outcome = convatlas("data", "check", *arguments)
        assert (outcome.code, part in outcome.err) == (2, True)


# --- everything in one pass


@pytest.fixture
def mess(photos: Path) -> Path:
    """Faults of every kind in one folder."""
    train, val = photos / "train", photos / "val"
    for folder in (train / "empty", val / "empty", val / "elk", train / "single", train / "__MACOSX"):
        folder.mkdir()
    shutil.copy(train / "cat" / "05.png", val / "elk" / "a.png")
    Image.open(train / "cat" / "06.png").rotate(180).save(train / "single" / "a.png")
    (train / "cat" / "00.png").write_bytes(b"<html>404</html>")
    (train / "cat" / "gone").symlink_to("/gone")
    (train / "cat" / "notes.txt").write_text("notes")
    (train / "cat" / "a.heic").write_bytes(b"x")
    (train / "__MACOSX" / "._a.png").write_bytes(b"x")
    Image.open(train / "dog" / "07.png").resize((300, 60)).save(train / "dog" / "wide.png")
    return photos


def test_everything_is_found_in_one_pass(mess: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convatlas.data.readers.image_files.is_installed", lambda _: False)
    report = check_data(mess, progress=False)
    assert kinds(report) == {
        "empty_classes": ("error", 2), "unknown_classes": ("error", 1), "missing_classes": ("error", 1),
        "unreadable_images": ("error", 1), "leaks": ("error", 1), "imbalanced_classes": ("warning", 1),
        "label_conflicts": ("warning", 1), "duplicates": ("warning", 1), "unsupported_images": ("warning", 1),
        "dangling_links": ("warning", 1), "odd_sizes": ("note", 1), "ignored_files": ("note", 1),
    }  # fmt: skip
    by_kind = {each.kind: each for each in report.findings}
    assert by_kind["empty_classes"].examples == ("train/empty", "val/empty")
    assert by_kind["unknown_classes"].examples == ("elk",)
    assert by_kind["missing_classes"].examples == ("single",)
    assert by_kind["unsupported_images"].text.endswith("a library is not installed: 1 .heic")
    assert by_kind["unsupported_images"].fix == "pip install 'convatlas[data]'"
    assert "1 .txt" in by_kind["ignored_files"].text
    assert all(each.fix and "\n" not in each.fix for each in report.findings)


def test_a_training_names_the_first_problem_and_counts_the_others(mess: Path) -> None:
    with pytest.raises(DataError) as error:
        open_for_training(mess, val_share=0.2)
    text = str(error.value)
    assert "classes that are not in train: elk" in text
    assert text.endswith(f"; 2 more problems; `convatlas data check {mess}` lists them")


def test_a_class_of_one_image_is_named(tmp_path: Path) -> None:
    for label, count in (("a", 5), ("b", 1)):
        (tmp_path / label).mkdir()
        for i in range(count):
            Image.new("L", (9, 9), 10 * i).save(tmp_path / label / f"{i}.png")
    (tmp_path / "c").mkdir()
    report = check_data(tmp_path, progress=False)
    assert texts(report, "error") == [
        "1 class folder has no images", "1 class has one image, too few for train and val: b"
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"the class c is empty.*; 1 more problem; `convatlas data check .* lists them"):
        open_for_training(tmp_path, val_share=0.2)
    (tmp_path / "c").rmdir()
    with pytest.raises(DataError, match=r"every class needs at least 2 images to split off val.* b \(1\)"):
        open_for_training(tmp_path, val_share=0.2)
    assert open_for_training(tmp_path, val_share=0).classes == ("a", "b")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_all_faults_of_a_table_are_found(photos: Path, tmp_path: Path, suffix: str) -> None:
    files = [f"photos/train/{label}/{i:02}.png" for label in ("cat", "dog") for i in range(6)]
    rows = [(file, file.split("/")[2]) for file in files]
    rows += [(f"gone{i}.png", "cat") for i in range(12)] + [(files[0], "cat"), (files[1], ""), ("", "cat")]
    table = tmp_path / f"list{suffix}"
    if suffix == ".csv":
        table.write_text("\n".join(["file,label", *map(",".join, rows), "a,b,c"]))
    else:
        arrow = pytest.importorskip("pyarrow")
        names, labels = zip(*rows, strict=True)
        pytest.importorskip("pyarrow.parquet").write_table(arrow.table({"file": names, "label": labels}), table)
    report = check_data(table, progress=False)
    by_kind = {each.kind: each for each in report.findings}
    assert report.counts == {"train": [6, 6]}
    assert by_kind["missing_files"].text == "12 files of the table do not exist"
    assert by_kind["missing_files"].examples[0] == f"line {14 if suffix == '.csv' else 13}: gone0.png"
    assert len(by_kind["missing_files"].examples) == 12
    assert by_kind["invalid_rows"].count == (4 if suffix == ".csv" else 3)
    assert sum(line.startswith("    line") for line in report.lines(10)) == 10 + by_kind["invalid_rows"].count
    assert "    and 2 more" in report.lines(10)
    with pytest.raises(DataError, match=r"gone0.png does not exist; 1[45] more problems; `convatlas data check "):
        open_data(table)


def test_a_group_in_two_splits_is_a_finding(photos: Path) -> None:
    images = (0, "train", "ann"), (1, "train", "bob"), (2, "val", "cy"), (3, "val", "")
    rows = [f"train/{label}/{i:02}.png,{label},{split},{who}" for label in ("cat", "dog") for i, split, who in images]
    (photos / "t.csv").write_text("\n".join(["file,label,split,patient", *rows]))
    assert check_data(photos / "t.csv").findings == ()
    (photos / "t.csv").write_text("\n".join(["file,label,split,patient", *rows]).replace("cy", "ann"))
    (found,) = check_data(photos / "t.csv").findings
    assert (found.kind, found.severity, found.count) == ("split_groups", "error", 1)
    names = str(photos / "train" / "cat" / "00.png"), str(photos / "train" / "cat" / "02.png")
    assert [re.findall(r"\((\w+)\)", each) for each in found.examples] == [["train", "val"]]
    assert all(name.removesuffix(".png")[:-2] in found.examples[0] for name in names)


def test_a_class_that_only_test_has_is_one_finding(photos: Path) -> None:
    shutil.copytree(photos / "val", photos / "test")
    shutil.rmtree(photos / "val")
    shutil.copytree(photos / "test" / "cat", photos / "test" / "fox")
    assert [each for each in texts(check_data(photos), "error") if "equal" not in each] == [
        "the test split has classes that are not in train: fox"
    ]


def test_images_are_listed_by_name(photos: Path) -> None:
    names = [(image.split, image.name) for image in check_folder(photos).images]
    assert names == sorted(names)


def test_a_table_with_other_columns_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("filepath,target\na.png,b\n")
    report = check_data(tmp_path / "x.csv", progress=False)
    (finding,) = report.findings
    assert finding.severity == "error"
    assert "columns found: filepath, target; expected" in f"{finding.text}; {finding.fix}"
    assert json.loads(json.dumps(report.to_plain(), allow_nan=False))["sizes_px"] == []


def test_arrays_and_labels_are_checked(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    x[5] = x[0]
    np.savez(tmp_path / "x.npz", x=x, y=np.array([0, 0, 1, 1, 3, 3]), classes=np.array(["a", "b", "c", "d"]))
    report = check_data(tmp_path / "x.npz", progress=False)
    assert kinds(report) == {
        "missing_classes": ("error", 1), "label_conflicts": ("warning", 1), "duplicates": ("warning", 1)
    }  # fmt: skip
    y = np.array([[1, 1, 0]] * 3 + [[0, 0, 0]] * 3)
    np.savez(tmp_path / "y.npz", x=x, y=y, x_val=x + 1, y_val=np.eye(6, 3))
    found = kinds(check_data(tmp_path / "y.npz", progress=False))
    assert found["unknown_classes"] == ("error", 1)
    assert found["unlabeled_images"] == ("note", 6)
    np.savez(tmp_path / "z.npz", x=x, y=np.arange(4))
    assert kinds(check_data(tmp_path / "z.npz", progress=False)) == {"invalid_data": ("error", 1)}


def test_a_report_fits_a_screen(mess: Path) -> None:
    report = check_data(mess, progress=False)
    for number in range(40):
        (mess / "train" / f"more {number}").mkdir()
    for shown in (report, check_data(mess, progress=False)):
        assert len(repr(shown)) < 2000
        assert len(repr(shown).splitlines()) <= 30
        assert "photos: " in repr(shown)
        assert ("and 35 more" in repr(shown)) == (shown is not report)
        assert "<table>" in shown._repr_html_()


# --- near duplicates


def near_pairs(hashes: list[int]) -> set[frozenset[int]]:
    return {frozenset((a, b)) for a in hashes for b in hashes if a < b and (a ^ b).bit_count() <= MAX_DIFFERENT_BITS}


def test_near_duplicates_are_those_of_a_comparison_of_all_pairs() -> None:
    random = np.random.default_rng(0)
    hashes = [int(value) for value in random.integers(2**20, 2**63, 40)]
    for base in hashes[:20]:  # copies with 1 to 6 other bits, anywhere
        bits = random.choice(64, int(random.integers(1, 7)), replace=False)
        hashes.append(base ^ int(np.bitwise_or.reduce(np.uint64(1) << bits.astype(np.uint64))))
    hashes = [each for each in dict.fromkeys(hashes) if MIN_ONES <= each.bit_count() <= MAX_ONES]
    images = [CheckedImage(str(each), "train", (0,), (99, 99), dhash=each) for each in hashes]
    grouped = [{image.dhash for image in group} for group in find_near_duplicates(images)]
    pairs = near_pairs(hashes)
    assert len(pairs) > 5
    assert all(any(pair <= group for group in grouped) for pair in pairs)
    assert set().union(*grouped) == set().union(*pairs)
    assert find_near_duplicates([]) == []
