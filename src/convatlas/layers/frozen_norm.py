"""Batch normalization whose statistics, scale and shift are constants: bodies of detectors are trained with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convatlas.core.cost_rules import same
from convatlas.core.outline import always
from convatlas.core.signal import rule


class FrozenBatchNorm2d(nn.Module):
    """x * scale + shift, computed from the four buffers of a batch norm; nothing of it is trained.

    The arithmetic is that of `torchvision.ops.FrozenBatchNorm2d`, operation by operation.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), value))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, variance = (
            each.reshape(1, -1, 1, 1) for each in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        scale = weight * (variance + self.eps).rsqrt()
        shift = bias - mean * scale
        return x * scale + shift

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


rule.register(FrozenBatchNorm2d, same)
always(FrozenBatchNorm2d, "BN")


def freeze_norms(tree: nn.Module) -> None:
    """Replace every 2-D batch norm of a tree by a frozen one with the same values."""
    for layer in list(tree.modules()):
        for name, child in layer.named_children():
            if type(child) is nn.BatchNorm2d and child.running_mean is not None:
                frozen = FrozenBatchNorm2d(child.num_features, child.eps)
                known = child.state_dict()
                frozen.load_state_dict({key: known.get(key, value) for key, value in frozen.state_dict().items()})
                setattr(layer, name, frozen)


def set_eps(tree: nn.Module, eps: float) -> None:
    """Set the number that is added to the variances in every 2-D batch norm of a tree, frozen or not."""
    for layer in tree.modules():
        if isinstance(layer, FrozenBatchNorm2d | nn.BatchNorm2d):
            layer.eps = eps
