"""Pre-activation ResNet: norm and ReLU before the convolutions, so that the shortcut is a clean identity; and WRN."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from convatlas.core.compose import Chain, Sum
from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Depth, Resolution, Spec, Width
from convatlas.layers.conv import NormConv
from convatlas.layers.heads import pooled
from convatlas.layers.init import he_fan_out, initialize
from convatlas.models.card import Card, Family, Variant, imagenet
from convatlas.models.keys import Rules


class PreActivation(Chain):
    """BN, ReLU, convolution: twice or three times, beside the identity (He et al. 2016, figure 1b and 4e).

    Where the shape changes, the first norm and ReLU come before the fork, and the shortcut is a 1x1 convolution.
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

    stem_norm: BN and ReLU after the first convolution, besides those of the first block, as pytorchcv and GluonCV have
        it; the authors' code has them once, and timm those of the block.
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
        head = Chain(
            norm=nn.BatchNorm2d(inputs), act=nn.ReLU(inplace=True), **dict(pooled(inputs, classes).named_children())
        )
        network = Network(
            stem=Chain(**layers), stages=Chain(*stages), head=head, input_shape=self.input_shape(channels)
        )
        return initialize(network, conv=he_fan_out)

    def blocks(self, inputs: int, width: int, depth: int, stride: int) -> Iterator[nn.Module]:
        for i in range(depth):
            yield PreActivation(inputs, width, 1 if i else stride, self)
            inputs = self.outputs(width)


def timm(spec: PreActResNet) -> Rules:
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
    ("depth", "multi-path"), "Norm and ReLU before the convolution keep the shortcut clean: 1,000 layers train.",
    note="The stride is in the 3x3 convolution.",
)  # fmt: skip
TIMM = CARD.of("ResNetV2 (timm)", note="As timm has it: no norm in the stem; the stride is in the 3x3 convolution.")
WIDE = CARD.of(
    "Wide ResNet-28-10", "4.00 % error on CIFAR-10 (3.89 % with dropout), 19.25 % on CIFAR-100",
    paper="Zagoruyko, Komodakis, Wide residual networks, arXiv 1605.07146", taxonomy=("width",), note="",
    family="Wide ResNet", innovation="Ten times as wide and 28 layers deep: better than a thousand thin layers.",
)  # fmt: skip


def bare(spec: PreActResNet) -> PreActResNet:
    return replace(spec, stem_norm=False)


FAMILY = Family(
    {
        "preact_resnet18": imagenet(R18, CARD.of("Pre-activation ResNet-18")),
        "preact_resnet34": imagenet(R34, CARD.of("Pre-activation ResNet-34")),
        "preact_resnet50": imagenet(R50, CARD.of("Pre-activation ResNet-50")),
        "preact_resnet101": imagenet(R101, CARD.of("Pre-activation ResNet-101")),
        "preact_resnet152": imagenet(R152, CARD.of("Pre-activation ResNet-152", "78.9 / 94.5 %, crops of 320 px")),
        "preact_resnet200": imagenet(R200, CARD.of("Pre-activation ResNet-200", "79.9 / 95.2 %, crops of 320 px")),
        "resnetv2_18": imagenet(bare(R18), TIMM.of("ResNetV2-18 (timm)"), "timm"),
        "resnetv2_34": imagenet(bare(R34), TIMM.of("ResNetV2-34 (timm)"), "timm"),
        "resnetv2_50": imagenet(bare(R50), TIMM.of("ResNetV2-50 (timm)"), "timm"),
        "resnetv2_101": imagenet(bare(R101), TIMM.of("ResNetV2-101 (timm)"), "timm"),
        "resnetv2_152": imagenet(bare(R152), TIMM.of("ResNetV2-152 (timm)"), "timm"),
        "wrn28_10": Variant(
            WRN, WIDE, Preprocessing(resize=32, crop=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
            classes=10,
        ),
    },
    {"timm": timm},
)  # fmt: skip
