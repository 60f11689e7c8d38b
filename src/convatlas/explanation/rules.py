"""Rules: what can go wrong in a training, each recognized by one number of the layers and a threshold.

The thresholds are far from what trainings that work show (docs/diagnose.md has the measurements), so that a rule that
applies is a reason to act.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from convatlas.explanation.statistics import LayerStatistics, MeasuredStep

MIN_RANKED = 8
"""Smallest possible rank for which a rank collapse is recognized: with few images or features, ranks are low anyway."""


@dataclass(frozen=True)
class TrainingFacts:
    """What rules need besides statistics: the highest learning rate, and the number of classes; 0 if unknown."""

    max_lr: float = 0.0
    classes: int = 0


Value = tuple[str, float]
"""A layer and its number."""


@dataclass(frozen=True)
class Rule:
    """Something that can go wrong, recognized by one number of the layers.

    quantity: what the number is. measure: returns it for the layers of a step, in the order in which a problem spreads:
    the first one beyond the threshold is the first that goes wrong. threshold: beyond it, the rule applies. above:
    whether that is above it. usual: what is usual, with the source. reason: why it happens. remedies: what usually
    helps, the most likely first. lasting: the rule only counts if it applies at the last measured step.
    """

    problem: str
    quantity: str
    measure: Callable[[MeasuredStep, TrainingFacts], Sequence[Value]]
    threshold: float
    above: bool
    usual: str
    reason: str
    remedies: tuple[str, ...]
    lasting: bool = True

    def applies_to(self, value: float) -> bool:
        return value > self.threshold if self.above else value < self.threshold

    @property
    def limit(self) -> str:
        """The threshold as text."""
        return f"{'above' if self.above else 'below'} {self.threshold:g}"


def relative_gradient(layer: LayerStatistics) -> float | None:
    """Return the gradient norm of a layer divided by its weight norm; None where there is none."""
    if layer.gradient_norm is None or not layer.weight_norm:
        return None
    return layer.gradient_norm / layer.weight_norm


def _nonfinite(step: MeasuredStep, _: TrainingFacts) -> list[Value]:
    """Return the number of layers that are not finite, for the first with such outputs, or else the last one."""
    outputs = [layer.path for layer in step.layers if not layer.finite and layer.activation_mean is None]
    measured = any(layer.activation_mean is not None for layer in step.layers)
    wrong = outputs if outputs and measured else [layer.path for layer in reversed(step.layers) if not layer.finite]
    return [((wrong or [layer.path for layer in step.layers])[0], float(len(wrong)))] if step.layers else []


def _ratios(step: MeasuredStep) -> list[Value]:
    return [(layer.path, layer.update_ratio) for layer in step.layers if layer.update_ratio is not None]


def _largest_updates(step: MeasuredStep, _: TrainingFacts) -> list[Value]:
    """Return the median of the layers, for the first layer that is above it."""
    if not (ratios := _ratios(step)):
        return []
    middle = median(value for _, value in ratios)
    return [next((path, middle) for path, value in ratios if value >= middle)]


def _smallest_updates(step: MeasuredStep, facts: TrainingFacts) -> list[Value]:
    """Return the median of the layers at the highest learning rate, for the layer with the smallest one."""
    ratios = _ratios(step)
    if not ratios or not step.lr or not facts.max_lr:
        return []
    middle = median(value for _, value in ratios)
    return [(min(ratios, key=lambda each: each[1])[0], middle * facts.max_lr / step.lr)]


def _gradients(step: MeasuredStep) -> list[Value]:
    ratios = ((layer.path, relative_gradient(layer)) for layer in step.layers)
    return [(path, ratio) for path, ratio in ratios if ratio is not None]


def _vanishing(step: MeasuredStep, _: TrainingFacts) -> list[Value]:
    """Return for each layer, from the output back, the largest gradient up to there, as a share of the largest of all.

    It falls below the threshold where no layer between the input and here has a larger gradient.
    """
    gradients = _gradients(step)
    largest = max((ratio for _, ratio in gradients), default=0.0)
    if len(gradients) < 2 or not largest:
        return []
    return list(_running(gradients, max, largest))[::-1]


def _exploding(step: MeasuredStep, _: TrainingFacts) -> list[Value]:
    """Return for each layer, from the output back, the smallest gradient up to there, divided by that of the last."""
    gradients = _gradients(step)
    if len(gradients) < 2 or not gradients[-1][1]:
        return []
    return list(_running(gradients, min, gradients[-1][1]))[::-1]


def _running(values: Sequence[Value], choose: Callable[[float, float], float], unit: float) -> Iterator[Value]:
    """Yield the running maximum or minimum, in a unit."""
    extreme = values[0][1]
    for path, value in values:
        extreme = choose(extreme, value)
        yield path, extreme / unit


def _activations(step: MeasuredStep) -> list[Value]:
    """Return the standard deviations of the outputs of layers with weights, divided by that of the first one."""
    stds = [
        (layer.path, layer.activation_std)
        for layer in step.layers
        if layer.activation_std is not None and layer.weight_norm is not None
    ]
    return [(path, std / stds[0][1]) for path, std in stds] if stds and stds[0][1] else []


def _exploding_activations(step: MeasuredStep, _: TrainingFacts) -> list[Value]:
    return _activations(step)[1:]


def _vanishing_activations(step: MeasuredStep, _: TrainingFacts) -> list[Value]:
    """Return for each layer the largest value from there on, but for the last layer, which may begin with zeros."""
    inner = _activations(step)[:-1]
    return list(_running(inner[::-1], max, 1.0))[::-1] if inner else []


def _dead(step: MeasuredStep, _: TrainingFacts) -> list[Value]:
    return [(layer.path, layer.dead_share) for layer in step.layers if layer.dead_share is not None]


def _ranks(step: MeasuredStep, facts: TrainingFacts) -> list[Value]:
    """Return the effective rank of the last features; of two classes it may be low."""
    return [
        (layer.path, layer.effective_rank)
        for layer in step.layers
        if layer.effective_rank is not None and (layer.max_rank or 0) >= MIN_RANKED and facts.classes != 2
    ]


RULES = (
    Rule(
        "loss or gradients not finite", "number of layers that are not finite", _nonfinite, 0.0, True, "0 is usual",
        "numbers overflow, because weights have become too large in the steps before",
        ("a learning rate 10 times lower, or --lr find", "a longer warm-up (--set warmup=1)",
         "gradient clipping (--set grad_clip=1)", "--precision float32"),
        lasting=False,
    ),
    Rule(
        "updates too large", "median update-to-weight ratio", _largest_updates, 0.2, True,
        "about 0.001 is usual, CS231n",
        "the learning rate is too high for these weights and gradients: a step replaces a large part of each weight, "
        "and with it what was learned",
        ("a learning rate 10 times lower, or --lr find", "a longer warm-up (--set warmup=1)",
         "gradient clipping (--set grad_clip=1)"),
        lasting=False,
    ),
    Rule(
        "activations explode", "largest activation std, divided by that of the first layer,",
        _exploding_activations, 1e4, True, "1 is ideal, He et al. 2015",
        "every layer multiplies the variance by more than 1: weights are too large, and nothing normalizes",
        ("batch norm behind the convolutions", "initialization by He et al. 2015", "a lower learning rate"),
    ),
    Rule(
        "dead units", "share of dead units", _dead, 0.9, True,
        "at most 0.4, CS231n",
        "the inputs of the activation function are always on its flat side, mostly after an update that was too large; "
        "weights before it get no gradient and stay as they are",
        ("a lower learning rate, with warm-up", "batch norm before the activation function",
         "an activation function without a flat side (SiLU, leaky ReLU)"),
    ),
    Rule(
        "activations vanish", "smallest activation std, divided by that of the first layer,",
        _vanishing_activations, 1e-4, False, "1 is ideal, He et al. 2015",
        "every layer multiplies the variance by less than 1: weights are too small, and nothing normalizes",
        ("batch norm behind the convolutions", "initialization by He et al. 2015", "fewer layers"),
    ),
    Rule(
        "gradients explode", "gradient/weight of the first layers, divided by that of the last,", _exploding, 1e4,
        True, "1 is ideal, Glorot and Bengio 2010",
        "on the way back every layer multiplies the gradient by more than 1: weights are too large, and nothing "
        "normalizes",
        ("batch norm behind the convolutions", "shortcuts around the layers (residual network)",
         "initialization by He et al. 2015", "gradient clipping (--set grad_clip=1)"),
    ),
    Rule(
        "gradients vanish", "gradient/weight of the first layers, as a share of the largest,", _vanishing,
        1e-5, False, "1 is ideal, Glorot and Bengio 2010",
        "on the way back every layer multiplies the gradient by less than 1: sigmoid or tanh (at most 0.25 and 1), "
        "weights that are too small, or dead units; layers before it hardly learn",
        ("ReLU instead of sigmoid or tanh", "batch norm behind the convolutions",
         "shortcuts around the layers (residual network)", "initialization by He et al. 2015", "fewer layers"),
    ),
    Rule(
        "rank collapse", "effective rank of the last features", _ranks, 1.5, False,
        "1 is a collapse, Daneshmand et al. 2020",
        "the last features do not depend on the image, so all images get the same prediction",
        ("what helps against vanishing gradients and dead units in the layers before it",
         "normalized inputs: check the preprocessing", "a lower learning rate"),
    ),
    Rule(
        "updates too small", "median update-to-weight ratio at the highest learning rate", _smallest_updates, 1e-5,
        False, "about 0.001 is usual, CS231n",
        "the learning rate is too low for these weights and gradients: they hardly change",
        ("a learning rate 10 to 100 times higher, or --lr find", "fewer frozen stages"),
    ),
)  # fmt: skip
"""The rules, causes before their effects."""
