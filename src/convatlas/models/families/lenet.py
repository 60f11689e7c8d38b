"""The LeNet line: the zip-code network of 1989, LeNet-1, LeNet-4, LeNet-5 as printed, and LeNet-5 as it is used today.

Layer names are those of the papers: C convolves, S subsamples, F is fully connected, H is a hidden layer of 1989.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convatlas.core.compose import Chain
from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Resolution, Spec, Width
from convatlas.errors import SpecError
from convatlas.layers.lenet import (
    Links,
    Negate,
    RadialBasis,
    ScaledTanh,
    SparseConnectionConv2d,
    Subsample,
    UnitBias,
    reset_uniform,
)
from convatlas.models.card import Card, Family, Variant

# 1989: "each unit in H2 reads 8 of the 12 maps"; the scheme was never published, this one is Karpathy's (2022).
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

# The targets of LeNet-5's output units: 7 x 12 drawings of the digits (LeCun et al. 1998, figure 3).
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


def stretch(links: Links, inputs: int, outputs: int) -> Links:
    """Return a printed table for other numbers of maps: each printed map becomes a group of maps with its links."""
    printed = 1 + max(source for sources in links for source in sources)
    groups = [source * printed // inputs for source in range(inputs)]
    rows = [links[target * len(links) // outputs] for target in range(outputs)]
    stretched = tuple(tuple(i for i, group in enumerate(groups) if group in row) for row in rows)
    # with fewer maps than printed a row can lose all its links; it then reads everything
    return tuple(row or tuple(range(inputs)) for row in stretched)


def full(inputs: int, outputs: int) -> Links:
    """Every output map reads every input map."""
    return (tuple(range(inputs)),) * outputs


def codes(classes: int, features: int) -> Tensor:
    """Return the +-1 target of each class: the printed bitmaps where they fit, else random codes of a fixed seed.

    The paper names randomly chosen +-1 codes as the alternative to drawings (section II-B, output layer).
    """
    rows = [line.split() for line in DIGIT_BITMAPS.split("\n") if line]
    if features == 84 and classes <= 10:
        drawings = ["".join(row[digit] for row in rows) for digit in range(classes)]
        return torch.tensor([[1.0 if dot == "#" else -1.0 for dot in drawing] for drawing in drawings])
    if 2**features < classes:
        raise SpecError(f"{features} features have no {classes} different codes; widen hidden[1]")
    drawn: dict[tuple[int, ...], None] = {}
    generator = torch.Generator(device="cpu").manual_seed(1998)
    while len(drawn) < classes:
        drawn[tuple(torch.randint(0, 2, (features,), generator=generator, device="cpu").tolist())] = None
    return torch.tensor(list(drawn)).float() * 2 - 1


class LeNet(Spec):
    """What the specs of this family share: widths scale to whole numbers, without a divisor."""

    @staticmethod
    def round_width(width: float) -> int:
        return max(1, round(width))


@dataclass(frozen=True)
class ConvNet1989(LeNet):
    """LeCun et al. 1989, figure 3: two 5x5 convolutions of stride 2 with a bias for each unit, 30 hidden units."""

    maps: tuple[Width, Width] = (12, 12)
    hidden: Width = 30
    resolution: Resolution = 16

    def build(self, *, classes: int, channels: int) -> Network:
        (h1, h2), size1 = self.maps, (self.resolution + 1) // 2
        size2 = (size1 + 1) // 2
        # the border around the image and around the maps of H1 reads as background, -1
        network = Network(
            input_shape=self.input_shape(channels),
            stem=Chain(
                h1_pad=nn.ConstantPad2d(2, -1.0),
                h1=SparseConnectionConv2d(channels, full(channels, h1), kernel=5, stride=2, bias=False),
                h1_bias=UnitBias(h1, size1),
                h1_squash=ScaledTanh(),
            ),
            stages=Chain(
                Chain(
                    h2_pad=nn.ConstantPad2d(2, -1.0),
                    h2=SparseConnectionConv2d(h1, stretch(H2_LINKS, h1, h2), kernel=5, stride=2, bias=False),
                    h2_bias=UnitBias(h2, size2),
                    h2_squash=ScaledTanh(),
                )
            ),
            head=Chain(
                flat=nn.Flatten(),
                h3=nn.Linear(h2 * size2**2, self.hidden),
                h3_squash=ScaledTanh(),
                out=nn.Linear(self.hidden, classes),
                out_squash=ScaledTanh(),
            ),
        )
        reset_uniform(network)
        return network


@dataclass(frozen=True)
class LeNet1(LeNet):
    """LeCun et al. 1990, figure 2: convolution and subsampling, twice; no hidden layer."""

    maps: tuple[Width, Width] = (4, 12)
    resolution: Resolution = 28

    @property
    def minimum(self) -> int:
        return 16

    def build(self, *, classes: int, channels: int) -> Network:
        h1, h3 = self.maps
        size = ((self.resolution - 4) // 2 - 4) // 2
        network = Network(
            input_shape=self.input_shape(channels),
            stem=Chain(
                h1=nn.Conv2d(channels, h1, 5),
                h1_squash=ScaledTanh(),
                h2=Subsample(h1),
                h2_squash=ScaledTanh(),
            ),
            stages=Chain(
                Chain(
                    h3=SparseConnectionConv2d(h1, stretch(LENET1_LINKS, h1, h3), kernel=5),
                    h3_squash=ScaledTanh(),
                    h4=Subsample(h3),
                    h4_squash=ScaledTanh(),
                )
            ),
            head=Chain(flat=nn.Flatten(), out=nn.Linear(h3 * size**2, classes), out_squash=ScaledTanh()),
        )
        reset_uniform(network)
        return network


@dataclass(frozen=True)
class LeNet4(LeNet):
    """LeNet-4, a reconstruction: the text gives the numbers of maps and "about 17,000" parameters, but no tables.

    A literal reading (16 maps of 5x5 in full to 120 units) needs 48,120 weights in that layer alone. Here S2 reads each
    map of C1 twice ("in pairs"), each map of C3 reads 3 or 4 of the 8 maps of S2 (60 links), and the units of F5 read
    5, 5 and 4 of the 16 maps of S4 in turn: 16,998 parameters and 258,306 connections.
    """

    maps: tuple[Width, Width, Width] = (4, 8, 16)
    hidden: Width = 120
    resolution: Resolution = 32

    @property
    def minimum(self) -> int:
        return 16

    def build(self, *, classes: int, channels: int) -> Network:
        c1, s2, c3 = self.maps
        size = ((self.resolution - 4) // 2 - 4) // 2
        pairs = tuple((target * c1 // s2,) for target in range(s2))
        c3_links = tuple(neighbors(start, 4 if start % 4 else 3, s2) for start in range(c3))
        f5_links = tuple(neighbors(unit, 4 if unit % 3 == 2 else 5, c3) for unit in range(self.hidden))
        network = Network(
            input_shape=self.input_shape(channels),
            stem=Chain(
                c1=nn.Conv2d(channels, c1, 5),
                c1_squash=ScaledTanh(),
                s2=Subsample(c1, links=pairs),
                s2_squash=ScaledTanh(),
            ),
            stages=Chain(
                Chain(
                    c3=SparseConnectionConv2d(s2, c3_links, kernel=5),
                    c3_squash=ScaledTanh(),
                    s4=Subsample(c3),
                    s4_squash=ScaledTanh(),
                )
            ),
            head=Chain(
                f5=SparseConnectionConv2d(c3, f5_links, kernel=size),
                f5_squash=ScaledTanh(),
                flat=nn.Flatten(),
                out=nn.Linear(self.hidden, classes),
                out_squash=ScaledTanh(),
            ),
        )
        reset_uniform(network)
        return network


def neighbors(start: int, count: int, maps: int) -> tuple[int, ...]:
    """Return `count` neighboring maps from `start` on, around the end."""
    return tuple(sorted({(start + i) % maps for i in range(count)}))


@dataclass(frozen=True)
class LeNet5(LeNet):
    """LeCun et al. 1998, figure 2: sparse C3, trainable subsampling, scaled tanh, distance to fixed codes.

    The output is minus the paper's penalty y_i, so that the largest output wins, as in every other network.
    """

    maps: tuple[Width, Width] = (6, 16)
    hidden: tuple[Width, Width] = (120, 84)
    resolution: Resolution = 32

    @property
    def minimum(self) -> int:
        return 16

    def build(self, *, classes: int, channels: int) -> Network:
        (c1, c3), (c5, f6) = self.maps, self.hidden
        size = ((self.resolution - 4) // 2 - 4) // 2
        network = Network(
            input_shape=self.input_shape(channels),
            stem=Chain(
                c1=nn.Conv2d(channels, c1, 5),
                c1_squash=ScaledTanh(),
                s2=Subsample(c1),
                s2_squash=ScaledTanh(),
            ),
            stages=Chain(
                Chain(
                    c3=SparseConnectionConv2d(c1, stretch(C3_LINKS, c1, c3), kernel=5),
                    c3_squash=ScaledTanh(),
                    s4=Subsample(c3),
                    s4_squash=ScaledTanh(),
                )
            ),
            head=Chain(
                c5=nn.Conv2d(c3, c5, size),
                c5_squash=ScaledTanh(),
                flat=nn.Flatten(),
                f6=nn.Linear(c5, f6),
                f6_squash=ScaledTanh(),
                penalty=RadialBasis(codes(classes, f6)),
                score=Negate(),
            ),
        )
        reset_uniform(network)
        return network


@dataclass(frozen=True)
class LeNet5Modern(LeNet):
    """What most code calls LeNet-5: full C3, max pooling, ReLU, a linear output for softmax.

    ReLU follows the pooling: the same function as before it, on a quarter of the values.
    """

    maps: tuple[Width, Width] = (6, 16)
    hidden: tuple[Width, Width] = (120, 84)
    resolution: Resolution = 32

    @property
    def minimum(self) -> int:
        return 16

    def build(self, *, classes: int, channels: int) -> Network:
        (c1, c3), (c5, f6) = self.maps, self.hidden
        size = ((self.resolution - 4) // 2 - 4) // 2
        return Network(
            input_shape=self.input_shape(channels),
            stem=Chain(c1=nn.Conv2d(channels, c1, 5), s2=nn.MaxPool2d(2), s2_relu=nn.ReLU()),
            stages=Chain(Chain(c3=nn.Conv2d(c1, c3, 5), s4=nn.MaxPool2d(2), s4_relu=nn.ReLU())),
            head=Chain(
                flat=nn.Flatten(),
                c5=nn.Linear(c3 * size**2, c5),
                c5_relu=nn.ReLU(),
                f6=nn.Linear(c5, f6),
                f6_relu=nn.ReLU(),
                out=nn.Linear(f6, classes),
            ),
        )


_1989 = "LeCun et al., Backpropagation applied to handwritten zip code recognition, Neural Computation 1(4), 1989"
_1990 = "LeCun et al., Handwritten digit recognition with a back-propagation network, NIPS 2, 1990"
_1998 = (
    "LeCun, Bottou, Bengio, Haffner, Gradient-based learning applied to document recognition, Proc. IEEE 86(11), 1998"
)

# background -0.1, foreground 1.175: mean about 0 and variance about 1 on MNIST (LeCun et al. 1998, section II-B)
_INPUT_1998 = Preprocessing(resize=28, crop=28, pad=2, mean=(0.1 / 1.275,), std=(1 / 1.275,))

FAMILY = Family({
    "convnet1989": Variant(
        ConvNet1989(),
        Card(
            "ConvNet 1989", 1989, _1989, ("spatial exploitation",),
            "The first convolutional network trained end to end by backpropagation on real images.",
            "5.0 % error on 2,007 zip-code digits after 23 passes over 7,291",
            "The 8-of-12 scheme of H2 was never published; here the blocks 0-7, 4-11 and 0-3 with 8-11.",
        ),
        Preprocessing(resize=16, crop=16, antialias=False),
        classes=10, recipe="lecun1989",
    ),
    "lenet1": Variant(
        LeNet1(),
        Card(
            "LeNet-1", 1990, _1990, ("spatial exploitation",),
            "Convolution and trainable subsampling in turn.",
            "1.7 % error on MNIST (digit of 16x16 in a field of 28x28)",
        ),
        # MNIST's 20 px digit becomes 16 px in a field of 28
        Preprocessing(resize=22, crop=22, pad=3),
        classes=10, recipe="lecun1998",
    ),
    "lenet4": Variant(
        LeNet4(),
        Card(
            "LeNet-4 (reconstruction)", 1995, _1998, ("spatial exploitation",),
            "More maps, and a fully connected hidden layer.",
            "about 17,000 parameters and 260,000 connections; 1.1 % error on MNIST",
            "Tables were not printed; see the spec's docstring for what was chosen.",
        ),
        _INPUT_1998,
        classes=10, recipe="lecun1998",
    ),
    "lenet5": Variant(
        LeNet5(),
        Card(
            "LeNet-5", 1998, _1998, ("spatial exploitation",),
            "A sparse table breaks the symmetry of the maps; outputs are distances to drawings of the classes.",
            "60,000 parameters, 340,908 connections; 0.95 % error on MNIST, 0.8 % with distortions",
        ),
        _INPUT_1998,
        classes=10, recipe="lecun1998",
    ),
    "lenet5_modern": Variant(
        LeNet5Modern(),
        Card(
            "LeNet-5 (modern)", 1998, _1998, ("spatial exploitation",),
            "LeNet-5 with today's parts: full C3, ReLU, max pooling, softmax.",
            "nothing: this network is folklore, not the one of the paper", family="LeNet-5",
        ),
        Preprocessing(resize=28, crop=28, pad=2, mean=(0.1307,), std=(0.3081,)),
        classes=10,
    ),
})  # fmt: skip
