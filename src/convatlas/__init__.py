"""convatlas: convolutional networks from 1989 on, from one small vocabulary.

import convatlas as ca
ca.list_models("resnet*", max_params=30e6)  # names
network = ca.build("resnet18", classes=10)  # a torch module
ca.cost(network)                            # parameters, MACs, activations, receptive field, by layer
run = ca.fit("digits", "lenet5")            # train; a run directory with a model file
model = ca.load(run.model_file)
model.predict("seven.png")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from convatlas._version import __version__ as __version__

if TYPE_CHECKING:
    from convatlas.core.compose import Chain, Concat, Product, Sum
    from convatlas.core.cost import cost
    from convatlas.core.features import feature_info, taps_at_strides
    from convatlas.core.network import Network, taps
    from convatlas.core.preprocessing import Preprocessing
    from convatlas.core.spec import diff
    from convatlas.core.summary import summary
    from convatlas.data.augment import Augment
    from convatlas.errors import ConvatlasError
    from convatlas.inference.export import export
    from convatlas.inference.model import Ensemble, evaluate, load, predict
    from convatlas.models.catalog import list_models, spec, variant
    from convatlas.models.describe import compare, show
    from convatlas.models.scaling import fit_budget, scale_compound, scale_fast
    from convatlas.train.cross_validation import cross_validate
    from convatlas.train.fit import fit, resume
    from convatlas.train.optim import param_groups_by_depth
    from convatlas.train.recipe import Recipe
    from convatlas.train.select_model import Budget, select_model
    from convatlas.train.settings import DataOptions, ExecutionOptions, RunOptions
    from convatlas.weights.build import build
    from convatlas.weights.imported import import_weights
    from convatlas.weights.pretrained import list_weights

_ROOMS = {
    "core.compose": ("Chain", "Concat", "Product", "Sum"),
    "core.cost": ("cost",),
    "core.features": ("feature_info", "taps_at_strides"),
    "core.network": ("Network", "taps"),
    "core.preprocessing": ("Preprocessing",),
    "core.spec": ("diff",),
    "core.summary": ("summary",),
    "data.augment": ("Augment",),
    "errors": ("ConvatlasError",),
    "inference.export": ("export",),
    "inference.model": ("Ensemble", "evaluate", "load", "predict"),
    "models.catalog": ("list_models", "spec", "variant"),
    "models.describe": ("compare", "show"),
    "models.scaling": ("fit_budget", "scale_compound", "scale_fast"),
    "train.cross_validation": ("cross_validate",),
    "train.fit": ("fit", "resume"),
    "train.optim": ("param_groups_by_depth",),
    "train.recipe": ("Recipe",),
    "train.select_model": ("Budget", "select_model"),
    "train.settings": ("DataOptions", "ExecutionOptions", "RunOptions"),
    "weights.build": ("build",),
    "weights.imported": ("import_weights",),
    "weights.pretrained": ("list_weights",),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "Augment", "Budget", "Chain", "Concat", "ConvatlasError", "DataOptions", "Ensemble", "ExecutionOptions",
    "Network", "Preprocessing", "Product", "Recipe", "RunOptions", "Sum", "build", "compare", "cost",
    "cross_validate", "diff", "evaluate", "export", "feature_info", "fit", "fit_budget", "import_weights",
    "list_models", "list_weights", "load", "param_groups_by_depth", "predict", "resume", "scale_compound",
    "scale_fast", "select_model", "show", "spec", "summary", "taps", "taps_at_strides", "variant",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import convatlas` costs next to nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'convatlas' has no attribute {name!r}")
    home = importlib.import_module(f"convatlas.{_HOME[name]}")
    value = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
