"""Weight sharing: convolution against locally connected and fully connected layers of equal cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convatlas.core.compose import Chain
from convatlas.core.cost_rules import slide
from convatlas.core.signal import Signal, Tally, rule
from convatlas.experiments.arm_chart import cost_note, draw_arms
from convatlas.experiments.equal_cost import check_equal, cost_of
from convatlas.experiments.experiment import Experiment, Size, Trial, Verdict
from convatlas.experiments.materials import Images, Materials
from convatlas.experiments.results import Results
from convatlas.experiments.training import train
from convatlas.experiments.tuning import TUNING_METRIC, split_for, with_tuned_rates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHAPE = (1, 28, 28)
KERNEL, STRIDE, PADDING = 5, 2, 2
RATES = {"smoke": (0.0125,), "default": (0.004, 0.0125, 0.04, 0.12), "full": (0.004, 0.0125, 0.04, 0.12, 0.3)}
EPOCHS = {"smoke": 1, "default": 15, "full": 40}
IMAGES = {"smoke": 200, "default": 2000, "full": 40000}
SEEDS = {"smoke": 1, "default": 5, "full": 10}
MARGIN = 0.01
"""Difference of the test accuracy that matters."""

SHARED = "convolution"
SHUFFLED = "convolution, pixels permuted"
EQUAL_PARAMETERS = ("locally connected, equal parameters", "fully connected, equal parameters")
EQUAL_MACS = ("locally connected, equal multiply-adds", "fully connected, equal multiply-adds")
ARMS = {
    SHARED: ("shared", 12, 24),
    EQUAL_PARAMETERS[0]: ("local", 1, 8),
    EQUAL_PARAMETERS[1]: ("full", 24, 13),
    EQUAL_MACS[0]: ("local", 12, 24),
    EQUAL_MACS[1]: ("full", 365, 365),
    SHUFFLED: ("shared", 12, 24),
}
"""Arm -> kind of the two hidden layers, and their maps (units, of fully connected ones)."""


class LocallyConnected2d(nn.Module):
    """A convolution without weight sharing: every position has its own kernel and bias.

    (n, inputs, size, size) -> (n, maps, size / stride, size / stride); weight (positions, maps, inputs x kernel²).
    """

    def __init__(self, inputs: int, maps: int, size: int, *, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.inputs, self.maps, self.size = inputs, maps, size
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.side = (size + 2 * padding - kernel) // stride + 1
        bound = 1 / math.sqrt(inputs * kernel**2)  # as torch's convolutions
        positions = self.side**2
        self.weight = nn.Parameter(torch.empty(positions, maps, inputs * kernel**2).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(positions, maps, 1).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        windows = F.unfold(x, self.kernel, padding=self.padding, stride=self.stride)  # (n, inputs kernel², positions)
        y = torch.baddbmm(self.bias, self.weight, windows.permute(2, 1, 0))  # (positions, maps, n)
        return y.permute(2, 1, 0).reshape(len(x), self.maps, self.side, self.side)


@rule.register
def _(layer: LocallyConnected2d, x: Signal, tally: Tally) -> Signal:
    y = slide(layer, x, tally, channels=layer.maps, kernel=layer.kernel, stride=layer.stride, padding=layer.padding)
    macs = layer.weight.numel()
    return tally.add(layer, x, y, macs=macs, activations=y.size, connections=macs + y.size)


def network(kind: str, first: int, second: int) -> nn.Module:
    """Return two hidden layers with ReLU and a linear classifier, for images of 1 x 28 x 28."""
    channels, size, _ = SHAPE
    if kind == "full":
        return Chain(
            nn.Flatten(), nn.Linear(channels * size**2, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(),
            nn.Linear(second, 10),
        )  # fmt: skip
    layers: list[nn.Module] = []
    inputs = channels
    for maps in (first, second):
        if kind == "local":
            layer: nn.Module = LocallyConnected2d(inputs, maps, size, kernel=KERNEL, stride=STRIDE, padding=PADDING)
        else:
            layer = nn.Conv2d(inputs, maps, KERNEL, STRIDE, PADDING)
        layers += [layer, nn.ReLU()]
        inputs, size = maps, size // STRIDE
    return Chain(*layers, nn.Flatten(), nn.Linear(inputs * size**2, 10))


def trials(size: Size, results: Results) -> Iterable[Trial]:
    """Each rate of each arm, then the best ones with every seed."""
    settings = {"epochs": EPOCHS[size], "images": IMAGES[size]}
    arms = {arm: {**settings, "network": list(cells)} for arm, cells in ARMS.items()}
    return with_tuned_rates(arms, RATES[size], SEEDS[size], results)


def measure(trial: Trial, materials: Materials) -> dict[str, float]:
    """Check that the costs are equal, train, and return the accuracy on test."""
    costs = {arm: cost_of(partial(network, *cells), SHAPE) for arm, cells in ARMS.items()}
    check_equal({arm: costs[arm].parameters for arm in (SHARED, *EQUAL_PARAMETERS)}, "parameters")
    check_equal({arm: costs[arm].macs for arm in (SHARED, *EQUAL_MACS)}, "multiply-adds")
    settings = trial.settings
    splits = (materials.images("fashion_mnist", split, 28) for split in ("train", "test"))
    images, test = split_for(trial, *splits)
    images = images.subset(settings["images"], trial.seed)
    if trial.arm.startswith(SHUFFLED):
        images, test = permute_pixels(images), permute_pixels(test)
    done = train(
        images, test, network(*settings["network"]), seed=trial.seed, epochs=settings["epochs"], batch=50,
        lr=settings["lr"], max_shift=0,
    )  # fmt: skip
    if settings["tuning"]:
        return {TUNING_METRIC: done.accuracy}
    counted = costs[trial.arm]
    return {
        "accuracy": done.accuracy, "train_accuracy": done.history[-1]["train_accuracy"],
        "parameters": counted.parameters, "macs": counted.macs,
    }  # fmt: skip


def permute_pixels(images: Images) -> Images:
    """Return images whose pixels are in another order, the same one for all images."""
    order = torch.randperm(SHAPE[1] * SHAPE[2], generator=torch.Generator().manual_seed(0))
    pixels = images.pixels.flatten(2)[:, :, order].view_as(images.pixels)
    return Images(pixels, images.labels, images.classes)


def judge(results: Results) -> Verdict:
    """Confirmed if the convolution is better than all four others by `MARGIN`, with intervals above 0."""
    final = results.where(tuning=False)
    effects = [final.compare(SHARED, arm, "accuracy") for arm in (*EQUAL_PARAMETERS, *EQUAL_MACS)]
    number = sum(effect.is_positive and effect.difference >= MARGIN for effect in effects)
    word = "confirmed" if number == len(effects) else "partly confirmed" if number else "not confirmed"
    means = {arm: final.mean(arm, "accuracy") for arm in ARMS}
    reason = (
        f"The convolution has {means[SHARED]:.1%} on test. With equal parameters, local connections have "
        f"{means[EQUAL_PARAMETERS[0]]:.1%} and full ones {means[EQUAL_PARAMETERS[1]]:.1%}; with equal multiply-adds "
        f"{means[EQUAL_MACS[0]]:.1%} and {means[EQUAL_MACS[1]]:.1%}. On permuted pixels the convolution has "
        f"{means[SHUFFLED]:.1%}."
    )
    return Verdict(word, reason, (*effects, final.compare(SHARED, SHUFFLED, "accuracy")))


def draw(results: Results) -> Figure:
    """Draw the accuracy of each arm, with its cost."""
    final = results.where(tuning=False)
    return draw_arms(final, {arm: cost_note(final, arm) for arm in ARMS})


EXPERIMENT = Experiment(
    name="weight_sharing",
    title="Weight sharing makes convolutions generalize",
    claim=(
        "A network whose hidden layers share weights across positions is more accurate than one with locally connected "
        "or fully connected layers of equal parameters, and of equal multiply-adds."
    ),
    source=(
        "LeCun 1989, Generalization and network design strategies, CRG-TR-89-4: on 320 digits, fully connected, "
        "locally connected and convolutional networks classify 87.0 %, 88.5 % and 98.4 % of the test digits."
    ),
    protocol=(
        "Two hidden layers with ReLU and a linear classifier on 2,000 images of Fashion-MNIST, 15 epochs, batch 50, "
        "one cycle of the rate, no augmentation (shifts would give the other networks what the convolution has by "
        "design). Convolutions and local connections are 5x5 with stride 2: 28 to 14 to 7 px. The convolution has 12 "
        "and 24 maps. With equal parameters, local connections have 1 and 8 maps, and full ones 24 and 13 units; with "
        "equal multiply-adds 12 and 24 maps, and 365 and 365 units, and 22 times as many parameters. Costs of whole "
        "networks are counted and equal within 2 %. The rate of each arm is the best of 4 on 12,000 other images, "
        "with a seed that is not used afterwards. "
        "The control is the convolution on images whose pixels are in a random order, the same one for all images, "
        "so that neighboring pixels mean nothing."
    ),
    criterion=(
        "the test accuracy of the convolution is higher than that of each of the other four networks by at least 1 "
        "point, and the four 95 % intervals of the difference, paired by seed, are above 0. Partly confirmed: some of "
        "the four. The control does not count."
    ),
    would_change=(
        "More training images, which make up for missing prior knowledge; images whose objects have a fixed place, "
        "such as aligned faces, for which local connections were made; more weight decay or dropout for the large "
        "networks."
    ),
    needs=("fashion_mnist",),
    trials=trials,
    measure=measure,
    metrics={
        "accuracy": "test accuracy", "train_accuracy": "training accuracy", "parameters": "parameters",
        "macs": "multiply-adds",
    },
    judge=judge,
    draw=draw,
)  # fmt: skip
