"""How one file is read, written and locked in a folder that others use at the same time.

Names are always taken relative to an open folder, and no symlink under the root is ever followed, so nobody
can turn a path elsewhere between two steps. ``OSError`` passes through everywhere: only the caller knows
whether something was written by then.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"
ABANDONED_AFTER_SECONDS = 3600.0

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Without O_NONBLOCK, opening a FIFO would wait for a writer that may never come.
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_LOCK_FLAGS = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CHUNK = 64 * 1024


class UnfitFile(OSError):
    """What is at the name is not a plain file or folder of a fit size; ``strerror`` says what it is."""


@contextmanager
def existing_folder(root: Path, names: Sequence[str]) -> Iterator[int | None]:
    """Open ``root/names…``; None if it is not there."""
    descriptor = _descend(root, names, make=False)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            _close(descriptor)


@contextmanager
def made_folder(root: Path, names: Sequence[str]) -> Iterator[int]:
    """Open ``root/names…``, making and fsyncing what is missing on the way."""
    descriptor = _descend(root, names, make=True)
    if descriptor is None:
        raise FileNotFoundError(errno.ENOENT, "the folder was removed while it was being made", str(root))
    try:
        yield descriptor
    finally:
        _close(descriptor)


def read(folder: int, name: str, limit: int) -> bytes | None:
    """Read a whole regular file of at most ``limit`` bytes; None if there is none. Never blocks on a FIFO."""
    try:
        descriptor = os.open(name, _READ_FLAGS, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError:
        _check_plain(folder, name)
        raise
    try:
        facts = os.fstat(descriptor)
        _refuse_unless_regular(facts.st_mode)
        # It may grow after the look at its size, so the reading is bounded too.
        parts: list[bytes] = []
        left = limit + 1 if facts.st_size <= limit else 0
        while left and (part := os.read(descriptor, min(left, facts.st_size + _CHUNK))):
            parts.append(part)
            left -= len(part)
        if not left:
            raise UnfitFile(errno.EFBIG, f"it is over {limit} bytes")
        return b"".join(parts)
    finally:
        _close(descriptor)


def exists(folder: int, name: str) -> bool:
    """Say whether a regular file is there; anything else under the name is ``UnfitFile``."""
    return _check_plain(folder, name)


class Temporary:
    """A complete, fsynced file under a name that no key has; ``link_to`` or ``rename_to`` publishes it."""

    def __init__(self, folder: int, name: str, descriptor: int) -> None:
        self._folder = folder
        self._name = name
        self._descriptor = descriptor

    def link_to(self, name: str) -> bool:
        """Publish under a free name; False if the name is taken. Never overwrites."""
        try:
            os.link(self._name, name, src_dir_fd=self._folder, dst_dir_fd=self._folder, follow_symlinks=False)
        except OSError as error:
            # A network file system may lose its reply and then say "exists" about our own link.
            if os.fstat(self._descriptor).st_nlink > 1:
                return True
            if isinstance(error, FileExistsError):
                return False
            raise
        return True

    def rename_to(self, name: str) -> bool:
        """Publish in place of what has the name now; always True."""
        os.rename(self._name, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        return True


@contextmanager
def temporary(folder: int, data: bytes) -> Iterator[Temporary]:
    """Write ``data`` to a new file in the folder and fsync it; its temporary name is gone afterwards."""
    name = TEMPORARY_PREFIX + secrets.token_hex(12)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o644, dir_fd=folder)
    try:
        rest = memoryview(data)
        while rest:
            # One write may take fewer bytes than it was given, as the last one before a full disk does.
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
        yield Temporary(folder, name, descriptor)
    finally:
        with suppress(OSError):
            os.unlink(name, dir_fd=folder)
        _close(descriptor)


def remove(folder: int, name: str) -> None:
    """Remove a file's name; ``FileNotFoundError`` if there is none."""
    os.unlink(name, dir_fd=folder)


def sync(folder: int) -> None:
    """Make the folder's names last. Not to be repeated after a failure.

    Linux reports a failed write-back once and drops the pages: a second fsync would succeed and mean nothing.
    """
    os.fsync(folder)


def sweep(folder: int) -> None:
    """Remove temporary files that a killed writer left over an hour ago; failing at it harms nothing."""
    with suppress(OSError):
        oldest = time.time() - ABANDONED_AFTER_SECONDS
        for name in os.listdir(folder):
            if name.startswith(TEMPORARY_PREFIX):
                with suppress(OSError):
                    if os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime < oldest:
                        os.unlink(name, dir_fd=folder)


@contextmanager
def locked(folder: int, name: str, seconds: float) -> Iterator[None]:
    """Hold the exclusive lock on a file of the folder, which is made if missing and never removed.

    A lock file that were removed could be held twice: by its old holder, and by whoever makes it again.

    Raises:
        TimeoutError: another holder kept it for ``seconds``.
    """
    try:
        descriptor = os.open(name, os.O_RDWR | _LOCK_FLAGS, 0o644, dir_fd=folder)
    except PermissionError:
        # Another user's lock file may be readable only, and that is enough to lock it.
        descriptor = os.open(name, os.O_RDONLY | _LOCK_FLAGS, 0o644, dir_fd=folder)
    try:
        _refuse_unless_regular(os.fstat(descriptor).st_mode)
        deadline = time.monotonic() + seconds
        pause = 0.0005
        while not _try_lock(descriptor):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, f"another process has held {name} for {seconds:g} s")
            time.sleep(min(pause, left))
            pause = min(2 * pause, 0.02)
        yield
    finally:
        _close(descriptor)


def entries(folder: int) -> list[tuple[str, bool]]:
    """Give each name in the folder, and whether it is a folder itself; a symlink never is. Unsorted."""
    with os.scandir(folder) as found:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]


def _descend(root: Path, names: Sequence[str], *, make: bool) -> int | None:
    at: int | None
    try:
        at = os.open(root, _FOLDER_FLAGS)
    except FileNotFoundError:
        if not make:
            return None
        _make_root(root)
        at = os.open(root, _FOLDER_FLAGS)
    for name in names:
        above = at
        try:
            at = _enter(above, name, make=make)
        finally:
            _close(above)
        if at is None:
            return None
    return at


def _make_root(root: Path) -> None:
    missing = [path for path in (root, *root.parents) if not path.is_dir()]
    for path in reversed(missing):
        with suppress(FileExistsError):
            path.mkdir(0o755)
        above = os.open(path.parent, _FOLDER_FLAGS)
        try:
            sync(above)
        finally:
            _close(above)


def _enter(above: int, name: str, *, make: bool) -> int | None:
    try:
        return os.open(name, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=above)
    except FileNotFoundError:
        if not make:
            return None
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise UnfitFile(errno.ENOTDIR, f"{name} on the way to it is not a folder") from error
        raise
    # Whoever made it meanwhile may not have fsynced it yet, so it is fsynced in either case.
    with suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=above)
    sync(above)
    return os.open(name, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=above)


def _check_plain(folder: int, name: str) -> bool:
    try:
        _refuse_unless_regular(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False
    return True


def _refuse_unless_regular(mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISLNK(mode):
        raise UnfitFile(errno.ELOOP, "it is a symbolic link, and those are not followed")
    if stat.S_ISDIR(mode):
        raise UnfitFile(errno.EISDIR, "it is a folder, not a file")
    raise UnfitFile(errno.EINVAL, "it is a FIFO, socket or device, not a file")


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _close(descriptor: int) -> None:
    # What was written has been fsynced by now; an error here must not make a landed write look failed.
    with suppress(OSError):
        os.close(descriptor)
