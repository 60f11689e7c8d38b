"""Export: the network with its preprocessing, for other programs; written only after it was seen to answer the same."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from convatlas.data.dataset import Images
from convatlas.data.decode.pixels import read_image
from convatlas.data.open import find
from convatlas.data.readers.folder import images_in
from convatlas.engines import openvino_files
from convatlas.engines.folding import folded
from convatlas.engines.onnx_graph import OUTPUTS, PROBABILITIES, DeployModule, example, onnx_of, told
from convatlas.engines.onnxruntime import OnnxRuntime
from convatlas.engines.openvino import OpenVino
from convatlas.errors import ConvatlasError, DataError, EngineError, brief
from convatlas.inference import quantize
from convatlas.inference.model import Model
from convatlas.inference.quantize import LayerError
from convatlas.system.extras import needed
from convatlas.system.files import atomic
from convatlas.system.progress import Progress
from convatlas.tasks.classification.losses import CRITERIA

Format = Literal["onnx", "openvino", "torch-export"]
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}

TOLERANCE = 1e-4
"""The largest difference of a probability between the network and what is exported in float32."""

CHECKED = 64
"""Images with which an export is checked, at most."""

CALIBRATED = 256
"""Images that say which values int8 has to cover, at most."""

Run = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From pixels to probabilities and outputs."""


@dataclass(frozen=True)
class Parity:
    """How an exported network compares with the one that it came from.

    same: of so many images, those with the same most probable class. difference: the largest of any probability.
    accuracy: of int8, on the images of the gate: before and after; None for float32.
    """

    images: int
    same: int
    difference: float
    accuracy: tuple[float, float] | None = None


@dataclass(frozen=True)
class Exported:
    """What was written. layers: of int8, the error of each layer, the worst first, and which stayed in float32."""

    path: Path
    format: str
    parity: Parity
    layers: tuple[LayerError, ...] = ()


def export(
    model: Model, to: str, out: str | Path, *, check: str | Path | None = None, int8: str | Path | None = None,
    max_accuracy_drop: float = 0.005, progress: Progress | None = None,
) -> Exported:  # fmt: skip
    """Write a model for other programs: "onnx", "openvino" or "torch-export".

    The graph reads uint8 images of the network's size and gives calibrated probabilities; its metadata say all that
    the model file says. It is written when it answers like the network on real images, and not otherwise.
    check: those images: files, a folder, or data; data that came with the library where left out.
    int8: labeled data; weights and activations become 8-bit numbers, calibrated on its train split. Layers stay in
        float32, the worst first, until at most `max_accuracy_drop` of the accuracy on its val or test split is lost.
    Raises EngineError, and leaves no file, where a library is missing, a network cannot be exported, or it answers
    something else.
    """
    if to not in get_args(Format):
        raise EngineError(f"--to {to}: choose one of {', '.join(get_args(Format))}")
    path = Path(out)
    if path.suffix != SUFFIXES[to]:
        raise EngineError(f"{path}: a file of {to} ends in {SUFFIXES[to]}")
    if not path.parent.is_dir():
        raise EngineError(f"{path}: there is no folder {path.parent}")
    if int8 is not None and to == "torch-export":
        raise EngineError("--int8 goes with onnx and openvino; torch-export is float32")
    network, header = model.own, model.header
    pixels = _images(model, check if check is not None else int8, progress)
    if to == "torch-export":
        program = _traced(model)
        parity = compared(model, _of_program(program), pixels, to)
        with atomic(path) as file:
            file.write(program)
        return Exported(path, to, parity)
    if to == "openvino":
        needed("openvino", "openvino")
    needed("onnxruntime", "onnx")
    graph = onnx_of(network, header)
    layers: tuple[LayerError, ...] = ()
    accuracy = None
    if int8 is not None:
        train, gate = _calibration(model, int8, progress)
        graph, layers, accuracy = quantize.quantized(
            graph, train, gate, engine="openvino" if to == "openvino" else "onnxruntime", max_accuracy_drop=max_accuracy_drop,
            progress=progress,
        )  # fmt: skip
    data = bytes(graph.SerializeToString())
    if to == "onnx":
        parity = compared(model, _of_onnx(data), pixels, to, exact=int8 is None)
        with atomic(path) as file:
            file.write(data)
    else:
        parity = compared(model, _of_openvino(data), pixels, to, exact=int8 is None)
        openvino_files.write(graph, path)
    return Exported(path, to, replace(parity, accuracy=accuracy), layers)


