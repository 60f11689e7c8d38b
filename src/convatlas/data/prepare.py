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
    in_channels,
    scale_to_255,
    shares,
)
from convatlas.data.frame_reader import open_reader, sampling_of
from convatlas.data.manifest import Manifest
from convatlas.data.pixel_cache import Notes, PixelCache, PixelWriter
from convatlas.data.samples import Samples
from convatlas.data.stores import Loaded, Store, store_of
from convatlas.data.threads import map_in_threads
from convatlas.data.videos import SHORTER_CLIPS, Videos, load_clips
from convatlas.data.whole_images import Size, WholeImages, check_size
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
    for_random_clips: bool = False,
    manifest: Manifest,
    progress: Progress | None = None,
) -> tuple[Images, list[UnreadableImage]]:
    """Return the images of a split as the network reads them, in the order of the samples, and the unreadable ones.

    Whole images keep their size, which must be that of their objects: DataError names the image otherwise.
    for_random_crop: keep whole images, resized to squares. for_random_clips: keep all frames of videos.
    manifest: properties of the files; unchanged files whose pixels are cached are not opened. If neither the disk
        nor the memory has room for the pixels, every image is decoded once to find the unreadable ones, and again when
        it is used.
    """
    if samples.pixels is not None and preprocessing.sampling is not None:
        return _prepare_videos(
            samples, samples.pixels, preprocessing, for_random_crop=for_random_crop, for_random_clips=for_random_clips
        )
    if samples.pixels is not None:
        return _prepare_memory(samples, samples.pixels, preprocessing, for_random_crop), []
    info = manifest.look_up(samples.names, progress=progress, task=f"reading {split}")
    reasons = dict(info.unopened)
    opened = [i for i in range(len(samples)) if i not in reasons]
    sizes = _sizes(samples, opened) if preprocessing.is_whole else None
    names = [samples.names[i] for i in opened]
    store = store_of(
        preprocessing, names, for_random_crop=for_random_crop, for_random_clips=for_random_clips, sizes=sizes
    )
    key = json.dumps([VERSIONS, store.key()], sort_keys=True).encode()
    digest = hashlib.sha256(key + info.digests[opened].tobytes()).hexdigest()[:32]
    cache = PixelCache(digest, preprocessing.dtype)
    pixels, notes = cache.open(store.shape_of, len(opened))
    if notes is None:
        writer = cache.allocate(store.shape(None))
        try:
            notes, writer, temporary = _decode(store, manifest, writer, split, progress)
            pixels = writer.finish(store.shape_of(notes)) if writer else None
        except BaseException:  # also an interruption: in a notebook the process lives on
            cache.discard()
            raise
        if temporary or pixels is None:
            cache.discard()
        if not temporary:
            cache.commit(pixels, notes)
    unreadable = {int(i) for i in notes["unreadable"]}
    reasons |= {opened[int(i)]: reason for i, reason in notes["unreadable"].items()}
    kept = [i for i in range(len(opened)) if i not in unreadable]
    readable = torch.tensor([opened[i] for i in kept], dtype=torch.int64)
    digests = np.ascontiguousarray(info.digests[readable.numpy()]).tobytes()
    images = Images(
        store.images(pixels, kept, notes),
        samples.targets.take(readable),
        store.kept_names(kept),
        hashlib.sha256(digests).hexdigest(),
        torch.tensor(notes["aspects"], dtype=torch.float32) if for_random_crop else None,
    )
    skipped = [UnreadableImage(samples.names[i], f"{samples.names[i]}: {reasons[i]}") for i in sorted(reasons)]
    return images, skipped


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


def _prepare_videos(
    samples: Samples, videos: Tensor | Sequence[Tensor], preprocessing: Preprocessing, *, for_random_crop: bool,
    for_random_clips: bool,
) -> tuple[Images, list[UnreadableImage]]:  # fmt: skip
    """Prepare videos in memory, each uint8 (frames, channels, h, w); those shorter than a clip are unreadable."""
    kept: list[int] = []
    parts: list[Tensor] = []
    aspects: list[float] = []
    digest = hashlib.sha256()
    unreadable: list[UnreadableImage] = []
    for i, (name, video) in enumerate(zip(samples.names, videos, strict=True)):
        try:
            if for_random_clips:
                with open_reader(
                    video, preprocessing, for_random_crop=for_random_crop, name=name, fix=SHORTER_CLIPS
                ) as reader:
                    parts.append(reader.all_frames())
                    aspects.append(reader.aspect)
            else:
                parts.append(load_clips(video, preprocessing, name=name))
            kept.append(i)
            digest.update(str(tuple(video.shape)).encode())
            digest.update(video.contiguous().numpy().data)
        except DataError as error:
            unreadable.append(UnreadableImage(name, str(error)))
    samples = samples.subset(torch.tensor(kept, dtype=torch.int64))
    if not for_random_clips:
        shape = (0, sampling_of(preprocessing).clips, *preprocessing.item_shape)
        clips = torch.stack(parts) if parts else torch.empty(shape, dtype=preprocessing.dtype)
        return Images(clips, samples.targets, samples.names, digest.hexdigest()), unreadable
    pixels = Videos(parts, [len(part) for part in parts], preprocessing, for_random_crop=for_random_crop)
    ratios = torch.tensor(aspects) if for_random_crop else None
    return Images(pixels, samples.targets, samples.names, digest.hexdigest(), ratios), unreadable


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


def _load(store: Store, manifest: Manifest, number: int) -> Loaded | _Unreadable:
    """Return the pixels of a file, or why it is unreadable.

    Raises UnavailableError if the file may be readable another time: that must not be stored.
    """
    name = store.names[number]
    data = manifest.contents(name, remove=True)
    try:
        return store.load(number, data)
    except DataError as error:
        return _reason(error, name)


def _reason(error: DataError, name: str) -> _Unreadable:
    if isinstance(error, UnavailableError):
        raise error
    out_of_memory = error.__cause__ is not None and is_out_of_memory(error.__cause__)
    return _Unreadable(str(error).removeprefix(printable(f"{name}: ")), out_of_memory)


def _decode(
    store: Store, manifest: Manifest, writer: PixelWriter | None, split: str, progress: Progress | None
) -> tuple[Notes, PixelWriter | None, bool]:
    """Write the readable images, one after another.

    Returns the notes of all, the writer unless there was no room for all pixels, and whether an image may be readable
    another time. Raises DataError for the first image that does not fit its annotations.
    """
    notes: Notes = {"unreadable": {}, "aspects": [], "frames": []}
    temporary = False
    numbers = range(len(store.names))
    loaded = map_in_threads(partial(_load, store, manifest), numbers, per_task=store.files_per_task)
    for i, each in enumerate(loaded):
        if isinstance(each, Loaded):
            store.check(each, i)
            frames, written = 0, writer.written if writer else 0
            try:
                for part in each.parts:
                    frames += len(part)
                    if writer is not None and not writer.write(part):
                        writer = None
            except DataError as error:  # of a long video, which is decoded here
                each = _reason(error, store.names[i])
                if writer is not None:
                    writer.rewind(written)
        if isinstance(each, _Unreadable):
            notes["unreadable"][str(i)] = each.reason
            temporary |= each.temporary
        else:
            notes["aspects"].append(each.aspect)
            if store.has_frames:
                notes["frames"].append(frames)
        if progress:
            progress(f"decoding {split}", i + 1, len(numbers))
    return notes, writer, temporary
