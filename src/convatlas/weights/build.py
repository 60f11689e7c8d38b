"""Build a network with fresh or given weights."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch

from convatlas.core.network import Network
from convatlas.core.spec import Spec
from convatlas.errors import WeightsError
from convatlas.models.catalog import Stem, adapted, build_fresh, resolve
from convatlas.weights.adapt import InputChannels, load_into
from convatlas.weights.open import open_weights


def build(
    network: str | Spec,
    *,
    classes: int | None = None,
    channels: int | None = None,
    stem: Stem = "default",
    resolution: int | None = None,
    weights: str | Path | None = None,
    input_channels: InputChannels = "repeat",
    device: str | torch.device = "cpu",
) -> Network:
    """Build a network from its name or its spec.

    classes, channels: number of outputs and of input channels (default: those of the weights, or of the paper).
    stem: "cifar" for images of up to 64 pixels, if the network has such a stem.
    resolution: height and width of the input in pixels (default: the network's own).
    weights: "torchvision:TAG" or "timm:TAG", downloaded unless cached; "NAME@TAG" of imported weights; a model file;
        or a checkpoint of convatlas or of another library: a file, the index of shards, the folder of a hub snapshot,
        with ":KEY" for one of several state dicts in it. What was removed from a file or chosen in it is logged, as one
        line. By default the weights are drawn from torch's random generator.
    input_channels: how the weights of the first convolution are made if `channels` is not that of the weights.
    If `classes` differs from the number of classes of the weights, the head is initialized anew. Raises WeightsError
    that names the tensor if any other tensor does not fit exactly.
    Returns a Network: (n, channels, resolution, resolution) -> (n, classes).
    """
    if weights is None:
        return build_fresh(network, classes=classes, channels=channels, stem=stem, resolution=resolution, device=device)
    if input_channels not in get_args(InputChannels):
        choices = ", ".join(get_args(InputChannels))
        raise WeightsError(f"build: input_channels must be one of {choices}, got {input_channels!r}")
    name, row = resolve(network)
    spec = adapted(row.spec, stem=stem, resolution=resolution)
    checkpoint = open_weights(weights, spec, name=name, row=row)
    spec = checkpoint.spec_for(spec)
    if classes is None and not checkpoint.num_classes:
        raise WeightsError(f"{checkpoint.note}; give classes, their number in the new head")
    num_classes = checkpoint.num_classes if classes is None else classes
    built = build_fresh(
        spec, classes=num_classes,
        channels=checkpoint.channels if channels is None else channels, device=device,
    )  # fmt: skip
    load_into(built, spec, checkpoint, num_classes=num_classes, input_channels=input_channels)
    return built
