"""Channel boosting: auxiliary learners add channels to the input of a network, pretrained or not."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convatlas.core.compose import Chain, Concat, Join, Layer, Sum
from convatlas.core.cost import cost
from convatlas.core.network import Network
from convatlas.core.outline import always
from convatlas.core.signal import Signal, Tally, rule, walk
from convatlas.core.spec import SMALL, Row, Spec, Width
from convatlas.errors import CostError, SpecError
from convatlas.layers.channels import Select
from convatlas.layers.conv import ConvNorm
from convatlas.models.card import Card, Family, Variant


@torch.fx.wrap  # the size of the map is not known while torch.fx traces
def resize_to(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return maps (n, channels, h, w) of height and width `size`, interpolated bilinearly if they have another size."""
    return x if tuple(x.shape[2:]) == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


@torch.fx.wrap
def resize_like(x: Tensor, like: Tensor) -> Tensor:
    """Return maps with the height and width of others, as `resize_to` does."""
    return resize_to(x, tuple(like.shape[2:]))


class Resize(Layer):
    """Bilinear interpolation to the height and width `size`, or to those of the maps `like`."""

    returns_input = True

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        return resize_to(x, self.size) if like is None else resize_like(x, like)

    def extra_repr(self) -> str:
        return f"{self.size}"


always(Resize, "resize")


@rule.register
def _(layer: Resize, x: Signal, tally: Tally) -> Signal:
    return tally.add(layer, x, _resized(x, layer.size))


def _resized(x: Signal, size: tuple[int, ...]) -> Signal:
    return dataclasses.replace(x, shape=(x.channels, *size), reach=x.reach.resize(size))


class Frozen(Chain):
    """A trained learner: its weights and statistics do not change, also in training mode.

    Its `resize` layer gives its maps the size of the image, also where that is another one than the network's.
    """

    def __init__(self, *layers: nn.Module, **named: nn.Module) -> None:
        super().__init__(*layers, **named)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        image = x
        for layer in self:
            x = layer(x, image) if isinstance(layer, Resize) else layer(x)
        return x


@rule.register
def _(learner: Frozen, x: Signal, tally: Tally) -> Signal:
    size = x.spatial
    for name, layer in learner.named_children():
        with tally.inside(name):
            x = tally.add(layer, x, _resized(x, size)) if isinstance(layer, Resize) else walk(layer, x, tally)
    return x


@dataclass(frozen=True)
class Autoencoder(Row):
    """3x3 /2 -> 3x3 -> 1x1: an encoder; its code is `code` new channels. `fit_autoencoder` trains it without labels."""

    code: Width = 8
    width: Width = 32

    def build(self, shape: tuple[int, ...]) -> Frozen:
        channels, *size = shape
        return Frozen(
            encode=Chain(
                ConvNorm(channels, self.width, stride=2),
                ConvNorm(self.width, self.width),
                nn.Conv2d(self.width, self.code, 1),
            ),
            resize=Resize(tuple(size)),
            norm=nn.BatchNorm2d(self.code, affine=False),
        )


@dataclass(frozen=True)
class Truncated(Row):
    """The stem and the first `stages` of another network, projected to `code` new channels by `fit_projection`."""

    network: Spec
    stages: int = 1
    code: Width = 8

    def build(self, shape: tuple[int, ...]) -> Frozen:
        channels, *size = shape
        whole = self.network.build(classes=2, channels=channels)
        if not 0 <= self.stages <= len(whole.stages):
            raise SpecError(f"Truncated: stages must be in [0, {len(whole.stages)}], got {self.stages}")
        body = Chain(stem=whole.stem, stages=whole.stages[: self.stages])
        try:
            maps = cost(body, shape).output
        except CostError as error:
            raise SpecError(f"Truncated: {error}") from error
        if not isinstance(maps, Signal) or len(maps.spatial) != len(size) or self.code > maps.channels:
            raise SpecError(
                f"Truncated: the first {self.stages} stages of {type(self.network).__name__} must end in maps of at "
                f"least {self.code} channels"
            )
        project = nn.Conv2d(maps.channels, self.code, 1, bias=False)
        return Frozen(
            body=body, project=project, resize=Resize(tuple(size)), norm=nn.BatchNorm2d(self.code, affine=False)
        )


@dataclass(frozen=True)
class Boosted(Spec):
    """Khan et al. 2018, figure 1: [image | learner 1 | learner 2 | ...] -> any network of the catalog for images.

    backbone: the network. learners: each adds `code` channels to its input.
    """

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
        if len(self.input_shape(channels)) != 3 or self.backbone.predicts != "classes":
            raise SpecError(f"Boosted: backbone must be a classifier of images, got a {type(self.backbone).__name__}")
        return self.around(self.backbone.build(classes=classes, channels=channels))

    def around(self, network: Network) -> Network:
        """Return `network`, built by the backbone and perhaps pretrained, with its first layer widened.

        The new kernels are zero, so the outputs are bit-identical to those before. The network is changed in place.
        """
        shape = network.input_shape
        learners = {f"learner{i}": learner.build(shape) for i, learner in enumerate(self.learners, 1)}
        extra = sum(learner.code for learner in self.learners)
        stem = widen(network.stem, shape[0], extra)
        network.stem = Chain(boost=Concat(image=nn.Identity(), **learners), network=stem)
        return network


def widen(layer: nn.Module, channels: int, extra: int) -> nn.Module:
    """Return the layer with `extra` more input channels, for which its first convolutions have kernels of zero."""
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
            layer[name] = widen(branch, channels, extra)
        return layer
    if isinstance(layer, nn.Sequential) and len(layer):
        for name, inner in layer.named_children():
            if list(inner.parameters()):  # padding or pooling in front treats all channels alike
                setattr(layer, name, widen(inner, channels, extra))
                return layer
    raise SpecError(f"Boosted: the network must begin with a convolution, got {type(layer).__name__}")


def fit_autoencoder(
    learner: nn.Module, images: Tensor, *, epochs: int = 5, batch: int = 64, lr: float = 1e-3, seed: int = 0
) -> list[float]:
    """Train the encoder of an `Autoencoder` on images (n, channels, h, w), normalized as for the network; no labels.

    Returns the mean squared reconstruction error of each epoch. The decoder, a mirror of the encoder, is discarded; the
    code is then normalized with its statistics over the images.
    """
    if not hasattr(learner, "encode"):
        raise SpecError("fit_autoencoder: learner must be an autoencoder; use fit_projection for a truncated network")
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
        raise SpecError("fit_projection: learner must be a truncated network; use fit_autoencoder for an autoencoder")
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
    """Set the mean and variance of a learner's last norm to those of its channels over the images."""
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
    ("channel boosting",), "Auxiliary learners, trained without labels or on other data, add channels to the input.",
    note="Published for telecom churn prediction only, not for images. Boosted channels add no information about the "
    "label; they can help with few labels, or with learners trained on other data.",
)  # fmt: skip


def row(backbone: Variant, spec: Boosted) -> Variant:
    """Return the row of a boosted network: the defaults of its backbone, with a card of its own."""
    card = CARD.of(f"{CARD.title} {backbone.card.title}")
    return dataclasses.replace(backbone, spec=spec, card=card, upstream={})


def family(**backbones: Variant) -> Family:
    """Return the rows, by name, of these networks with an input boosted by an autoencoder."""
    return Family({name: row(backbone, Boosted(backbone.spec)) for name, backbone in backbones.items()})
