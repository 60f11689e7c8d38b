"""Statistics of the layers of a network in one step of a training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics of one layer in one step; None where a number does not exist.

    path: as in `named_modules`. kind: the class of the layer.
    activation_mean, activation_std: of its outputs, over images, channels and positions.
    activation_gradient_rms: root mean square of the gradient of the loss with respect to its outputs; not in trainings.
    dead_share: of activation functions, the share of units (channels) that pass no gradient for any image and position:
        the output is 0 of ReLU, or at a limit of sigmoid or tanh. Not of those in a gate (`Product`), such as
        squeeze-and-excitation: where a gate is constant, gradients pass nevertheless.
    gradient_norm, weight_norm: L2 norms of the weight and of its gradient, before clipping; without biases.
    update_ratio: L2 norm of the change of the weight in this step, divided by that of the weight.
    effective_rank: of the inputs of the last layer with weights, see `effective_rank`; max_rank: the largest possible.
    finite: whether outputs and gradient are finite; statistics that are not are None.
    """

    path: str
    kind: str
    activation_mean: float | None = None
    activation_std: float | None = None
    activation_gradient_rms: float | None = None
    dead_share: float | None = None
    gradient_norm: float | None = None
    weight_norm: float | None = None
    update_ratio: float | None = None
    effective_rank: float | None = None
    max_rank: int | None = None
    finite: bool = True


@dataclass(frozen=True)
class MeasuredStep:
    """A training step whose layers were measured. epoch: from 1 on. step: over the whole training, from 0 on."""

    epoch: int
    step: int
    lr: float
    layers: tuple[LayerStatistics, ...]
