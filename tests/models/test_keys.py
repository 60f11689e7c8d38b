"""Key rules: the examples in the docstrings of all mappings hold, and every mapping has one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Iterator

import pytest

from convatlas.models import families
from convatlas.models.catalog import CATALOG, FAMILIES, build_fresh
from convatlas.models.keys import KeyMapping, rename, spec_types

EXAMPLE = re.compile(r'"([^"]+)" -> "([^"]+)"')


def mappings() -> Iterator[tuple[str, KeyMapping, type]]:
    """Yield (module.function, mapping, spec type) of every function from one spec type to rules."""
    for module in pkgutil.iter_modules(families.__path__):
        home = importlib.import_module(f"{families.__name__}.{module.name}")
        for name, function in inspect.getmembers(home, inspect.isfunction):
            if function.__module__ != home.__name__ or function.__annotations__.get("return") != "Rules":
                continue
            spec_type = typing.get_type_hints(function)["spec"]
            if isinstance(spec_type, type):
                yield f"{module.name}.{name}", function, spec_type
    for library, function in FAMILIES["rcnn"].key_mappings.items():  # made of those of the other families
        yield f"rcnn.{library}", function, *spec_types(function)


MAPPINGS = {name: (function, spec_type) for name, function, spec_type in mappings()}
EXAMPLES = [
    (name, theirs, ours)
    for name, (function, _) in MAPPINGS.items()
    for theirs, ours in EXAMPLE.findall(function.__doc__ or "")
]


@pytest.mark.parametrize(("name", "theirs", "ours"), EXAMPLES)
def test_example_of_the_docstring(name: str, theirs: str, ours: str) -> None:
    function, spec_type = MAPPINGS[name]
    row = next(row for row in CATALOG.values() if type(row.spec) is spec_type and row.upstream)
    assert rename(theirs, function(row.spec)) == ours
    assert ours in build_fresh(row.spec, classes=10, channels=3, device="meta").state_dict()


@pytest.mark.parametrize("name", MAPPINGS)
def test_every_mapping_has_an_example(name: str) -> None:
    assert name in {example[0] for example in EXAMPLES}


def test_every_mapping_of_the_catalog_is_tested() -> None:
    """A mapping of several spec types dispatches to one of each, with a name such as "timm_v2"."""
    functions = [function for function, _ in MAPPINGS.values()]
    tested = {(function.__name__.partition("_")[0], spec_type) for function, spec_type in MAPPINGS.values()}
    for family in FAMILIES.values():
        for mapping in family.key_mappings.values():
            assert mapping in functions or all((mapping.__name__, kind) in tested for kind in spec_types(mapping))
