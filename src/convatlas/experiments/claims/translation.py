"""Translation: how invariant max pooling, strides and global pooling make a network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convatlas.core.compose import Chain
from convatlas.core.preprocessing import Preprocessing
from convatlas.draw.style import INK, label, lay_out, new_figure, style_axes
from convatlas.experiments.experiment import Experiment, Size, Trial, Verdict
from convatlas.experiments.materials import Images, Materials
from convatlas.experiments.results import Results
from convatlas.experiments.training import train
from convatlas.models.catalog import resolve
from convatlas.weights.build import build

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE, CANVAS = 20, 32
"""Of an image of Fashion-MNIST, and of the black canvas that it lies on, in pixels."""
WIDTHS = (12, 24, 32)
DISTANCES = (1, 2, 4, 6)
"""Of shifts, in pixels."""
DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))
TRAINED = {
    "fully connected": ("none", "layers", 0),
    "stride, flatten": ("stride", "flatten", 0),
    "max pooling, flatten": ("max", "flatten", 0),
    "stride, global pooling": ("stride", "global", 0),
    "average pooling, global pooling": ("average", "global", 0),
    "max pooling, global pooling": ("max", "global", 0),
    "blurred max pooling, global pooling": ("blurred max", "global", 0),
    "no subsampling, global pooling": ("dilation", "global", 0),
    "max pooling, flatten, shifts in training": ("max", "flatten", 6),
}
"""Arm -> (subsampling, head, largest shift in training in pixels)."""
STRIDE_FLAT, MAX_FLAT, STRIDE_GLOBAL, _, MAX_GLOBAL, BLURRED = list(TRAINED)[1:7]
PRETRAINED = {"MobileNetV2 (stride) on photos": "mobilenet_v2", "SqueezeNet 1.1 (max) on photos": "squeezenet1_1"}
PHOTO, CROP = 240, 224
EPOCHS = {"smoke": 1, "default": 8, "full": 30}
IMAGES = {"smoke": 200, "default": 2000, "full": 50_000}
TEST_IMAGES = {"smoke": 100, "default": 1000, "full": 10_000}
PHOTOS = {"smoke": 10, "default": 60, "full": 140}
SEEDS = {"smoke": 1, "default": 3, "full": 5}
NEAR = "consistency_near"
"""The mean of 1 and 2 px."""
INVARIANT, GAIN, GLOBAL_GAIN = 0.95, 0.02, 0.05


def network(subsampling: str, head: str) -> nn.Module:
    """Return three 3x3 convolutions with batch norm, each followed by what halves the maps, and a classifier.

    Without subsampling, the convolutions have dilation 1, 2 and 4. "layers" is a network of linear layers alone.
    """
    if head == "layers":
        return Chain(nn.Flatten(), nn.Linear(CANVAS**2, 64), nn.ReLU(), nn.Linear(64, 10))
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise((1, *WIDTHS))):
        dilation = 2**number if subsampling == "dilation" else 1
        stride = 2 if subsampling == "stride" else 1
        layers += [nn.Conv2d(before, after, 3, stride, dilation, dilation, bias=False), nn.BatchNorm2d(after),
                   nn.ReLU()]  # fmt: skip
        if subsampling == "max":
            layers.append(nn.MaxPool2d(2))
        elif subsampling == "average":
            layers.append(nn.AvgPool2d(2))
        elif subsampling == "blurred max":
            layers += [nn.MaxPool2d(2, stride=1), blur(after)]
    if head == "global":
        return Chain(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 10))
    return Chain(*layers, nn.Flatten(), nn.Linear(WIDTHS[-1] * (CANVAS // 8) ** 2, 10))


def blur(maps: int) -> nn.Module:
    """Return a fixed 3x3 binomial filter with stride 2 on each map (Zhang 2019, Triangle-3)."""
    layer = nn.Conv2d(maps, maps, 3, 2, 1, groups=maps, bias=False)
    weights = torch.tensor([1.0, 2.0, 1.0]) / 4
    layer.weight.data.copy_(torch.outer(weights, weights))
    return layer.requires_grad_(False)


def trials(size: Size, results: Results) -> Iterable[Trial]:
    """Each network with each seed."""
    common = {"epochs": EPOCHS[size], "images": IMAGES[size], "test_images": TEST_IMAGES[size]}
    for seed in range(SEEDS[size]):
        yield from (Trial(arm, seed, common) for arm in TRAINED)
        yield from (Trial(arm, seed, {"photos": PHOTOS[size]}) for arm in PRETRAINED)


def measure(trial: Trial, materials: Materials) -> dict[str, float]:
    """Train on centered images, or take a pretrained network, and compare its predictions of shifted images."""
    settings = trial.settings
    if trial.arm in PRETRAINED:
        name = PRETRAINED[trial.arm]
        photos = materials.images("hymenoptera", "test", PHOTO).subset(settings["photos"], 0).pixels
        tree = build(name, weights=materials.weights(name)).eval()
        return consistencies(tree, resolve(name)[1].preprocessing, photos, CROP, None, trial.seed)
    subsampling, head, shift = TRAINED[trial.arm]
    images, test = (on_canvas(materials.images("fashion_mnist", split, SIDE)) for split in ("train", "test"))
    done = train(
        crop(images.subset(settings["images"], trial.seed)), crop(test.subset(settings["test_images"], 0)),
        network(subsampling, head), seed=trial.seed, epochs=settings["epochs"], batch=32, lr=0.02,
        schedule="onecycle", max_shift=shift,
    )  # fmt: skip
    shifted = test.subset(settings["test_images"], 0)
    return consistencies(done.network.eval(), done.preprocessing, shifted.pixels, CANVAS, shifted.labels, trial.seed)


def on_canvas(images: Images) -> Images:
    """Return images in the center of a canvas that leaves room for the largest shift around the one that is cropped."""
    border = (CANVAS - SIDE) // 2 + DISTANCES[-1]
    return replace(images, pixels=F.pad(images.pixels, (border,) * 4))


def crop(images: Images) -> Images:
    """Return images as networks see them without a shift."""
    return replace(images, pixels=shift_by(images.pixels, CANVAS, torch.zeros(len(images), 2, dtype=torch.int64)))


def shift_by(pixels: Tensor, size: int, shifts: Tensor) -> Tensor:
    """Return the central crops (n, channels, size, size) of images, each moved by its own (y, x) of shifts (n, 2)."""
    middle = (pixels.shape[-1] - size) // 2
    starts = (middle - shifts).tolist()
    return torch.stack([image[:, y : y + size, x : x + size] for image, (y, x) in zip(pixels, starts, strict=True)])


@torch.no_grad()
def consistencies(
    tree: nn.Module, steps: Preprocessing, pixels: Tensor, size: int, labels: Tensor | None, seed: int
) -> dict[str, float]:
    """Return for each distance the share of images whose class stays the same, and with labels the accuracy.

    The seed draws one direction of eight for each image.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.tensor(DIRECTIONS)[torch.randint(len(DIRECTIONS), (len(pixels),), generator=generator)]

    def classes(distance: int) -> Tensor:
        views = shift_by(pixels, size, distance * directions)
        return torch.cat([tree(steps.normalize(part)).argmax(1) for part in views.split(50)])

    centered = classes(0)
    metrics = {} if labels is None else {"accuracy": float((centered == labels).double().mean())}
    for distance in DISTANCES:
        found = classes(distance)
        metrics[f"consistency_{distance}"] = float((found == centered).double().mean())
        if labels is not None:
            metrics[f"accuracy_{distance}"] = float((found == labels).double().mean())
    return {**metrics, NEAR: (metrics["consistency_1"] + metrics["consistency_2"]) / 2}


