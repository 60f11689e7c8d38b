"""Which layers an explanation reads, and the method that suits them; read off the tree."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from convatlas.core.network import is_chain, tap_paths
from convatlas.errors import SpecError
from convatlas.explanation.options import CAMS, ExplainOptions, Method
from convatlas.tasks.explained import Explained

_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_NO_CHANGE = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d)


def choose_method(explained: Explained, options: ExplainOptions) -> tuple[Method, tuple[str, ...]]:
    """Return the method and its layers, none for methods that read pixels.

    Integrated gradients are for networks without maps on the main path, such as an own module.
    Raises SpecError, with the nearest tap, for a layer that is not there or has no map.
    """
    if options.method not in ("auto", *CAMS):
        return options.method, ()  # type: ignore[return-value]  # a pixel method
    layers = tuple(dict.fromkeys(options.layers)) or (explained.default_layer,) * bool(explained.paths)
    if not layers and options.method == "auto":
        return "integrated-gradients", ()
    if not layers:
        raise SpecError(
            f"explain: method must be integrated-gradients or occlusion for a network without maps on its main path, "
            f"got {options.method}"
        )
    explained.check_paths(layers)
    return (default_method(explained, layers) if options.method == "auto" else options.method), layers


def default_method(explained: Explained, layers: Sequence[str]) -> Method:
    """Return "grad-cam" if global average pooling follows every layer, else "hires-cam".

    Behind global pooling all positions of a channel have the same gradient, and their mean loses nothing.
    """
    return "grad-cam" if all(is_pooled(explained, path) for path in layers) else "hires-cam"


def is_pooled(explained: Explained, path: str) -> bool:
    """Return whether the layer behind `path` on the main path is global average pooling."""
    paths = list(tap_paths(explained.network))
    for following in paths[paths.index(path) + 1 :]:
        layer = explained.network.get_submodule(following)
        if not is_chain(layer) and not isinstance(layer, _NO_CHANGE):
            return isinstance(layer, _POOLS) and set(explained.shapes[following][1:]) == {1}
    return False
