"""The two ways to compose: one after another (`Chain`) and side by side (`Sum`, `Concat`, `Product`).

Topology lives in these four classes and nowhere else. They are ordinary modules: nothing is compiled or traced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Self, cast

from torch import Tensor, nn

from convatlas.core.compose import _IN_TURN, Chain, Pair, unrolled
from convatlas.errors import SpecError, nearest


def steps(tree: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of a chain or the parts of a network; a layer that is used twice comes twice."""
    for name, layer in tree._modules.items():
        if layer is not None and not (isinstance(tree, Network) and name == "auxiliary"):
            yield name, layer


def is_chain(layer: nn.Module) -> bool:
    """Return whether running the layers one after another is what the layer does."""
    return type(layer).forward in (*_IN_TURN, Network.forward)


Criterion = Callable[[Tensor, Tensor], Tensor]
"""(outputs, labels) -> scalar; labels are class numbers (n,) or shares of the classes (n, classes)."""


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
