"""Network in Network: a small perceptron at every pixel, and no fully connected layer at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from convatlas.core.compose import Chain
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Resolution, Row, Spec, Width
from convatlas.layers.conv import ConvNorm
from convatlas.models.card import Card, Family, ReportedMetrics, cifar10, error_rate, imagenet


@dataclass(frozen=True)
class MlpconvRow(Row):
    """kxk /s -> 1x1 -> 1x1 -> [3x3 pool /2 -> dropout], ReLU behind each convolution (section 3.1).

    widths: channels of the three convolutions; the network's last row has two, its third is the number of classes.
    depth: number of the pairs of 1x1 convolutions.
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
    """Lin et al. 2013, figure 2: mlpconv layers, then global average pooling: one of the last maps for each class."""

    rows: tuple[MlpconvRow, ...]
    resolution: Resolution

    @property
    def minimum(self) -> int:
        size = 1
        for row in reversed(self.rows):
            size = 2 * size if row.pool else size  # the last window may exceed the map
            size = max(1, (size - 1) * row.stride + row.kernel - 2 * row.padding)
        return size

    def build(self, *, classes: int, channels: int) -> Network:
        inputs, parts = channels, []
        for i, row in enumerate(self.rows):
            last = i == len(self.rows) - 1
            widths = (*row.widths, classes) if last else row.widths
            parts.append(Chain(**dict(row.build(inputs, widths))))
            inputs = widths[-1]
        stem, *stages, last_row = parts
        head = Chain(mlpconv=last_row, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
        return Network(stem=stem, stages=Chain(*stages), head=head, input_shape=self.input_shape(channels))


CIFAR = NetworkInNetwork((
    MlpconvRow((192, 160, 96), 5, padding=2, pool="max"), MlpconvRow((192, 192, 192), 5, padding=2, pool="average"),
    MlpconvRow((192, 192), 3, padding=1),
), resolution=32)  # fmt: skip
IMAGENET = NetworkInNetwork((
    MlpconvRow((96, 96, 96), 11, stride=4, pool="max"), MlpconvRow((256, 256, 256), 5, padding=2, pool="max"),
    MlpconvRow((384, 384, 384), 3, padding=1, pool="max"), MlpconvRow((1024, 1024), 3, padding=1),
), resolution=224)  # fmt: skip

CARD = Card(
    "Network in Network", 2013, "Lin, Chen, Yan, Network in network, arXiv 1312.4400", ("spatial exploitation",),
    "1x1 convolutions (a perceptron at every pixel), and global average pooling instead of fully connected layers.",
)  # fmt: skip

CARD_CIFAR = CARD.of(
    "Network in Network (CIFAR-10)", reported=error_rate(8.81, "CIFAR-10", "trained with augmentation"),
    note="10.41 % error on CIFAR-10 without augmentation (paper).",
)  # fmt: skip
CARD_IMAGENET = CARD.of(
    "Network in Network (ImageNet)", reported=ReportedMetrics(59.36, source="the author's Caffe model"), year=2014
)

FAMILY = Family({"nin_cifar10": cifar10(CIFAR, CARD_CIFAR), "nin_imagenet": imagenet(IMAGENET, CARD_IMAGENET)})
