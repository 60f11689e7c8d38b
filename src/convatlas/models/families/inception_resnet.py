"""Inception-ResNet v1 and v2: inception branches, projected back and added to what came in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import nn

from convatlas.core.compose import Chain, Concat, Sum
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Record, Resolution, Spec, Width
from convatlas.layers.channels import Scale
from convatlas.layers.conv import ConvNorm, Size, tower_of
from convatlas.layers.heads import pooled
from convatlas.models.card import Card, Family, imagenet
from convatlas.models.keys import Rules

conv = partial(ConvNorm, norm=partial(nn.BatchNorm2d, eps=0.001))
narrow = partial(conv, padding=0)
tower = partial(tower_of, conv)


class Block(Chain):
    """Branches, a 1x1 convolution back to the width of the input, scaled down, beside the identity; then ReLU."""

    def __init__(self, inputs: int, branches: Concat, width: int, scale: float, *, act: bool = True) -> None:
        body = Chain(branches=branches, up=nn.Conv2d(width, inputs, 1), scale=Scale(scale))
        relu = {"act": nn.ReLU(inplace=True)} if act else {}
        super().__init__(sum=Sum(body=body, skip=nn.Identity()), **relu)


Towers = tuple[tuple[Width, ...], ...]


@dataclass(frozen=True)
class Stage(Record):
    """`depth` blocks, behind a reduction where there is one.

    reduction: widths of its towers (v2 figures 7 and 18, v1 figures 7 and 12); empty in the first stage.
    towers: widths of the branches of a block; kernel: of their last convolutions, 3 (3x3), 13 (1x3, 3x1) or 17.
    """

    towers: Towers
    kernel: int
    depth: Depth
    scale: float
    reduction: Towers = ()

    def kernels(self, tower: tuple[int, ...]) -> tuple[Size, ...]:
        pair: dict[int, tuple[Size, ...]] = {13: ((1, 3), (3, 1)), 17: ((1, 7), (7, 1))}
        return (1, *(pair[self.kernel] if self.kernel in pair else (3,) * (len(tower) - 1)))[: len(tower)]

    def build(self, inputs: int, *, last: bool) -> tuple[Chain, int]:
        blocks: list[nn.Module] = []
        if self.reduction:
            towers: list[nn.Module] = [
                tower(inputs, widths, ((1, *(3,) * (len(widths) - 1)) if len(widths) > 1 else (3,)), stride=2)
                for widths in self.reduction
            ]
            blocks.append(Concat(*towers, pool=nn.MaxPool2d(3, 2)))
            inputs += sum(widths[-1] for widths in self.reduction)
        width = sum(widths[-1] for widths in self.towers)
        for i in range(self.depth):
            # the last block of all neither scales nor rectifies
            final = last and i == self.depth - 1
            branches = Concat(*(tower(inputs, widths, self.kernels(widths)) for widths in self.towers))
            blocks.append(Block(inputs, branches, width, 1.0 if final else self.scale, act=not final))
        return Chain(*blocks), inputs


@dataclass(frozen=True)
class InceptionResNet(Spec):
    """Szegedy et al. 2016, figure 15: three stages of blocks.

    stem: widths of the six convolutions of figure 14 (v1); of the first five in v2, which goes on with `mixed`.
    mixed: the branches of a first module without shortcut (v2).
    last: width of a last convolution (v2).
    """

    stem: tuple[Width, ...]
    stages: tuple[Stage, ...]
    mixed: Towers = ()
    last: Width | None = None
    unscaled_last: bool = False
    dropout: float = 0.2
    resolution: Resolution = 299

    @property
    def minimum(self) -> int:
        return 75

    def build(self, *, classes: int, channels: int) -> Network:
        a, b, c, d, e, *f = self.stem
        stem = Chain(
            conv1=narrow(channels, a, stride=2), conv2=narrow(a, b), conv3=conv(b, c), pool1=nn.MaxPool2d(3, 2),
            conv4=narrow(c, d, kernel=1), conv5=narrow(d, e),
            **({"conv6": narrow(e, f[0], stride=2)} if f else {"pool2": nn.MaxPool2d(3, 2)}),
        )  # fmt: skip
        inputs = f[0] if f else e
        if self.mixed:
            kernels: tuple[tuple[Size, ...], ...] = ((1,), (1, 5), (1, 3, 3))
            *towers, proj = self.mixed
            stem.add_module("mixed", Concat(
                *(tower(inputs, widths, k) for widths, k in zip(towers, kernels, strict=True)),
                pool=Chain(pool=nn.AvgPool2d(3, 1, 1, count_include_pad=False), proj=conv(inputs, proj[0], kernel=1)),
            ))  # fmt: skip
            inputs = sum(widths[-1] for widths in self.mixed)
        grown = []
        for i, stage in enumerate(self.stages):
            blocks, inputs = stage.build(inputs, last=self.unscaled_last and i == len(self.stages) - 1)
            grown.append(blocks)
        head = pooled(self.last or inputs, classes, dropout=self.dropout)
        if self.last:
            head = Chain(conv=conv(inputs, self.last, kernel=1), **dict(head.named_children()))
        return Network(stem=stem, stages=Chain(*grown), head=head, input_shape=self.input_shape(channels))


def timm(spec: InceptionResNet) -> Rules:
    stem = {"1a": 1, "2a": 2, "2b": 3, "3b": 4, "4a": 5}
    depths = [stage.depth for stage in spec.stages]
    return (
        *((rf"^conv2d_{name}\.", f"stem.conv{i}.") for name, i in stem.items()),
        (r"^mixed_5b\.branch3\.1\.", "stem.mixed.pool.proj."), (r"^mixed_5b\.branch0\.", "stem.mixed.0.conv1."),
        (r"^mixed_5b\.branch(\d)\.(\d)\.", "stem.mixed.{1}.conv{2+1}."),
        (r"^block8\.", f"repeat_2.{depths[2] - 1}."),
        (r"^repeat\.", "repeat_0."),
        (r"^repeat_0\.(\d+)\.", "stages.0.{1}."), (r"^repeat_(\d)\.(\d+)\.", "stages.{1}.{2+1}."),
        (r"^mixed_6a\.", "stages.1.0."), (r"^mixed_7a\.", "stages.2.0."),
        (r"^conv2d_7b\.", "head.conv."), (r"^classif\.", "head.out."),
        (r"\.conv2d\.", ".sum.body.up."),
        (r"^(stages\.[12]\.0)\.branch(\d)\.(conv|bn)\.", "{1}.{2}.conv1.{3}."),
        (r"^(stages\.[12]\.0)\.branch(\d)\.(\d)\.", "{1}.{2}.conv{3+1}."),
        (r"\.branch(\d)\.(conv|bn)\.", ".sum.body.branches.{1}.conv1.{2}."),
        (r"\.branch(\d)\.(\d)\.", ".sum.body.branches.{1}.conv{2+1}."),
        (r"\.bn\.", ".norm."),
    )  # fmt: skip


V1 = InceptionResNet(
    stem=(32, 32, 64, 80, 192, 256),
    stages=(
        Stage(((32,), (32, 32), (32, 32, 32)), 3, 5, 0.17),
        Stage(((128,), (128, 128, 128)), 17, 10, 0.10, ((384,), (192, 192, 256))),
        Stage(((192,), (192, 192, 192)), 13, 5, 0.20, ((256, 384), (256, 256), (256, 256, 256))),
    ),
)
V2 = InceptionResNet(
    stem=(32, 32, 64, 80, 192), mixed=((96,), (48, 64), (64, 96, 96), (64,)),
    stages=(
        Stage(((32,), (32, 32), (32, 48, 64)), 3, 10, 0.17),
        Stage(((192,), (128, 160, 192)), 17, 20, 0.10, ((384,), (256, 256, 384))),
        Stage(((192,), (192, 224, 256)), 13, 10, 0.20, ((256, 384), (256, 288), (256, 288, 320))),
    ),
    last=1536, unscaled_last=True,
)  # fmt: skip

CARD = Card(
    "Inception-ResNet v1", 2016,
    "Szegedy et al., Inception-v4, Inception-ResNet and the impact of residual connections, arXiv 1602.07261",
    ("width", "multi-path"), "Inception branches inside residual blocks: as good as Inception v3, trained much faster.",
    "78.7 / 94.5 % top-1 / top-5, one crop",
    "Blocks as in the paper's figures; scaled by 0.17, 0.10 and 0.20, as in the authors' code of v2.",
)  # fmt: skip
CARD_V2 = CARD.of(
    "Inception-ResNet v2", "80.1 / 95.1 % top-1 / top-5, one crop",
    innovation="The width of Inception v4 in residual blocks, whose sums are scaled down to keep training stable.",
    note="As the authors' code has it; the paper's figures differ in depth and widths.",
)  # fmt: skip

FAMILY = Family(
    {
        "inception_resnet_v1": imagenet(V1, CARD, half=True),
        "inception_resnet_v2": imagenet(V2, CARD_V2, "timm", share=0.8975, half=True),
    },
    {"timm": timm},
)
