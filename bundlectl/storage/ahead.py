"""Reads that are begun before they are asked for, side by side; who reads then waits for one round trip, not for each.

Whoever knows what it will read says so (``expect``), and reads as if it had not. An expected read is used once,
and what is written here in between is read anew: apart from the waiting nothing is different from reading now.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from bundlectl.storage.parallel import WORKERS
from bundlectl.storage.store import Store, Stored, Tag


class ReadAhead:
    """Implements ``Store`` on top of another.

    Args:
        store: what holds the objects.
    """

    def __init__(self, store: Store) -> None:
        self.url = store.url
        self._store = store
        self._lock = threading.Lock()
        self._reads: dict[str, Future[Stored]] = {}
        self._lists: dict[str, Future[list[str]]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def expect(self, *keys: str) -> None:
        """Begin to read keys that will be asked for soon; one that is under way already is not read twice."""
        with self._lock:
            for key in keys:
                if key not in self._reads:
                    self._reads[key] = self._begin().submit(self._store.get, key)

    def expect_list(self, prefix: str) -> None:
        """Begin to list a prefix that will be asked for soon. All of it is kept: not for what has many keys."""
        with self._lock:
            if prefix not in self._lists:
                self._lists[prefix] = self._begin().submit(lambda: list(self._store.list(prefix)))

    def forget(self) -> None:
        """Drop what was expected and not asked for: the next one to read it means now."""
        with self._lock:
            self._reads.clear()
            self._lists.clear()

    def get(self, key: str) -> Stored:
        """See ``Store.get``. An expected read gives, or raises, what it found."""
        with self._lock:
            begun = self._reads.pop(key, None)
        return begun.result() if begun is not None else self._store.get(key)

    def get_if_changed(self, key: str, tag: Tag) -> Stored | None:
        """See ``Store.get_if_changed``."""
        return self._store.get_if_changed(key, tag)

    def create(self, key: str, data: bytes) -> Tag:
        """See ``Store.create``."""
        self._forget(key)
        return self._store.create(key, data)

    def swap(self, key: str, data: bytes, expected: Tag | None) -> Tag:
        """See ``Store.swap``."""
        self._forget(key)
        return self._store.swap(key, data, expected)

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """See ``Store.list``."""
        with self._lock:
            begun = self._lists.pop(prefix, None)
        if begun is None:
            return self._store.list(prefix, after)
        return iter([key for key in begun.result() if key > after])

    def delete(self, key: str) -> None:
        """See ``Store.delete``."""
        self._forget(key)
        self._store.delete(key)

    def _forget(self, key: str) -> None:
        with self._lock:
            self._reads.pop(key, None)
            for prefix in [prefix for prefix in self._lists if key.startswith(prefix)]:
                del self._lists[prefix]

    def _begin(self) -> ThreadPoolExecutor:
        # Its threads end with this object.
        if self._pool is None:
            self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="ahead")
        return self._pool
