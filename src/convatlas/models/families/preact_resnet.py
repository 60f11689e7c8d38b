"""Pre-activation ResNet: norm and ReLU before the convolutions, so that the shortcut is an identity; and WRN."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from convatlas.core.compose import Chain, Sum
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Resolution, Spec, Width
from convatlas.layers.conv import NormConv
from convatlas.layers.heads import pooled_layers
from convatlas.layers.init import he_fan_out, initialize
from convatlas.models.card import Card, Family, ReportedMetrics, Variant, cifar10, error_rate, imagenet
from convatlas.models.keys import Rules


class PreActBlock(Chain):
    """x + (BN-ReLU-3x3 /s -> BN-ReLU-3x3), or x + (BN-ReLU-1x1 -> BN-ReLU-3x3 /s -> BN-ReLU-1x1).

    He et al. 2016, figures 1b and 4e. Where the shape changes, the first norm and ReLU are applied to the shortcut,
    too, which is a 1x1 convolution.
    """

    def __init__(self, inputs: int, width: int, stride: int, spec: PreActResNet) -> None:
        outputs = spec.outputs(width)
        if spec.block == "basic":
            first = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
            second: Chain = NormConv(width, outputs)
            if spec.dropout:
                norm, act, conv = second.children()
                second = Chain(norm=norm, act=act, drop=nn.Dropout(spec.dropout), conv=conv)
            rest: dict[str, nn.Module] = {"conv2": second}
        else:
            first = nn.Conv2d(inputs, width, 1, bias=False)
            rest = {"conv2": NormConv(width, width, stride=stride), "conv3": NormConv(width, outputs, kernel=1)}
        before: dict[str, nn.Module] = {"norm1": nn.BatchNorm2d(inputs), "act1": nn.ReLU(inplace=True)}
        if (inputs, stride) == (outputs, 1):
            super().__init__(sum=Sum(body=Chain(**before, conv1=first, **rest), skip=nn.Identity()))
        else:
            skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            super().__init__(**before, sum=Sum(body=Chain(conv1=first, **rest), skip=skip))


@dataclass(frozen=True)
class PreActResNet(Spec):
    """He et al. 2016: the stages of ResNet, and one more norm and ReLU behind the last block.

    stem_norm: BN and ReLU after the first convolution, besides those of the first block, as in pytorchcv and GluonCV;
        the authors' code and timm have one pair there.
    dropout: between the two convolutions of a basic block, behind the ReLU (Zagoruyko and Komodakis 2016, section 2.4).
    """

    block: Literal["basic", "bottleneck"]
    depths: tuple[Depth, ...]
    widths: tuple[Width, ...] = (64, 128, 256, 512)
    stem: Width = 64
    stem_norm: bool = True
    dropout: float = 0.0
    small_stem: bool = False
    resolution: Resolution = 224

    def outputs(self, width: int) -> int:
        return 4 * width if self.block == "bottleneck" else width

    def build(self, *, classes: int, channels: int) -> Network:
        layers: dict[str, nn.Module]
        if self.small_stem:
            layers = {"conv": nn.Conv2d(channels, self.stem, 3, 1, 1, bias=False)}
        else:
            layers = {"conv": nn.Conv2d(channels, self.stem, 7, 2, 3, bias=False)}
            if self.stem_norm:
                layers |= {"norm": nn.BatchNorm2d(self.stem), "act": nn.ReLU(inplace=True)}
            layers["pool"] = nn.MaxPool2d(3, 2, 1)
        inputs, stages = self.stem, []
        for i, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            stages.append(Chain(*self.blocks(inputs, width, depth, stride=2 if i else 1)))
            inputs = self.outputs(width)
        head = Chain(norm=nn.BatchNorm2d(inputs), act=nn.ReLU(inplace=True), **pooled_layers(inputs, classes))
        network = Network(
            stem=Chain(**layers), stages=Chain(*stages), head=head, input_shape=self.input_shape(channels)
        )
        return initialize(network, conv=he_fan_out)

    def blocks(self, inputs: int, width: int, depth: int, stride: int) -> Iterator[nn.Module]:
        for i in range(depth):
            yield PreActBlock(inputs, width, 1 if i else stride, self)
            inputs = self.outputs(width)


def timm(spec: PreActResNet) -> Rules:
    """Rules for timm's ResNetV2. In a block with a projection, the first norm comes before the sum.

    "stages.1.blocks.1.norm2.weight" -> "stages.1.1.sum.body.conv2.norm.weight"
    "stages.1.blocks.0.norm1.weight" -> "stages.1.0.norm1.weight"
    "stages.1.blocks.0.downsample.conv.weight" -> "stages.1.0.sum.skip.weight"
    """
    forks = []
    inputs = spec.stem
    for i, width in enumerate(spec.widths):
        if (inputs, 2 if i else 1) != (spec.outputs(width), 1):
            forks.append(i)
        inputs = spec.outputs(width)
    fork = rf"^(stages\.[{''.join(map(str, forks))}]\.0)"
    return (
        (r"^stages\.(\d)\.blocks\.(\d+)\.", "stages.{1}.{2}."),
        (r"^norm\.", "head.norm."), (r"^head\.fc\.", "head.out."),
        (fork + r"\.norm1\.", "{1}.first."), (fork + r"\.downsample\.conv\.", "{1}.sum.skip."),
        (r"\.norm1\.", ".sum.body.norm1."), (r"\.first\.", ".norm1."), (r"\.conv1\.", ".sum.body.conv1."),
        (r"^(stages.*)\.conv([23])\.", "{1}.sum.body.conv{2}.conv."),
        (r"^(stages.*)\.norm([23])\.", "{1}.sum.body.conv{2}.norm."),
    )  # fmt: skip


R18, R34 = (PreActResNet("basic", depths) for depths in ((2, 2, 2, 2), (3, 4, 6, 3)))
R50, R101, R152, R200 = (
    PreActResNet("bottleneck", depths) for depths in ((3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3), (3, 24, 36, 3))
)
WRN = PreActResNet("basic", (4, 4, 4), (160, 320, 640), 16, small_stem=True, resolution=32)

CARD = Card(
    "Pre-activation ResNet", 2016, "He, Zhang, Ren, Sun, Identity mappings in deep residual networks, arXiv 1603.05027",
    ("depth", "multi-path"), "Norm and ReLU before the convolution keep the shortcut an identity: 1,000 layers train.",
    note="The stride is in the 3x3 convolution.",
)  # fmt: skip
CARD_TIMM = CARD.of("ResNetV2 (timm)", note="As in timm: no norm in the stem; the stride is in the 3x3 convolution.")
CARD_WIDE = CARD.of(
    "Wide ResNet-28-10", reported=error_rate(4.00, "CIFAR-10"),
    paper="Zagoruyko, Komodakis, Wide residual networks, arXiv 1605.07146", categories=("width",),
    note="3.89 % error on CIFAR-10 with dropout, 19.25 % on CIFAR-100 (paper).",
    family_title="Wide ResNet",
    innovation="Ten times as wide and 28 layers deep: more accurate than a thousand thin layers.",
)  # fmt: skip


def timm_variant(depth: int, spec: PreActResNet) -> Variant:
    """Return timm's ResNetV2, which has no norm in the stem."""
    card = CARD_TIMM.of(f"ResNetV2-{depth} (timm)")
    return imagenet(replace(spec, stem_norm=False), card, upstream={"timm": f"resnetv2_{depth}"})


