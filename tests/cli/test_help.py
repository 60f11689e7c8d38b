"""Help pages: whole flags at 80 columns, panels, sentences; and usage errors of one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from commands import Command, check_refused
from convatlas.cli.app import app

ROOT: Any = typer.main.get_command(app)


def walk(command: Any = ROOT, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command and group with its path."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, *path, name)


COMMANDS = dict(walk())


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_no_flag_is_cut_at_80_columns(convatlas: Command, path: tuple[str, ...]) -> None:
    outcome = convatlas(*path, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"Usage: convatlas {' '.join(path)}".rstrip())
    assert max(map(len, outcome.out.splitlines())) <= 80
    shown = re.split(r"[\s,|]+", outcome.out)
    for parameter in COMMANDS[path].params:
        names = [*parameter.opts, *parameter.secondary_opts] if parameter.param_type_name == "option" else []
        assert set(names) <= set(shown)
    assert "…" not in outcome.out


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_texts_are_sentences(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    for text in [command.help, *(p.help for p in command.params if not re.search("completion|^help$", p.name))]:
        assert re.fullmatch(r"[A-Z`-].*\.", text, re.DOTALL), text
        assert not re.match(r"(Of|As|In|With|For|To) ", text), text


def test_the_flags_of_fit_are_in_panels(convatlas: Command) -> None:
    page = convatlas("fit", "--help").out
    titles = [
        "Arguments",
        "Model",
        "Model selection (--model auto)",
        "Recipe",
        "Data",
        "Execution",
        "Output",
        "Options",
    ]
    assert [line for line in page.splitlines() if line in titles] == titles


def test_a_command_group_without_a_command_prints_its_help(convatlas: Command) -> None:
    for path in ((), ("data",), ("weights",)):
        outcome = convatlas(*path)
        assert (outcome.code, outcome.err) == (2, "")
        assert "Usage: convatlas" in outcome.out


def test_version(convatlas: Command) -> None:
    assert convatlas("--version").out.startswith("convatlas 0.")


FIT = ("fit", "digits", "--model", "lenet1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lst",), "no such command 'lst'"),
        (("fit",), "missing argument 'DATA'"),
        (("fit", "digits"), "missing option '--model'"),
        ((*FIT, "--kernals"), "no such option: --kernals"),
        ((*FIT, "--keep-heap"), "no such option: --keep-heap"),
        ((*FIT, "--epochs"), "--epochs"),
        ((*FIT, "--epochs", "ten"), "--epochs: must be an integer, got ten"),
        ((*FIT, "--folds", "-1"), "--folds: must be an integer >= 0, got -1"),
        ((*FIT, "--lr", "10ms"), "--lr: must be a number or find, got 10ms"),
        ((*FIT, "--max-latency", "5M"), "--max-latency: 5M is a count; write a time such as 10ms"),
        ((*FIT, "--max-latency", "30"), "--max-latency: 30 has no unit; write a time such as 10ms"),
        ((*FIT, "--max-params", "30ms"), "--max-params: 30ms is a time; write a count such as 5M"),
        ((*FIT, "--search-time", "300"), "--search-time: 300 has no unit"),
        ((*FIT, "--val-share", "20"), "--val-share: must be a share in [0, 1], got 20"),
        ((*FIT, "--max-unreadable", "120%"), "--max-unreadable: must be a share in [0, 1], got 120%"),
        ((*FIT, "--checkpoint-every", "often"), "--checkpoint-every: must be a time such as 30s or a number of steps"),
        ((*FIT, "--max-latency", "10ms"), "--max-latency: only with --model auto, got lenet1"),
        (("list", "--max-params", "30ms"), "--max-params: 30ms is a time; write a count such as 5M"),
        (("scale", "resnet18", "--macs", "1GB"), "--macs: 1GB is a size in bytes; write a count such as 5M"),
        (("scale", "resnet18", "--width", "wide"), "--width: must be a number, got wide"),
        (("serve", "x", "--max-bytes", "5M"), "--max-bytes: 5M is a count; write a size in bytes such as 32MB"),
        (("serve", "x", "--wait", "2"), "--wait: 2 has no unit; write a time such as 10ms"),
        (("serve", "x", "--port", "70000"), "--port: must be an integer >= 0 and <= 65535, got 70000"),
        (("export", "x", "--to", "onnx", "--max-accuracy-drop", "0.5"), "--max-accuracy-drop: 0.5 has no unit"),
        (("predict", "x", "y", "--threshold", "2"), "--threshold: must be a probability in [0, 1], got 2"),
        (("predict", "x", "y", "--batch", "0"), "--batch: must be an integer >= 1, got 0"),
        (("bench", "x", "--duration", "3"), "--duration: 3 has no unit; write a time such as 10ms"),
    ],
)
def test_usage_errors_are_one_line(convatlas: Command, arguments: tuple[str, ...], message: str) -> None:
    check_refused(convatlas(*arguments), message)
