"""Open a model: a model file, a run, an exported file, or weights by name."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from convatlas.engines import onnx_file, openvino_files
from convatlas.engines.onnxruntime import OnnxRuntimeEngine
from convatlas.engines.openvino import OpenVinoEngine
from convatlas.engines.signature import check_decoding
from convatlas.errors import EngineError, InputError, ModelFileError, WeightsError
from convatlas.inference.model import Model
from convatlas.models.catalog import CATALOG
from convatlas.models.index import find_name
from convatlas.system.devices import resolve_device
from convatlas.tasks.known import task_for
from convatlas.weights.build import build
from convatlas.weights.imported import find_imported, is_imported_name
from convatlas.weights.modelfile import Header, read_model_file
from convatlas.weights.pretrained import Weights, find_weights
from convatlas.weights.run_files import model_file_of
from convatlas.weights.sizes import sizes_of
from convatlas.weights.training_record import TrainingRecord

EXPORTED_BATCH = 16
"""Number of images for which an exported file is prepared."""

EXPORTED = (".onnx", ".xml", ".pt2")
"""Suffixes of exported files."""


def load(path: str | os.PathLike[str], *, device: str = "cpu", module: nn.Module | None = None) -> Model:
    """Open a model file, a run directory, an exported file, or weights by name.

    path: a file, or a run or its directory, whose model file is read; published weights,
        "resnet50@torchvision:IMAGENET1K_V2"; or imported weights, "resnet50@tag".
    module: for the file of an own module, one of the same class, whose code is in no file; a copy of it is returned.
    Published weights are downloaded if they are not cached. Raises ModelFileError or WeightsError, in one line, for
    files and weights that cannot be used.
    """
    if not isinstance(path, str | os.PathLike):
        kinds = "a model file, a run, an exported file or the name of weights"
        raise InputError(f"load: must be {kinds}, got {type(path).__name__}")
    name, path = os.fspath(path), Path(path).expanduser()
    if is_imported_name(name) and not path.exists():
        model = Model(*read_model_file(find_imported(name).path))
    elif find_name(name.partition("@")[0], CATALOG) and not path.exists():
        model = from_weights(find_weights(name))
    elif path.suffix.lower() in EXPORTED:
        return _load_exported(path)
    else:
        model = Model(*read_model_file(model_file_of(path), module))
    model.module.to(resolve_device(device))
    return model


def _load_exported(path: Path) -> Model:
    """Open an exported file: its own runtime is the engine."""
    if path.suffix.lower() == ".pt2":
        raise refusal_of_pt2(path)
    engine: OnnxRuntimeEngine | OpenVinoEngine
    if path.suffix.lower() == ".onnx":
        header, graph = onnx_file.read_graph(path)
        try:
            engine = OnnxRuntimeEngine(graph.SerializeToString())
        except EngineError as error:
            raise ModelFileError(f"{path}: {error}") from error
    else:
        header, ir_model = openvino_files.read_model(path)
        engine = OpenVinoEngine(ir_model, batch=EXPORTED_BATCH)
    check_decoding(path, header, engine)
    return Model(None, header, engine)


def refusal_of_pt2(path: Path) -> ModelFileError:
    """Return the error that refuses a .pt2 file."""
    return ModelFileError(f"{path}: reading it could run code that is hidden in it; use the model file it came from")


def from_weights(weights: Weights, *, file: Path | None = None) -> Model:
    """Return the model of published weights, read from `file` if they are not in the cache."""
    spec = weights.spec
    network = (
        build(weights.network, resolution=spec.resolution, weights=f"{weights.library}:{weights.tag}")
        if file is None
        else build(spec, channels=weights.channels, weights=file)
    )
    if sizes_of(spec).classes_of(network.state_dict()) != len(weights.classes):
        raise WeightsError(f"{file}: must have the {len(weights.classes):,} classes of {weights.name}")
    return Model(network.eval(), header_of(weights))


def header_of(weights: Weights) -> Header:
    """Return the header of published weights."""
    return Header(
        name=weights.name, spec=weights.spec, task=task_for(weights.spec, weights.classes),
        preprocessing=weights.preprocessing, license=weights.license,
        training=TrainingRecord(
            source=weights.url, recipe_url=weights.recipe_url, reported_metrics=dict(weights.reported_metrics)
        ),
    )  # fmt: skip
