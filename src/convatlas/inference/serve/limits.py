"""The limits of a server, and the memory that requests can take within them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from convatlas.core.preprocessing import Preprocessing
from convatlas.core.record import Record, above, at_least
from convatlas.data.decode.headers import Header as ImageHeader
from convatlas.data.decode.video_info import VideoLimits
from convatlas.data.frame_reader import KEPT_BYTES
from convatlas.errors import InputError
from convatlas.system.cores import count_cores

BODIES = 16
"""Default of `Limits.body_bytes`, in requests of the maximum size."""

DECODE_BYTES = 24
"""Peak memory for decoding an image of 8 bits, in bytes per pixel: measured 14 for JPEG and PNG, 22 for WebP."""

HIGH_BIT_DEPTH_FACTOR = 4
"""An image of more than 8 bits counts as so many pixels of 8 bits: measured 45 bytes for 16 bits, 84 for floats."""

FRAME_FACTOR = 5
"""A frame of a video counts as so many images, because a decoder keeps the frames that others refer to. Measured bytes
per pixel of H.264 with 16 reference frames: 42 in 4:2:0 of 8 bits, 67 of 10 bits, 118 in 4:4:4 of 10 bits."""

FIRST_FRAME_BYTES = 24
"""Peak memory for opening a video, in bytes per pixel of its first frame: measured 2 to 20."""

CONNECTION_BYTES = 512 * 2**10
"""Maximum size of the buffers of one connection."""


@dataclass(frozen=True)
class Limits(Record):
    """The limits of a server.

    batch: images or clips in a batch. wait_s: seconds to wait until a batch is full.
    request_bytes, request_images: of one request.
    image_pixels: of one image, and of the images that are decoded at the same time; see `count_pixels`. A frame of a
        video counts `FRAME_FACTOR` times.
    video_seconds, video_frames: duration and number of frames of a video. video_clips: its clips along time.
    queue: images or videos that wait. connections: open connections.
    body_bytes: size of the bodies of all requests together, unfinished uploads included; 16 x request_bytes if None.
    header_s: seconds until the headers of a request are complete. request_s: seconds until its body is complete.
    idle_s: seconds without a byte of the body.
    """

    error = InputError

    batch: Annotated[int, at_least(1)] = 16
    wait_s: Annotated[float, at_least(0)] = 0.002
    request_bytes: Annotated[int, at_least(1)] = 32 * 2**20
    request_images: Annotated[int, at_least(1)] = 64
    image_pixels: Annotated[int, at_least(1)] = 50_000_000
    video_seconds: Annotated[float, above(0)] = 300.0
    video_frames: Annotated[int, at_least(1)] = 10_000
    video_clips: Annotated[int, at_least(1)] = 600
    queue: Annotated[int, at_least(1)] = 1024
    connections: Annotated[int, at_least(1)] = 512
    body_bytes: Annotated[int, at_least(1)] | None = None
    header_s: Annotated[float, above(0)] = 15.0
    request_s: Annotated[float, above(0)] = 60.0
    idle_s: Annotated[float, above(0)] = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_body_bytes < 2 * self.request_bytes:
            raise InputError(
                f"serve: --max-memory must be at least twice --max-bytes, {2 * self.request_bytes:,} bytes, got "
                f"{self.max_body_bytes:,}"
            )

    @property
    def max_body_bytes(self) -> int:
        """Maximum size of the bodies of all requests together."""
        return BODIES * self.request_bytes if self.body_bytes is None else self.body_bytes

    def count_pixels(self, header: ImageHeader) -> int:
        """Return an image's pixels, weighted by the memory for decoding them: by bit depth and number of channels."""
        width, height = header.size
        return width * height * math.ceil(header.channels / 3) * (HIGH_BIT_DEPTH_FACTOR if header.high_bit_depth else 1)

    @property
    def of_videos(self) -> VideoLimits:
        """The limits of a video before it is decoded."""
        return VideoLimits(self.image_pixels // FRAME_FACTOR, self.video_frames)

    def memory_bytes(self, preprocessing: Preprocessing) -> int:
        """Return the maximum memory for requests, in addition to the model.

        The sum of: all bodies, and a copy of one; the images in the queue as the network takes them; the images that
        are decoded at the same time; the buffers of all connections. Whole images in the queue count as decoded. Of
        videos, only those that are decoded have prepared frames; as many as there are cores are open at once.
        """
        bytes_per_value = 1 if preprocessing.window is None else 4
        values = self.image_pixels if preprocessing.is_whole else self.queue * preprocessing.crop**2
        prepared = preprocessing.channels * values * bytes_per_value
        if preprocessing.sampling is not None:
            clips = 2 * self.batch + 2 * preprocessing.sampling.clips
            clip_bytes = math.prod(preprocessing.item_shape) * bytes_per_value
            first = self.of_videos.frame_pixels * FIRST_FRAME_BYTES
            prepared = count_cores() * (KEPT_BYTES + clips * clip_bytes + first)
        return (
            self.max_body_bytes + self.request_bytes + prepared + self.image_pixels * DECODE_BYTES
            + self.connections * CONNECTION_BYTES
        )  # fmt: skip
