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
    from convatlas import search
    from convatlas.core.compose import Chain, Concat, Product, Sum
    from convatlas.core.cost import cost
    from convatlas.core.features import feature_info, taps_at_strides
    from convatlas.core.network import Network, taps
    from convatlas.core.preprocessing import Preprocessing
    from convatlas.core.spec import diff
    from convatlas.core.summary import summary
    from convatlas.data.augment import Augment
    from convatlas.data.check import check_data
    from convatlas.data.convert import convert_data
    from convatlas.draw.diagram import diagram
    from convatlas.draw.timeline import timeline
    from convatlas.errors import ConvatlasError
    from convatlas.inference.embed import embed
    from convatlas.inference.export import export
    from convatlas.inference.functions import evaluate, explain, predict
    from convatlas.inference.load import load
    from convatlas.inference.model import Ensemble
    from convatlas.models.catalog import spec, variant
    from convatlas.models.describe import list_models
    from convatlas.models.families.rcnn import FasterRCNN, KeypointRCNN, MaskRCNN
    from convatlas.models.register import register, unregister
    from convatlas.models.scaling import fit_budget, scale_compound, scale_fast
    from convatlas.overview.diagnose import diagnose
    from convatlas.overview.look import compare, show
    from convatlas.search.limits import Limits
    from convatlas.search.select_model import select_model
    from convatlas.tasks.detection.coco import evaluate_coco
    from convatlas.tasks.detection.objects import Objects
    from convatlas.tasks.detection.skeleton import Skeleton, read_skeleton
    from convatlas.train.cross_validation import cross_validate
    from convatlas.train.fit import fit
    from convatlas.train.optim import param_groups_by_depth
    from convatlas.train.preview import preview
    from convatlas.train.recipe import Recipe
    from convatlas.train.resume import finish, resume
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
    "data.check": ("check_data",),
    "data.convert": ("convert_data",),
    "draw.diagram": ("diagram",),
    "draw.timeline": ("timeline",),
    "errors": ("ConvatlasError",),
    "inference.embed": ("embed",),
    "inference.export": ("export",),
    "inference.functions": ("evaluate", "explain", "predict"),
    "inference.load": ("load",),
    "inference.model": ("Ensemble",),
    "models.catalog": ("spec", "variant"),
    "models.describe": ("list_models",),
    "models.families.rcnn": ("FasterRCNN", "KeypointRCNN", "MaskRCNN"),
    "models.register": ("register", "unregister"),
    "models.scaling": ("fit_budget", "scale_compound", "scale_fast"),
    "overview.diagnose": ("diagnose",),
    "overview.look": ("compare", "show"),
    "search.limits": ("Limits",),
    "search.select_model": ("select_model",),
    "tasks.detection.coco": ("evaluate_coco",),
    "tasks.detection.objects": ("Objects",),
    "tasks.detection.skeleton": ("Skeleton", "read_skeleton"),
    "train.cross_validation": ("cross_validate",),
    "train.fit": ("fit",),
    "train.optim": ("param_groups_by_depth",),
    "train.preview": ("preview",),
    "train.recipe": ("Recipe",),
    "train.resume": ("finish", "resume"),
    "train.settings": ("DataOptions", "ExecutionOptions", "RunOptions"),
    "weights.build": ("build",),
    "weights.imported": ("import_weights",),
    "weights.pretrained": ("list_weights",),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

_PACKAGES = ("search",)
"""Packages that are public as a whole: `ca.search.explore`."""

_LISTS = ("list_networks", "networks", "models", "list_architectures", "available_models", "model_names", "zoo")
"""Other words for the list of networks."""

__all__ = [
    "Augment", "Chain", "Concat", "ConvatlasError", "DataOptions", "Ensemble", "ExecutionOptions",
    "FasterRCNN", "KeypointRCNN", "Limits", "MaskRCNN", "Network", "Objects", "Preprocessing", "Product", "Recipe",
    "RunOptions", "Skeleton", "Sum", "build", "check_data", "compare", "convert_data", "cost", "cross_validate",
    "diagnose", "diagram", "diff", "embed", "evaluate", "evaluate_coco", "explain", "export", "feature_info",
    "finish", "fit", "fit_budget", "import_weights", "list_models", "list_weights", "load", "param_groups_by_depth",
    "predict", "preview", "read_skeleton", "register", "resume", "scale_compound", "scale_fast", "search",
    "select_model", "show", "spec", "summary", "taps", "taps_at_strides", "timeline", "unregister", "variant",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import convatlas` costs next to nothing."""
    if name in _PACKAGES:
        return importlib.import_module(f"convatlas.{name}")
    if name not in _HOME:
        from convatlas.errors import nearest

        hint = " (did you mean list_models?)" if name in _LISTS else nearest(name, __all__)
        raise AttributeError(f"module 'convatlas' has no attribute {name!r}{hint}", name=name)
    home = importlib.import_module(f"convatlas.{_HOME[name]}")
    value = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
