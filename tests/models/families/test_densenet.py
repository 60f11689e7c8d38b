"""DenseNet's memory-efficient mode: the same function, the same training, memory linear in the depth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from convatlas.core.network import Network
from convatlas.models.families.densenet import DenseNet


def pair(depth: int = 4) -> tuple[Network, Network]:
    torch.manual_seed(0)
    spec = DenseNet((depth, depth), 8, 16, small_stem=True, resolution=16)
    plain = spec.build(classes=3, channels=3)
    checkpointed = replace(spec, memory_efficient=True).build(classes=3, channels=3)
    checkpointed.load_state_dict(plain.state_dict())
    return plain, checkpointed


def saved_bytes(network: Network, x: Tensor) -> int:
    """Return the bytes that a forward pass saves for the backward pass; shared memory counts once."""
    sizes: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    alive: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(x)
    return sum(sizes.values())


def test_training_is_the_same_statistics_included() -> None:
    x, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    networks = pair()
    losses = [F.cross_entropy(network.train()(x), labels) for network in networks]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    plain, checkpointed = networks
    for (key, one), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7, msg=key)
    for (key, one), other in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
        assert torch.equal(one, other), key  # the repeated pass does not count


def test_inference_is_the_same() -> None:
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        plain, checkpointed = (network.eval()(x) for network in pair())
    assert torch.equal(plain, checkpointed)


@pytest.mark.parametrize("depth", [8, 16])
def test_memory_grows_with_the_depth_and_not_with_its_square(depth: int) -> None:
    x = torch.randn(2, 3, 16, 16)
    once, twice = ([saved_bytes(network.train(), x) for network in pair(d)] for d in (depth, 2 * depth))
    plain, checkpointed = (after / before for before, after in zip(once, twice, strict=True))
    assert checkpointed < 2.1
    assert plain > 2.4
    assert twice[1] < 0.5 * twice[0]
