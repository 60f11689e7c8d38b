"""ConvNeXt: a ResNet, modernized step by step with the design choices of vision transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from convatlas.core.compose import Chain, Sum
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Resolution, Spec, Width
from convatlas.layers.channels import ChannelsLast, DropPath, LayerScale
from convatlas.layers.init import initialize, truncated
from convatlas.models.card import Card, Family, ReportedMetrics, Variant, imagenet, torchvision_and_timm
from convatlas.models.keys import Rules

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class ConvNeXtBlock(Sum):
    """x + scale (7x7 depthwise -> layer norm -> 1x1 expand x4 -> GELU -> 1x1 project) (figure 4, right).

    The layers behind the depthwise convolution see (n, h, w, channels): a linear layer at each pixel equals a 1x1
    convolution, layer norm needs the channels last anyway, and the authors found this form slightly faster in PyTorch.
    """

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
    """Liu et al. 2022, table 9: a 4x4 convolution with stride 4 (2x2 in the small stem), then four stages of blocks.

    drop_path: stochastic depth; the rate rises linearly from 0 at the first block to this one at the last.
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
        drop_rates = [self.drop_path * i / max(1, total - 1) for i in range(total)]
        inputs, start, stages = first, 0, []
        for i, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            layers: dict[str, nn.Module] = {}
            if i:
                layers["halve"] = Chain(norm=ChannelsLast(norm=LayerNorm(inputs)), conv=nn.Conv2d(inputs, width, 2, 2))
            layers["blocks"] = Chain(*self.blocks(width, drop_rates[start : start + depth]))
            stages.append(Chain(**layers))
            inputs, start = width, start + depth
        head = Chain(
            pool=nn.AdaptiveAvgPool2d(1), norm=ChannelsLast(norm=LayerNorm(inputs)), flat=nn.Flatten(),
            out=nn.Linear(inputs, classes),
        )  # fmt: skip
        network = Network(stem=stem, stages=Chain(*stages), head=head, input_shape=self.input_shape(channels))
        return initialize(network, conv=truncated(0.02), linear=truncated(0.02))

    def blocks(self, width: int, drop_rates: Sequence[float]) -> Iterator[nn.Module]:
        for rate in drop_rates:
            yield ConvNeXtBlock(width, rate)


def torchvision(spec: ConvNeXt) -> Rules:
    """Rules for torchvision, whose `features` alternates between downsampling layers and stages.

    "features.4.1.weight" -> "stages.2.halve.conv.weight"
    "features.5.7.block.3.weight" -> "stages.2.blocks.7.body.mix.expand.weight"
    """
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
    """Rules for timm.

    "stages.2.downsample.1.weight" -> "stages.2.halve.conv.weight"
    "stages.2.blocks.7.mlp.fc1.weight" -> "stages.2.blocks.7.body.mix.expand.weight"
    """
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
    "7x7 depthwise convolutions, layer norm, fewer activations: a plain CNN as accurate as a transformer.",
)  # fmt: skip
TINY = ConvNeXt((3, 3, 9, 3), (96, 192, 384, 768), 0.1)
SMALL = ConvNeXt((3, 3, 27, 3), (96, 192, 384, 768), 0.4)
BASE = ConvNeXt((3, 3, 27, 3), (128, 256, 512, 1024), 0.5)
LARGE = ConvNeXt((3, 3, 27, 3), (192, 384, 768, 1536), 0.5)


def variant(name: str, spec: ConvNeXt, title: str, top1: float) -> Variant:
    return imagenet(spec, CARD.of(title, reported=ReportedMetrics(top1)), upstream=torchvision_and_timm(name))


FAMILY = Family(
    {
        "convnext_tiny": variant("convnext_tiny", TINY, "ConvNeXt-T", 82.1),
        "convnext_small": variant("convnext_small", SMALL, "ConvNeXt-S", 83.1),
        "convnext_base": variant("convnext_base", BASE, "ConvNeXt-B", 83.8),
        "convnext_large": variant("convnext_large", LARGE, "ConvNeXt-L", 84.3),
    },
    {"torchvision": torchvision, "timm": timm},
)
