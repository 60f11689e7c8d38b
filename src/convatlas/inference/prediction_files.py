"""Files of predictions: contact sheets, plots, annotated images, a result file of COCO, and label files of YOLO."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from convatlas.data.decode.display import MAX_SIDE, display_image
from convatlas.draw.contact_sheet import Captioned, captioned_images
from convatlas.draw.style import check_figure_path
from convatlas.errors import InputError
from convatlas.inference.contents import EncodedFile
from convatlas.inference.images import ImageLike
from convatlas.inference.inputs import VIDEOS
from convatlas.inference.video_figures import draw_video_sheet, plot_over_time
from convatlas.system.files import atomic, write_text
from convatlas.tasks.detection.formats import to_coco_results, to_yolo_lines
from convatlas.tasks.prediction import Prediction
from convatlas.tasks.table import pluralize

MAX_SHEET = 60
"""Maximum number of images or videos on a contact sheet."""

MAX_PANELS = 12
"""Maximum number of videos in a plot of probabilities over time."""

JPEG = (".jpg", ".jpeg")
"""Suffixes of images that are saved as JPEG; all others are saved as PNG."""

JPEG_QUALITY = 90

CLASSES = "classes.txt"
"""The file beside those of YOLO with the names of the classes, one a line, from number 0 on."""


@dataclass
class PredictionFiles:
    """The files that are written for predictions; those that are None are not.

    sheet: contact sheet of the first images or videos. images: folder of the images with what is drawn on them. coco:
    result file of COCO. yolo: folder of text files, one for each image. plot: probabilities of the first videos over
    time. classes: of the model.
    Files get the name of their image, and a number where another image has the same name. An unreadable image gets
    none.
    """

    classes: Sequence[str]
    sheet: Path | None = None
    images: Path | None = None
    coco: Path | None = None
    yolo: Path | None = None
    plot: Path | None = None
    predictions: list[Any] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    shown: list[tuple[Any, Prediction]] = field(default_factory=list)
    plotted: list[Prediction] = field(default_factory=list)

    def prepare(self) -> None:
        """Create the folders. Raises InputError if a file cannot be written, before anything is predicted."""
        for figure in filter(None, (self.sheet, self.plot)):
            check_figure_path(figure)
        if self.coco is not None and self.coco.is_dir():
            raise InputError(f"{self.coco}: must be a file, got a folder; name a file in it")
        for folder in filter(None, (self.images, self.yolo, self.coco and self.coco.parent)):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"{folder}: cannot be a folder: {error.strerror or error}") from error

    def add(self, image: Any, prediction: Prediction) -> None:
        """Write the files of one image or video. Raises InputError if the image itself would be overwritten."""
        if self.coco is not None:
            self.predictions.append(prediction)
        if self.sheet is not None and not prediction.error and len(self.shown) < MAX_SHEET:
            self.shown.append((image, prediction))
        if self.plot is not None and not prediction.error and len(self.plotted) < MAX_PANELS:
            self.plotted.append(prediction)
        if prediction.error or (self.images is None and self.yolo is None):
            return
        stem, suffix = self._unique_name(prediction.source)
        if self.yolo is not None:
            text = "".join(f"{line}\n" for line in to_yolo_lines(prediction))  # type: ignore[arg-type]
            write_text(self.yolo / f"{stem}.txt", text)
        if self.images is not None:
            path = self.images / f"{stem}{suffix}"
            if os.path.exists(path) and os.path.exists(prediction.source) and os.path.samefile(path, prediction.source):
                raise InputError(f"--save: {self.images} is the folder of the images, which would be overwritten")
            save_annotated(path, image, prediction)

    def finish(self) -> list[str]:
        """Write the files of all images, and return what was written, a line for each."""
        lines = []
        if self.sheet is not None and self.shown:
            if self.shown[0][1].noun == VIDEOS.noun:
                draw_video_sheet(self.shown, self.sheet)
            else:
                captioned_images([_captioned(*each) for each in self.shown], path=self.sheet)
            lines.append(str(self.sheet))
        if self.plot is not None and self.plotted:
            plot_over_time(self.plotted, self.plot)
            lines.append(str(self.plot))
        if self.images is not None:
            lines.append(f"{self.images}: {pluralize(len(self.names), 'image')}")
        if self.yolo is not None:
            write_text(self.yolo / CLASSES, "".join(f"{name}\n" for name in self.classes))
            lines.append(f"{self.yolo}: {pluralize(len(self.names), 'file')} of YOLO, and {CLASSES}")
        if self.coco is not None:
            ids, rule = image_ids([prediction.source for prediction in self.predictions])
            categories = {name: number for number, name in enumerate(self.classes, 1)}
            results = to_coco_results(self.predictions, ids, categories)
            write_text(self.coco, json.dumps(results))
            lines.append(
                f"{self.coco}: {pluralize(len(results), 'object')}; {rule}; category ids: from 1 ({self.classes[0]}) on"
            )
        return lines

    def _unique_name(self, source: str) -> tuple[str, str]:
        """Return the name without suffix, and the suffix, of the files of an image."""
        path = Path(source.replace("\\", "/"))
        suffix = path.suffix.lower() if path.suffix.lower() in JPEG else ".png"
        stem, number = path.stem or "image", 1
        while stem in self.names:
            number += 1
            stem = f"{path.stem}-{number}"
        self.names.add(stem)
        return stem, suffix


def image_ids(sources: Sequence[str]) -> tuple[list[int], str]:
    """Return the ids of images in a result file, and what they are, in words.

    Names such as 000000397133.jpg, the ids of COCO's own images, are numbers; otherwise the ids count from 1.
    """
    stems = [Path(source.replace("\\", "/")).stem for source in sources]
    if stems and all(stem.isascii() and stem.isdecimal() for stem in stems):
        numbers = [int(stem) for stem in stems]
        if len(set(numbers)) == len(numbers):
            return numbers, "image ids: the numbers in the names of the files"
    return list(range(1, len(sources) + 1)), "image ids: 1, 2, 3, ... in the order of the images"


def _captioned(image: ImageLike, prediction: Prediction) -> Captioned:
    pixels = read_for_display(image, prediction.source, max_side=MAX_SIDE)
    drawn = None if pixels is None else prediction.annotated(pixels).permute(1, 2, 0).numpy()
    name, best = Path(prediction.source).name, prediction.probability
    return Captioned(drawn, prediction.text, name if best is None else f"{best:.1%}  {name}")


def save_annotated(path: Path, image: ImageLike, prediction: Prediction) -> None:
    """Write an image with what its prediction draws on it, as JPEG or PNG by the suffix of the path."""
    pixels = read_for_display(image, prediction.source)
    if pixels is None:
        raise InputError(f"{prediction.source}: cannot be read again to draw on it; --save needs files")
    drawn = Image.fromarray(prediction.annotated(pixels).permute(1, 2, 0).numpy())
    kind: dict[str, Any] = {"format": "PNG"}
    if path.suffix in JPEG:  # with colors of each pixel, because those of thin lines would be those of their neighbors
        kind = {"format": "JPEG", "quality": JPEG_QUALITY, "subsampling": 0}
    with atomic(path) as file:
        drawn.save(file, **kind)


def read_for_display(image: ImageLike, source: str, *, max_side: int | None = None) -> Tensor | None:
    """Return an image file, or the bytes of one, as pixels (3, h, w) uint8; None if it is unreadable."""
    data = image.data if isinstance(image, EncodedFile) else None
    shares = display_image(source, data=data, max_side=max_side)
    if shares is None:
        return None
    return torch.from_numpy(shares).permute(2, 0, 1).mul(255).round().byte()
