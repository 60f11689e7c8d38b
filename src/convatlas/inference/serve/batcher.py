"""Collect the images of concurrent requests into batches."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from convatlas.data.decode.headers import read_header
from convatlas.errors import DataError, EngineError, brief
from convatlas.inference.images import EncodedImage, Views, load_views
from convatlas.inference.model import Model
from convatlas.inference.options import PredictOptions
from convatlas.inference.predict import predict_views
from convatlas.inference.serve.limits import Limits
from convatlas.system.cores import count_cores

logger = logging.getLogger(__name__)


class QueueFullError(Exception):
    """The queue has no room for the images of a request."""


class PixelBudget:
    """Limits the pixels of the images in memory at the same time; first come, first served."""

    def __init__(self, pixels: int) -> None:
        self._free = pixels
        self._turn, self._changed = threading.Lock(), threading.Condition()

    def take(self, pixels: int) -> None:
        """Wait until `pixels` are free, and take them; at most the whole budget."""
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels

    def give_back(self, pixels: int) -> None:
        """Make `pixels` free again."""
        with self._changed:
            self._free += pixels
            self._changed.notify_all()


class Batcher:
    """Decodes images in threads and runs the network on batches in one thread.

    on_batch: called with the number of images of each batch.
    """

    def __init__(self, model: Model, limits: Limits, *, on_batch: Callable[[int], None] = lambda count: None) -> None:
        self.model, self.limits, self.on_batch = model, limits, on_batch
        self.options = PredictOptions(batch=limits.batch)
        self.queued = 0
        self._queue: asyncio.Queue[tuple[Views, asyncio.Future[Any]]] = asyncio.Queue()
        self._pixels = PixelBudget(limits.image_pixels)
        self._readers = ThreadPoolExecutor(count_cores(), "read")
        self._runner = ThreadPoolExecutor(1, "run")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._runner.shutdown(wait=False, cancel_futures=True)

    async def decode_outputs(self, images: list[EncodedImage]) -> list[Any]:
        """Return for each image its decoded outputs (outputs,), its objects, or why it has none.

        That is a DataError for an unreadable image, an EngineError if the network failed. Raises QueueFullError.
        """
        if self.queued + len(images) > self.limits.queue:
            raise QueueFullError
        self.queued += len(images)
        try:
            return list(await asyncio.gather(*map(self._process, images)))
        finally:
            self.queued -= len(images)

    async def _process(self, image: EncodedImage) -> Any:
        loop = asyncio.get_running_loop()
        try:
            views, pixels = await loop.run_in_executor(self._readers, self._read, image)
        except DataError as error:
            return error
        except Exception as error:  # whatever fails with one image ends no other image and no request
            logger.exception("%s: reading failed", image.name)
            return DataError(f"{image.name}: cannot be read ({brief(error)})")
        future: asyncio.Future[Any] = loop.create_future()
        self._queue.put_nowait((views, future))
        try:
            return await future
        except Exception as error:
            return EngineError(f"the network failed ({brief(error)})")
        finally:
            self._pixels.give_back(pixels)

    def _read(self, image: EncodedImage) -> tuple[Views, int]:
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
            self.on_batch(len(batch))
            rows = await loop.run_in_executor(self._runner, self._predict, [views for views, _ in batch])
            for (_, future), row in zip(batch, rows, strict=True):
                if future.done():
                    continue
                if isinstance(row, Exception):
                    future.set_exception(row)
                else:
                    future.set_result(row)

    def _predict(self, images: list[Views]) -> list[Any]:
        """Return the decoded outputs of each image; if a batch fails, its images are predicted one by one."""
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
