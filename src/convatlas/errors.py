"""Errors that a user can act on: one line that names the place, what is wrong and how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConvatlasError(Exception):
    """Base of every error that the user's input can cause; the command line prints it as one line and exits with 2."""


class InputError(ConvatlasError):
    """An argument that is not possible: an unknown suffix, a wrong unit, two options that exclude each other."""


class SpecError(ConvatlasError):
    """A network description that cannot be built: a bad cell, an image too small, an unknown name."""


class CostError(ConvatlasError):
    """A layer whose cost is not known, or whose input does not fit it."""


class DataError(ConvatlasError):
    """Data that cannot be read or does not fit: a missing folder, an empty class, an unreadable image."""


class ModelFileError(ConvatlasError):
    """A model file that is damaged, foreign, or from a newer version."""


class WeightsError(ConvatlasError):
    """Published weights that are unknown, cannot be fetched, are damaged, or do not fit the network."""


class EngineError(ConvatlasError):
    """An engine that is not installed, or that cannot run a network."""


class RunError(ConvatlasError):
    """A training run that cannot start, continue or be read."""


class MachineError(ConvatlasError):
    """Something that this machine cannot do: a missing device, a file that cannot be written, a full disk."""


def brief(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(name: str, names: Iterable[str]) -> str:
    """Return " (did you mean X?)" for the closest of `names`, or an empty string."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""
