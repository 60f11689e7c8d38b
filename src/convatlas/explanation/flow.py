"""Flow of activations and gradients: statistics of each layer in one forward and backward pass.

Two kinds of layers have statistics: those with weights (convolutions, linear layers, capsules), and activation
functions. Norms, pooling and routing have none. Parts that only training uses (`auxiliary`) are not measured.

Statistics read tensors and draw no random numbers: a training step with a `Probe` has the same bits as one without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.utils.hooks import RemovableHandle

from convatlas.core.compose import Product
from convatlas.core.network import Network
from convatlas.explanation.statistics import LayerStatistics
from convatlas.layers.lenet import ScaledTanh

MAX_IMAGES = 64
"""Statistics of activations are over at most so many images of a step."""

SATURATED = 0.99
"""A sigmoid or tanh at this share of its limits, or beyond, passes less than 4 % of the gradient that it does at 0."""


def _bounded(low: float, high: float) -> Callable[[Tensor], Tensor]:
    return lambda y: ((y - low) * (high - y)).relu()


STEEPNESS: dict[type[nn.Module], Callable[[Tensor], Tensor] | None] = {
    nn.ReLU: lambda y: y,
    nn.ReLU6: _bounded(0, 6),
    nn.Hardsigmoid: _bounded(0, 1),
    nn.Hardswish: torch.abs,
    nn.SiLU: lambda y: (y.abs() - 1e-3).relu(),
    nn.Sigmoid: _bounded(1 - SATURATED, SATURATED),
    nn.Tanh: _bounded(-SATURATED, SATURATED),
    ScaledTanh: _bounded(-1.7159 * SATURATED, 1.7159 * SATURATED),
    nn.ELU: None,
    nn.GELU: None,
    nn.LeakyReLU: None,
    nn.PReLU: None,
    nn.Softplus: None,
}
"""Activation function -> of its output, a number that is 0 where it is flat and positive elsewhere; None if it is never
flat. They are summed: sums over images and positions are the fastest reductions of torch on CPUs."""


class Probe(AbstractContextManager["Probe"]):
    """Measures the layers of a network in one training step.

    Run the forward and the backward pass inside of `with probe:`, which installs hooks; then the rest of the step::

        probe = Probe(network)
        with probe:
            criterion(network(inputs), labels).backward()
        probe.read_gradients()
        optimizer.step()
        probe.read_update()
        layers = probe.statistics()

    activations: measure activations; without, no hook is installed, as compiled networks need it, and activation
        functions have no statistics.
    activation_gradients: measure the gradients of activations, which takes longer.
    """

    def __init__(self, network: nn.Module, *, activations: bool = True, activation_gradients: bool = False) -> None:
        inner = "auxiliary." if isinstance(network, Network) else "\0"
        layers = {path: layer for path, layer in network.named_modules() if not path.startswith(inner)}
        self._weights = {path: weights for path, layer in layers.items() if (weights := list(_weights(layer)))}
        self._layers = {
            path: layer
            for path, layer in layers.items()
            if path in self._weights or (activations and type(layer) in STEEPNESS)
        }
        gates = {each for module in network.modules() if isinstance(module, Product) for each in module.modules()}
        self._steepness = {
            path: STEEPNESS[type(layer)]
            for path, layer in self._layers.items()
            if type(layer) in STEEPNESS and layer not in gates
        }
        self._last = next(reversed(self._weights), "")
        self._activations, self._activation_gradients = activations, activation_gradients
        self._outputs: dict[str, _Outputs] = {}
        self._features: list[Tensor] = []
        self._weights_before: dict[str, list[Tensor]] = {}
        self._norms: dict[str, dict[str, Tensor]] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Probe:
        for path, layer in self._layers.items() if self._activations else ():
            self._handles.append(layer.register_forward_hook(self._hook(path)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, path: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        outputs = self._outputs[path] = _Outputs()

        def hook(layer: nn.Module, inputs: tuple[Any, ...], y: Any) -> None:
            if not torch.is_grad_enabled() or not isinstance(y, Tensor) or y.ndim < 2:
                return
            if self._activation_gradients and y.requires_grad:
                y.register_hook(outputs.add_gradient)
            if y.shape[0] and outputs.images < MAX_IMAGES:
                outputs.add(_dense(y.detach()), self._steepness.get(path))
                if path == self._last:
                    self._features.append(_rows(layer, _dense(inputs[0].detach())[:MAX_IMAGES]))

        return hook

    @torch.no_grad()
    def read_gradients(self) -> None:
        """Measure gradients and weights; keep a copy of the weights for `read_update`."""
        gradients = {
            path: [each.grad for each in weights if each.grad is not None] for path, weights in self._weights.items()
        }
        self._norms["gradient_norm"] = _norms({path: each for path, each in gradients.items() if each})
        self._norms["weight_norm"] = _norms(self._weights)
        trained = self._norms["gradient_norm"]
        self._weights_before = {path: [each.detach().clone() for each in self._weights[path]] for path in trained}

    @torch.no_grad()
    def read_update(self) -> None:
        """Measure the change of the weights since `read_gradients`."""
        for path, before in self._weights_before.items():
            for old, new in zip(before, self._weights[path], strict=True):
                old.sub_(new)
        self._norms["update_norm"] = _norms(self._weights_before)
        self._weights_before = {}

    @torch.no_grad()
    def statistics(self) -> tuple[LayerStatistics, ...]:
        """Return the statistics of all layers, in the order of the tree."""
        tensors: dict[str, dict[str, Tensor]] = {path: {} for path in self._layers}
        for name, norms in self._norms.items():
            for path, norm in norms.items():
                tensors[path][name] = norm
        for path, outputs in self._outputs.items():
            tensors[path] |= outputs.tensors()
        max_rank = None
        if self._features:
            features = torch.cat(self._features)[:MAX_IMAGES]
            if len(features) > 1:
                tensors[self._last]["effective_rank"] = effective_rank(features)
                max_rank = min(features.shape)
        values = _to_numbers(tensors)
        return tuple(
            _as_record(path, layer, values[path], max_rank if path == self._last else None)
            for path, layer in self._layers.items()
        )


def layer_statistics(
    network: nn.Module,
    loss: Callable[[], Tensor],
    *,
    optimizer: optim.Optimizer | None = None,
    activation_gradients: bool = True,
) -> tuple[LayerStatistics, ...]:
    """Return the statistics of the layers of a network in one forward and backward pass.

    loss: runs the network and returns the loss, such as `lambda: F.cross_entropy(network(images), labels)`.
    optimizer: makes a step, so that there are update ratios; without, weights and buffers stay as they are.
    The mode (training or evaluation) of the network is up to the caller; its gradients are None afterwards.
    """
    buffers = [buffer.clone() for buffer in network.buffers()]
    network.zero_grad()
    probe = Probe(network, activation_gradients=activation_gradients)
    with torch.enable_grad(), probe:
        loss().backward()
    probe.read_gradients()
    if optimizer is not None:
        optimizer.step()
        probe.read_update()
    else:
        for buffer, before in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(before)
    network.zero_grad()
    return probe.statistics()


def effective_rank(features: Tensor) -> Tensor:
    """Return exp(entropy of the singular values divided by their sum) of a matrix (Roy and Vetterli 2007).

    It is in [1, min(rows, columns)]; 1 if all rows are equal, as after a rank collapse.
    """
    wide = features if features.device.type == "mps" else features.double()
    if not wide.isfinite().all():
        return wide.new_tensor(math.nan)
    gram = wide @ wide.T if len(wide) <= wide.shape[1] else wide.T @ wide
    sizes = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    shares = sizes / sizes.sum().clamp(min=torch.finfo(wide.dtype).tiny)
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy.exp()


class _Outputs:
    """Sums over the outputs of a layer, which may run several times in a step."""

    def __init__(self) -> None:
        self.images = self.gradients = 0
        self.parts: list[tuple[int, Tensor, Tensor]] = []
        self.steepness: Tensor | None = None
        self.squares: list[Tensor] = []

    def add(self, y: Tensor, steepness: Callable[[Tensor], Tensor] | None) -> None:
        y = y[: MAX_IMAGES - self.images].float()
        mean = y.mean()
        self.parts.append((y.numel(), mean, torch.linalg.vector_norm(y - mean)))
        self.images += len(y)
        if steepness is not None:
            units = steepness(y).sum([axis for axis in range(y.ndim) if axis != 1])
            self.steepness = units if self.steepness is None else self.steepness + units

    def add_gradient(self, gradient: Tensor) -> None:
        self.squares.append(torch.linalg.vector_norm(_dense(gradient).float()).square())
        self.gradients += gradient.numel()

    def tensors(self) -> dict[str, Tensor]:
        """Return the statistics by name."""
        values: dict[str, Tensor] = {}
        if self.parts:
            values["activation_mean"], values["activation_std"] = _mean_and_std(self.parts)
        if self.squares:
            values["activation_gradient_rms"] = (sum(self.squares, torch.zeros(())) / max(1, self.gradients)).sqrt()
        if self.steepness is not None:
            values["dead_share"] = (self.steepness == 0).float().mean()
        return values


def _mean_and_std(parts: Sequence[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of values in parts: (number, mean, norm of what is left without the mean)."""
    if len(parts) == 1:
        number, mean, norm = parts[0]
        return mean, norm / math.sqrt(number)
    numbers = torch.tensor([float(number) for number, _, _ in parts], device=parts[0][1].device)
    means, norms = (torch.stack(values) for values in list(zip(*parts, strict=True))[1:])
    mean = (numbers * means).sum() / numbers.sum()
    squares = norms.square() + numbers * (means - mean).square()
    return mean, (squares.sum() / numbers.sum()).sqrt()


