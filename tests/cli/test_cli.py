"""The `convatlas` command: what it prints, what it leaves behind, and the one line that an error is."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

import convatlas as ca
from commands import Command, Outcome, check_refused
from conftest import COLORS, write_images
from convatlas.core.cost import cost
from convatlas.inference.model import load
from convatlas.models.catalog import CATALOG, names, spec
from convatlas.train.run import Run
from convatlas.weights.build import build


def fitting(data: object, out: object, *more: object) -> list[object]:
    return ["fit", data, "--model", "lenet5_modern", "--epochs", 2, "--batch", 8, "--out", out, *more]


@pytest.fixture
def model_file(colored: Run, tmp_path: Path) -> Path:
    """A model file of its own, trained on the images."""
    return Path(shutil.copy(colored.model_file, tmp_path / "model.safetensors"))


# --- looking at networks


@pytest.mark.parametrize("command", [[], *([name] for name in ("list", "show", "cost", "fit", "resume", "predict"))])
def test_help_is_printed(convatlas: Command, command: list[str]) -> None:
    outcome = convatlas(*command, "--help")
    assert outcome.code == 0
    assert "Usage: convatlas" in outcome.out
    assert outcome.err == ""


def test_list_names_every_network_with_its_cost(convatlas: Command) -> None:
    rows = json.loads(convatlas("list", "--json").out)
    assert [row["name"] for row in rows] == names()
    for row in rows:
        measured = cost(build(row["name"], device="meta"))
        assert (row["parameters"], row["MACs"]) == (measured.parameters, measured.macs)
    shown = convatlas("list").out
    assert all(row["name"] in shown and f"{row['MACs']:,}" in shown for row in rows)


def test_list_filters(convatlas: Command) -> None:
    assert len(convatlas("list", "--family", "lenet").out.splitlines()) == 1 + len(names(family="lenet"))
    few = json.loads(convatlas("list", "--max-params", "20000", "--json").out)
    assert [row["name"] for row in few] == names(max_params=20_000)
    assert 0 < len(few) < len(CATALOG)


@pytest.mark.parametrize("name", CATALOG)
def test_show_prints_card_layers_and_totals(convatlas: Command, name: str) -> None:
    outcome, card = convatlas("show", name), CATALOG[name].card
    assert (outcome.code, outcome.err) == (0, "")
    measured = cost(build(name, device="meta"))
    assert all(text in outcome.out for text in (card.title, card.paper, card.innovation, card.reported, card.note))
    assert f"{measured.parameters:,}" in outcome.out
    assert f"{measured.macs:,}" in outcome.out
    assert all(layer.path in outcome.out for layer in measured.layers if layer.parameters)


@pytest.mark.parametrize("name", CATALOG)
def test_cost_is_that_of_the_api(convatlas: Command, name: str) -> None:
    size = max(80, spec(name).resolution)
    told = json.loads(convatlas("cost", name, "--size", size, "--channels", 3, "--classes", 7, "--json").out)
    measured = cost(build(spec(name).scaled(resolution=size), classes=7, channels=3, device="meta"))
    for field in ("parameters", "macs", "activations", "connections"):
        assert told[field] == getattr(measured, field)
        assert [layer[field] for layer in told["layers"]] == [getattr(layer, field) for layer in measured.layers]
    assert told["receptive_field"] == list(measured.receptive_field)
    assert f"{measured.macs:,}" in convatlas("cost", name, "--size", size, "--channels", 3, "--classes", 7).out


def test_list_by_pattern(convatlas: Command) -> None:
    rows = json.loads(convatlas("list", "resnet*", "--json").out)
    assert [row["name"] for row in rows] == names("resnet*")
    assert len(rows) > 5


def test_compare_shows_numbers_innovations_and_cells(convatlas: Command) -> None:
    out = convatlas("compare", "resnet50", "resnet101").out
    assert all(text in out for text in ("25,557,032", "44,549,160", "depths[2]", "Identity shortcuts"))
    told = json.loads(convatlas("compare", "resnet50", "vgg16", "--json").out)
    assert [row["depth"] for row in told["networks"]] == [50, 16]
    assert told["cells"] == {}


def test_scale_by_factor_rule_and_budget(convatlas: Command) -> None:
    factors = ("--width", 1.2, "--depth", 1.4, "--size", 300)
    told = json.loads(convatlas("scale", "efficientnet_b0", *factors, "--json").out)
    assert (told["parameters"], told["macs"]) == (12_233_232, 1_827_141_392)
    fitted = json.loads(convatlas("scale", "mobilenet_v2", "--macs", 150e6, "--json").out)
    assert 0.97 * 150e6 <= fitted["macs"] <= 150e6
    assert "EfficientNet(" in convatlas("scale", "efficientnet_b0", "--phi", 1).out
    assert convatlas("scale", "efficientnet_b0", "--fast", 2).code == 0
    assert convatlas("scale", "efficientnet_b0", "--phi", 1, "--macs", 1e8).code == 2
    assert "rule is one of" in convatlas("scale", "efficientnet_b0", "--macs", 1e8, "--rule", "x").err


def test_draw_and_timeline_write_images(convatlas: Command, tmp_path: Path) -> None:
    for command in (("draw", "resnet18", "--small"), ("timeline",)):
        path = tmp_path / f"{command[0]}.svg"
        assert convatlas(*command, "--out", path).out.strip() == str(path)
        assert path.stat().st_size > 5_000
    assert "ends in" in convatlas("draw", "resnet18", "-o", tmp_path / "x.gif").err
    assert convatlas("draw", "lenet5", "--small", "-o", tmp_path / "x.svg").code == 2


def test_weights_are_listed_and_refused_in_one_line(convatlas: Command, tmp_path: Path) -> None:
    assert "resnet50@torchvision:IMAGENET1K_V2" in convatlas("weights", "list", "resnet50").out
    rows = json.loads(convatlas("weights", "list", "resnet50", "--json").out)
    assert {"name", "digest", "license", "reported_metrics", "preprocessing"} <= rows[0].keys()
    assert "no weights are published" in convatlas("weights", "list", "capsnet").out
    for command in (
        ("pull", "resnet18@torchvision:IMAGENET1K_V1"),
        ("import", "resnet18@torchvision:IMAGENET1K_V1", tmp_path / "none.pth"),
        ("verify", "resnet18@torchvision:IMAGENET1K_V9", tmp_path),
        ("verify", "resnet18", tmp_path, "--file", tmp_path / "none.pth"),
    ):
        outcome = convatlas("weights", *command)
        assert outcome.code == 2
        assert len(outcome.err.strip().splitlines()) == 1


# --- training


def test_fit_leaves_a_whole_run_folder(convatlas: Command, images: Path, tmp_path: Path) -> None:
    outcome, run = convatlas(*fitting(images, tmp_path / "run", "--license", "CC0-1.0")), tmp_path / "run"
    assert (outcome.code, outcome.err) == (0, "")
    assert {path.name for path in run.iterdir()} == {
        "run.json", "metrics.csv", "curves.png", "report.html", "model.safetensors", "last.safetensors",
        "checkpoint.pt",
    }  # fmt: skip
    config = json.loads((run / "run.json").read_text())
    assert (config["model"], config["classes"], config["recipe"]["epochs"]) == ("lenet5_modern", list(COLORS), 2)
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    with Image.open(run / "curves.png") as curves:
        assert curves.format == "PNG"
    model = load(run / "model.safetensors")
    assert model.header.license == "CC0-1.0"
    assert f"{model.header.metrics['val']['accuracy']:.2%}" in outcome.out
    assert str(run / "model.safetensors") in outcome.out
    finished = convatlas("resume", run)
    assert finished.code == 0
    assert "is finished" in finished.out


def test_fit_names_its_run_folders_itself(
    convatlas: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("images-lenet1", "images-lenet1-2"):
        assert convatlas("fit", images, "--model", "lenet1", "--epochs", 1).code == 0
        assert (tmp_path / "runs" / folder / "model.safetensors").is_file()


def test_unreadable_images_are_listed_up_to_max_unreadable(
    convatlas: Command, own_images: Path, tmp_path: Path
) -> None:
    unreadable = own_images / "train/bee/01.png"
    unreadable.write_bytes(b"")
    outcome = convatlas(*fitting(own_images, tmp_path / "run", "--max-unreadable", 0.05))
    assert outcome.code == 0
    assert str(unreadable) in outcome.out
    (row,) = csv.DictReader((tmp_path / "run" / "unreadable.csv").open())
    assert row["path"] == str(unreadable)
    # the data that a model was trained on can be measured with the same tolerance
    assert convatlas("evaluate", tmp_path / "run" / "model.safetensors", own_images).code == 0


def test_a_run_on_a_relative_folder_goes_on_from_anywhere(
    convatlas: Command, own_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_images.parent)
    assert convatlas(*fitting("images", tmp_path / "run")).code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    outcome = convatlas("resume", tmp_path / "run")
    assert (outcome.code, outcome.err) == (0, "")


def test_a_stopped_training_says_how_to_go_on(
    convatlas: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: Run) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "steps", stop)
        outcome = convatlas(*fitting(images, tmp_path / "run"))
    assert outcome.code == 130
    assert f"convatlas: stopped; `convatlas resume {tmp_path / 'run'}` goes on" in outcome.err
    assert convatlas("resume", tmp_path / "run").code == 0
    assert (tmp_path / "run" / "last.safetensors").is_file()


# --- using a model file


def test_evaluate_counts_every_class(convatlas: Command, model_file: Path, images: Path, colored: Run) -> None:
    told = json.loads(convatlas("evaluate", model_file, images, "--json").out)
    assert told["split"] == "val"
    assert {name: counts["images"] for name, counts in told["classes"].items()} == dict.fromkeys(COLORS, 12)
    assert told["errors"] == colored.results["val"].errors
    assert sum(counts["right"] for counts in told["classes"].values()) == 36 - told["errors"]
    shown = convatlas("evaluate", model_file, images, "--split", "train")
    assert shown.code == 0
    assert "train: accuracy" in shown.out
    assert all(name in shown.out for name in COLORS)


def test_evaluate_reports_images_that_it_left_out(convatlas: Command, model_file: Path, own_images: Path) -> None:
    for i in range(150):
        shutil.copy(own_images / "val/ant/00.jpg", own_images / f"val/ant/copy{i}.jpg")
    (own_images / "val/ant/copy7.jpg").write_bytes(b"")
    outcome = convatlas("evaluate", model_file, own_images)
    assert outcome.code == 0
    assert "val/ant/copy7.jpg" in outcome.out + outcome.err


def test_predict_answers_as_table_json_and_csv(convatlas: Command, model_file: Path, images: Path) -> None:
    files = sorted((images / "val/ant").iterdir())
    expected = load(model_file).predict(files)
    outcome = convatlas("predict", model_file, images / "val/ant")
    assert (outcome.code, outcome.err) == (0, "")
    for line, answer in zip(outcome.out.splitlines()[1:], expected, strict=True):
        assert line.split()[:3] == [answer.source, f"{answer.probability:.2%}", answer.label]
    lines = [json.loads(line) for line in convatlas("predict", model_file, *files, "--json").out.splitlines()]
    assert [(line["source"], line["probabilities"]) for line in lines] == [
        (p.source, p.probabilities) for p in expected
    ]
    rows = list(csv.DictReader(io.StringIO(convatlas("predict", model_file, *files, "--csv").out)))
    assert [(row["source"], row["label"], row["error"]) for row in rows] == [(p.source, p.label, "") for p in expected]
    for row, answer in zip(rows, expected, strict=True):
        assert {name: float(row[name]) for name in COLORS} == pytest.approx(answer.probabilities, abs=1e-6)


@pytest.mark.parametrize("form", ["", "--json", "--csv"])
def test_predict_answers_the_good_images_beside_a_broken_one(
    convatlas: Command, model_file: Path, images: Path, tmp_path: Path, form: str
) -> None:
    (tmp_path / "unreadable.png").write_bytes(b"\x89PNG")
    good = images / "val/bee/01.png"
    outcome = convatlas("predict", model_file, tmp_path / "unreadable.png", good, *([form] if form else []))
    check_refused(outcome, str(tmp_path / "unreadable.png"))
    assert str(good) in outcome.out


def test_predict_ignores_hidden_files_in_folders(convatlas: Command, model_file: Path, own_images: Path) -> None:
    folder = own_images / "val" / "ant"
    (folder / "._00.jpg").write_bytes(b"left behind by a Mac")
    outcome = convatlas("predict", model_file, folder)
    assert (outcome.code, outcome.err) == (0, "")


def test_square_brackets_and_colons_in_names_are_printed_as_they_are(
    convatlas: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("photos[old]:cat:")
    for name, color in (("[red]", COLORS["ant"]), ("[bold]dog", COLORS["bee"])):
        write_images(folder / name, color)
    fitted = convatlas("fit", folder, "--model", "lenet1", "--epochs", 1, "--out", "run[/bold]")
    assert fitted.code == 0
    assert str(folder) in fitted.out
    assert "run[/bold]" in fitted.out
    model = Path("run[/bold]") / "model.safetensors"
    evaluated = convatlas("evaluate", model, folder)
    assert "[red]" in evaluated.out
    assert "[bold]dog" in evaluated.out
    predicted = convatlas("predict", model, folder / "[red]" / "00.jpg", "missing:cat:[red].png")
    assert f"{folder}/[red]/00.jpg" in predicted.out
    assert "missing:cat:[red].png" in predicted.err


# --- errors


@dataclass(frozen=True)
class Place:
    """What an error case may use and spoil: data, a model file, a free path for a run, an empty folder beside them."""

    data: Path
    model: Path
    run: Path
    beside: Path


Case = Callable[[Place], tuple[list[object], list[str]]]


def empty_class(p: Place) -> tuple[list[object], list[str]]:
    shutil.rmtree(p.data / "train/bee")
    (p.data / "train/bee").mkdir()
    return fitting(p.data, p.run), ["train/bee", "empty"]


def class_mismatch(p: Place) -> tuple[list[object], list[str]]:
    (p.data / "val/bee").rename(p.data / "val/wasp")
    return fitting(p.data, p.run), [str(p.data), "bee", "wasp"]


def other_classes_than_the_model(p: Place) -> tuple[list[object], list[str]]:
    shutil.rmtree(p.data / "train/bee")
    shutil.rmtree(p.data / "val/bee")
    return ["evaluate", p.model, p.data], [str(p.data), "misses bee"]


def unreadable_image(p: Place) -> tuple[list[object], list[str]]:
    (p.data / "val/cat/00.jpg").write_bytes(b"")
    return fitting(p.data, p.run), ["val/cat/00.jpg", "1 of 72", "--max-unreadable"]


def out_not_empty(p: Place) -> tuple[list[object], list[str]]:
    (p.beside / "x").touch()
    return fitting(p.data, p.beside), [str(p.beside), "exists"]


def out_below_a_file(p: Place) -> tuple[list[object], list[str]]:
    (p.beside / "file").touch()
    return fitting(p.data, p.beside / "file" / "run"), ["file/run", "cannot be written"]


def damaged_model(p: Place) -> tuple[list[object], list[str]]:
    raw = bytearray(p.model.read_bytes())
    raw[-100] ^= 1
    p.model.write_bytes(raw)
    return ["predict", p.model, p.data / "val/ant/00.jpg"], [str(p.model), "damaged"]


def truncated_model(p: Place) -> tuple[list[object], list[str]]:
    p.model.write_bytes(p.model.read_bytes()[:5000])
    return ["evaluate", p.model, p.data], [str(p.model), "truncated"]


def broken_image_alone(p: Place) -> tuple[list[object], list[str]]:
    (p.beside / "x.png").write_text("no image")
    return ["predict", p.model, p.beside / "x.png"], [str(p.beside / "x.png"), "not an image"]


REFUSED: dict[str, Case] = {
    "missing folder": lambda p: (fitting(p.beside / "no", p.run), [str(p.beside / "no"), "no such folder"]),
    "file for a folder": lambda p: (fitting(p.model, p.run), [str(p.model), "expected a folder"]),
    "empty folder": lambda p: (fitting(p.beside, p.run), [str(p.beside), "two folders"]),
    "name too long": lambda p: (fitting("a" * 300, p.run), ["a" * 300]),
    "set not fetched": lambda p: (fitting("mnist", p.run), ["mnist", "--download"]),
    "empty class": empty_class,
    "class mismatch": class_mismatch,
    "classes of another model": other_classes_than_the_model,
    "unreadable image": unreadable_image,
    "too small": lambda p: (fitting(p.data, p.run, "--size", 8), ["resolution", "8 px", "at least 16 px"]),
    "no size": lambda p: (fitting(p.data, p.run, "--size", 0), ["resolution"]),
    "two channels": lambda p: (fitting(p.data, p.run, "--channels", 2), ["channels", "2"]),
    "no channels": lambda p: (fitting(p.data, p.run, "--channels", 0), ["channels"]),
    "negative channels": lambda p: (fitting(p.data, p.run, "--channels", -1), ["channels", "-1"]),
    "five channels of gray": lambda p: (fitting("digits", p.run, "--channels", 5), ["channel"]),
    "unknown network": lambda p: (["fit", p.data, "--model", "lenet5_modem"], ["did you mean lenet5_modern"]),
    "unknown network to show": lambda p: (["show", "lenet6"], ["lenet6", "did you mean lenet"]),
    "unknown family": lambda p: (["list", "--family", "lent"], ["lent", "did you mean lenet"]),
    "show too small": lambda p: (["cost", "lenet5", "--size", 8], ["resolution", "at least 16 px"]),
    "no classes": lambda p: (["cost", "lenet5", "--classes", 0], ["classes"]),
    "unknown recipe": lambda p: (fitting(p.data, p.run, "--recipe", "defalt"), ["defalt", "did you mean default"]),
    "unknown field": lambda p: (fitting(p.data, p.run, "--set", "smothing=0.1"), ["did you mean smoothing"]),
    "no value": lambda p: (fitting(p.data, p.run, "--set", "label_smoothing"), ["--set smoothing", "FIELD=VALUE"]),
    "value of a wrong type": lambda p: (fitting(p.data, p.run, "--set", "max_shift=much"), ["shift", "much"]),
    "value out of range": lambda p: (fitting(p.data, p.run, "--set", "label_smoothing=2"), ["smoothing", "2"]),
    "unknown optimizer": lambda p: (fitting(p.data, p.run, "--set", "optimizer=lion"), ["optimizer", "lion", "sgd"]),
    "no epochs": lambda p: (fitting(p.data, p.run, "--epochs", 0), ["epochs"]),
    "negative rate": lambda p: (fitting(p.data, p.run, "--lr", -1), ["lr"]),
    "unknown device": lambda p: (fitting(p.data, p.run, "--device", "abacus"), ["abacus"]),
    "device without values": lambda p: (fitting(p.data, p.run, "--device", "meta"), ["meta"]),
    "negative threads": lambda p: (fitting(p.data, p.run, "--threads", -1), ["threads"]),
    "negative seed": lambda p: (fitting("digits", p.run, "--seed", -1), ["seed"]),
    "large seed": lambda p: (fitting("digits", p.run, "--seed", 2**32), ["seed"]),
    "no val and no test": lambda p: (fitting(p.data / "train", p.run, "--val-share", 0), ["val share"]),
    "out not empty": out_not_empty,
    "out is a file": lambda p: (fitting(p.data, p.model), [str(p.model), "exists"]),
    "out below a file": out_below_a_file,
    "no run to resume": lambda p: (["resume", p.beside], [str(p.beside), "not a run"]),
    "damaged model": damaged_model,
    "truncated model": truncated_model,
    "missing model": lambda p: (["predict", "no.safetensors", "x.png"], ["no.safetensors", "no such"]),
    "image as model": lambda p: (["predict", p.data / "val/ant/00.jpg", p.model], ["val/ant/00.jpg"]),
    "missing data": lambda p: (["evaluate", p.model, "nowhere"], ["nowhere", "no such folder"]),
    "missing split": lambda p: (["evaluate", p.model, p.data, "--split", "test"], ["test", "train, val"]),
    "missing image": lambda p: (["predict", p.model, "no.png"], ["no.png", "no such file"]),
    "broken image": broken_image_alone,
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
    check_refused(convatlas(*fitting(images, tmp_path / "run", "--lr", 1e30)), "loss", "learning rate")


def test_a_loss_that_runs_away_in_the_last_step_of_an_epoch_is_one_line(
    convatlas: Command, images: Path, tmp_path: Path
) -> None:
    outcome = convatlas(*fitting(images, tmp_path / "run", "--lr", 1e30, "--batch", 100, "--set", "schedule=constant"))
    check_refused(outcome, "loss")


def test_a_disk_that_is_full_before_training_leaves_no_run(
    convatlas: Command, images: Path, tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    with full_disk(100):
        outcome = convatlas(*fitting(images, tmp_path / "run"))
    check_refused(outcome, str(tmp_path / "run"), "cannot be written")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("size", "file"), [(100_000, "model.safetensors"), (400_000, "checkpoint.pt")])
def test_a_disk_that_fills_up_while_training_leaves_a_run_that_goes_on(
    convatlas: Command, images: Path, colored: Run, tmp_path: Path, size: int, file: str,
    full_disk: Callable[[int], AbstractContextManager[None]],
) -> None:  # fmt: skip
    run = tmp_path / "run"
    with full_disk(size):
        check_refused(convatlas(*fitting(images, run)), str(run / file), "cannot be written")
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
    outcome = convatlas(*fitting(images, tmp_path / "run"))
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
def spoilt(colored: Run, tmp_path: Path) -> Path:
    """A copy of a finished run that a test may spoil."""
    return Path(shutil.copytree(colored.folder, tmp_path / "spoilt"))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_refused_by_name(convatlas: Command, spoilt: Path, damage: str) -> None:
    name, spoil = DAMAGE[damage]
    spoil(spoilt / name)
    check_refused(convatlas("resume", spoilt), str(spoilt / name))


def test_a_run_whose_data_changed_is_refused(convatlas: Command, own_images: Path, tmp_path: Path) -> None:
    assert convatlas(*fitting(own_images, tmp_path / "run")).code == 0
    (own_images / "train/ant/00.jpg").unlink()
    check_refused(convatlas("resume", tmp_path / "run"), str(own_images), "changed")


# --- the package, and the command as a process of its own


@pytest.mark.parametrize("name", ca.__all__)
def test_public_names_are_not_hidden_by_modules_of_the_same_name(name: str) -> None:
    assert callable(getattr(ca, name))


def process(*arguments: object, **environment: str) -> Outcome:
    done = subprocess.run(
        [sys.executable, "-m", "convatlas", *map(str, arguments)], capture_output=True, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CONVATLAS_OFFLINE": "1"} | environment,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def test_the_module_is_the_command() -> None:
    outcome = process("--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert "Usage:" in outcome.out


def test_a_process_that_fails_prints_one_line(tmp_path: Path) -> None:
    check_refused(process(*fitting(tmp_path / "nowhere", tmp_path / "run")), str(tmp_path / "nowhere"))


def test_names_that_are_no_text_give_no_traceback(tmp_path: Path) -> None:
    for name, color in ((b"ant", COLORS["ant"]), (b"caf\xe9", COLORS["bee"])):
        write_images(tmp_path / "data" / os.fsdecode(name), color, count=6)
    outcome = process(*fitting(tmp_path / "data", tmp_path / "run"), PYTHONIOENCODING="utf-8")
    assert "Traceback" not in outcome.err
    if outcome.code:
        check_refused(outcome, "caf")
        assert not (tmp_path / "run").exists()


# --- the demonstration


def test_demo_goes_the_whole_way(convatlas: Command, tmp_path: Path) -> None:
    outcome = convatlas("demo", "--out", tmp_path / "demo")
    assert outcome.code == 0
    model = load(tmp_path / "demo" / "model.safetensors")
    assert model.header.metrics["test"]["accuracy"] >= 0.985
    assert (tmp_path / "demo" / "overview.png").read_bytes().startswith(b"\x89PNG")
    examples = sorted((tmp_path / "demo" / "examples").glob("*.png"))
    assert len(examples) == 16
    right = [
        prediction.label == path.name[0] for prediction, path in zip(model.predict(examples), examples, strict=True)
    ]
    assert sum(right) >= 10
    commands = [line for line in outcome.out.splitlines() if line.startswith("  ") and "convatlas " in line]
    assert len(commands) == 3
