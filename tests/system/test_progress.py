"""The progress display: a bar in a terminal, a line in a notebook, plain lines or nothing in a log file."""

from __future__ import annotations

import io
import sys
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from convatlas.system import progress
from convatlas.system.progress import progress_display


def use(console: Console, **options: Any) -> None:
    with progress_display(console=console, **options) as advance:
        for done in range(5):
            advance(f"training: loss {done}", done + 1, 5)
        advance("reading", 1, 0)


def test_a_terminal_gets_one_bar_per_kind_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = io.StringIO()
    use(Console(file=out, force_terminal=True, width=80))
    assert "training: loss 4" in out.getvalue()
    assert "5/5" in out.getvalue()
    assert "reading" in out.getvalue()


def test_redirected_standard_output_stays_where_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    bars = io.StringIO()
    with progress_display(console=Console(file=bars, force_terminal=True)) as advance:
        advance("predicting", 1, 2)
        print('{"label": "cat"}')
    assert capsys.readouterr().out == '{"label": "cat"}\n'
    assert "label" not in bars.getvalue()


def test_a_log_file_gets_a_line_per_interval_or_nothing() -> None:
    out = io.StringIO()
    use(Console(file=out))
    assert out.getvalue() == ""
    use(Console(file=out), line_interval=0.0)
    assert out.getvalue().splitlines()[-2:] == ["training: loss 4 (5 of 5)", "reading (1)"]


@pytest.mark.parametrize("options", [{"enabled": False}, {"line_interval": 0.0}])
def test_nothing_is_shown_if_disabled_or_quiet(options: dict[str, Any]) -> None:
    out = io.StringIO()
    use(Console(file=out, force_terminal=True, quiet="enabled" not in options), **options)
    assert out.getvalue() == ""


def test_a_notebook_gets_a_line_that_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    class Handle:
        def update(self, data: dict[str, str], *, raw: bool) -> None:
            assert raw
            lines.append(data["text/plain"])

    module: Any = ModuleType("IPython.display")
    module.display = lambda data, *, raw, display_id: Handle()
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(progress, "REFRESH_S", 0.0)
    use(Console(file=io.StringIO(), force_jupyter=True))
    assert lines[4] == "training: loss 4 (5 of 5)"
