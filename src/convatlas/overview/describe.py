"""Describe a model file, an exported file, weights by name, or a run directory on one page."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convatlas.core.cost import totals_of
from convatlas.core.table import Table, Text
from convatlas.engines import onnx_file, openvino_files
from convatlas.errors import ConvatlasError, printable
from convatlas.inference.load import EXPORTED, header_of, refusal_of_pt2
from convatlas.models.catalog import CATALOG, build_fresh
from convatlas.models.index import find_name
from convatlas.models.own_module import OwnModule
from convatlas.overview.run_status import FILES, RunStatus, read_status
from convatlas.tasks.result_page import metric_name
from convatlas.tasks.table import pluralize
from convatlas.train.finish import run_header
from convatlas.train.fit_command import nearest_recipe
from convatlas.train.recipe import Recipe
from convatlas.train.run_folder import MODEL
from convatlas.weights.describe import (
    describe_calibration,
    describe_interval,
    describe_preprocessing,
    describe_split,
    describe_task,
    headline,
)
from convatlas.weights.imported import find_imported, is_imported_name
from convatlas.weights.modelfile import Header, read_tensors
from convatlas.weights.pretrained import find_weights
from convatlas.weights.run_files import is_run, model_file_of

WIDTH, LABEL = 100, 14
"""Columns of a page, and of the names on its left."""

SHARES = re.compile(r"accuracy|top5|macro_f1|micro_f1|balanced_accuracy|mAP|(box|mask|keypoint)_(ap|ar|pck).*")
"""Metrics that are printed in percent."""


@dataclass(frozen=True, repr=False)
class ModelDescription:
    """What is known of a model or a run; prints as a page.

    name: as given. kind: what it is, in words. file: the file of the weights; None if there is none on this machine.
    parameters, macs: of one image; None for an own module, whose code is in no file.
    size_bytes: of the files. run: the state of a run directory, None for anything else.
    """

    name: str
    kind: str
    header: Header
    file: Path | None
    size_bytes: int | None
    parameters: int | None
    macs: int | None
    run: RunStatus | None = None

    @property
    def size_mib(self) -> float | None:
        """Size of the files in MiB."""
        return None if self.size_bytes is None else self.size_bytes / 2**20

    def to_plain(self) -> dict[str, Any]:
        """Return the description as plain data; None for what is unknown."""
        header, card = self.header, CATALOG.get(self.header.name.partition("@")[0])
        size = None if self.size_mib is None else round(self.size_mib, 3)
        return {
            "name": self.name, "kind": self.kind, "file": None if self.file is None else str(self.file),
            "network": header.name, "title": card.card.title if card else None,
            "year": card.card.year if card else None,
            "input_px": header.spec.resolution, "parameters": self.parameters, "macs": self.macs, "size_mib": size,
            "task": header.task.name, "classes": list(header.classes),
            "preprocessing": header.preprocessing.to_plain(), "calibration": header.calibration.to_plain(),
            "metrics": {split: dict(metrics) for split, metrics in header.metrics.items()},
            "training": header.training.to_plain(), "license": header.license or None,
            "run": None if self.run is None else self.run.to_plain(),
        }  # fmt: skip

    def __str__(self) -> str:
        training = self.header.training
        trained_on = f" trained on {training.data}" if training.data else ""
        blocks = [f"{self.header.name}{trained_on}\n{self.kind}: {self.name}", _block(self._model_facts())]
        if self.header.metrics:
            blocks.append(f"Metrics\n{metrics_table(self.header)}")
        if facts := self._training_facts():
            blocks.append(f"{'Origin' if training.source else 'Training'}\n{_block(facts)}")
        if self.run:
            files = {name: f"{FILES[name]}, {_file_size(size)}" for name, size in self.run.files.items()}
            blocks.append(f"Files\n{_block(files)}")
            blocks += [f"Next\n{Table.of_pairs(self.run.commands)}"] if self.run.commands else []
        return "\n\n".join(blocks)

    def __repr__(self) -> str:
        return repr(Text(self))

    def _repr_html_(self) -> str:
        return Text(self)._repr_html_()

    def _model_facts(self) -> dict[str, str]:
        header, card = self.header, CATALOG.get(self.header.name.partition("@")[0])
        numbers = [f"{self.parameters:,} parameters"] if self.parameters is not None else []
        one = header.preprocessing.reads.removesuffix("s")
        numbers += [f"{self.macs:,} MACs for one {one}"] if self.macs is not None else []
        return {
            "state": self.run.describe() if self.run else "",
            "file": "" if self.size_mib is None else f"{self.file}, {self.size_mib:.2f} MiB",
            "network": ", ".join([*([f"{card.card.title} ({card.card.year})"] if card else []), *numbers]),
            "task": describe_task(header.task),
            "input": describe_preprocessing(header.preprocessing),
            "calibration": describe_calibration(header.calibration),
            "license": header.license or "not stated",
        }

    def _training_facts(self) -> dict[str, str]:
        """Return how the weights were trained, or where they are from."""
        training = self.header.training
        if training.source:
            reported = ", ".join(f"{name} {value:g}" for name, value in training.reported_metrics.items())
            return {
                "source": training.source, "sha256": training.source_sha256, "library": training.library,
                "recipe": training.recipe_url, "reported": reported,
            }  # fmt: skip
        if not training.recipe:
            return {}
        execution = training.execution
        count = execution.get("threads")
        threads = pluralize(count, "thread") if count else ""
        return {
            "data": f"{training.data} (fingerprint {training.fingerprint[:12]}); {describe_split(training)}",
            "annotations": "; ".join(fault.text() for fault in training.annotation_faults),
            "started from": training.weights or "random weights",
            "recipe": describe_recipe(training.recipe),
            "changes": "; ".join(training.changes),
            "weights of": f"epoch {training.epoch}" if training.epoch else "",
            "seed": str(training.seed),
            "time": f"{training.elapsed_s:,.1f} s until this file was written" if training.elapsed_s else "",
            "executed": ", ".join(
                filter(None, [str(execution.get("device", "")), threads, str(execution.get("memory_format", "")),
                              str(execution.get("precision", ""))])
            ),
            "versions": ", ".join(f"{name} {version}" for name, version in training.versions.items()),
        }  # fmt: skip


def describe_recipe(plain: Mapping[str, Any]) -> str:
    """Return a recipe as the nearest one with a name and what differs, such as "finetune with epochs=20 (not 5)"."""
    try:
        recipe = Recipe.from_plain(plain, where="recipe")
    except ConvatlasError:  # of another version
        return ", ".join(f"{field}={value}" for field, value in plain.items())
    name, changes = nearest_recipe(recipe)
    texts = [f"{field}={own} (not {base})" for field, (base, own) in changes.items()]
    return f"{name} with {', '.join(texts)}; {recipe.epochs} epochs" if texts else f"{name}; {recipe.epochs} epochs"


def metrics_table(header: Header) -> Table:
    """Return the metrics of a header: one a row, a column for each split, with 95 % intervals."""
    keys = dict.fromkeys(key for numbers in header.metrics.values() for key in numbers)
    bounds = {f"{key}{side}" for key in keys for side in ("_low", "_high")}
    first = headline(header.task)
    names = sorted((key for key in keys if key not in bounds), key=lambda key: key != first)
    noun, splits = header.task.noun, header.metrics.values()
    rows = tuple((metric_name(key, noun), *(_metric(key, each) for each in splits)) for key in names)
    return Table(("", *header.metrics), rows)


def _metric(key: str, numbers: Mapping[str, float | int]) -> str:
    value = numbers.get(key)
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    form = ".2%" if SHARES.fullmatch(key) else ".4f"
    return f"{value:{form}}{describe_interval(key, numbers, form)}"


def _file_size(count: int) -> str:
    return f"{count / 2**20:.2f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def _block(facts: Mapping[str, str]) -> str:
    """Return names and values, one pair a line; long values are wrapped, empty ones are left out."""
    width = max([LABEL, *(len(name) + 2 for name in facts)])
    lines = []
    for name, value in facts.items():
        if value:
            first, *rest = textwrap.wrap(
                printable(value), max(40, WIDTH - width), break_long_words=False, break_on_hyphens=False
            )  # fmt: skip
            lines += [f"{name:<{width}}{first}", *(" " * width + line for line in rest)]
    return "\n".join(lines)


def describe(source: str | Path) -> ModelDescription:
    """Read what is known of a model file, an exported file, weights by name, or a run directory.

    Nothing is downloaded, no network is run, and nothing is changed. Raises ModelFileError, WeightsError or RunError,
    in one line, for a file or directory that is missing, damaged or something else.
    """
    name, path = str(source), Path(source).expanduser()
    if not path.exists():
        if is_imported_name(name):
            return _of_model_file(name, "imported weights", find_imported(name).path)
        if "@" in name and find_name(name.partition("@")[0], CATALOG):
            weights = find_weights(name)
            file = weights.cached_file
            return _described(name, "published weights", header_of(weights), file, [file] if file else [])
    if is_run(path):
        return _of_run(name, path)
    if path.suffix.lower() in EXPORTED and not path.is_dir():
        return _of_exported(name, path)
    return _of_model_file(name, "model file", model_file_of(path))


def _of_model_file(name: str, kind: str, file: Path, run: RunStatus | None = None) -> ModelDescription:
    header, _ = read_tensors(file)
    return _described(name, kind, header, file, [file], run)


def _of_exported(name: str, path: Path) -> ModelDescription:
    suffix = path.suffix.lower()
    if suffix == ".pt2":
        raise refusal_of_pt2(path)
    if suffix == ".onnx":
        return _described(name, "exported file (ONNX)", onnx_file.read_graph(path)[0], path, [path])
    files = [path, path.with_suffix(".bin")]
    return _described(name, "exported file (OpenVINO)", openvino_files.read_model(path)[0], path, files)


def _of_run(name: str, folder: Path) -> ModelDescription:
    status = read_status(folder)
    file = folder / MODEL
    if file.is_file():
        return _of_model_file(name, "run directory", file, status)
    data = Path(status.config.data).name
    header = run_header(status.config, data=data, epoch=0, seconds=status.state.seconds)
    return _described(name, "run directory", header, None, [], status)


def _described(
    name: str, kind: str, header: Header, file: Path | None, files: list[Path], run: RunStatus | None = None
) -> ModelDescription:
    parameters = macs = None
    if not isinstance(header.spec, OwnModule):
        network = build_fresh(
            header.spec, classes=header.task.outputs, channels=header.preprocessing.channels, device="meta"
        )
        counted = totals_of(network)
        parameters, macs = counted.parameters, counted.macs
    size = sum(each.stat().st_size for each in files) if files else None
    return ModelDescription(name, kind, header, file, size, parameters, macs, run)
