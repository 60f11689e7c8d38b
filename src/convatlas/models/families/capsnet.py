"""CapsNet: capsules vote for the pose of the object they are part of, and votes that agree are routed to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional as F

from convatlas.core.auxiliary import Auxiliary, Criterion
from convatlas.core.compose import Chain
from convatlas.core.network import Network, feature_map, taps
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.spec import Resolution, Spec, Width
from convatlas.layers.capsules import Length, PrimaryCapsules, RoutedCapsules
from convatlas.models.card import Card, Family, Variant, error_rate

DIGITS = "stages.1"
"""Path of the class capsules: (n, classes, size)."""


class Decoder(Auxiliary):
    """linear -> ReLU -> linear -> ReLU -> linear -> sigmoid: the image from its class capsule (figure 2)."""

    weight = 0.0005

    def __init__(self, classes: int, size: int, hidden: tuple[int, int], shape: tuple[int, ...]) -> None:
        a, b = hidden
        channels, height, width = shape
        super().__init__(
            DIGITS, flat=nn.Flatten(), fc1=nn.Linear(classes * size, a), relu1=nn.ReLU(inplace=True),
            fc2=nn.Linear(a, b), relu2=nn.ReLU(inplace=True),
            out=nn.Linear(b, channels * height * width), sigmoid=nn.Sigmoid(),
        )  # fmt: skip

    def decode(self, capsules: Tensor, labels: Tensor) -> Tensor:
        """Return (n, pixels) in [0, 1] from capsules (n, classes, size), with all but those of `labels` (n,) masked."""
        mask = F.one_hot(labels, capsules.shape[1]).to(capsules.dtype)
        pixels: Tensor = self(capsules * mask.unsqueeze(-1))
        return pixels

    def term(self, features: Tensor, inputs: Tensor, labels: Tensor, criterion: Criterion) -> Tensor:
        """Return 0.0005 times the squared distance to the input, summed over its pixels; the mean of the batch."""
        classes = labels if labels.ndim == 1 else labels.argmax(1)  # the larger part of a mixed image
        distance = (self.decode(features, classes) - inputs.flatten(1)).square().sum(1)
        return self.weight * distance.mean()


def reconstruct(network: Network, x: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return the decoder's reconstruction of images (n, channels, h, w).

    It decodes the capsule of each image's label; without `labels`, the longest capsule.
    """
    capsules = feature_map(taps(network, [DIGITS], x)[DIGITS])
    if labels is None:
        labels = capsules.square().sum(-1).argmax(1)
    decoder = network.auxiliary["decoder"]
    assert isinstance(decoder, Decoder)
    return decoder.decode(capsules, labels).view_as(x)


@dataclass(frozen=True)
class CapsNet(Spec):
    """Sabour et al. 2017, figures 1 and 2.

    conv: maps of the first convolution. types, size: number of types and units of the primary capsules.
    pose: units of a class capsule. iterations: of the routing.
    decoder: hidden units of the decoder, which is trained too; None for no decoder.
    """

    conv: Width = 256
    types: Width = 32
    size: int = 8
    pose: int = 16
    iterations: int = 3
    kernel: int = 9
    decoder: tuple[Width, Width] | None = (512, 1024)
    resolution: Resolution = 28

    @staticmethod
    def round_width(width: float) -> int:
        return max(1, round(width))

    @property
    def minimum(self) -> int:
        return 2 * self.kernel - 1

    def build(self, *, classes: int, channels: int) -> Network:
        side = (self.resolution - 2 * self.kernel + 1) // 2 + 1
        shape = self.input_shape(channels)
        primary = PrimaryCapsules(self.conv, self.types, self.size, kernel=self.kernel, stride=2)
        routed = RoutedCapsules(self.types * side**2, self.size, classes, self.pose, iterations=self.iterations)
        decoder = {"decoder": Decoder(classes, self.pose, self.decoder, shape)} if self.decoder else {}
        return Network(
            stem=Chain(conv=nn.Conv2d(channels, self.conv, self.kernel), relu=nn.ReLU(inplace=True)),
            stages=Chain(primary, routed), head=Chain(length=Length()), input_shape=shape, auxiliary=decoder,
        )  # fmt: skip


CARD = Card(
    "CapsNet", 2017, "Sabour, Frosst, Hinton, Dynamic routing between capsules, arXiv 1710.09829", ("routing",),
    "Vectors instead of units: parts vote for the pose of the whole, and agreement routes them.",
    error_rate(0.25, "MNIST", "with reconstruction"),
)  # fmt: skip
CARD_REDUCED = CARD.of(
    "CapsNet (reduced)", note="A preset for CPUs with a sixteenth of the MACs: 64 maps, 8 types of capsules."
)
REDUCED = replace(CapsNet(), conv=64, types=8)
INPUT = Preprocessing(resize=28, crop=28, mean=(0.0,), std=(1.0,))

FAMILY = Family({
    "capsnet": Variant(CapsNet(), CARD, INPUT, classes=10, recipe="sabour2017"),
    "capsnet_reduced": Variant(REDUCED, CARD_REDUCED, INPUT, classes=10, recipe="sabour2017"),
})  # fmt: skip
