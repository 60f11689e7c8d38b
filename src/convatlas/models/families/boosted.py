"""Channel boosting: auxiliary learners add channels to the image before a network, pretrained or not, sees it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convatlas.core.compose import Chain, Concat, Join, Sum
from convatlas.core.cost import Signal, Tally, cost, rule
from convatlas.core.network import Network
from convatlas.core.outline import always
from convatlas.core.spec import SMALL, Record, Spec, Width
from convatlas.errors import CostError, SpecError
from convatlas.layers.channels import Select
from convatlas.layers.conv import ConvNorm
from convatlas.models.card import Card, Family, Variant


class Resize(nn.Module):
    """Maps at the height and width of the image, bilinear."""

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) == self.size:
            return x
        return F.interpolate(x, self.size, mode="bilinear", align_corners=False)

    def extra_repr(self) -> str:
        return f"{self.size}"


always(Resize, "resize")


@rule.register
def _(layer: Resize, x: Signal, tally: Tally) -> Signal:
    return tally.add(layer, x, x.like((x.channels, *layer.size)))


class Frozen(Chain):
    """A learner that has learned: its weights and statistics stay as they are, whatever `train()` says."""

    def __init__(self, *layers: nn.Module, **named: nn.Module) -> None:
        super().__init__(*layers, **named)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


@dataclass(frozen=True)
class Autoencoder(Record):
    """An encoder whose code becomes `code` new channels; `fit_autoencoder` trains it on images without labels."""

    code: Width = 8
    width: Width = 32

    def build(self, shape: tuple[int, ...]) -> Frozen:
        channels, *size = shape
        return Frozen(
            encode=Chain(ConvNorm(channels, self.width, stride=2), ConvNorm(self.width, self.width),
                         nn.Conv2d(self.width, self.code, 1)),
            resize=Resize(tuple(size)), norm=nn.BatchNorm2d(self.code, affine=False),
        )  # fmt: skip


@dataclass(frozen=True)
class Truncated(Record):
    """The stem and the first `stages` of another network, projected to `code` new channels by `fit_projection`."""

    network: Spec
    stages: int = 1
    code: Width = 8

    def build(self, shape: tuple[int, ...]) -> Frozen:
        channels, *size = shape
        grown = self.network.build(classes=2, channels=channels)
        if not 0 <= self.stages <= len(grown.stages):
            raise SpecError(f"Truncated.stages: {self.stages} of {len(grown.stages)} stages cannot be kept")
        body = Chain(stem=grown.stem, stages=grown.stages[: self.stages])
        try:
            maps = cost(body, shape).output
        except CostError as error:
            raise SpecError(f"Truncated: {error}") from error
        if not isinstance(maps, Signal) or len(maps.space) != len(size) or self.code > maps.channels:
            raise SpecError(
                f"Truncated: the first {self.stages} stages of {type(self.network).__name__} have no map of at least "
                f"{self.code} channels"
            )
        project = nn.Conv2d(maps.channels, self.code, 1, bias=False)
        return Frozen(
            body=body, project=project, resize=Resize(tuple(size)), norm=nn.BatchNorm2d(self.code, affine=False)
        )


@dataclass(frozen=True)
class Boosted(Spec):
    """Khan et al. 2018, figure 1: the image beside what the learners make of it, into any network of the catalog."""

    backbone: Spec
    learners: tuple[Autoencoder | Truncated, ...] = (Autoencoder(),)

    @property
    def resolution(self) -> int:  # type: ignore[override]  # the backbone's cell
        return self.backbone.resolution

    @property
    def minimum(self) -> int:
        return self.backbone.minimum

    def input_shape(self, channels: int) -> tuple[int, ...]:
        return self.backbone.input_shape(channels)

    def small(self, *, resolution: int = SMALL) -> Self:
        return dataclasses.replace(self, backbone=self.backbone.small(resolution=resolution))

    def build(self, *, classes: int, channels: int) -> Network:
        if len(self.input_shape(channels)) != 3:
            raise SpecError("Boosted: the learners make channels for images, not for clips")
        return self.around(self.backbone.build(classes=classes, channels=channels))

    def around(self, network: Network) -> Network:
        """Return `network`, made by the backbone and perhaps pretrained, with its first layer widened.

        The new kernels are zero, so that the outputs are, bit for bit, what they were. The network itself is changed.
        """
        shape = network.input_shape
        learners = {f"learner{i}": learner.build(shape) for i, learner in enumerate(self.learners, 1)}
        extra = sum(learner.code for learner in self.learners)
        stem = widened(network.stem, shape[0], extra)
        network.stem = Chain(boost=Concat(image=nn.Identity(), **learners), network=stem)
        return network


def widened(layer: nn.Module, channels: int, extra: int) -> nn.Module:
    """Return the layer with `extra` more input channels, which its first convolutions read with kernels of zero."""
    if isinstance(layer, nn.Conv2d | nn.Conv3d) and layer.groups == 1:
        kind: Any = type(layer)
        more: nn.Module = kind(
            extra, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation, bias=False,
            device=layer.weight.device,
        )  # fmt: skip
        nn.init.zeros_(more.get_parameter("weight"))
        return Sum(
            image=Chain(select=Select(0, channels), conv=layer),
            boost=Chain(select=Select(channels, channels + extra), conv=more),
        )
    if isinstance(layer, Join):
        for name, branch in layer.items():
            layer[name] = widened(branch, channels, extra)
        return layer
    if isinstance(layer, nn.Sequential) and len(layer):
        for name, inner in layer.named_children():
            if list(inner.parameters()):  # a border or a pooling in front treats all channels alike
                setattr(layer, name, widened(inner, channels, extra))
                return layer
    raise SpecError(f"channel boosting widens a first convolution; this network begins with {type(layer).__name__}")


def fit_autoencoder(
    learner: nn.Module, images: Tensor, *, epochs: int = 5, batch: int = 64, lr: float = 1e-3, seed: int = 0
) -> list[float]:
    """Train an `Autoencoder`'s encoder to keep what its decoder needs to paint the image again; no labels are used.

    images: (n, channels, h, w), as the network reads them. Returns the mean squared error of each epoch. The decoder,
    a mirror of the encoder, is thrown away; the code is then normalized with its statistics over the images.
    """
    if not hasattr(learner, "encode"):
        raise SpecError("fit_autoencoder: this learner is no autoencoder; fit_projection is for truncated networks")
    encode, norm = learner.get_submodule("encode"), learner.get_submodule("norm")
    last = learner.get_submodule("encode.2")
    assert isinstance(last, nn.Conv2d)
    width, code = last.in_channels, last.out_channels
    device = images.device
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decode = nn.Sequential(
            nn.Conv2d(code, width, 3, padding=1), nn.ReLU(), nn.Upsample(tuple(images.shape[2:]), mode="bilinear"),
            nn.Conv2d(width, images.shape[1], 3, padding=1),
        ).to(device)  # fmt: skip
    encode.requires_grad_(True)
    optimizer = torch.optim.Adam([*encode.parameters(), *decode.parameters()], lr=lr)
    losses = []
    encode.train()
    for _ in range(epochs):
        total = 0.0
        for samples in torch.randperm(len(images), generator=generator).to(device).split(batch):
            x = images[samples]
            loss = F.mse_loss(decode(encode(x)), x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(x)
        losses.append(total / len(images))
    learner.requires_grad_(False).eval()
    _standardize(learner, norm, images, batch)
    return losses


@torch.no_grad()
def fit_projection(learner: nn.Module, images: Tensor, *, batch: int = 64) -> None:
    """Set a `Truncated` learner's projection to the principal components of its maps of images (n, channels, h, w)."""
    if not hasattr(learner, "project"):
        raise SpecError("fit_projection: this learner is no truncated network; fit_autoencoder is for autoencoders")
    body, project = learner.get_submodule("body"), learner.get_submodule("project")
    assert isinstance(project, nn.Conv2d)
    width = project.in_channels
    total, square, count = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64), 0
    for part in images.split(batch):
        maps = body(part).movedim(1, -1).reshape(-1, width).double().cpu()
        total, square, count = total + maps.sum(0), square + maps.T @ maps, count + len(maps)
    mean = total / count
    _, vectors = torch.linalg.eigh(square / count - mean.outer(mean))
    components = vectors.flip(1)[:, : project.out_channels].T
    project.weight.copy_(components.reshape(project.weight.shape))
    _standardize(learner, learner.get_submodule("norm"), images, batch)


