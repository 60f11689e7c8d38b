"""Gradients vanish with depth; ReLU, batch norm and shortcuts keep them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from convatlas.core.compose import Chain, Concat, Sum
from convatlas.draw.style import INK, QUIET, lay_out, new_figure, style_axes
from convatlas.errors import DivergedError
from convatlas.experiments.experiment import Experiment, Size, Trial, Verdict
from convatlas.experiments.materials import Images, Materials
from convatlas.experiments.results import Results
from convatlas.experiments.statistics import Effect, paired_effect
from convatlas.experiments.training import train
from convatlas.layers.init import he_fan_in, initialize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("plain", "residual", "dense")
ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "ReLU": nn.ReLU}
DEPTHS = (8, 20, 56, 110)
"""6 n + 2 layers with weights, as the networks for CIFAR-10 of He et al. 2015."""
SHALLOW, DEEP = 8, 56
"""Depths that are trained."""
WIDTH, GROWTH = 16, 4
RATES = (0.02, 0.2)
ORDERS = 3.0
"""Orders of magnitude that a gradient must lose, or may change by."""
MARGIN = 0.1
"""Difference of the test accuracy that matters."""
SIDE = 16
"""Of the images, in pixels."""
BATCH = {"smoke": 8, "default": 32, "full": 128}
"""Images of the gradients at initialization."""
IMAGES = {"smoke": 64, "default": 800, "full": 8000}
TEST_IMAGES = {"smoke": 50, "default": 500, "full": 2000}
EPOCHS = {"smoke": 1, "default": 4, "full": 20}
SEEDS = {"smoke": 1, "default": 3, "full": 5}


def name_of(kind: str, activation: str, norm: bool) -> str:
    """Return the name of an arm."""
    return f"{kind}, {activation}" + (", batch norm" if norm else "")


BEST = name_of("residual", "ReLU", True)
TRAINED = (
    name_of("plain", "sigmoid", False), name_of("plain", "tanh", False), name_of("plain", "ReLU", False),
    name_of("plain", "ReLU", True), name_of("residual", "ReLU", False), BEST, name_of("dense", "ReLU", True),
)  # fmt: skip
"""Arms that are trained at both depths."""
SIGMOID, TANH, PLAIN_RELU = TRAINED[:3]
VANISHING = (SIGMOID, TANH)
"""Arms whose gradients vanish, as textbooks say."""
KEPT = (
    PLAIN_RELU,
    *(name_of("plain", activation, True) for activation in ACTIVATIONS),
    *(name_of(kind, activation, False) for kind in KINDS[1:] for activation in ACTIVATIONS),
)
"""Arms with one remedy each, which should keep the gradients."""


def network(kind: str, depth: int, activation: str, norm: bool) -> nn.Module:
    """Return a network of 3x3 convolutions in three stages, with average pooling between them, for SIDE x SIDE px gray.

    Initial weights are those for the activation: of Glorot and Bengio 2010 for sigmoid and tanh, of He et al. 2015 for
    ReLU. Layers of all kinds but the dense one are of equal shape. In a dense network, a 1x1 convolution ends each
    stage, which is not counted.
    """

    def layer(inputs: int, maps: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
        layers = [nn.Conv2d(inputs, maps, kernel, stride, kernel // 2, bias=not norm)]
        return [*layers, *([nn.BatchNorm2d(maps)] if norm else []), ACTIVATIONS[activation]()]

    def stage(length: int) -> Iterator[nn.Module]:
        if kind == "plain":
            for _ in range(length):
                yield from layer(WIDTH, WIDTH)
        elif kind == "residual":
            for _ in range(length // 2):
                body = Chain(*layer(WIDTH, WIDTH), *layer(WIDTH, WIDTH)[:-1])
                yield from (Sum(body=body, skip=nn.Identity()), ACTIVATIONS[activation]())
        else:
            for number in range(length):
                yield Concat(skip=nn.Identity(), new=Chain(*layer(WIDTH + number * GROWTH, GROWTH)))
            yield from layer(WIDTH + length * GROWTH, WIDTH, kernel=1)

    layers = layer(1, WIDTH, stride=2)
    for number in range(3):
        layers += [*([nn.AvgPool2d(2)] if number else []), *stage((depth - 2) // 3)]
    draw = he_fan_in if activation == "ReLU" else nn.init.xavier_normal_
    tree = Chain(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10))
    return initialize(tree, conv=draw, linear=draw)


def trials(size: Size, results: Results) -> Iterable[Trial]:
    """Each kind, activation and norm with each seed; some of them are trained, too."""
    for kind, activation, norm in product(KINDS, ACTIVATIONS, (False, True)):
        arm = name_of(kind, activation, norm)
        settings = {"kind": kind, "activation": activation, "norm": norm, "batch": BATCH[size],
                    "images": IMAGES[size] if arm in TRAINED else 0, "test_images": TEST_IMAGES[size],
                    "epochs": EPOCHS[size]}  # fmt: skip
        yield from (Trial(arm, seed, settings) for seed in range(SEEDS[size]))


def measure(trial: Trial, materials: Materials) -> dict[str, float]:
    """Return gradients at each depth, and the accuracy after a training where the arm is trained."""
    settings = trial.settings
    images = materials.images("fashion_mnist", "train", SIDE)
    metrics: dict[str, float] = {}
    for depth in DEPTHS:
        torch.manual_seed(1000 * depth + trial.seed)
        tree = network(settings["kind"], depth, settings["activation"], settings["norm"])
        first, last = gradient_norms(tree, images.subset(settings["batch"], trial.seed))
        metrics |= {f"first_{depth}": math.log10(first), f"ratio_{depth}": math.log10(first / last)}
    if settings["images"]:
        test = materials.images("fashion_mnist", "test", SIDE).subset(settings["test_images"], 0)
        for depth in (SHALLOW, DEEP):
            metrics[f"accuracy_{depth}"] = accuracy(trial, depth, images.subset(settings["images"], trial.seed), test)
    return metrics


def gradient_norms(tree: nn.Module, images: Images) -> tuple[float, float]:
    """Return the norms of the gradients of the first and of the last 3x3 convolution of the stages.

    They are computed in float64, in which they may be as small as 1e-300.
    """
    pixels = images.pixels.double() / 255
    inputs = (pixels - pixels.mean()) / pixels.std()
    F.cross_entropy(tree.double()(inputs), images.labels).backward()
    layers = [
        layer for layer in tree.modules()
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.stride == (1, 1)
    ]  # fmt: skip
    first, last = (layer.weight.grad for layer in (layers[0], layers[-1]))
    assert first is not None
    assert last is not None
    return float(first.norm()), float(last.norm())


def accuracy(trial: Trial, depth: int, images: Images, test: Images) -> float:
    """Return the test accuracy with that of two rates whose training loss ends lower."""
    settings, outcomes = trial.settings, []
    for rate in RATES:
        torch.manual_seed(trial.seed)
        tree = network(settings["kind"], depth, settings["activation"], settings["norm"])
        try:
            done = train(images, test, tree, seed=trial.seed, epochs=settings["epochs"], batch=32, lr=rate,
                         schedule="onecycle", weight_decay=0.0, max_shift=0)  # fmt: skip
        except DivergedError:
            outcomes.append((math.inf, 1 / len(test.classes)))
        else:
            outcomes.append((done.history[-1]["train_loss"], done.accuracy))
    return min(outcomes)[1]


def change(results: Results, arm: str) -> Effect:
    """Return by how many orders of magnitude first / last changes from the least to the largest depth."""
    deep, shallow = (results.values(arm, f"ratio_{depth}") for depth in (DEPTHS[-1], DEPTHS[0]))
    return paired_effect(f"{arm}: {DEPTHS[-1]} - {DEPTHS[0]} layers", "log10 first / last", deep, shallow)


def fall(results: Results, arm: str) -> float:
    """Return by how many orders of magnitude the gradient of the first layer changes from the least to most layers."""
    return results.mean(arm, f"first_{DEPTHS[-1]}") - results.mean(arm, f"first_{DEPTHS[0]}")


def judge(results: Results) -> Verdict:
    """Count the statements that hold, see the criterion."""
    changes = {arm: change(results, arm) for arm in (*VANISHING, *KEPT)}
    gaps = {arm: results.compare(BEST, arm, f"accuracy_{DEEP}") for arm in VANISHING}
    best = results.mean(BEST, f"accuracy_{SHALLOW}") - results.mean(BEST, f"accuracy_{DEEP}")
    holds = {
        **{f"gradients vanish in {arm}": changes[arm].difference <= -ORDERS and changes[arm].is_negative
           for arm in VANISHING},
        **{f"gradients are kept in {arm}": abs(changes[arm].difference) < ORDERS for arm in KEPT},
        **{f"{arm} of {DEEP} layers is less accurate": gap.difference >= MARGIN and gap.is_positive
           for arm, gap in gaps.items()},
        f"{BEST} stays accurate at {DEEP} layers": best < MARGIN,
    }  # fmt: skip
    failures = [
        statement + (f" ({changes[arm].difference:+.1f} orders of magnitude)" if arm in changes else "")
        for statement, held in holds.items()
        if not held
        for arm in [statement.partition(" in ")[2]]
    ]
    number = sum(holds.values())
    word = "confirmed" if not failures else "not confirmed"
    if failures and holds[f"gradients vanish in {SIGMOID}"] and number >= len(holds) / 2:
        word = "partly confirmed"
    reason = (
        f"{number} of {len(holds)} statements hold. From {DEPTHS[0]} to {DEPTHS[-1]} layers, the gradient of the first "
        f"layer relative to the last changes by {changes[SIGMOID].difference:+.0f} orders of magnitude in {SIGMOID}. "
        + (f"Not so: {'; '.join(failures)}. " if failures else "")
        + f"The gradient of the first layer itself changes by {fall(results, TANH):+.0f} orders of magnitude in {TANH} "
        f"and by {fall(results, PLAIN_RELU):+.0f} in {PLAIN_RELU}, where first / last "
        f"changes by {changes[TANH].difference:+.1f} and {changes[PLAIN_RELU].difference:+.1f}."
    )
    return Verdict(word, reason, (*changes.values(), *gaps.values()))


def draw(results: Results) -> Figure:
    """Draw the gradients against depth above, and the accuracies of those that are trained below."""
    figure = new_figure(7, 4)
    dashes = dict(zip(ACTIVATIONS, (":", "--", "-"), strict=True))
    rows = figure.subplots(2, len(KINDS), sharey="row", height_ratios=(3, 2), squeeze=False)
    for column, kind in enumerate(KINDS):
        above, below = rows[0][column], rows[1][column]
        above.axhspan(-ORDERS, ORDERS, color=QUIET, alpha=0.25, linewidth=0)
        for activation, norm in product(ACTIVATIONS, (False, True)):
            arm = name_of(kind, activation, norm)
            how = {"linestyle": dashes[activation], "marker": "s" if norm else "o", "color": INK, "linewidth": 1,
                   "markersize": 4, "markerfacecolor": INK if norm else "white", "capsize": 2}  # fmt: skip
            for axes, metric, depths in ((above, "ratio", DEPTHS), (below, "accuracy", (SHALLOW, DEEP))):
                if metric == "ratio" or arm in TRAINED:
                    keys = [f"{metric}_{depth}" for depth in depths]
                    means, spreads = ([f(arm, key) for key in keys] for f in (results.mean, results.spread))
                    label = f"{activation}{', batch norm' if norm else ''}" if axes is above and not column else None
                    axes.errorbar(depths, means, spreads, label=label, **how)
        above.set_yscale("symlog", linthresh=10, linscale=2)
        above.set_yticks([-100, -30, -10, -3, 0, 3, 10], ["-100", "-30", "-10", "-3", "0", "3", "10"])
        above.minorticks_off()
        style_axes(above, title=kind, y="" if column else "log10 gradient norm,\nfirst / last layer")
        style_axes(below, x="layers", y="" if column else "test accuracy")
        below.set_ylim(0, 1)
        for axes in (above, below):
            axes.set_xlim(0, 115)
            axes.set_xticks(DEPTHS)
    handles, labels = rows[0][0].get_legend_handles_labels()
    lay_out(figure)
    figure.subplots_adjust(bottom=0.2)
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False, fontsize=7, handlelength=3)
    return figure


EXPERIMENT = Experiment(
    name="vanishing_gradients",
    title="Gradients vanish with depth",
    claim=(
        "In plain networks with sigmoid or tanh the gradients of the first layers vanish with depth, so that deep ones "
        "cannot be trained; ReLU, batch norm, residual and dense connections each keep the gradients."
    ),
    source=(
        "Glorot and Bengio 2010, section 4; He et al. 2015 (ResNet), section 4.2 and figure 6; Ioffe and Szegedy 2015, "
        "section 3.3; Huang et al. 2017 (DenseNet), section 1. Against: He et al. 2015, section 4.1, for whom "
        "gradients do not vanish in plain networks with batch norm; on batch norm Yang et al. 2019, "
        "\"A mean field theory of batch normalization\"."
    ),
    protocol=(
        f"Networks of {', '.join(map(str, DEPTHS))} layers for Fashion-MNIST at {SIDE} px: three stages of 3x3 "
        f"convolutions (8, 4 and 2 px; {WIDTH} maps, growth rate {GROWTH} in dense networks), average pooling between "
        "them, global average pooling and a linear layer. An activation follows each convolution; residual blocks are "
        "those of He et al. 2015, with the activation behind the sum. Weights: Glorot normal for sigmoid and tanh, He "
        "normal for ReLU, biases 0. Measured at initialization on 32 images, in float64: the gradient norm of the "
        f"first 3x3 convolution of the stages, divided by that of the last. Then {len(TRAINED)} of the 18 arms are "
        f"trained at {SHALLOW} and {DEEP} layers on 800 images for 4 epochs and tested on 500 (SGD with momentum 0.9, "
        f"batch 32, one cycle), each with the rate of {RATES[0]:g} and {RATES[1]:g} whose training loss ends lower. "
        "That is a short training of narrow networks: it shows which of them learn at all."
    ),
    criterion=(
        f"15 statements. Two: in plain networks without norm, with sigmoid and with tanh, first / last is at least "
        f"1000 times smaller at {DEPTHS[-1]} layers than at {DEPTHS[0]}, and the 95 % interval of the difference of "
        "the logarithms is below 0. Ten: it changes by less than a factor of 1000, up or down, with one "
        "remedy: plain with ReLU; plain with batch norm (three activations); residual and dense without norm (three "
        f"activations each). Two: at {DEEP} layers, plain networks with sigmoid and with tanh are at least 10 points "
        f"less accurate than the residual one with ReLU and batch norm, and the interval excludes 0. One: that one "
        f"loses less than 10 points from {SHALLOW} to {DEEP} layers. Confirmed: all hold. Partly confirmed: gradients "
        "vanish in the plain network with sigmoid, and at least half of the statements hold."
    ),
    would_change=(
        "Other initial weights: a gain that keeps gradients through a sigmoid at initialization, or smaller weights, "
        "which make those of tanh vanish, too; residual blocks whose shortcut has no activation behind the sum (He et "
        "al. 2016); wider networks, whose gradients differ less between seeds; longer training. First / last is blind "
        "to gradients of all layers that become small together; the column of the first layer shows those."
    ),
    needs=("fashion_mnist",),
    trials=trials,
    measure=measure,
    metrics={
        "ratio_8": "log10 first / last, 8 layers", "ratio_110": "110 layers", "first_8": "log10 first, 8 layers",
        "first_110": "110 layers", "accuracy_8": "test accuracy, 8 layers", "accuracy_56": "56 layers",
    },
    judge=judge,
    draw=draw,
)  # fmt: skip
