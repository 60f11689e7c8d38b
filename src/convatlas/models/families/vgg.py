"""VGG: 3x3 convolutions and pooling only, 11 to 19 layers deep."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from convatlas.core.compose import Chain
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Resolution, Spec, Width
from convatlas.layers.init import he_fan_out, initialize, normal
from convatlas.models.card import Card, Family, ReportedMetrics, Variant, imagenet, torchvision_and_timm
from convatlas.models.keys import Rules


class VGGStage(Chain):
    """(3x3 -> [norm] -> ReLU) x depth -> 2x2 max pooling; with batch norm the convolutions keep their bias."""

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

    @property
    def minimum(self) -> int:
        return 1 << len(self.depths)

    def build(self, *, classes: int, channels: int) -> Network:
        inputs = (channels, *self.widths)
        first, *others = (
            VGGStage(stage_inputs, width, depth, norm=self.norm)
            for stage_inputs, width, depth in zip(inputs[:-1], self.widths, self.depths, strict=True)
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
    """Rules for `features`, one flat list of convolutions, norms and ReLUs, with a pooling after each stage.

    "features.6.weight" -> "stages.1.conv1.weight"
    """
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
    """Rules for torchvision.

    "features.6.weight" -> "stages.1.conv1.weight"
    "classifier.3.bias" -> "head.fc2.bias"
    """
    return (
        *features(spec),
        (r"^classifier\.0\.", "head.fc1."), (r"^classifier\.3\.", "head.fc2."), (r"^classifier\.6\.", "head.out."),
    )  # fmt: skip


def timm(spec: VGG) -> Rules:
    """Rules for timm, which writes the hidden layers as convolutions.

    "features.6.weight" -> "stages.1.conv1.weight"
    "pre_logits.fc2.bias" -> "head.fc2.bias"
    """
    return (*features(spec), (r"^pre_logits\.fc(\d)\.", "head.fc{1}."), (r"^head\.fc\.", "head.out."))


CARD = Card(
    "VGG", 2014,
    "Simonyan, Zisserman, Very deep convolutional networks for large-scale image recognition, arXiv 1409.1556",
    ("spatial exploitation", "depth"),
    "Stacks of 3x3 convolutions have the receptive field of one large kernel, with fewer weights.",
)  # fmt: skip
CARD_BN = CARD.of("VGG BN", year=2015, note="Batch norm is not in the paper; the convolutions keep their bias.")
A, B, D, E = (VGG(depths) for depths in ((1, 1, 2, 2, 2), (2, 2, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)))


def variant(layers: int, spec: VGG, top1: float, top5: float) -> Variant:
    """Return a row of the paper; top1, top5: reported accuracy in percent."""
    metrics = ReportedMetrics(top1, top5, protocol="dense evaluation")
    return imagenet(spec, CARD.of(f"VGG-{layers}", reported=metrics), upstream=torchvision_and_timm(f"vgg{layers}"))


def bn_variant(layers: int, spec: VGG) -> Variant:
    """Return a row with batch norm."""
    card = CARD_BN.of(f"VGG-{layers} BN")
    return imagenet(VGG(spec.depths, norm=True), card, upstream=torchvision_and_timm(f"vgg{layers}_bn"))


FAMILY = Family(
    {
        "vgg11": variant(11, A, 70.4, 89.6),
        "vgg13": variant(13, B, 71.3, 90.1),
        "vgg16": variant(16, D, 74.4, 91.9),
        "vgg19": variant(19, E, 74.5, 92.0),
        "vgg11_bn": bn_variant(11, A),
        "vgg13_bn": bn_variant(13, B),
        "vgg16_bn": bn_variant(16, D),
        "vgg19_bn": bn_variant(19, E),
    },
    {"torchvision": torchvision, "timm": timm},
)
