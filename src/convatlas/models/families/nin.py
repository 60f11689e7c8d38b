"""Network in Network: a small perceptron at every pixel, and no fully connected layer at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from convatlas.core.compose import Chain
from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Depth, Record, Resolution, Spec, Width
from convatlas.layers.conv import ConvNorm
from convatlas.models.card import Card, Family, Variant, imagenet


@dataclass(frozen=True)
class Mlpconv(Record):
    """A convolution and two 1x1 convolutions (section 3.1); `depth` of the latter two. `pool` follows, 3x3 of stride 2.

    widths: of the three layers; the last of the network's last row is the number of classes, and is left out.
    """

    widths: tuple[Width, ...]
    kernel: int
    stride: int = 1
    padding: int = 0
    pool: Literal["max", "average"] | None = None
    depth: Depth = 1

    def build(self, inputs: int, widths: tuple[int, ...]) -> Iterator[tuple[str, nn.Module]]:
        conv = ConvNorm(inputs, widths[0], kernel=self.kernel, stride=self.stride, padding=self.padding, norm=None)
        yield "conv", conv
        inputs = widths[0]
        for copy in range(self.depth):
            for i, width in enumerate(widths[1:], 1):
                name = f"cccp{i}" if not copy else f"cccp{i}_{copy + 1}"
                if copy + 1 < self.depth and i == len(widths) - 1:
                    width = widths[-2]  # copies stay as wide as they are inside
                yield name, ConvNorm(inputs, width, kernel=1, norm=None)
                inputs = width
        if self.pool:
            yield "pool", (nn.MaxPool2d if self.pool == "max" else nn.AvgPool2d)(3, 2, ceil_mode=True)
            yield "drop", nn.Dropout(0.5)


@dataclass(frozen=True)
class NetworkInNetwork(Spec):
    """Lin et al. 2013, figure 2: rows of mlpconv layers, then the mean of each of the last maps is a class's score."""

    rows: tuple[Mlpconv, ...]
    resolution: Resolution

    @property
    def minimum(self) -> int:
        size = 1
        for row in reversed(self.rows):
            size = 2 * size if row.pool else size  # the last window may hang over
            size = max(1, (size - 1) * row.stride + row.kernel - 2 * row.padding)
        return size

    def build(self, *, classes: int, channels: int) -> Network:
        inputs, grown = channels, []
        for i, row in enumerate(self.rows):
            last = i == len(self.rows) - 1
            widths = (*row.widths, classes) if last else row.widths
            grown.append(Chain(**dict(row.build(inputs, widths))))
            inputs = widths[-1]
        stem, *stages, last_row = grown
        head = Chain(mlpconv=last_row, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
        return Network(stem=stem, stages=Chain(*stages), head=head, input_shape=self.input_shape(channels))


CIFAR = NetworkInNetwork((
    Mlpconv((192, 160, 96), 5, padding=2, pool="max"), Mlpconv((192, 192, 192), 5, padding=2, pool="average"),
    Mlpconv((192, 192), 3, padding=1),
), resolution=32)  # fmt: skip
IMAGENET = NetworkInNetwork((
    Mlpconv((96, 96, 96), 11, stride=4, pool="max"), Mlpconv((256, 256, 256), 5, padding=2, pool="max"),
    Mlpconv((384, 384, 384), 3, padding=1, pool="max"), Mlpconv((1024, 1024), 3, padding=1),
), resolution=224)  # fmt: skip

CARD = Card(
    "Network in Network", 2013, "Lin, Chen, Yan, Network in network, arXiv 1312.4400", ("spatial exploitation",),
    "1x1 convolutions (a perceptron at every pixel), and global average pooling instead of fully connected layers.",
)  # fmt: skip

FAMILY = Family({
    "nin_cifar10": Variant(
        CIFAR, CARD.of("Network in Network (CIFAR-10)", "8.81 % error on CIFAR-10 with augmentation, 10.41 % without"),
        Preprocessing(resize=32, crop=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)), classes=10,
    ),
    "nin_imagenet": imagenet(
        IMAGENET, CARD.of("Network in Network (ImageNet)", "59.36 % top-1, the author's Caffe model", year=2014)
    ),
})  # fmt: skip
