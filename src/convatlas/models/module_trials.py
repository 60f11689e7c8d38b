"""What an own module is like, found out by running it on a few images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer

from convatlas.core.memory_format import CHANNELS_LAST
from convatlas.errors import SpecError, foreign_errors


def copies_of_special_tensors(module: nn.Module) -> dict[int, Any]:
    """Return the memo for `copy.deepcopy` of a module: copies of what torch refuses to copy.

    These are lazy buffers, and attributes that are part of a graph: outputs of layers that a forward pass keeps.
    """
    values = [value for layer in module.modules() for value in vars(layer).values()]
    memo: dict[int, Any] = {id(each): each.detach() for each in values if isinstance(each, Tensor) and not each.is_leaf}
    for each in module.buffers():
        if isinstance(each, UninitializedBuffer):
            memo[id(each)] = UninitializedBuffer(device=each.device, dtype=each.dtype)  # type: ignore[call-arg]
    return memo


@torch.no_grad()
def run_trial(module: nn.Module, x: Tensor, name: str) -> int:
    """Return the number of outputs of a module for images x; raises SpecError for what it raises or returns."""
    shape = tuple(x.shape)
    with torch.random.fork_rng(devices=[]), foreign_errors(name, SpecError, f"fails for images of shape {shape}"):
        outputs = module(x)
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(x) or not outputs.shape[1]:
        found = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        fix = "switch its auxiliary outputs off" if module.training else "wrap it in a module that returns them"
        raise SpecError(f"{name}: must return scores of shape ({len(x)}, classes), got {found}; {fix}")
    return outputs.shape[1]


def find_output_layer(module: nn.Module, x: Tensor, name: str) -> str:
    """Return the path of the last layer with parameters that runs; empty if the module itself has the last ones."""
    last = [""]

    def watch(path: str) -> Any:
        def hook(_: nn.Module, __: Any) -> None:
            last[0] = path

        return hook

    layers = [(path, layer) for path, layer in module.named_modules() if layer._parameters or _is_parametrized(layer)]
    handles = [layer.register_forward_pre_hook(watch(path)) for path, layer in layers]
    try:
        run_trial(module, x, name)
    finally:
        for handle in handles:
            handle.remove()
    return last[0]


def _is_parametrized(layer: nn.Module) -> bool:
    return "parametrizations" in layer._modules


def runs_channels_last(module: nn.Module, x: Tensor) -> bool:
    """Return whether a module runs in the memory format channels_last: `view` often fails there."""
    try:
        channels_last = CHANNELS_LAST[x.ndim]
        module = module.to(memory_format=channels_last)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            outputs: Tensor = module(x.contiguous(memory_format=channels_last))
            outputs.sum().backward()
    except Exception:  # the module's own code
        return False
    return True


def digest_kinds(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, types and shapes of a state dict."""
    return hashlib.sha256("\n".join(sorted(_tensor_kinds(state))).encode()).hexdigest()


def differing_tensors(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that only one state has, or that have another type or shape in it."""
    return sorted({kind.partition(" ")[0] for kind in _tensor_kinds(state) ^ _tensor_kinds(other)})


def _tensor_kinds(state: Mapping[str, Tensor]) -> set[str]:
    return {f"{name} {tensor.dtype} {tuple(tensor.shape)}" for name, tensor in state.items()}
