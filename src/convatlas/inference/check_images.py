"""The images on which an export is compared with its model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convatlas.core.ragged import Inputs
from convatlas.data.dataset import Images
from convatlas.data.decode.pixels import read_image
from convatlas.data.open import open_for_evaluation
from convatlas.data.readers.image_files import images_in
from convatlas.data.readers.memory import Data, is_in_memory
from convatlas.errors import ConvatlasError, DataError
from convatlas.inference.model import Model
from convatlas.system.progress import Progress

MAX_PARITY_IMAGES = 64
"""Maximum number of images on which an export is compared with the model."""

MAX_PARITY_WHOLE_IMAGES = 8
"""The same for detectors, whose images are large."""

_TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".npz")


def load_check_images(model: Model, check: Data | None, max_unreadable: float, progress: Progress | None) -> Inputs:
    """Return the pixels on which an export is compared with the model; see `Engine.outputs`."""
    header, steps = model.header, model.header.preprocessing
    limit = MAX_PARITY_WHOLE_IMAGES if steps.is_whole else MAX_PARITY_IMAGES
    advice = "pass images with --check (in Python: check=)"
    if check is None:
        check = header.training.data
        if not check:
            raise DataError(f"{header.name}: needs images to compare the predictions on; {advice}")
    path = Path("" if is_in_memory(check) else check)
    files = [path] if path.is_file() and path.suffix.lower() not in _TABLE_SUFFIXES else []
    if not files and path.is_dir() and not is_in_memory(check):
        files = images_in(path)
    if not files:
        try:
            source = open_for_evaluation(check)
            data = source.load(steps, max_unreadable=max_unreadable, all_classes=False, progress=progress)
        except DataError as error:
            raise DataError(f"{error}; {advice}") from error
        pixels: Inputs = take_evenly(data.whole, limit)
        return pixels
    step = max(1, len(files) // limit)
    read = list(islice(_read_readable(model, files[::step]), limit))
    if not read:
        raise DataError(f"{check}: all images are unreadable; {advice}")
    return read if steps.is_whole else torch.stack(read)


def _read_readable(model: Model, files: list[Path]) -> Iterator[Tensor]:
    steps = model.header.preprocessing
    for file in files:
        try:
            pixels = read_image(file, steps.channels, steps.window)
            yield pixels if steps.is_whole else steps.resize_and_crop(pixels)
        except ConvatlasError:
            continue


def take_evenly(images: Images, count: int) -> Any:
    """Return the pixels of at most `count` images, evenly distributed over a split."""
    numbers = torch.arange(len(images))
    return images.pixels[numbers[:: max(1, len(numbers) // count)][:count]]
