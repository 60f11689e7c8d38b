"""Where the images of an annotation file are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from convatlas.data.decode.files import EXTENSIONS
from convatlas.data.readers.image_files import images_in, reason_to_ignore, scan
from convatlas.data.splits import split_name

SAMPLE = 20
"""Number of images that are looked for in every place, to order the places."""

FOLDERS = ("images", "Images", "JPEGImages", "imgs", "data")
"""Names of folders of images."""

LEVELS = 3
"""Number of folders above an annotation file in which a folder of images is looked for."""


def split_in_name(stem: str) -> tuple[str, str]:
    """Return the split that a name such as "instances_train2017" contains, and the word, "train2017"; or ""."""
    words = re.split(r"[_\-. ]+", stem)
    for word in reversed(words):
        match = re.fullmatch(r"([A-Za-z]+?)(\d*)", word)
        if match and (split := split_name(match[1])):
            return split, word
    return "", ""


def images_near(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return {name: path} of the images in the nearest place that has any of the names.

    The places are the folder of the annotation files, images/, or another name of `FOLDERS`, in it or in one of the
    three above it, and the folder above it. Without one, those in the first place with images are returned. A name has
    no suffix; images in folders below a place have two: x/a and, unless another one has it, a.
    """
    wanted = set(names)
    first: dict[str, str] = {}
    above = [folder, *list(folder.parents)[:LEVELS]]
    for place in (folder, *(root / name for root in above for name in FOLDERS), folder.parent):
        if not place.is_dir():
            continue
        below = place.name in FOLDERS and place not in (folder, folder.parent)
        files = images_in(place) if below else [Path(each.path) for each in scan(place) if not reason_to_ignore(each)]
        found: dict[str, str] = {}
        for file in files:
            found.setdefault(file.stem, str(file))
        found |= {file.relative_to(place).with_suffix("").as_posix(): str(file) for file in files}
        if not wanted.isdisjoint(found):
            return found
        first = first or found
    return first


class ImagePlaces:
    """Finds the images that an annotation file names: beside it, or in a folder near it of a known or the same name."""

    def __init__(self, file: Path, names: Sequence[str]) -> None:
        folder = self.folder = file.parent
        self.by_name: dict[str, str] | None = None
        split, word = split_in_name(file.stem)
        near = [folder, folder.parent] if folder.parent != folder else [folder]
        inside = dict.fromkeys(("", file.stem, word, split, *FOLDERS))
        places = [root / each if each else root for root in near for each in inside]
        places += [root / "images" / each for root in near for each in (word, split) if each]
        places += [root / each for root in list(folder.parents)[1:LEVELS] for each in FOLDERS]
        self.places = [str(place) for place in dict.fromkeys(places) if place.is_dir()]
        step = max(1, len(names) // SAMPLE)
        some = names[::step][:SAMPLE]
        hits = {place: sum(_exists(place, name) for name in some) for place in self.places}
        self.places.sort(key=lambda place: -hits[place])  # stable: of equals the nearest one

    def find(self, name: str) -> str:
        """Return the path of an image, whose suffix may be missing; if it does not exist, where it is expected."""
        name = name.strip()
        names = dict.fromkeys((name, name.replace("\\", "/"), re.split(r"[\\/]", name)[-1]))
        for each in names:
            for place in self.places:
                if _exists(place, each):
                    return os.path.normpath(os.path.join(place, each))
        if os.path.splitext(name)[1].lower() not in EXTENSIONS:
            if self.by_name is None:
                self.by_name = images_near(self.folder, names)
            if known := next((self.by_name[each] for each in names if each in self.by_name), None):
                return known
        return os.path.normpath(os.path.join(self.places[0], name)) if self.places else name


def _exists(place: str, name: str) -> bool:
    return os.path.isfile(os.path.join(place, name))
