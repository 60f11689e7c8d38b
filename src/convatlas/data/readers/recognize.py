"""Recognize annotation files: which format, and which split each file is of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convatlas.data.decode.files import EXTENSIONS
from convatlas.data.readers.image_files import is_skipped
from convatlas.data.readers.image_places import split_in_name
from convatlas.data.splits import split_name
from convatlas.errors import DataError, listed

HEAD_BYTES = 2**18
"""Number of bytes in which the fields of a JSON file are looked for."""

FORMATS = {
    "coco": re.compile(r'"(images|annotations|categories)"\s*:\s*\['),
    "via": re.compile(r'"(_via_img_metadata|regions)"\s*:'),
    "bboxes": re.compile(r'"bboxes"\s*:'),
    "labelme": re.compile(r'"shapes"\s*:\s*\['),
}
"""Format -> what its JSON files contain."""

OF_EACH_IMAGE = ("bboxes", "labelme")
"""Formats with one file for each image."""

NO_OBJECTS = ("captions", "image_info", "panoptic", "stuff")
"""Prefixes of COCO files without objects."""


@dataclass(frozen=True)
class JsonFiles:
    """The annotation files of one format by split. notes: what was not chosen."""

    format: str
    files: Mapping[str, Sequence[Path]]
    notes: tuple[str, ...] = ()


def format_of_json(file: Path) -> str:
    """Return the format of a JSON file by its first bytes; "" if it is not known."""
    try:
        with file.open("rb") as opened:
            head = opened.read(HEAD_BYTES)
    except OSError:
        return ""
    text = head.replace(b"\0", b"").decode("utf-8", "replace").lstrip("\ufeff\ufffd \r\n\t")
    if not text.startswith("{"):
        return ""
    return next((name for name, pattern in FORMATS.items() if pattern.search(text)), "")


def json_files(folder: Path) -> JsonFiles | None:
    """Return the annotation files in the folders of splits, in annotations/, or directly in a folder."""
    inside = [each for each in sorted(folder.iterdir()) if each.is_dir() and not is_skipped(each.name)]
    parts = {split: each for each in inside if (split := split_name(each.name))}
    by_split = {split: found for split, each in parts.items() if (found := _known(_with_annotations(each)))}
    if "train" in by_split:
        format, _ = by_split["train"]
        return JsonFiles(format, {split: files for split, (other, files) in by_split.items() if other == format})
    for each in [*(each for each in inside if each.name.lower() in ("annotations", "labels")), folder]:
        files = _json_in(each)
        known = _known(files)
        if files and not known and each != folder and not has_images(each):
            raise DataError(f"{files[0]}: must be a JSON file of COCO or VIA; its fields are not known")
        if known:
            format, files = known
            if format in OF_EACH_IMAGE:
                return JsonFiles(format, {"train": files})
            return _by_names(format, files, folder)
    return None


def siblings(file: Path, format: str) -> JsonFiles:
    """Return a file and, if its name contains "train", the files beside it that have other splits in its place."""
    split, word = split_in_name(file.stem)
    files = {"train": [file]}
    if split == "train":
        for other in _json_in(file.parent):
            part, other_word = split_in_name(other.stem)
            alike = _prefix(other.stem, other_word) == _prefix(file.stem, word)
            if part not in ("", "train") and alike and format_of_json(other) == format:
                files[part] = [other]
    names = [each.name for part, (each,) in files.items() if part != "train"]
    return JsonFiles(format, files, (f"{listed(names)} beside it: used as other splits",) if names else ())


def _by_names(format: str, files: Sequence[Path], folder: Path) -> JsonFiles:
    """Choose the files of one kind of annotations, such as instances_train.json and instances_val.json."""
    if len(files) == 1:
        return JsonFiles(format, {"train": files})
    groups: dict[str, dict[str, list[Path]]] = {}
    for file in files:
        split, word = split_in_name(file.stem)
        groups.setdefault(_prefix(file.stem, word), {}).setdefault(split or file.stem, []).append(file)
    usable = {name: group for name, group in groups.items() if "train" in group and not name.startswith(NO_OBJECTS)}
    chosen = "instances" if "instances" in usable else next(iter(usable), "")
    if not usable or (len(usable) > 1 and chosen != "instances"):
        names = listed(str(file.relative_to(folder)) for file in files)
        raise DataError(f"{folder}: contains the annotation files {names}; give one of them")
    if twice := next((part for part in usable[chosen].values() if len(part) > 1), None):
        raise DataError(f"{folder}: {twice[0].name} and {twice[1].name} are both of one split; keep one of them")
    kept = {split: part for split, part in usable[chosen].items() if split in ("train", "val", "test")}
    used = {file for part in kept.values() for file in part}
    others = [str(file.relative_to(folder)) for file in files if file not in used]
    note = (
        f"annotations of {listed(file.name for file in sorted(used))} are used; to use {listed(others)}, give the file"
    )
    return JsonFiles(format, kept, (note,) if others else ())


def _prefix(stem: str, word: str) -> str:
    """Return a name without the word of its split."""
    return re.sub(r"[_\-. ]+", "_", stem.replace(word, "", 1)).strip("_") if word else stem


def _known(files: Iterable[Path]) -> tuple[str, list[Path]] | None:
    """Return the first known format of files, and those that have it; of many files, the first one decides."""
    files = list(files)
    if not files:
        return None
    formats = {file: format_of_json(file) for file in (files if len(files) <= 20 else files[:1])}
    format = next(filter(None, formats.values()), "")
    every = len(files) > 20 or format in OF_EACH_IMAGE
    chosen = [file for file in files if every or formats[file] == format]
    return (format, chosen) if format else None


def _with_annotations(folder: Path) -> list[Path]:
    """Return the JSON files of the folder of a split, or of annotations/ in it."""
    return _json_in(folder) or _json_in(folder / "annotations") or _json_in(folder / "labels")


def _json_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [file for file in sorted(folder.iterdir()) if file.suffix.lower() == ".json" and not is_skipped(file.name)]


def has_images(folder: Path) -> bool:
    """Return whether a folder directly contains image files."""
    return folder.is_dir() and any(each.suffix.lower() in EXTENSIONS for each in folder.iterdir())
