"""What a store promises, whichever kind it is.

A store maps keys to whole objects. A read gives all of one object or fails; a write is there whole or not at
all. ``swap`` is the only way to change an object, and it names the version it replaces.

A failed write says which of two things is true: nothing was written (any error but one), or nobody knows
(``OutcomeUnknown``): the caller reads back before it decides.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote_to_bytes, urlsplit

from bundlectl.model.errors import BackendUnavailable, BundlectlError, Conflict, NotFound, UsageError

Tag = str
"""Opaque version tag of one stored object. Other bytes under one key have another tag."""

MAX_OBJECT_BYTES = 64 * 1024 * 1024
MAX_KEY_CHARS = 512
MAX_SEGMENT_CHARS = 255
"""What Linux file systems take as one name."""

# A leading dot is refused: it keeps out "." and "..", and leaves names for a store's own files.
_SEGMENT = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9._=-]*")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


@dataclass(frozen=True, slots=True)
class Stored:
    """One object as it was read."""

    data: bytes
    tag: Tag
    """The version that ``data`` is; what ``swap`` expects in order to replace it."""


class KeyMissing(NotFound):
    """There is no object under ``key``."""

    def __init__(self, key: str) -> None:
        super().__init__(f"There is nothing stored at {key}.", details={"key": key})
        self.key = key


class AlreadyThere(BundlectlError):
    """``create`` found an object under ``key``; that object is unchanged and may be relied on."""

    exit_code = 5
    code = "already_there"

    def __init__(self, key: str) -> None:
        super().__init__(
            f"Something is already stored at {key}.",
            fix="Read it: the same bytes are fine, others are a conflict.",
            details={"key": key},
        )
        self.key = key


class SwapLost(Conflict):
    """The object under ``key`` is not the expected version; nothing was written.

    ``expected`` and ``found`` are tags; None is "no object", or for ``found`` also "not told".
    """

    code = "swap_lost"

    def __init__(self, key: str, *, expected: Tag | None = None, found: Tag | None = None) -> None:
        super().__init__(
            f"{key} was changed by someone else first.",
            fix="Read it again and decide again.",
            details={"key": key, "expected": expected, "found": found},
        )
        self.key = key
        self.expected = expected
        self.found = found


class OutcomeUnknown(BackendUnavailable):
    """A write may or may not have landed, or landed and may not last; the caller reads back."""

    code = "outcome_unknown"


class StoreUnavailable(BackendUnavailable):
    """It did not happen: the backend is down, full, read-only, or does not permit it."""

    code = "store_unavailable"


class Store(Protocol):
    """Objects under keys. Safe to use from several threads, and beside other processes.

    Every method raises ``UsageError`` for a key that ``check_key`` refuses, and ``StoreUnavailable`` when it
    could not do its work; writes also raise ``OutcomeUnknown``. A key must not be the parent of another
    (``a`` beside ``a/b``): a folder cannot hold both.
    """

    url: str
    """Where it is, as ``open_store`` takes it: ``file:///…``, ``s3://…`` or ``memory:``."""

    def get(self, key: str) -> Stored:
        """Read one object.

        Raises:
            KeyMissing: there is none.
        """
        ...

    def get_if_changed(self, key: str, tag: Tag) -> Stored | None:
        """Read one object unless it still is version ``tag`` (then None), in one call to the backend.

        Raises:
            KeyMissing: there is none.
        """
        ...

    def create(self, key: str, data: bytes) -> Tag:
        """Write an object where there is none. Of several that race, exactly one succeeds.

        Raises:
            AlreadyThere: there is one, whatever its bytes.
            OutcomeUnknown: it may have landed.
        """
        ...

    def swap(self, key: str, data: bytes, expected: Tag | None) -> Tag:
        """Replace version ``expected`` by ``data``; None means that there must be no object yet.

        Raises:
            SwapLost: the object is another version, or missing, or (``expected`` None) exists.
            OutcomeUnknown: it may have landed.
        """
        ...

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """Give every key under ``prefix``, sorted by character; ``prefix`` ends with "/", or is "" for all.

        With ``after``, only keys that sort after it; a store with many keys need not look at the others. A prefix
        that nothing is under gives nothing. Keys written or deleted meanwhile may be in or out.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove one object, whichever version it is.

        Raises:
            KeyMissing: there is none.
            OutcomeUnknown: it may be gone.
        """
        ...


