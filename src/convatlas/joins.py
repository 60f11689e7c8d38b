"""The two ways to compose: one after another (`Chain`) and side by side (`Sum`, `Concat`, `Product`).

Topology lives in these four classes and nowhere else. They are ordinary modules: nothing is compiled or traced.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import islice
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from convatlas.errors import SpecError, nearest

Criterion = Callable[[Tensor, Tensor], Tensor]
"""(outputs, labels) -> scalar; labels are class numbers (n,) or shares of the classes (n, classes)."""

# A child named like one of these would hide it ("train", "half", "keys", ...).
_RESERVED = frozenset(dir(nn.Sequential())) | frozenset(dir(nn.ModuleDict())) | {"input_shape", "join"}


def _adopt(parent: nn.Module, layers: tuple[nn.Module, ...], named: dict[str, nn.Module]) -> None:
    """Number the positional layers, keep the names of the others, and refuse names that modules use themselves."""
    children = parent._modules  # add_module would check again what is checked here
    for i, layer in enumerate(layers):
        children[str(i)] = layer
    for name, layer in named.items():
        if name in _RESERVED:
            raise SpecError(f"branch name {name!r} collides with an attribute of every module; choose another name")
        if name in children or not (name.isidentifier() or name.isdecimal()):
            raise SpecError(f"branch name {name!r} is taken or not a plain name; choose another name")
        children[name] = layer
    for child in children.values():
        if not isinstance(child, nn.Module):
            raise TypeError(f"{type(parent).__name__} is made of modules, not of {type(child).__name__}")


class Chain(nn.Sequential):
    """Layers one after another; they may be named: `Chain(conv=..., norm=...)`."""

    def __init__(self, *layers: nn.Module, **named: nn.Module) -> None:
        super().__init__()
        _adopt(self, layers, named)

    def forward(self, input: Any) -> Any:
        for layer in unrolled(self._modules.values()):
            input = layer(input)
        return input

    def __getitem__(self, key: Any) -> Any:
        """Return one layer, or for a slice the Chain of those layers, under their names."""
        return Chain(**dict(list(self._modules.items())[key])) if isinstance(key, slice) else super().__getitem__(key)


class Join(nn.ModuleDict):
    """Branches side by side: each reads the same input; subclasses say how their outputs are joined."""

    def __init__(self, *branches: nn.Module, **named: nn.Module) -> None:
        super().__init__()
        _adopt(self, branches, named)
        if not branches and not named:
            raise SpecError(f"{type(self).__name__} needs at least one branch")

    @staticmethod
    def join(outputs: Sequence[Tensor]) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.join([branch(x) for branch in self._modules.values()])


_FRESH = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.Conv3d, nn.BatchNorm3d)


def _ends_fresh(layer: nn.Module | None) -> bool:
    """Return whether the last layer makes a tensor that nobody else reads and that no gradient needs.

    Layers of other kinds say so with an attribute `fresh`; those that may hand on what they got have `passing`.
    """
    while isinstance(layer, nn.Sequential):
        layers = reversed(layer._modules.values())
        layer = next((inner for inner in layers if not getattr(inner, "passing", False)), None)
    return isinstance(layer, _FRESH) or getattr(layer, "fresh", False)


class Sum(Join):
    """Add the branches: ResNet is a Sum with the identity.

    Where the first branch ends in a convolution or a norm, the others are added into its output: a new tensor there
    costs up to 8 % of a ResNet's time on a CPU.
    """

    @staticmethod
    def join(outputs: Sequence[Tensor]) -> Tensor:
        return reduce(operator.add, outputs)

    def forward(self, x: Tensor) -> Tensor:
        branches = list(self._modules.values())
        outputs = [branch(x) for branch in branches]
        if len(outputs) == 2 and _ends_fresh(branches[0]) and outputs[0].shape == outputs[1].shape:
            total: Tensor = outputs[0].add_(outputs[1])
            return total
        return self.join(outputs)


class Concat(Join):
    """Stack the branches' channels: Inception; DenseNet is a Concat with the identity."""

    fresh = True

    @staticmethod
    def join(outputs: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(outputs), 1)


class Product(Join):
    """Multiply the branches: squeeze-and-excitation is a Product with the identity."""

    fresh = True

    @staticmethod
    def join(outputs: Sequence[Tensor]) -> Tensor:
        return reduce(operator.mul, outputs)


class Pair(NamedTuple):
    """What flows where a layer reads the outputs of the two layers before it, as NASNet's cells do."""

    now: Tensor
    before: Tensor


class Auxiliary(Chain):
    """Layers that only training uses: they read the output at the tap `at` and add a term to the loss."""

    def __init__(self, at: str, *layers: nn.Module, **named: nn.Module) -> None:
        super().__init__(*layers, **named)
        self.at = at

    def term(self, features: Tensor, inputs: Tensor, labels: Tensor, criterion: Criterion) -> Tensor:
        """Return the term, a scalar: `features` are the output at the tap, `criterion` the loss of the network."""
        raise NotImplementedError


