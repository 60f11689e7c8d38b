"""Layers of the LeNet papers: sparse connections, trainable subsampling, a bias per unit, distances to class codes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convatlas.core.cost_rules import same, slide
from convatlas.core.outline import Box, always, outline
from convatlas.core.signal import Signal, Tally, rule
from convatlas.errors import SpecError
from convatlas.layers.init import is_empty

INITIAL_RANGE = 2.4
"""Weights start uniform in +-2.4 / fan-in (LeCun et al. 1989 and 1998)."""

CODE_SEED = 1998
"""Seed of the random codes for networks whose size the published bitmaps do not fit."""

BITMAP_CLASSES, BITMAP_UNITS = 10, 84
"""The published bitmaps: ten digits of 7 x 12 units."""

Links = tuple[tuple[int, ...], ...]
"""For each output map, the input maps that it reads."""

# ConvNet 1989: "each unit in H2 reads 8 of the 12 maps"; the scheme was never published, this is Karpathy's (2022).
H2_LINKS: Links = (
    ((0, 1, 2, 3, 4, 5, 6, 7),) * 4 + ((4, 5, 6, 7, 8, 9, 10, 11),) * 4 + ((0, 1, 2, 3, 8, 9, 10, 11),) * 4
)

# LeNet-1: two independent halves (LeCun et al. 1990, table 1).
LENET1_LINKS: Links = ((0,), (0, 1), (0, 1), (1,), (0, 1), (0, 1), (2,), (2, 3), (2, 3), (3,), (2, 3), (2, 3))

# LeNet-5: which maps of S2 each map of C3 reads (LeCun et al. 1998, table I).
C3_LINKS: Links = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5),
)  # fmt: skip

# The codes of LeNet-5's output units: 7 x 12 bitmaps of the digits (LeCun et al. 1998, figure 3).
DIGIT_BITMAPS = """
.#####. ...##.. .#####. ####### .#####. .#####. ..####. ####### .#####. .#####.
....... ..###.. ....... .....## ....... ....... .##.... .....## ##...## ##..###
..###.. .####.. .#####. ....##. ....... ####### ##..... .....## ##...## ##...##
.##.##. ...##.. ##...## ...##.. .##..## ##..... ##..... ....##. ##...## ##...##
##...## ...##.. #....## ..####. .##..## ##..... ######. ...##.. .#####. ##..###
##...## ...##.. ....##. .....## ###..## .####.. ###..## ...##.. ##...## .######
##...## ...##.. ..###.. .....## ##...## ..####. ##...## ..##... ##...## .....##
##...## ...##.. .##.... .....## ##...## .....## ##...## ..##... ##...## .....##
.##.##. ...##.. ##..... ##...## ##..### ##...## ###..## ..##... ##...## ....##.
..###.. .###### ####### .#####. .###### .#####. .#####. ..##... .#####. .####..
....... ....... ....... ....... .....## ....... ....... ....... ....... .......
....... ....... ....... ....... .....## ....... ....... ....... ....... .......
"""


class ScaledTanh(nn.Module):
    """1.7159 tanh(2x/3), so that f(1) = 1 and f(-1) = -1 (LeCun et al. 1998, appendix A)."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(2 / 3 * x)


class Negate(nn.Module):
    """-x: turns a penalty (smaller is better) into a score (larger is better)."""

    def forward(self, x: Tensor) -> Tensor:
        return -x


