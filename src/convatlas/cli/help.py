"""Help pages: one line for each flag and its value, grouped by panel; no name is cut at any width."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

TERM_WIDTH = 28
"""Columns for the name of a flag and its value; the help of a longer one begins on the next line."""

Rows = dict[str, list[tuple[str, str]]]
"""Title of a panel -> names and their help."""


class HelpCommand(TyperCommand):
    """A command with the help page of this module."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _print_page(self, ctx, _parameters(self, ctx))


class HelpGroup(TyperGroup):
    """A group of commands with the help page of this module."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        rows: Rows = defaultdict(list)
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            if not command.hidden:
                title = getattr(command, "rich_help_panel", None)
                # a panel that is not set is a placeholder object of typer
                rows[title if isinstance(title, str) else "Commands"].append((name, _first_sentence(command.help)))
        _print_page(self, ctx, {**rows, **_parameters(self, ctx)})


class DefaultGroup(HelpGroup):
    """A group whose first argument is one of its commands, or else what its hidden command `default` takes."""

    default = "default"

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        command: Any = self.get_command(ctx, self.default)
        others = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx) if name != self.default)
        rows: Rows = {"Commands": [(name, _first_sentence(other.help)) for name, other in others if other is not None]}
        _print_page(command, ctx, {**rows, **_parameters(command, ctx)})


def _first_sentence(text: str | None) -> str:
    sentence, stop, _ = " ".join((text or "").split()).partition(". ")
    return sentence + stop.strip()


def _parameters(command: Any, ctx: Any) -> Rows:
    rows: Rows = defaultdict(list)
    for parameter in command.get_params(ctx):
        if getattr(parameter, "hidden", False):
            continue
        is_argument = parameter.param_type_name == "argument"
        title = getattr(parameter, "rich_help_panel", None)
        rows[title if isinstance(title, str) else "Arguments" if is_argument else "Options"].append(
            (_argument(parameter) if is_argument else _flag(parameter), _describe(parameter))
        )
    if "Options" in rows:  # the flags that every command has come last
        rows["Options"] = rows.pop("Options")
    return rows


def _argument(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _flag(parameter: Any) -> str:
    names = ", ".join(sorted(parameter.opts, key=len))
    if parameter.is_flag:
        return " / ".join([names, *parameter.secondary_opts])
    return f"{names} {parameter.metavar or parameter.name.rpartition('_')[2].upper()}"


def _describe(parameter: Any) -> str:
    shown = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
    if parameter.param_type_name == "argument" or callable(shown):
        shown = None
    elif parameter.secondary_opts:
        shown = parameter.opts[0] if shown else parameter.secondary_opts[0]
    elif isinstance(shown, bool):
        shown = None
    default = "" if shown in (None, "", (), []) else f"[default: {shown}]"
    required = "[required]" if parameter.required and parameter.param_type_name == "option" else ""
    return " ".join(filter(None, [parameter.help or "", default or required]))


def _print_page(command: Any, ctx: Any, rows: Rows) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    width = max(40, min(console.width, 120))
    usage = " ".join([ctx.command_path, *_usage(command, ctx)])
    console.print(Text(f"Usage: {usage}", "bold"), soft_wrap=True)
    for paragraph in (command.help or "").split("\n\n"):
        console.print()
        console.print(textwrap.fill(" ".join(paragraph.split()), width), soft_wrap=True)
    for title, terms in rows.items():
        console.print()
        console.print(Text(title, "bold yellow"), soft_wrap=True)
        for line in _lines(terms, width):
            console.print(line, soft_wrap=True)
    if command.epilog:
        console.print()
        console.print(textwrap.fill(command.epilog, width), soft_wrap=True)


def _usage(command: Any, ctx: Any) -> Iterable[str]:
    yield "[OPTIONS]"
    for parameter in command.get_params(ctx):
        if parameter.param_type_name == "argument":
            name = _argument(parameter)
            yield name if parameter.required else f"[{name}]"
    if isinstance(command, TyperGroup):
        yield "COMMAND [ARGS]..."


def _lines(terms: Iterable[tuple[str, str]], width: int) -> Iterable[Text]:
    indent = 2 + TERM_WIDTH
    for term, text in terms:
        first, *rest = textwrap.wrap(text, width - indent) or [""]
        name = Text("  ").append(term, "cyan")
        if len(term) > TERM_WIDTH - 2:
            yield name
            rest = [first, *rest]
        else:
            yield name.append(" " * (TERM_WIDTH - len(term))).append(first)
        for line in rest:
            yield Text(" " * indent + line)
