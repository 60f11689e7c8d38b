"""A supernet: the networks of a space share the weights of the largest one, and are trained together.

The weights of a sub-network are corners of those of the largest network: the first channels, the middle of the kernels,
the first blocks of a stage (Cai et al. 2020, once for all). One training serves all of them: in each step the largest
network learns from the labels, the smallest and some random ones from the outputs of the largest (the sandwich rule and
in-place distillation of Yu et al. 2020, BigNAS).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from convatlas.core.auxiliary import Auxiliary, Criterion
from convatlas.core.network import Network
from convatlas.errors import ConvatlasError, SearchError
from convatlas.models.catalog import build_fresh
from convatlas.search.counts import Counts
from convatlas.search.space import Candidate, Space, SpecSpace
from convatlas.tasks.task import Calibration, Task
from convatlas.train.cpu.execution import ExecutionPlan

RANDOM_NETWORKS = 2
"""Random sub-networks in each step, besides the largest and the smallest one (Yu et al. 2020)."""

MAX_BUILT = 32
"""Sub-networks that stay built."""


def corner(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the part of a shared tensor that a sub-network has: the first channels, and the middle of kernels."""
    for axis, (size, wanted) in enumerate(zip(tensor.shape, shape, strict=True)):
        if size != wanted:
            tensor = tensor.narrow(axis, (size - wanted) // 2 if axis > 1 else 0, wanted)
    return tensor


def with_shared_weights(space: SpecSpace, *, classes: int, channels: int) -> tuple[SpecSpace, dict[str, list[object]]]:
    """Return the part of a space whose networks can share weights, and the options that were left out, by name.

    An option is left out if a network with it has a tensor that is no corner of one of the largest network: such as
    another type of block.
    """

    def shapes(candidate: Candidate) -> dict[str, tuple[int, ...]]:
        network = build_fresh(space.value(candidate), classes=classes, channels=channels, device="meta")
        return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}

    largest = extreme(space, classes=classes, channels=channels, smallest=False)
    whole = shapes(largest)
    left_out: dict[str, list[object]] = {}
    for name, options in space.choices.items():
        for option in options:
            try:
                parts = shapes(largest | {name: option})
            except ConvatlasError:
                continue  # it does not fit the largest options of others; see `SpecSpace.is_allowed`
            if not all(_is_corner(shape, whole.get(path)) for path, shape in parts.items()):
                left_out.setdefault(name, []).append(option)
    kept = {
        name: [option for option in options if option not in left_out.get(name, ())]
        for name, options in space.choices.items()
    }
    if all(len(options) == 1 for options in kept.values()):
        raise SearchError("supernet: the networks of the space share no weights; choose another space, or method quick")
    return SpecSpace(space.template.narrowed(kept)), left_out


def _is_corner(shape: tuple[int, ...], whole: tuple[int, ...] | None) -> bool:
    return whole is not None and len(shape) == len(whole) and all(a <= b for a, b in zip(shape, whole, strict=True))


def extreme(space: SpecSpace, *, classes: int, channels: int, smallest: bool) -> Candidate:
    """Return the candidate with, of each choice, the option of the most (or least) parameters, then MACs.

    Of texts, such as types of blocks, it is the first option: which is larger says nothing about which one learns more.
    """

    def size(candidate: Candidate) -> tuple[int, int]:
        try:
            counts = Counts.of(space.value(candidate), classes=classes, channels=channels)
        except ConvatlasError:
            return (2**62, 0) if smallest else (-1, 0)
        return counts.parameters, counts.macs

    chosen = space.decode(np.zeros(len(space.names), dtype=np.int64))
    pick = min if smallest else max
    for name, options in space.choices.items():
        if isinstance(options[0], str):
            continue
        chosen[name] = pick(options, key=lambda option, name=name: size(chosen | {name: option}))  # type: ignore[misc]
    return chosen


