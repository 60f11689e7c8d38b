"""Frames of video files, decoded by PyAV (FFmpeg)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import IO, Any, NamedTuple

from convatlas.data.decode.files import UnavailableError
from convatlas.data.decode.video_index import TAG_BYTES, PacketIndex, codec_tag, index_packets
from convatlas.data.decode.video_info import StoredFrame, VideoInfo, VideoLimits
from convatlas.data.decode.video_rgb import RgbConverter, describe
from convatlas.errors import DataError, foreign_errors
from convatlas.system.extras import import_optional

MIN_VERSION = 18
"""Of PyAV: older ones crash when options are given for a file whose streams are not in its header."""

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "live_flv", "mpegts", "mpeg", "mpegvideo", "asf", "ogg",
    "h264", "hevc", "vvc", "av1", "obu", "ivf", "m4v", "mjpeg", "mxf", "rm", "dv", "nut", "yuv4mpegpipe", "vc1", "wtv",
    "gif", "swf", "nsv",
)  # fmt: skip
"""Formats of FFmpeg that are read. Others open further files or addresses, or make a film of a text file."""

OPTIONS = {"format_whitelist": ",".join(FORMATS)}

DECODER_OPTIONS = {"err_detect": "explode"}
"""By default decoders make up what is damaged."""

BUFFER_BYTES = 2**18

WHOLE = 0.9
"""Share of the frames or seconds of its header that a file must have. Headers of whole files are a few frames wrong."""

FORMATS_WITH_DURATION = ("matroska,webm",)
"""Formats with a duration in the header, whose readers take the end of a truncated file for the end of the video."""

_ATTACHED_PICTURE = 0x400
"""AV_DISPOSITION_ATTACHED_PIC."""

_FIX = "convert it, for example with ffmpeg -i {name} -c:v libx264 film.mp4, or leave it out"


class _Decoding(NamedTuple):
    """PyAV's container and stream that are being decoded, the first frame, and an iterator over all frames.

    resources: closes the container and its file.
    """

    container: Any
    stream: Any
    first: Any
    frames: Iterator[Any]
    resources: ExitStack


class FileSource:
    """A video file that is open; see `video_info.FrameSource`."""

    def __init__(self, open_file: Callable[[], IO[bytes]], name: object, threads: int, limits: VideoLimits) -> None:
        """Open the first video stream of a file and decode its first frame.

        open_file: returns the file, read only; it is called again for each pass over the file. threads: of the decoder;
        0: of all cores. Raises DataError that begins with `name`; UnavailableError if PyAV is not installed.
        """
        self._av = _import_av(name)
        self._open_file, self._name, self._threads, self._limits = open_file, name, threads, limits
        self._max_pixels = {"max_pixels": str(2 * limits.frame_pixels)}  # decoded frames are wider and higher
        self._open: set[ExitStack] = set()
        try:
            self._index = self._scan()
            self._started: _Decoding | None = self._start()
            first = self._started.first
            self._timed, self._zero = self._index.timed, first.pts or 0
            self._end = self._time(self._index.end) if self._timed else self._index.count / self._index.rate
            limits.check_size(first.height, first.width, name)
            self._converter = RgbConverter(self._av, first, name)
            rotation, mirrored = self._converter.rotation, self._converter.mirrored
            height, width = (first.width, first.height) if rotation % 180 else (first.height, first.width)
            self.info = VideoInfo(
                self._codec, height, width, self._index.rate, self._end, self._index.count, rotation, mirrored,
                self._index.variable_rate,
            )  # fmt: skip
        except BaseException:
            self.close()
            raise

    @property
    def end(self) -> float:
        """Seconds from the first frame to the end of the last one. Final once all frames are decoded."""
        return self._end

    def close(self) -> None:
        """Close the file; iterators end."""
        for resources in list(self._open):
            self._release(resources)

    def _release(self, resources: ExitStack) -> None:
        self._open.discard(resources)
        with suppress(Exception):
            resources.close()

    def stored(self, start: float = 0.0) -> Iterator[StoredFrame]:
        """Yield the stored frames in the order of display, from the one that is shown at `start` seconds or before.

        Decoding starts at a key frame if that gives the frames of decoding from the start of the file: the index knows
        that frames behind it need none before, and the decoder gives a key frame at its timestamp, without errors.
        """
        number = 0
        if start > 0 and (key := self._key_before(start)):
            with self._decoding() as started:
                offset = self._index.number(self._zero)
                for frame in self._after_seeking(started, key):
                    if frame is None:
                        break
                    number = self._index.number(frame.pts) - offset
                    yield self._stored(number, self._time(frame.pts), frame)
                    number += 1
                else:
                    return
        yield from itertools.dropwhile(lambda stored: stored.number < number, self._from_start())

    @contextmanager
    def _decoding(self) -> Iterator[_Decoding]:
        """Open the file for one pass, and close it: a decoder keeps up to 16 frames."""
        started, self._started = self._started or self._start(), None
        try:
            yield started
        finally:
            self._release(started.resources)

    def _from_start(self) -> Iterator[StoredFrame]:
        timed, latest, origin, time = self._timed, -math.inf, (0.0, 0), 0.0
        with self._decoding() as started:
            for number, frame in enumerate(started.frames):
                if timed and (frame.pts is None or frame.pts <= latest):
                    timed = self._timed = False  # by number from here on
                    origin = self._time(latest), number - 1
                if timed:
                    latest = frame.pts
                time = self._time(latest) if timed else origin[0] + (number - origin[1]) / self._index.rate
                yield self._stored(number, time, frame)
        self._end = time + (self._index.last * self._index.tick if timed else 1 / self._index.rate)

    def _key_before(self, start: float) -> Any:
        """Return the last key frame before `start` seconds, if it is not the first frame and seeking is safe."""
        key = self._index.key_before(self._zero + start / self._index.tick) if self._timed else None
        return None if key is None or key.pts <= self._zero else key

    def _after_seeking(self, started: _Decoding, key: Any) -> Iterator[Any]:
        """Return the frames of PyAV from a key frame on.

        The last one is None if the next frame has an error, perhaps one that decoding from the start does not have.
        """
        # the first frame is decoded before: x264 writes its version there, which FFmpeg needs for frames of 4:4:4
        try:
            started.container.seek(key.dts, stream=started.stream, backward=True)
            decoded = self._decode(started.container, started.stream)
            frames = (frame for frame in decoded if frame.pts is None or frame.pts >= key.pts)
            first = next(frames, None)
        except (DataError, self._av.error.FFmpegError):
            return iter((None,))
        if first is None or first.pts != key.pts or not first.key_frame:
            return iter((None,))
        return _until_error(itertools.chain([first], frames))

    def _stored(self, number: int, time: float, frame: Any) -> StoredFrame:
        return StoredFrame(number, time, partial(self._converter.rgb, frame))

    def _time(self, pts: float) -> float:
        return (pts - self._zero) * self._index.tick

    def _scan(self) -> PacketIndex:
        container, stream, resources = self._open_container()
        count, end = 0, 0.0

        def packets() -> Iterator[Any]:
            nonlocal count, end
            with suppress(self._av.error.FFmpegError):  # decoding meets the same damage, after the frames before it
                for packet in _packets(container, *container.streams):
                    if packet.size and packet.pts is not None:
                        end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                    if packet.stream_index == stream.index and packet.size:
                        if packet.has_sidedata("encryption_info"):
                            raise DataError(f"{self._name}: is encrypted; decrypt it, or leave it out")
                        count += 1
                        self._limits.check_count(count, self._name)
                        yield packet

        index = index_packets(packets(), stream, self._codec, container.format.name)
        seconds = (container.duration or 0) / 1e6 if container.format.name in FORMATS_WITH_DURATION else 0
        frames = stream.frames
        self._release(resources)
        if not index.count:
            raise DataError(f"{self._name}: has no frames that can be read")
        if count < WHOLE * frames:
            raise DataError(f"{self._name}: is truncated: it has {count:,} of the {frames:,} frames of its header")
        if end < WHOLE * seconds:
            raise DataError(f"{self._name}: is truncated: it ends after {end:.2f} of the {seconds:.2f} s of its header")
        return index

    def _open_container(self) -> tuple[Any, Any, ExitStack]:
        """Return PyAV's container, the first video stream, and what closes container and file."""
        resources = ExitStack()
        self._open.add(resources)
        file = resources.enter_context(self._open_file())
        with foreign_errors(self._name, DataError, "is damaged, truncated or not a video", self._describe_format):
            container = self._av.open(
                file, options=OPTIONS | self._max_pixels, metadata_errors="replace", buffer_size=BUFFER_BYTES
            )
        resources.callback(container.close)
        streams = [s for s in container.streams if s.type == "video" and not _is_cover(s)]
        if not streams:
            kinds = sorted({s.type for s in container.streams} - {"video"})
            raise DataError(f"{self._name}: has no video stream" + (f", only {' and '.join(kinds)}" if kinds else ""))
        stream = streams[0]
        if stream.codec_context is None:
            file.seek(0)
            codec = codec_tag(file.read(TAG_BYTES))
            fix = _FIX.format(name=self._name)
            raise DataError(f"{self._name}: the installed PyAV has no decoder for the codec {codec}; {fix}")
        self._limits.check_size(stream.codec_context.height or 1, stream.codec_context.width or 1, self._name)
        context = stream.codec_context
        self._codec = context.codec.canonical_name
        context.options = DECODER_OPTIONS | self._max_pixels
        context.thread_count = self._threads
        if self._threads != 1:
            context.thread_type = "AUTO"
        return container, stream, resources

    def _start(self) -> _Decoding:
        """Open the file and decode the first frame."""
        container, stream, resources = self._open_container()
        frames = self._decode(container, stream)
        first = next(frames, None)
        if first is None:
            raise DataError(f"{self._name}: none of its {self._index.count:,} frames can be decoded")
        return _Decoding(container, stream, first, itertools.chain([first], frames), resources)

    def _decode(self, container: Any, stream: Any) -> Iterator[Any]:
        count, size, total = 0, None, max(self._index.count, stream.frames)
        packets = _packets(container, stream)
        first_key: float | None = None
        while True:
            packet = None
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                if packet.is_keyframe and first_key is None:
                    first_key = -math.inf if packet.pts is None else packet.pts
                frames = packet.decode()
            except Exception as error:
                if packet is not None and (first_key is None or (packet.pts is not None and packet.pts < first_key)):
                    continue  # it needs frames before the place where decoding starts
                where = f"is damaged after {count:,} of {total:,} frames" if count else "its first frame is damaged"
                raise DataError(f"{self._name}: {where} ({describe(error)})") from error
            for frame in frames:
                size = size or (frame.width, frame.height)
                if size != (frame.width, frame.height):
                    raise DataError(
                        f"{self._name}: the frame size changes from {size[0]} x {size[1]} to "
                        f"{frame.width} x {frame.height} after {count:,} frames; {_FIX.format(name=self._name)}"
                    )
                count += 1
                yield frame

    def _describe_format(self, error: BaseException) -> str:
        return "unknown format" if isinstance(error, self._av.error.ArgumentError) else describe(error)


def _import_av(name: object) -> Any:
    av = import_optional("av", "convatlas[video]", where=name, error=UnavailableError)
    if int(av.__version__.partition(".")[0]) < MIN_VERSION:
        raise UnavailableError(
            f"{name}: av must be >= {MIN_VERSION}, got {av.__version__}; pip install -U 'convatlas[video]'"
        )
    return av


def _until_error(frames: Iterator[Any]) -> Iterator[Any]:
    with suppress(DataError):
        for frame in frames:
            if frame.is_corrupt:
                break
            yield frame
        else:
            return
    yield None


def _packets(container: Any, *streams: Any) -> Iterator[Any]:
    """Yield the packets of streams; the last ones are empty, and make decoders give their last frames."""
    with suppress(IndexError):  # after them, where a stream appeared late, such as in a transport stream
        yield from container.demux(*streams)


def _is_cover(stream: Any) -> bool:
    """Return whether a stream is an attached picture."""
    return bool(int(stream.disposition) & _ATTACHED_PICTURE)
