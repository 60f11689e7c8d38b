"""What the experiments on training dynamics compute themselves."""

import pytest
import torch
from torch import nn

from convatlas.experiments.claims import relu_tanh, translation, vanishing_gradients
from convatlas.experiments.materials import Images
from convatlas.layers.init import initialize


@pytest.mark.parametrize(
    ("errors", "expected"),
    [((0.6, 0.4, 0.2), 2.75), ((0.25,), 1.0), ((0.1, 0.0), 0.75 / 0.9), ((0.6, 0.5, 0.4), 4.0)],
)
def test_crossing_interpolates_between_epochs(errors: tuple[float, ...], expected: float) -> None:
    assert relu_tanh.crossing(errors, 0.25) == pytest.approx(expected)


@pytest.mark.parametrize("kind", vanishing_gradients.KINDS)
@pytest.mark.parametrize("depth", vanishing_gradients.DEPTHS)
def test_networks_have_the_depth_of_their_name(kind: str, depth: int) -> None:
    with torch.device("meta"):
        tree = vanishing_gradients.network(kind, depth, "ReLU", False)
    counted = [
        layer for layer in tree.modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3))
    ]  # fmt: skip
    assert len(counted) == depth


def test_gradients_below_the_range_of_float32_are_measured() -> None:
    tree = vanishing_gradients.network("plain", 56, "sigmoid", False)
    initialize(tree, conv=lambda weight: nn.init.normal_(weight, std=1e-3))
    pixels = torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8)
    first, last = vanishing_gradients.gradient_norms(tree, Images(pixels, torch.arange(4), tuple("abcd")))
    assert 0 < first < 1e-60 < last


def test_shift_by_moves_each_image_by_its_own_shift() -> None:
    pixels = torch.zeros(2, 1, 8, 8)
    pixels[:, 0, 4, 4] = 1
    shifted = translation.shift_by(pixels, 4, torch.tensor([(0, 0), (1, -2)]))
    assert shifted.nonzero().tolist() == [[0, 0, 2, 2], [1, 0, 3, 0]]


def test_blur_keeps_the_mean_of_each_map() -> None:
    blurred = translation.blur(3)(torch.arange(1.0, 4.0).view(1, 3, 1, 1).expand(1, 3, 9, 9))
    assert blurred[0, :, 1:-1, 1:-1].mean((1, 2)).tolist() == pytest.approx([1, 2, 3])


def test_without_subsampling_global_pooling_is_invariant_far_from_the_borders() -> None:
    torch.manual_seed(0)
    tree = translation.network("dilation", "global").eval()
    image = torch.zeros(1, 1, 60, 60)
    image[..., 22:36, 22:36] = torch.rand(14, 14)
    scores = [tree(image.roll((shift, shift), (2, 3))) for shift in (0, 1, 5)]
    assert torch.allclose(scores[0], scores[1], atol=1e-6)
    assert torch.allclose(scores[0], scores[2], atol=1e-6)
    strided = translation.network("stride", "global").eval()
    assert not torch.allclose(strided(image), strided(image.roll((1, 1), (2, 3))), atol=1e-6)
