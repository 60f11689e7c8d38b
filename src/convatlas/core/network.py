"""A network: three named parts, auxiliary parts for training, and access to inner outputs.

The layers on the main path, from the input to the output, have paths such as "stem", "stages.0", "stages.0.1" or
"head.pool": chains, and what is inside of chains. Their outputs can be read (`taps`), replaced (`Network.forward_from`)
and frozen (`Network.freeze`). Layers inside a Sum, Concat or Product are not on the main path; use
hooks of torch for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convatlas.core.auxiliary import Auxiliary, Criterion, Features
from convatlas.core.compose import Chain, Join, Layer, Pair, is_observed
from convatlas.core.record import Record
from convatlas.core.table import Table, by_x, fit_screen
from convatlas.errors import SpecError, nearest


class Network(nn.Module):
    """The three named parts that every network has, and the (channels, *space) it was built for.

    `auxiliary` holds what only training uses, such as GoogLeNet's side classifiers; `forward` leaves it out. `spec` is
    the table that the network was built from, None if there is none.
    """

    spec: Record | None = None

    chains_run_whole: ClassVar[bool] = True
    """The layers of every `nn.Sequential` run in sequence, and nothing else reads their outputs: they may be fused."""

    runs_in_sequence: ClassVar[bool] = True
    """`forward` is head(stages(stem(x))); False for a detector, whose inputs are lists of images."""

    levels: tuple[str, ...] = ()
    """Paths of layers on the main path whose outputs are also read by others than the layer behind them."""

    compact: bool = False
    """Whether outputs in evaluation mode are in a form that needs less memory, where there is one: that of a mask is in
    its box, not in the image. Only tasks read it."""

    takes_channels_last: bool = True
    """Training and inference may use the memory format channels_last for images."""

    def __init__(
        self,
        *,
        stem: nn.Module,
        stages: Chain,
        head: nn.Module,
        input_shape: tuple[int, ...],
        auxiliary: Mapping[str, Auxiliary] | None = None,
    ) -> None:
        super().__init__()
        self.stem, self.stages, self.head = stem, stages, head
        self.auxiliary = nn.ModuleDict(auxiliary)
        self.input_shape = input_shape
        self._frozen_paths: tuple[str, ...] = ()
        self._frozen_parameters: list[nn.Parameter] = []
        self._out_of_place_layers: list[nn.Module] = []

    def __repr__(self) -> str:
        """Return the parts in a few lines; `print` shows the tree of all layers."""
        parts = {"stem": self.stem, **{f"stages.{name}": stage for name, stage in self.stages.named_children()}}
        rows = {name: _shorthand(part) for name, part in {**parts, "head": self.head, **self.auxiliary}.items()}
        number = sum(parameter.numel() for parameter in self.parameters())
        head = f"Network of {number:,} parameters for inputs of {by_x(self.input_shape)}"
        return fit_screen(f"{head}\n{Table.of_pairs(rows)}")

    def __str__(self) -> str:
        return super().__repr__()

    def forward(self, x: Any) -> Any:
        """Return head(stages(stem(x)))."""
        if torch.compiler.is_compiling():
            return self.head(self.stages(self.stem(x)))
        for layer in flatten_chains((self.stem, self.stages, self.head)):
            x = layer(x)
        return x

    def first_inputs(self, x: Any) -> Tensor:
        """Return what the first layer reads, (n, channels, *space), for the inputs of the network; `taps` needs it."""
        first: Tensor = x
        return first

    def forward_from(self, path: str, features: Features) -> Any:
        """Return the outputs of the network, given the output of the layer `path` on the main path.

        Continues the forward pass behind that layer, for instance with features that were changed, or to get the
        gradient of a score with respect to them::

            features = taps(network, ["stages.3"], images)["stages.3"].detach().requires_grad_()
            network.forward_from("stages.3", features)[:, label].sum().backward()  # features.grad: for Grad-CAM

        `forward_from(path, taps(network, [path], x)[path])` equals `network(x)`. `features` are never overwritten.
        Between the cells of NASNet they are a `Pair`; `features._replace(now=...)` changes the map. Raises SpecError if
        there is no such path, and for a detector, whose head reads several layers.
        """
        if not self.runs_in_sequence:
            raise SpecError(
                f"forward_from: {type(self).__name__} does not run in sequence; the head reads several layers"
            )
        paths = list(tap_paths(self))
        _check_paths(self, [path], paths)
        x: Any = _copy(features) if is_overwritten(self, path) else features
        for following in paths[paths.index(path) + 1 :]:
            layer = self.get_submodule(following)
            if not is_chain(layer):
                x = layer(x)
        return x

    def loss(self, x: Tensor, labels: Tensor, criterion: Criterion) -> tuple[Tensor, Tensor]:
        """Return (outputs, loss) of one batch, the terms of the auxiliary parts included."""
        at: dict[str, list[Auxiliary]] = {}
        for part in cast(list[Auxiliary], list(self.auxiliary.values())):
            at.setdefault(part.at, []).append(part)
        terms: list[Tensor] = []

        def visit(path: str, features: Features) -> bool:
            terms.extend(part.term(feature_map(features), x, labels, criterion) for part in at.get(path, ()))
            return False

        y = run_chain(self, x, visit) if at else self(x)
        return y, sum(terms, criterion(y, labels))

    def example_loss(self, images: int, classes: int, device: torch.device) -> Callable[[Callable[..., Any]], Tensor]:
        """Return a function that runs a forward pass on random images and returns a loss, to time training steps.

        The images are the same in every call, and of equal sizes.
        """
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(images, *self.input_shape, generator=generator).to(device)
        labels = torch.randint(classes, (images,), generator=generator).to(device)

        def loss(forward: Callable[..., Any]) -> Tensor:
            if self.auxiliary:
                return self.loss(inputs, labels, F.cross_entropy)[1]
            return F.cross_entropy(forward(inputs).float(), labels)

        return loss

    def groups_by_depth(self) -> list[tuple[str, list[nn.Parameter]]]:
        """Return (path, parameters) of the parts with parameters, from the input to the output.

        Auxiliary parts, which only training uses, are in the group of the head.
        """
        parts = [("stem", self.stem), *((f"stages.{name}", stage) for name, stage in self.stages.named_children())]
        groups = [(path, list(part.parameters())) for path, part in parts]
        head = [*self.head.parameters(), *self.auxiliary.parameters()]
        return [(path, parameters) for path, parameters in [*groups, ("head", head)] if parameters]

    def file_state(self) -> dict[str, Tensor]:
        """Return the tensors by the names that they have in a model file."""
        return self.state_dict()

    def load_file_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Load tensors by the names that they have in a model file."""
        self.load_state_dict(tensors)

    def freeze(self, to: str | None) -> Self:
        """Freeze the layers from the stem up to and including `to`, such as "stages.2"; None unfreezes all.

        Running statistics of frozen norms do not change, even in `train()`. Parameters that did not require gradients
        before do not require them afterwards. Returns the network. Raises SpecError if there is no such path.
        """
        paths = list(tap_paths(self))
        if to is not None and to not in paths:
            raise SpecError(f"freeze: no layer {to!r} on the main path{nearest(to, paths)}")
        self._frozen_paths = tuple(paths[: paths.index(to) + 1]) if to is not None else ()
        for parameter in self._frozen_parameters:
            parameter.requires_grad_(True)
        frozen = (parameter for path in self._frozen_paths for parameter in self.get_submodule(path).parameters())
        self._frozen_parameters = [parameter for parameter in frozen if parameter.requires_grad]
        for parameter in self._frozen_parameters:
            parameter.requires_grad_(False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for path in self._frozen_paths:
            self.get_submodule(path).eval()
        return self

    def inplace(self, on: bool) -> Self:
        """Allow or forbid operations that overwrite their input: activations, dropout and sums. Returns the network.

        `inplace(False)` is for hooks: what a forward hook received then stays as it was, and
        `register_full_backward_hook`, which torch refuses before an in-place operation, works on every layer. The
        outputs stay the same; memory and time grow a little. `inplace(True)` undoes it.
        """
        if on:
            changed, self._out_of_place_layers = self._out_of_place_layers, []
        else:
            changed = [layer for layer in self.modules() if getattr(layer, "inplace", None) is True]
            self._out_of_place_layers += changed
        for layer in changed:
            layer.inplace = on  # type: ignore[assignment]  # a flag of nn.ReLU, nn.Dropout, Sum, ...
        return self


def _shorthand(part: nn.Module) -> str:
    """Return the layers of a part: "Conv2d, 3 x Bottleneck"."""
    layers = [type(layer).__name__ for _, layer in named_layers(part)] if is_chain(part) else [type(part).__name__]
    counts = ((name, len(list(same))) for name, same in groupby(layers))
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in counts) or "identity"


