"""Signal propagation at initialization: how activations and gradients change from layer to layer of random weights.

The variance of activations on the way forward, and that of gradients on the way back, should neither vanish nor explode
(Glorot and Bengio 2010; He et al. 2015): a network whose gradients reach its first layers can be trained.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from convatlas.core.network import Network, feature_map
from convatlas.core.table import Table
from convatlas.draw.layer_flow import FlowLine, flow_along_network
from convatlas.explanation.causes import Cause, find_causes
from convatlas.explanation.flow import layer_statistics
from convatlas.explanation.rules import TrainingFacts, relative_gradient
from convatlas.explanation.statistics import LayerStatistics, MeasuredStep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INPUTS = 8
"""Number of images, or clips, of noise."""


@dataclass(frozen=True, repr=False)
class Propagation:
    """Signal propagation through a network with random weights. Prints as text.

    network: its name. inputs: what it read, in words. gradient: of what, in words. layers: those that ran, in order.
    classes: number of classes, of inputs that have some.
    """

    network: str
    inputs: str
    gradient: str
    layers: tuple[LayerStatistics, ...]
    classes: int = 0

    @property
    def causes(self) -> tuple[Cause, ...]:
        """What goes wrong, the first cause first."""
        step = MeasuredStep(0, 0, 0.0, self.layers)
        return find_causes([step], TrainingFacts(max_lr=0.0, classes=self.classes))

    def table(self) -> Table:
        """Return the statistics of the layers with weights."""
        columns = ("layer", "kind", "activation std", "gradient rms", "relative gradient")
        rows = [
            (
                layer.path, layer.kind, _text(layer.activation_std), _text(layer.activation_gradient_rms),
                _text(relative_gradient(layer)),
            )
            for layer in self.layers if layer.weight_norm is not None
        ]  # fmt: skip
        return Table(columns, tuple(rows), right=frozenset((2, 3, 4)))

    def verdict(self) -> str:
        """Return what goes wrong, the first cause first, or that nothing does."""
        if not self.causes:
            return "nothing is wrong: neither activations nor gradients vanish or explode"
        return "\n\n".join(cause.text() for cause in self.causes)

    def figure(self, path: str | Path | None = None) -> Figure:
        """Draw activations and gradients by layer."""
        layers = [layer for layer in self.layers if layer.weight_norm is not None]
        lines = (
            FlowLine("standard deviation of the activations", [layer.activation_std for layer in layers]),
            FlowLine(
                "root mean square of their gradients", [layer.activation_gradient_rms for layer in layers], dashed=True
            ),
        )
        return flow_along_network(
            lines, [layer.path for layer in layers], title=f"{self.network} at initialization, {self.inputs}", path=path
        )

    def to_plain(self) -> dict[str, Any]:
        """Return everything as dicts, lists, numbers and strings."""
        return {
            "network": self.network, "inputs": self.inputs, "gradient": self.gradient,
            "causes": [cause.to_plain() for cause in self.causes],
            "per_layer": [asdict(layer) for layer in self.layers],
        }  # fmt: skip

    def __str__(self) -> str:
        head = f"{self.network} at initialization: {self.inputs}; gradients of {self.gradient}"
        return f"{head}\n\n{self.verdict()}\n\n{self.table()}"

    def __repr__(self) -> str:
        return f"{self.network} at initialization\n{self.verdict()}"


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.2e}"


def propagate(network: nn.Module, loss: Callable[[], Tensor]) -> tuple[LayerStatistics, ...]:
    """Return the statistics of the layers that run, in training mode.

    loss: runs the network and returns the loss. The random numbers of dropout are those of the caller's generator.
    """
    training = network.training
    network.train()
    try:
        measured = layer_statistics(network, loss)
    finally:
        network.train(training)
    return tuple(layer for layer in measured if layer.activation_mean is not None or not layer.finite)


def propagate_noise(name: str, network: Network, *, seed: int = 0, inputs: int = INPUTS) -> Propagation:
    """Measure a network on noise of mean 0 and variance 1, with a gradient of mean 0 and variance 1 at the outputs.

    Of a detector, its body runs, and the outputs are those of the last stage.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(inputs, *network.input_shape, generator=generator)
    sizes = " x ".join(map(str, network.input_shape))

    body = nn.Sequential(OrderedDict(stem=network.stem, stages=network.stages))
    module = network if network.runs_in_sequence else body

    def loss() -> Tensor:
        y = feature_map(module(noise))
        return (y * torch.randn(y.shape, generator=generator)).sum()

    layers = propagate(module, loss)
    # all images of noise are alike: their features say nothing about the rank of those of images
    layers = tuple(replace(layer, effective_rank=None, max_rank=None) for layer in layers)
    return Propagation(
        name, f"{inputs} inputs of noise with variance 1, {sizes}", "noise with variance 1 at the outputs", layers
    )
