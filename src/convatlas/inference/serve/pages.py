"""The pages of the server for browsers: one that predicts dropped files, and one that describes the API.

They contain nothing about the model, use no other server, and run no script but their own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi.responses import HTMLResponse

EXAMPLES = """\
curl -H 'Content-Type: image/jpeg' --data-binary @cat.jpg 'ADDRESS/predict?top=3'
curl -F images=@cat.jpg -F images=@dog.jpg 'ADDRESS/predict?threshold=0.8'
curl -H 'Authorization: Bearer TOKEN' -F images=@cat.jpg ADDRESS/predict"""

VIDEO_EXAMPLES = """\
curl -H 'Content-Type: video/mp4' --data-binary @dance.mp4 'ADDRESS/predict?top=3'
curl -F videos=@dance.mp4 -F videos=@jump.mp4 'ADDRESS/predict?every=1'
curl -H 'Authorization: Bearer TOKEN' -F videos=@dance.mp4 ADDRESS/predict"""


def accepts_page(accept: str) -> bool:
    """Return whether a client with this Accept header is a browser, which gets a page instead of JSON."""
    return any(kind.partition(";")[0].strip().lower() == "text/html" for kind in accept.split(","))


@cache
def _predict_page() -> str:
    return files("convatlas.inference.serve").joinpath("page.html").read_text(encoding="utf-8")


def predict_page() -> HTMLResponse:
    """Return the page on which images or videos are dropped; its script reads the model and the predictions as JSON."""
    return _respond(_predict_page())


def api_page(api: Mapping[str, Any], address: str) -> HTMLResponse:
    """Return an OpenAPI description as a page; title and description, which name the model, are not used.

    address: URL of the server, for the examples.
    """
    style = _blocks(_predict_page(), "style")[0]
    fields = api["components"]["schemas"]["Prediction"]["properties"]
    examples = VIDEO_EXAMPLES if "seconds" in fields else EXAMPLES
    parts = [
        "<h1>API description</h1>",
        '<p class="note">For programs: <a href="openapi.json">openapi.json</a> (OpenAPI 3.1). '
        '<a href="./">Predict in the browser</a>.</p>',
        f"<pre>{html.escape(examples.replace('ADDRESS', address.rstrip('/')))}</pre>",
        *(
            part
            for path, operations in api["paths"].items()
            for method, operation in operations.items()
            for part in _operation(method.upper(), path, operation)
        ),
        "<h2>A prediction</h2>",
        _table((name, _type(field), field.get("description", "")) for name, field in fields.items()),
    ]
    return _respond(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>API description</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<style>{style}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> list[str]:
    parts = [f"<h2>{method} {html.escape(path)}</h2>", f"<p>{html.escape(operation.get('description', ''))}</p>"]
    if parameters := operation.get("parameters"):
        parts.append(_table((each["name"], _type(each["schema"]), each.get("description", "")) for each in parameters))
    if body := operation.get("requestBody"):
        parts.append(f'<p class="note">Body: {html.escape(", ".join(body["content"]))}</p>')
    responses = operation.get("responses", {})
    parts.append(_table((status, response["description"]) for status, response in responses.items()))
    return parts


def _type(schema: Mapping[str, Any]) -> str:
    """Return the type of a schema in words, with its bounds and default."""
    variants = schema.get("anyOf", [schema])
    kinds = [kind for each in variants for kind in ([each["type"]] if isinstance(each["type"], str) else each["type"])]
    text = " or ".join(kinds)
    bounds = [
        f"in [{each['minimum']:g}, {each['maximum']:g}]" if "maximum" in each else f">= {each['minimum']:g}"
        for each in variants
        if "minimum" in each
    ]
    default = [f"default {schema['default']}"] if schema.get("default") is not None else []
    return ", ".join([text, *bounds, *default])


def _table(rows: Iterable[Iterable[object]]) -> str:
    lines = ("".join(f"<td>{html.escape(str(cell).replace('`', ''))}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _blocks(page: str, tag: str) -> list[str]:
    return re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)


def _respond(page: str) -> HTMLResponse:
    """Return a page that may load and run only what is written in it, and connect to this server alone."""

    def sources(tag: str) -> str:
        digests = (hashlib.sha256(block.encode()).digest() for block in _blocks(page, tag))
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests) or "'none'"

    policy = (
        f"default-src 'none'; script-src {sources('script')}; style-src {sources('style')}; img-src blob: data:; "
        "media-src blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
        "Vary": "Accept", "Cache-Control": "no-cache",
    }  # fmt: skip
    return HTMLResponse(page, headers=headers)
