"""Work in threads keeps the order, and stops at the first error."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from convatlas.data import threads
from convatlas.data.threads import map_ahead, map_in_threads


@pytest.mark.parametrize("count", [0, 1, 7, 500])
def test_results_are_in_the_order_of_the_items(count: int) -> None:
    def square(number: int) -> int:
        time.sleep(0.001 * (number % 3 == 0))
        return number**2

    assert list(map_in_threads(square, range(count))) == [number**2 for number in range(count)]


def test_results_wait_for_their_use_in_few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "count_cores", lambda: 2)
    begun: list[int] = []
    results = map_in_threads(begun.append, range(100), per_task=1)
    next(results)
    time.sleep(0.01)
    assert len(begun) <= 2 * threads.TASKS_AHEAD + 1
    assert len(list(results)) == 99


def test_an_error_stops_the_remaining_work(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    cancelled = threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            cancelled.set()
            super().shutdown(wait=wait)

    def fail_at_ten(number: int) -> None:
        if number == 10:
            raise ValueError("ten")
        if number > 10:
            cancelled.wait()
        done.append(number)

    monkeypatch.setattr(threads, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(threads, "count_cores", lambda: 2)
    with pytest.raises(ValueError, match="ten"):
        list(map_in_threads(fail_at_ten, range(5000)))
    assert len(done) <= 10 + 2 * threads.MAX_ITEMS_PER_TASK


def test_batches_are_computed_before_they_are_used() -> None:
    started = [threading.Event() for _ in range(8)]

    def start(number: int) -> int:
        started[number].set()
        return -number

    results = map_ahead(start, [[0, 1, 2], [], [3], [4, 5], [6, 7]])
    assert next(results) == [0, -1, -2]
    assert started[3].wait(10)  # two batches ahead
    assert not started[6].is_set()
    assert list(results) == [[], [-3], [-4, -5], [-6, -7]]


def test_an_error_ends_the_batches() -> None:
    results = map_ahead(lambda number: 1 // number, [[1], [0], *([2] for _ in range(500))])
    assert next(results) == [1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not list(results)