@torch.no_grad()
def _standardize(learner: nn.Module, norm: nn.Module, images: Tensor, batch: int) -> None:
    """Give the last norm of a learner the mean and variance of its channels over the images."""
    assert isinstance(norm, nn.BatchNorm2d)
    norm.reset_running_stats()
    norm.train()
    norm.momentum = None  # the plain average over all batches
    for part in images.split(batch):
        learner(part)
    norm.momentum = 0.1
    norm.eval()


CARD = Card(
    "Channel-boosted", 2018,
    "Khan, Sohail, Ali, A new channel boosted convolutional neural network using transfer learning, arXiv 1804.08528",
    ("channel boosting",), "Auxiliary learners, trained without labels or elsewhere, add channels to the input.",
    "telecom churn prediction only; no image benchmark",
    "Boosted channels add no information about the label; they can help with few labels, or from learners trained on "
    "other data.",
)  # fmt: skip


def row(backbone: Variant, spec: Boosted) -> Variant:
    """Return the row of a boosted network: the defaults of the network inside, a card of its own."""
    return dataclasses.replace(backbone, spec=spec, card=CARD.of(f"{CARD.title} {backbone.card.title}"), peers={})


def family(**backbones: Variant) -> Family:
    """Return the rows of networks whose input layer is boosted by an autoencoder, by name."""
    return Family({name: row(backbone, Boosted(backbone.spec)) for name, backbone in backbones.items()})
