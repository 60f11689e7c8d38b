"""convatlas: convolutional networks from 1989 on, from one small vocabulary.

import convatlas as ca
ca.list("resnet*", max_params=30e6)         # names
model = ca.build("resnet18", classes=10)    # a torch module
ca.cost(model)                              # parameters, MACs, activations, receptive field, per layer
run = ca.fit("digits", "lenet5")            # train; a run folder with a sealed model file
net = ca.load(run.model_file); net.predict("seven.png")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from convatlas.catalog import names as list
    from convatlas.catalog import show, spec, variant
    from convatlas.comparing import compare
    from convatlas.costs import cost
    from convatlas.errors import ConvatlasError
    from convatlas.exporting import export
    from convatlas.features import at_strides, places
    from convatlas.joins import Chain, Concat, Network, Product, Sum, depth_groups, taps
    from convatlas.model import Ensemble, evaluate, load, predict
    from convatlas.preprocessing import Preprocessing
    from convatlas.scaling import compound, fast, fit_budget
    from convatlas.specs import diff
    from convatlas.tables import summary
    from convatlas.train import Budget, Recipe, Settings, choose_network, cross_validate, fit, resume
    from convatlas.weights import build, published

_ROOMS = {
    "catalog": ("list", "show", "spec", "variant"),
    "comparing": ("compare",),
    "costs": ("cost",),
    "tables": ("summary",),
    "errors": ("ConvatlasError",),
    "features": ("at_strides", "places"),
    "joins": ("Chain", "Concat", "Network", "Product", "Sum", "depth_groups", "taps"),
    "exporting": ("export",),
    "model": ("Ensemble", "evaluate", "load", "predict"),
    "preprocessing": ("Preprocessing",),
    "scaling": ("compound", "fast", "fit_budget"),
    "specs": ("diff",),
    "train": ("Budget", "Recipe", "Settings", "choose_network", "cross_validate", "fit", "resume"),
    "weights": ("build", "published"),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "Budget", "Chain", "Concat", "ConvatlasError", "Ensemble", "Network", "Preprocessing", "Product", "Recipe",
    "Settings", "Sum", "at_strides", "build", "choose_network", "compare", "compound", "cost", "cross_validate",
    "depth_groups", "diff", "evaluate", "export", "fast", "fit", "fit_budget", "list", "load", "places", "predict",
    "published", "resume", "show", "spec", "summary", "taps", "variant",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import convatlas` costs next to nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'convatlas' has no attribute {name!r}")
    home = importlib.import_module(f"convatlas.{_HOME[name]}")
    value = getattr(home, "names" if name == "list" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:  # type: ignore[valid-type]
    return sorted([*globals(), *_HOME])
