"""Collect the images, or the clips of videos, of concurrent requests into batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from convatlas.data.decode.headers import read_header
from convatlas.errors import DataError, EngineError, brief
from convatlas.inference.contents import EncodedFile
from convatlas.inference.images import Views, load_views
from convatlas.inference.model import Model
from convatlas.inference.options import PredictOptions
from convatlas.inference.predict import predict_views
from convatlas.inference.serve.limits import Limits
from convatlas.inference.serve.pixel_budget import PixelBudget
from convatlas.inference.serve.videos import VideoReader
from convatlas.system.cores import count_cores

logger = logging.getLogger(__name__)


class QueueFullError(Exception):
    """The queue has no room for the images of a request."""


class Batcher:
    """Decodes images or videos in threads and runs the network on batches in one thread.

    on_batch: called with the number of images, or of clips, of each batch.
    """

    def __init__(self, model: Model, limits: Limits, *, on_batch: Callable[[int], None] = lambda count: None) -> None:
        self.model, self.limits, self.on_batch = model, limits, on_batch
        self.options = PredictOptions(batch=limits.batch)
        self.queued = 0
        self._queue: asyncio.Queue[tuple[Views, asyncio.Future[Any]]] = asyncio.Queue()
        self._pixels = PixelBudget(limits.image_pixels)
        self._readers = ThreadPoolExecutor(count_cores(), "read")
        self._runner = ThreadPoolExecutor(1, "run")
        steps = model.header.preprocessing
        self._videos = VideoReader(steps, limits, self._compute, self._readers, self._pixels)
        self._reads_videos = steps.sampling is not None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._runner.shutdown(wait=False, cancel_futures=True)

    async def decode_outputs(self, sent: list[EncodedFile], every: float | None = None) -> list[Any]:
        """Return for each image its decoded outputs (outputs,), its objects, or why it has none.

        That is a DataError for an unreadable image, an EngineError if the network failed. For videos, see
        `PredictedVideo`; every: see `PredictOptions`. Raises QueueFullError.
        """
        if self.queued + len(sent) > self.limits.queue:
            raise QueueFullError
        self.queued += len(sent)
        try:
            return list(await asyncio.gather(*(self._process(each, every) for each in sent)))
        finally:
            self.queued -= len(sent)

    async def _process(self, sent: EncodedFile, every: float | None) -> Any:
        try:
            return await (self._videos.predict(sent, every) if self._reads_videos else self._predict_image(sent))
        except (DataError, EngineError) as error:
            return error
        except Exception as error:  # whatever fails with one image or video ends no other one and no request
            logger.exception("%s: reading failed", sent.name)
            return DataError(f"{sent.name}: cannot be read ({brief(error)})")

    async def _predict_image(self, image: EncodedFile) -> Any:
        views, pixels = await asyncio.get_running_loop().run_in_executor(self._readers, self._read, image)
        try:
            return await self._compute(views)
        finally:
            self._pixels.give_back(pixels)

    async def _compute(self, views: Views) -> Any:
        """Return the decoded outputs of an image, video or clip. Raises EngineError if the network fails."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((views, future))
        try:
            return await future
        except Exception as error:
            raise EngineError(f"the network failed ({brief(error)})") from error

    def _read(self, image: EncodedFile) -> tuple[Views, int]:
        """Return the views of an image, and the pixels that its whole image takes until it is predicted."""
        header, limit = read_header(Path(image.name), data=image.data), self.limits.image_pixels
        pixels = self.limits.count_pixels(header)
        if pixels > limit:
            width, height = header.size
            most = limit * width * height // pixels
            raise DataError(f"{image.name}: must have at most {most:,} pixels ({header.mode}), got {width} x {height}")
        preprocessing = self.model.header.preprocessing
        self._pixels.take(pixels)
        try:
            (views,) = load_views(image, image.name, [preprocessing], self.options)
        except BaseException:
            self._pixels.give_back(pixels)
            raise
        if preprocessing.is_whole:
            return views, pixels
        self._pixels.give_back(pixels)
        return views, 0

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch(loop)
            self.on_batch(sum(len(views.corners) for views, _ in batch) if self._reads_videos else len(batch))
            rows = await loop.run_in_executor(self._runner, self._predict, [views for views, _ in batch])
            for (_, future), row in zip(batch, rows, strict=True):
                if future.done():
                    continue
                if isinstance(row, Exception):
                    future.set_exception(row)
                else:
                    future.set_result(row)

    def _predict(self, images: list[Views]) -> list[Any]:
        """Return the decoded outputs of each image, video or clip; if a batch fails, they are predicted one by one."""
        try:
            return predict_views(self.model, images, self.options)
        except Exception as error:  # whatever the engine raises, the requests must end and the server go on
            if len(images) == 1:
                logger.exception("the network failed")
                return [error]
        return [row for image in images for row in self._predict([image])]

    async def _next_batch(self, loop: asyncio.AbstractEventLoop) -> list[tuple[Views, asyncio.Future[Any]]]:
        """Wait for an image, and then up to `wait_s` until the batch is full."""
        batch = [await self._queue.get()]
        deadline = loop.time() + self.limits.wait_s
        while len(batch) < self.limits.batch:
            left = deadline - loop.time()
            try:
                batch.append(
                    self._queue.get_nowait()
                    if left <= 0 or not self._queue.empty()
                    else await asyncio.wait_for(self._queue.get(), left)
                )
            except (TimeoutError, asyncio.QueueEmpty):
                break
        return batch
