"""DenseNet: every layer reads the maps of all layers before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convatlas.core.compose import Chain, Concat
from convatlas.core.cost import Signal, Tally, rule
from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Depth, Resolution, Spec, Width
from convatlas.layers.conv import NormConv
from convatlas.layers.heads import pooled
from convatlas.layers.init import he_fan_in, initialize
from convatlas.models.card import Card, Family, Variant, imagenet
from convatlas.models.keys import Rules


class Dense(Concat):
    """All maps so far, beside `growth` new ones made from them: 1x1, then 3x3 (Huang et al. 2016, equation 2)."""

    def __init__(self, inputs: int, growth: int, middle: int) -> None:
        new = Chain(conv1=NormConv(inputs, middle, kernel=1), conv2=NormConv(middle, growth))
        super().__init__(so_far=nn.Identity(), new=new)


class Block(Chain):
    """Dense layers one after another."""


class FrugalBlock(Block):
    """The same function, with training memory linear in the number of layers (Pleiss et al. 2017).

    The stacked maps, which grow with the square of the depth, are not kept for the backward pass but stacked again.
    """

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.children():
            conv1, conv2 = cast(Chain, cast(Dense, layer)["new"]).children()
            if torch.is_grad_enabled():
                narrow = checkpoint(
                    stacked, conv1, *maps, use_reentrant=False, preserve_rng_state=False,
                    context_fn=partial(once, conv1),
                )  # fmt: skip
            else:
                narrow = stacked(conv1, *maps)
            maps.append(conv2(narrow))
        return torch.cat(maps, 1)

    def simplified(self) -> Block:
        """Return the block for answers alone, which keeps no maps anyway."""
        return Block(**dict(self.named_children()))


def stacked(layer: nn.Module, *maps: Tensor) -> Tensor:
    y: Tensor = layer(torch.cat(maps, 1))
    return y


def once(layer: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the pass and of its repetition, which leaves the statistics of norms as they are."""

    @contextmanager
    def kept() -> Iterator[None]:
        before = [(buffer, buffer.clone()) for buffer in layer.buffers()]
        try:
            yield
        finally:  # the repetition stops by an exception, as soon as it has what it needs
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)

    return nullcontext(), kept()


@rule.register
def _(block: FrugalBlock, x: Signal, tally: Tally) -> Signal:
    return cast(Signal, rule.dispatch(Block)(block, x, tally))


@dataclass(frozen=True)
class DenseNet(Spec):
    """Huang et al. 2016, table 1: blocks of dense layers; between them a 1x1 convolution and a pooling halve all.

    growth: new maps of each layer (k). bottleneck: width of the 1x1 convolutions in units of k. compression: share of
    the maps that a transition keeps. memory_efficient: recompute instead of keep, in training.
    """

    depths: tuple[Depth, ...]
    growth: Width
    stem: Width
    bottleneck: int = 4
    compression: float = 0.5
    small_stem: bool = False
    memory_efficient: bool = False
    resolution: Resolution = 224

    @property
    def minimum(self) -> int:
        halved = 1 << (len(self.depths) - 1)
        return halved if self.small_stem else 4 * halved - 3

    def build(self, *, classes: int, channels: int) -> Network:
        if self.small_stem:
            stem = Chain(conv=nn.Conv2d(channels, self.stem, 3, 1, 1, bias=False))
        else:
            stem = Chain(
                conv=nn.Conv2d(channels, self.stem, 7, 2, 3, bias=False), norm=nn.BatchNorm2d(self.stem),
                act=nn.ReLU(inplace=True), pool=nn.MaxPool2d(3, 2, 1),
            )  # fmt: skip
        inputs, stages = self.stem, []
        for i, depth in enumerate(self.depths):
            layers: dict[str, nn.Module] = {}
            if i:
                halved = int(inputs * self.compression)
                layers["transition"] = Chain(conv=NormConv(inputs, halved, kernel=1), pool=nn.AvgPool2d(2))
                inputs = halved
            middle = self.bottleneck * self.growth
            block = FrugalBlock if self.memory_efficient else Block
            layers["block"] = block(*(Dense(inputs + j * self.growth, self.growth, middle) for j in range(depth)))
            inputs += depth * self.growth
            stages.append(Chain(**layers))
        head = Chain(
            norm=nn.BatchNorm2d(inputs), act=nn.ReLU(inplace=True), **dict(pooled(inputs, classes).named_children())
        )
        network = Network(stem=stem, stages=Chain(*stages), head=head, input_shape=self.input_shape(channels))
        initialize(network, conv=he_fan_in)
        return network


def torchvision(spec: DenseNet) -> Rules:
    return (
        (r"^classifier\.", "head.out."), (r"^features\.norm5\.", "head.norm."),
        (r"^features\.(conv|norm)0\.", "stem.{1}."),
        (r"^features\.transition(\d)\.", "stages.{1}.transition.conv."),
        (r"^features\.denseblock(\d)\.denselayer(\d+)\.", "stages.{1-1}.block.{2-1}.new."),
        # as the published files have it, and as torchvision's class has it
        (r"\.new\.(norm|conv)\.?(\d)\.", ".new.conv{2}.{1}."),
    )  # fmt: skip


CARD = Card(
    "DenseNet", 2016, "Huang, Liu, van der Maaten, Weinberger, Densely connected convolutional networks, 1608.06993",
    ("multi-path",), "Every layer sees all earlier maps: features are used again instead of learned again.",
)  # fmt: skip
SMALL = CARD.of("DenseNet-BC-100 (k = 12)", "4.51 % error on CIFAR-10 with augmentation")

FAMILY = Family(
    {
        "densenet121": imagenet(
            DenseNet((6, 12, 24, 16), 32, 64), CARD.of("DenseNet-121", "75.0 / 92.3 %"), "torchvision", "timm"
        ),
        "densenet161": imagenet(
            DenseNet((6, 12, 36, 24), 48, 96), CARD.of("DenseNet-161", "77.8 % top-1"), "torchvision", "timm"
        ),
        "densenet169": imagenet(
            DenseNet((6, 12, 32, 32), 32, 64), CARD.of("DenseNet-169", "76.4 / 93.3 %"), "torchvision", "timm"
        ),
        "densenet201": imagenet(
            DenseNet((6, 12, 48, 32), 32, 64), CARD.of("DenseNet-201", "77.5 / 93.7 %"), "torchvision", "timm"
        ),
        "densenet_bc100": Variant(
            DenseNet((16, 16, 16), 12, 24, small_stem=True, resolution=32), SMALL,
            Preprocessing(resize=32, crop=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)), classes=10,
        ),
    },
    {"torchvision": torchvision, "timm": torchvision},
)  # fmt: skip
