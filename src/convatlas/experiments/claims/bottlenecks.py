"""1x1 bottlenecks and Inception branches against plain 3x3 convolutions, at equal multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import nn

from convatlas.core.compose import Chain, Concat, Sum
from convatlas.experiments.arm_chart import cost_note, draw_arms
from convatlas.experiments.equal_cost import check_equal, cost_of, nearest_cost
from convatlas.experiments.experiment import Experiment, Size, Trial, Verdict
from convatlas.experiments.materials import Materials
from convatlas.experiments.results import Results
from convatlas.experiments.training import train
from convatlas.layers.conv import ConvNorm
from convatlas.layers.heads import pooled
from convatlas.layers.init import he_fan_out, initialize
from convatlas.models.families.googlenet import InceptionModule, InceptionRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHAPE = (3, 32, 32)
STEM = 16
BASE = (8, 16, 32)
"""Maps of the stages of the plain network; the other networks have these times a factor."""
BLOCKS = 2
"""Blocks of a stage."""
EPOCHS = {"smoke": 1, "default": 15, "full": 60}
IMAGES = {"smoke": 200, "default": 2000, "full": 8000}
SEEDS = {"smoke": 1, "default": 4, "full": 10}
MARGIN = 0.01
"""Difference of the test accuracy that matters."""

PLAIN, INCEPTION, NAIVE = "plain 3x3", "Inception", "Inception without 1x1 reductions"
PLAIN_SHORTCUT, BOTTLENECK = "plain 3x3 with shortcuts", "1x1 bottlenecks with shortcuts"

Block = Callable[[int, int], nn.Module]
"""Builds a block from the numbers of its input and output maps."""


def plain(inputs: int, width: int) -> nn.Module:
    """3x3 -> 3x3, each with batch norm and ReLU."""
    return Chain(ConvNorm(inputs, width), ConvNorm(width, width))


def inception(inputs: int, width: int) -> nn.Module:
    """Return an Inception module with the proportions of GoogLeNet's 3a (192 maps to 256)."""
    three, five, proj = (max(1, round(width * maps / 256)) for maps in (128, 32, 32))
    row = InceptionRow(
        one=width - three - five - proj, reduce3=round(inputs * 96 / 192), three=three,
        reduce5=max(1, round(inputs * 16 / 192)), five=five, proj=proj,
    )  # fmt: skip
    return InceptionModule(inputs, row, 5)


def naive(inputs: int, width: int) -> nn.Module:
    """[1x1 | 3x3 | 5x5 | 3x3 max pool -> 1x1]: an Inception module whose 3x3 and 5x5 read all input maps."""
    three, five, proj = (max(1, round(width * maps / 256)) for maps in (128, 32, 32))
    return Concat(
        one=ConvNorm(inputs, width - three - five - proj, kernel=1), three=ConvNorm(inputs, three),
        five=ConvNorm(inputs, five, kernel=5),
        pool=Chain(nn.MaxPool2d(3, 1, 1), ConvNorm(inputs, proj, kernel=1)),
    )  # fmt: skip


def beside_shortcut(inputs: int, width: int, body: nn.Module) -> nn.Module:
    """ReLU(x + body(x)), with a 1x1 on the shortcut where the widths differ."""
    skip = nn.Identity() if inputs == width else ConvNorm(inputs, width, kernel=1, act=None)
    return Chain(Sum(body=body, skip=skip), nn.ReLU())


def plain_shortcut(inputs: int, width: int) -> nn.Module:
    """ReLU(x + (3x3 -> 3x3)) (He et al. 2015, figure 5, left)."""
    return beside_shortcut(inputs, width, Chain(ConvNorm(inputs, width), ConvNorm(width, width, act=None)))


