"""Networks without a classifier: they return features (n, d), the input of the layer that computes class scores."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from convatlas.core.cost import cost
from convatlas.core.network import Network, is_chain, named_layers
from convatlas.core.spec import Spec
from convatlas.errors import SpecError
from convatlas.models.own_module import OwnNetwork

_KEPT_BEHIND = (
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.MaxPool2d, nn.Flatten,
)  # fmt: skip
"""Layers that are kept behind the classifier: where it is a convolution, pooling follows."""

_DROPOUTS = (nn.Dropout, nn.Dropout2d, nn.Dropout3d)


def without_classifier(network: Network, spec: Spec, classes: int) -> Network:
    """Return a copy of a network that returns features (n, d) in place of its `classes` class scores.

    The copy shares the tensors of the network. spec: what the network was built from. Raises SpecError if the layer of
    the class scores is not known.
    """
    shared = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    copied = copy.deepcopy(network, shared)
    if isinstance(copied, OwnNetwork):
        copied.remove_output_layer()
        return copied
    with torch.device("meta"):
        other = spec.build(classes=classes + 1, channels=network.input_shape[0]).state_dict()
    return remove_classifier(copied, other)


def remove_classifier(network: Network, other: Mapping[str, Tensor]) -> Network:
    """Remove the layer that computes class scores in place, and return the network: (n, ...) -> features (n, d).

    other: the state dict of the same network for another number of classes, which shows the layer. Dropout before it,
    activations behind it and auxiliary parts are removed, too; pooling behind it is kept. Capsules are flattened.
    """
    layers = list(_leaves(network))
    state = network.state_dict()
    by_class = [name for name, tensor in state.items() if tensor.shape != other[name].shape]
    classifiers = (i for i, (path, _) in enumerate(layers) if any(name.startswith(f"{path}.") for name in by_class))
    first = next(classifiers, None)
    if first is None:
        raise SpecError("build: classes must be >= 1 for this network, whose classifier is not on the main path, got 0")
    removed = {path for path, layer in layers[first + 1 :] if not isinstance(layer, _KEPT_BEHIND)} | {layers[first][0]}
    while first and isinstance(layers[first - 1][1], _DROPOUTS):
        first -= 1
        removed.add(layers[first][0])
    _remove(network, removed)
    network.auxiliary = nn.ModuleDict()
    if len(cost(network).output.shape) > 1:
        network.head._modules["flat"] = nn.Flatten()
    return network


def _leaves(tree: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield (path, layer) of the main path, without the chains themselves."""
    for name, layer in named_layers(tree):
        if is_chain(layer):
            yield from _leaves(layer, f"{prefix}{name}.")
        else:
            yield prefix + name, layer


def _remove(tree: nn.Module, removed: set[str], prefix: str = "") -> None:
    """Remove the layers at these paths, and the chains that become empty, but not the parts of the network."""
    for name, layer in list(named_layers(tree)):
        path = prefix + name
        if is_chain(layer):
            _remove(layer, removed, path + ".")
        if path in removed or (prefix and is_chain(layer) and not layer._modules):
            del tree._modules[name]