def judge(results: Results) -> Verdict:
    """Count the statements that hold, see the criterion."""
    pooling = [results.compare(MAX_FLAT, STRIDE_FLAT, NEAR), results.compare(MAX_GLOBAL, STRIDE_GLOBAL, NEAR)]
    head = results.compare(MAX_GLOBAL, MAX_FLAT, "consistency_4")
    blurred = results.compare(BLURRED, MAX_GLOBAL, NEAR)
    holds = [effect.difference >= GAIN and effect.is_positive for effect in pooling]
    holds += [results.mean(MAX_FLAT, NEAR) >= INVARIANT, head.difference >= GLOBAL_GAIN and head.is_positive]
    word = "confirmed" if all(holds) else "partly confirmed" if sum(holds) >= 2 else "not confirmed"

    def near(arm: str) -> str:
        return f"{results.mean(arm, NEAR):.1%}"

    changed = ", ".join(f"{name} {1 - results.mean(name, 'consistency_1'):.1%}" for name in PRETRAINED)
    reason = (
        f"{sum(holds)} of 4 statements hold. The class stays the same under shifts of 1 and 2 px for {near(MAX_FLAT)} "
        f"of the images with max pooling and {near(STRIDE_FLAT)} with strides before a flattened classifier, "
        f"{near(MAX_GLOBAL)} and {near(STRIDE_GLOBAL)} before global pooling ({near(BLURRED)} with blurred pooling). "
        f"Under 4 px, global pooling adds {100 * head.difference:+.1f} points to max pooling. A shift of 1 px changes "
        f"the class of photos: {changed}."
    )
    return Verdict(word, reason, (*pooling, head, blurred))


