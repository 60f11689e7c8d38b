"""Build a network with fresh or given weights."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import get_args

import torch

from convatlas.core.network import Network
from convatlas.core.spec import Spec
from convatlas.errors import WeightsError, check_keywords
from convatlas.models.catalog import Stem, adapted, build_fresh, resolve
from convatlas.weights.adapt import InputChannels, load_into
from convatlas.weights.inflate import Inflation
from convatlas.weights.open import open_weights

_HINTS = {
    **dict.fromkeys(("num_classes", "n_classes", "nc"), "the number of outputs is classes (0: features)"),
    **dict.fromkeys(("pretrained", "pretrained_weights"), 'the default published weights are weights="DEFAULT"'),
    **dict.fromkeys(("in_chans", "in_channels", "num_channels"), "the number of input channels is channels"),
    **dict.fromkeys(("img_size", "image_size", "input_size", "size"), "the resolution in pixels is resolution"),
    **dict.fromkeys(
        ("frames", "num_frames", "clip_length"),
        "the number of frames is a field of the spec: ca.build(replace(ca.spec(NAME), frames=8))",
    ),
    "progress": "a download shows its progress in terminals by itself",
    "checkpoint_path": "a file of weights is weights=FILE",
    "drop_rate": "dropout is a field of a recipe: ca.fit(..., dropout=0.2)",
    "drop_path_rate": "stochastic depth is a field of a recipe: ca.fit(..., drop_path=0.1)",
    "features_only": "inner outputs are read with ca.taps(network, paths, images)",
    "global_pool": "the head is that of the paper; classes=0 returns the pooled features",
}


def build(
    network: str | Spec,
    *,
    classes: int | None = None,
    channels: int | None = None,
    stem: Stem = "default",
    resolution: int | None = None,
    weights: str | Path | Enum | None = None,
    input_channels: InputChannels = "repeat",
    inflate: Inflation | None = None,
    device: str | torch.device = "cpu",
    **unknown: object,
) -> Network:
    """Build a network from its name or its spec.

    classes, channels: number of outputs and of input channels (default: those of the weights, or of the paper). With
        classes=0 the network has no classifier and returns features (n, d).
    stem: "cifar" for images of up to 64 pixels, if the network has such a stem.
    resolution: height and width of the input in pixels (default: the network's own).
    weights: "DEFAULT" or "imagenet" (the default published weights), "torchvision:TAG" or "timm:TAG", downloaded
        unless cached; "NAME@TAG" of imported weights; a model file;
        or a checkpoint of convatlas or of another library: a file, the index of shards, the folder of a hub snapshot,
        with ":KEY" for one of several state dicts in it. What was removed from a file or chosen in it is logged, as one
        line; or a value of an enumeration of torchvision, such as ResNet18_Weights.DEFAULT. By default the weights are
        drawn from torch's random generator.
    input_channels: how the weights of the first convolution are made if `channels` is not that of the weights.
    inflate: "mean" or "center": how weights of a network for images, such as "resnet18@torchvision:IMAGENET1K_V1", are
        made those of its counterpart for clips, such as r3d_18; see `convatlas.weights.inflate`.
    If `classes` differs from the number of classes of the weights, the head is initialized anew. Raises WeightsError
    that names the tensor if any other tensor does not fit exactly.
    Returns a Network: (n, channels, resolution, resolution) -> (n, classes); of networks that read clips,
    (n, channels, frames, resolution, resolution) -> (n, classes).
    """
    if unknown:
        check_keywords("build", unknown, build.__annotations__.keys() - {"unknown", "return"}, _HINTS)
    if weights is None:
        if inflate is not None:
            raise WeightsError(f"build: inflate needs weights, got {inflate!r} without any")
        return build_fresh(network, classes=classes, channels=channels, stem=stem, resolution=resolution, device=device)
    if input_channels not in get_args(InputChannels):
        choices = ", ".join(get_args(InputChannels))
        raise WeightsError(f"build: input_channels must be one of {choices}, got {input_channels!r}")
    name, row = resolve(network)
    spec = adapted(row.spec, stem=stem, resolution=resolution)
    checkpoint = open_weights(weights, spec, name=name, row=row, inflate=inflate)
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
