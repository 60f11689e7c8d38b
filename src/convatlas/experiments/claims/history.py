"""The history: LeNet-5 to EfficientNet by one recipe on one data set, accuracy against counted cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from scipy import stats

from convatlas.core.cost import Cost, cost
from convatlas.core.spec import Spec, cells, replace_cells
from convatlas.draw.style import INK, QUIET, label, lay_out, new_figure, style_axes
from convatlas.errors import ExperimentError
from convatlas.experiments.experiment import Experiment, Size, Trial, Verdict
from convatlas.experiments.materials import Materials
from convatlas.experiments.results import Results
from convatlas.experiments.statistics import Effect, paired_effect
from convatlas.experiments.training import train
from convatlas.models.catalog import CATALOG, build_fresh

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = 32
"""Height and width of the images, in pixels."""
EPOCHS = {"smoke": 1, "default": 10, "full": 60}
IMAGES = {"smoke": 64, "default": 2000, "full": 60000}
TEST_IMAGES = {"smoke": 200, "default": 4000, "full": 10000}
SEEDS = {"smoke": 1, "default": 3, "full": 5}
BUDGETS = {"smoke": (1.7,), "default": (0.65, 1.7), "full": (0.65, 1.7, 6.0, 24.0)}
"""Most multiply-adds of an image, in millions."""
LEAST_SHARE = 0.9
"""Least multiply-adds of a network, as a share of its budget."""
MARGIN, LEAST_CORRELATION = 0.02, 0.5
"""Difference of the test accuracy, and rank correlation of year and accuracy, that matter."""

FIRST, LAST = "lenet5", "efficientnet_b0"


@dataclass(frozen=True)
class Network:
    """A network of the catalog at small size. title: in the figure. depth: factor. cells: values that are replaced."""

    title: str
    depth: float = 1.0
    cells: Mapping[str, Any] = field(default_factory=dict)

    def spec(self, name: str) -> Spec:
        """Return its spec for 32 px, with the stem for small images if there is one."""
        spec: Spec = replace_cells(CATALOG[name].spec, self.cells)
        spec = spec.small(resolution=SIZE) if "small_stem" in spec.hints() else spec.replaced({"resolution": SIZE})
        return spec.scaled(depth=self.depth)


NETWORKS = {
    "lenet5": Network("LeNet-5"),
    "alexnet_2012": Network("AlexNet", cells={"convs[0].kernel": 5, "convs[0].stride": 1, "convs[0].padding": 2}),
    "vgg11": Network("VGG-11"),
    "googlenet": Network("GoogLeNet"),
    "cifar_resnet20": Network("ResNet", depth=1 / 3),
    "xception": Network("Xception"),
    "mobilenet_v1": Network("MobileNet"),
    "shufflenet_v2_x0_5": Network("ShuffleNetV2"),
    "mobilenet_v2": Network("MobileNetV2", depth=1 / 2),
    "efficientnet_b0": Network("EfficientNet-B0", depth=1 / 2, cells={"drop_path": 0.0}),
}


def with_widths(spec: Spec, factor: float) -> Spec:
    """Return a network with all widths times a factor, as even numbers; multiples of 8 are too coarse here."""
    widths = {path: max(2, 2 * round(value * factor / 2)) for path, value, kind in cells(spec) if kind == "width"}
    return replace_cells(spec, widths)


@cache
def fitted(name: str, millions: float) -> tuple[Spec, Cost]:
    """Return a network scaled in width to a budget, and its cost.

    Raises ExperimentError if it is not within `LEAST_SHARE` and all of the budget.
    """
    spec, low, high = NETWORKS[name].spec(name), 1 / 64, 8.0
    for _ in range(16):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _count(with_widths(spec, middle)).macs <= 1e6 * millions else (low, middle)
    counted = _count(fit := with_widths(spec, low))
    if not LEAST_SHARE <= counted.macs / (1e6 * millions) <= 1:
        raise ExperimentError(f"history: {name} has {counted.macs:,} multiply-adds, the budget is {millions:g} million")
    return fit, counted


def _count(spec: Spec) -> Cost:
    return cost(build_fresh(spec, classes=10, channels=1, device="meta"))


def arm_of(name: str, millions: float) -> str:
    return f"{CATALOG[name].card.year} {NETWORKS[name].title}, {millions:g} M"


def trials(size: Size, results: Results) -> Iterable[Trial]:
    """All networks by budget, year and seed."""
    settings = {"epochs": EPOCHS[size], "images": IMAGES[size], "test_images": TEST_IMAGES[size]}
    for millions in BUDGETS[size]:
        for name in NETWORKS:
            more = {"network": name, "year": CATALOG[name].card.year, "millions": millions}
            for seed in range(SEEDS[size]):
                yield Trial(arm_of(name, millions), seed, {**settings, **more})


def measure(trial: Trial, materials: Materials) -> dict[str, float]:
    """Train by the one recipe, and return the accuracy on test."""
    settings = trial.settings
    spec, counted = fitted(settings["network"], settings["millions"])
    images = materials.images("fashion_mnist", "train", SIZE).subset(settings["images"], trial.seed)
    test = materials.images("fashion_mnist", "test", SIZE).subset(settings["test_images"], 0)
    done = train(
        images, test, spec, seed=trial.seed, epochs=settings["epochs"], batch=32, optimizer="adamw", lr=0.003,
        weight_decay=0.01, flip=True, dropout=0.0, recipe="default", loss="cross_entropy",
    )  # fmt: skip
    return {
        "accuracy": done.accuracy, "train_accuracy": done.history[-1]["train_accuracy"],
        "parameters": counted.parameters, "macs": counted.macs, "layers": counted.output.depth,
    }  # fmt: skip


def largest_budget(results: Results) -> Results:
    """Return the rows at the largest budget, by year."""
    return results.where(millions=max(row.settings["millions"] for row in results))


def correlations(results: Results) -> Effect:
    """Return the rank correlation of year and accuracy at the largest budget, with an interval over the seeds."""
    rows = largest_budget(results)
    values = []
    for seed in sorted({row.seed for row in rows}):
        of_seed = [row for row in rows if row.seed == seed]
        years, accuracies = ([row.settings["year"] for row in of_seed], [row.metrics["accuracy"] for row in of_seed])
        values.append(stats.spearmanr(years, accuracies)[0])
    return paired_effect("year and accuracy", "rank correlation", values, [0.0] * len(values))


def judge(results: Results) -> Verdict:
    """Confirmed if EfficientNet is better than LeNet-5 by `MARGIN`, and accuracy rises with the year."""
    rows = largest_budget(results)
    arms = {row.settings["network"]: row.arm for row in rows}
    effect, correlation = rows.compare(arms[LAST], arms[FIRST], "accuracy"), correlations(results)
    better = effect.is_positive and effect.difference >= MARGIN
    rises = correlation.is_positive and correlation.difference >= LEAST_CORRELATION
    word = "confirmed" if better and rises else "partly confirmed" if better or rises else "not confirmed"
    best = max(arms.values(), key=lambda arm: rows.mean(arm, "accuracy"))
    reason = (
        f"At {rows.rows[0].settings['millions']:g} million multiply-adds, LeNet-5 has "
        f"{rows.mean(arms[FIRST], 'accuracy'):.1%} on test and EfficientNet {rows.mean(arms[LAST], 'accuracy'):.1%}; "
        f"the best is {best.rpartition(',')[0]} with {rows.mean(best, 'accuracy'):.1%}. The rank correlation of year "
        f"and accuracy is {correlation.difference:.2f}."
    )
    return Verdict(word, reason, (effect, correlation))


STYLES = (":", "--", "-.", (0, (8, 2)), (0, (4, 1, 1, 1, 1, 1)), "-", (0, (1, 3)), (0, (12, 3)))
LABEL_GAP = 0.055
"""Least distance of two labels, as a share of the axis."""


def draw(results: Results) -> Figure:
    """Draw the frontier of each year that raises it over the budgets, and all networks at the largest one."""
    figure = new_figure(7, 3.8)
    axes, history = figure.subplots(1, 2, width_ratios=(1, 1))
    lines = frontiers(results)
    budgets = [millions for millions, _ in next(iter(lines.values()))]
    for line, style in zip(lines.values(), STYLES * len(lines), strict=False):
        axes.plot(
            budgets, [100 * best for _, best in line], "o", linestyle=style, color=INK, linewidth=1.2, markersize=3
        )
    low, high = axes.get_ylim()
    place = -math.inf
    for year, line in sorted(lines.items(), key=lambda item: item[1][-1][1]):
        share = (100 * line[-1][1] - low) / (high - low)
        place = max(share, place + LABEL_GAP)
        axes.annotate(f"until {year}", (budgets[-1], 100 * line[-1][1]), (1.03, place), textcoords="axes fraction",
                      fontsize=7, color=INK, va="center",
                      arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.5, "relpos": (0, 0.5)})  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(budgets, [f"{millions:g}" for millions in budgets])
    axes.minorticks_off()
    style_axes(
        axes, x="multiply-adds of an image, in millions", y="test accuracy in %", title="Best network until a year"
    )
    rows = largest_budget(results)
    for place, arm in enumerate(rows.arms):
        values = 100 * rows.values(arm, "accuracy")
        history.axhline(place, color=QUIET, linewidth=0.4)
        history.plot(values, [place] * len(values), "o", color=INK, markerfacecolor="none", markersize=3.5)
        history.plot([values.mean()], [place], "|", color=INK, markersize=10, markeredgewidth=2)
    history.set_yticks(range(len(rows.arms)), [label(arm.rpartition(",")[0]) for arm in rows.arms])
    history.set_ylim(len(rows.arms) - 0.5, -0.5)
    title = f"At {budgets[-1]:g} million multiply-adds"
    style_axes(history, x="test accuracy in %", title=title)
    history.tick_params(axis="y", length=0, labelsize=7)
    lay_out(figure)
    return figure


def frontiers(results: Results) -> dict[int, list[tuple[float, float]]]:
    """Return {year: [(budget, best accuracy within it of the networks until then)]}, of the years that raise one."""
    found: dict[int, list[tuple[float, float]]] = {}
    best: list[tuple[float, float]] = []
    for year in sorted({row.settings["year"] for row in results}):
        before = best
        best = []
        for millions in sorted({row.settings["millions"] for row in results}):
            known = {
                row.arm for row in results if row.settings["year"] <= year and row.settings["millions"] <= millions
            }
            best.append((millions, max(results.mean(arm, "accuracy") for arm in known)))
        if best != before:
            found[year] = best
    return found


EXPERIMENT = Experiment(
    name="history",
    title="The history: LeNet-5 to EfficientNet at equal cost",
    claim=(
        "At equal multiply-adds and by one recipe, the networks of later years are more accurate, from LeNet-5 to "
        "EfficientNet."
    ),
    source=(
        "The usual figure of surveys and lectures, accuracy against cost by year (Canziani et al. 2016, figure 2; "
        "Bianco et al. 2018, figure 1; Tan and Le 2019, figure 1), in which recipe and cost change together with the "
        "network."
    ),
    protocol=(
        "Ten networks of the catalog are trained on 2,000 images of Fashion-MNIST, resized to 32 px, and measured on "
        "4,000 of its test images. One recipe: AdamW, one cycle up to a rate of 0.003, weight decay 0.01, batch 32, "
        "10 epochs, shifts and flips, cross entropy, no dropout and no stochastic depth. All widths of a network are "
        "multiplied by one factor and rounded to even numbers, so that it has 90 to 100 % of 0.65 and of 1.7 million "
        "multiply-adds, by count (97 to 100 % of the latter). Before that, ResNet (that of CIFAR-10), MobileNet, "
        "MobileNetV2, ShuffleNetV2 and EfficientNet get the stem for small images, a 3x3 convolution with stride 1; "
        "AlexNet begins with a 5x5 convolution of stride 1 in place of 11x11 of stride 4, which 32 px do not allow; "
        "LeNet-5, VGG-11, GoogLeNet and Xception have their own stems. ResNet-20 has a third of its depth (8 layers), "
        "MobileNetV2 and EfficientNet have half the blocks of each row, rounded up; the others have their full "
        "depth. The widths are narrow: the last stages of EfficientNet have 50 and 84 maps at 1.7 million "
        "multiply-adds. SqueezeNet was replaced by Xception after a first run: without norms, and with a ReLU on its "
        "scores, it does not learn by this recipe (10 % accuracy in most seeds)."
    ),
    criterion=(
        "at 1.7 million multiply-adds, EfficientNet has a test accuracy that is at least 2 points higher than that of "
        "LeNet-5, with a 95 % interval of the difference, paired by seed, above 0; and the rank correlation of year "
        "and accuracy is at least 0.5, with an interval over the seeds above 0. Partly confirmed: one of the two."
    ),
    would_change=(
        "Larger budgets and images, for which the later networks were made: here they are very narrow, and many of "
        "their layers see maps of a few pixels. Long training on all images, with the regularization of each paper; a "
        "rate that is tuned for each network. `--full` has budgets up to 24 million and all 60,000 images."
    ),
    needs=("fashion_mnist",),
    trials=trials,
    measure=measure,
    metrics={
        "accuracy": "test accuracy", "train_accuracy": "training accuracy", "parameters": "parameters",
        "macs": "multiply-adds", "layers": "layers with weights",
    },
    judge=judge,
    draw=draw,
)  # fmt: skip
