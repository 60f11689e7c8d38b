"""A module that the caller gives to `fit`, as the network that training starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from torch import nn

from convatlas.core.cost import cost
from convatlas.core.network import Network
from convatlas.core.preprocessing import Interpolation, Preprocessing
from convatlas.core.spec import Spec
from convatlas.data.source import Source
from convatlas.errors import ConvatlasError, SpecError, foreign_errors
from convatlas.models.catalog import adapted, build_fresh, resolve
from convatlas.models.own_module import OwnModule, OwnNetwork, is_as_built, row_of, wrap_module
from convatlas.train.initial_weights import AUTO, NONE, InitialWeights
from convatlas.train.settings import DataOptions

GIVEN = "module"
"""How the initial weights of a given module are named in files; the name of the module follows."""

RESOLUTION = 224
"""Input resolution, in pixels, for image files, where neither the caller nor the module states one."""


@dataclass(frozen=True)
class GivenNetwork:
    """A network that training starts from, with its weights; the module that it was copied from is not changed.

    preprocessing: how its images are prepared. module: the module itself.
    """

    network: Network
    preprocessing: Preprocessing
    module: nn.Module

    @property
    def spec(self) -> Spec:
        return cast(Spec, self.network.spec)

    @property
    def initial(self) -> InitialWeights:
        return InitialWeights(f"{GIVEN} {resolve(self.spec)[0]}")

    @property
    def needed(self) -> nn.Module | None:
        """The module, if files of the network cannot be read without it."""
        return self.module if isinstance(self.spec, OwnModule) else None


def reads_of(module: nn.Module) -> str:
    """Return what a module reads, see `Spec.reads`: images, unless it is a network of the catalog."""
    spec = module.spec if isinstance(module, Network) else None
    return spec.reads if isinstance(spec, Spec) else Spec.reads


def copy_module(
    module: nn.Module, source: Source, options: DataOptions, weights: str | Path | None = None
) -> GivenNetwork:
    """Return a copy of a module for the images and classes of a data set; weights: none beside those of the module.

    A network that was built by this library and not changed since keeps its spec, and its files need no module. Any
    other module must return scores (n, classes); its resolution is that of `options`, or its own, as far as it states
    one (timm), or that of the arrays of the data, or 224 px. Its channels are those with which it runs: those of the
    data, or 3, or 1. Images are normalized as it states, or as for ImageNet.
    Raises SpecError, in one line, for another number of outputs than the data has classes.
    """
    if weights is not None and str(weights) not in (AUTO, NONE):
        raise SpecError(
            f"weights: must not be given with a module, got {weights}; training starts from the module's own weights: "
            "load them into it before"
        )
    if options.stem != "default":
        raise SpecError(f"stem: must be default for a module, whose layers are its own, got {options.stem}")
    built = _copy_built(module, options) if isinstance(module, Network) else None
    if built is not None:
        outputs, layer = cost(built).output.channels, ""
        given = GivenNetwork(built, resolve(cast(Spec, built.spec))[1].preprocessing, module)
    else:
        given = _copy_own(module, source, options)
        outputs, layer = cast(OwnModule, given.spec).outputs, cast(OwnNetwork, given.network).output_layer
    needed = source.task.outputs
    if outputs != needed:
        fix = f"replace its output layer, {layer}, by one with {needed}" if layer else f"build it with {needed}"
        fix = f"ca.build(..., classes={needed})" if isinstance(module, Network) else fix
        raise SpecError(
            f"{type(module).__name__}: must have {needed} outputs, one for each class of {source.name}, got {outputs}; "
            f"{fix}"
        )
    return given


def _copy_built(network: Network, options: DataOptions) -> Network | None:
    """Return a copy of a network as its spec builds it; None if it was changed, or has frozen parameters."""
    spec = network.spec
    if not isinstance(spec, Spec) or not all(parameter.requires_grad for parameter in network.parameters()):
        return None
    try:
        classes = cost(network).output.channels
        built = build_fresh(spec, classes=classes, channels=network.input_shape[0])
    except ConvatlasError:
        return None
    if not is_as_built(network, built):
        return None
    spec = adapted(spec, resolution=options.resolution)
    copied = build_fresh(spec, classes=classes, channels=network.input_shape[0])
    with foreign_errors(type(spec).__name__, SpecError, f"the weights do not fit {spec.resolution} px"):
        copied.load_state_dict(network.state_dict())
    return copied


def _copy_own(module: nn.Module, source: Source, options: DataOptions) -> GivenNetwork:
    stated = _stated(module)
    sizes = source.splits["train"].sizes
    sides = {min(size) for size in sizes}
    usual = sides.pop() if len(sides) == 1 else RESOLUTION
    resolution = options.resolution or _resolution_of(module, stated) or usual
    choices = [options.channels] if options.channels else list(dict.fromkeys([source.channels, 3, 1]))
    failures: list[SpecError] = []
    for channels in choices:
        try:
            network = wrap_module(module, (channels, resolution, resolution))
        except SpecError as error:
            failures.append(error)
            continue
        steps = row_of(cast(OwnModule, network.spec)).preprocessing
        if len(sizes) == 1:  # arrays are not larger than what the network should see
            steps = dataclasses.replace(steps, resize=resolution)
        return GivenNetwork(network, _with_stated(steps, stated), module)
    failure = next((each for each in failures if each.__cause__ is None), failures[0])  # it ran with those channels
    misfit = isinstance(failure.__cause__, RuntimeError) and not options.resolution
    fix = f"; data_options=ca.DataOptions(resolution=...) changes the {resolution} px" if misfit else ""
    raise SpecError(f"{failure}{fix}") from failure.__cause__


def _stated(module: nn.Module) -> Mapping[str, Any]:
    """Return what a network of timm states about its input; empty for other modules."""
    for name in ("pretrained_cfg", "default_cfg"):
        if isinstance(stated := getattr(module, name, None), Mapping):
            return stated
    return {}


def _resolution_of(module: nn.Module, stated: Mapping[str, Any]) -> int | None:
    if isinstance(module, Network):
        return module.input_shape[-1]
    size = stated.get("input_size")
    return size[-1] if isinstance(size, tuple | list) and len(size) == 3 and type(size[-1]) is int else None


def _with_stated(steps: Preprocessing, stated: Mapping[str, Any]) -> Preprocessing:
    """Return preprocessing with mean, deviation, crop and interpolation as a network of timm states them."""
    mean, std, share = stated.get("mean"), stated.get("std"), stated.get("crop_pct")
    if mean and std and len(mean) == len(std):
        channels = steps.channels
        steps = dataclasses.replace(steps, mean=tuple(map(float, mean)), std=tuple(map(float, std)))
        steps = steps.for_channels(channels)
    if isinstance(share, float) and 0 < share <= 1 and steps.resize > steps.crop:
        steps = dataclasses.replace(steps, resize=max(steps.crop, round(steps.crop / share)))
    if stated.get("interpolation") in get_args(Interpolation):
        steps = dataclasses.replace(steps, interpolation=stated["interpolation"])
    return steps
