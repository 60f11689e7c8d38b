"""Errors of the command: one line that names the cause, exit code 2, and nothing left behind."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from commands import Command, check_refused
from commands import fit_arguments as fit
from convatlas.inference.load import load
from convatlas.train.run import Run


@dataclass(frozen=True)
class Place:
    """What an error case may use and damage: data, a model file, a free path for a run, an empty folder beside them."""

    data: Path
    model: Path
    run: Path
    beside: Path


Case = Callable[[Place], tuple[list[object], list[str]]]


def empty_class(p: Place) -> tuple[list[object], list[str]]:
    shutil.rmtree(p.data / "train/bee")
    (p.data / "train/bee").mkdir()
    return fit(p.data, p.run), ["train/bee", "empty"]


def class_mismatch(p: Place) -> tuple[list[object], list[str]]:
    (p.data / "val/bee").rename(p.data / "val/wasp")
    return fit(p.data, p.run), [str(p.data), "bee", "wasp"]


def other_classes_than_the_model(p: Place) -> tuple[list[object], list[str]]:
    for split in ("train", "val"):
        (p.data / split / "bee").rename(p.data / split / "wasp")
    return ["evaluate", p.model, p.data], [str(p.data), "lacks bee and has classes that are not in the model: wasp"]


def unreadable_image(p: Place) -> tuple[list[object], list[str]]:
    (p.data / "val/cat/00.jpg").write_bytes(b"")
    return fit(p.data, p.run), ["val/cat/00.jpg", "1 of 72", "--max-unreadable"]


def out_not_empty(p: Place) -> tuple[list[object], list[str]]:
    (p.beside / "x").touch()
    return fit(p.data, p.beside), [str(p.beside), "exists"]


def out_below_a_file(p: Place) -> tuple[list[object], list[str]]:
    (p.beside / "file").touch()
    return fit(p.data, p.beside / "file" / "run"), ["file/run", "cannot be written"]


def damaged_model(p: Place) -> tuple[list[object], list[str]]:
    raw = bytearray(p.model.read_bytes())
    raw[-100] ^= 1
    p.model.write_bytes(raw)
    return ["predict", p.model, p.data / "val/ant/00.jpg"], [str(p.model), "damaged"]


def truncated_model(p: Place) -> tuple[list[object], list[str]]:
    p.model.write_bytes(p.model.read_bytes()[:5000])
    return ["evaluate", p.model, p.data], [str(p.model), "truncated"]


def unreadable_image_alone(p: Place) -> tuple[list[object], list[str]]:
    (p.beside / "x.png").write_text("no image")
    return ["predict", p.model, p.beside / "x.png"], [str(p.beside / "x.png"), "not an image"]


REFUSED: dict[str, Case] = {
    "missing folder": lambda p: (fit(p.beside / "no", p.run), [str(p.beside / "no"), "no such folder"]),
    "file for a folder": lambda p: (fit(p.model, p.run), [str(p.model), "must be a folder, a table"]),
    "empty folder": lambda p: (fit(p.beside, p.run), [str(p.beside), "two folders"]),
    "name too long": lambda p: (fit("a" * 300, p.run), ["a" * 300]),
    "set not fetched": lambda p: (fit("mnist", p.run), ["mnist", "--download"]),
    "empty class": empty_class,
    "class mismatch": class_mismatch,
    "classes of another model": other_classes_than_the_model,
    "unreadable image": unreadable_image,
    "too small": lambda p: (fit(p.data, p.run, "--resolution", 8), ["resolution must be >= 16 px", "got 8 px"]),
    "no size": lambda p: (fit(p.data, p.run, "--resolution", 0), ["resolution"]),
    "two channels": lambda p: (fit(p.data, p.run, "--channels", 2), ["channels", "2"]),
    "no channels": lambda p: (fit(p.data, p.run, "--channels", 0), ["channels"]),
    "negative channels": lambda p: (fit(p.data, p.run, "--channels", -1), ["channels", "-1"]),
    "five channels of gray": lambda p: (fit("digits", p.run, "--channels", 5), ["channel"]),
    "unknown network": lambda p: (["fit", p.data, "--model", "lenet5_modem"], ["did you mean lenet5_modern"]),
    "unknown network to show": lambda p: (["show", "lenet6"], ["lenet6", "did you mean lenet"]),
    "unknown family": lambda p: (["list", "--family", "lent"], ["lent", "did you mean lenet"]),
    "show too small": lambda p: (["cost", "lenet5", "--resolution", 8], ["resolution must be >= 16 px"]),
    "fewer than no classes": lambda p: (["cost", "lenet5", "--classes", -1], ["classes"]),
    "unknown recipe": lambda p: (fit(p.data, p.run, "--recipe", "defalt"), ["defalt", "did you mean default"]),
    "unknown field": lambda p: (
        fit(p.data, p.run, "--set", "smothing=0.1"), ["did you mean label_smoothing", "`convatlas recipes default`"]
    ),
    "no value": lambda p: (fit(p.data, p.run, "--set", "label_smoothing"), ["--set: must be FIELD=VALUE"]),
    "value of a wrong type": lambda p: (fit(p.data, p.run, "--set", "max_shift=much"), ["shift", "much"]),
    "value out of range": lambda p: (fit(p.data, p.run, "--set", "label_smoothing=2"), ["smoothing", "2"]),
    "unknown optimizer": lambda p: (fit(p.data, p.run, "--set", "optimizer=lion"), ["optimizer", "lion", "sgd"]),
    "no epochs": lambda p: (fit(p.data, p.run, "--epochs", 0), ["epochs"]),
    "negative rate": lambda p: (fit(p.data, p.run, "--lr", -1), ["lr"]),
    "unknown device": lambda p: (fit(p.data, p.run, "--device", "abacus"), ["abacus"]),
    "device without values": lambda p: (fit(p.data, p.run, "--device", "meta"), ["meta"]),
    "negative threads": lambda p: (fit(p.data, p.run, "--threads", -1), ["threads"]),
    "negative seed": lambda p: (fit("digits", p.run, "--seed", -1), ["seed"]),
    "large seed": lambda p: (fit("digits", p.run, "--seed", 2**32), ["seed"]),
    "no val and no test": lambda p: (fit(p.data / "train", p.run, "--val-share", 0), ["val share"]),
    "out not empty": out_not_empty,
    "out is a file": lambda p: (fit(p.data, p.model), [str(p.model), "exists"]),
    "out below a file": out_below_a_file,
    "no run to resume": lambda p: (["resume", p.beside], [str(p.beside), "not a run"]),
    "damaged model": damaged_model,
    "truncated model": truncated_model,
    "missing model": lambda p: (["predict", "no.safetensors", "x.png"], ["no.safetensors", "no such"]),
    "image as model": lambda p: (["predict", p.data / "val/ant/00.jpg", p.model], ["val/ant/00.jpg"]),
    "missing data": lambda p: (["evaluate", p.model, "nowhere"], ["nowhere", "no such folder"]),
    "missing split": lambda p: (["evaluate", p.model, p.data, "--split", "test"], ["test", "train, val"]),
    "missing image": lambda p: (["predict", p.model, "no.png"], ["no.png", "no such file"]),
    "unreadable image to predict": unreadable_image_alone,
    "no images in folder": lambda p: (["predict", p.model, p.beside], [str(p.beside), "no images"]),
    "two forms": lambda p: (["predict", p.model, p.data, "--json", "--csv"], ["--json", "--csv"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_an_error_is_one_line_and_leaves_nothing_behind(
    case: str, convatlas: Command, own_images: Path, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path / "cache"))
    arguments, named = REFUSED[case](Place(own_images, model_file, tmp_path / "run", tmp_path / "beside"))
    before = sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts)
    check_refused(convatlas(*arguments), *named)
    assert sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts) == before


def test_a_loss_that_runs_away_is_one_line(convatlas: Command, images: Path, tmp_path: Path) -> None:
    check_refused(convatlas(*fit(images, tmp_path / "run", "--lr", 1e30)), "loss", "learning rate")


def test_a_loss_that_runs_away_in_the_last_step_of_an_epoch_is_one_line(
    convatlas: Command, images: Path, tmp_path: Path
) -> None:
    outcome = convatlas(*fit(images, tmp_path / "run", "--lr", 1e30, "--batch", 100, "--set", "schedule=constant"))
    check_refused(outcome, "loss")


def test_a_disk_that_is_full_before_training_leaves_no_run(
    convatlas: Command, images: Path, tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    with full_disk(100):
        outcome = convatlas(*fit(images, tmp_path / "run"))
    check_refused(outcome, str(tmp_path / "run"), "cannot be written")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("size", "file"), [(100_000, "model.safetensors"), (400_000, "checkpoint.pt")])
def test_a_disk_that_fills_up_while_training_leaves_a_run_that_can_be_resumed(
    convatlas: Command, images: Path, colored: Run, tmp_path: Path, size: int, file: str,
    full_disk: Callable[[int], AbstractContextManager[None]],
) -> None:  # fmt: skip
    run = tmp_path / "run"
    with full_disk(size):
        check_refused(convatlas(*fit(images, run)), str(run / file), "cannot be written")
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    assert convatlas("resume", run).code == 0
    ours, theirs = (load(folder / "last.safetensors").network.state_dict() for folder in (run, colored.folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_without_space_is_named(
    convatlas: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name == "checkpoint.pt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", full)
    outcome = convatlas(*fit(images, tmp_path / "run"))
    check_refused(outcome, str(tmp_path / "run" / "checkpoint.pt"), os.strerror(errno.ENOSPC))
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def replace(old: str, new: str) -> Callable[[Path], object]:
    return lambda file: file.write_text(file.read_text().replace(old, new))


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "checkpoint empty": ("checkpoint.pt", lambda file: file.write_bytes(b"")),
    "checkpoint half": ("checkpoint.pt", lambda file: file.write_bytes(file.read_bytes()[:100_000])),
    "checkpoint text": ("checkpoint.pt", lambda file: file.write_text("hello")),
    "run.json empty": ("run.json", lambda file: file.write_text("")),
    "run.json half": ("run.json", lambda file: file.write_text(file.read_text()[:500])),
    "run.json no text": ("run.json", lambda file: file.write_bytes(b"\xff\xfe\x00")),
    "run.json no record": ("run.json", lambda file: file.write_text("[]")),
    "run.json null": ("run.json", lambda file: file.write_text("null")),
    "run.json recipe": ("run.json", replace('"recipe": {', '"recipe": 3, "old": {')),
    "run.json no recipe record": ("run.json", replace('"epochs": 2', '"epochs": "two"')),
    "run.json unknown network": ("run.json", replace('"LeNet5Modern"', '"LeNet6"')),
    "run.json spec": ("run.json", replace('"spec": {', '"spec": [], "old": {')),
}


@pytest.fixture
def damaged_run(colored: Run, tmp_path: Path) -> Path:
    """A copy of a finished run, for a test to damage."""
    return Path(shutil.copytree(colored.folder, tmp_path / "damaged_run"))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_refused_by_name(convatlas: Command, damaged_run: Path, damage: str) -> None:
    name, change = DAMAGE[damage]
    change(damaged_run / name)
    check_refused(convatlas("resume", damaged_run), str(damaged_run / name))


def test_a_run_whose_data_changed_is_refused(convatlas: Command, own_images: Path, tmp_path: Path) -> None:
    assert convatlas(*fit(own_images, tmp_path / "run")).code == 0
    (own_images / "train/ant/00.jpg").unlink()
    check_refused(convatlas("resume", tmp_path / "run"), str(own_images), "changed")
