"""Optional libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convatlas.errors import EngineError

if TYPE_CHECKING:
    pass


def needed(module: str, extra: str) -> Any:
    """Import a library of an extra; raises EngineError that says how to install it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise EngineError(f"{module} is not installed; pip install 'convatlas[{extra}]'") from None
