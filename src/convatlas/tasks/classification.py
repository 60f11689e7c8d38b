"""One picture, one class: losses, how outputs become probabilities, and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convatlas.data.batches import in_order
from convatlas.data.images import Images
from convatlas.preprocessing import Preprocessing
from convatlas.tasks import metrics


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return class numbers (n,) as shares of the classes (n, classes); shares are returned as they are."""
    return labels if labels.ndim == 2 else F.one_hot(labels, classes).float()


def cross_entropy(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """-log softmax(outputs)[label]; `smoothing` spreads that share of the target over all classes."""
    return F.cross_entropy(outputs, labels, label_smoothing=smoothing, reduction="none")


def focal(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """-(1 - p)² log p of the true class's probability p: easy pictures count less (Lin et al. 2017, equation 4)."""
    log = outputs.log_softmax(1)
    return -(one_hot(labels, outputs.shape[1]) * (1 - log.exp()).square() * log).sum(1)


def squared_error(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean squared distance to targets +1 (the class) and -1 (all others) (LeCun et al. 1989)."""
    return (outputs - (one_hot(labels, outputs.shape[1]) * 2 - 1)).square().mean(1)


RUBBISH = 0.1
"""The penalty j of the "rubbish class" in the MAP loss; the paper gives no number."""


def maximum_a_posteriori(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """y_label + log(e^-j + sum_i e^-y_i), where y = -outputs are penalties (LeCun et al. 1998, equation 9).

    That is cross entropy with one more class of constant output -j, the pictures of no class.
    """
    rubbish = outputs.new_full((len(outputs), 1), -RUBBISH)
    targets = labels if labels.ndim == 1 else F.pad(labels, (0, 1))
    return F.cross_entropy(torch.cat([outputs, rubbish], 1), targets, reduction="none")


def margin(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Sum over the classes of T max(0, 0.9 - |v|)² + 0.5 (1 - T) max(0, |v| - 0.1)².

    `outputs` are the lengths |v| of the classes' capsules, T is 1 for the true class (Sabour et al. 2017, equation 4).
    """
    truth = one_hot(labels, outputs.shape[1])
    there, absent = (0.9 - outputs).clamp(min=0).square(), (outputs - 0.1).clamp(min=0).square()
    return (truth * there + 0.5 * (1 - truth) * absent).sum(1)


def _shares(outputs: Tensor) -> Tensor:
    """Return non-negative outputs, such as the lengths of capsules, made to sum to one."""
    lengths = outputs.clamp(min=1e-9)
    return lengths / lengths.sum(1, keepdim=True)


def _expectation(outputs: Tensor) -> Tensor:
    """Outputs trained on targets +-1 with squared error estimate 2p - 1; return p, made to sum to one."""
    p = ((outputs + 1) / 2).clamp(min=1e-6)
    return p / p.sum(1, keepdim=True)


@dataclass(frozen=True)
class Criterion:
    """A loss (outputs, labels, smoothing) -> (n,), and how outputs trained with it become probabilities.

    Labels are class numbers (n,), or the shares of the classes (n, classes) where pictures are mixed.
    """

    loss: Callable[[Tensor, Tensor, float], Tensor]
    probabilities: Callable[[Tensor], Tensor]

    @property
    def logits(self) -> bool:
        """Whether the outputs are logits of a softmax, which a temperature can calibrate."""
        return self.probabilities is _softmax


def _softmax(outputs: Tensor) -> Tensor:
    return outputs.softmax(1)


CRITERIA: dict[str, Criterion] = {
    "cross_entropy": Criterion(cross_entropy, _softmax),
    "focal": Criterion(focal, _softmax),
    "squared_error": Criterion(squared_error, _expectation),
    "map": Criterion(maximum_a_posteriori, _softmax),
    "margin": Criterion(margin, _shares),
}


@dataclass(frozen=True)
class Result:
    """What a network says about the pictures of one split: probabilities (n, classes) beside the true labels (n,)."""

    probabilities: Tensor
    labels: Tensor
    loss: float

    @property
    def predicted(self) -> Tensor:
        return self.probabilities.argmax(1)

    @property
    def errors(self) -> int:
        return int((self.predicted != self.labels).sum())

    @property
    def accuracy(self) -> float:
        """Share of pictures whose most probable class is the true one."""
        return 1 - self.errors / len(self.labels)

    @property
    def confusion(self) -> Tensor:
        """(classes, classes) counts: row = true class, column = predicted class."""
        classes = self.probabilities.shape[1]
        return torch.bincount(self.labels * classes + self.predicted, minlength=classes**2).view(classes, classes)

    @property
    def confidence(self) -> Tensor:
        """(n,): the probability of the predicted class."""
        return self.probabilities.amax(1)

    def summary(self) -> dict[str, float | int]:
        """Return the numbers that are written down.

        accuracy with the bounds of its 95 % interval; top5; macro_f1 and balanced_accuracy: means over the classes;
        ece: the expected calibration error.
        """
        confusion, count = self.confusion, len(self.labels)
        low, high = metrics.interval(count - self.errors, count)
        return {
            "pictures": count, "errors": self.errors, "accuracy": self.accuracy, "accuracy_low": low,
            "accuracy_high": high, "top5": metrics.top(self.probabilities, self.labels, 5),
            "macro_f1": metrics.mean_of(metrics.f1(confusion)),
            "balanced_accuracy": metrics.mean_of(metrics.recall(confusion)), "loss": self.loss,
            "ece": metrics.calibration_error(self.probabilities, self.labels),
        }  # fmt: skip


@torch.inference_mode()
def outputs_of(
    network: nn.Module, images: Images, preprocessing: Preprocessing, *, batch: int = 64,
    device: torch.device | str = "cpu",
) -> Tensor:  # fmt: skip
    """Return the outputs (n, classes) for all pictures of a split, in evaluation mode."""
    network.eval()
    batches = in_order(images, preprocessing, batch=batch, device=device)
    return torch.cat([network(each.inputs).cpu() for each in batches])


def judged(outputs: Tensor, labels: Tensor, criterion: Criterion, *, temperature: float = 1.0) -> Result:
    """Return what outputs (n, classes) say about pictures with these labels."""
    with torch.inference_mode():
        loss = criterion.loss(outputs, labels, 0.0).mean().item()
        return Result(criterion.probabilities(outputs / temperature), labels, loss)


def evaluate(
    network: nn.Module,
    images: Images,
    preprocessing: Preprocessing,
    criterion: Criterion,
    *,
    temperature: float = 1.0,
    batch: int = 64,
    device: torch.device | str = "cpu",
) -> Result:
    """Run all pictures of a split through the network in evaluation mode."""
    outputs = outputs_of(network, images, preprocessing, batch=batch, device=device)
    return judged(outputs, images.labels, criterion, temperature=temperature)
