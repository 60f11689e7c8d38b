"""ResNet and what grew out of it: wide, grouped (ResNeXt), with squeeze-and-excitation, and for 32-pixel images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from convatlas.core.compose import Chain, Sum
from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Depth, Resolution, Spec, Width
from convatlas.layers.channels import PadShortcut
from convatlas.layers.conv import ConvNorm, SqueezeExcitation
from convatlas.layers.heads import pooled
from convatlas.layers.init import he_fan_out, initialize
from convatlas.models.card import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Card,
    Family,
    Library,
    ReportedMetrics,
    Variant,
    error_rate,
    imagenet,
    torchvision_and_timm,
)
from convatlas.models.keys import Rules


class BasicBlock(Chain):
    """ReLU(x + (3x3 /s -> 3x3 -> [gate])) (He et al. 2015, figure 5, left)."""

    def __init__(self, inputs: int, width: int, stride: int, spec: ResNet) -> None:
        body = Chain(
            conv1=ConvNorm(inputs, width, stride=stride),
            conv2=ConvNorm(width, width, act=None),
            **gate(width, spec),
        )
        super().__init__(sum=Sum(body=body, skip=shortcut(inputs, width, stride, spec)), act=nn.ReLU(inplace=True))


class Bottleneck(Chain):
    """ReLU(x + (1x1 reduce -> 3x3 /s, grouped in ResNeXt -> 1x1 expand x4 -> [gate])) (figure 5, right)."""

    def __init__(self, inputs: int, width: int, stride: int, spec: ResNet) -> None:
        middle, outputs = max(1, width * spec.group_width // 64) * spec.groups, 4 * width
        first, second = (stride, 1) if spec.stride_in == "1x1" else (1, stride)
        body = Chain(
            conv1=ConvNorm(inputs, middle, kernel=1, stride=first),
            conv2=ConvNorm(middle, middle, stride=second, groups=spec.groups),
            conv3=ConvNorm(middle, outputs, kernel=1, act=None),
            **gate(outputs, spec),
        )
        super().__init__(sum=Sum(body=body, skip=shortcut(inputs, outputs, stride, spec)), act=nn.ReLU(inplace=True))


def gate(width: int, spec: ResNet) -> dict[str, nn.Module]:
    """Squeeze-and-excitation behind a body of `width` channels, if the network has any."""
    return {"squeeze": SqueezeExcitation(width, max(1, width // spec.squeeze))} if spec.squeeze else {}


def shortcut(inputs: int, outputs: int, stride: int, spec: ResNet) -> nn.Module:
    """Identity; where the shape changes, a 1x1 convolution (option B) or zero padding (option A; section 3.3)."""
    if (inputs, stride) == (outputs, 1):
        return nn.Identity()
    if spec.shortcut == "pad" and inputs <= outputs:
        return PadShortcut(inputs, outputs, stride=stride)
    return ConvNorm(inputs, outputs, kernel=1, stride=stride, act=None)


@dataclass(frozen=True)
class ResNet(Spec):
    """He et al. 2015, table 1: stages of blocks; each stage but the first halves the map.

    widths: channels of the 3x3 convolutions; a bottleneck's output is four times as wide.
    groups: ResNeXt's cardinality. group_width: channels of a group at width 64; one group of 128 is a Wide ResNet.
    squeeze: reduction ratio of the squeeze-and-excitation gate behind each body; 0 for none.
    stride_in: the convolution of a bottleneck that halves the map: "3x3" (v1.5, all libraries) or "1x1" (the paper).
    shortcut: where the shape changes, a 1x1 convolution ("project") or zero padding ("pad").
    """

    block: Literal["basic", "bottleneck"]
    depths: tuple[Depth, ...]
    widths: tuple[Width, ...] = (64, 128, 256, 512)
    stem: Width = 64
    groups: int = 1
    group_width: int = 64
    squeeze: int = 0
    stride_in: Literal["3x3", "1x1"] = "3x3"
    shortcut: Literal["project", "pad"] = "project"
    small_stem: bool = False
    resolution: Resolution = 224

    def build(self, *, classes: int, channels: int) -> Network:
        if self.small_stem:
            stem = Chain(conv=ConvNorm(channels, self.stem))
        else:
            stem = Chain(conv=ConvNorm(channels, self.stem, kernel=7, stride=2), pool=nn.MaxPool2d(3, 2, 1))
        inputs, stages = self.stem, []
        for i, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            stages.append(Chain(*self.blocks(inputs, width, depth, stride=2 if i else 1)))
            inputs = self.outputs(width)
        network = Network(
            stem=stem, stages=Chain(*stages), head=pooled(inputs, classes), input_shape=self.input_shape(channels)
        )
        return initialize(network, conv=he_fan_out)

    def outputs(self, width: int) -> int:
        return 4 * width if self.block == "bottleneck" else width

    def blocks(self, inputs: int, width: int, depth: int, stride: int) -> Iterator[nn.Module]:
        block = Bottleneck if self.block == "bottleneck" else BasicBlock
        for i in range(depth):
            yield block(inputs, width, 1 if i else stride, self)
            inputs = self.outputs(width)


def torchvision(spec: ResNet) -> Rules:
    """Rules for torchvision and timm.

    "layer1.0.conv1.weight" -> "stages.0.0.sum.body.conv1.conv.weight"
    "layer2.0.downsample.1.bias" -> "stages.1.0.sum.skip.norm.bias"
    """
    return (
        (r"^conv1\.", "stem.conv.conv."), (r"^bn1\.", "stem.conv.norm."), (r"^fc\.", "head.out."),
        (r"^layer(\d)\.(\d+)\.", "stages.{1-1}.{2}.sum."),
        (r"\.conv(\d)\.", ".body.conv{1}.conv."), (r"\.bn(\d)\.", ".body.conv{1}.norm."),
        (r"\.downsample\.0\.", ".skip.conv."), (r"\.downsample\.1\.", ".skip.norm."),
        (r"\.se\.fc1\.", ".body.squeeze.gate.reduce."), (r"\.se\.fc2\.", ".body.squeeze.gate.expand."),
    )  # fmt: skip


def akamaster(spec: ResNet) -> Rules:
    """Rules for the checkpoints that most CIFAR code uses (github.com/akamaster/pytorch_resnet_cifar10).

    "linear.weight" -> "head.out.weight"
    """
    return ((r"^linear\.", "fc."), *torchvision(spec))


R18, R34 = (ResNet("basic", depths) for depths in ((2, 2, 2, 2), (3, 4, 6, 3)))
R50, R101, R152 = (ResNet("bottleneck", depths) for depths in ((3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)))


def stride_as_printed(spec: ResNet) -> ResNet:
    return replace(spec, stride_in="1x1")


def wide_resnet(spec: ResNet) -> ResNet:
    return replace(spec, group_width=128)


def resnext(spec: ResNet, groups: int, group_width: int) -> ResNet:
    return replace(spec, groups=groups, group_width=group_width)


def with_se(spec: ResNet) -> ResNet:
    return replace(spec, squeeze=16)


def cifar_resnet(depth: int) -> ResNet:
    """6n + 2 layers in three stages (section 4.2)."""
    return ResNet("basic", (depth // 6,) * 3, (16, 32, 64), 16, shortcut="pad", small_stem=True, resolution=32)


NOTE_V15 = "The stride is in the 3x3 convolution (v1.5), 0.2 G MACs more than in the paper."
CARD = Card(
    "ResNet", 2015, "He, Zhang, Ren, Sun, Deep residual learning for image recognition, arXiv 1512.03385",
    ("depth", "multi-path"), "Identity shortcuts: a block learns what to add, and networks of a hundred layers train.",
)  # fmt: skip
CARD_PRINTED = CARD.of(
    "ResNet v1", note="The stride is in the first 1x1 convolution, as printed; no weights are published."
)
CARD_WIDE = CARD.of(
    "Wide ResNet", year=2016, paper="Zagoruyko, Komodakis, Wide residual networks, arXiv 1605.07146",
    categories=("width",), innovation="Twice as wide instead of deeper: as accurate, and faster to train.",
    note=NOTE_V15,
)  # fmt: skip
CARD_RESNEXT = CARD.of(
    "ResNeXt", year=2016, paper="Xie et al., Aggregated residual transformations for deep networks, arXiv 1611.05431",
    categories=("width",), note=NOTE_V15,
    innovation="Cardinality: many narrow paths in parallel, written as a grouped convolution.",
)  # fmt: skip
CARD_SE = CARD.of(
    "SENet", year=2017, paper="Hu, Shen, Sun, Squeeze-and-excitation networks, arXiv 1709.01507",
    categories=("feature-map exploitation", "attention"), note=NOTE_V15,
    innovation="Every channel is weighted by a gate that is computed from the whole image.",
)  # fmt: skip
CARD_CIFAR = CARD.of("ResNet (CIFAR)", note="Shortcuts without parameters (option A), as in section 4.2.")


def variant(
    spec: ResNet, card: Card, top1: float, top5: float | None = None, *, source: str = "paper",
    upstream: Mapping[Library, str] | None = None,
) -> Variant:  # fmt: skip
    """Return a row for ImageNet; top1, top5: reported accuracy in percent."""
    card = replace(card, reported=ReportedMetrics(top1, top5, source=source))
    return imagenet(spec, card, upstream=upstream)


def cifar_variant(depth: int, error: float) -> Variant:
    """Return a row for CIFAR-10; error: reported, in percent."""
    preprocessing = Preprocessing(resize=32, crop=32, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    card = CARD_CIFAR.of(f"ResNet-{depth} (CIFAR)", reported=error_rate(error, "CIFAR-10"))
    return Variant(cifar_resnet(depth), card, preprocessing, classes=10)


TORCHVISION_V1 = "torchvision IMAGENET1K_V1"
both = torchvision_and_timm

FAMILY = Family(
    {
        "resnet18": variant(R18, CARD.of("ResNet-18"), 69.76, 89.08, source=TORCHVISION_V1, upstream=both("resnet18")),
        "resnet34": variant(R34, CARD.of("ResNet-34"), 73.31, 91.42, source=TORCHVISION_V1, upstream=both("resnet34")),
        "resnet50": variant(R50, CARD.of("ResNet-50", note=NOTE_V15), 75.3, 92.2, upstream=both("resnet50")),
        "resnet101": variant(R101, CARD.of("ResNet-101", note=NOTE_V15), 76.4, 92.9, upstream=both("resnet101")),
        "resnet152": variant(R152, CARD.of("ResNet-152", note=NOTE_V15), 77.0, 93.3, upstream=both("resnet152")),
        "resnet50_v1": variant(stride_as_printed(R50), CARD_PRINTED.of("ResNet-50 v1"), 75.3, 92.2),
        "resnet101_v1": variant(stride_as_printed(R101), CARD_PRINTED.of("ResNet-101 v1"), 76.4, 92.9),
        "resnet152_v1": variant(stride_as_printed(R152), CARD_PRINTED.of("ResNet-152 v1"), 77.0, 93.3),
        "wide_resnet50_2": variant(
            wide_resnet(R50), CARD_WIDE.of("Wide ResNet-50-2"), 78.1, 94.2, upstream=both("wide_resnet50_2")
        ),
        "wide_resnet101_2": variant(
            wide_resnet(R101), CARD_WIDE.of("Wide ResNet-101-2", year=2019), 78.85, 94.28, source=TORCHVISION_V1,
            upstream=both("wide_resnet101_2"),
        ),
        "resnext50_32x4d": variant(
            resnext(R50, 32, 4), CARD_RESNEXT.of("ResNeXt-50 (32x4d)"), 77.8, upstream=both("resnext50_32x4d")
        ),
        "resnext101_32x4d": variant(
            resnext(R101, 32, 4), CARD_RESNEXT.of("ResNeXt-101 (32x4d)"), 78.8, upstream={"timm": "resnext101_32x4d"}
        ),
        "resnext101_32x8d": variant(
            resnext(R101, 32, 8), CARD_RESNEXT.of("ResNeXt-101 (32x8d)", year=2018), 79.31, 94.53,
            source=TORCHVISION_V1, upstream=both("resnext101_32x8d"),
        ),
        "resnext101_64x4d": variant(
            resnext(R101, 64, 4), CARD_RESNEXT.of("ResNeXt-101 (64x4d)"), 79.6, upstream=both("resnext101_64x4d")
        ),
        "se_resnet50": variant(
            with_se(R50), CARD_SE.of("SE-ResNet-50"), 77.63, 93.64, upstream={"timm": "seresnet50"}
        ),
        "se_resnet101": variant(
            with_se(R101), CARD_SE.of("SE-ResNet-101"), 78.25, 94.28, upstream={"timm": "seresnet101"}
        ),
        "se_resnet152": variant(
            with_se(R152), CARD_SE.of("SE-ResNet-152"), 78.66, 94.46, upstream={"timm": "seresnet152"}
        ),
        "se_resnext50_32x4d": variant(
            with_se(resnext(R50, 32, 4)), CARD_SE.of("SE-ResNeXt-50 (32x4d)"), 79.03, 94.46,
            upstream={"timm": "seresnext50_32x4d"},
        ),
        "se_resnext101_32x4d": variant(
            with_se(resnext(R101, 32, 4)), CARD_SE.of("SE-ResNeXt-101 (32x4d)"), 80.19, 95.04,
            upstream={"timm": "seresnext101_32x4d"},
        ),
        "cifar_resnet20": cifar_variant(20, 8.75),
        "cifar_resnet32": cifar_variant(32, 7.51),
        "cifar_resnet44": cifar_variant(44, 7.17),
        "cifar_resnet56": cifar_variant(56, 6.97),
        "cifar_resnet110": cifar_variant(110, 6.43),
    },
    {"torchvision": torchvision, "timm": torchvision, "akamaster": akamaster},
)  # fmt: skip
