"""Early stages carry low-level features, late stages high-level ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from convatlas.core.network import feature_map, taps
from convatlas.draw.style import INK, lay_out, new_figure, style_axes
from convatlas.experiments.experiment import Experiment, Size, Trial, Verdict
from convatlas.experiments.materials import Images, Materials
from convatlas.experiments.results import Results
from convatlas.experiments.statistics import Effect, paired_effect
from convatlas.models.catalog import resolve
from convatlas.weights.build import build

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NETWORK = "mobilenet_v2"
DATA = "hymenoptera"
TAPS = ("stem", *(f"stages.{stage}" for stage in range(7)), "head.conv")
EARLY, LATE = TAPS[:3], TAPS[-3:]
NETWORKS = ("pretrained", "random weights")
LOW_LEVEL, HIGH_LEVEL = ("color", "blur"), "species"
CAST, SIGMA = 0.1, 0.6
"""Color task: red times 1 + CAST and blue times 1 - CAST, or the reverse. Blur task: Gaussian of SIGMA px, or none."""
FEATURES = 1280
MARGIN = 0.05
"""Difference of accuracy that matters."""
RESOLUTION = {"smoke": 64, "default": 160, "full": 224}
IMAGES = {"smoke": 60, "default": 380, "full": 380}
SEEDS = {"smoke": 1, "default": 5, "full": 20}


def trials(size: Size, results: Results) -> Iterable[Trial]:
    """Each tap of both networks; those of one network and seed in sequence, because they share a forward pass."""
    settings = {"resolution": RESOLUTION[size], "images": IMAGES[size]}
    for seed in range(SEEDS[size]):
        for network in NETWORKS:
            for tap in TAPS:
                yield Trial(f"{network}, {tap}", seed, {**settings, "network": network, "tap": tap})


def alter(pixels: Tensor, warm: Tensor, blurred: Tensor) -> Tensor:
    """Return images (n, 3, h, w) in [0, 1] with a warm or a cold color cast, and blurred or not, by two masks (n,)."""
    sign = warm.to(pixels.dtype) * 2 - 1
    gain = torch.stack([1 + CAST * sign, torch.ones_like(sign), 1 - CAST * sign], 1)[:, :, None, None]
    soft = gaussian_blur(pixels, [5, 5], [SIGMA, SIGMA])
    return (torch.where(blurred[:, None, None, None], soft, pixels) * gain).clamp(0, 1)


def balanced(number: int, generator: torch.Generator) -> Tensor:
    """Return a random mask (number,) that is true for half of the images."""
    return torch.randperm(number, generator=generator) % 2 == 0


def pooled(maps: Tensor) -> Tensor:
    """Return maps (n, channels, h, w) as about `FEATURES` features, average-pooled to a grid (Zhang et al. 2017)."""
    side = max(1, round((FEATURES / maps.shape[1]) ** 0.5))
    return F.adaptive_avg_pool2d(maps, min(side, maps.shape[-1])).flatten(1)


@lru_cache(maxsize=1)
def features(
    network: str, seed: int, resolution: int, number: int, materials: Materials
) -> tuple[Mapping[str, NDArray[np.float32]], Mapping[str, NDArray[np.int64]]]:
    """Return the features at each tap, tap -> (n, features), and the labels of each task, task -> (n,)."""
    parts = [materials.images(DATA, split, resolution) for split in ("train", "test")]
    images = Images(
        torch.cat([part.pixels for part in parts]), torch.cat([part.labels for part in parts]), parts[0].classes
    ).subset(number, seed)
    generator = torch.Generator().manual_seed(seed)
    warm, blurred = (balanced(number, generator) for _ in LOW_LEVEL)
    if network == "pretrained":
        tree = build(NETWORK, weights=materials.weights(NETWORK))
    else:
        torch.manual_seed(seed)
        tree = build(NETWORK)
    steps = resolve(NETWORK)[1].preprocessing
    mean, std = (torch.tensor(values)[:, None, None] for values in (steps.mean, steps.std))
    outputs: dict[str, list[Tensor]] = {tap: [] for tap in TAPS}
    tree.eval().to(memory_format=torch.channels_last)
    if network != "pretrained":
        set_statistics(tree, (images.pixels[:64] / 255 - mean) / std)
    with torch.no_grad():
        for part in torch.arange(number).split(32):
            x = (alter(images.pixels[part] / 255, warm[part], blurred[part]) - mean) / std
            found = taps(tree, TAPS, x.contiguous(memory_format=torch.channels_last))
            for tap in TAPS:
                outputs[tap].append(pooled(feature_map(found[tap])))
    labels = {"color": warm.long(), "blur": blurred.long(), HIGH_LEVEL: images.labels}
    return {tap: torch.cat(each).numpy() for tap, each in outputs.items()}, {
        task: values.numpy() for task, values in labels.items()
    }


@torch.no_grad()
def set_statistics(tree: torch.nn.Module, x: Tensor) -> None:
    """Set the statistics of all batch norms to those of a batch, so that no map of random weights vanishes."""
    for layer in tree.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    tree.train()(x)
    tree.eval()


def probe(x: NDArray[np.float32], y: NDArray[np.int64]) -> float:
    """Return the test accuracy of a linear classifier: ridge regression on standardized features, two thirds for train.

    Its penalty is chosen by leave-one-out on the training images.
    """
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    number = 2 * len(y) // 3
    model = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=np.logspace(1, 7, 13)))
    return float(model.fit(x[:number], y[:number]).score(x[number:], y[number:]))


def measure(trial: Trial, materials: Materials) -> dict[str, float]:
    """Return the accuracy of the probe of each task."""
    settings = trial.settings
    x, labels = features(
        settings["network"], trial.seed, settings["resolution"], settings["images"], materials
    )  # fmt: skip
    own = x[settings["tap"]]
    return {"features": own.shape[1], **{task: probe(own, y) for task, y in labels.items()}}


def mean_of(results: Results, network: str, stages: Iterable[str], task: str) -> NDArray[np.float64]:
    """Return the mean accuracy over stages by seed (seeds,)."""
    values: NDArray[np.float64] = np.mean([results.values(f"{network}, {tap}", task) for tap in stages], 0)
    return values


def change(results: Results, network: str, task: str) -> Effect:
    """Return how much better the probe of a task is at late than at early taps."""
    early, late = (mean_of(results, network, stages, task) for stages in (EARLY, LATE))
    return paired_effect(f"late - early, {network}", f"accuracy of {task}", late, early)


def judge(results: Results) -> Verdict:
    """Confirmed if the high-level task rises and both low-level tasks fall from early to late taps."""
    high = change(results, "pretrained", HIGH_LEVEL)
    low = [change(results, "pretrained", task) for task in LOW_LEVEL]
    rises = high.is_positive and high.difference >= MARGIN
    falls = [effect.is_negative and effect.difference <= -MARGIN for effect in low]
    word = "confirmed" if rises and all(falls) else "partly confirmed" if rises and any(falls) else "not confirmed"
    numbers = "; ".join(
        f"{task} {mean_of(results, 'pretrained', EARLY, task).mean():.1%} early, "
        f"{mean_of(results, 'pretrained', LATE, task).mean():.1%} late, best at {best(results, task)}"
        for task in (*LOW_LEVEL, HIGH_LEVEL)
    )
    reason = f"Accuracy of linear probes (chance 50 %): {numbers}."
    return Verdict(word, reason, (high, *low, change(results, "random weights", HIGH_LEVEL)))


def best(results: Results, task: str) -> str:
    """Return the tap of the pretrained network at which the probe of a task is best."""
    return max(TAPS, key=lambda tap: results.mean(f"pretrained, {tap}", task))


def draw(results: Results) -> Figure:
    """Draw the accuracy of each task along the network, pretrained beside random weights."""
    figure = new_figure(7, 3.2)
    styles = {"color": ("--", "o"), "blur": (":", "s"), HIGH_LEVEL: ("-", "^")}
    texts = {"color": "color cast (low-level)", "blur": "blur (low-level)", HIGH_LEVEL: "ant or bee (high-level)"}
    for position, network in enumerate(NETWORKS, 1):
        axes = figure.add_subplot(1, 2, position)
        for task, (line, marker) in styles.items():
            arms = [f"{network}, {tap}" for tap in TAPS]
            axes.errorbar(
                range(len(TAPS)), [100 * results.mean(arm, task) for arm in arms],
                [100 * results.spread(arm, task) for arm in arms], color=INK, linestyle=line, marker=marker,
                markersize=4, linewidth=1, elinewidth=0.6, capsize=2, label=texts[task],
            )  # fmt: skip
        axes.axhline(50, color=INK, linewidth=0.5)
        axes.set_ylim(40, 102)
        axes.set_xticks(range(len(TAPS)), [tap.removeprefix("stages.") for tap in TAPS], rotation=45)
        style_axes(axes, x="tap (stages by number)", y="accuracy of the probe, %", title=network)
        if position == len(NETWORKS):
            axes.legend(frameon=False, fontsize=7, loc="upper right")
    lay_out(figure)
    return figure


EXPERIMENT = Experiment(
    name="feature_levels",
    title="Early stages carry low-level features, late stages high-level ones",
    claim=(
        "What is linearly readable changes with depth: low-level properties of an image (color, sharpness) best from "
        "early stages of a pretrained network, its class best from late ones."
    ),
    source="Zeiler and Fergus 2014, figure 2; Alain and Bengio 2016 (linear probes); LeCun et al. 2015, page 436.",
    protocol=(
        "MobileNetV2 with ImageNet weights, never trained further, on photos of ants and bees at 160 px. Every photo "
        f"gets a random color cast (red and blue {CAST:.0%} up or down, one of the two ways) and is blurred or not "
        f"(Gaussian of {SIGMA} px), each for half of the photos. From the same features, a linear probe (ridge "
        "regression, its penalty chosen by leave-one-out) reads each of three properties: cast, blur, and ant or bee. "
        "Two thirds of 380 photos train the probe, one third tests it; all chance levels are 50 %. The maps of every "
        "tap are average-pooled to a grid with about 1280 features, so that no tap has more of them. Control: the same "
        "network with random weights. A seed draws the split, casts and blurs; the splits "
        "overlap, so the intervals are too narrow. The strengths of cast and blur were "
        "chosen on other photos (`imagenet_samples`), so that no tap reads them perfectly."
    ),
    criterion=(
        "Early is the mean of stem, stages.0 and stages.1, late that of stages.5, stages.6 and head.conv. The accuracy "
        "of ant or bee is at least 5 points higher late than early, that of cast and of blur at least 5 points lower, "
        "and all three 95 % intervals exclude 0. Partly confirmed: ant or bee, and one of the two low-level properties."
    ),
    would_change=(
        "Probes that are not linear: the stem is a single convolution, and what needs a comparison of its maps is not "
        "linearly readable there. Other low-level properties, other networks, more photos. The weights were trained "
        "on ImageNet, which has ants and bees among its classes."
    ),
    needs=(DATA, f"weights/{NETWORK}"),
    trials=trials,
    measure=measure,
    metrics={
        "color": "color cast, accuracy", "blur": "blur, accuracy", HIGH_LEVEL: "ant or bee, accuracy",
        "features": "features",
    },
    judge=judge,
    draw=draw,
)  # fmt: skip
