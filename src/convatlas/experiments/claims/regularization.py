"""Dropout, batch norm, weight decay and augmentation: alone, in pairs, together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

from torch import nn

from convatlas.core.compose import Chain
from convatlas.errors import DivergedError
from convatlas.experiments.arm_chart import draw_arms
from convatlas.experiments.experiment import Experiment, Size, Trial, Verdict
from convatlas.experiments.materials import Materials
from convatlas.experiments.results import Results
from convatlas.experiments.training import train
from convatlas.experiments.tuning import TUNING_METRIC, split_for, with_tuned_rates
from convatlas.layers.init import he_fan_in, initialize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("dropout", "batch norm", "weight decay", "augmentation")
NONE, ALL = "none", "all four"
COMBINATIONS = {
    NONE: (), **{method: (method,) for method in METHODS},
    **{" + ".join(pair): pair for pair in combinations(METHODS, 2)}, ALL: METHODS,
}  # fmt: skip
"""Arm -> its methods."""
RATES = (0.01, 0.04, 0.16)
DROPOUT, DECAY, SHIFT = 0.5, 5e-3, 2
EPOCHS = {"smoke": 1, "default": 60, "full": 300}
IMAGES = {"smoke": 100, "default": 500, "full": 2000}
TEST_IMAGES = {"smoke": 100, "default": 3000, "full": 10_000}
SEEDS = {"smoke": 1, "default": 4, "full": 10}
SIDE = 20
"""Of the images, in pixels."""
MARGIN = 0.01
"""Difference of the test accuracy that matters."""


def network(methods: tuple[str, ...]) -> nn.Module:
    """Return three 3x3 convolutions, each with max pooling, and two linear layers, for SIDE x SIDE px gray."""
    widths = (1, 16, 24, 32)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        norm = [nn.BatchNorm2d(after)] if "batch norm" in methods else []
        layers += [nn.Conv2d(before, after, 3, padding=1), *norm, nn.ReLU(), nn.MaxPool2d(2)]
    head: list[nn.Module] = [nn.Flatten(), nn.Linear(widths[-1] * (SIDE // 8) ** 2, 128), nn.ReLU()]
    if "dropout" in methods:
        head.append(nn.Dropout(DROPOUT))
    return initialize(Chain(*layers, *head, nn.Linear(128, 10)), conv=he_fan_in, linear=he_fan_in)


def trials(size: Size, results: Results) -> Iterator[Trial]:
    """Tune the rate of each arm with as many trials, then measure."""
    common = {"epochs": EPOCHS[size], "images": IMAGES[size], "test_images": TEST_IMAGES[size]}
    arms: dict[str, dict[str, Any]] = {arm: {**common, "methods": list(methods)}
                                       for arm, methods in COMBINATIONS.items()}  # fmt: skip
    yield from with_tuned_rates(arms, RATES, SEEDS[size], results)


def measure(trial: Trial, materials: Materials) -> dict[str, float]:
    """Train, and return accuracies."""
    settings = trial.settings
    methods = tuple(settings["methods"])
    train_images, test_images = split_for(
        trial, materials.images("fashion_mnist", "train", SIDE), materials.images("fashion_mnist", "test", SIDE)
    )
    images = train_images.subset(settings["images"], trial.seed)
    measured = test_images.subset(settings["test_images"], 0)
    try:
        done = train(
            images, measured, network(methods), seed=trial.seed, epochs=settings["epochs"], batch=32,
            lr=settings["lr"], schedule="cosine", warmup=1.0, weight_decay=DECAY if "weight decay" in methods else 0.0,
            max_shift=SHIFT if "augmentation" in methods else 0, grad_clip=1.0,
        )  # fmt: skip
    except DivergedError:
        accuracy = train_accuracy = 1 / len(images.classes)
    else:
        accuracy, train_accuracy = done.accuracy, done.history[-1]["train_accuracy"]
    if settings["tuning"]:
        return {TUNING_METRIC: accuracy}
    return {"accuracy": accuracy, "train_accuracy": train_accuracy}


def judge(results: Results) -> Verdict:
    """Count the methods that help alone, and ask whether all four help more than the best of them."""
    final = results.where(tuning=False)
    alone = {method: final.compare(method, NONE, "accuracy") for method in METHODS}
    best = max(METHODS, key=lambda method: final.mean(method, "accuracy"))
    together = final.compare(ALL, best, "accuracy")
    pairs = {arm: sum(alone[method].difference for method in methods)
             for arm, methods in COMBINATIONS.items() if len(methods) == 2}  # fmt: skip
    gains = {arm: final.compare(arm, NONE, "accuracy").difference for arm in pairs}
    helpful = [method for method, effect in alone.items() if effect.difference >= MARGIN and effect.is_positive]
    adds = together.difference >= MARGIN and together.is_positive
    word = "confirmed" if adds and len(helpful) == len(METHODS) else (
        "partly confirmed" if len(helpful) >= 2 else "not confirmed")  # fmt: skip
    most = max(gains, key=lambda arm: gains[arm])
    reason = (
        f"Without any of them, test accuracy is {final.mean(NONE, 'accuracy'):.1%} (training accuracy "
        f"{final.mean(NONE, 'train_accuracy'):.1%}). Alone: "
        f"{', '.join(f'{method} {100 * effect.difference:+.1f}' for method, effect in alone.items())} points; "
        f"the best pair, {most}, {100 * gains[most]:+.1f} (the sum of the two alone: {100 * pairs[most]:+.1f}); all "
        f"four {100 * final.compare(ALL, NONE, 'accuracy').difference:+.1f}, which is {100 * together.difference:+.1f} "
        f"against {best} alone."
    )
    return Verdict(word, reason, (*alone.values(), together))


def draw(results: Results) -> Figure:
    """Draw the test accuracy of each combination, with its training accuracy."""
    final = results.where(tuning=False)
    notes = {arm: f"training accuracy {final.mean(arm, 'train_accuracy'):.1%}" for arm in final.arms}
    return draw_arms(final, notes)


EXPERIMENT = Experiment(
    name="regularization",
    title="Dropout, batch norm, weight decay, augmentation",
    claim=(
        "Dropout, batch norm, weight decay and augmentation each improve the test accuracy of a network that overfits, "
        "and together they improve it more than the best of them alone."
    ),
    source=(
        "Srivastava et al. 2014 (dropout), section 6; Ioffe and Szegedy 2015 (batch norm), section 4.2; Krizhevsky et "
        "al. 2012 (AlexNet), sections 4 and 5: augmentation, dropout, weight decay. Against adding them up: Li et al. "
        "2019, \"Understanding the disharmony between dropout and batch normalization\"."
    ),
    protocol=(
        "Three 3x3 convolutions (16, 24 and 32 maps, max pooling after each) and two linear layers (128 units) on 500 "
        f"images of Fashion-MNIST at {SIDE} px for 60 epochs; test accuracy on 3000. SGD with momentum 0.9, batch 32, "
        f"a warmup of one epoch, cosine decay, gradients clipped to a norm of 1. Dropout: rate {DROPOUT:g} before the "
        f"last layer. Batch norm: after each convolution. Weight decay: {DECAY:g} on all weights. Augmentation: shifts "
        f"of up to {SHIFT} px. Each of the 12 arms has the best of 3 rates (equal tuning cost) by the accuracy on 3000 "
        "images that are in neither split, with a seed that is not used afterwards. The strengths of the methods "
        "are usual ones and not tuned."
    ),
    criterion=(
        "Five statements, each a difference of the test accuracy of at least 1 point with a 95 % interval, paired by "
        "seed, above 0: each method alone against none (four), and all four against the best of those alone. "
        "Confirmed: all five. Partly confirmed: at least two of the methods help alone."
    ),
    would_change=(
        "More images or fewer epochs, so that the network overfits less; tuned strengths; a larger network; longer "
        "training, because augmentation and dropout slow it. Higher rates: three arms with weight "
        "decay took the largest."
    ),
    needs=("fashion_mnist",),
    trials=trials,
    measure=measure,
    metrics={"train_accuracy": "training accuracy", "accuracy": "test accuracy"},
    judge=judge,
    draw=draw,
)  # fmt: skip
