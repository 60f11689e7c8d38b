"""Build a network with weights."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch

from convatlas.core.network import Network
from convatlas.core.spec import Spec
from convatlas.errors import WeightsError
from convatlas.models.catalog import Stem, adapted, build_fresh, resolve
from convatlas.weights.adapt import First, load_into
from convatlas.weights.open import open_weights


def build(
    network: str | Spec,
    *,
    classes: int | None = None,
    channels: int | None = None,
    stem: Stem = "own",
    resolution: int | None = None,
    weights: str | Path | None = None,
    first: First = "repeat",
    device: str | torch.device = "cpu",
) -> Network:
    """Grow a network from its name or its spec, with fresh weights drawn from torch's generator, or with given ones.

    classes: outputs; the number of the weights, or else the paper's, where left out.
    channels: channels of the input image, likewise.
    stem: "small" for images of up to 64 pixels, where the network has such a stem.
    resolution: height and width of the input in pixels, instead of the network's own.
    weights: "torchvision:TAG" or "timm:TAG", fetched if they are not at hand; or a file: a sealed model file, or a
        checkpoint of a library or of ours.
    first: with other channels than those of the weights, how the first kernels are made from theirs.
    Other `classes` than those of the weights get a fresh head; everything else must fit to the last tensor.
    Returns a Network: (batch, channels, resolution, resolution) in, (batch, classes) out.
    """
    if weights is None:
        return build_fresh(network, classes=classes, channels=channels, stem=stem, resolution=resolution, device=device)
    if first not in get_args(First):
        raise WeightsError(f"build: first is one of {', '.join(get_args(First))}, not {first!r}")
    name, row = resolve(network)
    spec = adapted(row.spec, stem=stem, resolution=resolution)
    given = open_weights(weights, spec, name=name, row=row)
    grown = build_fresh(
        spec, classes=given.classes if classes is None else classes,
        channels=given.channels if channels is None else channels, device=device,
    )  # fmt: skip
    load_into(grown, spec, given, first=first)
    return grown
