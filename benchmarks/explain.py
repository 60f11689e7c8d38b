"""Grad-CAM of a batch of photos: convatlas against captum used directly, and in forward passes; interleaved.

    python benchmarks/explain.py FOLDER --weights FILE [--images 100] [--batch 16] [--rounds 7] [--threads 1]

FOLDER has photos; FILE has the weights of MobileNetV2, torchvision's names. All sides get the same pixels, decoded
before. "convatlas" is what `Model.explain` computes without faithfulness: the prediction, its score, the heat map over
the view, and the strongest feature maps of each stage; "without feature maps" leaves these out. "captum" predicts the
class, and interpolates and scales the maps of `LayerGradCam`; "captum, classes known" gets the classes for nothing.
"forward pass" is the network in evaluation mode without gradients. Prints for each side the minimum over the rounds for
all images, which other processes disturb least, and the minimum in forward passes; then the largest difference
between the maps. With one thread, seconds are those of the processor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from captum.attr import LayerAttribution, LayerGradCam
from torch import Tensor

from convatlas.explanation.explain import Explainer
from convatlas.explanation.explanation import Explanation
from convatlas.explanation.heatmap import scale_to_one
from convatlas.explanation.options import ExplainOptions
from convatlas.inference.images import load_views
from convatlas.inference.load import from_weights
from convatlas.inference.model import Model
from convatlas.inference.options import PredictOptions
from convatlas.weights.pretrained import find_weights
from interleave import time_interleaved

NAME = "mobilenet_v2@torchvision:IMAGENET1K_V1"
SUFFIXES = (".jpg", ".jpeg", ".png")
FORWARD, OWN, OWN_BARE, CAPTUM, CAPTUM_KNOWN = (
    "forward pass", "convatlas", "convatlas, without feature maps", "captum", "captum, classes known"
)  # fmt: skip


def read_pixels(folder: Path, model: Model, count: int) -> Tensor:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)[:count]
    steps = [model.header.preprocessing]
    return torch.cat([Tensor(load_views(file, file.name, steps, PredictOptions())[0].pixels) for file in files])


def own_maps(model: Model, batches: list[Tensor], *, stages: bool) -> Tensor:
    options = ExplainOptions(method="grad-cam", faithfulness=False, stages=stages)
    explainer = Explainer(model.network, model.engine, model.header, options)
    results = [each for pixels in batches for each in explainer.explain(pixels, ["photo"] * len(pixels))]
    return torch.stack([each.heatmap for each in results if isinstance(each, Explanation)])


def captum_maps(model: Model, layer: str, batches: list[Tensor], known: list[Tensor] | None) -> Tensor:
    network, steps, found = model.module, model.header.preprocessing, []
    method = LayerGradCam(network, network.get_submodule(layer))
    for number, pixels in enumerate(batches):
        inputs = steps.normalize(pixels)
        if known is None:
            with torch.no_grad():
                labels = network(inputs).argmax(1)
        else:
            labels = known[number]
        maps = method.attribute(inputs, labels, relu_attributions=True).detach()
        found.append(scale_to_one(LayerAttribution.interpolate(maps, pixels.shape[-2:], "bilinear")[:, 0]))
    return torch.cat(found)


def predict(model: Model, batches: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [model.module(model.header.preprocessing.normalize(pixels)).argmax(1) for pixels in batches]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = from_weights(find_weights(NAME), file=arguments.weights)
    batches = list(read_pixels(arguments.folder, model, arguments.images).split(arguments.batch))
    layer = model.header.task.explained(model.module, model.header.preprocessing).default_layer
    known = predict(model, batches)
    sides: dict[str, Callable[[], object]] = {
        FORWARD: lambda: predict(model, batches),
        OWN: lambda: own_maps(model, batches, stages=True),
        OWN_BARE: lambda: own_maps(model, batches, stages=False),
        CAPTUM: lambda: captum_maps(model, layer, batches, None),
        CAPTUM_KNOWN: lambda: captum_maps(model, layer, batches, known),
    }
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    times = time_interleaved(sides, arguments.rounds, clock=clock)
    images = sum(map(len, batches))
    print(f"{images} photos in batches of {arguments.batch}, {arguments.threads} thread(s), layer {layer}")
    for name, seconds in times.items():
        print(f"{name:<34}{min(seconds):>8.2f} s {min(seconds) / min(times[FORWARD]):>6.2f} forward passes")
    difference = own_maps(model, batches, stages=False) - captum_maps(model, layer, batches, None)
    print(f"largest difference between the maps: {float(difference.abs().max()):.1e}")


if __name__ == "__main__":
    main()
