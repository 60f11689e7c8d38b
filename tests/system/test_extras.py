"""Optional libraries: imported on use, with an error that says how to install them."""

from __future__ import annotations

import json
import sys

import pytest

from convatlas.errors import DataError, EngineError
from convatlas.system.extras import import_optional, is_installed


def test_an_installed_module_is_imported() -> None:
    assert import_optional("json", "json") is json
    assert is_installed("json", "sys")
    assert not is_installed("json", "no_such_module")


def test_a_missing_module_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("onnxruntime", "onnxruntime.quantization"):  # another test may have imported either
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EngineError, match=r"^onnxruntime is not installed; pip install 'convatlas\[onnx\]'$"):
        import_optional("onnxruntime.quantization", "convatlas[onnx]")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(DataError, match=r"^a\.tiff: tifffile is not installed; pip install tifffile$"):
        import_optional("tifffile", "tifffile", where="a.tiff", error=DataError)
