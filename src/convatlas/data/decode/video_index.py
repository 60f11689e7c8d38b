"""The packets of a video file: how many frames, when they appear, and where decoding can start."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

MIN_RATE, MAX_RATE = 0.001, 1000.0
"""Frame rates beyond are placeholders of a container."""

DEFAULT_RATE = 25.0
"""Frame rate of a stream without timestamps and without a rate: that of ffmpeg."""

FORMATS_WITHOUT_TIMESTAMPS = frozenset({"avi"})
"""AVI has a frame rate only. FFmpeg makes presentation timestamps of it that are wrong for B-frames: 1, 2, 4, 3, 5."""

ROUNDING = 2e-3
"""Seconds by which the distances of frames differ where timestamps are rounded to 1 ms."""

INDEPENDENT_KEY_FRAMES = frozenset(
    (
        "av1", "ffv1", "h263", "hevc", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "png", "prores",
        "theora", "vp8", "vp9",
    )
)  # fmt: skip
"""Codecs for which frames from a key frame on, in the order of display, need no frame before it."""

_IDR = 5


@dataclass(frozen=True)
class KeyFrame:
    """Where decoding can start. pts, dts: timestamps of the packet, in the stream's time base."""

    pts: int
    dts: int


@dataclass(frozen=True)
class PacketIndex:
    """What one pass over the packets of a stream gives.

    count: number of frames. timed: whether frames appear at `pts`, in order; else at multiples of 1 / rate.
    last: duration of the last frame, in time bases. keys: in the order of `pts`. rate: average number of frames per
    second. tick: time base in seconds.
    """

    count: int
    timed: bool
    pts: tuple[int, ...]
    last: int
    keys: tuple[KeyFrame, ...]
    rate: float
    tick: float

    @property
    def end(self) -> int:
        """Timestamp at which the last frame ends."""
        return self.pts[-1] + self.last

    @property
    def variable_rate(self) -> bool:
        """Whether the distances of frames differ by more than the rounding of containers."""
        gaps = [self.tick * (b - a) for a, b in pairwise(self.pts)]
        return bool(gaps) and max(gaps) - min(gaps) > max(ROUNDING, 0.1 * sum(gaps) / len(gaps))

    def number(self, pts: int) -> int:
        """Return how many frames have an earlier timestamp."""
        return bisect.bisect_left(self.pts, pts)

    def key_before(self, pts: float) -> KeyFrame | None:
        """Return the last key frame that appears at `pts` or before, if decoding can start there."""
        place = bisect.bisect_right(self.keys, pts, key=lambda key: key.pts) - 1
        return self.keys[place] if self.timed and place > 0 else None


def index_packets(packets: Iterable[Any], stream: Any, codec: str, container: str) -> PacketIndex:
    """Read the packets of a stream of PyAV without decoding them.

    container: name of the format.
    """
    length_bytes = nal_length_bytes(stream.codec_context.extradata) if codec == "h264" else 0
    count, timed = 0, container not in FORMATS_WITHOUT_TIMESTAMPS
    pts: list[int] = []
    keys: list[KeyFrame] = []
    last, duration = None, 0
    for packet in packets:
        if not packet.size or packet.is_discard:
            continue
        count += 1
        if packet.pts is None:
            timed = False
            continue
        pts.append(packet.pts)
        if last is None or packet.pts > last:
            last, duration = packet.pts, packet.duration or 0
        if packet.is_keyframe and (
            codec in INDEPENDENT_KEY_FRAMES or (codec == "h264" and has_idr(bytes(packet), length_bytes))
        ):
            keys.append(KeyFrame(packet.pts, packet.pts if packet.dts is None else packet.dts))
    pts.sort()
    tick = float(stream.time_base)
    gaps = [b - a for a, b in pairwise(pts)]
    timed = timed and bool(pts) and min(gaps, default=1) > 0
    rate = _plausible_rate(stream)
    if timed:
        mean = (pts[-1] - pts[0]) / len(gaps) if gaps else 1 / (rate * tick)
        if duration < min(gaps, default=1) / 2:  # a placeholder, such as 1 ms of FLV
            duration = max(1, round(mean))
        measured = count / ((pts[-1] - pts[0] + duration) * tick)
        rate = rate if abs(rate / measured - 1) < 0.05 else measured  # containers round timestamps to 1 ms
    keys.sort(key=lambda key: key.pts)
    return PacketIndex(count, timed, tuple(pts) if timed else (), duration, tuple(keys), rate, tick)


def _plausible_rate(stream: Any) -> float:
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate is not None and MIN_RATE <= rate <= MAX_RATE:
            return float(rate)
    return DEFAULT_RATE


def nal_length_bytes(extradata: bytes | None) -> int:
    """Return how many bytes the length of a NAL unit of H.264 has; 0 if start codes separate them.

    ISO/IEC 14496-15, 5.3.3.1: the decoder configuration record.
    """
    return (extradata[4] & 3) + 1 if extradata and len(extradata) > 4 and extradata[0] == 1 else 0


def has_idr(packet: bytes, length_bytes: int) -> bool:
    """Return whether a packet of H.264 has an IDR picture, behind which no frame needs one before it.

    Containers mark other intra pictures as key frames too: recovery points, from which frames become right slowly.
    """
    if not length_bytes:
        place = packet.find(b"\0\0\1")
        while place >= 0 and place + 3 < len(packet):
            if packet[place + 3] & 31 == _IDR:
                return True
            place = packet.find(b"\0\0\1", place + 3)
        return False
    place = 0
    while place + length_bytes < len(packet):
        if packet[place + length_bytes] & 31 == _IDR:
            return True
        place += length_bytes + int.from_bytes(packet[place : place + length_bytes], "big")
    return False


TAG_BYTES = 2**24
"""Number of bytes in which `codec_tag` searches."""

_TAG = re.compile(rb"vide.{0,4000}?stsd.{12}(....)|vids(....)|\x86.(V_[A-Z0-9_/]+)", re.DOTALL)


def codec_tag(data: bytes) -> str:
    """Return the code of the video codec in the header of an MP4, AVI or Matroska file; PyAV knows only its own."""
    match = _TAG.search(data)
    tag = next(filter(None, match.groups()), b"") if match else b""
    return repr(tag.decode("latin-1")) if tag else "of its video stream"
