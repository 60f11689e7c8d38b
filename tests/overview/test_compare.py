"""Runs compared: a table, CSV and a plot; what is no run is skipped."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

import convatlas as ca
from commands import Command, check_refused
from convatlas.errors import InputError, ModelFileError
from convatlas.inference.benchmark import BenchmarkRow
from convatlas.models.describe import Comparison
from convatlas.overview.compare import RunComparison, compare_runs
from convatlas.train.run import Run


@pytest.fixture(scope="module")
def runs(colored: Run, trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs, one without a model, an empty folder, a damaged run and a file. Read only."""
    folder = tmp_path_factory.mktemp("all") / "runs"
    shutil.copytree(colored.folder, folder / "a")
    shutil.copytree(trained.folder, folder / "b")
    started = Path(shutil.copytree(colored.folder, folder / "c"))
    for name in ("model.safetensors", "last.safetensors", "checkpoint.pt"):
        (started / name).unlink()
    (folder / "empty").mkdir()
    (folder / "damaged").mkdir()
    (folder / "damaged" / "run.json").write_text("{")
    (folder / "notes.txt").write_text("x")
    return folder


def test_runs_are_compared_in_a_table_csv_and_a_plot(runs: Path, convatlas: Command, tmp_path: Path) -> None:
    sources = sorted(runs.iterdir())
    files = ["--csv", tmp_path / "rows.csv", "--plot", tmp_path / "plot.png"]
    outcome = convatlas("compare", *sources, *files)
    assert outcome.code == 2  # because of the damaged run
    heading, *lines, note = outcome.out.splitlines()
    assert note == "metrics of different data sets or splits cannot be compared"
    assert heading.split()[:6] == ["run", "network", "data", "split", "accuracy", "95"]
    assert heading.split()[-4:] == ["epochs", "elapsed", "seed", "status"]
    assert [line.split("  ")[0][-6:] for line in lines] == ["runs/a", "runs/b", "runs/c"]
    assert [line.split("lenet5_modern")[1].split()[0] for line in lines] == ["images", "digits", "images"]
    assert [line.split()[-1] for line in lines] == ["finished", "finished", "started"]
    assert [line for line in outcome.err.splitlines() if line.startswith("skipped: ")] == [
        f"skipped: {runs / 'empty'}: not a run directory (there is no run.json), and it contains no model.safetensors",
        next(line for line in outcome.err.splitlines() if "notes.txt" in line),
    ]
    assert "damaged/run.json: damaged" in outcome.err
    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == [str(runs / name) for name in "abc"]
    assert (rows[2]["accuracy"], rows[2]["size_mib"], rows[0]["latency_ms"]) == ("", "", "")
    assert 0 <= float(rows[0]["score_low"]) <= float(rows[0]["accuracy"]) <= float(rows[0]["score_high"]) <= 1
    assert (rows[0]["parameters"], rows[1]["split"], rows[0]["seed"]) == ("61411", "test", "0")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_latency_is_measured_on_request(runs: Path, monkeypatch: pytest.MonkeyPatch, convatlas: Command) -> None:
    def measured(names: list[str], **how: object) -> list[BenchmarkRow]:
        assert how["engines"] == ["torch"]
        speed = (2.5, 3.0, 2.0, "images", 400.0)
        return [BenchmarkRow(name, "lenet5_modern", "torch", 1, *speed, 1.0, 0.1, 1) for name in names]

    monkeypatch.setattr("convatlas.overview.compare.benchmark", measured)
    rows = json.loads(convatlas("compare", runs / "a", runs / "c", "--bench", "--json").out)
    assert [row["latency_ms"] for row in rows] == [2.5, None]
    assert (rows[0]["status"], rows[0]["epochs"], rows[0]["planned_epochs"]) == ("finished", 2, 2)
    outcome = convatlas("compare", runs / "a", "--bench")
    assert "2.50" in outcome.out
    assert "ms: median for one image, engine torch, 1 thread" in outcome.out


def test_comparisons_in_python(runs: Path) -> None:
    comparison = ca.compare(runs / "a", str(runs / "b" / "model.safetensors"))
    assert isinstance(comparison, RunComparison)
    assert "runs/a" in repr(comparison)
    assert "<table>" in comparison._repr_html_()
    assert comparison.rows[1].status is None
    assert isinstance(ca.compare("lenet5", "resnet18"), Comparison)
    axes = comparison.plot().axes[0]
    assert len(axes.texts) == 2
    assert not [line for line in axes.lines if line.get_linestyle() == "--"]
    assert "cannot be compared" in str(comparison)


def test_runs_on_the_same_images_are_compared_with_a_front(colored: Run, runs: Path) -> None:
    comparison = ca.compare(colored, runs / "a")
    assert isinstance(comparison, RunComparison)
    assert [row.name for row in comparison.rows] == [str(colored.folder), str(runs / "a")]
    assert "cannot be compared" not in str(comparison)
    assert [line for line in comparison.plot().axes[0].lines if line.get_linestyle() == "--"]


def test_the_network_of_a_run_beside_networks_of_the_catalog(runs: Path, convatlas: Command) -> None:
    outcome = convatlas("compare", runs / "a", "resnet18")
    assert (outcome.code, outcome.err) == (0, "")
    assert "11,689,512" in outcome.out
    comparison = ca.compare(runs / "a", "resnet18")
    assert isinstance(comparison, Comparison)
    assert [row.name for row in comparison.rows] == ["lenet5_modern", "resnet18"]


def test_the_network_of_a_run_is_counted_drawn_and_scaled(runs: Path, convatlas: Command, tmp_path: Path) -> None:
    counted = json.loads(convatlas("cost", runs / "a", "--json").out)
    assert (counted["name"], counted["parameters"]) == ("lenet5_modern", 61_411)  # of its 4 classes, 3 channels
    assert convatlas("draw", runs / "a" / "model.safetensors", "--out", tmp_path / "a.svg").code == 0
    scaled = json.loads(convatlas("scale", runs / "a", "--width", 2, "--json").out)
    assert scaled["parameters"] > 2 * 61_411
    check_refused(convatlas("cost", runs / "gone"), "gone: no such model file")


def test_wrong_arguments_are_refused(runs: Path, convatlas: Command) -> None:
    check_refused(convatlas("compare", "lenet5", "--bench"), "are for runs and model files")
    check_refused(convatlas("compare", runs / "a", "--resolution", 64), "resolution")
    check_refused(convatlas("compare", runs / "a", "--plot", "x.gif"), "x.gif: the suffix of a drawing")
    check_refused(convatlas("compare", runs / "a", runs / "gone"), "gone: no such model file")
    with pytest.raises(InputError, match="none of 2 is a run"):
        compare_runs(runs / "empty", runs / "notes.txt")
    with pytest.raises(ModelFileError, match="no such model file"):
        ca.compare(runs / "gone")
    for wrong in (7, None, ca.build("lenet5"), ca.load(runs / "a")):
        with pytest.raises(InputError, match=f"compare: must be names or specs .*, got {type(wrong).__name__}$"):
            ca.compare(wrong, runs / "a")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nothing to plot"):
        compare_runs(runs / "c").plot()
