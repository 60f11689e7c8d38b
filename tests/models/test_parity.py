"""Parity with torchvision and timm: equal outputs, and equal gradients in one training step.

Random weights and norm statistics are copied by the key rules. Outputs are bit-identical, except where timm writes a
linear layer of the head as a convolution: its sums have another order.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convatlas.layers.channels import DropPath
from convatlas.models.card import Variant
from convatlas.models.catalog import CATALOG, stats
from convatlas.models.keys import remap_keys
from convatlas.weights.match import family_of
from tiny_networks import CLASSIFIERS, one_of_each_kind
from upstream import PAIRS, RELATIVES, images, moved, scramble, theirs, timms

OTHER_ORDER = ("vgg", "resnetv2", "mobilenet_v3")
"""Families whose head, or a hidden layer of it, is a convolution in timm."""

# training takes longer: each network once, from torchvision if it has it; of one code, the smallest unless slow
UPSTREAM = {name: next(iter(row.upstream)) for name, row in CATALOG.items() if name in CLASSIFIERS and row.upstream}
TRAINED = {*one_of_each_kind(UPSTREAM)} - {"r2plus1d_18"}  # whose step takes 14 s; mc3_18 and r3d_18 are fast ones

LARGE_IN_DOUBLE = {(name, "timm") for name in CATALOG if name.startswith("vgg") and name != "vgg11"}
"""Networks of 130 million parameters that are compared in float64, and in float32 with torchvision."""

ZERO_GRADIENT = 0.01
"""Gradients below this cancel out, such as those of a bias before a batch norm: what is left is rounding."""

LARGE = 6_000_000
"""Number of parameters from which relatives are compared by the slow tests only."""


def sums_in_other_order(name: str, library: str) -> bool:
    """Return whether the upstream network has its classifier as a convolution, which sums in another order."""
    return library == "timm" and name.startswith(OTHER_ORDER)


def tolerance(name: str, library: str) -> float:
    """Return the allowed difference, as a fraction of the largest value.

    Zero, but for another order of sums. Those networks are compared in float64, where only a few of the last bits may
    differ; how much they differ in float32 depends on the processor.
    """
    return 1e-13 if sums_in_other_order(name, library) else 0.0


@pytest.mark.parametrize(
    ("name", "library"),
    [pytest.param(*pair, marks=pytest.mark.slow if pair in LARGE_IN_DOUBLE else []) for pair in PAIRS],
)
def test_outputs_are_those_of_the_library(name: str, library: str) -> None:
    row = CATALOG[name]
    peer = theirs(name, library)
    scramble(peer)
    x = images(row, resolution=max(row.spec.minimum, 64))
    compare_outputs(row, peer, library, x, tolerance(name, library))


def compare_outputs(row: Variant, peer: nn.Module, library: str, x: Tensor, limit: float) -> None:
    """Compare the outputs of a network with those of the library's, whose weights it gets."""
    mine = moved(row, peer, library)
    if limit:
        peer, mine, x = peer.double(), mine.double(), x.double()
    with torch.inference_mode():
        expected, got = peer.eval()(x), mine.eval()(x)
    assert expected.std() > 0
    assert float((expected - got).abs().max()) <= limit * float(expected.abs().max())


@pytest.mark.parametrize(
    ("name", "relative"),
    [
        pytest.param(*pair, marks=pytest.mark.slow if stats(pair[0]).parameters > LARGE else [])
        for pair in RELATIVES
    ],
)  # fmt: skip
def test_outputs_of_relatives_are_those_of_timm_at_odd_sizes(name: str, relative: str) -> None:
    row = CATALOG[name]
    row = replace(row, spec=row.spec.replaced(row.relatives[relative]))
    peer = timms(relative)
    scramble(peer)
    compare_outputs(row, peer, "timm", images(row, resolution=65, width=46), tolerance(name, "timm"))
    assert sum(each.numel() for each in peer.parameters()) == stats(name).parameters


@pytest.mark.parametrize("width", [0.25, 0.5, 0.75])
def test_narrow_mobilenets_are_those_of_timm(width: float) -> None:
    row = CATALOG[f"mobilenet_v1_0{100 * width:.0f}"]
    timm_efficientnet = pytest.importorskip("timm.models.efficientnet")
    peer = timm_efficientnet._gen_mobilenet_v1("mobilenetv1_100", width)
    scramble(peer)
    compare_outputs(row, peer, "timm", images(row, resolution=64), 0.0)


def disable_randomness(network: nn.Module) -> None:
    """Set the rates of dropout and stochastic depth to zero."""
    import torchvision

    for layer in network.modules():
        if isinstance(layer, nn.Dropout | torchvision.ops.StochasticDepth):
            layer.p = 0.0
        if isinstance(layer, DropPath):
            layer.rate = 0.0


def their_loss(outputs: Any, labels: Tensor) -> Tensor:
    """Cross entropy, that of the auxiliary heads with a weight of 0.3."""
    if isinstance(outputs, Tensor):
        return F.cross_entropy(outputs, labels)
    main, *others = (F.cross_entropy(part, labels) for part in outputs)
    return main + 0.3 * others[-1] + sum(0.3 * other for other in reversed(others[:-1]))


@pytest.mark.parametrize(
    ("name", "library"),
    [pytest.param(*pair, marks=[] if pair[0] in TRAINED else pytest.mark.slow) for pair in UPSTREAM.items()],
)
def test_one_step_of_training_has_the_same_loss_gradients_and_statistics(name: str, library: str) -> None:
    row = CATALOG[name]
    helped = hasattr(row.spec, "auxiliary") and library == "torchvision"
    if helped:
        row = replace(row, spec=replace(row.spec, auxiliary=True))  # type: ignore[type-var]
    peer = theirs(name, library, auxiliary=helped)
    scramble(peer)
    mine = moved(row, peer, library)
    for network in (peer, mine):
        disable_randomness(network)
        network.train()
    x = images(row, resolution=row.spec.resolution if helped else max(row.spec.minimum, 64), batch=4)
    if sums_in_other_order(name, library):
        peer, mine, x = peer.double(), mine.double(), x.double()
    labels = torch.arange(4)
    expected = their_loss(peer(x), labels)
    _, loss = mine.loss(x, labels, F.cross_entropy)
    expected.backward()
    loss.backward()
    limit = 5 * tolerance(name, library)  # the backward pass sums once more
    torch.testing.assert_close(loss, expected, rtol=limit, atol=0)
    # gradients are renamed by the key rules, as the weights are
    rules = family_of(row.spec).key_mappings[library](row.spec)
    gradients = {key: parameter.grad for key, parameter in peer.named_parameters()}
    state = {key: gradients.get(key, tensor) for key, tensor in peer.state_dict().items()}
    expected_state = remap_keys(state, rules, mine.state_dict())  # type: ignore[arg-type]
    for key, parameter in mine.named_parameters():
        theirs_ = expected_state[key]
        assert parameter.grad is not None, key
        allowed = limit * max(float(theirs_.abs().max()), ZERO_GRADIENT)
        assert float((parameter.grad - theirs_).abs().max()) <= allowed, key
    for key, buffer in mine.named_buffers():
        if buffer.is_floating_point():
            assert torch.equal(buffer, expected_state[key]), key


def test_number_of_auxiliary_heads() -> None:
    for name, heads in (("googlenet", 2), ("inception_v3", 1)):
        spec = replace(CATALOG[name].spec, auxiliary=True)  # type: ignore[type-var]
        assert len(spec.build(classes=3, channels=3).auxiliary) == heads
