"""The index of the catalog: names as users write them, and what happens where it is not up to date."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

import convatlas
from convatlas.errors import InputError, SpecError
from convatlas.models import index
from convatlas.models.catalog import CATALOG, canonical_name, resolve, stats
from convatlas.models.describe import compare, list_models, list_networks, show


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("ResNet50", "resnet50"), ("resnet-50", "resnet50"), ("ResNet-50", "resnet50"), (" resnet 50 ", "resnet50"),
        ("MobileNet-v2", "mobilenet_v2"), ("mobilenetv2", "mobilenet_v2"), ("VGG16_BN", "vgg16_bn"),
        ("regnet_y-16gf", "regnet_y_16gf"), ("regnet_y_1.6gf", "regnet_y_1_6gf"), ("DenseNet121", "densenet121"),
    ],
)  # fmt: skip
def test_names_are_found_as_users_write_them(written: str, name: str) -> None:
    assert canonical_name(written) == name
    assert resolve(written) == (name, CATALOG[name])
    assert show(written) == show(name)


def test_no_two_networks_share_a_simplified_name() -> None:
    assert all(index.find_name(name, CATALOG) == name for name in CATALOG)
    assert all(index.find_name(name.upper().replace("_", "-"), CATALOG) == name for name in CATALOG)


def test_an_ambiguous_name_is_refused() -> None:
    assert {"regnet_y_16gf", "regnet_y_1_6gf"} <= CATALOG.keys()
    with pytest.raises(SpecError, match="unknown network 'regnety16gf'"):
        canonical_name("regnety16gf")


def test_an_index_that_is_not_up_to_date_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    before = show("lenet1"), compare("lenet1", "lenet4"), list_networks("lenet*", family="lenet"), stats("lenet1")
    monkeypatch.setattr(index, "is_current", lambda: False)
    monkeypatch.setattr("convatlas.models.catalog.is_current", lambda: False)
    known = index.read_entries()
    stale = {name: replace(each, facts=replace(each.facts, parameters=1)) for name, each in known.items()}
    for module in ("index", "catalog"):
        monkeypatch.setattr(f"convatlas.models.{module}.read_entries", lambda: stale)
    monkeypatch.setattr(index, "read_description", lambda name: pytest.fail("the index was read"))
    assert (
        show("lenet1"), compare("lenet1", "lenet4"), list_networks("lenet*", family="lenet"), stats("lenet1"),
    ) == before  # fmt: skip


def test_a_network_that_the_index_lacks_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOG, "my_lenet", CATALOG["lenet1"])
    monkeypatch.setattr(index, "SESSION_NAMES", {"my_lenet"})
    assert "my_lenet" in list_models(max_params="5k")
    assert stats("my_lenet").parameters == stats("lenet1").parameters
    assert show("my_lenet") == show("lenet1")


def test_every_file_of_data_is_packaged() -> None:
    root = Path(convatlas.__file__).parent
    project = tomllib.loads((root.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["convatlas"]
    files = [str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()]
    data = [file for file in files if not file.endswith((".py", ".pyc"))]
    assert "models/index.jsonl" in data
    assert not [file for file in data if not any(fnmatch(file, pattern) for pattern in patterns)]


@pytest.mark.parametrize(
    ("changes", "current"),
    [({}, True), ({"lenet.py": "# changed\n"}, False), ({"body.py": "# changed\n"}, False), (None, True)],
)
def test_changed_source_code_makes_the_index_outdated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str] | None, current: bool
) -> None:
    """Line ends may differ, as on Windows; without source code the index is that of the package."""
    for room in ("families", "detection"):
        (tmp_path / room).mkdir()
        for file in (index.FOLDER / room).glob("*.py") if changes is not None else ():
            text = file.read_text(encoding="utf-8") + (changes or {}).get(file.name, "")
            (tmp_path / room / file.name).write_text(text, encoding="utf-8", newline="\r\n")
    monkeypatch.setattr(index, "FOLDER", tmp_path)
    index.is_current.cache_clear()
    try:
        assert index.is_complete() == current
    finally:
        index.is_current.cache_clear()


@pytest.mark.parametrize("wrong", [None, 5, b"resnet50", ["resnet50"], Path("resnet 50")])
def test_what_is_no_name_is_refused_in_one_line(wrong: Any) -> None:
    with pytest.raises(SpecError, match="unknown network"):
        canonical_name(wrong)
    with pytest.raises(InputError, match="pattern must be a text"):
        list_models(wrong)


def test_a_spec_is_shown() -> None:
    spec = CATALOG["lenet1"].spec
    assert show(spec) == show("lenet1")
    assert "total" in show(spec.scaled(width=2.0))
    with pytest.raises(InputError, match="at least one network"):
        compare()
