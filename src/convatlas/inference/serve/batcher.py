"""Collect the images of concurrent requests into batches."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from convatlas.data.decode.headers import read_header
from convatlas.errors import DataError
from convatlas.inference.model import Model
from convatlas.inference.predict import EncodedImage, PredictOptions, load_views, predict_views


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    batch: images in a batch. wait_s: seconds to wait until a batch is full. request_bytes, request_images: of one
    request. image_pixels: of one image. queue: images that wait. idle_s: seconds until a client's next bytes.
    """

    batch: int = 16
    wait_s: float = 0.002
    request_bytes: int = 32 * 2**20
    request_images: int = 64
    image_pixels: int = 50_000_000
    queue: int = 1024
    idle_s: float = 30.0


class QueueFullError(Exception):
    """The queue has no room for the images of a request."""


class Batcher:
    """Decodes images in threads and runs the network on batches in one thread.

    on_batch: called with the number of images of each batch.
    """

    def __init__(self, model: Model, limits: Limits, *, on_batch: Callable[[int], None] = lambda count: None) -> None:
        self.model, self.limits, self.on_batch = model, limits, on_batch
        self.queued = 0
        self._queue: asyncio.Queue[tuple[Tensor, asyncio.Future[Tensor]]] = asyncio.Queue()
        self._readers = ThreadPoolExecutor(os.cpu_count(), "read")
        self._runner = ThreadPoolExecutor(1, "run")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._runner.shutdown(wait=False, cancel_futures=True)

    async def decode_outputs(self, images: list[EncodedImage]) -> list[Tensor | DataError]:
        """Return for each image its decoded outputs (outputs,), or the error of an unreadable image.

        Raises QueueFullError.
        """
        if self.queued + len(images) > self.limits.queue:
            raise QueueFullError
        self.queued += len(images)
        try:
            return list(await asyncio.gather(*map(self._process, images)))
        finally:
            self.queued -= len(images)

    async def _process(self, image: EncodedImage) -> Tensor | DataError:
        loop = asyncio.get_running_loop()
        try:
            views = await loop.run_in_executor(self._readers, self._read, image)
        except DataError as error:
            return error
        future: asyncio.Future[Tensor] = loop.create_future()
        self._queue.put_nowait((views, future))
        return await future

    def _read(self, image: EncodedImage) -> Tensor:
        width, height = read_header(Path(image.name), data=image.data).size
        limit = self.limits.image_pixels
        if width * height > limit:
            raise DataError(f"{image.name}: must have at most {limit:,} pixels, got {width} x {height}")
        return load_views(image, image.name, [self.model.header.preprocessing], PredictOptions())[0]

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch(loop)
            self.on_batch(len(batch))
            views = torch.stack([views for views, _ in batch])
            try:
                rows = await loop.run_in_executor(
                    self._runner, predict_views, self.model, views, self.limits.batch
                )  # fmt: skip
            except Exception as error:  # whatever the engine raises, the requests must end and the server go on
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), row in zip(batch, rows, strict=True):
                if not future.done():
                    future.set_result(row)

    async def _next_batch(self, loop: asyncio.AbstractEventLoop) -> list[tuple[Tensor, asyncio.Future[Tensor]]]:
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
