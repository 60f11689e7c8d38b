"""Features of images: what a network computes in front of its classifier, or at another layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convatlas.core.network import Network, feature_map, tap_paths, taps
from convatlas.core.ragged import Inputs, to_device
from convatlas.engines.evaluation import Forward, evaluation_mode
from convatlas.engines.network_engine import EngineConfig, NetworkEngine
from convatlas.errors import SpecError, nearest
from convatlas.models.headless import without_classifier
from convatlas.weights.modelfile import Header

BATCH = 64
"""Usual number of images in a batch."""


def feature_forward(network: Network, header: Header, layer: str = "") -> Forward:
    """Return a function from pixels, or whole images, to features (n, d) on the CPU.

    layer: a tap, whose map is averaged over its positions. "": the input of the layer that computes class scores; of
    detectors, the last map of the body.
    Raises SpecError for a layer that is not on the main path, and where the layer of class scores is not known.
    """
    if not layer and network.runs_in_sequence:
        headless = without_classifier(network, header.spec, header.task.outputs)
        return NetworkEngine(EngineConfig(), headless, header, batch=BATCH).outputs
    layer = layer or network.levels[-1]
    paths = [path for path in tap_paths(network) if network.runs_in_sequence or path != "head"]
    if layer not in paths:
        raise SpecError(f"embed: layer must be on the main path of the network, got {layer!r}{nearest(layer, paths)}")
    weight = next(network.parameters(), torch.empty(0))

    @torch.inference_mode()
    def forward(pixels: Inputs) -> Any:
        with evaluation_mode(network):
            inputs = header.preprocessing.normalize(to_device(pixels, weight.device))
            if isinstance(inputs, Tensor):
                inputs = inputs.to(weight.dtype)
            first = network.first_inputs(inputs)
            return _flatten(feature_map(taps(network, [layer], first)[layer]), first.ndim).float().cpu()

    return forward


def _flatten(features: Tensor, axes: int) -> Tensor:
    """Return features as (n, d): maps with as many axes as the input are averaged over their positions."""
    return features.flatten(2).mean(2) if features.ndim == axes else features.flatten(1)
