"""The layers of the 1990s: sparse links, trainable subsampling, a bias for each unit, distances to codes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convatlas.core.cost import Signal, Tally, rule, same, slide
from convatlas.core.outline import Box, always, outline
from convatlas.errors import SpecError
from convatlas.layers.init import is_empty

Links = tuple[tuple[int, ...], ...]
"""For each output map, the input maps that it reads."""


class ScaledTanh(nn.Module):
    """1.7159 tanh(2x/3), so that f(1) = 1 and f(-1) = -1 (LeCun et al. 1998, appendix A)."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(2 / 3 * x)


class Negate(nn.Module):
    """-x: turns a penalty (small is good) into a score (large is good)."""

    def forward(self, x: Tensor) -> Tensor:
        return -x


class Subsample(nn.Module):
    """Sum of each 2x2 window, times a trainable gain, plus a trainable bias, one pair for each map (LeNet's S layers).

    `links` lets each output map read another input map than its own.
    """

    sources: Tensor | None

    def __init__(self, maps: int, *, links: Links | None = None) -> None:
        super().__init__()
        self.maps = len(links) if links else maps
        self.inputs = maps
        self.gain = nn.Parameter(torch.empty(self.maps))
        self.bias = nn.Parameter(torch.empty(self.maps))
        sources = torch.tensor([link for (link,) in links]) if links else None
        self.register_buffer("sources", sources, persistent=False)
        reset_uniform(self)

    def forward(self, x: Tensor) -> Tensor:
        mean = F.avg_pool2d(x, 2)
        if self.sources is not None:
            mean = mean.index_select(1, self.sources)
        return mean * (4 * self.gain).view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class SparseConnectionConv2d(nn.Module):
    """A convolution in which each output map reads only the input maps that `links` names (LeNet-5, table I).

    Holds one kernel for each link: `weight` is (links, kernel, kernel), in the order of the table.
    """

    places: Tensor

    def __init__(self, maps: int, links: Links, *, kernel: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        if any(not 0 <= source < maps for sources in links for source in sources):
            raise SpecError(f"links name an input map outside 0..{maps - 1}")
        self.maps, self.links, self.kernel, self.stride = maps, links, kernel, stride
        self.weight = nn.Parameter(torch.empty(sum(map(len, links)), kernel, kernel))
        self.bias = nn.Parameter(torch.empty(len(links))) if bias else None
        places = [target * maps + source for target, sources in enumerate(links) for source in sources]
        self.register_buffer("places", torch.tensor(places), persistent=False)
        reset_uniform(self)

    def dense(self) -> Tensor:
        """Return the weight of the equivalent full convolution, with zeros where there is no link."""
        full = self.weight.new_zeros(len(self.links) * self.maps, self.kernel, self.kernel)
        full = full.index_copy(0, self.places, self.weight)
        return full.view(len(self.links), self.maps, self.kernel, self.kernel)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.dense(), self.bias, self.stride)

    def simplified(self) -> nn.Conv2d:
        """Return the equivalent full convolution, with these weights: for answers alone."""
        twin = nn.Conv2d(self.maps, len(self.links), self.kernel, self.stride, bias=self.bias is not None)
        twin.weight, twin.bias = nn.Parameter(self.dense().detach()), self.bias
        return twin


class UnitBias(nn.Module):
    """A bias of its own for every unit of every map: (maps, height, width) (LeCun et al. 1989)."""

    def __init__(self, maps: int, size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(maps, size, size))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class RadialBasis(nn.Module):
    """Squared distance of the features to each class's fixed code (LeNet-5's output layer): (batch, classes)."""

    codes: Tensor

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)

    def forward(self, x: Tensor) -> Tensor:
        return (x.unsqueeze(1) - self.codes).square().sum(-1)


def reset_uniform(module: nn.Module) -> None:
    """Draw weights and biases from U(-2.4/F, 2.4/F), F the number of inputs of a unit (LeCun et al. 1989 and 1998)."""
    bounds: dict[nn.Parameter, float]
    for layer in module.modules():
        if is_empty(layer):
            continue
        if isinstance(layer, Subsample):
            bounds = {layer.gain: 2.4 / 4, layer.bias: 2.4 / 4}
        elif isinstance(layer, SparseConnectionConv2d):
            fan_in = layer.weight.new_tensor([len(sources) for sources in layer.links]) * layer.kernel**2
            of_link = (
                layer.weight.new_tensor([len(sources) for sources in layer.links for _ in sources]) * layer.kernel**2
            )
            with torch.no_grad():
                layer.weight.uniform_(-2.4, 2.4).div_(of_link.view(-1, 1, 1))
                if layer.bias is not None:
                    layer.bias.uniform_(-2.4, 2.4).div_(fan_in)
            continue
        elif isinstance(layer, nn.Linear | nn.Conv2d):
            bound = 2.4 / math.prod(layer.weight.shape[1:])
            bounds = dict.fromkeys(layer.parameters(), bound)
        else:
            continue
        for parameter, bound in bounds.items():
            nn.init.uniform_(parameter, -bound, bound)


for _elementwise in (ScaledTanh, Negate):
    rule.register(_elementwise, same)
always(ScaledTanh, "tanh")
always(Negate, "")
always(UnitBias, "bias per unit")
always(Subsample, "sum 2×2, /2", "pool")


@outline.register
def _(layer: SparseConnectionConv2d) -> Box:
    step = f", /{layer.stride}" if layer.stride > 1 else ""
    sparse = " linked" if any(len(sources) < layer.maps for sources in layer.links) else ""
    return Box((f"{layer.kernel}×{layer.kernel}{sparse}, {len(layer.links)}{step}",), "conv")


@outline.register
def _(layer: RadialBasis) -> Box:
    return Box((f"distances, {len(layer.codes)}",), "dense")


@rule.register
def _(layer: Subsample, x: Signal, tally: Tally) -> Signal:
    if x.channels != layer.inputs:
        raise tally.refuse(layer, f"expects {layer.inputs} maps, got {x.channels}")
    y = slide(layer, x, tally, channels=layer.maps, kernel=2, stride=2)
    return tally.add(layer, x, y, activations=y.size, connections=5 * y.size)


@rule.register
def _(layer: SparseConnectionConv2d, x: Signal, tally: Tally) -> Signal:
    if x.channels != layer.maps:
        raise tally.refuse(layer, f"expects {layer.maps} maps, got {x.channels}")
    y = slide(layer, x, tally, channels=len(layer.links), kernel=layer.kernel, stride=layer.stride)
    macs = layer.weight.numel() * math.prod(y.space)
    biases = y.size if layer.bias is not None else 0
    return tally.add(layer, x, y, macs=macs, activations=y.size, connections=macs + biases)


@rule.register
def _(layer: UnitBias, x: Signal, tally: Tally) -> Signal:
    if x.shape != layer.bias.shape:
        raise tally.refuse(layer, f"has one bias for each unit of {tuple(layer.bias.shape)}, got {x.shape}")
    return tally.add(layer, x, x, connections=x.size)


@rule.register
def _(layer: RadialBasis, x: Signal, tally: Tally) -> Signal:
    classes, features = layer.codes.shape
    if x.shape != (features,):
        raise tally.refuse(layer, f"expects {features} features, got {x.shape}")
    macs = classes * features
    return tally.add(layer, x, x.like((classes,)), macs=macs, activations=classes, connections=macs)
