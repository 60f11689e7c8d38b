"""Work on many images in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from convatlas.system.cores import count_cores

In = TypeVar("In")
Out = TypeVar("Out")

MAX_ITEMS_PER_TASK = 16
"""Maximum number of items per task: submitting a task takes as long as reading a small image."""

TASKS_AHEAD = 2
"""Tasks for each core that are computed before their results are used; more would only take memory."""


def map_in_threads(
    function: Callable[[In], Out], items: Sequence[In], *, per_task: int = MAX_ITEMS_PER_TASK
) -> Iterator[Out]:
    """Yield function(item) in the order of the items, computed on all cores; an error cancels the rest.

    per_task: maximum number of items per task; 1 where results are large: `TASKS_AHEAD` tasks for each core are
    computed or ready beyond the result that the caller has.
    """
    cores = count_cores()
    size = max(1, min(per_task, len(items) // (4 * cores)))
    tasks = ([items[start : start + size]] for start in range(0, len(items), size))
    for (results,) in map_ahead(lambda task: [function(item) for item in task], tasks, ahead=TASKS_AHEAD * cores):
        yield from results


def map_ahead(function: Callable[[In], Out], batches: Iterable[Sequence[In]], *, ahead: int = 2) -> Iterator[list[Out]]:
    """Yield the results of each batch of items, computed on all cores while the caller uses the batches before.

    ahead: number of batches that are computed or ready beyond the one that the caller has. An error cancels the rest.
    """
    pool = ThreadPoolExecutor(count_cores())
    pending: deque[list[Future[Out]]] = deque()
    try:
        for batch in batches:
            pending.append([pool.submit(function, item) for item in batch])
            if len(pending) > ahead:
                yield [future.result() for future in pending.popleft()]
        while pending:
            yield [future.result() for future in pending.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)
