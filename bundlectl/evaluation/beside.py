"""Read a file that a suite names: a regular file under the suite's folder, reached through no symbolic link."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bundlectl.model.errors import Problem, SourceError


def read_beside(folder: Path, relative: str, what: str, limit: int) -> bytes:
    """Read it whole; as :func:`open_beside`."""
    with open_beside(folder, relative, what, limit) as file:
        return file.read(limit)


@contextmanager
def open_beside(folder: Path, relative: str, what: str, limit: int) -> Iterator[BinaryIO]:
    """Open it for reading.

    Args:
        folder: the suite's folder.
        relative: the path under it.
        what: what it is, for messages: ``the dataset``.
        limit: bytes that it may have.

    Raises:
        SourceError: it does not exist, is larger, is no regular file, is reached through a symbolic link, or cannot be
            read, while it is being read as well.
    """
    shown = str(folder / relative)

    # Larger than a source file may be, so not read as one; the same rules.
    def bad(message: str, right: str = "") -> SourceError:
        return SourceError([Problem(shown, 0, f"{what} {message}", right)])

    path = folder / relative
    try:
        if path.resolve(strict=True) != folder.resolve(strict=True) / relative:
            raise bad("is reached through a symbolic link", "a regular file under the suite's folder")
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise bad("does not exist", "a path relative to the suite's file") from error
    except (OSError, RuntimeError) as error:
        raise bad(f"cannot be read: {error}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise bad("is not a regular file")
        if found.st_size > limit:
            raise bad(f"has {found.st_size:,} bytes", f"at most {limit:,}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    except OSError as error:
        raise bad(f"cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
