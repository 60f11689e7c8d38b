"""The ONNX Runtime engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from convatlas.core.ragged import Inputs
from convatlas.engines.deploy import OUTPUTS, PIXELS, PROBABILITIES, SCORE_THRESHOLD
from convatlas.engines.engine import runtime_errors
from convatlas.system.extras import import_optional
from convatlas.tasks.table import pluralize


class OnnxRuntimeEngine:
    """ONNX Runtime on the CPU."""

    name = "onnxruntime"

    def __init__(self, graph: bytes, *, threads: int = 0) -> None:
        """graph: serialized, see `onnx_graph.export_graph`. threads: torch's number by default."""
        runtime = import_optional("onnxruntime", "convatlas[onnx]", where="engine onnxruntime")
        self.graph = graph  # for pickle; the session keeps it anyway
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self.threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        # threads that spin take the cores from other processes, and from torch's own threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        with runtime_errors(f"engine {self.name}", "cannot run this graph"):
            self.session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __str__(self) -> str:
        return f"{self.name}, {pluralize(self.threads, 'thread')}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restart, (self.graph, self.threads)

    def __deepcopy__(self, memo: object) -> OnnxRuntimeEngine:
        return self  # nothing changes it

    def outputs(self, pixels: Inputs) -> Any:
        if isinstance(pixels, Tensor):
            return torch.from_numpy(self.run(pixels, OUTPUTS)[0])
        return [self.detect(image) for image in pixels]

    def detect(self, pixels: Tensor, *, score_threshold: float | None = None) -> dict[str, Tensor]:
        """Return the objects of one image (channels, h, w); see `as_torchvision`.

        score_threshold: objects have a higher score; the default is the network's.
        """
        inputs = {PIXELS: pixels.numpy()}
        if score_threshold is not None:
            inputs[SCORE_THRESHOLD] = torch.tensor(score_threshold).numpy()
        names = [output.name for output in self.session.get_outputs()]
        values = self._run(inputs, names)
        return as_torchvision({name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)})

    def decoded(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probabilities and the outputs of the graph."""
        probabilities, outputs = map(torch.from_numpy, self.run(pixels, PROBABILITIES, OUTPUTS))
        return probabilities, outputs

    def run(self, pixels: Tensor, *names: str) -> list[Any]:
        """Return the values with these names as arrays."""
        return self._run({PIXELS: pixels.numpy()}, names)

    def _run(self, inputs: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
        with runtime_errors(f"engine {self.name}", "cannot run this graph"):
            values: list[Any] = self.session.run(list(names), dict(inputs))
        return values


def as_torchvision(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs of an exported detector as torchvision's detectors return them; masks are 0 or 1."""
    outputs = {**found, "labels": found["labels"] + 1}
    if "masks" in found:
        outputs["masks"] = found["masks"].unsqueeze(1)
    if "keypoints" in found:
        points = found["keypoints"]
        outputs["keypoints_scores"] = points[..., 2]
        outputs["keypoints"] = torch.cat([points[..., :2], torch.ones_like(points[..., 2:])], -1)
    return outputs


def _restart(graph: bytes, threads: int) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(graph, threads=threads)
