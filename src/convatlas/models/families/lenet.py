"""LeNet: the zip-code network of 1989, LeNet-1, LeNet-4, LeNet-5 as published, and LeNet-5 as it is used today.

Layer names are those of the papers: C convolves, S subsamples, F is fully connected, H is a hidden layer of 1989.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from convatlas.core.compose import Chain
from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Resolution, Spec, Width
from convatlas.layers.lenet import (
    C3_LINKS,
    H2_LINKS,
    LENET1_LINKS,
    Negate,
    RadialBasis,
    ScaledTanh,
    SparseConnectionConv2d,
    Subsample,
    UnitBias,
    class_codes,
    full_links,
    neighbor_links,
    reset_uniform,
    stretch_links,
)
from convatlas.models.card import Card, Family, Variant, error_rate


class LeNet(Spec):
    """Base of the family: widths scale to integers, without a divisor."""

    @staticmethod
    def round_width(width: float) -> int:
        return max(1, round(width))


class TwoStageLeNet(LeNet):
    """Base of the networks with two stages of 5x5 convolution and 2x2 subsampling."""

    @property
    def minimum(self) -> int:
        return 16

    @property
    def map_size(self) -> int:
        """Height and width of the maps behind both stages, in pixels."""
        return ((self.resolution - 4) // 2 - 4) // 2


@dataclass(frozen=True)
class ConvNet1989(LeNet):
    """LeCun et al. 1989, figure 3: 5x5 /2 -> 5x5 /2 with one bias per unit -> 30 hidden units; tanh everywhere."""

    maps: tuple[Width, Width] = (12, 12)
    hidden: Width = 30
    resolution: Resolution = 16

    def build(self, *, classes: int, channels: int) -> Network:
        (h1, h2), size1 = self.maps, (self.resolution + 1) // 2
        size2 = (size1 + 1) // 2
        # the image and the maps of H1 are padded with the background, -1
        network = Network(
            input_shape=self.input_shape(channels),
            stem=Chain(
                h1_pad=nn.ConstantPad2d(2, -1.0),
                h1=SparseConnectionConv2d(channels, full_links(channels, h1), kernel=5, stride=2, bias=False),
                h1_bias=UnitBias(h1, size1),
                h1_squash=ScaledTanh(),
            ),
            stages=Chain(
                Chain(
                    h2_pad=nn.ConstantPad2d(2, -1.0),
                    h2=SparseConnectionConv2d(h1, stretch_links(H2_LINKS, h1, h2), kernel=5, stride=2, bias=False),
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
class LeNet1(TwoStageLeNet):
    """LeCun et al. 1990, figure 2: 5x5 -> subsampling -> sparse 5x5 -> subsampling -> outputs."""

    maps: tuple[Width, Width] = (4, 12)
    resolution: Resolution = 28

    def build(self, *, classes: int, channels: int) -> Network:
        h1, h3 = self.maps
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
                    h3=SparseConnectionConv2d(h1, stretch_links(LENET1_LINKS, h1, h3), kernel=5),
                    h3_squash=ScaledTanh(),
                    h4=Subsample(h3),
                    h4_squash=ScaledTanh(),
                )
            ),
            head=Chain(flat=nn.Flatten(), out=nn.Linear(h3 * self.map_size**2, classes), out_squash=ScaledTanh()),
        )
        reset_uniform(network)
        return network


@dataclass(frozen=True)
class LeNet4(TwoStageLeNet):
    """LeNet-4, a reconstruction: 5x5 -> subsampling -> sparse 5x5 -> subsampling -> sparse hidden layer -> outputs.

    The text gives the numbers of maps and "about 17,000" parameters, but no tables. A literal reading (16 maps of 5x5,
    fully connected to 120 units) needs 48,120 weights in that layer alone. Here S2 reads each map of C1 twice ("in
    pairs"), each map of C3 reads 3 or 4 of the 8 maps of S2 (60 links), and the units of F5 read 5, 5 and 4 of the 16
    maps of S4 in turn: 16,998 parameters and 258,306 connections.
    """

    maps: tuple[Width, Width, Width] = (4, 8, 16)
    hidden: Width = 120
    resolution: Resolution = 32

    def build(self, *, classes: int, channels: int) -> Network:
        c1, s2, c3 = self.maps
        pairs = tuple((target * c1 // s2,) for target in range(s2))
        c3_links = tuple(neighbor_links(start, 4 if start % 4 else 3, s2) for start in range(c3))
        f5_links = tuple(neighbor_links(unit, 4 if unit % 3 == 2 else 5, c3) for unit in range(self.hidden))
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
                f5=SparseConnectionConv2d(c3, f5_links, kernel=self.map_size),
                f5_squash=ScaledTanh(),
                flat=nn.Flatten(),
                out=nn.Linear(self.hidden, classes),
                out_squash=ScaledTanh(),
            ),
        )
        reset_uniform(network)
        return network


@dataclass(frozen=True)
class LeNet5(TwoStageLeNet):
    """LeCun et al. 1998, figure 2: 5x5 -> subsampling -> sparse 5x5 -> subsampling -> 5x5 -> linear -> RBF outputs.

    The output is minus the paper's penalty y_i, so that the largest output is the prediction, as in other networks.
    """

    maps: tuple[Width, Width] = (6, 16)
    hidden: tuple[Width, Width] = (120, 84)
    resolution: Resolution = 32

    def build(self, *, classes: int, channels: int) -> Network:
        (c1, c3), (c5, f6) = self.maps, self.hidden
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
                    c3=SparseConnectionConv2d(c1, stretch_links(C3_LINKS, c1, c3), kernel=5),
                    c3_squash=ScaledTanh(),
                    s4=Subsample(c3),
                    s4_squash=ScaledTanh(),
                )
            ),
            head=Chain(
                c5=nn.Conv2d(c3, c5, self.map_size),
                c5_squash=ScaledTanh(),
                flat=nn.Flatten(),
                f6=nn.Linear(c5, f6),
                f6_squash=ScaledTanh(),
                penalty=RadialBasis(class_codes(classes, f6)),
                score=Negate(),
            ),
        )
        reset_uniform(network)
        return network


@dataclass(frozen=True)
class LeNet5Modern(TwoStageLeNet):
    """The LeNet-5 of most code: 5x5 -> max pool -> 5x5 -> max pool -> linear -> linear -> linear, with ReLU.

    ReLU follows the pooling: the same function as in front of it, on a quarter of the values.
    """

    maps: tuple[Width, Width] = (6, 16)
    hidden: tuple[Width, Width] = (120, 84)
    resolution: Resolution = 32

    def build(self, *, classes: int, channels: int) -> Network:
        (c1, c3), (c5, f6) = self.maps, self.hidden
        return Network(
            input_shape=self.input_shape(channels),
            stem=Chain(c1=nn.Conv2d(channels, c1, 5), s2=nn.MaxPool2d(2), s2_relu=nn.ReLU()),
            stages=Chain(Chain(c3=nn.Conv2d(c1, c3, 5), s4=nn.MaxPool2d(2), s4_relu=nn.ReLU())),
            head=Chain(
                flat=nn.Flatten(),
                c5=nn.Linear(c3 * self.map_size**2, c5),
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
            error_rate(5.0, "zip-code digits (2,007)", "23 epochs on 7,291 digits"),
            "The 8-of-12 scheme of H2 was never published; here the blocks 0-7, 4-11 and 0-3 with 8-11.",
        ),
        Preprocessing(resize=16, crop=16, antialias=False),
        classes=10, recipe="lecun1989",
    ),
    "lenet1": Variant(
        LeNet1(),
        Card(
            "LeNet-1", 1990, _1990, ("spatial exploitation",),
            "Alternating convolution and trainable subsampling.",
            error_rate(1.7, "MNIST", "digit of 16x16 in a field of 28x28"),
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
            error_rate(1.1, "MNIST"),
            "The connection tables were not published; about 17,000 parameters, 260,000 connections.",
        ),
        _INPUT_1998,
        classes=10, recipe="lecun1998",
    ),
    "lenet5": Variant(
        LeNet5(),
        Card(
            "LeNet-5", 1998, _1998, ("spatial exploitation",),
            "Sparse connections break the symmetry of the maps; RBF outputs: distances to class prototypes.",
            error_rate(0.95, "MNIST"), "0.8 % error with distortions (paper); 60,000 parameters, 340,908 connections.",
        ),
        _INPUT_1998,
        classes=10, recipe="lecun1998",
    ),
    "lenet5_modern": Variant(
        LeNet5Modern(),
        Card(
            "LeNet-5 (modern)", 1998, _1998, ("spatial exploitation",),
            "LeNet-5 with today's layers: full C3, ReLU, max pooling, softmax.",
            note="This network is folklore, not that of the paper.", family_title="LeNet-5",
        ),
        Preprocessing(resize=28, crop=28, pad=2, mean=(0.1307,), std=(0.3081,)),
        classes=10,
    ),
})  # fmt: skip
