"""Max pooling against average pooling, learned subsampling and convolutions with stride."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

from torch import nn

from convatlas.core.compose import Chain
from convatlas.experiments.arm_chart import cost_note, draw_arms
from convatlas.experiments.equal_cost import check_equal, cost_of, nearest_cost
from convatlas.experiments.experiment import Experiment, Size, Trial, Verdict
from convatlas.experiments.materials import Materials
from convatlas.experiments.results import Results
from convatlas.experiments.training import train
from convatlas.layers.lenet import ScaledTanh, Subsample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHAPE = (3, 32, 32)
WIDTHS = (8, 16, 24)
EPOCHS = {"smoke": 1, "default": 15, "full": 60}
IMAGES = {"smoke": 200, "default": 2000, "full": 8000}
SEEDS = {"smoke": 1, "default": 4, "full": 10}
MARGIN = 0.01
"""Difference of the test accuracy that matters."""

MAX, AVERAGE, LEARNED = "max pooling", "average pooling", "learned subsampling"
MAX_TANH, LENET = "max pooling, tanh", "learned subsampling, tanh (LeNet-5)"
STRIDE, WIDE_STRIDE = "stride 2, equal parameters", "stride 2, equal multiply-adds"
ARMS = (MAX, AVERAGE, LEARNED, MAX_TANH, LENET, STRIDE, WIDE_STRIDE)


def subsample(maps: int, *, squash: bool) -> nn.Module:
    """Return LeNet-5's subsampling; it begins as average pooling with a ReLU, or as published with a tanh behind it."""
    layer = Subsample(maps)
    if squash:
        return Chain(layer, ScaledTanh())
    nn.init.constant_(layer.gain, 0.25)
    nn.init.zeros_(layer.bias)
    return Chain(layer, nn.ReLU())


def network(arm: str, widths: tuple[int, ...] = WIDTHS) -> nn.Module:
    """Return three 5x5 convolutions with batch norm, each followed by what halves the maps, and a linear classifier."""
    stride = 2 if arm in (STRIDE, WIDE_STRIDE) else 1
    activation = ScaledTanh if arm in (MAX_TANH, LENET) else nn.ReLU
    layers: list[nn.Module] = []
    inputs = SHAPE[0]
    for width in widths:
        layers += [nn.Conv2d(inputs, width, 5, stride, 2, bias=False), nn.BatchNorm2d(width), activation()]
        if arm in (MAX, MAX_TANH):
            layers.append(nn.MaxPool2d(2))
        elif arm == AVERAGE:
            layers.append(nn.AvgPool2d(2))
        elif arm in (LEARNED, LENET):
            layers.append(subsample(width, squash=arm == LENET))
        inputs = width
    return Chain(*layers, nn.Flatten(), nn.Linear(inputs * 16, 10))


def wide() -> tuple[int, ...]:
    """Return the widths at which the convolutions with stride cost as much as those of the other networks."""
    candidates = product(range(14, 20), range(30, 36), range(44, 54))
    return nearest_cost(
        partial(network, WIDE_STRIDE), candidates, SHAPE, macs=cost_of(partial(network, MAX), SHAPE).macs
    )


def trials(size: Size, results: Results) -> Iterable[Trial]:
    for seed in range(SEEDS[size]):
        for arm in ARMS:
            yield Trial(arm, seed, {"epochs": EPOCHS[size], "images": IMAGES[size]})


def measure(trial: Trial, materials: Materials) -> dict[str, float]:
    """Train, and return the accuracy on test."""
    build = partial(network, trial.arm, wide() if trial.arm == WIDE_STRIDE else WIDTHS)
    counted, of_max = cost_of(build, SHAPE), cost_of(partial(network, MAX), SHAPE)
    what = "parameters" if trial.arm == STRIDE else "macs"
    check_equal({trial.arm: getattr(counted, what), MAX: getattr(of_max, what)}, what)
    images = materials.images("cifar10", "train", 32).subset(trial.settings["images"], trial.seed)
    test = materials.images("cifar10", "test", 32)
    done = train(images, test, build(), seed=trial.seed, epochs=trial.settings["epochs"], batch=32, flip=True)
    return {
        "accuracy": done.accuracy, "train_accuracy": done.history[-1]["train_accuracy"],
        "parameters": counted.parameters, "macs": counted.macs,
    }  # fmt: skip