def _weights(layer: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of a layer itself that are matrices or kernels, but for biases."""
    for name, parameter in layer.named_parameters(recurse=False):
        if parameter.ndim >= 2 and "bias" not in name:
            yield parameter


def _dense(y: Tensor) -> Tensor:
    """Return a tensor in an ordinary memory format."""
    return y.to_dense() if y.is_mkldnn else y


def _rows(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the inputs of a layer as a matrix, a row for each image or region: of maps their means."""
    x = x.float()
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    return x.flatten(2).mean(2) if x.ndim >= 4 else x.flatten(1)


def _norms(tensors: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """Return the L2 norm of the tensors of each layer."""
    each = iter(torch._foreach_norm([tensor for group in tensors.values() for tensor in group]) if tensors else ())
    norms = {path: [next(each) for _ in group] for path, group in tensors.items()}
    return {path: group[0] if len(group) == 1 else torch.stack(group).norm() for path, group in norms.items()}


def _to_numbers(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, float]]:
    """Return scalars as numbers, with one transfer from the device."""
    scalars = [scalar.reshape(()).float() for named in tensors.values() for scalar in named.values()]
    numbers = iter(torch.stack(scalars).tolist() if scalars else ())
    return {path: {name: next(numbers) for name in named} for path, named in tensors.items()}


def _as_record(path: str, layer: nn.Module, values: dict[str, float], max_rank: int | None) -> LayerStatistics:
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    is_finite = len(finite) == len(values)
    weight, update = finite.get("weight_norm"), finite.pop("update_norm", None)
    if weight and update is not None:
        finite["update_ratio"] = update / weight
    return LayerStatistics(path, type(layer).__name__, **finite, max_rank=max_rank, finite=is_finite)