class Supernet:
    """The networks of a space, with the weights of the largest one.

    space: of networks that can share weights, see `with_shared_weights`. network: the largest one, on its device.
    plan: how its steps are executed; sub-networks are executed alike. smallest: of the networks, if it is known.
    """

    def __init__(
        self, space: SpecSpace, network: Network, task: Task, plan: ExecutionPlan | None = None, *,
        smallest: Candidate | None = None,
    ) -> None:  # fmt: skip
        self.space, self.network, self.task, self.plan = space, network, task, plan or ExecutionPlan(fused_norms=False)
        self.channels = network.input_shape[0]
        self.smallest = smallest or extreme(space, classes=task.outputs, channels=self.channels, smallest=True)
        self._built: OrderedDict[tuple[object, ...], Network] = OrderedDict()

    def outputs(self, candidate: Candidate, x: Tensor) -> Tensor:
        """Return the outputs of a sub-network; gradients flow into the shared weights."""
        network = self._network(candidate)
        network.train(self.network.training)
        result: Tensor = functional_call(network, self._weights(network), (at_resolution(x, network),))
        return result

    def extract(self, candidate: Candidate) -> Network:
        """Return a sub-network as a network of its own, in evaluation mode, with copies of the shared weights.

        The statistics of its batch norms are still those of the largest network; see `recalibrate`.
        """
        spec = self.space.value(candidate)
        network = build_fresh(spec, classes=self.task.outputs, channels=self.channels)
        shared = self.network.state_dict()
        tensors = {
            name: corner(shared[name], tuple(own.shape)).clone(memory_format=torch.contiguous_format)
            for name, own in network.state_dict().items()
        }
        network.load_state_dict(tensors)
        return network.eval()

    def _network(self, candidate: Candidate) -> Network:
        """Return the modules of a sub-network, without weights, from those that were built before."""
        key = tuple(candidate[name] for name in self.space.names)
        network = self._built.pop(key, None)
        if network is None:
            spec = self.space.value(candidate)
            network = build_fresh(spec, classes=self.task.outputs, channels=self.channels, device="meta")
            shared = dict(self.network.named_buffers())
            network.to_empty(device=next(self.network.parameters()).device)
            for path, buffer in network.named_buffers():
                buffer.copy_(corner(shared[path], tuple(buffer.shape)))
            for layer in network.modules():
                if isinstance(layer, nn.Dropout):  # only the largest network is regularized
                    layer.p = 0.0
            network = self.plan.place(network)
        self._built[key] = network
        if len(self._built) > MAX_BUILT:
            self._built.popitem(last=False)
        return network

    def _weights(self, network: Network) -> dict[str, Tensor]:
        shared = dict(self.network.named_parameters())
        return {name: corner(shared[name], tuple(own.shape)) for name, own in network.named_parameters()}


class Sandwich(Auxiliary):
    """The term of the sub-networks in the loss of the largest network, which is their teacher.

    Of the smallest and `RANDOM_NETWORKS` random ones: the loss with the probabilities of the teacher as labels. space:
    of which they are drawn, such as those within limits. Which ones is a function of torch's generator, which every
    training step seeds.
    """

    def __init__(self, supernet: Supernet, space: Space | None = None) -> None:
        super().__init__("head")
        self.supernet, self.space = (supernet,), space or supernet.space  # a tuple: it is no layer of this one

    def term(self, features: Tensor, inputs: Tensor, labels: Tensor, criterion: Criterion) -> Tensor:
        supernet = self.supernet[0]
        soft = supernet.task.decode(features.detach().float(), Calibration())
        terms = [criterion(supernet.outputs(each, inputs), soft) for each in self._drawn()]
        return torch.stack(terms).sum()

    def _drawn(self) -> Iterator[Candidate]:
        yield self.supernet[0].smallest
        random = np.random.default_rng(int(torch.randint(2**31, ())))
        for codes in self.space.sample(RANDOM_NETWORKS, random):
            yield self.space.decode(codes)


def at_resolution(x: Tensor, network: Network) -> Tensor:
    """Return images at the resolution of a network."""
    size = network.input_shape[1:]
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", antialias=True)


@torch.no_grad()
def recalibrate(network: Network, batches: Iterator[Tensor]) -> Network:
    """Set the statistics of batch norms to their means over batches of images, and nothing else.

    Shared statistics are those of no single sub-network (Yu et al. 2020, section 3.4). Returns the network in
    evaluation mode.
    """
    norms = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    before = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for x in batches:
        network(at_resolution(x, network))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    return network.eval()