class Network(nn.Module):
    """The three named parts that every network has, and the (channels, *space) it was built for.

    `auxiliary` holds what only training uses, such as GoogLeNet's side classifiers; `forward` leaves it out.
    """

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
        self._frozen: tuple[str, ...] = ()
        self._held: list[nn.Parameter] = []

    def forward(self, x: Any) -> Any:
        for layer in unrolled((self.stem, self.stages, self.head)):
            x = layer(x)
        return x

    def loss(self, x: Tensor, labels: Tensor, criterion: Criterion) -> tuple[Tensor, Tensor]:
        """Return (outputs, loss) of one batch, the terms of the auxiliary parts included."""
        at: dict[str, list[Auxiliary]] = {}
        for part in cast(list[Auxiliary], list(self.auxiliary.values())):
            at.setdefault(part.at, []).append(part)
        terms: list[Tensor] = []

        def visit(path: str, features: Tensor) -> bool:
            terms.extend(part.term(features, x, labels, criterion) for part in at.get(path, ()))
            return False

        y = run(self, x, visit) if at else self(x)
        return y, sum(terms, criterion(y, labels))

    def freeze(self, to: str | None) -> Self:
        """Stop learning from the stem up to and including `to`, such as "stages.2"; None lets all learn again.

        Statistics of norms stop there, too, whatever `train()` says. What did not learn before it does not learn after.
        """
        path = list(on_the_way(self))
        if to is not None and to not in path:
            raise SpecError(f"freeze: no layer {to!r} on the way from stem to head{nearest(to, path)}")
        self._frozen = tuple(path[: path.index(to) + 1]) if to is not None else ()
        for parameter in self._held:
            parameter.requires_grad_(True)
        frozen = (parameter for name in self._frozen for parameter in self.get_submodule(name).parameters())
        self._held = [parameter for parameter in frozen if parameter.requires_grad]
        for parameter in self._held:
            parameter.requires_grad_(False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self


def steps(tree: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of a chain or the parts of a network; a layer that is used twice comes twice."""
    for name, layer in tree._modules.items():
        if layer is not None and not (isinstance(tree, Network) and name == "auxiliary"):
            yield name, layer


_IN_TURN = (Chain.forward, nn.Sequential.forward)


def is_chain(layer: nn.Module) -> bool:
    """Return whether running the layers one after another is what the layer does."""
    return type(layer).forward in (*_IN_TURN, Network.forward)


def _observed(layer: nn.Module) -> bool:
    """Return whether somebody asked for the call of this very module, with a hook or a forward pass of their own."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return bool(hooks or layer._compiled_call_impl) or "forward" in layer.__dict__


def unrolled(layers: Iterable[Any]) -> Iterable[nn.Module]:
    """Return the layers, with those of the chains among them in their place; a chain that is observed stays.

    Calling a module holds its input until it returns: called in turn, a stem's output would be held through all stages,
    and inference with MobileNetV2 takes up to a seventh longer (benchmarks/families.py).
    """
    if torch.compiler.is_compiling() or _has_any_global_hook():
        return layers
    flat: list[nn.Module] = []
    for layer in layers:
        if type(layer).forward in _IN_TURN and not _observed(layer):
            flat += unrolled(layer._modules.values())
        else:
            flat.append(layer)
    return flat


def on_the_way(tree: nn.Module, prefix: str = "") -> Iterator[str]:
    """Yield the paths of all layers on the chain from the input to the output, in the order in which they end."""
    for name, layer in steps(tree):
        if is_chain(layer):
            yield from on_the_way(layer, prefix + name + ".")
        yield prefix + name


Visit = Callable[[str, Any], bool]
"""Called with the path and the output of each layer on the way; returning True stops the run."""


def run(tree: nn.Module, x: Any, visit: Visit) -> Any:
    """Run a network or a chain on `x` as its forward pass does, calling `visit` behind each layer on the way."""
    for path in on_the_way(tree):
        layer = tree.get_submodule(path)
        if not is_chain(layer):
            x = layer(x)
        if visit(path, x):
            break
    return x


def taps(tree: nn.Module, names: Sequence[str], x: Tensor) -> dict[str, Tensor]:
    """Run a network or a chain on `x` and keep the outputs at `names`, such as "stem" or "stages.0".

    Stops after the last tap. Raises SpecError for a name that is not on the chain (a branch inside a join is not).
    """
    reached = list(on_the_way(tree))
    for name in names:
        if name not in reached:
            raise SpecError(f"no tap {name!r} on this chain{nearest(name, reached)}")
    wanted = set(names)
    kept: dict[str, Tensor] = {}

    def visit(path: str, x: Tensor | Pair) -> bool:
        if path in wanted:
            y = x.now if isinstance(x, Pair) else x
            # the next layer may overwrite it: an activation behind a sum works in place
            kept[path] = y.clone() if overwritten(path) else y
        return len(kept) == len(wanted)

    def overwritten(path: str) -> bool:
        following = (name for name in reached[reached.index(path) + 1 :] if not path.startswith(f"{name}."))
        return any(getattr(tree.get_submodule(name), "inplace", False) for name in islice(following, 1))

    run(tree, x, visit)
    return {name: kept[name] for name in names}


def depth_groups(network: Network) -> list[tuple[str, list[nn.Parameter]]]:
    """Return (path, parameters) from the input to the output: the stem, each stage, the head; empty ones left out.

    What only training uses comes with the head. For learning rates that fall with the distance from the output.
    """
    parts = [("stem", network.stem), *((f"stages.{name}", stage) for name, stage in network.stages.named_children())]
    groups = [(path, list(part.parameters())) for path, part in parts]
    last = [*network.head.parameters(), *network.auxiliary.parameters()]
    return [(path, parameters) for path, parameters in [*groups, ("head", last)] if parameters]
