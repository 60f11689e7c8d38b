"""Optional libraries, imported when they are first used."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from convatlas.errors import ConvatlasError, EngineError


def is_installed(*modules: str) -> bool:
    """Return whether all of these top-level modules can be found; nothing is imported."""
    return all(importlib.util.find_spec(module) is not None for module in modules)


def import_optional(module: str, package: str, *, where: object = "", error: type[ConvatlasError] = EngineError) -> Any:
    """Import a module that convatlas does not depend on.

    package: what `pip install` needs: a distribution, or an extra such as "convatlas[onnx]".
    where: the file, option or feature that needs it; the beginning of the message.
    Raises `error` with the command that installs the module.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        quoted = f"'{package}'" if "[" in package else package
        start = f"{where}: " if str(where) else ""
        raise error(f"{start}{module.partition('.')[0]} is not installed; pip install {quoted}") from None
