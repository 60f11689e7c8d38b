"""A network as explanations read it: a function from inputs to outputs whose inner maps can be captured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import chain, dropwhile
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convatlas.core.auxiliary import Features
from convatlas.core.compose import Pair
from convatlas.core.cost import cost
from convatlas.core.network import Network, feature_map, is_chain, is_overwritten, run_chain, tap_paths
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.ragged import Inputs
from convatlas.errors import CostError, SpecError, nearest


class Explained:
    """A network in evaluation mode, without any change of it: several threads may explain one network.

    network: itself, or in training mode a copy that shares its weights.
    """

    def __init__(self, network: Network, preprocessing: Preprocessing) -> None:
        self.network, self.preprocessing = in_evaluation_mode(network), preprocessing
        weight = next(network.parameters(), torch.empty(0))
        self.device, self.dtype = weight.device, weight.dtype

    def inputs(self, pixels: Inputs) -> Any:
        """Return the network's inputs for pixels (n, *item_shape), or whole images, of `Preprocessing.dtype`."""
        assert isinstance(pixels, Tensor)
        return self.preprocessing.normalize(pixels.to(self.device)).to(self.dtype)

    def baseline(self, inputs: Tensor) -> Tensor:
        """Return inputs of the mean color that the preprocessing subtracts, where integrated gradients begin."""
        return torch.zeros_like(inputs)

    def outputs(self, inputs: Any) -> Tensor:
        """Return the outputs (n, outputs) that a score reads, float32. Gradients flow to the inputs."""
        outputs: Tensor = self.network(inputs)
        return outputs.float()

    def capture(
        self, inputs: Any, paths: Sequence[str], visit: Callable[[str, Tensor], None] | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the maps (n, channels, *space) at `paths`, and the outputs, whose gradients flow to the maps.

        The layers up to the first of the paths run without gradients, so that one pass forward and back costs little
        more than inference where that path is near the output. visit: called with the path and the output of each layer
        on the main path, detached, before the next layer may overwrite it.
        Raises SpecError for a layer that has no map.
        """
        self.check_paths(paths)
        maps: dict[str, Tensor] = {}
        with torch.no_grad():
            x: Any = inputs
            for path in tap_paths(self.network):
                layer = self.network.get_submodule(path)
                if not is_chain(layer):
                    with torch.set_grad_enabled(bool(maps)):
                        x = layer(x)
                if visit is not None:
                    visit(path, feature_map(x).detach())
                if path in paths:
                    maps[path], x = self._captured(x, path, is_first=not maps)
        return {path: maps[path] for path in paths}, x.float()

    def _captured(self, features: Features, path: str, *, is_first: bool) -> tuple[Tensor, Features]:
        """Return the map of features, which requires gradients, and the features as the next layer reads them."""
        y = feature_map(features)
        if is_first:
            y = y.detach().requires_grad_()
        with torch.enable_grad():
            following = y.clone() if is_overwritten(self.network, path) else y
        return y, features._replace(now=following) if isinstance(features, Pair) else following

    def on_view(self, maps: Tensor, pixels: Inputs) -> Tensor:
        """Return maps (n, *space) over the network's input as (n, [frames,] h, w) over the view `pixels`.

        They are interpolated linearly, and rotated back where the input is rotated.
        """
        assert isinstance(pixels, Tensor)
        size = self.preprocessing.channels_first(pixels).shape[2:]
        if maps.shape[1:] != size:
            mode = "trilinear" if len(size) == 3 else "bilinear"
            maps = F.interpolate(maps[:, None], tuple(size), mode=mode, align_corners=False)[:, 0]
        return self.preprocessing.rotate(maps)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Tap -> the shape (channels, *space) of its output, without the batch."""
        try:
            signals = cost(self.network).signals
            return {path: signals[path].shape for path in tap_paths(self.network)}
        except CostError:  # a layer of one's own, which has no cost rule
            shapes: dict[str, tuple[int, ...]] = {}

            def visit(path: str, y: Features) -> bool:
                shapes[path] = tuple(feature_map(y).shape[1:])
                return False

            with torch.no_grad():
                zeros = torch.zeros(1, *self.network.input_shape, device=self.device, dtype=self.dtype)
                run_chain(self.network, zeros, visit)
            return shapes

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The taps with a spatial map of features, behind the first weights, from the input to the output."""
        axes = len(self.network.input_shape)
        layers = dropwhile(
            lambda path: not any(True for _ in self.network.get_submodule(path).parameters()), self.shapes
        )
        return tuple(path for path in layers if len(self.shapes[path]) == axes and prod(self.shapes[path][-2:]) > 1)

    @property
    def default_layer(self) -> str:
        """The last tap with a spatial map, as the path of the whole stage that it ends; "" if there is none."""
        if not self.paths:
            return ""
        layers = [path for path in self.paths if not is_chain(self.network.get_submodule(path))]
        return self._outermost(layers[-1])

    def _outermost(self, path: str) -> str:
        """Return the path of the stage, or of the chain in the head, whose last layer is `path`."""
        parent, _, name = path.rpartition(".")
        if parent in ("", "stages") or next(reversed(self.network.get_submodule(parent)._modules)) != name:
            return path
        return self._outermost(parent)

    def check_paths(self, paths: Sequence[str], *, where: str = "explain") -> None:
        """Raise SpecError for a path that is no tap of the network, or whose output is not a map."""
        for path in paths:
            if path in self.paths:
                continue
            if path in self.shapes:
                shape = " x ".join(map(str, self.shapes[path]))
                raise SpecError(
                    f"{where}: layer must have a map, got {path!r} with an output of {shape}; the last layer with a "
                    f"map is {self.default_layer or 'none'}"
                )
            known = nearest(path, self.paths) or f"; such as {self.default_layer}" * bool(self.paths)
            raise SpecError(f"{where}: layer must be on the main path of the network, got {path!r}{known}")


def gradients(score: Tensor, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradient of each score (n,) with respect to its maps (n, channels, *space); 0 for unused maps."""
    found = torch.autograd.grad(score.sum(), list(maps.values()), materialize_grads=True, allow_unused=True)
    return dict(zip(maps, found, strict=True))


def in_evaluation_mode(network: Network) -> Network:
    """Return the network itself, or, if any layer is in training mode, a copy that shares its tensors."""
    if not any(layer.training for layer in network.modules()):
        return network
    shared = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    return copy.deepcopy(network, shared).eval()
