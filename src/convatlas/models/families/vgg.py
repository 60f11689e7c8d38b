"""VGG: nothing but 3x3 convolutions and pooling, 11 to 19 layers deep."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from convatlas.core.compose import Chain
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Resolution, Spec, Width
from convatlas.errors import SpecError
from convatlas.layers.init import he_fan_out, initialize, normal
from convatlas.models.card import Card, Family, imagenet
from convatlas.models.keys import Rules


class Stage(Chain):
    """`depth` 3x3 convolutions with ReLU, then 2x2 max pooling; with batch norm the convolutions keep their bias."""

    def __init__(self, inputs: int, width: int, depth: int, *, norm: bool) -> None:
        layers: dict[str, nn.Module] = {}
        for i in range(1, depth + 1):
            layers[f"conv{i}"] = nn.Conv2d(inputs, width, 3, padding=1)
            if norm:
                layers[f"norm{i}"] = nn.BatchNorm2d(width)
            layers[f"relu{i}"] = nn.ReLU(inplace=True)
            inputs = width
        super().__init__(**layers, pool=nn.MaxPool2d(2))


@dataclass(frozen=True)
class VGG(Spec):
    """Simonyan and Zisserman 2014, table 1: five stages of convolutions, then two hidden layers of 4,096 units."""

    depths: tuple[Depth, ...]
    norm: bool = False
    widths: tuple[Width, ...] = (64, 128, 256, 512, 512)
    hidden: tuple[Width, Width] = (4096, 4096)
    resolution: Resolution = 224

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.depths) != len(self.widths):
            raise SpecError(f"VGG: {len(self.depths)} depths for {len(self.widths)} stages")

    @property
    def minimum(self) -> int:
        return 1 << len(self.depths)

    def build(self, *, classes: int, channels: int) -> Network:
        inputs = (channels, *self.widths)
        first, *others = (
            Stage(i, width, depth, norm=self.norm)
            for i, width, depth in zip(inputs[:-1], self.widths, self.depths, strict=True)
        )
        a, b = self.hidden
        head = Chain(
            pool=nn.AdaptiveAvgPool2d(7), flat=nn.Flatten(),
            fc1=nn.Linear(49 * inputs[-1], a), relu1=nn.ReLU(inplace=True), drop1=nn.Dropout(0.5),
            fc2=nn.Linear(a, b), relu2=nn.ReLU(inplace=True), drop2=nn.Dropout(0.5),
            out=nn.Linear(b, classes),
        )  # fmt: skip
        network = Network(stem=first, stages=Chain(*others), head=head, input_shape=self.input_shape(channels))
        return initialize(network, conv=he_fan_out, linear=normal(0.01))


def features(spec: VGG) -> Rules:
    """The numbers of torchvision's flat list: convolution, norm, ReLU, and a pooling after each stage."""
    rules, place = [], 0
    for stage, depth in enumerate(spec.depths):
        path = f"stages.{stage - 1}" if stage else "stem"
        for i in range(1, depth + 1):
            rules.append((rf"^features\.{place}\.", f"{path}.conv{i}."))
            if spec.norm:
                rules.append((rf"^features\.{place + 1}\.", f"{path}.norm{i}."))
            place += 3 if spec.norm else 2
        place += 1
    return rules


def torchvision(spec: VGG) -> Rules:
    return (
        *features(spec),
        (r"^classifier\.0\.", "head.fc1."), (r"^classifier\.3\.", "head.fc2."), (r"^classifier\.6\.", "head.out."),
    )  # fmt: skip


def timm(spec: VGG) -> Rules:
    return (*features(spec), (r"^pre_logits\.fc(\d)\.", "head.fc{1}."), (r"^head\.fc\.", "head.out."))


CARD = Card(
    "VGG", 2014, "Simonyan, Zisserman, Very deep convolutional networks for large-scale image recognition, 1409.1556",
    ("spatial exploitation", "depth"), "Stacks of 3x3 convolutions see as far as one large kernel, with fewer weights.",
)  # fmt: skip
NORMED = CARD.of("VGG BN", year=2015, note="Batch norm is not in the paper; the convolutions keep their bias.")
A, B, D, E = (VGG(depths) for depths in ((1, 1, 2, 2, 2), (2, 2, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)))
A_BN, B_BN, D_BN, E_BN = (VGG(spec.depths, norm=True) for spec in (A, B, D, E))

FAMILY = Family(
    {
        "vgg11": imagenet(A, CARD.of("VGG-11", "70.4 / 89.6 % top-1 / top-5, dense"), "torchvision", "timm"),
        "vgg13": imagenet(B, CARD.of("VGG-13", "71.3 / 90.1 % top-1 / top-5, dense"), "torchvision", "timm"),
        "vgg16": imagenet(D, CARD.of("VGG-16", "74.4 / 91.9 % top-1 / top-5, dense"), "torchvision", "timm"),
        "vgg19": imagenet(E, CARD.of("VGG-19", "74.5 / 92.0 % top-1 / top-5, dense"), "torchvision", "timm"),
        "vgg11_bn": imagenet(A_BN, NORMED.of("VGG-11 BN"), "torchvision", "timm"),
        "vgg13_bn": imagenet(B_BN, NORMED.of("VGG-13 BN"), "torchvision", "timm"),
        "vgg16_bn": imagenet(D_BN, NORMED.of("VGG-16 BN"), "torchvision", "timm"),
        "vgg19_bn": imagenet(E_BN, NORMED.of("VGG-19 BN"), "torchvision", "timm"),
    },
    {"torchvision": torchvision, "timm": timm},
)
