"""Losses, probabilities and metrics against the formulae they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.dataset import Images
from convatlas.tasks.classification.evaluate import evaluate, plainly
from convatlas.tasks.classification.losses import CRITERIA, RUBBISH
from convatlas.tasks.classification.results import Result


@pytest.fixture
def outputs() -> Tensor:
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 4, 0, 2])


def naive_cross_entropy(row: list[float], label: int, smoothing: float) -> float:
    total = math.log(sum(math.exp(value) for value in row))
    share = smoothing / len(row)
    return sum((share + (1 - smoothing if i == label else 0)) * (total - value) for i, value in enumerate(row))


def naive_focal(row: list[float], label: int, smoothing: float) -> float:
    p = math.exp(row[label]) / sum(math.exp(value) for value in row)
    return -((1 - p) ** 2) * math.log(p)


def naive_margin(row: list[float], label: int, smoothing: float) -> float:
    """Sabour et al. 2017, equation 4."""
    return sum(
        max(0, 0.9 - value) ** 2 if i == label else 0.5 * max(0, value - 0.1) ** 2 for i, value in enumerate(row)
    )


def naive_squared_error(row: list[float], label: int, smoothing: float) -> float:
    return sum((value - (1 if i == label else -1)) ** 2 for i, value in enumerate(row)) / len(row)


def naive_map(row: list[float], label: int, smoothing: float) -> float:
    """E = y_D + log(e^-j + sum_i e^-y_i) (LeCun et al. 1998, equation 9), where an output is minus its penalty y."""
    penalties = [-value for value in row]
    return penalties[label] + math.log(math.exp(-RUBBISH) + sum(math.exp(-y) for y in penalties))


@pytest.mark.parametrize(
    ("name", "naive", "smoothing"),
    [
        ("cross_entropy", naive_cross_entropy, 0.0),
        ("cross_entropy", naive_cross_entropy, 0.1),
        ("cross_entropy", naive_cross_entropy, 1.0),
        ("focal", naive_focal, 0.0),
        ("squared_error", naive_squared_error, 0.0),
        ("margin", naive_margin, 0.0),
        ("map", naive_map, 0.0),
    ],
)
def test_loss_is_its_formula_for_labels_and_for_shares(
    name: str, naive: Callable[[list[float], int, float], float], smoothing: float, outputs: Tensor, labels: Tensor
) -> None:
    rows = zip(outputs.tolist(), labels.tolist(), strict=True)
    expected = [naive(row, label, smoothing) for row, label in rows]
    assert CRITERIA[name].loss(outputs, labels, smoothing).tolist() == pytest.approx(expected, rel=1e-5)
    shares = nn.functional.one_hot(labels, 5).float()
    assert CRITERIA[name].loss(outputs, shares, smoothing).tolist() == pytest.approx(expected, rel=1e-5)


def test_map_loss_stays_finite_for_large_penalties(labels: Tensor) -> None:
    outputs = torch.full((7, 5), -1e4)
    assert CRITERIA["map"].loss(outputs, labels, 0.0).mean().item() == pytest.approx(1e4 - RUBBISH, rel=1e-6)


def test_map_loss_pushes_down_wrong_classes_only_while_they_compete(labels: Tensor) -> None:
    near, far = torch.zeros(7, 5, requires_grad=True), torch.full((7, 5), -50.0, requires_grad=True)
    gradients = [torch.autograd.grad(CRITERIA["map"].loss(x, labels, 0.0).mean(), x)[0] for x in (near, far)]
    wrong = torch.ones(7, 5).scatter_(1, labels[:, None], 0).bool()
    assert (gradients[0][wrong] > 0.01).all()
    assert (gradients[1][wrong] < 1e-6).all()


@pytest.mark.parametrize("name", [name for name, criterion in CRITERIA.items() if not criterion.several])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_probabilities_sum_to_one_and_keep_the_order_of_the_outputs(name: str, scale: float, outputs: Tensor) -> None:
    probabilities = CRITERIA[name].probabilities(outputs * scale)
    assert torch.allclose(probabilities.sum(1), torch.ones(7), atol=1e-6)
    assert (probabilities >= 0).all()
    ordered = probabilities.gather(1, outputs.argsort(1))
    assert (ordered.diff(dim=1) >= 0).all()


def test_expectation_reads_targets_as_certainty() -> None:
    outputs = torch.tensor([[1.0, -1.0, -1.0], [0.0, 0.0, -1.0]])
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    assert torch.allclose(CRITERIA["squared_error"].probabilities(outputs), expected, atol=1e-5)


@pytest.fixture
def result() -> Result:
    predicted, labels = torch.tensor([0, 1, 1, 2, 2, 2, 0, 0]), torch.tensor([0, 1, 1, 2, 0, 0, 1, 0])
    return Result(torch.eye(4)[predicted], labels, 0.25)


def test_confusion_has_true_classes_as_rows(result: Result) -> None:
    assert result.confusion.tolist() == [[2, 0, 2, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_accuracy_counts_the_most_probable_class(result: Result) -> None:
    assert (result.errors, result.accuracy) == (3, 5 / 8)
    told = {"images": 8, "errors": 3, "accuracy": 5 / 8, "loss": 0.25}
    assert {key: result.summary()[key] for key in told} == told
    assert int(result.confusion.diag().sum()) == 5


def test_evaluation_runs_in_evaluation_mode_and_does_not_depend_on_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (11, 1, 4, 4), dtype=torch.uint8, generator=generator)
    images = Images(pixels, torch.arange(11) % 3, [str(i) for i in range(11)])
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3)).train()
    preprocessing, criterion = Preprocessing(resize=4, crop=4), CRITERIA["cross_entropy"]
    first, second = (evaluate(plainly(network, preprocessing), images, criterion, batch=batch) for batch in (2, 256))
    assert torch.allclose(first.probabilities, second.probabilities, atol=1e-6)
    assert first.loss == pytest.approx(second.loss, rel=1e-5)
    assert torch.equal(first.labels, images.labels)
