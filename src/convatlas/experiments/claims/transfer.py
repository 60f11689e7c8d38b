"""Transfer learning against training from random weights, over the number of images for each class."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from convatlas.core.compose import Chain
from convatlas.draw.style import INK, label, lay_out, new_figure, style_axes
from convatlas.experiments.experiment import Experiment, Size, Trial, Verdict
from convatlas.experiments.materials import Images, Materials
from convatlas.experiments.results import Results
from convatlas.experiments.statistics import Effect, paired_effect
from convatlas.experiments.training import train
from convatlas.experiments.tuning import TUNING_METRIC, TUNING_SEED
from convatlas.models.catalog import resolve
from convatlas.weights.build import build

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NETWORK = "mobilenet_v2"
DATA = "hymenoptera"
HEAD, ALL, SAME, SMALL = "pretrained, head only", "pretrained, all layers", "random weights", "random weights, small"
ARMS: Mapping[str, tuple[float, ...]] = {
    HEAD: (1.0, 10.0, 100.0), ALL: (0.003, 0.01, 0.03), SAME: (0.02, 0.05, 0.1), SMALL: (0.05, 0.1, 0.2),
}  # fmt: skip
"""The candidates of each arm: rates, and of `HEAD` the inverse penalty C of logistic regression."""
STEPS = {ALL: 30, SAME: 40, SMALL: 160}
TIMES = {"smoke": 0.2, "default": 1, "full": 3}
"""Training steps, and their factor by size."""
BATCH = 16
RESOLUTION = {"smoke": 64, "default": 96, "full": 224}
PER_CLASS = {"smoke": (2, 4), "default": (2, 5, 20, 100), "full": (2, 5, 10, 20, 50, 100)}
CHOICE = {"smoke": 5, "default": 20, "full": 20}
"""Images for each class with which the rates are chosen."""
SEEDS = {"smoke": 1, "default": 4, "full": 10}
MARGIN = 0.1


def trials(size: Size, results: Results) -> Iterable[Trial]:
    """First each candidate with seed 100, then the best one of each arm with every number of images and seed."""
    common = {"resolution": RESOLUTION[size], "times": TIMES[size]}
    choices = [
        Trial(f"tuning, {arm}, {value:g}", TUNING_SEED, {
            **common, "arm": arm, "images": CHOICE[size], "value": value, "tuning": True,
        })
        for arm, values in ARMS.items() for value in (values[1:2] if size == "smoke" else values)
    ]  # fmt: skip
    yield from choices
    if not all(results.of(trial.arm).rows for trial in choices):
        return
    for number in PER_CLASS[size]:
        for arm in ARMS:
            candidates = results.where(tuning=True, arm=arm)
            value = max(candidates, key=lambda row: row.metrics[TUNING_METRIC]).settings["value"]
            for seed in range(SEEDS[size]):
                yield Trial(arm_of(arm, number), seed, {
                    **common, "arm": arm, "images": number, "value": value, "tuning": False,
                })  # fmt: skip


def arm_of(arm: str, number: int) -> str:
    return f"{arm}, {number} a class"


def small_network(classes: int) -> nn.Module:
    """Return four 3x3 convolutions with batch norm and max pooling, global pooling and a linear layer."""
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64), (64, 96)):
        stride = 2 if before == 3 else 1
        layers += [
            nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2),
        ]  # fmt: skip
    return Chain(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, classes))


def measure(trial: Trial, materials: Materials) -> dict[str, float]:
    """Train on some images, and return the accuracy on test; of a tuning trial, on the other training images."""
    settings, seed = trial.settings, trial.seed
    images, test = (materials.images(DATA, split, settings["resolution"]) for split in ("train", "test"))
    chosen, rest = split_off(images, settings["images"], seed)
    name = "accuracy"
    if settings["tuning"]:
        test, name = rest, TUNING_METRIC
    if settings["arm"] == HEAD:
        return {name: head_accuracy(chosen, test, settings["value"], materials)}
    torch.manual_seed(seed)
    classes = len(images.classes)
    if settings["arm"] == SMALL:
        network = small_network(classes)
    else:
        weights = materials.weights(NETWORK) if settings["arm"] == ALL else None
        network = nn.Sequential(build(NETWORK, classes=classes, weights=weights))
    return {name: trained_accuracy(chosen, test, network, seed, settings)}


def split_off(images: Images, per_class: int, seed: int) -> tuple[Images, Images]:
    """Return a number of images of each class at random, and the others."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    labels = images.labels[order]
    rank = torch.zeros_like(labels)
    for number in range(len(images.classes)):
        rank[labels == number] = torch.arange(int((labels == number).sum()))
    return images.take(order[rank < per_class]), images.take(order[rank >= per_class])


def trained_accuracy(images: Images, test: Images, network: nn.Module, seed: int, settings: Mapping[str, Any]) -> float:
    """Return the accuracy on test after training all layers."""
    steps = settings["times"] * STEPS[settings["arm"]]
    epochs = max(1, round(steps / math.ceil(len(images) / BATCH)))
    return train(
        images, test, network, seed=seed, epochs=epochs, batch=BATCH, lr=settings["value"], weight_decay=1e-4,
        max_shift=0, flip=True, min_crop_area=0.35,
    ).accuracy  # fmt: skip


def head_accuracy(images: Images, test: Images, penalty: float, materials: Materials) -> float:
    """Return the accuracy on test of logistic regression on the features of the pretrained network."""
    from sklearn.linear_model import LogisticRegression

    body = build(NETWORK, classes=0, weights=materials.weights(NETWORK)).eval()
    model = LogisticRegression(C=penalty, max_iter=1000)
    model.fit(features(body, torch.cat([images.pixels, images.pixels.flip(-1)])), images.labels.repeat(2).numpy())
    return float(model.score(features(body, test.pixels), test.labels.numpy()))