def judge(results: Results) -> Verdict:
    """Confirmed if max pooling is better in all three comparisons by `MARGIN`, with intervals above 0."""
    effects = [results.compare(*pair, "accuracy") for pair in ((MAX, AVERAGE), (MAX, LEARNED), (MAX_TANH, LENET))]
    number = sum(effect.is_positive and effect.difference >= MARGIN for effect in effects)
    word = "confirmed" if number == len(effects) else "partly confirmed" if number else "not confirmed"
    means = {arm: results.mean(arm, "accuracy") for arm in ARMS}
    reason = (
        f"With ReLU, max pooling has {means[MAX]:.1%} on test, average pooling {means[AVERAGE]:.1%} and learned "
        f"subsampling {means[LEARNED]:.1%}; with tanh, max pooling {means[MAX_TANH]:.1%} and LeNet-5's subsampling "
        f"{means[LENET]:.1%}. Convolutions with stride have {means[STRIDE]:.1%} with equal parameters and "
        f"{means[WIDE_STRIDE]:.1%} with equal multiply-adds."
    )
    strides = [results.compare(arm, MAX, "accuracy") for arm in (STRIDE, WIDE_STRIDE)]
    return Verdict(word, reason, (*effects, *strides))


def draw(results: Results) -> Figure:
    """Draw the accuracy of each arm, with its cost."""
    return draw_arms(results, {arm: cost_note(results, arm) for arm in ARMS})


EXPERIMENT = Experiment(
    name="pooling",
    title="Max pooling, average pooling and learned subsampling",
    claim="Max pooling is better than average pooling, and than the learned subsampling of LeNet-5.",
    source=(
        "Scherer, Müller and Behnke 2010, Evaluation of pooling operations in convolutional architectures for object "
        "recognition, ICANN: max pooling against LeNet-5's subsampling. Springenberg et al. 2015, Striving for "
        "simplicity, arXiv 1412.6806, table 3: convolutions with stride replace max pooling."
    ),
    protocol=(
        "Three 5x5 convolutions of 8, 16 and 24 maps with batch norm and ReLU, each followed by a layer that halves "
        "the maps, and a linear classifier, on 2,000 images of CIFAR-10 at 32 px. 15 epochs, batch 32, one cycle up "
        "to a rate of 0.05, shifts and flips; the same recipe for all, since batch norm makes the choice of the rate "
        "less important. Learned subsampling is the sum of 2x2 values times a gain plus a bias, two parameters for "
        "each map, and a ReLU; it begins as average pooling. In LeNet-5's own form the activations are 1.7159 "
        "tanh(2x/3), in front of the subsampling and behind it, and the gains begin at random as published. Pooling "
        "has no multiply-adds. The same convolutions with stride 2 and no pooling have equal parameters and a quarter "
        "of the multiply-adds; with wider layers they have equal multiply-adds, within 2 %."
    ),
    criterion=(
        "with ReLU, the test accuracy with max pooling is at least 1 point higher than with average pooling and with "
        "learned subsampling, and with tanh than with LeNet-5's subsampling; all three 95 % intervals of the "
        "difference, paired by seed, are above 0. Partly confirmed: some of the three. Strides do not count."
    ),
    would_change=(
        "Other places: before a classifier, average pooling over the whole map is the rule. Larger images, in which a "
        "feature covers a smaller part of a map (Boureau et al. 2010: max pooling is better for sparse features). More "
        "images and longer training."
    ),
    needs=("cifar10",),
    trials=trials,
    measure=measure,
    metrics={
        "accuracy": "test accuracy", "train_accuracy": "training accuracy", "parameters": "parameters",
        "macs": "multiply-adds",
    },
    judge=judge,
    draw=draw,
)  # fmt: skip
