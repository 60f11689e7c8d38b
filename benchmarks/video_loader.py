"""Epochs of training clips from files: convatlas against a loader of PyAV with worker processes, interleaved.

    python benchmarks/video_loader.py FOLDER [--epochs 5] [--batch 8] [--workers 2] [--frames 16] [--rate 15]
        [--crop-area 0]

FOLDER is DATA of convatlas: a folder per class, or train/ and test/ of them; the loaders read the training videos. All
sides cut a clip of `--frames` frames at `--rate` frames per second at a random place of each video, take a random crop
of 112 px, flip half of the clips and standardize them. The PyAV loader is a Dataset in a DataLoader with persistent
workers: it decodes from the key frame before the clip to its last frame, converts only the frames of the clip, and
transforms with torchvision.transforms.v2 as torchvision's references for video classification do: resize to 128 x 171
px, RandomCrop; convatlas shifts a center crop by up to 8 px. With `--crop-area 0.35`, both sides have random resized
crops of at least this share of a frame, as the recipe finetune. convatlas is `BatchLoader`: the first epoch of
"convatlas" includes decoding all frames of the videos into an empty cache; "convatlas streamed" has no room for a cache
and decodes the clips in every epoch. Opening the data belongs to no epoch. Each side has a process of its own; they
take turns, one epoch each. Prints clips/s of each epoch and of all epochs together, and the ratios to the PyAV loader.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from convatlas.core.clips import ClipSampling
from convatlas.core.preprocessing import Preprocessing
from convatlas.data import pixel_cache
from convatlas.data.augment import Augment
from convatlas.data.loader import BatchLoader
from convatlas.data.open import open_data
from convatlas.models.catalog import variant
from interleave import SideProcess, compare_epochs, serve_steps

PYAV, CACHED, STREAMED = "PyAV", "convatlas", "convatlas streamed"
SIDES = (PYAV, CACHED, STREAMED)


def steps_for(sampling: ClipSampling) -> Preprocessing:
    return replace(variant("r3d_18").preprocessing, sampling=sampling)


def convatlas_epochs(
    data: Path, sampling: ClipSampling, batch: int, crop_area: float, *, cached: bool
) -> Iterator[int]:
    if not cached:
        pixel_cache.CACHE_LIMIT = pixel_cache.MEMORY_LIMIT = 0
    source = open_data(data, reads="clips")
    steps = steps_for(sampling)
    yield 0
    train = source.load(steps, for_random_crop=crop_area > 0, for_random_clips=True).train
    augment = Augment(flip=True, min_crop_area=crop_area, max_shift=0 if crop_area else 8)
    loader = BatchLoader(train, steps, source.task, batch=batch, seed=0, augment=augment)
    for epoch in range(10**6):
        yield sum(len(part.inputs) for part in loader.epoch(epoch))


class PyAVClips(Dataset[Any]):
    """One clip of each video, at a random place."""

    def __init__(self, names: list[str], sampling: ClipSampling, crop_area: float) -> None:
        self.names, self.sampling = names, sampling
        steps = steps_for(sampling)
        crops: list[Any] = [v2.Resize((128, 171), antialias=False), v2.RandomCrop(112)]
        if crop_area:
            crops = [v2.RandomResizedCrop(112, scale=(crop_area, 1))]
        self.transforms = v2.Compose([
            *crops, v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(steps.mean, steps.std),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        frames = self.transforms(read_clip(self.names[index], self.sampling))
        clip: Tensor = frames.transpose(0, 1)
        return clip


def read_clip(name: str, sampling: ClipSampling) -> Tensor:
    """Return a random clip (frames, 3, h, w) uint8: frames are chosen by their timestamps, and only those converted."""
    with av.open(name) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # the cores belong to the workers
        times = sorted(
            float(packet.pts * stream.time_base) for packet in container.demux(stream) if packet.pts is not None
        )
        start = times[0] + random.random() * max(0.0, times[-1] - times[0] - sampling.seconds)
        wanted = [max(0, bisect_right(times, start + k / sampling.rate) - 1) for k in range(sampling.frames)]
        container.seek(int(times[wanted[0]] / stream.time_base), stream=stream)
        images: dict[int, Tensor] = {}
        for frame in container.decode(stream):
            assert frame.time is not None
            number = bisect_right(times, frame.time + 1e-6) - 1
            if number in wanted:
                images[number] = torch.from_numpy(frame.to_ndarray(format="rgb24"))
            if number >= wanted[-1]:
                break
    return torch.stack([images[number] for number in wanted]).permute(0, 3, 1, 2)


def pyav_epochs(data: Path, sampling: ClipSampling, batch: int, crop_area: float, workers: int) -> Iterator[int]:
    videos = PyAVClips(list(open_data(data, reads="clips").splits["train"].names), sampling, crop_area)
    loader = DataLoader(
        videos, batch_size=batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )  # fmt: skip
    yield 0
    while True:
        yield sum(len(clips) for clips in loader)


def compare(arguments: argparse.Namespace, command: list[str]) -> None:
    sides = {name: SideProcess(__file__, "--serve", name, *command) for name in SIDES}
    print(f"{os.cpu_count()} cores; clips/s of whole epochs, batch {arguments.batch}, {arguments.workers} workers")
    compare_epochs(sides, arguments.epochs, baseline=PYAV)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--rate", type=float, default=15)
    parser.add_argument("--crop-area", type=float, default=0.0)
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sampling = ClipSampling(arguments.frames, arguments.rate)
    common = arguments.folder, sampling, arguments.batch, arguments.crop_area
    if arguments.serve == PYAV:
        serve_steps(pyav_epochs(*common, arguments.workers))
    elif arguments.serve:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["CONVATLAS_CACHE"] = cache
            serve_steps(convatlas_epochs(*common, cached=arguments.serve == CACHED))
    else:
        command = [str(arguments.folder)]
        for option in ("batch", "workers", "frames", "rate", "crop_area"):
            command += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
        compare(arguments, command)


if __name__ == "__main__":
    main()
