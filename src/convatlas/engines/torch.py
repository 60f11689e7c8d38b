"""The PyTorch engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from convatlas.core.network import Network, flatten_chains
from convatlas.engines.folding import fold_norms
from convatlas.weights.modelfile import Header


class TorchEngine:
    """PyTorch with folded norms, in one memory format; or torch.compile, which takes minutes at the first batch."""

    def __init__(
        self, network: Network, header: Header, *, memory_format: str = "channels_last", threads: int = 0,
        compiled: bool = False, batch: int = 0,
    ) -> None:  # fmt: skip
        self.name = "compile" if compiled else "torch"
        self.memory_format, self.threads = memory_format, threads
        self.batch = batch if compiled else 0
        self.device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
        images = len(network.input_shape) == 3
        self.format = torch.channels_last if memory_format == "channels_last" and images else torch.contiguous_format
        steps = header.preprocessing
        self.mean = torch.tensor(steps.mean, device=self.device).mul_(255).view(-1, 1, 1)
        self.scale = torch.tensor(steps.std, device=self.device).mul_(255).reciprocal_().view(-1, 1, 1)
        twin = fold_norms(network, memory_format=self.format)
        self.network: Any = nn.Sequential(*flatten_chains((twin.stem, twin.stages, twin.head)))
        if compiled:
            self.network = torch.compile(self.network, options={"freezing": True})

    def __str__(self) -> str:
        return f"{self.name}, {self.memory_format}, {self.threads or torch.get_num_threads()} threads"

    @torch.inference_mode()
    def outputs(self, pixels: Tensor) -> Tensor:
        with torch_threads(self.threads):
            if not self.batch:
                return self._outputs(pixels)
            with torch.no_grad():  # compiled for one batch size
                return run_in_full_batches(self._outputs, pixels, self.batch)

    def _outputs(self, pixels: Tensor) -> Tensor:
        # bit-identical to Preprocessing.normalize, with constants that are computed once
        inputs = pixels.to(self.device, torch.float32, copy=True).sub_(self.mean).mul_(self.scale)
        inputs = inputs.contiguous(memory_format=self.format)
        return cast(Tensor, self.network(inputs).float().cpu())


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

    The last batch is padded with copies of its first image.
    """
    outputs = []
    for part in pixels.split(batch):
        missing = batch - len(part)
        whole = torch.cat([part, part[:1].expand(missing, *part.shape[1:])]) if missing else part
        outputs.append(run(whole)[: len(part)])
    return torch.cat(outputs)
