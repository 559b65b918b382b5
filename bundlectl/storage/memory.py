"""A store in this process's memory: the same promises, nothing to clean up."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from bundlectl.storage.store import (
    AlreadyThere,
    KeyMissing,
    Stored,
    SwapLost,
    Tag,
    check_key,
    check_prefix,
    check_size,
    content_tag,
)


class MemoryStore:
    """Implements ``Store``. Each instance is a store of its own; threads may share one."""

    def __init__(self) -> None:
        self.url = "memory:"
        self._objects: dict[str, Stored] = {}
        self._lock = threading.Lock()

    def get(self, key: str) -> Stored:
        """See ``Store.get``."""
        check_key(key)
        with self._lock:
            return self._present(key)

    def get_if_changed(self, key: str, tag: Tag) -> Stored | None:
        """See ``Store.get_if_changed``."""
        stored = self.get(key)
        return None if stored.tag == tag else stored

    def create(self, key: str, data: bytes) -> Tag:
        """See ``Store.create``."""
        stored = _admitted(key, data)
        with self._lock:
            if key in self._objects:
                raise AlreadyThere(key)
            self._objects[key] = stored
        return stored.tag

    def swap(self, key: str, data: bytes, expected: Tag | None) -> Tag:
        """See ``Store.swap``."""
        stored = _admitted(key, data)
        with self._lock:
            present = self._objects.get(key)
            found = present.tag if present else None
            if found != expected:
                raise SwapLost(key, expected=expected, found=found)
            self._objects[key] = stored
        return stored.tag

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """See ``Store.list``; it gives the keys of the moment of the call."""
        check_prefix(prefix)
        with self._lock:
            return iter(sorted(key for key in self._objects if key.startswith(prefix) and key > after))

    def delete(self, key: str) -> None:
        """See ``Store.delete``."""
        check_key(key)
        with self._lock:
            self._present(key)
            del self._objects[key]

    def _present(self, key: str) -> Stored:
        try:
            return self._objects[key]
        except KeyError:
            raise KeyMissing(key) from None


def _admitted(key: str, data: bytes) -> Stored:
    check_key(key)
    check_size(key, data)
    # A copy, so that a caller's bytearray cannot change what is stored.
    return Stored(bytes(data), content_tag(data))
