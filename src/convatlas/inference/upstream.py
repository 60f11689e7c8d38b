"""The modules and transforms of other libraries, with which pretrained weights are verified."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from convatlas.errors import WeightsError, brief
from convatlas.models.catalog import variant
from convatlas.system.extras import import_optional
from convatlas.weights.pretrained import Weights
from convatlas.weights.read import load_tensors

Transform = Callable[[Path], Tensor]
"""From an image file to the input (channels, size, size) of a network."""

_OLD_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)")


def build_upstream(weights: Weights, path: Path) -> tuple[nn.Module, Transform]:
    """Return the library's own module with the weights of a file, and its own transforms.

    Raises WeightsError if the file does not fit the module.
    """
    upstream_name = variant(weights.network).upstream[weights.library]
    try:
        network, transform = (
            _build_torchvision(weights, upstream_name, path)
            if weights.library == "torchvision"
            else _build_timm(weights, upstream_name, path)
        )
    except (RuntimeError, KeyError, ValueError) as error:
        raise WeightsError(f"{path}: does not fit {upstream_name} of {weights.library} ({brief(error)})") from error

    def read(file: Path) -> Tensor:
        with Image.open(file) as image:
            inputs: Tensor = transform(image.convert("RGB"))
        return inputs

    return network.eval(), read


def _build_torchvision(weights: Weights, upstream_name: str, path: Path) -> tuple[nn.Module, Any]:
    from torchvision import models

    options: dict[str, Any] = {"num_classes": len(weights.classes)}
    if variant(weights.network).transforms_input:  # what torchvision sets if it loads the weights itself
        options |= {"transform_input": True, "init_weights": False}
    network: nn.Module = models.get_model(upstream_name, weights=None, **options)
    # the files of DenseNet are older than the names in its module: norm.1 for norm1
    tensors = {_OLD_DENSENET_KEY.sub(r"\1\2", key): tensor for key, tensor in load_tensors(path).items()}
    network.load_state_dict(tensors)
    return network, models.get_model_weights(upstream_name)[weights.tag].transforms()


def _build_timm(weights: Weights, upstream_name: str, path: Path) -> tuple[nn.Module, Any]:
    timm = import_optional("timm", "convatlas[hub]", where=weights.name, error=WeightsError)
    network: Any = timm.create_model(
        f"{upstream_name}.{weights.tag}", pretrained=True, pretrained_cfg_overlay={"file": str(path)}
    )
    return network, timm.data.create_transform(**timm.data.resolve_data_config(network.pretrained_cfg))
