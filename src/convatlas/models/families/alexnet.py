"""AlexNet: the two towers of 2012, the single tower of 2014 that all libraries have; and ZFNet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from convatlas.core.compose import Chain
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Resolution, Row, Spec, Width
from convatlas.layers.conv import ConvNorm
from convatlas.models.card import Card, Family, ReportedMetrics, imagenet
from convatlas.models.keys import Rules


@dataclass(frozen=True)
class ConvRow(Row):
    """kxk /s -> ReLU -> [local response norm] -> [3x3 max pooling /2].

    pool: padding of the pooling; None for no pooling. depth: further copies keep the size of the map.
    """

    width: Width
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    groups: int = 1
    lrn: bool = False
    pool: int | None = None
    depth: Depth = 1

    def build(self, inputs: int) -> Iterator[tuple[str, nn.Module]]:
        # a scaled width may not be divisible by the two towers of 2012
        groups = self.groups if self.width % self.groups == inputs % self.groups == 0 else 1
        conv = ConvNorm(
            inputs, self.width, kernel=self.kernel, stride=self.stride, padding=self.padding, groups=groups, norm=None
        )
        yield "conv", conv
        for copy in range(2, self.depth + 1):
            yield f"conv{copy}", ConvNorm(self.width, self.width, kernel=self.kernel, norm=None)
        if self.lrn:
            # the paper's alpha is for the sum over 5 channels, torch's for their mean
            yield "lrn", nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
        if self.pool is not None:
            yield "pool", nn.MaxPool2d(3, 2, self.pool)


@dataclass(frozen=True)
class AlexNet(Spec):
    """Krizhevsky et al. 2012, figure 2: convolutions, three of them pooled, then two hidden layers of 4,096 units."""

    convs: tuple[ConvRow, ...]
    hidden: tuple[Width, Width] = (4096, 4096)
    resolution: Resolution = 224

    @property
    def minimum(self) -> int:
        size = 1
        for conv in reversed(self.convs):
            if conv.pool is not None:
                size = (size - 1) * 2 + 3 - 2 * conv.pool
            size = max(1, (size - 1) * conv.stride + conv.kernel - 2 * conv.padding)
        return size

    def build(self, *, classes: int, channels: int) -> Network:
        parts: list[dict[str, nn.Module]] = [{}]
        inputs = channels
        for i, conv in enumerate(self.convs, 1):
            parts[-1].update({f"{name}_{i}": layer for name, layer in conv.build(inputs)})
            inputs = conv.width
            if conv.pool is not None and i < len(self.convs):
                parts.append({})
        first, *others = (Chain(**layers) for layers in parts)
        a, b = self.hidden
        head = Chain(
            pool=nn.AdaptiveAvgPool2d(6), flat=nn.Flatten(),
            drop_6=nn.Dropout(0.5), fc_6=nn.Linear(36 * inputs, a), relu_6=nn.ReLU(inplace=True),
            drop_7=nn.Dropout(0.5), fc_7=nn.Linear(a, b), relu_7=nn.ReLU(inplace=True),
            out=nn.Linear(b, classes),
        )  # fmt: skip
        return Network(stem=first, stages=Chain(*others), head=head, input_shape=self.input_shape(channels))


def torchvision(spec: AlexNet) -> Rules:
    """Rules for torchvision.

    "features.8.weight" -> "stages.1.conv_4.conv.weight"
    "classifier.1.bias" -> "head.fc_6.bias"
    """
    return (
        (r"^features\.0\.", "stem.conv_1.conv."),
        (r"^features\.3\.", "stages.0.conv_2.conv."),
        (r"^features\.(6|8|10)\.", "stages.1.features{1}."),
        (r"features6\.", "conv_3.conv."), (r"features8\.", "conv_4.conv."), (r"features10\.", "conv_5.conv."),
        (r"^classifier\.1\.", "head.fc_6."), (r"^classifier\.4\.", "head.fc_7."), (r"^classifier\.6\.", "head.out."),
    )  # fmt: skip


ONE_TOWER = AlexNet((
    ConvRow(64, 11, stride=4, padding=2, pool=0), ConvRow(192, 5, padding=2, pool=0),
    ConvRow(384), ConvRow(256), ConvRow(256, pool=0),
))  # fmt: skip
TWO_TOWERS = AlexNet((
    ConvRow(96, 11, stride=4, padding=0, lrn=True, pool=0), ConvRow(256, 5, padding=2, groups=2, lrn=True, pool=0),
    ConvRow(384), ConvRow(384, groups=2), ConvRow(256, groups=2, pool=0),
), resolution=227)  # fmt: skip
ZFNET = AlexNet((
    ConvRow(96, 7, stride=2, padding=1, lrn=True, pool=1), ConvRow(256, 5, stride=2, padding=0, lrn=True, pool=1),
    ConvRow(384), ConvRow(384), ConvRow(256, pool=0),
))  # fmt: skip

CARD = Card(
    "AlexNet", 2012,
    "Krizhevsky, Sutskever, Hinton, ImageNet classification with deep convolutional neural networks, NIPS 2012",
    ("spatial exploitation",), "ReLU, dropout and two GPUs make a deep network trainable on a million images.",
)  # fmt: skip
CARD_2012 = CARD.of(
    "AlexNet (2012, two towers)", reported=ReportedMetrics(59.3, 81.8, protocol="10 crops"),
    note="The towers are groups. The paper prints 224 px; its arithmetic needs 227.",
)  # fmt: skip
CARD_ZFNET = CARD.of(
    "ZFNet", reported=ReportedMetrics(61.6, 83.5, protocol="10 crops"), year=2013,
    paper="Zeiler, Fergus, Visualizing and understanding convolutional networks, arXiv 1311.2901",
    innovation="Visualizing what layers respond to led to a smaller first kernel and stride.",
)  # fmt: skip
CARD_2014 = CARD.of(
    "AlexNet (2014, one tower)", reported=ReportedMetrics(56.52, 79.07, source="torchvision IMAGENET1K_V1"), year=2014,
    paper="Krizhevsky, One weird trick for parallelizing convolutional neural networks, arXiv 1404.5997",
    innovation="AlexNet in a single tower, without response normalization.",
)  # fmt: skip

FAMILY = Family(
    {
        "alexnet_2012": imagenet(TWO_TOWERS, CARD_2012),
        "zfnet": imagenet(ZFNET, CARD_ZFNET),
        "alexnet": imagenet(ONE_TOWER, CARD_2014, upstream={"torchvision": "alexnet"}),
    },
    {"torchvision": torchvision},
)
