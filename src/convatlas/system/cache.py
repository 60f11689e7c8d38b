"""The cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return where downloads are kept: $CONVATLAS_CACHE, or ~/.cache/convatlas."""
    return Path(os.environ.get("CONVATLAS_CACHE") or Path.home() / ".cache" / "convatlas")
