"""Export a model with its preprocessing for other programs, after comparing its predictions with the original."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from convatlas.data.dataset import Dataset, UnreadableImage
from convatlas.data.readers.memory import Data
from convatlas.engines import openvino_files
from convatlas.engines.deploy import DeployModule, describe_header, example_pixels
from convatlas.engines.folding import fold_norms
from convatlas.engines.onnx_graph import export_graph
from convatlas.engines.onnxruntime import OnnxRuntimeEngine
from convatlas.engines.openvino import OpenVinoEngine
from convatlas.errors import EngineError, brief, nearest
from convatlas.inference.accuracy_change import AccuracyChange, AccuracyCheck
from convatlas.inference.check_images import every_nth, load_check_images, take_evenly
from convatlas.inference.detector_parity import DetectorParity, compare_detectors
from convatlas.inference.model import Model
from convatlas.inference.quantize import LayerNoise, in_frames, quantize_graph
from convatlas.inference.size_and_speed import SizeAndSpeed, measure_size_and_speed
from convatlas.system.extras import import_optional
from convatlas.system.files import atomic
from convatlas.system.progress import Progress
from convatlas.weights.run_files import model_file_of

Format = Literal["onnx", "openvino", "torch-export"]
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}

MAX_DIFFERENCE = 1e-4
"""Maximum difference of a probability between the model and its float32 export."""

MAX_CALIBRATION_IMAGES, MAX_CALIBRATION_CLIPS = 256, 32
"""Maximum number of images, or clips, from which the ranges of int8 activations are taken."""

ExportedForward = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From pixels to decoded outputs (probabilities) and outputs."""


@dataclass(frozen=True)
class Parity:
    """How the predictions of an export compare with those of the model.

    num_same: number of the `num_images` images, or clips, with the same most probable class.
    max_difference: largest difference of a probability. reads: "images" or "clips".
    """

    num_images: int
    num_same: int
    max_difference: float
    reads: str = "images"

    def text(self) -> str:
        """Return the comparison in one line."""
        return (
            f"same prediction for {self.num_same} of {self.num_images} {self.reads}; maximum difference of a "
            f"probability {self.max_difference:.1e}"
        )

    def to_plain(self) -> dict[str, Any]:
        return {"n": self.num_images, "num_same": self.num_same, "max_difference": self.max_difference}