class Subsample(nn.Module):
    """Sum of each 2x2 window, times a trainable gain, plus a trainable bias, one pair for each map (LeNet's S layers).

    links: the one input map of each output map; by default each map reads itself.
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
    """kxk convolution in which each output map reads only the input maps in its row of `links` (LeNet-5, table I).

    There is one kernel for each link: `weight` is (links, kernel, kernel), in the order of the table.
    """

    places: Tensor

    def __init__(self, maps: int, links: Links, *, kernel: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        if any(not 0 <= source < maps for sources in links for source in sources):
            raise SpecError(f"SparseConnectionConv2d: links must be input maps in [0, {maps - 1}], got {links}")
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

    def simplify(self) -> nn.Conv2d:
        """Return the equivalent full convolution, with these weights, for inference."""
        twin = nn.Conv2d(
            self.maps, len(self.links), self.kernel, self.stride, bias=self.bias is not None, device="meta"
        )  # fmt: skip
        twin.weight, twin.bias = nn.Parameter(self.dense().detach()), self.bias
        return twin


class UnitBias(nn.Module):
    """One bias for each unit of each map: (maps, height, width) (LeCun et al. 1989)."""

    def __init__(self, maps: int, size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(maps, size, size))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class RadialBasis(nn.Module):
    """RBF outputs: squared distances of the features to the fixed code of each class, (batch, classes) (LeNet-5)."""

    codes: Tensor

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)

    def forward(self, x: Tensor) -> Tensor:
        return (x.unsqueeze(1) - self.codes).square().sum(-1)


def stretch_links(links: Links, inputs: int, outputs: int) -> Links:
    """Return a published table for other numbers of maps: each published map becomes a group of maps with its links."""
    published = 1 + max(source for sources in links for source in sources)
    groups = [source * published // inputs for source in range(inputs)]
    rows = [links[target * len(links) // outputs] for target in range(outputs)]
    stretched = tuple(tuple(i for i, group in enumerate(groups) if group in row) for row in rows)
    # with fewer maps than published, a row can lose all its links; it then reads all maps
    return tuple(row or tuple(range(inputs)) for row in stretched)


def full_links(inputs: int, outputs: int) -> Links:
    """Return the table in which every output map reads every input map."""
    return (tuple(range(inputs)),) * outputs


def neighbor_links(start: int, count: int, maps: int) -> tuple[int, ...]:
    """Return `count` neighboring maps from `start` on, modulo `maps`."""
    return tuple(sorted({(start + i) % maps for i in range(count)}))


def class_codes(classes: int, features: int) -> Tensor:
    """Return the +-1 code of each class, (classes, features): the published bitmaps, or random codes of a fixed seed.

    The bitmaps fit up to ten classes of 84 features. The paper names random +-1 codes as the alternative (section II-B,
    output layer). Raises SpecError if there are fewer different codes than classes.
    """
    rows = [line.split() for line in DIGIT_BITMAPS.split("\n") if line]
    if features == BITMAP_UNITS and classes <= BITMAP_CLASSES:
        bitmaps = ["".join(row[digit] for row in rows) for digit in range(classes)]
        return torch.tensor([[1.0 if dot == "#" else -1.0 for dot in bitmap] for bitmap in bitmaps])
    if 2**features < classes:
        raise SpecError(f"LeNet5: hidden[1] must have 2^units >= classes, got {features} units for {classes} classes")
    codes: dict[tuple[int, ...], None] = {}
    generator = torch.Generator(device="cpu").manual_seed(CODE_SEED)
    while len(codes) < classes:
        codes[tuple(torch.randint(0, 2, (features,), generator=generator, device="cpu").tolist())] = None
    return torch.tensor(list(codes)).float() * 2 - 1


def reset_uniform(module: nn.Module) -> None:
    """Draw weights and biases from U(-2.4/F, 2.4/F), F the number of inputs of a unit (LeCun et al. 1989 and 1998)."""
    bounds: dict[nn.Parameter, float]
    for layer in module.modules():
        if is_empty(layer):
            continue
        if isinstance(layer, Subsample):
            bounds = {layer.gain: INITIAL_RANGE / 4, layer.bias: INITIAL_RANGE / 4}
        elif isinstance(layer, SparseConnectionConv2d):
            fan_in = layer.weight.new_tensor([len(sources) for sources in layer.links]) * layer.kernel**2
            of_link = (
                layer.weight.new_tensor([len(sources) for sources in layer.links for _ in sources]) * layer.kernel**2
            )
            with torch.no_grad():
                layer.weight.uniform_(-INITIAL_RANGE, INITIAL_RANGE).div_(of_link.view(-1, 1, 1))
                if layer.bias is not None:
                    layer.bias.uniform_(-INITIAL_RANGE, INITIAL_RANGE).div_(fan_in)
            continue
        elif isinstance(layer, nn.Linear | nn.Conv2d):
            bound = INITIAL_RANGE / math.prod(layer.weight.shape[1:])
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
        raise tally.error(layer, f"expects {layer.inputs} maps, got {x.channels}")
    y = slide(layer, x, tally, channels=layer.maps, kernel=2, stride=2)
    return tally.add(layer, x, y, activations=y.size, connections=5 * y.size)


@rule.register
def _(layer: SparseConnectionConv2d, x: Signal, tally: Tally) -> Signal:
    if x.channels != layer.maps:
        raise tally.error(layer, f"expects {layer.maps} maps, got {x.channels}")
    y = slide(layer, x, tally, channels=len(layer.links), kernel=layer.kernel, stride=layer.stride)
    macs = layer.weight.numel() * math.prod(y.spatial)
    biases = y.size if layer.bias is not None else 0
    return tally.add(layer, x, y, macs=macs, activations=y.size, connections=macs + biases)


@rule.register
def _(layer: UnitBias, x: Signal, tally: Tally) -> Signal:
    if x.shape != layer.bias.shape:
        raise tally.error(layer, f"has one bias for each unit of {tuple(layer.bias.shape)}, got {x.shape}")
    return tally.add(layer, x, x, connections=x.size)


@rule.register
def _(layer: RadialBasis, x: Signal, tally: Tally) -> Signal:
    classes, features = layer.codes.shape
    if x.shape != (features,):
        raise tally.error(layer, f"expects {features} features, got {x.shape}")
    macs = classes * features
    return tally.add(layer, x, x.like((classes,)), macs=macs, activations=classes, connections=macs)
