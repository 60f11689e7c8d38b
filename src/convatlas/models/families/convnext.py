"""ConvNeXt: a ResNet, modernized step by step until it looks like a vision transformer and beats it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import nn

from convatlas.core.compose import Chain, Sum
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Resolution, Spec, Width
from convatlas.layers.channels import ChannelsLast, DropPath, LayerScale
from convatlas.layers.init import initialize, truncated
from convatlas.models.card import Card, Family, imagenet
from convatlas.models.keys import Rules

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class Block(Sum):
    """7x7 within each channel, norm, four times as wide, GELU, back, scaled, beside the identity (figure 4, right)."""

    def __init__(self, width: int, drop: float) -> None:
        super().__init__(
            body=Chain(
                depthwise=nn.Conv2d(width, width, 7, padding=3, groups=width),
                mix=ChannelsLast(
                    norm=LayerNorm(width), expand=nn.Linear(width, 4 * width), act=nn.GELU(),
                    project=nn.Linear(4 * width, width),
                ),
                scale=LayerScale(width),
                drop=DropPath(drop),
            ),
            skip=nn.Identity(),
        )  # fmt: skip


@dataclass(frozen=True)
class ConvNeXt(Spec):
    """Liu et al. 2022, table 9: four stages; a 4x4 patch makes the first map (2x2 in the small stem).

    drop_path: stochastic depth of the last block; it rises from 0.
    """

    depths: tuple[Depth, ...]
    widths: tuple[Width, ...]
    drop_path: float
    small_stem: bool = False
    resolution: Resolution = 224

    @property
    def minimum(self) -> int:
        return (2 if self.small_stem else 4) << (len(self.widths) - 1)

    def build(self, *, classes: int, channels: int) -> Network:
        first, patch = self.widths[0], 2 if self.small_stem else 4
        stem = Chain(conv=nn.Conv2d(channels, first, patch, patch), norm=ChannelsLast(norm=LayerNorm(first)))
        total = sum(self.depths)
        drops = (self.drop_path * i / max(1, total - 1) for i in range(total))
        inputs, stages = first, []
        for i, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            layers: dict[str, nn.Module] = {}
            if i:
                layers["halve"] = Chain(norm=ChannelsLast(norm=LayerNorm(inputs)), conv=nn.Conv2d(inputs, width, 2, 2))
            layers["blocks"] = Chain(*self.blocks(width, depth, drops))
            stages.append(Chain(**layers))
            inputs = width
        head = Chain(
            pool=nn.AdaptiveAvgPool2d(1), norm=ChannelsLast(norm=LayerNorm(inputs)), flat=nn.Flatten(),
            out=nn.Linear(inputs, classes),
        )  # fmt: skip
        network = Network(stem=stem, stages=Chain(*stages), head=head, input_shape=self.input_shape(channels))
        return initialize(network, conv=truncated(0.02), linear=truncated(0.02))

    def blocks(self, width: int, depth: int, drops: Iterator[float]) -> Iterator[nn.Module]:
        for _ in range(depth):
            yield Block(width, next(drops))


def torchvision(spec: ConvNeXt) -> Rules:
    stage = {2 * i + 1: i for i in range(len(spec.depths))}
    return (
        (r"^features\.0\.0\.", "stem.conv."), (r"^features\.0\.1\.", "stem.norm.norm."),
        (r"^classifier\.0\.", "head.norm.norm."), (r"^classifier\.2\.", "head.out."),
        *((rf"^features\.{2 * i}\.0\.", f"stages.{i}.halve.norm.norm.") for i in range(1, len(spec.depths))),
        *((rf"^features\.{2 * i}\.1\.", f"stages.{i}.halve.conv.") for i in range(1, len(spec.depths))),
        *((rf"^features\.{place}\.(\d+)\.", f"stages.{i}.blocks.{{1}}.body.") for place, i in stage.items()),
        (r"\.block\.0\.", ".depthwise."), (r"\.block\.2\.", ".mix.norm."), (r"\.block\.3\.", ".mix.expand."),
        (r"\.block\.5\.", ".mix.project."), (r"\.layer_scale$", ".scale.gain"),
    )  # fmt: skip


def timm(spec: ConvNeXt) -> Rules:
    return (
        (r"^stem\.0\.", "stem.conv."), (r"^stem\.1\.", "stem.norm.norm."),
        (r"^head\.norm\.", "head.norm.norm."), (r"^head\.fc\.", "head.out."),
        (r"\.downsample\.0\.", ".halve.norm.norm."), (r"\.downsample\.1\.", ".halve.conv."),
        (r"\.blocks\.(\d+)\.", ".blocks.{1}.body."), (r"\.conv_dw\.", ".depthwise."),
        (r"\.body\.norm\.", ".body.mix.norm."),
        (r"\.mlp\.fc1\.", ".mix.expand."), (r"\.mlp\.fc2\.", ".mix.project."), (r"\.gamma$", ".scale.gain"),
    )  # fmt: skip


CARD = Card(
    "ConvNeXt", 2022, "Liu et al., A ConvNet for the 2020s, arXiv 2201.03545", ("efficiency", "depth"),
    "7x7 depthwise convolutions, layer norm, fewer activations: a plain CNN as good as a transformer.",
)  # fmt: skip
T = ConvNeXt((3, 3, 9, 3), (96, 192, 384, 768), 0.1)
S = ConvNeXt((3, 3, 27, 3), (96, 192, 384, 768), 0.4)
B = ConvNeXt((3, 3, 27, 3), (128, 256, 512, 1024), 0.5)
L = ConvNeXt((3, 3, 27, 3), (192, 384, 768, 1536), 0.5)

FAMILY = Family(
    {
        "convnext_tiny": imagenet(T, CARD.of("ConvNeXt-T", "82.1 % top-1"), "torchvision", "timm"),
        "convnext_small": imagenet(S, CARD.of("ConvNeXt-S", "83.1 % top-1"), "torchvision", "timm"),
        "convnext_base": imagenet(B, CARD.of("ConvNeXt-B", "83.8 % top-1"), "torchvision", "timm"),
        "convnext_large": imagenet(L, CARD.of("ConvNeXt-L", "84.3 % top-1"), "torchvision", "timm"),
    },
    {"torchvision": torchvision, "timm": timm},
)
