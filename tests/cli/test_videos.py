"""The command line with a network that reads clips."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from commands import Command, check_refused
from convatlas.train.run import Run
from convatlas.weights.modelfile import write_model_file
from random_video_model import random_video_model
from video_files import moving_square, write_sound, write_video

pytest.importorskip("av")


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = random_video_model()
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    write_model_file(path, model.module, model.header)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one folder of videos for each class."""
    folder = tmp_path_factory.mktemp("videos")
    for number, name in enumerate(("clap", "jump", "wave")):
        for seed in range(2):
            frames = moving_square(24, seed=2 * number + seed, step=2 - 4 * (number % 2))
            write_video(folder / name / f"{seed}.mp4", frames, rate=10)
    return folder


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return write_sound(tmp_path / "sound.mp4")


def test_predict_prints_a_table_along_time(convatlas: Command, model_file: Path, folder: Path) -> None:
    outcome = convatlas(
        "predict", model_file, folder / "clap/0.mp4", "--every", "500ms", "--top", 2, "--engine", "torch"
    )
    heading, first, *others = outcome.out.splitlines()
    assert outcome.code == 0
    assert heading.split() == ["video", "time", "prediction", "most", "probable", "next"]
    assert first.split()[:2] == [str(folder / "clap/0.mp4"), "0:02"]
    assert others
    assert all(line.startswith(" ") and line.split()[0].startswith("0:0") for line in others)
    assert others[-1].split()[0].endswith("-0:02.4")


def test_json_and_csv_have_the_clips_along_time(
    convatlas: Command, model_file: Path, folder: Path, sound: Path
) -> None:
    command = ("predict", model_file, folder / "clap/0.mp4", sound, "--top", 1, "--engine", "torch")
    outcome = convatlas(*command, "--every", "1", "--json")
    good, bad = map(json.loads, outcome.out.splitlines())
    assert outcome.code == 2
    assert list(good) == list(bad)
    assert [(moment["start"], len(moment["probabilities"])) for moment in good["moments"]] == [(0, 1), (1, 1), (2, 1)]
    assert (bad["moments"], bad["seconds"], "no video stream" in bad["error"]) == ([], None, True)
    rows = list(csv.DictReader(io.StringIO(convatlas(*command, "--every", "1s", "--csv").out)))
    assert [row["start"] for row in rows] == ["", "0.0", "1.0", "2.0", ""]
    assert [row["label"] for row in rows[:4]] == [good["label"], *(moment["label"] for moment in good["moments"])]
    (plain,) = csv.DictReader(io.StringIO(convatlas(*command[:3], *command[4:], "--csv").out))
    assert list(plain) == list(rows[0])


def test_plots_and_sheets_are_written(convatlas: Command, model_file: Path, folder: Path, tmp_path: Path) -> None:
    sheet, plot = tmp_path / "sheet.svg", tmp_path / "plot.svg"
    outcome = convatlas(
        "predict",
        model_file,
        folder / "clap",
        folder / "wave",
        "--every",
        "0.5s",
        "--top",
        1,
        "--sheet",
        sheet,
        "--plot",
        plot,
        "--engine",
        "torch",
    )
    assert outcome.code == 0
    assert [str(sheet), str(plot)] == outcome.err.splitlines()[:2]
    assert sheet.read_text().count("<image") == 24
    assert all(f"<!-- {name} -->" in plot.read_text() for name in ("clap", "jump", "wave"))
    assert len([line for line in outcome.out.splitlines()[1:] if not line.startswith(" ")]) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tta", "flip"], "tta must not be given, because the model is for video classification"),
        (["--tile", "64"], "tile must not be given"),
        (["--save", "x"], "save must not be given"),
        (["--every", "0"], "every must be a number > 0"),
        (["--every", "5M"], "5M is a count; write a time such as 10ms"),
        (["--every", "10ms"], "every must be >= 0.100 s, one frame at 10 per second"),
        (["--plot", "x.png"], "--plot: needs --every"),
        (["--every", "1s", "--plot", "x.txt"], "suffix of a drawing"),
    ],
)
def test_options_without_meaning_are_refused(
    convatlas: Command, model_file: Path, folder: Path, options: list[str], message: str
) -> None:
    check_refused(convatlas("predict", model_file, folder, *options, "--engine", "torch"), message)


def test_options_of_videos_are_refused_for_images(convatlas: Command, colored: Run, images: Path) -> None:
    check_refused(
        convatlas("predict", colored.model_file, images, "--every", "1s"), "every must not be given", "classification"
    )
    check_refused(
        convatlas("predict", colored.model_file, images, "--every", "1s", "--plot", "a.png"), "every must not be given"
    )


def test_evaluate_counts_videos(
    convatlas: Command, model_file: Path, folder: Path, tmp_path: Path, sound: Path
) -> None:
    table, report = tmp_path / "videos.csv", tmp_path / "report.html"
    (folder / "clap" / "sound.mp4").write_bytes(sound.read_bytes())
    command = ("evaluate", model_file, folder, "--max-unreadable", "50%")
    outcome = convatlas(*command, "--csv", table, "--report", report)
    (folder / "clap" / "sound.mp4").unlink()
    assert outcome.code == 0, outcome
    assert "of 6 videos wrong" in outcome.out
    assert "image" not in outcome.out + outcome.err
    assert "sound.mp4" in outcome.out + outcome.err
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 7
    assert [row["target"] for row in rows[:6]] == ["clap"] * 2 + ["jump"] * 2 + ["wave"] * 2
    assert "no video stream" in rows[-1]["error"]
    page = report.read_text()
    assert "6 videos" in page
    assert "4 frames at 10 per second" in page
    assert "images" not in page.replace("images/svg", "")
    plain = json.loads(convatlas(*command, "--json").out)
    assert (plain["n"], plain["clips"]) == (6, 18)
    predicted = convatlas("predict", model_file, folder, "--json", "--engine", "torch").out.splitlines()
    for row, line in zip(rows, map(json.loads, predicted), strict=False):
        assert row["label"] == line["label"]
        assert float(row["probability"]) == pytest.approx(line["probability"], abs=1e-6)
