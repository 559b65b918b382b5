"""Independent work on a store side by side: each call is a round trip, and they need not wait for each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

WORKERS = 8
"""So many objects are in memory at most beside the results, each of at most 64 MiB."""


def in_parallel(work: Callable[[Item], Result], items: Sequence[Item], *, workers: int = WORKERS) -> list[Result]:
    """Give ``work(item)`` of each item, in order; a few at a time. The first error in order is raised.

    Work that has not begun by then is not begun; work that has is waited for.
    """
    if len(items) < 2:
        return [work(item) for item in items]
    pool = ThreadPoolExecutor(min(workers, len(items)), thread_name_prefix="store")
    try:
        return [future.result() for future in [pool.submit(work, item) for item in items]]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
