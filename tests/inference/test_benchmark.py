"""Benchmarks: rows with units, CSV, plots, and refused arguments."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from convatlas.errors import ConvatlasError, EngineError
from convatlas.inference.benchmark import (
    BenchmarkRow,
    benchmark,
    build_untrained,
    count_parameters,
    label_of,
    parse_batches,
    plot_latency,
    write_csv,
)

ROW = BenchmarkRow("runs/a/model.safetensors", "lenet5", "torch", 1, 2.0, 3.0, 1.5, "images", 500.0, 10.0, 0.1, 61_706)


def test_a_network_by_name_is_measured_in_a_process_of_its_own() -> None:
    rows = benchmark(["lenet5_modern"], engines=["torch"], batches=[1, 4], seconds=0.05)
    assert [(row.engine, row.batch, row.accuracy) for row in rows] == [("torch", 1, None), ("torch", 4, None)]
    for row in rows:
        assert 0 < row.min_ms <= row.p50_ms <= row.p95_ms
        assert row.per_second == pytest.approx(1000 * row.batch / row.p50_ms)
        assert row.parameters == 61_706
        assert row.load_s > 0
        assert row.memory_mib >= 0


def test_the_parameters_of_an_exported_file_follow_from_its_header() -> None:
    model = build_untrained("lenet5_modern")
    assert count_parameters(model) == count_parameters(replace(model, network=None)) == 61_706


def test_rows_are_written_as_csv_with_units_in_the_columns(tmp_path: Path) -> None:
    write_csv([ROW, replace(ROW, batch=16, accuracy=0.5)], tmp_path / "rows.csv")
    first, second = csv.DictReader((tmp_path / "rows.csv").read_text().splitlines())
    assert list(first) == list(ROW.to_plain())
    assert {"p50_ms", "p95_ms", "min_ms", "per_second", "memory_mib", "load_s"} < set(first)
    assert (first["p50_ms"], first["accuracy"], second["accuracy"]) == ("2.0", "", "0.5")


def test_latency_is_plotted_at_the_smallest_batch(tmp_path: Path) -> None:
    measured = replace(ROW, name="b.onnx", accuracy=0.5, metric="accuracy", score=0.5, score_low=0.4, score_high=0.6)
    for rows in ([ROW, measured, replace(ROW, batch=16)], [measured], [ROW, replace(ROW, parameters=None)]):
        plot_latency(rows, tmp_path / "x.png")
        assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConvatlasError, match="nothing to plot"):
        plot_latency([replace(ROW, parameters=None)], tmp_path / "y.png")
    with pytest.raises(ConvatlasError, match="at least one row"):
        plot_latency([], tmp_path / "y.png")


def test_models_are_labeled_by_their_run_and_network() -> None:
    assert ROW.label == "runs/a (lenet5)"
    assert label_of("runs/a/model.onnx", "lenet5") == "runs/a/model.onnx (lenet5)"
    assert label_of("model.safetensors", "lenet5") == "model.safetensors (lenet5)"
    assert label_of("lenet5", "lenet5") == "lenet5"


@pytest.mark.parametrize("text", ["0", "1,", "a", "1,-2", "1.5", ""])
def test_batches_that_are_not_integers_are_refused(text: str) -> None:
    with pytest.raises(ConvatlasError, match=f"must be integers >= 1 separated by commas, got '{text}'"):
        parse_batches(text)
    assert parse_batches("1, 16") == [1, 16]


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(EngineError, match=r"must be one of auto, torch, .* got 'tensorrt'"):
        benchmark(["lenet5_modern"], engines=["tensorrt"])