CROP_320 = "crops of 320 px"
REPORTED_152 = ReportedMetrics(78.9, 94.5, protocol=CROP_320)
REPORTED_200 = ReportedMetrics(79.9, 95.2, protocol=CROP_320)

FAMILY = Family(
    {
        "preact_resnet18": imagenet(R18, CARD.of("Pre-activation ResNet-18")),
        "preact_resnet34": imagenet(R34, CARD.of("Pre-activation ResNet-34")),
        "preact_resnet50": imagenet(R50, CARD.of("Pre-activation ResNet-50")),
        "preact_resnet101": imagenet(R101, CARD.of("Pre-activation ResNet-101")),
        "preact_resnet152": imagenet(R152, CARD.of("Pre-activation ResNet-152", reported=REPORTED_152)),
        "preact_resnet200": imagenet(R200, CARD.of("Pre-activation ResNet-200", reported=REPORTED_200)),
        "resnetv2_18": timm_variant(18, R18),
        "resnetv2_34": timm_variant(34, R34),
        "resnetv2_50": timm_variant(50, R50),
        "resnetv2_101": timm_variant(101, R101),
        "resnetv2_152": timm_variant(152, R152),
        "wrn28_10": cifar10(WRN, CARD_WIDE),
    },
    {"timm": timm},
)