@dataclass(frozen=True)
class ExportResult:
    """A finished export.

    accuracy, layers, size_and_speed: of int8 only: the change of the metric, the noise of each layer, the worst first,
    and what was gained. unreadable, remarks: of the data of int8; see `Dataset`.
    """

    path: Path
    format: str
    parity: Parity | DetectorParity
    accuracy: AccuracyChange | None = None
    layers: tuple[LayerNoise, ...] = ()
    unreadable: tuple[UnreadableImage, ...] = ()
    remarks: tuple[str, ...] = ()
    size_and_speed: SizeAndSpeed | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The written files: OpenVINO has two."""
        return (self.path, self.path.with_suffix(".bin")) if self.format == "openvino" else (self.path,)

    def to_plain(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {
            "path": str(self.path), "format": self.format,
            "files": [{"path": str(file), "size_mib": file.stat().st_size / 2**20} for file in self.files],
            "parity": self.parity.to_plain(),
            "accuracy_change": None if self.accuracy is None else self.accuracy.to_plain(),
            "size_and_speed": None if self.size_and_speed is None else self.size_and_speed.to_plain(),
            "layer_noise": [layer.to_plain() for layer in self.layers],
            "unreadable": [asdict(image) for image in self.unreadable], "remarks": list(self.remarks),
        }  # fmt: skip


def path_beside(model: str | Path, to: str, *, int8: bool) -> Path:
    """Return the default path of an export: beside a model file, or for pretrained weights in the working directory."""
    path = model_file_of(model)
    if not path.is_file():
        path = Path(str(model).replace("@", "-").replace(":", "-"))
    suffix = ("-int8" if int8 else "") + SUFFIXES.get(to, "")
    return path.with_name(path.name.removesuffix(".safetensors") + suffix)


def export(
    model: Model,
    to: str,
    out: str | Path,
    *,
    check: Data | None = None,
    int8: Data | None = None,
    max_accuracy_drop: float = 0.005,
    max_unreadable: float | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Write a model as "onnx", "openvino" or "torch-export".

    The exported network takes uint8 images, or clips, of the model's resolution and gives calibrated probabilities; its
    metadata contain the header of the model file. It is written only if it predicts the same as the model on real ones.
    A detector takes one image of any size, and gives its objects; it can be exported to "onnx" in float32 only.
    check: these images or videos: a file, a folder, or a data set (default: the training data, if it has a name).
    int8: labeled data. The network is quantized to int8, calibrated on the train split; accuracy is measured on the
        val or test split.
    max_accuracy_drop: maximum loss of accuracy by int8, as a fraction; while the images give evidence for a larger one
        (see `AccuracyChange`), the layers with the most noise return to float32.
    max_unreadable: maximum share of unreadable images in `check` and `int8`; by default that of the training.
    Raises EngineError, and leaves no file, if a library is missing, the network cannot be exported, or its predictions
    differ.
    """
    path = Path(out)
    _check_arguments(to, path, int8)
    if model.header.preprocessing.is_whole:
        _check_detector(model, to, int8)
    if max_unreadable is None:
        max_unreadable = model.header.training.max_unreadable
    pixels = load_check_images(model, check if check is not None else int8, max_unreadable, progress)
    if not isinstance(pixels, Tensor):
        return _export_detector(model, path, pixels)
    if to == "torch-export":
        program = _export_program(model)
        parity = compare(model, _program_forward(program), pixels, to)
        with atomic(path) as file:
            file.write(program)
        return ExportResult(path, to, parity)
    if to == "openvino":
        import_optional("openvino", "convatlas[openvino]")
    import_optional("onnxruntime", "convatlas[onnx]")
    graph = export_graph(model.module, model.header)
    layers: tuple[LayerNoise, ...] = ()
    accuracy = gain = None
    unreadable: tuple[UnreadableImage, ...] = ()
    remarks: tuple[str, ...] = ()
    if int8 is not None:
        dataset, split = model.load_split(int8, max_unreadable=max_unreadable, progress=progress)
        unreadable, remarks = dataset.unreadable, dataset.remarks
        float32, engine_name = graph, "openvino" if to == "openvino" else "onnxruntime"
        graph, layers, accuracy = quantize_graph(
            graph, _calibration_pixels(model, dataset), _accuracy_check(model, dataset, split),
            engine=engine_name, max_accuracy_drop=max_accuracy_drop, progress=progress,
        )  # fmt: skip
        gain = measure_size_and_speed(float32, graph, model.header, engine_name)
    data = bytes(graph.SerializeToString())
    engine = OnnxRuntimeEngine(data) if to == "onnx" else OpenVinoEngine(data, batch=8)
    parity = compare(model, engine.decoded, pixels, to, exact=int8 is None)
    if to == "onnx":
        with atomic(path) as file:
            file.write(data)
    else:
        openvino_files.write_model(graph, path)
    return ExportResult(path, to, parity, accuracy, layers, unreadable, remarks, gain)


def _check_detector(model: Model, to: str, int8: Data | None) -> None:
    if to != "onnx" or int8 is not None:
        form = f"{to}, int8" if int8 is not None else to
        raise EngineError(f"{model.header.name}: a detector can be exported to onnx in float32 only, got {form}")


def _export_detector(model: Model, path: Path, images: list[Tensor]) -> ExportResult:
    import_optional("onnxruntime", "convatlas[onnx]")
    data = bytes(export_graph(model.module, model.header).SerializeToString())
    parity = compare_detectors(model, OnnxRuntimeEngine(data), images)
    with atomic(path) as file:
        file.write(data)
    return ExportResult(path, "onnx", parity)


