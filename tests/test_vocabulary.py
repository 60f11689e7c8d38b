"""The language: names, flags, help texts and headings use the terms of the field, and none of the words listed here."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import convatlas as ca
from convatlas.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

WORDS = {
    "picture": "image, plot or figure", "pictures": "images", "photograph": "image", "photographs": "images",
    "several": "multi-label, multiple", "tagging": "multi-label classification", "tags": "labels",
    "race": "successive halving, search", "races": "searches", "runner": "candidate", "runners": "candidates",
    "told": "a noun for the value", "held": "a noun for the value", "seen": "a noun for the value",
    "found": "a noun for the value", "said": "predicted", "readied": "prepared", "gathered": "prefetched",
    "mend": "fix", "mended": "fixed", "broken": "unreadable", "sealed": "model file", "seal": "write",
    "licence": "license", "catalogue": "catalog", "optimiser": "optimizer", "colour": "color", "grey": "gray",
    "claimed": "reported", "claim": "reported metrics", "overlooked": "false negatives",
    "invented": "false positives", "ledger": "CSV", "peer": "upstream", "peers": "upstream",
    "importance": "class weights", "judge": "evaluate", "judged": "evaluated", "guessed": "chance level",
    "flatter": "optimistically biased", "flattering": "optimistically biased", "sees": "receptive field",
    "answer": "prediction", "answers": "predictions", "answered": "predicted", "grow": "build",
    "heap": "retain_malloc", "kernels": "fused_norms", "layout": "memory_format", "roomy": "for_random_crop",
}  # fmt: skip
"""Word -> the term that is meant."""

PHRASES = (
    "whole number", "is no ", "are no numbers", "at hand", "does not suffice", "left out", "so many", "where left",
    "goes on", "go on ", "the middle one", "nothing to complain", "own kernels", "known for", "none of these",
    "as if it never", "comes to", "number from 1 on", "from 0 on", "from 1 on", "the whole way", "what there is",
    "bring in", "where else", "ranks come", "processes meet",
)  # fmt: skip

OLD_FLAGS = (
    "--size", "--small", "--max-broken", "--race", "--views", "--with", "--most-lost", "--kernels", "--keep-heap",
    "--layout", "--checkpoint-seconds", "--checkpoint-steps", "--licence", "--ledger", "--picture",
)  # fmt: skip


def words_of(name: str) -> list[str]:
    """Split an identifier: `max_broken`, `PictureFolder`, `--max-broken`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[_\-./]", " ", name)
    return spaced.lower().split()


PLAIN_ENGLISH = {"several", "grow", "found", "seen"}
"""Words that are wrong as names, flags and headings, but not in the sentences of a docstring."""


def problems(text: str) -> list[str]:
    """Return the words and phrases in a text that are not the terms of the field."""
    lower = " ".join(text.lower().split()) + " "
    words = [f"{word}: write {WORDS[word]}" for word in re.findall(r"[a-z]+", lower) if word in WORDS]
    return words + [phrase for phrase in PHRASES if phrase in lower]


def public_members(value: Any) -> Iterator[str]:
    """Yield the names of attributes, methods and parameters of a public class or function that are our own."""
    classes = (
        [kind for kind in inspect.getmro(value) if kind.__module__.startswith("convatlas")]
        if inspect.isclass(value)
        else []
    )
    functions = [] if classes else [value]
    for kind in classes:
        for name, member in vars(kind).items():
            if not name.startswith("_"):
                yield name
                functions.append(inspect.unwrap(getattr(member, "__func__", member)))
        yield from (name for name in getattr(kind, "__annotations__", {}) if not name.startswith("_"))
    for function in functions:
        if inspect.isfunction(function):
            yield from inspect.signature(function).parameters


def commands(command: Any = None, *path: str) -> Iterator[tuple[str, Any]]:
    command = command or typer.main.get_command(app)
    yield " ".join(["convatlas", *path]), command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, *path, name)


COMMANDS = dict(commands())


@pytest.mark.parametrize("name", ca.__all__)
def test_public_names(name: str) -> None:
    members = [name, *public_members(getattr(ca, name))]
    assert {member: bad for member in members if (bad := [w for w in words_of(member) if w in WORDS])} == {}


@pytest.mark.parametrize("name", ca.__all__)
def test_public_docstrings(name: str) -> None:
    text = inspect.getdoc(getattr(ca, name)) or ""
    assert [problem for problem in problems(text) if problem.partition(":")[0] not in PLAIN_ENGLISH] == []


@pytest.mark.parametrize("path", COMMANDS)
def test_flags_and_help_texts(path: str) -> None:
    command = COMMANDS[path]
    texts = [path, command.help or "", command.epilog or ""]
    for parameter in command.params:
        texts += [*parameter.opts, *parameter.secondary_opts, parameter.help or "", parameter.metavar or ""]
    assert {text: bad for text in texts if (bad := problems(text))} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_headings_and_code_of_the_documentation(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    # `tags` is a column name that the tables of users have
    keys = [span for span in re.findall(r"`([^`\n]+)`", prose) if re.fullmatch(r"[\w.]+", span) and span != "tags"]
    wrong = {heading: bad for heading in headings if (bad := problems(heading))}
    wrong |= {key: bad for key in keys if (bad := [word for word in words_of(key) if word in WORDS])}
    assert wrong == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_in_the_documentation_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    old = [flag for flag in OLD_FLAGS if re.search(rf"{flag}(?![\w-])", text)]
    assert old == []
    known = {name for command in COMMANDS.values() for p in command.params for name in [*p.opts, *p.secondary_opts]}
    lines = re.findall(r"convatlas [^\n`]*", text)
    assert {flag for line in lines for flag in re.findall(r"(?<![\w-])--[a-z][\w-]+", line)} <= known | {"--help"}
