"""The `convatlas` command: the typer application, its global options, and what an error looks like."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any, cast

import typer

from convatlas._version import __version__
from convatlas.cli import (
    console,
    data,
    demo,
    deploy,
    diagnose,
    embed,
    evaluate,
    experiment,
    explain,
    features,
    fit,
    latency,
    look,
    recipes,
    runs,
    scale_search,
    search,
    use,
    weights,
)
from convatlas.cli.help import DefaultGroup, HelpCommand, HelpGroup
from convatlas.errors import ConvatlasError, brief
from convatlas.system.load import shorten_spinning

LOOK, TRAIN, USE, EXPLAIN = "Explore networks", "Train", "Use a model", "Explain"

app = typer.Typer(
    name="convatlas",
    help="Convolutional networks from 1989 to today: compare, train, evaluate and deploy them.",
    cls=HelpGroup,
    no_args_is_help=True,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: convatlas list; convatlas draw resnet50; convatlas fit digits --model lenet5_modern",
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Check and convert data sets.", cls=HelpGroup, no_args_is_help=True)
search_app = typer.Typer(
    help="Search the most accurate network within limits of a device.", cls=DefaultGroup, no_args_is_help=True
)
weights_app = typer.Typer(help="List, download, import and verify weights.", cls=HelpGroup, no_args_is_help=True)

latency_app = typer.Typer(
    help="Measure latencies for a search on another machine.", cls=HelpGroup, no_args_is_help=True
)

COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    LOOK: (look.list_, look.show, look.cost, look.compare, look.draw, look.timeline, look.scale),
    TRAIN: (fit.fit, scale_search.scale_search, runs.resume, runs.finish, recipes.recipes, demo.demo),
    USE: (use.predict, evaluate.evaluate, deploy.export, deploy.bench, deploy.serve),
    EXPLAIN: (explain.explain, features.features, embed.embed, diagnose.diagnose, experiment.experiment),
}


def _add(commands: Iterable[Callable[..., None]], group: typer.Typer, panel: str | None = None) -> None:
    for command in commands:
        group.command(command.__name__.strip("_").replace("_", "-"), cls=HelpCommand, rich_help_panel=panel)(command)


for title, commands in COMMANDS.items():
    _add(commands, app, title)
_add((data.check, data.convert), data_app)
_add((weights.list_, weights.pull, weights.import_, weights.verify), weights_app)
search_app.command(DefaultGroup.default, cls=HelpCommand, hidden=True)(search.search)
_add((search.worker, search.report), search_app)
app.add_typer(search_app, name="search", rich_help_panel=TRAIN)
_add((latency.record, latency.import_), latency_app)
app.add_typer(latency_app, name="latency", rich_help_panel=TRAIN)
app.add_typer(data_app, name="data", rich_help_panel=TRAIN)
app.add_typer(weights_app, name="weights", rich_help_panel=USE)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"convatlas {__version__}")
        raise typer.Exit


@app.callback()
def global_options(
    offline: Annotated[bool, typer.Option("--offline", help="Never access the internet.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    if offline:
        os.environ["CONVATLAS_OFFLINE"] = "1"


UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])
"""What the parser of the command line raises; typer exports only its subclass."""


def main() -> None:
    """Run the command. An error that the user can fix is one line on standard error, with exit code 2."""
    console.accept_any_text()
    shorten_spinning()
    if os.environ.get("RANK", "0") != "0":  # of several processes, rank 0 prints
        console.console.quiet = True
    try:
        code = app(prog_name="convatlas", standalone_mode=False)  # also as `python -m convatlas`
    except typer.Abort:
        sys.exit(130)
    except UsageError as error:
        _print_usage_error(error)
        sys.exit(2)
    except ConvatlasError as error:
        console.print_error(str(error))
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        from convatlas.system.devices import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        console.print_error(f"out of memory ({brief(error)}); use a smaller --batch or --resolution, or fewer images")
        sys.exit(2)
    except OSError as error:  # what no check foresaw: a path that is too long, a folder without read permission
        console.print_error(f"{error.filename or 'output'}: {error.strerror or error}")
        sys.exit(2)
    if code:
        sys.exit(code)


def _print_usage_error(error: Any) -> None:
    """Print an error of the command line as one line, beginning with the flag or argument."""
    message = " ".join(error.format_message().split()).rstrip(".")
    if not message:  # a group without a command: its help page has been printed
        return
    if type(error) is typer.BadParameter and error.param is not None:
        names = error.param.opts if error.param.param_type_name == "option" else [error.param.metavar or ""]
        message = f"{max(names, key=len)}: {error.message}"
    else:
        message = message[:1].lower() + message[1:]
        message += f"; see {error.ctx.command_path} --help" if error.ctx is not None else ""
    console.print_error(message)