def draw(results: Results) -> Figure:
    """Draw the consistency against the distance of the shift, flattened and global heads apart."""
    figure = new_figure(7, 3.8)
    panels = {
        "before a flattened classifier": [arm for arm, (_, head, _) in TRAINED.items() if head != "global"],
        "before global pooling": [arm for arm, (_, head, _) in TRAINED.items() if head == "global"],
        "pretrained, on photos": list(PRETRAINED),
    }
    styles = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ((0, (5, 1, 1, 1, 1, 1)), "v"))
    axes = figure.subplots(1, 3, sharey=True)
    for number, (title, arms) in enumerate(panels.items()):
        for arm, (line, marker) in zip(arms, styles, strict=False):
            keys = [f"consistency_{distance}" for distance in DISTANCES]
            means, spreads = ([f(arm, key) for key in keys] for f in (results.mean, results.spread))
            short = arm.replace(", global pooling", "").replace(", flatten", "").replace(" on photos", "")
            axes[number].errorbar(
                DISTANCES, means, spreads, linestyle=line, marker=marker, color=INK, linewidth=1, markersize=4,
                markerfacecolor="white", capsize=2, label=label(short),
            )  # fmt: skip
        axes[number].set_xticks(DISTANCES)
        axes[number].set_ylim(0, 1.02)
        style_axes(axes[number], x="shift in px", y="" if number else "share of equal predictions", title=title)
        axes[number].legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(-0.05, -0.2), handlelength=3)
    lay_out(figure)
    return figure


EXPERIMENT = Experiment(
    name="translation",
    title="Max pooling, strides and global pooling under translation",
    claim=(
        "Max pooling makes a convolutional network approximately invariant to small translations, more than strides "
        "do, and global pooling makes it more so."
    ),
    source=(
        "Goodfellow et al. 2016, \"Deep learning\", section 9.3. Against: Azulay and Weiss 2019, figures 1 and 2, and "
        "Zhang 2019, \"Making convolutional networks shift-invariant again\", section 3: subsampling aliases."
    ),
    protocol=(
        f"Three 3x3 convolutions ({', '.join(map(str, WIDTHS))} maps, batch norm, ReLU), each followed by what halves "
        "the maps, then flattening or global average pooling and a linear layer. Trained on 2000 images of "
        f"Fashion-MNIST at {SIDE} px in the center of a black canvas of {CANVAS} px, for 8 epochs with the same recipe "
        "(SGD with momentum 0.9, batch 32, rate 0.02, one cycle), without augmentation but in one arm. Tested on 1000 "
        "images that are moved by 1, 2, 4 or 6 px in one of eight directions, without loss at the borders. Blurred "
        "pooling is that of Zhang 2019 (3x3); without subsampling, convolutions have dilation instead. Consistency is "
        "the share of images whose predicted class is that of the image without a shift. Two networks with ImageNet "
        f"weights are measured on crops of {CROP} px of 60 photos, moved in the same way."
    ),
    criterion=(
        "Four statements. Consistency, the mean of 1 and 2 px, is at least 2 points higher with max pooling than with "
        "strides, before a flattened classifier and before global pooling (two), with a 95 % interval of the "
        "difference, paired by seed, above 0. It is at least 95 % with max pooling before a flattened classifier. "
        "Under 4 px, global pooling after max pooling adds at least 5 points to it, and the interval is above 0. "
        "Confirmed: all four. Partly confirmed: two or three."
    ),
    would_change=(
        "Augmentation or more data, which teach invariance to any network (the arm with shifts in training); deeper "
        "networks, which subsample more often. Without subsampling, the network is not exactly invariant because "
        "its zero padding shows it the borders of the canvas; a larger canvas would make it so."
    ),
    needs=("fashion_mnist", "hymenoptera", *(f"weights/{name}" for name in PRETRAINED.values())),
    trials=trials,
    measure=measure,
    metrics={
        "accuracy": "test accuracy", "accuracy_2": "shifted by 2 px", "accuracy_6": "by 6 px",
        "consistency_1": "consistency, 1 px", "consistency_2": "2 px", "consistency_4": "4 px", "consistency_6": "6 px",
    },
    judge=judge,
    draw=draw,
)  # fmt: skip
