"""The pages of the server for browsers, and the description of the API for programs."""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from convatlas.inference.load import load
from convatlas.inference.model import Model
from convatlas.train.run import Run
from http_client import FORM, ask, form, running

pytest.importorskip("fastapi")

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
VOID = {"meta", "link", "input", "img", "br"}


@pytest.fixture(scope="module")
def model(colored: Run) -> Model:
    return load(colored.model_file)


@pytest.fixture(scope="module")
def port(model: Model) -> Iterator[int]:
    with running(model, token="secret") as found:
        yield found


class Page(HTMLParser):
    """Checks that elements are nested, and collects the addresses that a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert not [name for name in names if name.startswith("on") or name == "style"], tag
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_need_no_token_name_no_model_and_load_nothing(port: int, model: Model, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers=BROWSER)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    assert (response.status, response.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert set(Page(text).addresses) <= {"data:,", "docs", "openapi.json", "./"}
    assert not re.search(rf"\b(ant|bee|{model.header.name})\b", text)
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        for block in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL):
            assert f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'" in policy


def test_programs_get_json_and_need_the_token(port: int, model: Model) -> None:
    for headers in ({}, {"Accept": "*/*"}, {"Accept": "application/json"}):
        assert ask(port, "/", headers=headers)[0] == 401
        status, content = ask(port, "/", headers=headers, token="secret")
        assert (status, content["classes"], content["license"]) == (200, list(model.classes), None)
        assert content["input_px"] == model.header.preprocessing.resolution
    assert ask(port, "/predict", b"x", headers=BROWSER)[0] == 401
    assert ask(port, "/openapi.json", headers=BROWSER)[0] == 401


def check_schema(value: Any, schema: Mapping[str, Any], api: Mapping[str, Any]) -> None:
    """Check a value against the parts of JSON Schema that the description uses."""
    if "$ref" in schema:
        schema = api["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    types = {"string": str, "null": type(None), "number": (int, float), "integer": int, "array": list, "object": dict}
    assert any(isinstance(value, types[kind]) for kind in kinds), (value, kinds)
    if isinstance(value, list):
        for item in value:
            check_schema(item, schema["items"], api)
    if isinstance(value, dict):
        assert set(schema.get("required", ())) <= set(value)
        for key, item in value.items():
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            assert inner, key
            check_schema(item, inner, api)
    if isinstance(value, int | float):
        assert schema.get("minimum", value) <= value <= schema.get("maximum", value)


def test_responses_have_the_schema_of_the_description(port: int, images: Path) -> None:
    _, api = ask(port, "/openapi.json", token="secret")
    operation = api["paths"]["/predict"]["post"]
    defaults = {each["name"]: each["schema"].get("default") for each in operation["parameters"]}
    assert defaults == {"top": None, "threshold": None, "every": None}
    assert "by default 3" in operation["parameters"][0]["description"]
    body = form([("a.png", (images / "val/bee/01.png").read_bytes()), ("b.png", b"nothing")])
    status, content = ask(port, "/predict?threshold=1", body, kind=FORM, token="secret")
    assert status == 200
    check_schema(content, operation["responses"]["200"]["content"]["application/json"]["schema"], api)
    assert content["predictions"][1]["error"]
    for query in ("top=0", "top=many", "threshold=nan", "threshold=2"):
        status, content = ask(port, f"/predict?{query}", b"x", token="secret")
        assert status == 422
        assert content["detail"].startswith(f"{query.partition('=')[0]}: ")


def test_the_page_of_the_api_lists_all_operations_and_keys(port: int) -> None:
    _, api = ask(port, "/openapi.json", token="secret")
    _, page = ask(port, "/docs")
    assert all(path in page for path in api["paths"])
    assert all(f"<td>{key}</td>" in page for key in api["components"]["schemas"]["Prediction"]["properties"])
    assert f"http://127.0.0.1:{port}/predict" in page
