"""Run the commands that README.md and the pages of docs/ show, and compare what they print with the page.

    python docs/examples.py [--update] [PAGE...]

A block of a page that begins with `$ convatlas` is run, the blocks of one page in order in one directory with the data
sets of `DATA`; a line `<!-- run: COMMAND -->` prepares what the next blocks need. Numbers that depend on the machine
(times, memory, and whatever follows from a training) are masked.
--update writes what was printed into the page.
"""

from __future__ import annotations

import argparse
import difflib
import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy
from PIL import Image

DOCS = Path(__file__).resolve().parent
DATA = DOCS.parents[1] / "shared" / "data"
"""Real data sets and weights (not part of the repository)."""

PAGES = (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")))

LINKS = {
    "hymenoptera": "hymenoptera", "photos": "hymenoptera", "imagenet_samples": "imagenet_samples",
    "imagenet_samples.csv": "imagenet_samples/labels.csv", "bccd_voc": "bccd_voc", "balloon_via": "balloon_via",
    "rbc_coco": "rbc_coco",
    "mobilenet_v2.pth": "weights/mobilenet_v2_imagenet_torchvision_naming.pth",
    "cache/fashion_mnist": "fashion_mnist", "cache/mnist": "mnist",
}  # fmt: skip
"""What the directory of a page contains: name -> file or folder of `DATA`."""

EXACT = ("list", "show", "compare", "cost", "scale", "recipes", "data check", "weights list", "draw", "timeline")
"""Commands that print the same on every machine."""

MASKS = {
    r"\d[\d,.]*": "#",
    r"\b(best|mkldnn|channels_last|contiguous|bfloat16|float32|int8)\b": "",
    r"[-+\s]+": " ",
}
"""What depends on the machine in the output of the other commands: pattern -> what stands for it."""

PROGRESS = re.compile(r"\(\d[\d,]* of \d[\d,]*(, .* left)?\)$")
"""The end of a line of progress, which a terminal shows as a bar."""

PROMPT = "$ "
HIDDEN = re.compile(r"<!-- run: (.*) -->")
"""A line of a page whose command is run, but not shown by the reader's browser."""


@dataclass(frozen=True)
class Block:
    """Commands and what they print. first, last: its lines in the page, without the last one."""

    first: int
    last: int
    lines: tuple[str, ...]
    indent: str
    is_hidden: bool = False

    def commands(self) -> list[tuple[str, list[str]]]:
        """Return each command, which a backslash continues in the next line, and the lines that it prints."""
        parts: list[tuple[str, list[str]]] = []
        continued = False
        for line in self.lines:
            if continued or line.startswith(PROMPT):
                text = line.removeprefix(PROMPT) if not continued else line.strip()
                if continued:
                    parts[-1] = (f"{parts[-1][0]}\n    {text}", [])
                else:
                    parts.append((text, []))
                continued = line.endswith("\\")
            else:
                parts[-1][1].append(line)
        return parts


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page that begin with a command and show what it prints, and the hidden commands."""
    lines = page.read_text(encoding="utf-8").split("\n")
    number = 0
    while number < len(lines):
        indent = "    " if lines[number].startswith("    " + PROMPT) else ""
        if hidden := HIDDEN.fullmatch(lines[number]):
            yield Block(number, number + 1, (PROMPT + hidden[1],), "", is_hidden=True)
        starts = lines[number].startswith(indent + PROMPT + "convatlas")
        if not starts or "convatlas serve" in lines[number]:  # a server does not end
            number += 1
            continue
        last = number
        while last < len(lines) and (lines[last].startswith(indent or "\0") or (not lines[last].strip() and indent)):
            last += 1
        while not lines[last - 1].strip():
            last -= 1
        block = Block(number, last, tuple(line.removeprefix(indent) for line in lines[number:last]), indent)
        if any(printed for _, printed in block.commands()):
            yield block
        number = last


def masked(command: str, printed: list[str]) -> list[str]:
    """Return lines without what depends on the machine."""
    lines = [line.rstrip() for line in printed]
    if command.startswith(tuple(f"convatlas {name}" for name in EXACT)):
        return lines
    for pattern, text in MASKS.items():
        lines = [re.sub(pattern, text, line).strip() for line in lines]
    return lines


def run(command: str, folder: Path) -> list[str]:
    """Run a command as a reader would, and return the lines that it prints."""
    environment = os.environ | {
        "CONVATLAS_CACHE": str(folder / "cache"), "CONVATLAS_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", f"{command} 2>&1"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    lines = done.stdout.rstrip("\n").split("\n")
    return [line.replace(str(folder), "").rstrip() for line in lines if not PROGRESS.search(line)]


def prepare(folder: Path) -> None:
    """Put the data sets into the directory of a page, four images to predict, and two small folders of photos."""
    (folder / "cache").mkdir()
    for name, source in LINKS.items():
        (folder / name).symlink_to(DATA / source)
    (folder / "new").mkdir()
    with gzip.open(DATA / "fashion_mnist" / "t10k-images-idx3-ubyte.gz") as file:
        pixels = file.read()[16:]
    for number, name in zip((0, 1, 2, 12), "abcd", strict=True):
        content = pixels[784 * number : 784 * (number + 1)]
        Image.frombytes("L", (28, 28), content).save(folder / "new" / f"{name}.png")
    write_forty_photos(folder)
    write_faulty_photos(folder / "faulty")


def write_forty_photos(folder: Path) -> None:
    """Write forty/<class>/ with 10 photos of each of 4 classes, and others/<class>/ with the other ones."""
    samples = sorted((DATA / "imagenet_samples" / "images").glob("*.jpg"))  # <class index>_<synset>_<name>.jpg
    insects = DATA / "hymenoptera" / "val"
    classes = {
        "ants": sorted(insects.glob("ants/*.jpg"))[:40], "bees": sorted(insects.glob("bees/*.jpg"))[:40],
        "dogs": [path for path in samples if 151 <= int(path.name[:4]) <= 268],
        "mammals": [path for path in samples if 269 <= int(path.name[:4]) <= 388],
    }  # fmt: skip
    for name, paths in classes.items():
        for number, path in enumerate(paths):
            copy = folder / ("forty" if number < 10 else "others") / name / path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)


def write_faulty_photos(folder: Path) -> None:
    """Write a folder of random images with many faults."""
    counts = {"train/cat": 10, "val/cat": 4, "train/dog": 12, "val/dog": 5, "train/single": 1, "train/empty": 0}
    generator = numpy.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (80, 96, 3), dtype=numpy.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    shutil.copy(folder / "train/dog/01.png", folder / "val/dog/leak.png")
    (folder / "train/cat/00.png").write_text("<!doctype html>")
    (folder / "train/cat/notes.txt").write_text("taken in the garden")


def check(page: Path, *, update: bool = False) -> list[str]:
    """Run the blocks of a page; return the differences between what it shows and what is printed, as lines."""
    differences: list[str] = []
    lines = page.read_text(encoding="utf-8").split("\n")
    shift = 0
    found = list(blocks(page))
    if not found:
        return []
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        prepare(folder)
        for block in found:
            new: list[str] = []
            for command, shown in block.commands():
                printed = run(command, folder)
                if block.is_hidden:
                    continue
                blank = [""] if shown and not shown[-1].strip() else []
                new += [*f"{PROMPT}{command}".split("\n"), *printed, *blank]
                shown = shown[: len(shown) - len(blank)]
                expected, actual = masked(command, shown), masked(command, printed)
                where = f"{page.name}:{block.first + 1}: {command}"
                differences += difflib.unified_diff(expected, actual, where, where, lineterm="")
            if update and not block.is_hidden:
                text = [f"{block.indent}{line}".rstrip() for line in new]
                lines[block.first + shift : block.last + shift] = text
                shift += len(text) - (block.last - block.first)
    if update:
        page.write_text("\n".join(lines), encoding="utf-8")
    return differences


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pages", nargs="*", type=Path, default=PAGES, metavar="PAGE")
    parser.add_argument("--update", action="store_true", help="write what was printed into the pages")
    options = parser.parse_args()
    if not DATA.is_dir() or shutil.which("bash") is None:
        print(f"{DATA}: the data sets are missing, or there is no bash")
        return 2
    wrong = 0
    for page in options.pages:
        differences = check(page.resolve(), update=options.update)
        wrong += bool(differences)
        print("\n".join(differences) or f"{page.name}: as shown")
    return int(wrong > 0 and not options.update)


if __name__ == "__main__":
    sys.exit(main())
