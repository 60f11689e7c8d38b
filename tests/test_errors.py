"""Error messages are one printable line, whatever they quote."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convatlas.errors import MAX_MESSAGE, DataError, InputError, brief, foreign_errors, listed, printable


@given(st.text(alphabet=st.characters()))
def test_a_message_is_one_printable_line(text: str) -> None:
    message = str(DataError(text))
    assert len(message.splitlines()) <= 1
    assert "\x1b" not in message
    assert len(message) <= MAX_MESSAGE
    message.encode()  # no lone surrogates


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("café/Ameise 🐜.png", "café/Ameise 🐜.png"),
        ("two\nlines", "two lines"),
        ("\x1b[1mbold\x1b[0m", "bold"),
        ("\x1b]0;title\x07name", "name"),
        ("caf\udce9.jpg", r"caf\xe9.jpg"),
        ("nul\0", r"nul\x00"),
    ],
)
def test_text_from_outside_is_made_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_long_messages_keep_both_ends() -> None:
    message = str(DataError("file.csv: " + "x" * 10_000 + "; fix it"))
    assert message.startswith("file.csv: ")
    assert message.endswith("; fix it")


def test_many_names_are_counted() -> None:
    assert listed("abc") == "a, b, c"
    assert listed(range(1000), 2) == "0, 1 and 998 more"


def test_errors_of_other_libraries_become_one_line() -> None:
    with pytest.raises(DataError, match=r"^a.png: cannot be read \(first\)$"), foreign_errors("a.png", DataError):
        raise TypeError("first\nsecond")
    with pytest.raises(InputError, match="ours"), foreign_errors("a.png", DataError):
        raise InputError("ours")
    assert brief(EOFError()) == "EOFError"