def _check_arguments(to: str, path: Path, int8: Data | None) -> None:
    if to not in get_args(Format):
        known = get_args(Format)
        raise EngineError(f"export: the format must be one of {', '.join(known)}, got {to!r}{nearest(to, known)}")
    if path.suffix != SUFFIXES[to]:
        raise EngineError(f"{path}: the name of a file for {to} must end in {SUFFIXES[to]}")
    if not path.parent.is_dir():
        raise EngineError(f"{path}: the folder {path.parent} does not exist")
    if int8 is not None and to == "torch-export":
        raise EngineError("export: int8 needs the format onnx or openvino, got torch-export")


def compare(model: Model, forward: ExportedForward, pixels: Tensor, to: str, *, exact: bool = True) -> Parity:
    """Compare an export with the model on pixels (n, *Preprocessing.item_shape) of images or clips.

    Raises EngineError if its probabilities are not finite, or, with `exact`, if they differ by more than
    `MAX_DIFFERENCE` or another class is the most probable one.
    """
    header, num_same, max_difference = model.header, 0, 0.0
    reads = header.preprocessing.reads
    for part in pixels.split(in_frames(pixels, 8)):
        expected = header.task.decode(model.engine.outputs(part), header.calibration)
        exported, _ = forward(part)
        if exported.shape != expected.shape or not exported.isfinite().all():
            raise EngineError(f"{header.name}: exported to {to}, its probabilities are not finite; nothing was written")
        difference = (expected - exported).abs().amax(1)
        max_difference = max(max_difference, float(difference.max()))
        # rounding may swap two classes that are equally probable
        gap = expected.amax(1) - expected.gather(1, exported.argmax(1, keepdim=True)).squeeze(1)
        tied = (gap <= 2 * difference) & (difference <= MAX_DIFFERENCE)
        num_same += int((expected.argmax(1) == exported.argmax(1)).logical_or(tied).sum())
    if exact and (num_same < len(pixels) or max_difference > MAX_DIFFERENCE):
        raise EngineError(
            f"{header.name}: exported to {to}, its predictions differ: the same class for {num_same} of {len(pixels)} "
            f"{reads}, probabilities by up to {max_difference:.1e}; nothing was written"
        )
    return Parity(len(pixels), num_same, max_difference, reads)


def _export_program(model: Model) -> bytes:
    """Return the file of torch.export, for any batch size."""
    module = DeployModule(fold_norms(model.module).float(), model.header).eval()
    try:
        program = torch.export.export(
            module, (example_pixels(model.header),),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=65536)},),
        )  # fmt: skip
        file = io.BytesIO()
        torch.export.save(program, file, extra_files=describe_header(model.header))
    except Exception as error:  # torch.export has dozens of error types
        raise EngineError(f"{model.header.name}: cannot be exported to torch-export ({brief(error)})") from error
    return file.getvalue()


def _program_forward(data: bytes) -> ExportedForward:
    program: Any = torch.export.load(io.BytesIO(data)).module()

    @torch.inference_mode()
    def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
        probabilities, outputs = program(pixels)
        return probabilities, outputs

    return forward


def _calibration_pixels(model: Model, dataset: Dataset) -> Tensor:
    """Return the images, or clips, of the train split from which the ranges of int8 activations are taken."""
    if model.header.preprocessing.sampling is None:
        pixels: Tensor = take_evenly(dataset.train, MAX_CALIBRATION_IMAGES)
        return pixels
    return every_nth(take_evenly(dataset.train, MAX_CALIBRATION_CLIPS).flatten(0, 1), MAX_CALIBRATION_CLIPS)


def _accuracy_check(model: Model, dataset: Dataset, split: str) -> AccuracyCheck:
    images = dataset.whole if split == "all" else dataset.splits[split]
    return AccuracyCheck(images, model.header.task, model.engine.outputs, model.header.calibration)
