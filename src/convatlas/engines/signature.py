"""What an exported network takes and returns, and the checks that this is what its header describes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from convatlas.engines.deploy import (
    OUTPUTS,
    PIXELS,
    PROBABILITIES,
    RESULT_FORMS,
    SCORE_THRESHOLD,
    example_inputs,
    example_pixels,
    result_names,
)
from convatlas.errors import EngineError, ModelFileError, listed, shorten
from convatlas.weights.modelfile import Header

MAX_ELEMENTS = 2**28
"""Maximum number of elements of each value that an exported network computes for one image: 1 GiB in float32."""

MAX_DIFFERENCE = 1e-4
"""Maximum difference between probabilities and decoded outputs."""


class ExportedEngine(Protocol):
    """An engine that runs an exported file."""

    def outputs(self, pixels: Any) -> Any:
        """Return outputs; see `Engine.outputs`."""
        ...

    def decoded(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and outputs of a classifier."""
        ...


class Value(NamedTuple):
    """An input or output. dtype: None if it is of no type of torch. shape: None is any number, as of a batch."""

    name: str
    dtype: torch.dtype | None
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        dtype = "another type" if self.dtype is None else str(self.dtype).removeprefix("torch.")
        return f"{shorten(self.name, 80)} {dtype} ({listed('any' if n is None else n for n in self.shape)})"


def check_signature(path: Path, header: Header, inputs: Sequence[Value], outputs: Sequence[Value]) -> None:
    """Raise ModelFileError unless the inputs and outputs of a network are those that its header describes."""
    known = _detector_values(header) if header.preprocessing.is_whole else _classifier_values(header)
    expected = [value for values in known for value in values]
    got = [*inputs, *outputs]
    if got != expected or len(inputs) != len(known[0]):
        raise ModelFileError(
            f"{path}: the inputs and outputs must be {listed(expected)}, as in the header, got {listed(got)}; "
            "export it again"
        )


def _classifier_values(header: Header) -> tuple[list[Value], list[Value]]:
    """Return the inputs and the outputs of an exported classifier."""
    steps, classes = header.preprocessing, header.task.outputs
    return [Value(PIXELS, steps.dtype, (None, *steps.item_shape))], [
        Value(PROBABILITIES, torch.float32, (None, classes)),
        Value(OUTPUTS, torch.float32, (None, classes)),
    ]


def _detector_values(header: Header) -> tuple[list[Value], list[Value]]:
    """Return the inputs and the outputs of an exported detector."""
    steps = header.preprocessing
    outputs = []
    for name in result_names(header):
        form = RESULT_FORMS[name]
        outputs.append(Value(name, form.dtype, tuple(None if isinstance(n, str) else n for n in form.shape)))
    inputs = [
        Value(PIXELS, steps.dtype, (steps.channels, None, None)),
        Value(SCORE_THRESHOLD, torch.float32, ()),
    ]
    return inputs, outputs


def check_size(path: Path, name: str, shape: Sequence[int]) -> None:
    """Raise ModelFileError if a value that is computed for one image has a negative size, or too many elements."""
    if not 0 <= prod(shape) <= MAX_ELEMENTS:
        raise ModelFileError(
            f"{path}: each value must have at most {MAX_ELEMENTS:,} elements for one image, got {prod(shape):,} in "
            f"{name!r}"
        )


def check_decoding(path: Path, header: Header, engine: ExportedEngine) -> None:
    """Run an exported network on one image, and raise ModelFileError unless its results are as the header describes.

    Probabilities must be the outputs, decoded by the task with the calibration of the header. Objects must be inside of
    the image, and of one of the classes.
    """
    check = _check_objects if header.preprocessing.is_whole else _check_probabilities
    try:
        check(path, header, engine)
    except EngineError as error:
        raise ModelFileError(f"{path}: cannot be run: {error}") from error


def _check_probabilities(path: Path, header: Header, engine: ExportedEngine) -> None:
    probabilities, outputs = engine.decoded(example_pixels(header, 1))
    shape = (1, header.task.outputs)
    if tuple(outputs.shape) != shape or tuple(probabilities.shape) != shape:
        raise ModelFileError(f"{path}: the outputs must be of shape {shape}, got {tuple(outputs.shape)}")
    if not outputs.isfinite().all():
        raise ModelFileError(f"{path}: the outputs must be finite, got NaN or infinity; the weights are damaged")
    difference = (header.task.decode(outputs, header.calibration) - probabilities).abs().amax()
    if not difference <= MAX_DIFFERENCE:
        raise ModelFileError(
            f"{path}: the probabilities must be those of the task and calibration in the header, got a difference of "
            f"{difference:.1g}; export it again"
        )


def _check_objects(path: Path, header: Header, engine: ExportedEngine) -> None:
    (image,) = example_inputs(header, 1)
    (found,) = engine.outputs([image])
    height, width = image.shape[-2:]
    count, boxes, scores = len(found["boxes"]), found["boxes"], found["scores"]
    for name, values in found.items():
        size = (count, 1, height, width) if name == "masks" else (count, *values.shape[1:])
        if tuple(values.shape) != size:
            raise ModelFileError(f"{path}: {name} must be of shape {size}, got {tuple(values.shape)}")
    limits = torch.tensor([width, height] * 2) + 1
    inside = bool(((boxes >= -1) & (boxes <= limits)).all()) and bool(((scores >= 0) & (scores <= 1)).all())
    if not inside or not bool(((found["labels"] >= 1) & (found["labels"] <= header.task.outputs)).all()):
        raise ModelFileError(
            f"{path}: objects must be inside of the image, with scores from 0 to 1 and labels of the "
            f"{header.task.outputs:,} classes; the weights are damaged"
        )
