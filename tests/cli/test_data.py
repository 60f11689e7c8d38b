"""The commands report what a folder contains and is not used."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest

from commands import Command
from convatlas.cli.console import display
from convatlas.data.open import open_data
from convatlas.train.run import Run

LINE = r"3 files are not used: 1 \.xcf, 1 dangling link, 1 in @eaDir \(ant/a\.xcf, ant/more, @eaDir/SYNO\.jpg\)"


@pytest.fixture
def crowded(own_images: Path) -> Path:
    """Images beside files that are not used."""
    folder = own_images / "train" / "ant"
    (folder / "a.xcf").write_bytes(b"gimp xcf")
    (folder / "more").symlink_to("/gone")
    (folder / "@eaDir").mkdir()
    (folder / "@eaDir" / "SYNO.jpg").write_bytes(b"")
    return own_images


def test_data_check_reports_what_is_not_used(crowded: Path, convatlas: Command) -> None:
    outcome = convatlas("data", "check", crowded)
    assert re.search(r"^note: 2 files are not used: 1 \.xcf, 1 in @eaDir \(ant/a\.xcf, ", outcome.out, re.MULTILINE)
    assert "warning: 1 link leads nowhere and is not used" in outcome.out
    assert f"    {crowded}/train/ant/@eaDir/SYNO.jpg" in outcome.out.splitlines()
    plain = json.loads(convatlas("data", "check", crowded, "--json").out)
    assert {reason: len(names) for reason, names in plain["ignored"].items()} == {
        ".xcf": 1, "dangling links": 1, "in @eaDir": 1
    }  # fmt: skip
    assert {"dangling_links", "ignored_files"} <= {each["kind"] for each in plain["findings"]}


def test_fit_reports_what_is_not_used(crowded: Path, colored: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy.copy(colored)
    run.dataset = open_data(crowded).load(run.config.preprocessing)
    display().print_header(run)
    assert re.search(f"^{LINE}$", capsys.readouterr().out, re.MULTILINE)


def test_predict_reports_what_is_not_used(crowded: Path, colored: Run, convatlas: Command) -> None:
    folder = crowded / "train" / "ant"
    (folder / "gone.png").symlink_to("/gone.png")
    outcome = convatlas("predict", colored.model_file, folder, "--csv", "--engine", "torch")
    assert re.search(f"^{LINE}$", outcome.err, re.MULTILINE)
    assert len(outcome.out.splitlines()) == 1 + 12 + 1
    assert outcome.code == 2
    assert f"convatlas: {folder / 'gone.png'}: no such file" in outcome.err


def test_names_for_terminals_are_printable(own_images: Path, convatlas: Command) -> None:
    for name in ("\x1b[31m1.png", "2\n.png", "\udce9.png"):
        (own_images / "train" / "ant" / name).write_bytes(b"no image")
    outcome = convatlas("data", "check", own_images)
    assert "\x1b" not in outcome.out
    assert all(line.isprintable() for line in outcome.out.splitlines())
    assert {"    " + str(own_images / "train" / "ant" / name) for name in ("1.png", "2 .png", "\\xe9.png")} <= {
        line.partition(": ")[0] for line in outcome.out.splitlines()
    }
