"""Images prepared for a network once: decoded, resized, and kept in a file of the cache, or in memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL
import torch
from torch import Tensor

from convatlas.core.preprocessing import Preprocessing
from convatlas.data.dataset import Images, UnreadableImage
from convatlas.data.decode.files import UnavailableError
from convatlas.data.decode.pixels import in_channels, shares
from convatlas.data.pixel_cache import Notes, PixelCache
from convatlas.data.samples import Listing
from convatlas.data.stream import Pixels, Streamed, load_image
from convatlas.errors import DataError
from convatlas.system.cache import cache_folder
from convatlas.system.files import sha256
from convatlas.system.progress import Progress

VERSIONS = (2, torch.__version__, PIL.__version__)
"""What the pixels depend on besides files and preprocessing: this file, and who decodes and resizes."""


def prepared(
    listing: Listing,
    split: str,
    steps: Preprocessing,
    for_random_crop: bool,
    unreadable: list[UnreadableImage],
    progress: Progress | None,
) -> Images:
    """Return the images of one split as the network reads them, in the order of the listing.

    roomy: whole images in squares, for random crops. Images that cannot be read are added to `unreadable`. Where
    neither the cache nor the memory has place for the pixels, they are looked at once, and decoded again when they are
    used.
    """
    if listing.pixels is not None:
        return _of_array(listing, listing.pixels, steps, for_random_crop)
    digests: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for digest in pool.map(_digest, listing.names):
            digests.append(digest)
            if progress:
                progress(f"looking for {split}", len(digests), len(listing))
    told = json.dumps([VERSIONS, steps.to_plain(), for_random_crop, digests], sort_keys=True)
    store = PixelCache(cache_folder() / "images" / hashlib.sha256(told.encode()).hexdigest()[:32], steps.dtype)
    side = steps.resize if for_random_crop else steps.size
    shape = (len(listing), steps.channels, side, side)
    pixels, notes = store.opened(shape)
    if notes is None:
        pixels = store.room(shape)
        try:
            notes = _read(listing, split, steps, for_random_crop, digests, pixels, progress)
        except DataError:
            store.clear()
            raise
        store.close(pixels, notes)
    reasons = {int(i): reason for i, reason in notes["unreadable"].items()}
    unreadable += [UnreadableImage(listing.names[i], f"{listing.names[i]}: {reason}") for i, reason in reasons.items()]
    kept = torch.tensor([i for i in range(len(listing)) if i not in reasons], dtype=torch.int64)
    whole = hashlib.sha256("".join(digests[i] for i in kept.tolist()).encode()).hexdigest()
    aspects = torch.tensor(notes["aspects"], dtype=torch.float32) if for_random_crop else None
    names = [listing.names[i] for i in kept.tolist()]
    # of those that are held, the readable ones come first
    found: Pixels = Streamed(names, steps, for_random_crop=for_random_crop) if pixels is None else pixels[: len(kept)]
    return Images(found, listing.labels[kept], names, whole, aspects)


def _of_array(listing: Listing, pixels: Tensor, steps: Preprocessing, for_random_crop: bool) -> Images:
    digest = hashlib.sha256(str(tuple(pixels.shape)).encode() + pixels.contiguous().numpy().tobytes()).hexdigest()
    if steps.window is not None or pixels.dtype != torch.uint8 or pixels.shape[1] != steps.channels:
        low, high = steps.window or (0.0, 1.0)
        share = in_channels(shares(pixels), steps.channels, listing.names[0])
        pixels = ((share - low) / (high - low)).clamp(0, 1) * 255
        pixels = pixels.round().byte() if steps.window is None else pixels
    height, width = pixels.shape[-2:]
    aspects = torch.full((len(pixels),), width / height) if for_random_crop else None
    ready = steps.squeezed(pixels) if for_random_crop else steps.geometry(pixels)
    return Images(ready, listing.labels, listing.names, digest, aspects)


def _digest(name: str) -> str:
    try:
        return sha256(Path(name))
    except OSError as error:
        return f"{_UNOPENED}{error.strerror}"


_UNOPENED = "cannot be opened: "
"""How the digest of a file begins that has none."""


def _read(
    listing: Listing, split: str, steps: Preprocessing, for_random_crop: bool, digests: Sequence[str], pixels: Tensor | None,
    progress: Progress | None,
) -> Notes:  # fmt: skip
    """Decode and resize the images into `pixels`, the readable ones first, and return what is to be known of them.

    Raises DataError if one cannot be read here and now: that it is unreadable must not be remembered.
    """

    def read(name: str, digest: str) -> tuple[Tensor, float] | str:
        if digest.startswith(_UNOPENED):
            return digest
        try:
            return load_image(Path(name), steps, for_random_crop=for_random_crop)
        except UnavailableError:
            raise
        except DataError as error:
            return str(error).removeprefix(f"{name}: ")

    unreadable: dict[str, str] = {}
    aspects: list[float] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for i, image in enumerate(pool.map(read, listing.names, digests)):
            if isinstance(image, str):
                unreadable[str(i)] = image
            else:
                if pixels is not None:
                    pixels[len(aspects)] = image[0]
                aspects.append(image[1])
            if progress:
                progress(f"reading {split}", i + 1, len(listing))
    return {"unreadable": unreadable, "aspects": aspects}