def bottleneck(inputs: int, width: int) -> nn.Module:
    """ReLU(x + (1x1 to a quarter -> 3x3 -> 1x1)) (He et al. 2015, figure 5, right)."""
    middle = max(1, width // 4)
    body = Chain(
        ConvNorm(inputs, middle, kernel=1), ConvNorm(middle, middle), ConvNorm(middle, width, kernel=1, act=None)
    )
    return beside_shortcut(inputs, width, body)


ARMS: dict[str, Block] = {
    PLAIN: plain, INCEPTION: inception, NAIVE: naive, PLAIN_SHORTCUT: plain_shortcut, BOTTLENECK: bottleneck,
}  # fmt: skip


def network(arm: str, widths: tuple[int, ...]) -> nn.Module:
    """Return 3x3 -> three stages of blocks of 16, 8 and 4 px, max pooling in front of each -> pooled head."""
    layers: list[nn.Module] = [ConvNorm(SHAPE[0], STEM)]
    for before, width in pairwise((STEM, *widths)):
        layers.append(nn.MaxPool2d(2))
        layers += [ARMS[arm](width if number else before, width) for number in range(BLOCKS)]
    return initialize(Chain(*layers, pooled(widths[-1], 10)), conv=he_fan_out)


@cache
def widths_of(arm: str) -> tuple[int, ...]:
    """Return the widths of the stages, with which the multiply-adds are those of the plain network."""
    macs = cost_of(partial(network, PLAIN, BASE), SHAPE).macs
    stem = 9 * SHAPE[0] * STEM * SHAPE[1] * SHAPE[2]
    near = math.sqrt((macs - stem) / (cost_of(partial(network, arm, BASE), SHAPE).macs - stem))
    factors = (percent / 100 for percent in range(70, 600, 2) if 0.8 < percent / 100 / near < 1.25)
    candidates = dict.fromkeys(tuple(round(width * factor) for width in BASE) for factor in factors)
    return nearest_cost(partial(network, arm), candidates, SHAPE, macs=macs)


def trials(size: Size, results: Results) -> Iterable[Trial]:
    for seed in range(SEEDS[size]):
        for arm in ARMS:
            yield Trial(arm, seed, {"epochs": EPOCHS[size], "images": IMAGES[size]})


def measure(trial: Trial, materials: Materials) -> dict[str, float]:
    """Check that multiply-adds are equal, train, and return the accuracy on test."""
    build = partial(network, trial.arm, widths_of(trial.arm))
    counted = cost_of(build, SHAPE)
    check_equal({trial.arm: counted.macs, PLAIN: cost_of(partial(network, PLAIN, BASE), SHAPE).macs}, "multiply-adds")
    images = materials.images("cifar10", "train", 32).subset(trial.settings["images"], trial.seed)
    test = materials.images("cifar10", "test", 32)
    done = train(images, test, build(), seed=trial.seed, epochs=trial.settings["epochs"], batch=32, flip=True)
    return {
        "accuracy": done.accuracy, "train_accuracy": done.history[-1]["train_accuracy"],
        "parameters": counted.parameters, "macs": counted.macs, "layers": counted.output.depth,
    }  # fmt: skip


def judge(results: Results) -> Verdict:
    """Confirmed if Inception and bottlenecks are better than plain 3x3 by `MARGIN`, with intervals above 0."""
    effects = [
        results.compare(INCEPTION, PLAIN, "accuracy"), results.compare(BOTTLENECK, PLAIN_SHORTCUT, "accuracy"),
    ]  # fmt: skip
    number = sum(effect.is_positive and effect.difference >= MARGIN for effect in effects)
    word = "confirmed" if number == 2 else "partly confirmed" if number else "not confirmed"
    means = {arm: results.mean(arm, "accuracy") for arm in ARMS}
    macs = results.mean(PLAIN, "macs") / 1e6
    reason = (
        f"At {macs:.1f} million multiply-adds, plain 3x3 convolutions have {means[PLAIN]:.1%} on test and Inception "
        f"modules {means[INCEPTION]:.1%} ({means[NAIVE]:.1%} without the 1x1 reductions); with shortcuts, plain 3x3 "
        f"have {means[PLAIN_SHORTCUT]:.1%} and 1x1 bottlenecks {means[BOTTLENECK]:.1%}."
    )
    return Verdict(word, reason, (*effects, results.compare(INCEPTION, NAIVE, "accuracy")))


def draw(results: Results) -> Figure:
    """Draw the accuracy of each arm, with its cost."""
    return draw_arms(results, {arm: cost_note(results, arm) for arm in ARMS})


EXPERIMENT = Experiment(
    name="bottlenecks",
    title="1x1 bottlenecks and Inception branches",
    claim=(
        "At equal multiply-adds, Inception modules are more accurate than plain 3x3 convolutions, and residual blocks "
        "with 1x1 bottlenecks than those of two 3x3."
    ),
    source=(
        "Szegedy et al. 2014 (GoogLeNet), section 4: networks with Inception modules are 3 to 10 times as fast as "
        "others of similar performance. He et al. 2015 (ResNet), section 4.1 and figure 5: bottlenecks for equal "
        "complexity. Lin et al. 2013, Network in network."
    ),
    protocol=(
        "A 3x3 convolution of 16 maps, then three stages of two blocks at 16, 8 and 4 px, max pooling in front of "
        "each, global average pooling and a linear classifier, on 2,000 images of CIFAR-10 at 32 px. The plain blocks "
        "are two 3x3 convolutions of 8, 16 and 32 maps. The blocks of the other networks are Inception modules with "
        "the proportions of GoogLeNet's 3a (also without the 1x1 reductions in front of 3x3 and 5x5, as a control), "
        "two 3x3 beside a shortcut, and 1x1 to a quarter, 3x3, 1x1 beside a shortcut. Their maps are scaled so that "
        "the multiply-adds of the whole network are equal within 2 %; parameters differ. Batch norm and ReLU "
        "everywhere, 15 epochs, batch 32, one cycle up to a rate of 0.05, shifts and flips, the same recipe for all."
    ),
    criterion=(
        "the test accuracy of Inception modules is at least 1 point higher than that of plain 3x3 convolutions, and "
        "that of bottlenecks than that of two 3x3, both with shortcuts; both 95 % intervals of the difference, paired "
        "by seed, are above 0. Partly confirmed: one of the two. The control does not count."
    ),
    would_change=(
        "Wide networks: reductions save most where there are hundreds of maps (192 in GoogLeNet, here 8 to 125). Deep "
        "networks, longer training, more images; equal time instead of equal multiply-adds, since 1x1 convolutions and "
        "small branches use a processor less well."
    ),
    needs=("cifar10",),
    trials=trials,
    measure=measure,
    metrics={
        "accuracy": "test accuracy", "train_accuracy": "training accuracy", "parameters": "parameters",
        "macs": "multiply-adds", "layers": "layers with weights",
    },
    judge=judge,
    draw=draw,
)  # fmt: skip
