"""A CNN against a tuned SVM on MNIST, over the number of training images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch

from convatlas.draw.style import INK, label, lay_out, new_figure, style_axes
from convatlas.errors import DivergedError
from convatlas.experiments.experiment import Experiment, Size, Trial, Verdict
from convatlas.experiments.materials import Images, Materials
from convatlas.experiments.results import Results
from convatlas.experiments.statistics import Effect, paired_effect
from convatlas.experiments.training import train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS = ("SVM", "CNN")
NUMBERS = {
    "smoke": (100, 300), "default": (100, 300, 1000, 3000, 10_000, 60_000),
    "full": (100, 300, 1000, 3000, 10_000, 30_000, 60_000),
}  # fmt: skip
EPOCHS = {100: 40, 300: 20, 1000: 15, 3000: 10, 10_000: 5, 30_000: 4, 60_000: 3}
"""Epochs of the CNN by number of training images; `--full` has four times as many."""
SEEDS = {"smoke": 1, "default": 3, "full": 5}
CHOICE = 3000
"""Maximum number of training images on which C, gamma and the rate are chosen; the others have the same values."""
COMPONENTS = 64
C = (1.0, 5.0, 20.0)
GAMMA = (0.01, 0.02, 0.03, 0.05)
RATES = (0.01, 0.02, 0.05, 0.1)
ALL = 60_000
"""All training images: the SVM, which has no random part, is trained on them once."""
MANY, FEW = 10_000, 300
FEWER, EQUAL = 0.8, 0.9
"""Errors of the CNN divided by those of the SVM: at most FEWER is a clear advantage, at least EQUAL none."""


def arm_of(model: str, number: int) -> str:
    return f"{model}, {number:,} images"


def trials(size: Size, results: Results) -> Iterable[Trial]:
    """First the choice of C and gamma, or of the rate, for each number of images; then training on all images."""
    times = 4 if size == "full" else 1
    choices = [
        Trial(f"tuning, {arm_of(model, number)}", seed, {
            "model": model, "images": number, "epochs": times * EPOCHS[number], "tuning": True,
        })
        for number in NUMBERS[size] if number <= CHOICE for seed in range(SEEDS[size]) for model in MODELS
    ]  # fmt: skip
    yield from choices
    chosen = {(row.settings["model"], row.settings["images"], row.seed): row.metrics
              for row in results.where(tuning=True)}  # fmt: skip
    if len(chosen) < len(choices):
        return
    for number in NUMBERS[size]:
        for model in MODELS:
            for seed in range(1 if model == "SVM" and number == ALL else SEEDS[size]):
                values = chosen[model, min(number, CHOICE), seed]
                names = ("rate",) if model == "CNN" else ("c", "gamma")
                yield Trial(arm_of(model, number), seed, {
                    "model": model, "images": number, "epochs": times * EPOCHS[number], "tuning": False,
                    **{name: values[name] for name in names},
                })  # fmt: skip


def measure(trial: Trial, materials: Materials) -> dict[str, float]:
    """Choose on a third of the training images that the others do not have, or train on all and test."""
    settings = trial.settings
    images = materials.images("mnist", "train", 28)
    if settings["images"] < len(images):
        images = images.subset(settings["images"], trial.seed)
    if not settings["tuning"]:
        test = materials.images("mnist", "test", 28)
        values = {name: settings[name] for name in ("c", "gamma", "rate") if name in settings}
        return {"error": error(settings["model"], images, test, trial.seed, settings["epochs"], **values), **values}
    third = len(images) // 3
    rest, held_out = images.take(torch.arange(third, len(images))), images.take(torch.arange(third))
    if settings["model"] == "CNN":
        candidates = [{"rate": rate} for rate in RATES]
    else:
        candidates = [{"c": c, "gamma": gamma} for c in C for gamma in GAMMA]
    errors = [
        error(settings["model"], rest, held_out, trial.seed, settings["epochs"], **values) for values in candidates
    ]
    return {"choice_error": min(errors), **candidates[errors.index(min(errors))]}


def error(model: str, images: Images, test: Images, seed: int, epochs: int, **values: float) -> float:
    """Train a model and return its error on test."""
    if model == "CNN":
        try:
            done = train(
                images, test, "lenet5_modern", seed=seed, epochs=epochs, batch=16 if len(images) < 1000 else 32,
                lr=values["rate"], max_shift=0,
            )  # fmt: skip
        except DivergedError:
            return 0.9
        return 1 - done.accuracy
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC

    (x, y), (test_x, test_y) = images.arrays, test.arrays
    machine = make_pipeline(
        PCA(min(COMPONENTS, len(images)), random_state=seed), SVC(C=values["c"], gamma=values["gamma"], cache_size=500)
    )
    machine.fit(x.reshape(len(x), -1) / 255, y)
    return 1 - float(machine.score(test_x.reshape(len(test_x), -1) / 255, test_y))


def numbers_of(results: Results) -> list[int]:
    return sorted({row.settings["images"] for row in results})


def compare(results: Results, number: int) -> Effect:
    """Return how many more errors the CNN has than the SVM, by seed."""
    ours, theirs = (results.values(arm_of(model, number), "error") for model in ("CNN", "SVM"))
    return paired_effect(f"CNN - SVM, {number:,} images", "error", ours, np.broadcast_to(theirs, ours.shape))


def judge(results: Results) -> Verdict:
    """Confirmed if the CNN has clearly fewer errors with many images, and not with few."""
    final = results.where(tuning=False)
    effects = {number: compare(final, number) for number in numbers_of(final)}
    errors = {
        number: [final.mean(arm_of(model, number), "error") for model in ("CNN", "SVM")] for number in effects
    }  # fmt: skip
    many = [
        effect.is_negative and errors[number][0] <= FEWER * errors[number][1]
        for number, effect in effects.items() if number >= MANY
    ]  # fmt: skip
    few = [errors[number][0] >= EQUAL * errors[number][1] for number in effects if number <= FEW]
    word = "not confirmed" if not many or not all(many) else "confirmed" if all(few) else "partly confirmed"
    texts = ", ".join(f"{number:,}: {ours:.2%} and {theirs:.2%}" for number, (ours, theirs) in errors.items())
    reason = f"Test error of the CNN and the SVM by number of training images: {texts}."
    return Verdict(word, reason, tuple(effects.values()))


def draw(results: Results) -> Figure:
    """Draw the error against the number of training images, both logarithmic, a point for each seed."""
    figure = new_figure(5.4, 3.4)
    axes = figure.add_subplot()
    final = results.where(tuning=False)
    numbers = numbers_of(final)
    for model, line, marker in zip(MODELS, ("--", "-"), ("s", "o"), strict=True):
        names = [arm_of(model, number) for number in numbers]
        axes.plot(numbers, [100 * final.mean(name, "error") for name in names], line, color=INK, linewidth=1.2)
        for number, name in zip(numbers, names, strict=True):
            values = 100 * final.values(name, "error")
            axes.plot([number] * len(values), values, marker, color=INK, markersize=4, fillstyle="none")
        axes.plot([], [], line, marker=marker, color=INK, markersize=4, fillstyle="none", label=label(model))
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = [
        tick for tick in (0.5, 1, 2, 5, 10, 20, 50) if tick >= 0.8 * 100 * min(row.metrics["error"] for row in final)
    ]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
    axes.set_xticks([], minor=True)
    style_axes(axes, x="training images", y="test error, %")
    axes.legend(frameon=False, fontsize=8)
    lay_out(figure)
    return figure


EXPERIMENT = Experiment(
    name="svm",
    title="A CNN against a tuned SVM",
    claim=(
        "On images a convolutional network makes fewer errors than a tuned support vector machine, but only with many "
        "training images; with few, the SVM is as good."
    ),
    source="LeCun et al. 1998, figure 9 (MNIST: SVM with a polynomial kernel 1.1 %, LeNet-5 0.95 %); Goodfellow et al. "
    "2016, section 1.2.2, on the number of examples.",
    protocol=(
        f"MNIST without augmentation. SVM: {COMPONENTS} principal components, RBF kernel, one against one "
        "(scikit-learn); C of 3 and gamma of 4 values (12 candidates). In trials of 3,000 and 10,000 images, raw "
        "pixels instead of components gave more errors and took ten times as long. CNN: LeNet-5 with ReLU and max "
        "pooling, stochastic gradient descent with one cycle; rate of 4 values. Both choose on a third of their own "
        f"training images, at most {CHOICE:,}, and are then trained on all of them: nothing else is known about the "
        "data, and no test image is used. The 10,000 test images are those of MNIST. A seed draws the training images "
        "(the same for both), the split for the choice, and the initial weights. 60,000 are all images, on which "
        "the SVM is trained once."
    ),
    criterion=(
        "With 10,000 and more images, the CNN has at most 0.8 times the errors of the SVM, and the 95 % interval of "
        "the difference excludes 0; with 100 and 300 images, it has at least 0.9 times the errors of the SVM. Partly "
        "confirmed: only the first."
    ),
    would_change=(
        "Augmentation, which helps both (an SVM as virtual support vectors), a CNN with batch norm or dropout, "
        "deskewed digits, longer training of the CNN with many images (`--full`: four times as many epochs)."
    ),
    needs=("mnist",),
    trials=trials,
    measure=measure,
    metrics={"error": "test error", "rate": "rate", "c": "C", "gamma": "gamma"},
    judge=judge,
    draw=draw,
)