def compared(model: Model, run: Run, pixels: Tensor, to: str, *, exact: bool = True) -> Parity:
    """Compare what is exported with the network on images; raises EngineError if `exact` and they differ."""
    header, same, difference = model.header, 0, 0.0
    criterion = CRITERIA[header.criterion]
    for part in pixels.split(8):
        ours = criterion.probabilities(model.engine.outputs(part) / header.temperature)
        theirs, _ = run(part)
        if theirs.shape != ours.shape or not theirs.isfinite().all():
            raise EngineError(f"{header.name}: exported to {to}, it gives no probabilities; nothing was written")
        apart = (ours - theirs).abs().amax(1)
        difference = max(difference, float(apart.max()))
        # two classes that are as good as equal may change places
        tied = (ours.amax(1) - ours.gather(1, theirs.argmax(1, keepdim=True)).squeeze(1)) <= 2 * apart
        same += int((ours.argmax(1) == theirs.argmax(1)).logical_or(tied & (apart <= TOLERANCE)).sum())
    if exact and (same < len(pixels) or difference > TOLERANCE):
        raise EngineError(
            f"{header.name}: exported to {to}, it does not answer like the network: {same} of {len(pixels)} images "
            f"with the same answer, probabilities up to {difference:.1e} apart; nothing was written"
        )
    return Parity(len(pixels), same, difference)


def _of_onnx(data: bytes) -> Run:
    engine = OnnxRuntime(data)

    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        first, second = engine.answers(pixels, PROBABILITIES, OUTPUTS)
        return torch.from_numpy(first), torch.from_numpy(second)

    return run


def _of_openvino(data: bytes) -> Run:
    engine = OpenVino(data, batch=8)

    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        told = engine.answers(pixels)
        return told[PROBABILITIES], told[OUTPUTS]

    return run


def _traced(model: Model) -> bytes:
    """Return the file of torch.export, for any number of images."""
    module = DeployModule(folded(model.own), model.header).eval()
    try:
        program = torch.export.export(
            module, (example(model.header),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=65536)},)
        )
        file = io.BytesIO()
        torch.export.save(program, file, extra_files=told(model.header))
    except Exception as error:  # torch.export has dozens of errors of its own
        raise EngineError(f"{model.header.name}: torch.export cannot trace it: {brief(error)}") from error
    return file.getvalue()


def _of_program(data: bytes) -> Run:
    program: Any = torch.export.load(io.BytesIO(data)).module()

    @torch.inference_mode()
    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        probabilities, outputs = program(pixels)
        return probabilities, outputs

    return run


def _images(model: Model, check: str | Path | None, progress: Progress | None) -> Tensor:
    """Return pixels of the images with which an export is checked: (n, channels, size, size)."""
    header, steps = model.header, model.header.preprocessing
    if check is None:
        check = str(header.training.get("data", ""))
        if not check:
            raise DataError(f"{header.name}: say with --check which images to compare the answers on")
    path = Path(check)
    files = [path] if path.is_file() and path.suffix.lower() not in (".csv", ".tsv", ".parquet", ".npz") else []
    if not files and path.is_dir():
        files = images_in(path)
    if not files:
        try:
            data = find(check).load(steps, progress=progress)
        except DataError as error:
            raise DataError(f"{error}; say with --check which images to compare the answers on") from error
        return spread(data.whole, CHECKED)
    read = list(islice(_readable(model, files[:: max(1, len(files) // CHECKED)]), CHECKED))
    if not read:
        raise DataError(f"{check}: none of the images can be read")
    return torch.stack(read)


def _readable(model: Model, files: list[Path]) -> Iterator[Tensor]:
    steps = model.header.preprocessing
    for file in files:
        try:
            yield steps.geometry(read_image(file, steps.channels, steps.window))
        except ConvatlasError:
            continue


def spread(images: Images, count: int) -> Tensor:
    """Return so many images of a split, from its beginning to its end."""
    numbers = torch.arange(len(images))
    return images.pixels[numbers[:: max(1, len(numbers) // count)][:count]]


def _calibration(model: Model, data: str | Path, progress: Progress | None) -> tuple[Tensor, quantize.Gate]:
    """Return images to calibrate with, and the labeled ones on which accuracy is measured."""
    dataset, split, labels = model.split_of(data, progress=progress)
    images = dataset.splits[split]
    gate = quantize.Gate(images.pixels, labels, CRITERIA[model.header.criterion], model.engine.outputs)
    return spread(dataset.train, CALIBRATED), gate
