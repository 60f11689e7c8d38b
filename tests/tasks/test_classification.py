"""Single-label losses, probabilities and metrics equal their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from convatlas.core.compose import Chain
from convatlas.core.network import Network
from convatlas.core.preprocessing import Preprocessing
from convatlas.data.dataset import Images
from convatlas.engines.evaluation import compute_outputs, eager_forward
from convatlas.tasks.classification.losses import RUBBISH_PENALTY, SINGLE_LABEL
from convatlas.tasks.classification.single_label import ClassificationResult
from convatlas.tasks.known import Classification
from convatlas.tasks.targets import Targets


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


def naive_lecun_map(row: list[float], label: int, smoothing: float) -> float:
    """E = y_D + log(e^-j + sum_i e^-y_i) (LeCun et al. 1998, equation 9), where an output is minus its penalty y."""
    penalties = [-value for value in row]
    return penalties[label] + math.log(math.exp(-RUBBISH_PENALTY) + sum(math.exp(-y) for y in penalties))


@pytest.mark.parametrize(
    ("name", "naive", "smoothing"),
    [
        ("cross_entropy", naive_cross_entropy, 0.0),
        ("cross_entropy", naive_cross_entropy, 0.1),
        ("cross_entropy", naive_cross_entropy, 1.0),
        ("focal", naive_focal, 0.0),
        ("squared_error", naive_squared_error, 0.0),
        ("margin", naive_margin, 0.0),
        ("lecun_map", naive_lecun_map, 0.0),
    ],
)
def test_loss_equals_its_formula_for_class_numbers_and_for_class_shares(
    name: str, naive: Callable[[list[float], int, float], float], smoothing: float, outputs: Tensor, labels: Tensor
) -> None:
    rows = zip(outputs.tolist(), labels.tolist(), strict=True)
    expected = [naive(row, label, smoothing) for row, label in rows]
    assert SINGLE_LABEL[name].function(outputs, labels, smoothing).tolist() == pytest.approx(expected, rel=1e-5)
    shares = nn.functional.one_hot(labels, 5).float()
    assert SINGLE_LABEL[name].function(outputs, shares, smoothing).tolist() == pytest.approx(expected, rel=1e-5)


def test_lecun_map_is_finite_for_large_penalties(labels: Tensor) -> None:
    outputs = torch.full((7, 5), -1e4)
    assert SINGLE_LABEL["lecun_map"].function(outputs, labels, 0.0).mean().item() == pytest.approx(
        1e4 - RUBBISH_PENALTY, rel=1e-6
    )


def test_lecun_map_has_a_gradient_for_wrong_classes_only_near_the_rubbish_penalty(labels: Tensor) -> None:
    near, far = torch.zeros(7, 5, requires_grad=True), torch.full((7, 5), -50.0, requires_grad=True)
    gradients = [
        torch.autograd.grad(SINGLE_LABEL["lecun_map"].function(x, labels, 0.0).mean(), x)[0] for x in (near, far)
    ]
    wrong = torch.ones(7, 5).scatter_(1, labels[:, None], 0).bool()
    assert (gradients[0][wrong] > 0.01).all()
    assert (gradients[1][wrong] < 1e-6).all()


@pytest.mark.parametrize("name", SINGLE_LABEL)
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_probabilities_sum_to_one_and_have_the_order_of_the_outputs(name: str, scale: float, outputs: Tensor) -> None:
    probabilities = SINGLE_LABEL[name].probabilities(outputs * scale)
    assert torch.allclose(probabilities.sum(1), torch.ones(7), atol=1e-6)
    assert (probabilities >= 0).all()
    ordered = probabilities.gather(1, outputs.argsort(1))
    assert (ordered.diff(dim=1) >= 0).all()


def test_squared_error_outputs_at_their_targets_give_probabilities_of_0_and_1() -> None:
    outputs = torch.tensor([[1.0, -1.0, -1.0], [0.0, 0.0, -1.0]])
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    assert torch.allclose(SINGLE_LABEL["squared_error"].probabilities(outputs), expected, atol=1e-5)


@pytest.fixture
def result() -> ClassificationResult:
    predicted, labels = torch.tensor([0, 1, 1, 2, 2, 2, 0, 0]), torch.tensor([0, 1, 1, 2, 0, 0, 1, 0])
    return ClassificationResult(torch.eye(4)[predicted], labels, 0.25, tuple("abcd"))


def test_confusion_has_true_classes_as_rows(result: ClassificationResult) -> None:
    assert result.confusion.tolist() == [[2, 0, 2, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_accuracy_counts_the_most_probable_class(result: ClassificationResult) -> None:
    assert (result.num_errors, result.accuracy) == (3, 5 / 8)
    expected = {"n": 8, "num_errors": 3, "accuracy": 5 / 8, "loss": 0.25}
    assert {key: result.summary()[key] for key in expected} == expected
    assert int(result.confusion.diag().sum()) == 5


def test_evaluation_runs_in_evaluation_mode_and_does_not_depend_on_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (11, 1, 4, 4), dtype=torch.uint8, generator=generator)
    images = Images(pixels, Targets(label=torch.arange(11) % 3), [str(i) for i in range(11)])
    network = Network(
        stem=nn.Flatten(), stages=Chain(nn.Dropout(0.5)), head=nn.Linear(16, 3), input_shape=(1, 4, 4)
    ).train()
    task, preprocessing = Classification(("a", "b", "c")), Preprocessing(resize=4, crop=4)
    first, second = (
        task.evaluate(compute_outputs(eager_forward(network, preprocessing), images, batch=batch), images.targets)
        for batch in (2, 256)
    )
    assert torch.allclose(first.probabilities, second.probabilities, atol=1e-6)
    assert first.loss == pytest.approx(second.loss, rel=1e-5)
    assert torch.equal(first.labels, images.targets.tensor("label"))
