"""Prepare the images of a split for a network: decoded and resized once, then read from the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import PIL
import torch
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.dataset import Images, UnreadableImage
from convatlas.data.decode.files import UnavailableError
from convatlas.data.decode.pixels import (
    check_scale,
    check_shares,
    frame,
    frame_shape,
    in_channels,
    load_image,
    scale_to_255,
    shares,
)
from convatlas.data.manifest import Manifest
from convatlas.data.pixel_cache import Notes, PixelCache
from convatlas.data.samples import Samples
from convatlas.data.stream import Streamed
from convatlas.data.threads import map_in_threads
from convatlas.errors import DataError, printable
from convatlas.system.devices import is_out_of_memory
from convatlas.system.progress import Progress

VERSIONS = (4, torch.__version__, PIL.__version__)
"""Versions on which pixels depend besides files and preprocessing: of this file, and of the libraries it calls."""


def prepare_split(
    samples: Samples,
    split: str,
    preprocessing: Preprocessing,
    *,
    for_random_crop: bool,
    manifest: Manifest,
    progress: Progress | None = None,
) -> tuple[Images, list[UnreadableImage]]:
    """Return the images of a split as the network reads them, in the order of the samples, and the unreadable ones.

    for_random_crop: keep whole images, resized to squares.
    manifest: properties of the files; unchanged files whose pixels are cached are not opened. If neither the disk
        nor the memory has room for the pixels, every image is decoded once to find the unreadable ones, and again when
        it is used.
    """
    if isinstance(samples.pixels, Tensor):
        return _prepare_array(samples, samples.pixels, preprocessing, for_random_crop), []
    if samples.pixels is not None:
        return _prepare_sizes(samples, samples.pixels, preprocessing, for_random_crop), []
    info = manifest.look_up(samples.names, progress=progress, task=f"reading {split}")
    reasons = dict(info.unopened)
    opened = [i for i in range(len(samples)) if i not in reasons]
    key = json.dumps([VERSIONS, preprocessing.to_plain(), for_random_crop], sort_keys=True).encode()
    digest = hashlib.sha256(key + info.digests[opened].tobytes()).hexdigest()[:32]
    cache = PixelCache(digest, preprocessing.dtype)
    shape = (len(opened), *frame_shape(preprocessing, for_random_crop=for_random_crop))
    pixels, notes = cache.open(shape)
    if notes is None:
        pixels = cache.allocate(shape)
        load = partial(_load, preprocessing, for_random_crop, manifest)
        try:
            notes, temporary = _decode([samples.names[i] for i in opened], load, pixels, split, progress)
        except DataError:
            cache.discard()
            raise
        if temporary:
            cache.discard()
        else:
            cache.commit(pixels, notes)
    reasons |= {opened[int(i)]: reason for i, reason in notes["unreadable"].items()}
    readable = torch.tensor([i for i in opened if i not in reasons], dtype=torch.int64)
    names = [samples.names[i] for i in readable.tolist()]
    images = Images(
        # the readable ones come first
        Streamed(names, preprocessing, for_random_crop=for_random_crop) if pixels is None else pixels[: len(names)],
        samples.targets.take(readable),
        names,
        hashlib.sha256(np.ascontiguousarray(info.digests[readable.numpy()]).tobytes()).hexdigest(),
        torch.tensor(notes["aspects"], dtype=torch.float32) if for_random_crop else None,
    )
    unreadable = [UnreadableImage(samples.names[i], f"{samples.names[i]}: {reasons[i]}") for i in sorted(reasons)]
    return images, unreadable


def _prepare_array(samples: Samples, pixels: Tensor, preprocessing: Preprocessing, for_random_crop: bool) -> Images:
    digest = hashlib.sha256(str(tuple(pixels.shape)).encode() + pixels.contiguous().numpy().tobytes()).hexdigest()
    window = preprocessing.window
    if window is not None or pixels.dtype != torch.uint8 or pixels.shape[1] != preprocessing.channels:
        name = samples.names[0]
        check_scale(pixels.numpy().dtype, window, name)
        fractions = in_channels(shares(pixels), preprocessing.channels, name)
        check_shares(fractions, window, name)
        pixels = scale_to_255(fractions, window)
    height, width = pixels.shape[-2:]
    aspects = torch.full((len(pixels),), width / height) if for_random_crop else None
    pixels = frame(pixels, preprocessing, for_random_crop=for_random_crop)
    return Images(pixels, samples.targets, samples.names, digest, aspects)


def _prepare_sizes(
    samples: Samples, images: Sequence[Tensor], preprocessing: Preprocessing, for_random_crop: bool
) -> Images:
    """Prepare images of different sizes one after another."""
    parts = [
        _prepare_array(samples.subset(torch.tensor([i])), image[None], preprocessing, for_random_crop)
        for i, image in enumerate(images)
    ]
    aspects = [part.aspects for part in parts if part.aspects is not None]
    digest = hashlib.sha256("".join(part.digest for part in parts).encode()).hexdigest()
    pixels = torch.cat([part.pixels for part in parts if isinstance(part.pixels, Tensor)])
    return Images(pixels, samples.targets, samples.names, digest, torch.cat(aspects) if aspects else None)


@dataclass(frozen=True)
class _Unreadable:
    """Why an image is unreadable. temporary: it may be readable another time, with more free memory."""

    reason: str
    temporary: bool = False


def _load(
    preprocessing: Preprocessing, for_random_crop: bool, manifest: Manifest, name: str
) -> tuple[Tensor, float] | _Unreadable:
    """Return the pixels of an image file and its width over its height, or why it is unreadable.

    Raises UnavailableError if the file may be readable another time: that must not be stored.
    """
    data = manifest.contents(name, remove=True)
    try:
        return load_image(name, preprocessing, for_random_crop=for_random_crop, data=data)
    except UnavailableError:
        raise
    except DataError as error:
        out_of_memory = error.__cause__ is not None and is_out_of_memory(error.__cause__)
        return _Unreadable(str(error).removeprefix(printable(f"{name}: ")), out_of_memory)


def _decode(
    names: Sequence[str],
    load: partial[tuple[Tensor, float] | _Unreadable],
    pixels: Tensor | None,
    split: str,
    progress: Progress | None,
) -> tuple[Notes, bool]:
    """Write the readable images into `pixels`, one after another.

    Returns the notes of all, and whether an image may be readable another time.
    """
    unreadable: dict[str, str] = {}
    aspects: list[float] = []
    temporary = False
    for i, image in enumerate(map_in_threads(load, names)):
        if isinstance(image, _Unreadable):
            unreadable[str(i)] = image.reason
            temporary |= image.temporary
        else:
            if pixels is not None:
                pixels[len(aspects)] = image[0]
            aspects.append(image[1])
        if progress:
            progress(f"decoding {split}", i + 1, len(names))
    return {"unreadable": unreadable, "aspects": aspects}, temporary
