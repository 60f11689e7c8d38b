"""Own modules: any `nn.Module` that computes class scores from images, as a network of this library.

A file stores what such a module is, its class name, input and tensors, but no code: whoever reads the file gives a
module of the same class.
"""

from __future__ import annotations

import copy
import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from convatlas.core.compose import Chain, Layer
from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.record import at_least
from convatlas.core.signal import Signal, Tally, rule
from convatlas.core.spec import Resolution, Spec
from convatlas.errors import SpecError, foreign_errors, listed
from convatlas.models.card import IMAGENET_MEAN, IMAGENET_STD, Card, Variant
from convatlas.models.module_trials import (
    copies_of_special_tensors,
    differing_tensors,
    digest_kinds,
    find_output_layer,
    run_trial,
    runs_channels_last,
)

CROP_SHARE = 0.875
"""Side of the central crop divided by the short side of the resized image."""


@dataclass(frozen=True)
class OwnModule(Spec):
    """What is recorded of an own module.

    module: its class. channels, outputs: numbers of input channels and of class scores. tensors:
    sha256 of names, types and shapes in its state dict.
    """

    module: str
    channels: Annotated[int, at_least(1)]
    outputs: Annotated[int, at_least(1)]
    tensors: str
    resolution: Resolution

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[\w.<>]{0,199}\w", self.module):
            raise SpecError(f"OwnModule: module must be the name of a class, got {self.module!r}")

    @property
    def class_name(self) -> str:
        """The name of the class, without that of its file."""
        return self.module.rpartition(".")[2]

    def build(self, *, classes: int, channels: int) -> Network:
        raise SpecError(
            f"{self.module} is an own module, whose code is in no file; in Python, "
            f"ca.load(FILE, module={self.class_name}(...)); the commands read what ca.export writes, such as ONNX"
        )


class ContiguousInput(Layer):
    """Give images the strides of contiguous ones: those of gray images are ambiguous, and decide on the output's."""

    returns_input = True

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten().view(x.shape)


