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
from convatlas.models.catalog import CATALOG
from convatlas.models.keys import remap_keys
from convatlas.weights.read import family_of
from upstream import PAIRS, images, moved, scramble, theirs

OTHER_ORDER = ("vgg", "resnetv2")
"""Families whose head is a convolution in timm."""

# training takes longer: each network once, from torchvision if it has it
TRAINED = [(name, next(iter(row.upstream))) for name, row in CATALOG.items() if row.upstream]


def sums_in_other_order(name: str, library: str) -> bool:
    """Return whether the upstream network has its classifier as a convolution, which sums in another order."""
    return library == "timm" and name.startswith(OTHER_ORDER)


def tolerance(name: str, library: str) -> float:
    """Return the allowed difference, as a fraction of the largest value.

    Zero, but for another order of sums. Those networks are compared in float64, where only a few of the last bits may
    differ; how much they differ in float32 depends on the processor.
    """
    return 1e-13 if sums_in_other_order(name, library) else 0.0


@pytest.mark.parametrize(("name", "library"), PAIRS)
def test_outputs_are_those_of_the_library(name: str, library: str) -> None:
    row = CATALOG[name]
    peer = theirs(name, library)
    scramble(peer)
    mine, x = moved(row, peer, library), images(row, resolution=max(row.spec.minimum, 64))
    if sums_in_other_order(name, library):
        peer, mine, x = peer.double(), mine.double(), x.double()
    with torch.inference_mode():
        expected, got = peer.eval()(x), mine.eval()(x)
    assert expected.std() > 0
    limit = tolerance(name, library) * float(expected.abs().max())
    assert float((expected - got).abs().max()) <= limit


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


@pytest.mark.parametrize(("name", "library"), TRAINED)
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
        assert float((parameter.grad - theirs_).abs().max()) <= limit * float(theirs_.abs().max()), key
    for key, buffer in mine.named_buffers():
        if buffer.is_floating_point():
            assert torch.equal(buffer, expected_state[key]), key


def test_number_of_auxiliary_heads() -> None:
    for name, heads in (("googlenet", 2), ("inception_v3", 1)):
        spec = replace(CATALOG[name].spec, auxiliary=True)  # type: ignore[type-var]
        assert len(spec.build(classes=3, channels=3).auxiliary) == heads
