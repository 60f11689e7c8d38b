"""The PyTorch engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, cast

import torch
from torch import Tensor, nn

from convatlas.core.memory_format import CHANNELS_LAST
from convatlas.core.network import Network, flatten_chains
from convatlas.core.ragged import Inputs, to_device
from convatlas.engines.folding import fold_norms
from convatlas.errors import EngineError, brief
from convatlas.layers.temporal_conv import use_temporal_convolutions
from convatlas.system.devices import is_out_of_memory
from convatlas.tasks.table import pluralize
from convatlas.weights.modelfile import Header

FEWEST_CLIPS, MAX_SMALL_CLIP = 2, 3 * 2**16
"""Smallest batch on CPUs of clips of at most so many values: torch convolves a single small clip without oneDNN."""


class TorchEngine:
    """PyTorch with folded norms, in one memory format; or torch.compile, which takes minutes at the first batch."""

    def __init__(
        self, network: Network, header: Header, *, memory_format: str = "channels_last", threads: int = 0,
        compiled: bool = False, batch: int = 0,
    ) -> None:  # fmt: skip
        self.name = "compile" if compiled else "torch"
        self.memory_format, self.threads = memory_format, threads
        weight = next(network.parameters(), torch.empty(0))
        self.device, self.dtype = weight.device, weight.dtype
        self.fewest = 1 if header.preprocessing.sampling is None or self.device.type != "cpu" else FEWEST_CLIPS
        self.batch = max(batch, self.fewest) if compiled else 0
        axes = 1 + len(network.input_shape)
        channels_last = memory_format == "channels_last" and network.takes_channels_last and axes in CHANNELS_LAST
        self.format = CHANNELS_LAST[axes] if channels_last else torch.contiguous_format
        self.preprocessing = header.preprocessing
        self.mean, self.scale = header.preprocessing.scaling(self.device)
        twin = fold_norms(network, memory_format=self.format)
        twin.compact = True
        if self.format is torch.channels_last_3d and self.device.type == "cpu":
            use_temporal_convolutions(twin)
        self.network: Any = twin
        if twin.runs_in_sequence:
            self.network = nn.Sequential(*flatten_chains((twin.stem, twin.stages, twin.head)))
        self._lock = Lock()
        if compiled:
            self.network = torch.compile(self.network, options={"freezing": True})

    def __str__(self) -> str:
        return f"{self.name}, {self.memory_format}, {pluralize(self.threads or torch.get_num_threads(), 'thread')}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"

    @torch.inference_mode()
    def outputs(self, pixels: Inputs) -> Any:
        try:
            with torch_threads(self.threads):
                if not isinstance(pixels, Tensor):
                    return self._outputs_of_whole(pixels)
                if not self.batch and 0 < len(pixels) < self.fewest and pixels[0].numel() <= MAX_SMALL_CLIP:
                    return run_in_full_batches(self._outputs, pixels, self.fewest)
                if not self.batch:
                    return self._outputs(pixels)
                with self._lock, torch.no_grad():  # compiled for one batch size, by one thread at a time
                    return run_in_full_batches(self._outputs, pixels, self.batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise EngineError(
                f"engine {self.name}: out of memory for a batch of {describe_inputs(pixels)} "
                f"({brief(error)}); use a smaller batch"
            ) from error

    def _outputs(self, pixels: Tensor) -> Tensor:
        # bit-identical to Preprocessing.normalize, with constants that are computed once
        pixels = self.preprocessing.channels_first(pixels)
        inputs = pixels.to(self.device, torch.float32, copy=True).sub_(self.mean).mul_(self.scale)
        inputs = self.preprocessing.rotate(inputs).to(self.dtype).contiguous(memory_format=self.format)
        return cast(Tensor, self.network(inputs).float().cpu())

    def _outputs_of_whole(self, pixels: list[Tensor]) -> Any:
        inputs = self.preprocessing.normalize(to_device(pixels, self.device))
        return to_device(self.network([image.to(self.dtype) for image in inputs]), "cpu")


def describe_inputs(pixels: Inputs) -> str:
    """Return the number of images, or clips, and their size in pixels, in words."""
    largest = max(pixels, key=Tensor.numel)
    height, width = largest.shape[-2:]
    if largest.ndim == 4:
        return f"{pluralize(len(pixels), 'clip')} of {pluralize(len(largest), 'frame')} of {width} px"
    size = f"{width} px" if isinstance(pixels, Tensor) else f"up to {width} x {height} px"
    return f"{pluralize(len(pixels), 'image')} of {size}"


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Set torch's number of threads inside the block; 0 leaves it as it is."""
    before = torch.get_num_threads()
    if count in (0, before):
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_in_full_batches(run: Any, pixels: Tensor, batch: int) -> Tensor:
    """Return outputs (n, ...), computed in batches of exactly `batch` images.

    The last batch is padded with zeros.
    """
    outputs = []
    for part in pixels.split(batch):
        missing = batch - len(part)
        whole = torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part
        outputs.append(run(whole)[: len(part)])
    return torch.cat(outputs)
