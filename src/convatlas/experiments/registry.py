"""The experiments, found by listing the files of `claims`."""

from __future__ import annotations

import importlib
import pkgutil

from convatlas.errors import ExperimentError, brief, nearest
from convatlas.experiments import claims
from convatlas.experiments.experiment import Experiment


def names() -> list[str]:
    """Return the names of all experiments, in order."""
    return sorted(module.name for module in pkgutil.iter_modules(claims.__path__) if not module.name.startswith("_"))


def find(name: str) -> Experiment:
    """Return an experiment by name, with - or _; raises ExperimentError if there is none, or its file has an error."""
    module = name.replace("-", "_")
    if module not in names():
        raise ExperimentError(f"experiment: no {name!r}{nearest(name, names())}; --list lists the experiments")
    try:
        experiment: Experiment = importlib.import_module(f"{claims.__name__}.{module}").EXPERIMENT
    except Exception as error:
        raise ExperimentError(f"experiment: {module}.py: {type(error).__name__}: {brief(error)}") from error
    return experiment
