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


def cross_entropy(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean of -log softmax(outputs)[label]; `smoothing` spreads that share of the target over all classes."""
    return F.cross_entropy(outputs, labels, label_smoothing=smoothing)


def squared_error(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean squared distance to targets +1 (the class) and -1 (all others) (LeCun et al. 1989)."""
    targets = F.one_hot(labels, outputs.shape[1]).to(outputs.dtype) * 2 - 1
    return F.mse_loss(outputs, targets)


RUBBISH = 0.1
"""The penalty j of the "rubbish class" in the MAP loss; the paper gives no number."""


def maximum_a_posteriori(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean of y_label + log(e^-j + sum_i e^-y_i), where y = -outputs are penalties (LeCun et al. 1998, equation 9).

    That is cross entropy with one more class of constant output -j, the pictures of no class.
    """
    rubbish = outputs.new_full((len(outputs), 1), -RUBBISH)
    return F.cross_entropy(torch.cat([outputs, rubbish], 1), labels)


def margin(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean over the images of the sum over classes of T max(0, 0.9 - |v|)² + 0.5 (1 - T) max(0, |v| - 0.1)².

    `outputs` are the lengths |v| of the classes' capsules, T is 1 for the true class (Sabour et al. 2017, equation 4).
    """
    truth = F.one_hot(labels, outputs.shape[1]).to(outputs.dtype)
    there, absent = (0.9 - outputs).clamp(min=0).square(), (outputs - 0.1).clamp(min=0).square()
    return (truth * there + 0.5 * (1 - truth) * absent).sum(1).mean()


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
    """A loss (outputs, labels, smoothing) -> scalar, and how outputs trained with it become probabilities."""

    loss: Callable[[Tensor, Tensor, float], Tensor]
    probabilities: Callable[[Tensor], Tensor]


def _softmax(outputs: Tensor) -> Tensor:
    return outputs.softmax(1)


CRITERIA: dict[str, Criterion] = {
    "cross_entropy": Criterion(cross_entropy, _softmax),
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

    def summary(self) -> dict[str, float | int]:
        """Return the numbers that are written down: pictures, errors, accuracy, loss."""
        return {"pictures": len(self.labels), "errors": self.errors, "accuracy": self.accuracy, "loss": self.loss}


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    images: Images,
    preprocessing: Preprocessing,
    criterion: Criterion,
    *,
    batch: int = 256,
    device: torch.device | str = "cpu",
) -> Result:
    """Run all pictures of a split through the network in evaluation mode."""
    network.eval()
    outputs = torch.cat(
        [network(batch_.inputs).cpu() for batch_ in in_order(images, preprocessing, batch=batch, device=device)]
    )
    loss = criterion.loss(outputs, images.labels, 0.0).item()
    return Result(criterion.probabilities(outputs), images.labels, loss)
