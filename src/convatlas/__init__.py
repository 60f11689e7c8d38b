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

from convatlas._version import __version__ as __version__

if TYPE_CHECKING:
    from convatlas.core.compose import Chain, Concat, Product, Sum
    from convatlas.core.cost import cost
    from convatlas.core.features import at_strides, places
    from convatlas.core.network import Network, taps
    from convatlas.core.preprocessing import Preprocessing
    from convatlas.core.spec import diff
    from convatlas.core.summary import summary
    from convatlas.errors import ConvatlasError
    from convatlas.inference.export import export
    from convatlas.inference.model import Ensemble, evaluate, load, predict
    from convatlas.models.catalog import names as list
    from convatlas.models.catalog import spec, variant
    from convatlas.models.describe import compare, show
    from convatlas.models.scaling import compound, fast, fit_budget
    from convatlas.train.cross_validation import cross_validate
    from convatlas.train.fit import fit, resume
    from convatlas.train.optim import depth_groups
    from convatlas.train.recipe import Recipe
    from convatlas.train.select_model import Budget, choose_network
    from convatlas.train.settings import Settings
    from convatlas.weights.build import build
    from convatlas.weights.pretrained import published

_ROOMS = {
    "core.compose": ("Chain", "Concat", "Product", "Sum"),
    "core.cost": ("cost",),
    "core.features": ("at_strides", "places"),
    "core.network": ("Network", "taps"),
    "core.preprocessing": ("Preprocessing",),
    "core.spec": ("diff",),
    "core.summary": ("summary",),
    "errors": ("ConvatlasError",),
    "inference.export": ("export",),
    "inference.model": ("Ensemble", "evaluate", "load", "predict"),
    "models.catalog": ("list", "spec", "variant"),
    "models.describe": ("compare", "show"),
    "models.scaling": ("compound", "fast", "fit_budget"),
    "train.cross_validation": ("cross_validate",),
    "train.fit": ("fit", "resume"),
    "train.optim": ("depth_groups",),
    "train.recipe": ("Recipe",),
    "train.select_model": ("Budget", "choose_network"),
    "train.settings": ("Settings",),
    "weights.build": ("build",),
    "weights.pretrained": ("published",),
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
