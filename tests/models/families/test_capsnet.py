"""Capsules against naive loops over the paper's procedure, and the mistakes that public code makes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from convatlas.core.network import Network
from convatlas.layers.capsules import Length, PrimaryCapsules, RoutedCapsules, squash
from convatlas.models.catalog import CATALOG, build_fresh
from convatlas.models.families.capsnet import CapsNet, Decoder, reconstruct
from convatlas.tasks.classification.losses import SINGLE_LABEL, margin

SMALL = CapsNet(conv=8, types=4, decoder=(16, 32))


def network(*, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return SMALL.build(classes=10, channels=1)


def naive_squash(s: Tensor) -> Tensor:
    length = s.norm(dim=-1, keepdim=True)
    return length**2 / (1 + length**2) * s / length


def naive_routing(layer: RoutedCapsules, u: Tensor) -> Tensor:
    """Procedure 1, capsule by capsule, in float64."""
    batch, inputs, _ = u.shape
    weight = layer.weight.double().view(inputs, layer.outputs, layer.out_size, -1)
    result = []
    for b in range(batch):
        votes = torch.stack([
            torch.stack([weight[i, j] @ u[b, i].double() for j in range(layer.outputs)]) for i in range(inputs)
        ])  # fmt: skip
        logits = torch.zeros(inputs, layer.outputs, dtype=torch.float64)
        for _ in range(layer.iterations):
            coupling = torch.stack([logits[i].softmax(0) for i in range(inputs)])  # each child spreads over its parents
            parents = torch.stack([
                naive_squash(sum(coupling[i, j] * votes[i, j] for i in range(inputs)))  # type: ignore[arg-type]
                for j in range(layer.outputs)
            ])  # fmt: skip
            for i in range(inputs):
                for j in range(layer.outputs):
                    logits[i, j] = logits[i, j] + votes[i, j] @ parents[j]
        result.append(parents)
    return torch.stack(result)


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
@pytest.mark.parametrize("through", [False, True])
def test_routing_is_the_printed_procedure(iterations: int, through: bool) -> None:
    torch.manual_seed(0)
    layer = RoutedCapsules(6, 4, 3, 5, iterations=iterations, through=through)
    layer.weight.data.mul_(8)  # so that the couplings are far from equal
    u = torch.randn(2, 6, 4)
    torch.testing.assert_close(layer(u).double(), naive_routing(layer, u), rtol=1e-5, atol=1e-6)


def test_detached_votes_give_the_same_output_and_nearly_the_same_gradient() -> None:
    torch.manual_seed(0)
    u = torch.randn(4, 32, 8)
    layers = [RoutedCapsules(32, 8, 10, 16, through=through) for through in (False, True)]
    layers[1].load_state_dict(layers[0].state_dict())
    outputs = [layer(u) for layer in layers]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    one, other = (layer.weight.grad for layer in layers)
    assert one is not None
    assert other is not None
    assert F.cosine_similarity(one.flatten(), other.flatten(), 0) > 0.95


def test_squash_keeps_the_direction_and_shortens_the_length() -> None:
    s = torch.randn(5, 7, 4, dtype=torch.float64) * 3
    v = squash(s)
    torch.testing.assert_close(v, naive_squash(s), rtol=1e-6, atol=1e-8)
    assert float(v.norm(dim=-1).max()) < 1


def test_zero_capsules_have_finite_gradients() -> None:
    s = torch.zeros(2, 3, 4, requires_grad=True)
    (squash(s).sum() + Length()(s).sum()).backward()
    assert s.grad is not None
    assert s.grad.isfinite().all()


def test_primary_capsules_group_the_channels_of_a_pixel() -> None:
    layer = PrimaryCapsules(3, 2, 4, kernel=3, stride=2)
    x = torch.randn(2, 3, 7, 7)
    maps, capsules = layer.conv(x), layer(x)
    for kind in range(2):
        for pixel in range(9):
            expected = squash(maps[:, kind * 4 : kind * 4 + 4].flatten(2)[:, :, pixel])
            torch.testing.assert_close(capsules[:, kind * 9 + pixel], expected)


def test_images_of_a_batch_route_by_themselves_and_every_time_anew() -> None:
    caps, x = network().eval(), torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        together, alone = caps(x), torch.cat([caps(image[None]) for image in x])
        torch.testing.assert_close(together, alone)
        assert torch.equal(together, caps(x))


def test_margin_loss_is_that_of_the_paper() -> None:
    lengths, labels = torch.tensor([[0.95, 0.3, 0.05], [0.2, 0.6, 0.1]]), torch.tensor([0, 1])
    first = 0.0 + 0.5 * (0.3 - 0.1) ** 2 + 0.0
    second = (0.9 - 0.6) ** 2 + 0.5 * (0.2 - 0.1) ** 2
    assert margin(lengths, labels, 0.0).tolist() == pytest.approx([first, second], rel=1e-5)


def test_lengths_become_probabilities() -> None:
    shares = SINGLE_LABEL["margin"].probabilities(torch.tensor([[0.9, 0.1, 0.0]]))
    assert shares.sum().item() == pytest.approx(1)
    assert shares.argmax() == 0


def test_reconstruction_adds_the_sum_of_squares_of_the_true_capsule() -> None:
    caps, x, labels = network().eval(), torch.rand(3, 1, 28, 28), torch.tensor([4, 0, 9])
    outputs, loss = caps.loss(x, labels, lambda y, t: margin(y, t, 0.0).mean())
    painted = reconstruct(caps, x, labels)
    distance = (painted - x).square().flatten(1).sum(1).mean()
    torch.testing.assert_close(loss, margin(outputs, labels, 0.0).mean() + 0.0005 * distance)
    assert painted.shape == x.shape
    assert float(painted.detach().min()) >= 0
    assert float(painted.detach().max()) <= 1


def test_reconstruction_without_labels_takes_the_longest_capsule() -> None:
    caps, x = network().eval(), torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(reconstruct(caps, x), reconstruct(caps, x, caps(x).argmax(1)))


def test_covered_capsules_do_not_reach_the_decoder() -> None:
    decoder = Decoder(10, 16, (8, 8), (1, 4, 4))
    poses, labels = torch.randn(2, 10, 16), torch.tensor([3, 7])
    other = poses.clone()
    other[0, 4] += 1
    assert torch.equal(decoder.decode(poses, labels), decoder.decode(other, labels))


def test_without_decoder_nothing_is_auxiliary() -> None:
    assert len(replace(SMALL, decoder=None).build(classes=10, channels=1).auxiliary) == 0


@pytest.mark.parametrize("size", [17, 18, 28, 29, 33])
def test_capsules_fit_any_size_from_the_smallest_on(size: int) -> None:
    caps = replace(SMALL, resolution=size).build(classes=4, channels=3)
    assert caps(torch.rand(2, 3, size, size)).shape == (2, 4)


def test_reduced_preset_has_a_sixteenth_of_the_macs() -> None:
    from convatlas.core.cost import cost

    full, reduced = (cost(build_fresh(name, device="meta")).macs for name in ("capsnet", "capsnet_reduced"))
    assert full / reduced > 12
    assert CATALOG["capsnet_reduced"].recipe == "sabour2017"
