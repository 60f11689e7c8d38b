"""Groups: images or videos of one recording, person or scene, which stay in the same split."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from convatlas.data.decode.video_name import VideoName
from convatlas.data.source import Source
from convatlas.errors import DataError, InputError, shorten
from convatlas.tasks.table import pluralize

UCF101 = re.compile(r"(v_[A-Za-z0-9]+_g\d+)_c\d+(?=\.|/|$)")
"""Names of videos of UCF101, v_<class>_g01_c02: recordings of one scene have the same g."""


def with_groups(source: Source, pattern: str | None = None) -> Source:
    """Return the source with the groups of its files, which stay in the same split.

    pattern: a regular expression that is searched in the path of each file, relative to the data's folder, with `/`;
        its first group names the recording. A file without it is a group of its own. It takes the place of a column
        of a table. None: names of UCF101 are known, and parts of one video are a group.
    Raises InputError for an invalid pattern, DataError if it matches no file, or the data has no files.
    """
    if pattern is None:
        return source if source.task.reads == "images" or _has_groups(source) else _with_known_groups(source)
    expression = _compile(pattern)
    if any(samples.pixels is not None for samples in source.splits.values()):
        raise DataError(f"{source.location}: group_pattern needs names of files, but the data is in memory")
    names = _relative_names(source)
    groups = {split: [_first_group(expression, name) for name in part] for split, part in names.items()}
    found = [name for part in groups.values() for name in part]
    if not any(found):
        example = shorten(next(name for part in names.values() for name in part), 80)
        raise DataError(
            f"{source.location}: group_pattern {pattern!r} matches none of {len(found):,} names, such as {example}; "
            "its first group must be the part of a path that names the recording"
        )
    alone = len(found) - sum(map(bool, found))
    groups_text = pluralize(len(set(filter(None, found))), "group")
    note = f"{pluralize(len(found), source.task.noun)} in {groups_text} by their names"
    note += f", and {alone:,} of no group" if alone else ""
    return _grouped(source, groups, note)


def number_groups(groups: Mapping[str, Sequence[str]], names: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """Return the number of each file's group, by split; "" stands for a group of its own. {} without any group."""
    if not any(map(any, groups.values())):
        return {}
    keys = {
        split: [(bool(group), group or name) for group, name in zip(part, names[split], strict=True)]
        for split, part in groups.items()
    }
    numbers = {key: i for i, key in enumerate(dict.fromkeys(key for part in keys.values() for key in part))}
    return {split: torch.tensor([numbers[key] for key in part]) for split, part in keys.items()}


def _with_known_groups(source: Source) -> Source:
    """Return videos with the groups that their names show, if they do."""
    names = _relative_names(source)
    flat = [name for part in names.values() for name in part]
    if flat and all(map(UCF101.search, flat)):
        groups = {split: [_first_group(UCF101, name) for name in part] for split, part in names.items()}
        return _grouped(source, groups, "groups are those of UCF101 names, v_<class>_g01_c02: each stays in one split")
    counts = Counter(flat)
    if len(counts) == len(flat):
        return source
    return _grouped(source, names, "parts of one video stay in one split")


def _grouped(source: Source, groups: Mapping[str, Sequence[str]], note: str) -> Source:
    numbers = number_groups(groups, {split: part.names for split, part in source.splits.items()})
    splits = {split: replace(samples, groups=numbers[split]) for split, samples in source.splits.items()}
    return replace(source, splits=splits, notes=tuple(dict.fromkeys((*source.notes, note))))


def _has_groups(source: Source) -> bool:
    return any(samples.groups is not None for samples in source.splits.values())


def _relative_names(source: Source) -> dict[str, list[str]]:
    """Return the paths of files relative to the data's folder, without the times of parts of videos."""
    root = source.location if os.path.isdir(source.location) else os.path.dirname(source.location)
    is_video = source.task.reads == "clips"
    here = os.getcwd()
    found = {}
    for split, samples in source.splits.items():
        paths = [VideoName.parse(name).path if is_video else name for name in samples.names]
        found[split] = [os.path.relpath(os.path.join(here, path), root).replace(os.sep, "/") for path in paths]
    return found


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(f"group_pattern must be a regular expression, got {pattern!r}: {error}") from error
    if not expression.groups:
        raise InputError(
            f"group_pattern must have a group in parentheses that names the recording, got {pattern!r}; for example "
            r"'_(\d+)\.mp4$'"
        )
    return expression


def _first_group(expression: re.Pattern[str], name: str) -> str:
    match = expression.search(name)
    return (match[1] or "") if match else ""
