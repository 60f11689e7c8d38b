"""Inflation: a network for images whose kernels and pools are made to reach over time, to read clips."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Self

from convatlas.core.clips import ClipSampling
from convatlas.core.cost import cost
from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.record import at_least
from convatlas.core.spec import ClipSpec, Frames, Resolution, Spec
from convatlas.errors import CostError, SpecError
from convatlas.layers.inflation import inflate
from convatlas.models.card import Card, Family, Variant

MAX_FRAMES = 100
"""Number of frames below which the least one is searched."""


@dataclass(frozen=True)
class Inflated(ClipSpec):
    """Carreira and Zisserman 2017, section 2.1: a k x k kernel becomes k x k x k; the layers keep their order.

    body: any classifier of images of convolutions, batch norms, pooling and gates; its own resolution is not used.
    time_kernel: frames of a k x k kernel, k > 1; null: k. 1x1 stays 1x1x1.
    time_strides: strides over time of the layers with a stride over space, in their order; 1 for those behind.
    """

    body: Spec
    time_kernel: Annotated[int, at_least(1)] | None = 3
    time_strides: tuple[Annotated[int, at_least(1)], ...] = ()
    frames: Frames = 16
    resolution: Resolution = 112

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time_kernel is not None and self.time_kernel % 2 == 0:
            raise SpecError(f"Inflated: time_kernel must be odd, got {self.time_kernel}")

    @property
    def minimum(self) -> int:
        return self.body.minimum

    def scaled(self, *, width: float = 1.0, depth: float = 1.0, resolution: int | None = None) -> Self:
        """Scale the body; the resolution is that of the clips, not of the body."""
        body = self.body.scaled(width=width, depth=depth)
        return dataclasses.replace(self, body=body, resolution=self.resolution if resolution is None else resolution)

    def build(self, *, classes: int, channels: int) -> Network:
        if self.body.reads != "images" or self.body.predicts != "classes":
            raise SpecError(f"Inflated: body must be a classifier of images, got a {type(self.body).__name__}")
        network = self.body.scaled(resolution=self.resolution).build(classes=classes, channels=channels)
        inflate(network, kernel=self.time_kernel, strides=self.time_strides)
        network.input_shape = self.input_shape(channels)
        self._check(network)
        return network

    def _check(self, network: Network) -> None:
        """Raise SpecError that states the least number of frames if a layer has no output for clips of this size."""
        channels, frames, *size = network.input_shape
        try:
            cost(network)
        except CostError as error:
            for more in range(frames + 1, MAX_FRAMES):
                with suppress(CostError):
                    cost(network, (channels, more, *size))
                    raise SpecError(f"Inflated: frames must be >= {more} for this network, got {frames}") from error
            raise SpecError(f"Inflated: {error}; choose another body") from error


CARD = Card(
    "Inflated networks", 2017,
    "Carreira, Zisserman, Quo vadis, action recognition? A new model and the Kinetics dataset, arXiv 1705.07750",
    ("time",), "Networks for images get kernels that reach over time, and their weights as a start.",
)  # fmt: skip
CARD_I3D = CARD.of("I3D", note="GoogLeNet with batch norm. Its accuracy here is not known: no weights are published.")
CARD_MOBILE = CARD.of(
    "3D MobileNet v2", year=2019, innovation="Depthwise convolutions over space and time, for small devices.",
    paper="Kopuklu et al., Resource efficient 3D convolutional neural networks, arXiv 1904.02422",
)  # fmt: skip


def row(body: Variant, spec: Inflated, card: Card | None = None, *, rate: float = 15.0) -> Variant:
    """Return a row whose frames are normalized as the images of the body. rate: frames per second."""
    steps = body.preprocessing.for_resolution(spec.resolution)
    preprocessing = Preprocessing(
        resize=steps.resize, crop=steps.crop, mean=steps.mean, std=steps.std,
        sampling=ClipSampling(spec.frames, rate, clips=5),
    )  # fmt: skip
    return Variant(spec, card or CARD.of(f"Inflated {body.card.title}"), preprocessing, classes=400)


KIND = "inflated"
"""Stands for an inflated network with the default cells, whose body is to be chosen."""


def on_body(spec: str | Inflated, body: Variant) -> Inflated:
    """Return an inflated network on a network of the catalog; its other cells are those of `spec`, or of `KIND`."""
    return dataclasses.replace(spec, body=body.spec) if isinstance(spec, Inflated) else Inflated(body.spec)


def family(*, googlenet: Variant, mobilenet_v2: Variant) -> Family:
    """Return the family: I3D, and the small network of 3-D depthwise convolutions."""
    mobile = Inflated(mobilenet_v2.spec, time_strides=(1, 2, 2, 2, 2))
    i3d = Inflated(googlenet.spec, time_kernel=None, time_strides=(2, 1, 1, 2, 2), frames=64, resolution=224)
    return Family({
        "i3d": row(googlenet, i3d, CARD_I3D, rate=25.0),
        "inflated_mobilenet_v2": row(mobilenet_v2, mobile, CARD_MOBILE),
    })  # fmt: skip