def content_tag(data: bytes) -> Tag:
    """Give the tag of stores whose versions are their content: ``sha256:<hex>``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check_key(key: str) -> str:
    """Give the key back if every store can hold it.

    Segments of ``[A-Za-z0-9._=-]``, joined by "/", none empty, starting with a dot or over 255 characters; at
    most 512 characters in all.

    Raises:
        UsageError: the key is not such.
    """
    if len(key) > MAX_KEY_CHARS:
        raise UsageError(f"The key {key[:40]!r}… has {len(key)} characters.", fix=f"Use at most {MAX_KEY_CHARS}.")
    if not is_key(key):
        raise UsageError(
            f"{key!r} is not a key.",
            fix="Use segments of letters, digits and . _ = - joined by /, none empty or starting with a dot.",
        )
    return key


def is_key(key: str) -> bool:
    """Say whether ``check_key`` takes it."""
    return len(key) <= MAX_KEY_CHARS and all(is_segment(part) for part in key.split("/"))


def is_segment(name: str) -> bool:
    """Say whether ``name`` may stand between the slashes of a key."""
    return len(name) <= MAX_SEGMENT_CHARS and _SEGMENT.fullmatch(name) is not None


def check_prefix(prefix: str) -> str:
    """Give the prefix back if ``list`` can take it.

    Raises:
        UsageError: it is neither "" nor a key with "/" after it.
    """
    if prefix:
        if not prefix.endswith("/"):
            raise UsageError(f"The prefix {prefix!r} does not end with '/'.", fix=f"Use {prefix + '/'!r}.")
        check_key(prefix[:-1])
    return prefix


def check_size(key: str, data: bytes) -> None:
    """Refuse to store what could not be read back.

    Raises:
        UsageError: ``data`` is over ``MAX_OBJECT_BYTES``.
    """
    if len(data) > MAX_OBJECT_BYTES:
        raise UsageError(
            f"{key} would be {len(data)} bytes; an object is at most {MAX_OBJECT_BYTES}.",
            fix="Split it, or keep it elsewhere and store its digest.",
        )


def open_store(url: str) -> Store:
    """Open the store at a path, ``file:///path``, ``s3://bucket/prefix`` or ``memory:`` (new and empty each time).

    A folder that is not there yet reads as empty and is made by the first write.

    Raises:
        UsageError: the URL is not one of these.
    """
    scheme = _SCHEME.match(url)
    if scheme is None:
        return _open_folder(url, url)
    match scheme.group(1).lower():
        case "file":
            parts = urlsplit(url)
            if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
                raise UsageError(f"{url!r} does not name a folder here.", fix="Use file:///path/to/folder.")
            return _open_folder(os.fsdecode(unquote_to_bytes(parts.path)), url, absolute=True)
        case "memory" if url.lower() == "memory:":
            from bundlectl.storage.memory import MemoryStore

            return MemoryStore()
        case "s3":
            from bundlectl.storage.s3 import open_s3

            return open_s3(url)
        case _:
            raise UsageError(
                f"{url!r} is not a store.", fix="Use a path, file:///path/to/folder, s3://bucket/prefix or memory:"
            )


def _open_folder(text: str, url: str, *, absolute: bool = False) -> Store:
    from bundlectl.storage.directory import DirectoryStore

    path = Path(text)
    if not text or "\0" in text or (absolute and not path.is_absolute()):
        raise UsageError(f"{url!r} does not name a folder.", fix="Use a path or file:///path/to/folder.")
    try:
        if path.exists() and not path.is_dir():
            raise UsageError(f"{url!r} is a file, not a folder.", fix="Name the folder that holds the registry.")
        return DirectoryStore(path)
    except (OSError, RuntimeError) as error:  # RuntimeError is how Python before 3.13 reports a symlink loop
        raise UsageError(f"{url!r} cannot be a store.", why=str(error), fix="Name another folder.") from error
