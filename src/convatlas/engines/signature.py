"""What an exported network takes and returns, and the checks that this is what its header describes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from convatlas.engines.deploy import OUTPUTS, PIXELS, PROBABILITIES, example_pixels
from convatlas.errors import EngineError, ModelFileError, listed, shorten
from convatlas.weights.modelfile import Header

MAX_ELEMENTS = 2**28
"""Maximum number of elements of each value that an exported network computes for one image: 1 GiB in float32."""

MAX_DIFFERENCE = 1e-4
"""Maximum difference between probabilities and decoded outputs."""


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
    steps, classes = header.preprocessing, header.task.outputs
    expected = [
        Value(PIXELS, steps.dtype, (None, steps.channels, steps.resolution, steps.resolution)),
        Value(PROBABILITIES, torch.float32, (None, classes)),
        Value(OUTPUTS, torch.float32, (None, classes)),
    ]
    got = [*inputs, *outputs]
    if got != expected or len(inputs) != 1:
        raise ModelFileError(
            f"{path}: the inputs and outputs must be {listed(expected)}, as in the header, got {listed(got)}; "
            "export it again"
        )


def check_size(path: Path, name: str, shape: Sequence[int]) -> None:
    """Raise ModelFileError if a value that is computed for one image has a negative size, or too many elements."""
    if not 0 <= prod(shape) <= MAX_ELEMENTS:
        raise ModelFileError(
            f"{path}: each value must have at most {MAX_ELEMENTS:,} elements for one image, got {prod(shape):,} in "
            f"{name!r}"
        )


def check_decoding(path: Path, header: Header, run: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """Run an exported network on one image, and raise ModelFileError unless its results are as the header describes.

    run: from pixels to probabilities and outputs. The probabilities must be the outputs, decoded by the task with the
    calibration of the header.
    """
    try:
        probabilities, outputs = run(example_pixels(header, 1))
    except EngineError as error:
        raise ModelFileError(f"{path}: cannot be run: {error}") from error
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