class OwnNetwork(Network):
    """An own module as the only layer of `stages`; stem and head compute nothing.

    Its output layer is the head in training. chains_run_whole is False: its forward pass may skip layers of a chain, or
    read their outputs.
    """

    chains_run_whole: ClassVar[bool] = False

    def __init__(self, module: nn.Module, input_shape: tuple[int, ...]) -> None:
        super().__init__(stem=nn.Identity(), stages=Chain(module=module), head=nn.Identity(), input_shape=input_shape)
        self.output_layer = ""

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnNetwork:
        memo.update(copies_of_special_tensors(self))
        memo[id(self)] = copied = type(self).__new__(type(self))
        copied.__setstate__(copy.deepcopy(self.__dict__, memo))
        return copied

    @property
    def module(self) -> nn.Module:
        """The module itself."""
        return self.stages.get_submodule("module")

    def file_state(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_file_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.module.load_state_dict(tensors)

    def groups_by_depth(self) -> list[tuple[str, list[nn.Parameter]]]:
        head = self._output_parameters()
        known = set(map(id, head))
        groups = [("stages", [each for each in self.parameters() if id(each) not in known]), ("head", head)]
        return [(path, parameters) for path, parameters in groups if parameters]

    def freeze(self, to: str | None) -> Self:
        """Freeze as every network does; "stages" freezes all but the output layer."""
        super().freeze(None if to == "stages" else to)
        if to == "stages":
            head = set(map(id, self._output_parameters()))
            body = (parameter for parameter in self.parameters() if id(parameter) not in head)
            self._frozen_parameters = [parameter for parameter in body if parameter.requires_grad]
            for parameter in self._frozen_parameters:
                parameter.requires_grad_(False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; batch norms whose weights do not require gradients stay in evaluation mode."""
        super().train(mode)
        for layer in self.modules():
            if isinstance(layer, _BatchNorm) and layer.weight is not None and not layer.weight.requires_grad:
                layer.eval()
        return self

    def remove_output_layer(self) -> None:
        """Let the module return the input of its output layer. Raises SpecError for a module of a single layer."""
        if not self.output_layer:
            name = type(self.module).__name__
            raise SpecError(f"{name}: has no layer in front of the one that computes class scores")
        parent, _, name = self.output_layer.rpartition(".")
        setattr(self.module.get_submodule(parent), name, nn.Identity())

    def _output_parameters(self) -> list[nn.Parameter]:
        return list(self.module.get_submodule(self.output_layer).parameters()) if self.output_layer else []


def wrap_module(module: nn.Module, input_shape: tuple[int, int, int]) -> OwnNetwork:
    """Return a network with a copy of a module, in float32 on the CPU; its `spec` is an `OwnModule`.

    Another copy is run on one and on two images of `input_shape` = (channels, height, width), in evaluation and in
    training mode. Raises SpecError, in one line, if it fails, or does not return scores (n, classes) in both modes.
    """
    name, source = _class_name(module), _unwrapped(module)
    if any(isinstance(each, torch.jit.ScriptModule) for each in source.modules()):
        raise SpecError(f"{name}: must be a module in Python, got TorchScript; give the module that it was made from")
    with foreign_errors(name, SpecError, "cannot be copied"):
        own = copy.deepcopy(source, copies_of_special_tensors(source))
    if any(each.is_meta for each in (*own.parameters(), *own.buffers())):
        raise SpecError(f"{name}: its tensors must have values, got some on the meta device; move it with to_empty()")
    with foreign_errors(name, SpecError, f"there is no memory for images of shape {(2, *input_shape)}"):
        x = torch.rand(2, *input_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    own = own.cpu().float().eval()
    if any(map(is_lazy, (*own.parameters(), *own.buffers()))):
        run_trial(own, x, name)
    trial = copy.deepcopy(own)  # what a forward pass changes, it does not change in `own`
    network = OwnNetwork(own, input_shape)
    network.output_layer = find_output_layer(trial, x, name)
    outputs = run_trial(trial, x[:1], name)
    run_trial(trial.train(), x, f"{name}: in training mode")
    network.takes_channels_last = runs_channels_last(trial, x)
    if not network.takes_channels_last:
        network.stem = ContiguousInput()
    free = {path: each.dtype for path, each in own.named_parameters() if each.requires_grad}
    if not free:
        raise SpecError(f"{name}: must have parameters that require gradients, got none; nothing can be trained")
    if unreal := [path for path, dtype in free.items() if dtype != torch.float32]:
        raise SpecError(f"{name}: its parameters must be real numbers, got complex ones: {listed(unreal)}")
    state, trained = own.state_dict(), trial.state_dict()
    wrong = [key for key, value in state.items() if not isinstance(value, Tensor) or value.layout != torch.strided]
    if wrong:
        raise SpecError(f"{name}: its state dict must consist of dense tensors, got others: {listed(wrong)}")
    if changed := differing_tensors(state, trained):
        raise SpecError(
            f"{name}: a forward pass must not change names, types and shapes of tensors in its state dict, got other "
            f"{listed(changed)}; register such buffers with persistent=False"
        )
    network.spec = OwnModule(_qualified_name(module), input_shape[0], outputs, digest_kinds(state), input_shape[-1])
    return network


def load_module(module: nn.Module, spec: OwnModule, tensors: Mapping[str, Tensor] | None = None) -> OwnNetwork:
    """Return a network of a module of the class, or a class derived from it, and with the tensors that a file records.

    tensors: those of the file, to name the ones that differ. Raises SpecError for another module.
    """
    if not isinstance(module, nn.Module):
        raise SpecError(f"module: must be a torch module, {spec.class_name}(...), got {type(module).__name__}")
    classes = [_plain_name(kind).rpartition(".")[2] for kind in type(_unwrapped(module)).__mro__]
    if spec.class_name not in classes:
        raise SpecError(f"module: must be of the class {spec.class_name}, as in the file, got one of {classes[0]}")
    network = wrap_module(module, (spec.channels, spec.resolution, spec.resolution))
    found = cast(OwnModule, network.spec)
    if (found.tensors, found.outputs) != (spec.tensors, spec.outputs):
        differing = differing_tensors(network.file_state(), tensors) if tensors else []
        raise SpecError(
            f"{found.module}: must have the tensors and the {spec.outputs} outputs of the {spec.module} in the file, "
            f"got other tensors{f' ({listed(differing, 5)})' if differing else ''} and {found.outputs} outputs; create "
            "it with the same arguments"
        )
    return network


@rule.register
def _(layer: ContiguousInput, x: Signal, tally: Tally) -> Signal:
    return tally.add(layer, x, x)


def row_of(spec: OwnModule) -> Variant:
    """Return the defaults of an own module: the preprocessing of ImageNet, and no history."""
    resize = round(spec.resolution / CROP_SHARE)
    steps = Preprocessing(resize=resize, crop=spec.resolution, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return Variant(spec, own_card(spec.class_name), steps.for_channels(spec.channels), classes=spec.outputs)


def own_card(title: str) -> Card:
    """Return the card of a network without a published history."""
    return Card(title, datetime.date.today().year, "not published", ("own",), "A network of one's own.")


def is_as_built(network: Network, built: Network) -> bool:
    """Return whether a network has the layers of another one, in the same order and with the same settings."""
    return _layers_of(network) == _layers_of(built)


def _layers_of(network: Network) -> list[tuple[str, type, str]]:
    return [(path, type(layer), layer.extra_repr()) for path, layer in network.named_modules()]


def _class_name(module: nn.Module) -> str:
    return type(_unwrapped(module)).__name__


def _qualified_name(module: nn.Module) -> str:
    return _plain_name(type(_unwrapped(module)))


def _plain_name(kind: type) -> str:
    return re.sub(r"[^\w.<>]", "_", f"{kind.__module__}.{kind.__qualname__}")[-200:]


def _unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside of torch.compile, DataParallel and DistributedDataParallel."""
    if isinstance(module, OwnNetwork):
        return module.module
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return _unwrapped(cast(nn.Module, module.module))
    return getattr(module, "_orig_mod", module)
