"""ResNet and what grew out of it: wide, grouped (ResNeXt), with squeeze-and-excitation, and for 32-pixel images."""

from __future__ import annotations

from collections.abc import Iterator
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
from convatlas.models.card import Card, Family, Variant, imagenet
from convatlas.models.keys import Rules


class Basic(Chain):
    """Two 3x3 convolutions beside the shortcut (He et al. 2015, figure 5, left)."""

    def __init__(self, inputs: int, width: int, stride: int, spec: ResNet) -> None:
        body = Chain(
            conv1=ConvNorm(inputs, width, stride=stride),
            conv2=ConvNorm(width, width, act=None),
            **squeeze(width, spec),
        )
        super().__init__(sum=Sum(body=body, skip=shortcut(inputs, width, stride, spec)), act=nn.ReLU(inplace=True))


class Bottleneck(Chain):
    """1x1 reduce, 3x3 (in groups for ResNeXt), 1x1 expand, beside the shortcut (He et al. 2015, figure 5, right)."""

    def __init__(self, inputs: int, width: int, stride: int, spec: ResNet) -> None:
        middle, outputs = max(1, width * spec.group_width // 64) * spec.groups, 4 * width
        first, second = (stride, 1) if spec.stride_in == "1x1" else (1, stride)
        body = Chain(
            conv1=ConvNorm(inputs, middle, kernel=1, stride=first),
            conv2=ConvNorm(middle, middle, stride=second, groups=spec.groups),
            conv3=ConvNorm(middle, outputs, kernel=1, act=None),
            **squeeze(outputs, spec),
        )
        super().__init__(sum=Sum(body=body, skip=shortcut(inputs, outputs, stride, spec)), act=nn.ReLU(inplace=True))


def squeeze(width: int, spec: ResNet) -> dict[str, nn.Module]:
    return {"squeeze": SqueezeExcitation(width, max(1, width // spec.squeeze))} if spec.squeeze else {}


def shortcut(inputs: int, outputs: int, stride: int, spec: ResNet) -> nn.Module:
    if (inputs, stride) == (outputs, 1):
        return nn.Identity()
    if spec.shortcut == "pad" and inputs <= outputs:
        return PadShortcut(inputs, outputs, stride=stride)
    return ConvNorm(inputs, outputs, kernel=1, stride=stride, act=None)


@dataclass(frozen=True)
class ResNet(Spec):
    """He et al. 2015, table 1: stages of blocks; each stage but the first halves the map.

    widths: of the 3x3 convolutions; a bottleneck's output is four times as wide.
    groups, group_width: ResNeXt's cardinality, and the channels of a group at width 64 (more than 64 in one group
        makes a network wide).
    squeeze: reduction of the squeeze-and-excitation gate behind each body; none for 0.
    stride_in: where a bottleneck halves the map: "3x3" as all libraries have it (v1.5), or "1x1" as printed.
    shortcut: where the shape changes, a 1x1 convolution ("project") or zeros ("pad").
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
        block = Bottleneck if self.block == "bottleneck" else Basic
        for i in range(depth):
            yield block(inputs, width, 1 if i else stride, self)
            inputs = self.outputs(width)


def torchvision(spec: ResNet) -> Rules:
    return (
        (r"^conv1\.", "stem.conv.conv."), (r"^bn1\.", "stem.conv.norm."), (r"^fc\.", "head.out."),
        (r"^layer(\d)\.(\d+)\.", "stages.{1-1}.{2}.sum."),
        (r"\.conv(\d)\.", ".body.conv{1}.conv."), (r"\.bn(\d)\.", ".body.conv{1}.norm."),
        (r"\.downsample\.0\.", ".skip.conv."), (r"\.downsample\.1\.", ".skip.norm."),
        (r"\.se\.fc1\.", ".body.squeeze.gate.reduce."), (r"\.se\.fc2\.", ".body.squeeze.gate.expand."),
    )  # fmt: skip


def akamaster(spec: ResNet) -> Rules:
    """The checkpoints that most CIFAR code uses (github.com/akamaster/pytorch_resnet_cifar10)."""
    return ((r"^linear\.", "fc."), *torchvision(spec))


R18, R34 = (ResNet("basic", depths) for depths in ((2, 2, 2, 2), (3, 4, 6, 3)))
R50, R101, R152 = (ResNet("bottleneck", depths) for depths in ((3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)))


def printed(spec: ResNet) -> ResNet:
    return replace(spec, stride_in="1x1")


def wide(spec: ResNet) -> ResNet:
    return replace(spec, group_width=128)


def next_(spec: ResNet, groups: int, group_width: int) -> ResNet:
    return replace(spec, groups=groups, group_width=group_width)


def se(spec: ResNet) -> ResNet:
    return replace(spec, squeeze=16)


def cifar(depth: int) -> ResNet:
    """6n + 2 layers in three stages (section 4.2)."""
    return ResNet("basic", (depth // 6,) * 3, (16, 32, 64), 16, shortcut="pad", small_stem=True, resolution=32)


V15 = "The stride is in the 3x3 convolution (v1.5), 0.2 G MACs more than in the paper."
CARD = Card(
    "ResNet", 2015, "He, Zhang, Ren, Sun, Deep residual learning for image recognition, arXiv 1512.03385",
    ("depth", "multi-path"), "Identity shortcuts: a block learns what to add, and a hundred layers train.",
)  # fmt: skip
PRINTED = CARD.of("ResNet v1", note="The stride is in the first 1x1 convolution, as printed; no weights are published.")
WIDE = CARD.of(
    "Wide ResNet", year=2016, paper="Zagoruyko, Komodakis, Wide residual networks, arXiv 1605.07146",
    taxonomy=("width",), innovation="Twice as wide instead of deeper: as accurate, and faster to train.", note=V15,
)  # fmt: skip
NEXT = CARD.of(
    "ResNeXt", year=2016, paper="Xie et al., Aggregated residual transformations for deep networks, arXiv 1611.05431",
    taxonomy=("width",), innovation="Cardinality: many narrow paths side by side, written as a grouped convolution.",
    note=V15,
)  # fmt: skip
SE = CARD.of(
    "SENet", year=2017, paper="Hu, Shen, Sun, Squeeze-and-excitation networks, arXiv 1709.01507",
    taxonomy=("feature-map exploitation", "attention"), note=V15,
    innovation="Every channel is weighed by a gate that has seen the whole image.",
)  # fmt: skip
CIFAR = CARD.of("ResNet (CIFAR)", note="Shortcuts without parameters (option A), as in section 4.2.")
CIFAR_INPUT = Preprocessing(resize=32, crop=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def small(depth: int, error: str) -> Variant:
    card = CIFAR.of(f"ResNet-{depth} (CIFAR)", f"{error} % error on CIFAR-10")
    return Variant(cifar(depth), card, CIFAR_INPUT, classes=10)


FAMILY = Family(
    {
        "resnet18": imagenet(R18, CARD.of("ResNet-18", "69.76 / 89.08 % (torchvision V1)"), "torchvision", "timm"),
        "resnet34": imagenet(R34, CARD.of("ResNet-34", "73.31 / 91.42 % (torchvision V1)"), "torchvision", "timm"),
        "resnet50": imagenet(R50, CARD.of("ResNet-50", "75.3 / 92.2 %", note=V15), "torchvision", "timm"),
        "resnet101": imagenet(R101, CARD.of("ResNet-101", "76.4 / 92.9 %", note=V15), "torchvision", "timm"),
        "resnet152": imagenet(R152, CARD.of("ResNet-152", "77.0 / 93.3 %", note=V15), "torchvision", "timm"),
        "resnet50_v1": imagenet(printed(R50), PRINTED.of("ResNet-50 v1", "75.3 / 92.2 %")),
        "resnet101_v1": imagenet(printed(R101), PRINTED.of("ResNet-101 v1", "76.4 / 92.9 %")),
        "resnet152_v1": imagenet(printed(R152), PRINTED.of("ResNet-152 v1", "77.0 / 93.3 %")),
        "wide_resnet50_2": imagenet(wide(R50), WIDE.of("Wide ResNet-50-2", "78.1 / 94.2 %"), "torchvision", "timm"),
        "wide_resnet101_2": imagenet(
            wide(R101), WIDE.of("Wide ResNet-101-2", "78.85 / 94.28 % (torchvision V1)", year=2019),
            "torchvision", "timm",
        ),
        "resnext50_32x4d": imagenet(
            next_(R50, 32, 4), NEXT.of("ResNeXt-50 (32x4d)", "77.8 % top-1"), "torchvision", "timm"
        ),
        "resnext101_32x4d": imagenet(next_(R101, 32, 4), NEXT.of("ResNeXt-101 (32x4d)", "78.8 % top-1"), "timm"),
        "resnext101_32x8d": imagenet(
            next_(R101, 32, 8), NEXT.of("ResNeXt-101 (32x8d)", "79.31 / 94.53 % (torchvision V1)", year=2018),
            "torchvision", "timm",
        ),
        "resnext101_64x4d": imagenet(
            next_(R101, 64, 4), NEXT.of("ResNeXt-101 (64x4d)", "79.6 % top-1"), "torchvision", "timm"
        ),
        "se_resnet50": imagenet(se(R50), SE.of("SE-ResNet-50", "77.63 / 93.64 %"), timm="seresnet50"),
        "se_resnet101": imagenet(se(R101), SE.of("SE-ResNet-101", "78.25 / 94.28 %"), timm="seresnet101"),
        "se_resnet152": imagenet(se(R152), SE.of("SE-ResNet-152", "78.66 / 94.46 %"), timm="seresnet152"),
        "se_resnext50_32x4d": imagenet(
            se(next_(R50, 32, 4)), SE.of("SE-ResNeXt-50 (32x4d)", "79.03 / 94.46 %"), timm="seresnext50_32x4d"
        ),
        "se_resnext101_32x4d": imagenet(
            se(next_(R101, 32, 4)), SE.of("SE-ResNeXt-101 (32x4d)", "80.19 / 95.04 %"), timm="seresnext101_32x4d"
        ),
        "cifar_resnet20": small(20, "8.75"),
        "cifar_resnet32": small(32, "7.51"),
        "cifar_resnet44": small(44, "7.17"),
        "cifar_resnet56": small(56, "6.97"),
        "cifar_resnet110": small(110, "6.43"),
    },
    {"torchvision": torchvision, "timm": torchvision, "akamaster": akamaster},
)  # fmt: skip
