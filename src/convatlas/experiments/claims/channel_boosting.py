"""Channel boosting: whether channels from auxiliary learners help, against controls of equal cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from convatlas.core.cost import cost
from convatlas.core.spec import Spec
from convatlas.experiments.arm_chart import draw_arms
from convatlas.experiments.equal_cost import nearest_cost
from convatlas.experiments.experiment import Experiment, Size, Trial, Verdict
from convatlas.experiments.materials import Images, Materials
from convatlas.experiments.results import Results
from convatlas.experiments.training import train
from convatlas.experiments.tuning import TUNING_METRIC, with_tuned_rates
from convatlas.models.catalog import build_fresh
from convatlas.models.families.boosted import Autoencoder, Boosted, fit_autoencoder
from convatlas.models.families.lenet import LeNet5Modern
from convatlas.models.own_module import OwnModule, row_of, wrap_module

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DATA, OTHER = "fashion_mnist", "mnist"
BASE = LeNet5Modern(maps=(12, 32), resolution=28)
BOOSTED = Boosted(BASE, (Autoencoder(code=4, width=16),))
PLAIN, WIDER, RANDOM, SHUFFLED = "base", "base, wider", "random encoder", "shuffled channels"
CONTROLS = (PLAIN, WIDER, RANDOM, SHUFFLED)
LEARNERS = ("autoencoder, training images", "autoencoder, unlabeled images", "autoencoder, other data")
ARMS = (*CONTROLS, *LEARNERS)
RATES = {"smoke": (0.05,), "default": (0.02, 0.05, 0.1), "full": (0.01, 0.02, 0.05, 0.1, 0.2)}
LABELED = {"smoke": 200, "default": 500, "full": 1000}
UNLABELED = {"smoke": 500, "default": 10_000, "full": 50_000}
EPOCHS = {"smoke": 3, "default": 20, "full": 60}
STEPS = {"smoke": 20, "default": 300, "full": 2000}
"""Training steps of 64 images of each autoencoder."""
SEEDS = {"smoke": 1, "default": 5, "full": 10}
MARGIN = 0.01


class Shuffled(nn.Module):
    """The channels of a learner for another image of the batch."""

    def __init__(self, learner: nn.Module) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.learner(x)
        return y.roll(1, 0)


def macs_of(spec: Spec) -> int:
    return cost(build_fresh(spec, classes=10, channels=1)).macs


@cache
def wider() -> LeNet5Modern:
    """Return the base with more maps, in the same ratio within 10 %, and the multiply-adds of the boosted network."""
    ratio = BASE.maps[1] / BASE.maps[0]
    candidates = [
        replace(BASE, maps=(first, second))
        for first in range(16, 24)
        for second in range(round(0.9 * ratio * first), round(1.1 * ratio * first) + 1)
    ]
    return nearest_cost(lambda spec: spec.build(classes=10, channels=1), candidates, macs=macs_of(BOOSTED))


def spec_of(arm: str) -> Spec:
    return BASE if arm == PLAIN else wider() if arm == WIDER else BOOSTED


def normalized(network: nn.Module, images: Images) -> Tensor:
    """Return images as the inputs that the network will have in training."""
    spec = wrap_module(nn.Sequential(network), (1, 28, 28)).spec
    return row_of(cast(OwnModule, spec)).preprocessing.normalize(images.pixels)


def trials(size: Size, results: Results) -> Iterable[Trial]:
    """First each rate with seed 100, then the best rate of each arm with every seed."""
    common = {"labeled": LABELED[size], "unlabeled": UNLABELED[size], "epochs": EPOCHS[size], "steps": STEPS[size]}
    arms = {arm: {**common, "arm": arm} for arm in ARMS}
    return with_tuned_rates(arms, RATES[size], SEEDS[size], results)


def measure(trial: Trial, materials: Materials) -> dict[str, float]:
    """Train an arm and return its accuracy on test; of a tuning trial, on 5,000 training images that are not used."""
    settings, seed = trial.settings, trial.seed
    images = materials.images(DATA, "train", 28)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    parts = order.split([settings["unlabeled"], 5000, len(images) - settings["unlabeled"] - 5000])
    unlabeled, validation = images.take(parts[0]), images.take(parts[1])
    labeled = unlabeled.subset(settings["labeled"], seed)
    test = validation if settings["tuning"] else materials.images(DATA, "test", 28)
    torch.manual_seed(seed)
    network = build_fresh(spec_of(settings["arm"]), classes=10, channels=1)
    macs = cost(network).macs
    if settings["arm"] in (*LEARNERS, RANDOM, SHUFFLED):
        learner = network.get_submodule("stem.boost.learner1")
        source = labeled
        if settings["arm"] == LEARNERS[1]:
            source = unlabeled
        if settings["arm"] == LEARNERS[2]:
            source = materials.images(OTHER, "train", 28).subset(settings["unlabeled"], seed)
        steps = 0 if settings["arm"] == RANDOM else settings["steps"]
        fit_autoencoder(
            learner, normalized(network, source), epochs=math.ceil(64 * steps / len(source)), batch=64, seed=seed
        )  # fmt: skip
        if settings["arm"] == SHUFFLED:
            network.get_submodule("stem.boost").learner1 = Shuffled(learner)
    done = train(
        labeled, test, nn.Sequential(network), seed=seed, epochs=settings["epochs"], batch=32, lr=settings["lr"]
    )  # fmt: skip
    return {TUNING_METRIC if settings["tuning"] else "accuracy": done.accuracy, "macs": macs / 1e6}


def judge(results: Results) -> Verdict:
    """Confirmed if an autoencoder is better than every control."""
    final = results.where(tuning=False)
    effects = {learner: [final.compare(learner, control, "accuracy") for control in CONTROLS] for learner in LEARNERS}
    best = max(final.mean(control, "accuracy") for control in CONTROLS)
    helps = [
        all(effect.is_positive for effect in effects[learner]) and final.mean(learner, "accuracy") - best >= MARGIN
        for learner in LEARNERS
    ]
    better = [effects[learner][0].is_positive for learner in LEARNERS]
    word = "confirmed" if any(helps) else "partly confirmed" if any(better) else "not confirmed"
    texts = ", ".join(f"{arm} {final.mean(arm, 'accuracy'):.1%}" for arm in ARMS)
    return Verdict(word, f"Test accuracy: {texts}.", tuple(itertools.chain(*effects.values())))


def draw(results: Results) -> Figure:
    """Draw the accuracy of each arm, with its multiply-adds."""
    final = results.where(tuning=False)
    notes = {arm: f"{final.mean(arm, 'macs'):.2f} million multiply-adds" for arm in ARMS}
    return draw_arms(final, notes)


EXPERIMENT = Experiment(
    name="channel_boosting",
    title="Channel boosting with its controls",
    claim=(
        "Channels that autoencoders, trained without labels, add to the input make a CNN more accurate when few images "
        "are labeled, and not only because the network becomes larger."
    ),
    source="Khan et al. 2018 (arXiv 1804.08528), for tables of telecom customers; Khan et al. 2020, section 4.6.",
    protocol=(
        "500 labeled images of Fashion-MNIST. Base: LeNet-5 with ReLU, 12 and 32 maps. The boosted arms add 4 channels "
        "of the encoder of a convolutional autoencoder to the input, frozen and standardized; the kernels that read "
        "them begin at 0. The autoencoder is trained 300 steps of 64 images: on the 500 images, on 10,000 images of "
        "Fashion-MNIST without labels, or on 10,000 of MNIST (other data). Controls: the base; a wider base whose "
        "multiply-adds are those of the boosted network within 2 %; an encoder with random weights; the first "
        "autoencoder with the channels of another image. Each arm has the best of 3 rates, chosen with a seed that is "
        "not used afterwards on 5,000 other training images. 20 epochs, batch 32, stochastic gradient descent with one "
        "cycle, shifts of up to 2 px. A seed draws the labeled images, the same for all arms, and all weights."
    ),
    criterion=(
        "At least one of the three arms with an autoencoder is more accurate than each of the four controls with a "
        "95 % interval that excludes 0, and 1 point better than the best of them. Partly confirmed: one is more "
        "accurate than the base with an interval that excludes 0, but not than all controls."
    ),
    would_change=(
        "Fewer labels, larger learners, learners trained on far more or on labeled other data, a pretrained network "
        "behind them, as in the paper. Added channels are functions of the image and carry no information that the "
        "image lacks."
    ),
    needs=(DATA, OTHER),
    trials=trials,
    measure=measure,
    metrics={TUNING_METRIC: "tuning accuracy", "accuracy": "test accuracy", "macs": "multiply-adds, millions"},
    judge=judge,
    draw=draw,
)
