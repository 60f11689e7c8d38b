"""Draw the figures of README.md and docs/ with the commands that the pages name.

    python docs/figures.py [NAME...]

Without names all are drawn; `demo.png` takes half a minute, because it trains a network.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops, ImageStat

DOCS = Path(__file__).resolve().parent

COMMANDS = {
    "demo.png": ("demo --out run", "run/overview.png"),
    "googlenet.png": ("draw googlenet -o googlenet.png", "googlenet.png"),
    "resnet50.png": ("draw resnet50 -o resnet50.png", "resnet50.png"),
    "timeline.png": ("timeline -o timeline.png", "timeline.png"),
}
"""Figure -> the arguments of `convatlas` that draw it, and the file that they write."""

COARSE = (160, 90)
"""Size in pixels at which two figures are compared, so that fonts and rounding do not count."""


def draw(name: str, folder: Path) -> Path:
    """Draw a figure in a folder and return its file."""
    arguments, file = COMMANDS[name]
    subprocess.run([sys.executable, "-m", "convatlas", *arguments.split()], cwd=folder, check=True, capture_output=True)
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
