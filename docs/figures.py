"""Draw the figures of README.md and docs/ with the commands that the pages name.

    python docs/figures.py [NAME...]

Without names all are drawn; some take half a minute, because they train a network.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops, ImageStat

DOCS = Path(__file__).resolve().parent

DIGIT = "run/examples/7-digits-81.png"
"""An image that `convatlas demo --out run` writes."""

COMMANDS = {
    "demo.png": (("demo --out run",), "run/overview.png"),
    "diagnose-sigmoid.png": (("diagnose-sigmoid.py",), "diagnose-sigmoid.png"),
    "explain.png": (("explain-shapes.py",), "explain.png"),
    "features.png": (
        (
            "demo --out run",
            f"features run {DIGIT} --layer stages.0 --channel 9 --maps 6 --data digits --maximize -o features.png",
        ),
        "features.png",
    ),
    "googlenet.png": (("draw googlenet -o googlenet.png",), "googlenet.png"),
    "resnet50.png": (("draw resnet50 -o resnet50.png",), "resnet50.png"),
    "scaling-cifar10.png": (("scaling-cifar10.py",), "scaling-cifar10.png"),
    "search-front.png": (("search-front.py",), "search-front.png"),
    "timeline.png": (("timeline -o timeline.png",), "timeline.png"),
}
"""Figure -> the arguments of `convatlas`, or the script in this folder, that draw it, and the file that they write."""

COARSE = (160, 90)
"""Size in pixels at which two figures are compared, so that fonts and rounding do not count."""


def draw(name: str, folder: Path) -> Path:
    """Draw a figure in a folder and return its file."""
    commands, file = COMMANDS[name]
    for command in commands:
        program = [str(DOCS / command)] if command.endswith(".py") else ["-m", "convatlas", *command.split()]
        subprocess.run([sys.executable, *program], cwd=folder, check=True, capture_output=True)
    return folder / file


def difference(first: Path, second: Path) -> float:
    """Return the mean difference of the gray values of two figures, from 0 to 255; 255 if their sizes differ."""
    with Image.open(first) as a, Image.open(second) as b:
        if a.size != b.size:
            return 255.0
        coarse = [image.convert("L").resize(COARSE, Image.Resampling.BOX) for image in (a, b)]
    return float(ImageStat.Stat(ImageChops.difference(*coarse)).mean[0])


if __name__ == "__main__":
    for name in sys.argv[1:] or COMMANDS:
        with tempfile.TemporaryDirectory() as folder:
            (DOCS / name).write_bytes(draw(name, Path(folder)).read_bytes())
        print(DOCS / name)
