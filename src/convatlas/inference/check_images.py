"""The images or videos on which an export is compared with its model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.core.ragged import Inputs
from convatlas.data.dataset import Images
from convatlas.data.decode.pixels import read_image
from convatlas.data.decode.video_name import VideoName
from convatlas.data.open import open_for_evaluation
from convatlas.data.readers.media import MEDIA
from convatlas.data.readers.memory import Data, is_in_memory
from convatlas.data.readers.video_files import is_frame_folder
from convatlas.data.videos import load_clips
from convatlas.errors import ConvatlasError, DataError
from convatlas.inference.model import Model
from convatlas.system.progress import Progress

MAX_PARITY_IMAGES = 64
"""Maximum number of images on which an export is compared with the model."""

MAX_PARITY_WHOLE_IMAGES = 8
"""The same for detectors, whose images are large."""

MAX_PARITY_CLIPS = 16
"""Maximum number of clips, each of which takes as long as many images."""

_TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".npz")


def load_check_images(model: Model, check: Data | None, max_unreadable: float, progress: Progress | None) -> Inputs:
    """Return the pixels of images, or of clips, on which an export is compared with the model; see `Engine.outputs`."""
    header, steps = model.header, model.header.preprocessing
    nouns = f"{header.task.noun}s"
    limit = MAX_PARITY_WHOLE_IMAGES if steps.is_whole else MAX_PARITY_CLIPS if steps.sampling else MAX_PARITY_IMAGES
    advice = f"pass {nouns} with --check (in Python: check=)"
    if check is None:
        check = header.training.data
        if not check:
            raise DataError(f"{header.name}: needs {nouns} to compare the predictions on; {advice}")
    files = [] if is_in_memory(check) else list_files(os.fspath(check), steps)
    if files:
        errors: list[ConvatlasError] = []
        read = list(islice(_read_readable(files[:: max(1, len(files) // limit)], steps, errors), limit))
        if not read:
            raise DataError(f"{check}: all {nouns} are unreadable ({errors[0]}); {advice}")
        if steps.is_whole:
            return read
        pixels = torch.stack(read)
    else:
        try:
            source = open_for_evaluation(check, reads=steps.reads)
            data = source.load(steps, max_unreadable=max_unreadable, all_classes=False, progress=progress)
        except DataError as error:
            raise DataError(f"{error}; {advice}") from error
        pixels = take_evenly(data.whole, limit)
    return pixels if steps.sampling is None else every_nth(pixels.flatten(0, 1), limit)


def list_files(name: str, steps: Preprocessing) -> Sequence[str]:
    """Return the images, or videos, that a file or a folder is or contains; none for a data set of another form."""
    name = os.path.expanduser(name)
    path = name if steps.sampling is None else VideoName.parse(name).path
    is_video = steps.sampling is not None and is_frame_folder(path)
    if is_video or (os.path.isfile(path) and not path.lower().endswith(_TABLE_SUFFIXES)):
        return [name]
    return MEDIA[steps.reads].list_files(path)[0] if os.path.isdir(path) else []


def _read_readable(files: Sequence[str], steps: Preprocessing, errors: list[ConvatlasError]) -> Iterator[Tensor]:
    """Yield the pixels of readable images, or the clips (clips, frames, channels, h, w) of readable videos.

    errors: gets those of the other files.
    """
    for file in files:
        try:
            if steps.sampling is not None:
                yield load_clips(file, steps)
                continue
            pixels = read_image(file, steps.channels, steps.window)
            yield pixels if steps.is_whole else steps.resize_and_crop(pixels)
        except ConvatlasError as error:
            errors.append(error)


def take_evenly(images: Images, count: int) -> Any:
    """Return the pixels of at most `count` images, or videos, evenly distributed over a split."""
    pixels: Any = images.pixels
    return pixels[every_nth(torch.arange(len(images)), count)]


def every_nth(items: Tensor, count: int) -> Tensor:
    """Return at most `count` items, evenly distributed."""
    count = min(count, len(items))
    return items[[i * len(items) // count for i in range(count)]]