def flatten_chains(layers: Iterable[nn.Module | None]) -> Iterator[nn.Module]:
    """Yield the layers; a chain without hooks is replaced by its layers.

    A call keeps its input alive until it returns. Called as nested chains, a network would keep the output of its stem
    until the last stage has returned: inference with MobileNetV2 takes 6 to 15 % longer (benchmarks/families.py).
    """
    for layer in layers:
        if layer is None:
            continue
        if is_chain(layer) and not is_observed(layer):
            yield from flatten_chains(inner for _, inner in named_layers(layer))
        else:
            yield layer


def named_layers(tree: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, layer) for the layers of a chain or the parts of a network; a layer used twice comes twice."""
    for name, layer in tree._modules.items():
        if layer is not None and not (isinstance(tree, Network) and name == "auxiliary"):
            yield name, layer


def is_chain(layer: nn.Module) -> bool:
    """Return whether the forward pass of the layer is that of its layers in sequence, and nothing else."""
    return getattr(layer.forward, "__func__", None) in (nn.Sequential.forward, Network.forward)


def tap_paths(tree: nn.Module, prefix: str = "") -> Iterator[str]:
    """Yield the paths of the layers on the main path of a network or chain, in the order in which they finish."""
    for name, layer in named_layers(tree):
        if is_chain(layer):
            yield from tap_paths(layer, prefix + name + ".")
        yield prefix + name


Visit = Callable[[str, Any], bool]
"""Called with the path and the output of each layer on the main path; returning True stops the run."""


def run_chain(tree: nn.Module, x: Any, visit: Visit) -> Any:
    """Run a network or a chain on `x` as its forward pass does, and call `visit` after each layer of the main path."""
    for path in tap_paths(tree):
        layer = tree.get_submodule(path)
        if not is_chain(layer):
            x = layer(x)
        if visit(path, x):
            break
    return x


def taps(tree: nn.Module, paths: Sequence[str], x: Tensor) -> dict[str, Features]:
    """Run a network or a chain on `x` and return the outputs at `paths`, such as "stem" or "stages.0".

    Stops after the last of them. An output is a tensor, but a `Pair` between the cells of NASNet; `feature_map` returns
    the map of either. Gradients flow. Raises SpecError for a layer that is not on the main path, such as one in a Sum.
    """
    in_sequence = getattr(tree, "runs_in_sequence", True)  # the head of a detector reads more than the last layer
    _check_paths(tree, paths, [path for path in tap_paths(tree) if in_sequence or path != "head"])
    outputs: dict[str, Features] = {}

    def visit(path: str, y: Features) -> bool:
        if path in paths:
            outputs[path] = _copy(y) if is_overwritten(tree, path) else y
        return len(outputs) == len(set(paths))

    run_chain(tree, x, visit)
    return {path: outputs[path] for path in paths}


def feature_map(features: Features) -> Tensor:
    """Return the map itself: of a `Pair`, the newer of the two."""
    return features.now if isinstance(features, Pair) else features


def _check_paths(tree: nn.Module, paths: Iterable[str], known: Sequence[str]) -> None:
    for path in paths:
        if path not in known:
            raise SpecError(f"no tap {path!r} on the main path of this {type(tree).__name__}{nearest(path, known)}")


def _copy(features: Features) -> Features:
    return Pair(*(each.clone() for each in features)) if isinstance(features, Pair) else features.clone()


def is_overwritten(tree: nn.Module, path: str) -> bool:
    """Return whether a layer after `path` overwrites its output, directly or through layers that return their input."""
    paths = list(tap_paths(tree))
    for following in paths[paths.index(path) + 1 :]:
        layer = tree.get_submodule(following)
        if is_chain(layer):
            continue
        if getattr(layer, "inplace", False) and not isinstance(layer, Join):
            return True
        if not (isinstance(layer, _MAY_RETURN_INPUT) or (isinstance(layer, Layer) and layer.returns_input)):
            return False
    return False


_MAY_RETURN_INPUT = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d, nn.Dropout3d)
