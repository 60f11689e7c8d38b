"""Prepare the images of a split for a network: decoded and resized once, then read from the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

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
from convatlas.data.pixel_cache import Notes, PixelCache, PixelWriter
from convatlas.data.samples import Samples
from convatlas.data.stream import Pixels, Streamed
from convatlas.data.threads import map_in_threads
from convatlas.data.whole_images import Size, WholeImages, check_size, count_values, view_images
from convatlas.errors import ConvatlasError, DataError, printable
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

    Whole images keep their size, which must be that of their objects: DataError names the image otherwise.
    for_random_crop: keep whole images, resized to squares.
    manifest: properties of the files; unchanged files whose pixels are cached are not opened. If neither the disk
        nor the memory has room for the pixels, every image is decoded once to find the unreadable ones, and again when
        it is used.
    """
    if samples.pixels is not None:
        return _prepare_memory(samples, samples.pixels, preprocessing, for_random_crop), []
    info = manifest.look_up(samples.names, progress=progress, task=f"reading {split}")
    reasons = dict(info.unopened)
    opened = [i for i in range(len(samples)) if i not in reasons]
    sizes = _sizes(samples, opened) if preprocessing.is_whole else None
    store = _Store(preprocessing, len(opened), for_random_crop, sizes)
    key = json.dumps([VERSIONS, store.key()], sort_keys=True).encode()
    digest = hashlib.sha256(key + info.digests[opened].tobytes()).hexdigest()[:32]
    cache = PixelCache(digest, preprocessing.dtype)
    pixels, notes = cache.open(store.shape, len(opened))
    if notes is None:
        writer = cache.allocate(store.shape)
        load = partial(_load, preprocessing, for_random_crop, manifest)
        try:
            notes, temporary = _decode([samples.names[i] for i in opened], load, sizes, writer, split, progress)
            pixels = writer.finish() if writer else None
        except ConvatlasError:
            cache.discard()
            raise
        if temporary:
            cache.discard()
        else:
            cache.commit(pixels, notes)
    unreadable = {int(i) for i in notes["unreadable"]}
    reasons |= {opened[int(i)]: reason for i, reason in notes["unreadable"].items()}
    kept = [i for i in range(len(opened)) if i not in unreadable]
    readable = torch.tensor([opened[i] for i in kept], dtype=torch.int64)
    names = [samples.names[i] for i in readable.tolist()]
    images = Images(
        store.images(pixels, kept, names),
        samples.targets.take(readable),
        names,
        hashlib.sha256(np.ascontiguousarray(info.digests[readable.numpy()]).tobytes()).hexdigest(),
        torch.tensor(notes["aspects"], dtype=torch.float32) if for_random_crop else None,
    )
    skipped = [UnreadableImage(samples.names[i], f"{samples.names[i]}: {reasons[i]}") for i in sorted(reasons)]
    return images, skipped


@dataclass(frozen=True)
class _Store:
    """How the pixels of `count` images are stored in one tensor: those of one size, or whole images of `sizes`."""

    preprocessing: Preprocessing
    count: int
    for_random_crop: bool
    sizes: Sequence[Size] | None

    def key(self) -> object:
        """Return everything on which pixels depend besides the files."""
        if self.sizes is None:
            return [self.preprocessing.to_plain(), self.for_random_crop]
        return [self.preprocessing.channels, self.preprocessing.window, self.sizes]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor; whole images are stored one after another, (values,)."""
        if self.sizes is None:
            return (self.count, *frame_shape(self.preprocessing, for_random_crop=self.for_random_crop))
        return (count_values(self.sizes, self.preprocessing.channels),)

    def images(self, pixels: Tensor | None, kept: Sequence[int], names: Sequence[str]) -> Pixels:
        """Return the readable images, which come first; without pixels they are decoded when they are indexed.

        kept: their numbers among the `count` images. names: of their files.
        """
        if self.sizes is not None:
            sizes = [self.sizes[i] for i in kept]
            views = names if pixels is None else view_images(pixels, sizes, self.preprocessing.channels)
            return WholeImages(views, sizes, self.preprocessing)
        if pixels is None:
            return Streamed(names, self.preprocessing, for_random_crop=self.for_random_crop)
        return pixels[: len(kept)]


def _sizes(samples: Samples, numbers: Iterable[int]) -> list[Size]:
    """Return the (height, width) of images as their annotations state it."""
    objects: Sequence[Any] = list(samples.targets["objects"])
    return [objects[i].size for i in numbers]


def _prepare_memory(
    samples: Samples, images: Tensor | Sequence[Tensor], preprocessing: Preprocessing, for_random_crop: bool
) -> Images:
    """Prepare images in memory; whole ones and those of different sizes one after another."""
    if isinstance(images, Tensor) and not preprocessing.is_whole:
        return _prepare_array(samples, images, preprocessing, for_random_crop)
    sizes = _sizes(samples, range(len(samples))) if preprocessing.is_whole else None
    parts: list[Images] = []
    for i, image in enumerate(images):
        if sizes is not None:
            check_size(image, sizes[i], samples.names[i])
        parts.append(_prepare_array(samples.subset(torch.tensor([i])), image[None], preprocessing, for_random_crop))
    digest = hashlib.sha256("".join(part.digest for part in parts).encode()).hexdigest()
    pixels = [part.pixels for part in parts if isinstance(part.pixels, Tensor)]
    if sizes is not None:
        whole = WholeImages([each[0] for each in pixels], sizes, preprocessing)
        return Images(whole, samples.targets, samples.names, digest)
    aspects = [part.aspects for part in parts if part.aspects is not None]
    return Images(torch.cat(pixels), samples.targets, samples.names, digest, torch.cat(aspects) if aspects else None)


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
    sizes: Sequence[Size] | None,
    writer: PixelWriter | None,
    split: str,
    progress: Progress | None,
) -> tuple[Notes, bool]:
    """Write the readable images, one after another.

    sizes: of whole images, as their annotations state them; DataError names the first that has another one.
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
            if sizes is not None:
                check_size(image[0], sizes[i], names[i])
            if writer is not None:
                writer.write(image[0])
            aspects.append(image[1])
        if progress:
            progress(f"decoding {split}", i + 1, len(names))
    return {"unreadable": unreadable, "aspects": aspects}, temporary
