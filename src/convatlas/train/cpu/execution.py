"""How a training step is executed: memory format and precision of its tensors, compilation, kernels, threads, memory.

They change the time of a step and the rounding of its result, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from convatlas.core.compose import Chain
from convatlas.core.memory_format import CHANNELS_LAST
from convatlas.core.network import Network
from convatlas.core.record import Record
from convatlas.errors import ConvatlasError, RunError
from convatlas.train.cpu import (
    boxes_fp32,
    conv3d,
    depthwise_bf16,
    frozen_norm,
    fused_norm,
    linear_fp32,
    memory,
    rpn_head,
)
from convatlas.train.swap_forward import restore_forwards

MemoryFormat = Literal["contiguous", "channels_last", "mkldnn"]
"""Order of activations in memory: by channel, by pixel, or in oneDNN's blocks of 8 or 16 channels."""

Precision = Literal["float32", "bfloat16"]
"""Of convolutions and matrix products under autocast; weights, norms and losses are float32 in any case."""

MKLDNN_LAYERS = (nn.Sequential, Chain, nn.Conv2d, nn.MaxPool2d, nn.ReLU)


@dataclass(frozen=True)
class ExecutionPlan(Record):
    """How the steps of a training are executed.

    compiled: with torch.compile. fused_norms: with the fused batch-norm kernels of `fused_norm`, on CPUs with a C
    compiler and in channels_last. On CPUs in channels_last, detectors also run with `frozen_norm` and `rpn_head`, and
    networks for clips with `conv3d`; contiguous float32 is the plain network.
    """

    error: ClassVar[type[ConvatlasError]] = RunError

    memory_format: MemoryFormat = "channels_last"
    precision: Precision = "float32"
    compiled: bool = False
    fused_norms: bool = True

    def __str__(self) -> str:
        return f"{self.memory_format}, {self.precision}" + (", compiled" if self.compiled else "")

    def place(self, network: Network) -> Network:
        """Convert the weights to the memory format and swap in the layers' faster forward passes; return the network.

        `restore_forwards` undoes the swaps.
        """
        restore_forwards(network)
        device = next(network.parameters()).device
        channels_last = self.memory_format == "channels_last"
        if self.uses_fused_norms(device):
            fused_norm.install(network)
        if self.precision == "bfloat16":
            boxes_fp32.install(network)
        if device.type == "cpu" and self.precision == "bfloat16":
            conv3d.install_exact(network)
        if device.type == "cpu" and not self.compiled:
            if self.precision == "bfloat16":
                linear_fp32.install(network)
            if self.uses_fast_conv3d(device):
                conv3d.install_fast(network)
            if channels_last:
                if self.precision == "bfloat16":
                    depthwise_bf16.install(network)
                frozen_norm.install(network)
                rpn_head.install(network)
        axes = 1 + len(network.input_shape)
        return network.to(memory_format=CHANNELS_LAST[axes] if channels_last else torch.contiguous_format)

    def uses_fused_norms(self, device: torch.device) -> bool:
        """Return whether this plan runs batch norms with the fused kernels on the device, if they can be compiled."""
        return device.type == "cpu" and self.fused_norms and self.memory_format == "channels_last" and not self.compiled

    def uses_fast_conv3d(self, device: torch.device) -> bool:
        """Return whether this plan runs 3-D convolutions on the device in another way than torch, if it is faster."""
        return device.type == "cpu" and self.memory_format == "channels_last" and not self.compiled

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context in which a forward pass runs."""
        return torch.autocast(device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()

    def forward(self, network: Network) -> Callable[..., Any]:
        """Return the forward pass of a placed network under this plan; it shares the network's parameters."""
        if self.memory_format == "mkldnn":
            return _mkldnn_forward(network)
        return torch.compile(network) if self.compiled else network


def supports_mkldnn(network: Network, device: torch.device) -> bool:
    """Return whether the network can train in oneDNN's blocked memory format on the device.

    Only plain convolutions, max pooling and ReLU have forward and backward passes there.
    """
    layers = (*network.stem.modules(), *network.stages.modules())
    supported = all(type(layer) in MKLDNN_LAYERS and _has_mkldnn_settings(layer) for layer in layers)
    plain = network.runs_in_sequence and not network.auxiliary
    return device.type == "cpu" and supported and plain and torch.backends.mkldnn.is_available()


def _has_mkldnn_settings(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if isinstance(layer, nn.MaxPool2d):
        return layer.dilation in (1, (1, 1)) and not (layer.ceil_mode or layer.return_indices)
    return True


def _mkldnn_forward(network: Network) -> Callable[[Tensor], Tensor]:
    """Return the forward pass with stem and stages in the blocked memory format.

    Pooling and ReLU keep that format, which makes small networks faster (docs/benchmarks.md).
    """
    stem, stages, head = network.stem, network.stages, network.head

    def forward(x: Tensor) -> Tensor:
        features: Tensor = stages(stem(x.to_mkldnn()))
        output: Tensor = head(features.to_dense())
        return output

    return forward


@contextmanager
def process_settings(*, threads: int | None = None, retain_malloc: bool = False) -> Iterator[None]:
    """Change settings of the whole process, and restore the previous ones at the end of the block.

    threads: number of CPU threads of torch. retain_malloc: see `memory.retain_malloc`. The states of torch's random
    number generators on all devices are restored, too, whatever the block draws or seeds.
    """
    threads_before = torch.get_num_threads()
    states = _rng_states()
    retained = retain_malloc and memory.retain_malloc()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        if retained:
            memory.restore_malloc()
        if threads is not None:
            torch.set_num_threads(threads_before)
        for device, state in states.items():
            _set_rng_state(device, state)


def _rng_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{i}": torch.cuda.get_rng_state(i) for i in range(torch.cuda.device_count())}
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def _set_rng_state(device: str, state: Tensor) -> None:
    if device == "cpu":
        torch.set_rng_state(state)
    elif device == "mps":
        torch.mps.set_rng_state(state)
    else:
        torch.cuda.set_rng_state(state, device)
