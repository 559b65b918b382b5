"""A store in a folder: one file per key, safe between processes and across crashes.

- ``create``: a temporary file in the same folder, written and fsynced; ``link`` (which never overwrites); the
  folder fsynced.
- ``swap``: under the folder's lock, compare, write a temporary file as above, ``rename``, fsync the folder.
  Creating by swap is ``create``: the link is the comparison.
- ``delete``: under the same lock, so that no swap brings back what was deleted after its comparison.

Readers take no lock: a name always leads to a whole file. Once a name is published, a failure is
``OutcomeUnknown``; before that it is ``StoreUnavailable``, and nothing was written.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bundlectl.storage import files
from bundlectl.storage.store import (
    MAX_KEY_CHARS,
    MAX_OBJECT_BYTES,
    AlreadyThere,
    KeyMissing,
    OutcomeUnknown,
    Stored,
    StoreUnavailable,
    SwapLost,
    Tag,
    check_key,
    check_prefix,
    check_size,
    content_tag,
    is_segment,
)

LOCK_NAME = ".lock"
LOCK_SECONDS = 10.0

_FIXES = {
    errno.ENOSPC: "Free space on the disk, then repeat.",
    errno.EDQUOT: "Free space under the quota, then repeat.",
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f), then repeat.",
    errno.EROFS: "Mount the file system writable, then repeat.",
    errno.EACCES: "Give this user the permission, then repeat.",
    errno.EPERM: "Give this user the permission; the file system must also have hard links.",
    errno.EOPNOTSUPP: "Use a file system with hard links and file locks.",
    errno.ETIMEDOUT: "Repeat once the other process is done.",
}


class DirectoryStore:
    """Implements ``Store`` in the folder ``root``, which the first ``create`` makes.

    Until then, and when it is moved away, every other call is ``StoreUnavailable``: what it held is not known.

    Args:
        root: the folder; may itself be reached through symlinks, but none below it is followed.
        lock_seconds: how long a swap or delete waits for another one in the same folder.
    """

    def __init__(self, root: Path, *, lock_seconds: float = LOCK_SECONDS) -> None:
        self._root = root.resolve()
        self.url = self._root.as_uri()
        self._lock_seconds = lock_seconds
        self._swept: dict[tuple[str, ...], float] = {}

    def get(self, key: str) -> Stored:
        """See ``Store.get``. A symlink, FIFO, folder or file over 64 MiB is ``StoreUnavailable``."""
        folders, name = _split(key)
        with (
            self._failing(f"{key} was not read from {self.url}."),
            self._existing(folders) as folder,
        ):
            data = None if folder is None else files.read(folder, name, MAX_OBJECT_BYTES)
        if data is None:
            raise KeyMissing(key)
        return Stored(data, content_tag(data))

    def get_if_changed(self, key: str, tag: Tag) -> Stored | None:
        """See ``Store.get_if_changed``."""
        stored = self.get(key)
        return None if stored.tag == tag else stored

    def create(self, key: str, data: bytes) -> Tag:
        """See ``Store.create``."""
        folders, name = _split(key)
        check_size(key, data)
        with (
            self._failing(f"{key} was not written to {self.url}; nothing changed."),
            files.made_folder(self._root, folders) as folder,
        ):
            self._sweep(folder, folders)
            if not files.exists(folder, name):
                with files.temporary(folder, data) as temporary:
                    landed = self._publish(lambda: temporary.link_to(name), folder, key, data, None)
                if landed:
                    self._make_last(folder, key, data)
                    return content_tag(data)
            # The caller will build on what is there, and its writer may have died before this fsync.
            files.sync(folder)
            raise AlreadyThere(key)

    def swap(self, key: str, data: bytes, expected: Tag | None) -> Tag:
        """See ``Store.swap``. Another swap that holds the lock too long is ``StoreUnavailable``."""
        if expected is None:
            try:
                return self.create(key, data)
            except AlreadyThere as error:
                raise SwapLost(key) from error
        folders, name = _split(key)
        check_size(key, data)
        with (
            self._failing(f"{key} was not written to {self.url}; nothing changed."),
            self._existing(folders) as folder,
        ):
            if folder is None:
                raise SwapLost(key, expected=expected)
            with files.locked(folder, LOCK_NAME, self._lock_seconds):
                self._sweep(folder, folders)
                found = _tag_of(folder, name)
                if found != expected:
                    raise SwapLost(key, expected=expected, found=found)
                with files.temporary(folder, data) as temporary:
                    self._publish(lambda: temporary.rename_to(name), folder, key, data, expected)
                self._make_last(folder, key, data)
        return content_tag(data)

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """See ``Store.list``. Names that are no keys (temporary and lock files among them) are left out."""
        check_prefix(prefix)
        return (key for key in self._walk(tuple(prefix.split("/")[:-1])) if key > after)

    def delete(self, key: str) -> None:
        """See ``Store.delete``. Its folder stays."""
        folders, name = _split(key)
        with (
            self._failing(f"{key} was not deleted from {self.url}; nothing changed."),
            self._existing(folders) as folder,
        ):
            if folder is None:
                raise KeyMissing(key)
            with files.locked(folder, LOCK_NAME, self._lock_seconds):
                if not files.exists(folder, name):
                    raise KeyMissing(key)
                files.remove(folder, name)
                try:
                    files.sync(folder)
                except OSError as error:
                    what = f"{key} is deleted, but may come back after a power cut."
                    raise _unknown(what, error) from error

    def _publish(self, publish: Callable[[], bool], folder: int, key: str, data: bytes, before: Tag | None) -> bool:
        try:
            return publish()
        except OSError as error:
            # A network file system can do it and lose the reply; reading back settles that.
            found = _tag_or_unreadable(folder, key)
            if found == content_tag(data):
                return True
            if found == before:
                raise
            raise _unknown(f"{key} may or may not have been written to {self.url}.", error) from error

    def _make_last(self, folder: int, key: str, data: bytes) -> None:
        try:
            files.sync(folder)
        except OSError as error:
            if _tag_or_unreadable(folder, key) == content_tag(data):
                what = f"{key} is written to {self.url}, but may be gone after a power cut."
            else:
                what = f"{key} may or may not have been written to {self.url}."
            raise _unknown(what, error) from error

    def _sweep(self, folder: int, folders: Sequence[str]) -> None:
        # A sweep reads the whole folder, and a registry's largest has 100,000 names: not at every write.
        now = time.monotonic()
        last = self._swept.get(tuple(folders))
        if last is None or now - last > files.ABANDONED_AFTER_SECONDS:
            self._swept[tuple(folders)] = now
            files.sweep(folder)

    def _walk(self, folders: tuple[str, ...]) -> Iterator[str]:
        with (
            self._failing(f"{'/'.join(folders) or 'It'} was not listed in {self.url}."),
            self._existing(folders) as folder,
        ):
            found = [] if folder is None else files.entries(folder)
        # "/" sorts after "-" and ".", so a folder stands where its keys will.
        for name, is_folder in sorted(found, key=lambda entry: entry[0] + "/" * entry[1]):
            key = "/".join((*folders, name))
            if not is_segment(name) or len(key) > MAX_KEY_CHARS:
                continue
            if is_folder:
                yield from self._walk((*folders, name))
            else:
                yield key

    @contextmanager
    def _existing(self, folders: Sequence[str]) -> Iterator[int | None]:
        """Open a folder of the store's; None if it is not there. Where the root itself is not, nothing is known."""
        with files.existing_folder(self._root, folders) as folder:
            if folder is None and not self._root.exists():
                raise StoreUnavailable(
                    f"Nothing can be read from {self.url}.",
                    why=f"The registry's folder {self._root} is not there.",
                    fix="Put it back, or mount the disk that it is on, then repeat.",
                )
            yield folder

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            fix = _FIXES.get(error.errno or 0, "Check the folder and its disk, then repeat.")
            raise StoreUnavailable(what, why=_reason(error), fix=fix) from error


def _split(key: str) -> tuple[list[str], str]:
    *folders, name = check_key(key).split("/")
    return folders, name


def _tag_of(folder: int, name: str) -> Tag | None:
    data = files.read(folder, name, MAX_OBJECT_BYTES)
    return None if data is None else content_tag(data)


def _tag_or_unreadable(folder: int, key: str) -> Tag | None:
    try:
        return _tag_of(folder, key.rpartition("/")[2])
    except OSError:
        return "unreadable"


def _unknown(what: str, error: OSError) -> OutcomeUnknown:
    return OutcomeUnknown(what, why=_reason(error), fix="Check the disk, then read it again.")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
