"""The modules and transforms of other libraries, with which pretrained weights are verified."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.data.decode.pixels import frame_pixels, read_image
from convatlas.data.frame_reader import open_reader
from convatlas.data.videos import load_clips
from convatlas.errors import WeightsError, brief
from convatlas.models.card import Library
from convatlas.models.catalog import variant
from convatlas.models.keys import rename
from convatlas.system.extras import import_optional, is_installed
from convatlas.weights.imported import ImportedWeights
from convatlas.weights.match import rules_of
from convatlas.weights.pretrained import Weights
from convatlas.weights.read import read_checkpoint

Transform = Callable[[Path], Tensor]
"""From an image to the input of a network, (1, channels, size, size), or from a video to that of each of its clips."""

_OLD_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)")


def transform_of(preprocessing: Preprocessing) -> Transform:
    """Return our own transform."""

    def read(file: Path) -> Tensor:
        if preprocessing.sampling is not None:
            return preprocessing.normalize(load_clips(str(file), preprocessing))
        pixels = preprocessing.resize_and_crop(read_image(file, preprocessing.channels))
        return preprocessing.normalize(pixels[None])

    return read


def build_upstream(weights: Weights, path: Path) -> tuple[nn.Module, Transform]:
    """Return the library's own module with the weights of a file, and its own transforms.

    Raises WeightsError if the file does not fit the module.
    """
    try:
        network, transform = (
            _build_torchvision(weights, path) if weights.library == "torchvision" else _build_timm(weights, path)
        )
    except (RuntimeError, KeyError, ValueError) as error:
        raise WeightsError(f"{path}: does not fit {weights.upstream} of {weights.library} ({brief(error)})") from error

    def read(file: Path) -> Tensor:
        if weights.preprocessing.sampling is not None:
            return torch.stack([transform(clip) for clip in _read_clips(file, weights.preprocessing)])
        with Image.open(file) as image:
            inputs: Tensor = transform(image.convert("RGB"))
        return inputs[None]

    return network.eval(), read


def _read_clips(file: Path, preprocessing: Preprocessing) -> list[Tensor]:
    """Return the clips (frames, channels, h, w) of a video in their own size: no library decodes videos."""
    with open_reader(str(file), preprocessing) as reader:
        own_size = replace(reader, prepare=lambda rgb: frame_pixels(rgb, preprocessing.channels, file))
        return list(own_size.even_clips())


def _build_torchvision(weights: Weights, path: Path) -> tuple[nn.Module, Any]:
    from torchvision import models

    options: dict[str, Any] = {"num_classes": len(weights.classes)}
    if variant(weights.network).transforms_input:  # what torchvision sets if it loads the weights itself
        options |= {"transform_input": True, "init_weights": False}
    network: nn.Module = models.get_model(weights.upstream, weights=None, **options)
    row = variant(weights.network)
    checkpoint = read_checkpoint(path, weights.spec, name=weights.network, row=row, library=weights.library)
    # the files of DenseNet are older than the names in its module: norm.1 for norm1
    tensors = {_OLD_DENSENET_KEY.sub(r"\1\2", key): tensor for key, tensor in checkpoint.original.items()}
    network.load_state_dict(tensors)
    return network, models.get_model_weights(weights.upstream)[weights.tag].transforms()


def _build_timm(weights: Weights, path: Path) -> tuple[nn.Module, Any]:
    timm = import_optional("timm", "convatlas[hub]", where=weights.name, error=WeightsError)
    name = f"{weights.upstream}.{weights.tag.rpartition('.')[2]}"
    network: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    return network, timm.data.create_transform(**timm.data.resolve_data_config(network.pretrained_cfg))


def build_upstream_of_imported(weights: ImportedWeights, network: Network) -> tuple[Library, nn.Module] | None:
    """Return a library's own module with the weights of our network; None if no library that is installed has it.

    The tensors get the names of the library by its key rules. The module reads the same inputs as `network`.
    """
    row, spec = variant(weights.network), weights.header.spec
    fitting = [
        (library, name)
        for library, name in row.sources
        if row.spec.replaced(row.relatives.get(name, {})).scaled(resolution=spec.resolution) == spec
        and is_installed(library)
    ]
    fitting.sort(key=lambda source: source[0] != weights.header.training.library)
    if not fitting:
        return None
    library, name = fitting[0]
    module = _build_module(library, name, classes=len(weights.header.classes), channels=network.input_shape[0])
    ours, rules = network.state_dict(), rules_of(spec)[library]
    state = {
        key: ours[ours_name].reshape(tensor.shape) if (ours_name := rename(key, rules)) else tensor
        for key, tensor in module.state_dict().items()
    }
    module.load_state_dict(state)
    return library, module.eval()


def _build_module(library: Library, name: str, *, classes: int, channels: int) -> nn.Module:
    if library == "timm":
        import timm

        network: nn.Module = timm.create_model(name, num_classes=classes, in_chans=channels)
        return network
    from torchvision import models

    built: nn.Module = models.get_model(name, weights=None, num_classes=classes)
    return built
