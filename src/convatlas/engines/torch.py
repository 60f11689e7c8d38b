"""The PyTorch engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from convatlas.core.compose import unrolled
from convatlas.core.network import Network
from convatlas.engines.folding import folded
from convatlas.weights.modelfile import Header


class Torch:
    """Torch itself: norms folded, in one memory format; or compiled by it, which takes minutes at the first image."""

    def __init__(
        self, network: Network, header: Header, *, layout: str = "channels_last", threads: int = 0,
        compiled: bool = False, batch: int = 0,
    ) -> None:  # fmt: skip
        self.name = "compile" if compiled else "torch"
        self.layout, self.threads = layout, threads
        self.batch = batch if compiled else 0
        self.device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
        images = len(network.input_shape) == 3
        self.format = torch.channels_last if layout == "channels_last" and images else torch.contiguous_format
        steps = header.preprocessing
        self.mean = torch.tensor(steps.mean, device=self.device).mul_(255).view(-1, 1, 1)
        self.scale = torch.tensor(steps.std, device=self.device).mul_(255).reciprocal_().view(-1, 1, 1)
        twin = folded(network, layout=self.format)
        self.network: Any = nn.Sequential(*unrolled((twin.stem, twin.stages, twin.head)))
        if compiled:
            from torch._inductor import config

            config.freezing = True
            self.network = torch.compile(self.network)

    def __str__(self) -> str:
        return f"{self.name}, {self.layout}, {self.threads or torch.get_num_threads()} threads"

    @torch.inference_mode()
    def outputs(self, pixels: Tensor) -> Tensor:
        with threads_of_torch(self.threads):
            if not self.batch:
                return self._outputs(pixels)
            with torch.no_grad():  # compiled for one number of images
                return in_full(self._outputs, pixels, self.batch)

    def _outputs(self, pixels: Tensor) -> Tensor:
        # as Preprocessing.normalize, to the bit, whose constants are made once
        inputs = pixels.to(self.device, torch.float32, copy=True).sub_(self.mean).mul_(self.scale)
        inputs = inputs.contiguous(memory_format=self.format)
        return cast(Tensor, self.network(inputs).float().cpu())


@contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    """Let torch compute with so many threads; as it does anyway, if 0."""
    before = torch.get_num_threads()
    if count in (0, before):
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_full(run: Any, pixels: Tensor, batch: int) -> Tensor:
    """Run pixels in batches that are full: what is missing in the last one is filled up with its first image."""
    found = []
    for part in pixels.split(batch):
        missing = batch - len(part)
        whole = torch.cat([part, part[:1].expand(missing, *part.shape[1:])]) if missing else part
        found.append(run(whole)[: len(part)])
    return torch.cat(found)
