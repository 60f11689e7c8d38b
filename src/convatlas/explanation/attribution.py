"""Attributions of pixels: integrated gradients and occlusion, computed by captum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convatlas.explanation.faithfulness import mean_color
from convatlas.explanation.heatmap import HeatMap, scale_to_one
from convatlas.system.extras import import_optional
from convatlas.tasks.explained import Explained

WINDOW = 1 / 7
"""Side of an occluded square as a share of the side of the view, of a rectangle that of the square of equal area."""

CLIP_WINDOW = 1 / 4
"""Frames that are occluded at once, as a share of the frames of a clip."""

BATCH, GRADIENT_BATCH = 16, 4
"""Inputs in a forward pass, and in one with gradients, which needs the memory of the maps of all layers."""

ScoreOf = Callable[[Any], Tensor]
"""Returns the score (n,) of inputs, or of pixels."""


def integrated_gradients(
    explained: Explained, pixels: Any, score: ScoreOf, *, steps: int, batch: int = GRADIENT_BATCH
) -> HeatMap:
    """Return the positive attributions of one image, summed over its channels (Sundararajan et al. 2017).

    pixels: a batch of one. score: of the network's inputs. Gradients are integrated in `steps` steps between the mean
    color, which the preprocessing subtracts, and the image. The completeness error is the difference between the sum of
    all attributions and the change of the score, as a share of that change; it is 0 for infinitely many steps.
    """
    captum = _captum("integrated-gradients")
    inputs = explained.inputs(pixels)
    with torch.enable_grad():
        attributions, delta = captum.IntegratedGradients(score).attribute(
            inputs, explained.baseline(inputs), n_steps=steps, internal_batch_size=batch, return_convergence_delta=True
        )
    change = float(attributions.sum()) - float(delta)
    maps = attributions.detach().sum(1).float().clamp(min=0)
    values = scale_to_one(explained.on_view(maps, pixels))[0].cpu()
    return HeatMap(values, tuple(values.shape), abs(float(delta)) / max(abs(change), 1e-12))


def occlusion(pixels: Tensor, score: ScoreOf, *, batch: int = BATCH) -> HeatMap:
    """Return by how much the score falls where a square of the mean color hides the pixels (Zeiler and Fergus 2014).

    pixels: one image or clip ([frames,] channels, h, w). score: of pixels (n, ...), on any engine. Squares, of 1/49 of
    the pixels, overlap by half; those of clips, over a quarter of the frames, do not overlap.
    """
    captum = _captum("occlusion")
    *frames, channels, height, width = pixels.shape
    side = max(1, min(height, width, round(WINDOW * math.sqrt(height * width))))
    depth = [max(1, round(CLIP_WINDOW * count)) for count in frames]
    step = side if frames else max(1, side // 2)
    with torch.no_grad():
        attributions = captum.Occlusion(lambda x: score(x.to(pixels.dtype))).attribute(
            pixels[None].float(), sliding_window_shapes=(*depth, channels, side, side),
            strides=(*depth, channels, step, step), baselines=mean_color(pixels)[None].float(),
            perturbations_per_eval=batch,
        )  # fmt: skip
    values = scale_to_one(attributions.sum(-3).float().clamp(min=0))[0].cpu()
    grid = [-(-(count - d) // d) + 1 for count, d in zip(frames, depth, strict=True)]
    grid += [-(-(size - side) // step) + 1 for size in (height, width)]
    return HeatMap(values, tuple(grid))


def _captum(method: str) -> Any:
    return import_optional("captum.attr", "convatlas[explain]", where=f"explain: {method}")
