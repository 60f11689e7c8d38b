"""Inception-ResNet v1 and v2: Inception branches, projected back to the width of the input and added to it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from convatlas.core.compose import Chain, Concat, Sum
from convatlas.core.network import Network
from convatlas.core.spec import Depth, Resolution, Row, Spec, Width
from convatlas.layers.channels import Scale
from convatlas.layers.conv import Size
from convatlas.layers.heads import pooled, pooled_layers
from convatlas.layers.inception import COLUMN_KERNEL, ROW_KERNEL, conv, conv_valid, pool_branch, tower
from convatlas.models.card import Card, Family, ReportedMetrics, imagenet
from convatlas.models.keys import Rules

Towers = tuple[tuple[Width, ...], ...]
"""Widths of the convolutions of each branch."""


class InceptionResNetBlock(Chain):
    """ReLU(x + scale (branches -> 1x1)) (figures 10, 11, 13 for v1; 16, 17, 19 for v2).

    branches: as a `Concat` of `width` channels. act: False for a last block without ReLU.
    """

    def __init__(self, inputs: int, branches: Concat, width: int, scale: float, *, act: bool = True) -> None:
        body = Chain(branches=branches, up=nn.Conv2d(width, inputs, 1), scale=Scale(scale))
        relu = {"act": nn.ReLU(inplace=True)} if act else {}
        super().__init__(sum=Sum(body=body, skip=nn.Identity()), **relu)


_FACTORIZED: dict[int, tuple[Size, ...]] = {13: ((1, 3), (3, 1)), 17: (ROW_KERNEL, COLUMN_KERNEL)}


@dataclass(frozen=True)
class InceptionResNetRow(Row):
    """One stage: `depth` blocks, behind a reduction unless it is the first stage.

    towers: widths of the branches of a block. kernel: of the convolutions behind each branch's 1x1: 3 for 3x3, 13 for
        1x3 and 3x1, 17 for 1x7 and 7x1.
    reduction: widths of the reduction's towers (v2 figures 7 and 18, v1 figures 7 and 12); empty if there is none.
    """

    towers: Towers
    kernel: int
    depth: Depth
    scale: float
    reduction: Towers = ()

    def kernels(self, widths: tuple[int, ...]) -> tuple[Size, ...]:
        """Return the kernels of a branch with these widths."""
        behind = _FACTORIZED.get(self.kernel, (3,) * (len(widths) - 1))
        return (1, *behind)[: len(widths)]

    def build(self, inputs: int, *, plain_last: bool) -> tuple[Chain, int]:
        """Return the stage and its number of output channels; plain_last: the last block has no scale and no ReLU."""
        blocks: list[nn.Module] = []
        if self.reduction:
            towers = []
            for widths in self.reduction:
                kernels: tuple[Size, ...] = (3,) if len(widths) == 1 else (1, *(3,) * (len(widths) - 1))
                towers.append(tower(inputs, widths, kernels, stride=2))
            blocks.append(Concat(*towers, pool=nn.MaxPool2d(3, 2)))
            inputs += sum(widths[-1] for widths in self.reduction)
        width = sum(widths[-1] for widths in self.towers)
        for i in range(self.depth):
            plain = plain_last and i == self.depth - 1
            branches = Concat(*(tower(inputs, widths, self.kernels(widths)) for widths in self.towers))
            scale = 1.0 if plain else self.scale
            blocks.append(InceptionResNetBlock(inputs, branches, width, scale, act=not plain))
        return Chain(*blocks), inputs


@dataclass(frozen=True)
class InceptionResNet(Spec):
    """Szegedy et al. 2016, figure 15: three stages of blocks.

    stem: widths of the six convolutions of figure 14 (v1), or of the first five in v2, which continues with `mixed`.
    mixed: widths of the branches of a first module without shortcut (v2).
    last: width of the last convolution (v2).
    unscaled_last: the very last block has no scale and no ReLU (v2).
    """

    stem: tuple[Width, ...]
    stages: tuple[InceptionResNetRow, ...]
    mixed: Towers = ()
    last: Width | None = None
    unscaled_last: bool = False
    dropout: float = 0.2
    resolution: Resolution = 299

    @property
    def minimum(self) -> int:
        return 75

    def build(self, *, classes: int, channels: int) -> Network:
        stem, inputs = self._stem(channels)
        stages = []
        for i, row in enumerate(self.stages):
            plain_last = self.unscaled_last and i == len(self.stages) - 1
            stage, inputs = row.build(inputs, plain_last=plain_last)
            stages.append(stage)
        if self.last:
            layers = pooled_layers(self.last, classes, dropout=self.dropout)
            head = Chain(conv=conv(inputs, self.last, kernel=1), **layers)
        else:
            head = pooled(inputs, classes, dropout=self.dropout)
        return Network(stem=stem, stages=Chain(*stages), head=head, input_shape=self.input_shape(channels))

    def _stem(self, channels: int) -> tuple[Chain, int]:
        """Return the stem and its number of output channels."""
        a, b, c, d, e, *f = self.stem
        stem = Chain(
            conv1=conv_valid(channels, a, stride=2),
            conv2=conv_valid(a, b),
            conv3=conv(b, c),
            pool1=nn.MaxPool2d(3, 2),
            conv4=conv_valid(c, d, kernel=1),
            conv5=conv_valid(d, e),
        )
        if f:
            stem.add_module("conv6", conv_valid(e, f[0], stride=2))
        else:
            stem.add_module("pool2", nn.MaxPool2d(3, 2))
        inputs = f[0] if f else e
        if not self.mixed:
            return stem, inputs
        kernels: tuple[tuple[Size, ...], ...] = ((1,), (1, 5), (1, 3, 3))
        *towers, (proj,) = self.mixed
        branches = [tower(inputs, widths, k) for widths, k in zip(towers, kernels, strict=True)]
        stem.add_module("mixed", Concat(*branches, pool=pool_branch(inputs, proj, count_include_pad=False)))
        return stem, sum(widths[-1] for widths in self.mixed)


def timm(spec: InceptionResNet) -> Rules:
    """Rules for timm.

    "mixed_5b.branch2.1.conv.weight" -> "stem.mixed.2.conv2.conv.weight"
    "repeat_1.3.branch1.2.bn.bias" -> "stages.1.4.sum.body.branches.1.conv3.norm.bias"
    "block8.conv2d.weight" -> "stages.2.10.sum.body.up.weight"
    """
    stem = {"1a": 1, "2a": 2, "2b": 3, "3b": 4, "4a": 5}
    depths = [row.depth for row in spec.stages]
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
        # the reductions, then the blocks
        (r"^(stages\.[12]\.0)\.branch(\d)\.(conv|bn)\.", "{1}.{2}.conv1.{3}."),
        (r"^(stages\.[12]\.0)\.branch(\d)\.(\d)\.", "{1}.{2}.conv{3+1}."),
        (r"\.branch(\d)\.(conv|bn)\.", ".sum.body.branches.{1}.conv1.{2}."),
        (r"\.branch(\d)\.(\d)\.", ".sum.body.branches.{1}.conv{2+1}."),
        (r"\.bn\.", ".norm."),
    )  # fmt: skip


V1 = InceptionResNet(
    stem=(32, 32, 64, 80, 192, 256),
    stages=(
        InceptionResNetRow(((32,), (32, 32), (32, 32, 32)), 3, 5, 0.17),
        InceptionResNetRow(((128,), (128, 128, 128)), 17, 10, 0.10, ((384,), (192, 192, 256))),
        InceptionResNetRow(((192,), (192, 192, 192)), 13, 5, 0.20, ((256, 384), (256, 256), (256, 256, 256))),
    ),
)
V2 = InceptionResNet(
    stem=(32, 32, 64, 80, 192),
    mixed=((96,), (48, 64), (64, 96, 96), (64,)),
    stages=(
        InceptionResNetRow(((32,), (32, 32), (32, 48, 64)), 3, 10, 0.17),
        InceptionResNetRow(((192,), (128, 160, 192)), 17, 20, 0.10, ((384,), (256, 256, 384))),
        InceptionResNetRow(((192,), (192, 224, 256)), 13, 10, 0.20, ((256, 384), (256, 288), (256, 288, 320))),
    ),
    last=1536,
    unscaled_last=True,
)

CARD = Card(
    "Inception-ResNet v1", 2016,
    "Szegedy et al., Inception-v4, Inception-ResNet and the impact of residual connections, arXiv 1602.07261",
    ("width", "multi-path"), "Inception branches inside residual blocks: as accurate as Inception v3, trained faster.",
    ReportedMetrics(78.7, 94.5),
    "Blocks as in the paper's figures; scaled by 0.17, 0.10 and 0.20, as in the authors' code of v2.",
)  # fmt: skip
CARD_V2 = CARD.of(
    "Inception-ResNet v2", reported=ReportedMetrics(80.1, 95.1),
    innovation="The width of Inception v4 in residual blocks, whose sums are scaled down to keep training stable.",
    note="As in the authors' code; the paper's figures differ in depth and widths.",
)  # fmt: skip

FAMILY = Family(
    {
        "inception_resnet_v1": imagenet(V1, CARD, scaling="-1 to 1"),
        "inception_resnet_v2": imagenet(
            V2, CARD_V2, upstream={"timm": "inception_resnet_v2"}, crop_share=0.8975, scaling="-1 to 1"
        ),
    },
    {"timm": timm},
)
