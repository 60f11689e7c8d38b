"""RGB of decoded frames, upright."""

from __future__ import annotations

import math
import struct
from typing import Any

from convatlas.data.decode.video_info import Rgb
from convatlas.errors import DataError, brief, foreign_errors

UPRIGHT_FILTERS: dict[tuple[int, bool], tuple[tuple[str, str | None], ...]] = {
    (0, False): (), (90, False): (("transpose", "clock"),), (180, False): (("hflip", None), ("vflip", None)),
    (270, False): (("transpose", "cclock"),), (0, True): (("hflip", None),), (90, True): (("transpose", "clock_flip"),),
    (180, True): (("vflip", None),), (270, True): (("transpose", "cclock_flip"),),
}  # fmt: skip
"""Filters of FFmpeg for each (rotation, mirrored)."""


class RgbConverter:
    """Makes RGB of the frames of a video.

    It uses the filters that the ffmpeg executable inserts, in its order: frames are turned upright in their own pixel
    format, and converted by swscale with bicubic interpolation of chroma. So pixels equal those of
    `ffmpeg -i FILE -pix_fmt rgb24`.
    """

    def __init__(self, av: Any, first: Any, name: object) -> None:
        """Take the display matrix of the first frame. av: the module. name: begins errors."""
        self._av, self._name = av, name
        self._graph: Any = None
        self._format = ""
        self.rotation, self.mirrored = orientation(display_matrix(first))

    def rgb(self, frame: Any) -> Rgb:
        """Return a frame of PyAV, of the size of the first one, as uint8 (height, width, 3), upright."""
        with foreign_errors(self._name, DataError, "a frame cannot be converted to RGB", describe):
            if frame.format.name != self._format:
                self._graph, self._format = self._build_graph(frame), frame.format.name
            self._graph.push(frame)
            rgb: Rgb = self._graph.pull().to_ndarray()
        return rgb

    def _build_graph(self, frame: Any) -> Any:
        graph = self._av.filter.Graph()
        graph.threads = 1
        node = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
        upright = UPRIGHT_FILTERS[self.rotation, self.mirrored]
        for name, options in (*upright, ("scale", "flags=bicubic"), ("format", "rgb24"), ("buffersink", None)):
            following = graph.add(name, options)
            node.link_to(following)
            node = following
        graph.configure()
        return graph


def display_matrix(frame: Any) -> tuple[int, ...] | None:
    """Return the 9 numbers of the display matrix of a frame of PyAV; None if it has none."""
    data = frame.side_data.get("DISPLAYMATRIX")
    return struct.unpack("=9i", bytes(data)) if data is not None else None


def orientation(matrix: tuple[int, ...] | None) -> tuple[int, bool]:
    """Return how frames become upright: clockwise rotation in degrees, and whether they are mirrored before that.

    ISO/IEC 14496-12, 6.2.2: a point (x, y) of a stored frame is shown at (a x + c y, b x + d y). Other rotations than
    multiples of 90 degrees are not applied.
    """
    if matrix is None:
        return 0, False
    a, b, _, c, d = matrix[:5]
    mirrored = a * d - b * c < 0
    angle = math.degrees(math.atan2(b, a)) + 180 * mirrored
    rotation = round(angle / 90) * 90
    if (a, b) == (0, 0) or abs(angle - rotation) >= 1:
        return 0, False
    return rotation % 360, mirrored


def describe(error: BaseException) -> str:
    """Return the message of an error of PyAV without its number and the name of the file."""
    return getattr(error, "strerror", None) or brief(error)