@torch.no_grad()
def features(body: nn.Module, pixels: Tensor) -> NDArray[np.float32]:
    """Return the features of images (n, features), each image's scaled to length 1."""
    steps = resolve(NETWORK)[1].preprocessing
    parts = [F.normalize(body(steps.normalize(part)).flatten(1)) for part in pixels.split(32)]
    return torch.cat(parts).numpy()


def numbers_of(results: Results) -> list[int]:
    return sorted({row.settings["images"] for row in results})


def advantage(results: Results, arm: str, number: int) -> Effect:
    """Return how much better an arm is than the better one of the two from random weights, by seed."""
    scratch = np.maximum(*(results.values(arm_of(each, number), "accuracy") for each in (SAME, SMALL)))
    name = f"{arm} - better of random weights, {number} a class"
    return paired_effect(name, "accuracy", results.values(arm_of(arm, number), "accuracy"), scratch)


def judge(results: Results) -> Verdict:
    """Confirmed if the pretrained network with a new head is clearly better with every number of images."""
    final = results.where(tuning=False)
    numbers = numbers_of(final)
    effects = {number: advantage(final, HEAD, number) for number in numbers}
    holds = [effect.is_positive and effect.difference >= MARGIN for effect in effects.values()]
    word = "confirmed" if all(holds) else "partly confirmed" if sum(holds) * 2 >= len(holds) else "not confirmed"
    texts = "; ".join(
        f"{number}: {final.mean(arm_of(HEAD, number), 'accuracy'):.1%}, "
        f"{final.mean(arm_of(ALL, number), 'accuracy'):.1%}, {final.mean(arm_of(SAME, number), 'accuracy'):.1%}, "
        f"{final.mean(arm_of(SMALL, number), 'accuracy'):.1%}"
        for number in numbers
    )
    reason = (
        "Accuracy by images for each class, of the pretrained network with a trained head, with all layers trained, of "
        f"the same network from random weights, and of a small one: {texts}."
    )
    others = [advantage(final, ALL, number) for number in numbers]
    return Verdict(word, reason, (*effects.values(), *others))


def draw(results: Results) -> Figure:
    """Draw the accuracy against the number of images for each class."""
    figure = new_figure(5.6, 3.4)
    axes = figure.add_subplot()
    final = results.where(tuning=False)
    numbers = numbers_of(final)
    shifts = (0.94, 0.98, 1.02, 1.06)  # so that error bars lie beside each other
    for arm, line, marker, shift in zip(ARMS, ("-", "--", ":", "-."), ("o", "s", "^", "x"), shifts, strict=True):
        means, spreads = (
            [100 * value(arm_of(arm, number), "accuracy") for number in numbers] for value in (final.mean, final.spread)
        )
        axes.errorbar(
            [shift * number for number in numbers], means, spreads, color=INK, linestyle=line, marker=marker,
            markersize=5, linewidth=1, elinewidth=0.6, capsize=2, label=label(arm),
        )  # fmt: skip
    axes.axhline(50, color=INK, linewidth=0.5)
    axes.set_xscale("log")
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.set_xticks([], minor=True)
    axes.set_ylim(40, 100)
    style_axes(axes, x="training images for each class", y="test accuracy, % (chance: 50)")
    axes.legend(frameon=False, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, handlelength=3)
    lay_out(figure)
    return figure


EXPERIMENT = Experiment(
    name="transfer",
    title="Transfer learning against training from random weights",
    claim=(
        "With 2 to 100 images for each class, a network with pretrained weights is much more accurate than one that is "
        "trained from random weights."
    ),
    source="Razavian et al. 2014; Yosinski et al. 2014, figure 2; Kornblith et al. 2019, figure 5.",
    protocol=(
        "Photos of ants and bees at 96 px, of which 153 are for testing. Four arms: MobileNetV2 with "
        "ImageNet weights, of which only a new head is trained (logistic regression on features that are computed "
        "once, of each photo and its mirror image); the same with all layers trained (30 steps); MobileNetV2 from "
        "random weights (40 steps); and, so that random weights have a network that suits few photos, four "
        "convolutions with batch norm, 79,000 parameters (160 steps). Batch 16, stochastic gradient descent with one "
        "cycle, random crops and mirror images. Each arm has the best of 3 rates (of the head: of 3 penalties), chosen "
        "with 20 photos for each class and a seed that is not used afterwards, on the other training photos. A seed "
        "draws the training photos, the same for all arms, and the initial weights."
    ),
    criterion=(
        "With 2, 5, 20 and 100 photos for each class, the pretrained network with a trained head is at least 10 points "
        "better than the better one, seed by seed, of the two from random weights, and the 95 % interval excludes 0. "
        "Partly confirmed: with at least half of these numbers of photos."
    ),
    would_change=(
        "Ants and bees are classes of ImageNet, too; images that are less like ImageNet's, such as X-rays, gain less. "
        "More steps and a higher resolution for all arms (`--full`), above all for random weights with many images: an "
        "arm has equally many steps for each number of images. The small network took the largest of its rates. Far "
        "more images."
    ),
    needs=(DATA, f"weights/{NETWORK}"),
    trials=trials,
    measure=measure,
    metrics={TUNING_METRIC: "tuning accuracy", "accuracy": "test accuracy"},
    judge=judge,
    draw=draw,
)
