"""The keys of JSON and CSV: those of docs/keys.md, with the types that the page gives."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import convatlas as ca
from commands import Command
from convatlas.inference.accuracy_change import AccuracyChange
from convatlas.inference.benchmark import BenchmarkRow, write_csv
from convatlas.inference.export import ExportResult, Parity
from convatlas.inference.quantize import LayerNoise
from convatlas.inference.verify import TopAccuracy, UpstreamComparison, Verification, append_row
from convatlas.search.select_model import Selected
from convatlas.tasks.classification.multilabel import MultilabelClassification
from convatlas.tasks.targets import Targets
from convatlas.train.run import Run

PAGE = Path(__file__).parents[2] / "docs" / "keys.md"


def read_page() -> dict[str, str]:
    """Return key -> type."""
    rows = re.findall(r"^\| (`.*?) \|(.*?)\|.*\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    pairs = [(key, kind.strip()) for keys, kind in rows for key in re.findall(r"`(\w+)`", keys)]
    assert len(dict(pairs)) == len(pairs), "a key is listed twice"
    return dict(pairs)


KNOWN = read_page()


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_value(key: str, value: Any) -> None:
    """Check that a value has the type of its key, or is unknown."""
    kinds = KNOWN[key].split(" or ")
    checks = {
        "text": isinstance(value, str), "integer": isinstance(value, int), "number": is_number(value),
        "share": is_number(value) and 0 <= value <= 1, "percent": is_number(value) and 0 <= value <= 100,
        "flag": isinstance(value, bool), "list": isinstance(value, list), "record": isinstance(value, dict),
        "mapping": isinstance(value, dict), "": True,
    }  # fmt: skip
    assert value is None or any(checks[kind] for kind in kinds), (key, value)
    assert value != "", f"{key}: what is unknown is null"


def check_keys(value: Any) -> None:
    """Check the keys of plain data; not those of records and mappings, but those of the values of mappings."""
    if isinstance(value, list):
        for item in value:
            check_keys(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            assert key in KNOWN, f"{key} is not in {PAGE.name}"
            assert key == "mAP" or "mAP" in key or re.fullmatch(r"[a-z][a-z0-9_]*", key), key
            check_value(key, item)
            if "record" in KNOWN[key] and key not in ("parity", "accuracy_change", "size_and_speed", "upstream", "run"):
                continue
            if "mapping" in KNOWN[key] and isinstance(item, dict):
                for inner in item.values():
                    if isinstance(inner, dict):
                        check_keys(inner)
            elif key != "probabilities":
                check_keys(item)


def check_csv(text: str) -> None:
    header, *rows = csv.reader(io.StringIO(text))
    assert len(set(header)) == len(header)
    assert not [key for key in header if key not in KNOWN]
    assert rows
    for row in rows:
        assert not {"None", "nan"} & set(row)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), (200, 60, 40)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def commands(run: Run, images: Path, image: Path) -> Iterator[tuple[object, ...]]:
    yield from (("list", "lenet*"), ("show", "lenet5"), ("compare", "lenet5", "resnet18"), ("cost", "lenet5"))
    yield from (("scale", "lenet5"), ("weights", "list", "resnet18"), ("recipes",), ("data", "check", images))
    yield from (
        ("show", run.folder),
        ("show", run.model_file),
        ("compare", run.folder),
        ("evaluate", run.model_file, images),
    )
    yield ("predict", run.model_file, image)
    yield from (("explain", run.model_file, image, "--randomize"), ("diagnose", run.folder), ("diagnose", "lenet5"))
    yield ("features", run.model_file, image, "--layer", "stages.0", "--channel", "0", "--data", images)
    yield ("features", run.model_file, image, "--maximize", "--class", run.task.classes[0], "--steps", "2")
    yield ("embed", run.model_file, images, "--nearest", image)


def test_the_keys_of_all_commands_are_those_of_the_page(
    convatlas: Command, colored: Run, images: Path, image: Path, tmp_path: Path
) -> None:
    for command in commands(colored, images, image):
        outcome = convatlas(*command, "--json")
        assert outcome.code in (0, 1), outcome
        check_keys(json.loads(outcome.out))
    check_csv(convatlas("predict", colored.model_file, image, "--csv", "--top", 1).out)
    table = tmp_path / "images.csv"
    convatlas("evaluate", colored.model_file, images, "--csv", table)
    check_csv(table.read_text())
    check_csv((colored.folder / "metrics.csv").read_text())
    check_csv((colored.folder / "diagnostics.csv").read_text())


def test_the_keys_of_slow_commands_are_those_of_the_page(tmp_path: Path) -> None:
    row = BenchmarkRow("m", "lenet5", "torch", 1, 1.0, 1.0, 1.0, "images", 9.0, None, 0.1, None)
    check_keys(row.to_plain())
    write_csv([row, dataclasses.replace(row, accuracy=0.5)], tmp_path / "rows.csv")
    check_csv((tmp_path / "rows.csv").read_text())
    accuracy = TopAccuracy(10, 5, 9)
    verification = Verification("w", "", accuracy, "one view", upstream=UpstreamComparison("timm", accuracy, 9, 1e-7))
    check_keys(verification.to_plain())
    append_row(verification, "convatlas", tmp_path / "verified.csv")
    check_csv((tmp_path / "verified.csv").read_text())
    (tmp_path / "x.onnx").write_bytes(b"x")
    change = AccuracyChange(0.9, 0.8, 10, 1, 0.05, 0.15)
    check_keys(
        ExportResult(tmp_path / "x.onnx", "onnx", Parity(9, 9, 1e-7), change, (LayerNoise("c", 9.0, True),)).to_plain()
    )
    candidate = Selected("lenet5", "default", 32, 10, 20, 0.001).to_plain()
    check_keys(candidate)
    assert candidate["latency_ms"] == 1
    task = MultilabelClassification(("a", "b"))
    result = task.evaluate(torch.randn(20, 2), Targets(label=(torch.rand(20, 2) > 0.5).float()))
    check_keys(result.to_plain())


def test_the_keys_of_searches_are_those_of_the_page() -> None:
    from convatlas.search.counts import Counts
    from convatlas.search.report import trials_csv
    from convatlas.search.scale_search import Scaled, ScaleSearch
    from convatlas.search.store import Evaluation

    metrics = {"accuracy": 0.5, "reward": 0.5, "latency": 0.001, "parameters": 1, "macs": 1, "file_bytes": 1,
               "memory_bytes": 1, "steps": 1, "epochs": 1.0, "seconds": 1.0, "disturbed": 0.0}  # fmt: skip
    plain = {"name": "a", "kind": "candidate", "seed": 0}
    text = trials_csv([Evaluation(0, plain, {}, 1.0, "complete", metrics=metrics)])
    for name in next(csv.reader(io.StringIO(text))):
        assert name in KNOWN
    base = Scaled("base", 0.0, 1.0, 1.0, 1.0, ca.spec("lenet5"), Counts(1, 1, 1, 1), 0.001, (0.5,))
    result = ScaleSearch(Path(), base, (base,), ((1.0, 1.0, 1.0),), (base,), (base,)).to_plain()
    for record in (result, *result["grid"]):
        for key, value in record.items():
            check_value(key, value)
