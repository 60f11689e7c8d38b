"""DenseNet: the input of every layer is the maps of all layers before it."""

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
from convatlas.core.network import Network
from convatlas.core.signal import Signal, Tally, rule
from convatlas.core.spec import Depth, Resolution, Spec, Width
from convatlas.layers.conv import NormConv
from convatlas.layers.heads import pooled_layers
from convatlas.layers.init import he_fan_in, initialize
from convatlas.models.card import (
    Card,
    Family,
    ReportedMetrics,
    Variant,
    cifar10,
    error_rate,
    imagenet,
    torchvision_and_timm,
)
from convatlas.models.keys import Rules


class DenseLayer(Concat):
    """[x | BN-ReLU-1x1 -> BN-ReLU-3x3]: `growth` new maps behind all maps so far (Huang et al. 2016, equation 2)."""

    def __init__(self, inputs: int, growth: int, middle: int) -> None:
        new = Chain(conv1=NormConv(inputs, middle, kernel=1), conv2=NormConv(middle, growth))
        super().__init__(so_far=nn.Identity(), new=new)


class DenseBlock(Chain):
    """Dense layers in series."""


class CheckpointedBlock(DenseBlock):
    """The same function, with training memory linear in the number of layers (Pleiss et al. 2017).

    The concatenated maps grow with the square of the depth. They are not kept for the backward pass but concatenated
    again (activation checkpointing).
    """

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.children():
            conv1, conv2 = cast(Chain, cast(DenseLayer, layer)["new"]).children()
            if torch.is_grad_enabled():
                bottleneck = checkpoint(
                    concat_and_apply,
                    conv1,
                    *maps,
                    use_reentrant=False,
                    preserve_rng_state=False,
                    context_fn=partial(recompute_contexts, conv1),
                )
            else:
                bottleneck = concat_and_apply(conv1, *maps)
            maps.append(conv2(bottleneck))
        return torch.cat(maps, 1)

    def simplify(self) -> DenseBlock:
        """Return the block for inference, which keeps no maps anyway."""
        return DenseBlock(**dict(self.named_children()))


def concat_and_apply(layer: nn.Module, *maps: Tensor) -> Tensor:
    y: Tensor = layer(torch.cat(maps, 1))
    return y


def recompute_contexts(layer: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the forward pass and of its recomputation, which must not update norm statistics again."""

    @contextmanager
    def restored_buffers() -> Iterator[None]:
        before = [(buffer, buffer.clone()) for buffer in layer.buffers()]
        try:
            yield
        finally:  # the recomputation ends with an exception, as soon as it has what it needs
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)

    return nullcontext(), restored_buffers()


@rule.register
def _(block: CheckpointedBlock, x: Signal, tally: Tally) -> Signal:
    return cast(Signal, rule.dispatch(DenseBlock)(block, x, tally))


@dataclass(frozen=True)
class DenseNet(Spec):
    """Huang et al. 2016, table 1: dense blocks; between them a 1x1 convolution and a 2x2 average pooling.

    growth: new maps of each layer (k). bottleneck: channels of the 1x1 convolutions, in units of k.
    compression: fraction of the maps behind a transition. memory_efficient: checkpoint the blocks in training.
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
            block = CheckpointedBlock if self.memory_efficient else DenseBlock
            layers["block"] = block(*(DenseLayer(inputs + j * self.growth, self.growth, middle) for j in range(depth)))
            inputs += depth * self.growth
            stages.append(Chain(**layers))
        head = Chain(norm=nn.BatchNorm2d(inputs), act=nn.ReLU(inplace=True), **pooled_layers(inputs, classes))
        network = Network(stem=stem, stages=Chain(*stages), head=head, input_shape=self.input_shape(channels))
        return initialize(network, conv=he_fan_in)


def torchvision(spec: DenseNet) -> Rules:
    """Rules for torchvision and timm. The published files write "norm.1" where the classes have "norm1".

    "features.denseblock2.denselayer3.norm1.weight" -> "stages.1.block.2.new.conv1.norm.weight"
    "features.denseblock2.denselayer3.conv.2.weight" -> "stages.1.block.2.new.conv2.conv.weight"
    """
    return (
        (r"^classifier\.", "head.out."), (r"^features\.norm5\.", "head.norm."),
        (r"^features\.(conv|norm)0\.", "stem.{1}."),
        (r"^features\.transition(\d)\.", "stages.{1}.transition.conv."),
        (r"^features\.denseblock(\d)\.denselayer(\d+)\.", "stages.{1-1}.block.{2-1}.new."),
        (r"\.new\.(norm|conv)\.?(\d)\.", ".new.conv{2}.{1}."),
    )  # fmt: skip


CARD = Card(
    "DenseNet", 2016,
    "Huang, Liu, van der Maaten, Weinberger, Densely connected convolutional networks, arXiv 1608.06993",
    ("multi-path",), "Every layer reads all earlier maps: features are reused instead of learned again.",
)  # fmt: skip


def variant(name: str, spec: DenseNet, title: str, metrics: ReportedMetrics) -> Variant:
    return imagenet(spec, CARD.of(title, reported=metrics), upstream=torchvision_and_timm(name))


D121, D169, D201 = (DenseNet(depths, 32, 64) for depths in ((6, 12, 24, 16), (6, 12, 32, 32), (6, 12, 48, 32)))
D161 = DenseNet((6, 12, 36, 24), 48, 96)
BC100 = DenseNet((16, 16, 16), 12, 24, small_stem=True, resolution=32)
CARD_BC100 = CARD.of("DenseNet-BC-100 (k = 12)", reported=error_rate(4.51, "CIFAR-10", "trained with augmentation"))

FAMILY = Family(
    {
        "densenet121": variant("densenet121", D121, "DenseNet-121", ReportedMetrics(75.0, 92.3)),
        "densenet161": variant("densenet161", D161, "DenseNet-161", ReportedMetrics(77.8)),
        "densenet169": variant("densenet169", D169, "DenseNet-169", ReportedMetrics(76.4, 93.3)),
        "densenet201": variant("densenet201", D201, "DenseNet-201", ReportedMetrics(77.5, 93.7)),
        "densenet_bc100": cifar10(BC100, CARD_BC100),
    },
    {"torchvision": torchvision, "timm": torchvision},
)
