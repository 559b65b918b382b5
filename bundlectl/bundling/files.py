"""Reading source files: only regular files under the source folder, never through a link, never blocking.

Every folder on the way is opened by itself, without following links, and the name must stand in its listing
exactly so: a path that would be found only where names ignore case or Unicode form is refused everywhere.
"""

from __future__ import annotations

import difflib
import os
import stat
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from bundlectl.model.types import check_relative_path

MAX_FILE = 1024 * 1024
"""Bytes of one source file."""


class BadPath(Exception):
    """A path cannot be read as a source file. ``args``: what is wrong, what would be right."""

    def __init__(self, message: str, right: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.right = right


@dataclass
class Folder:
    """The source folder and what was read of it, by relative path."""

    root: Path
    read_files: dict[str, bytes] = field(default_factory=dict)
    _listings: dict[tuple[int, int], frozenset[str]] = field(default_factory=dict)

    def display(self, relative: str) -> str:
        """Name a file for people: as the folder was given, with the path under it."""
        return str(self.root / relative)

    def read(self, relative: str) -> bytes:
        """Read one file; a second time from memory, so that one build sees one state of it.

        Raises:
            BadPath: it does not exist, is not a regular file under the folder, or is too large.
        """
        if relative in self.read_files:
            return self.read_files[relative]
        check_path(relative)
        data = self._read(relative)
        self.read_files[relative] = data
        return data

    def names(self, relative: str, suffix: str) -> list[str]:
        """List the paths of a sub-folder's entries with that suffix, sorted; none if there is no such folder.

        Raises:
            BadPath: it is there and is not a folder.
        """
        path = self.root / relative
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise BadPath(f"{relative} cannot be read: {error.strerror}") from error
        if not stat.S_ISDIR(found.st_mode):
            raise BadPath(f"{relative} is {_kind(found.st_mode)}", "a folder")
        entries = (_utf8(entry.name) for entry in path.iterdir())
        wanted = (name for name in entries if name.endswith(suffix) and not name.startswith("."))
        return [f"{relative}/{name}" for name in sorted(wanted)]

    def _read(self, relative: str) -> bytes:
        *folders, name = relative.split("/")
        try:
            here = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise BadPath(f"the folder {self.root} cannot be read: {error.strerror}") from error
        try:
            for depth, part in enumerate(folders):
                found = self._look(here, part, relative, "/".join(folders[: depth + 1]))
                if not stat.S_ISDIR(found.st_mode):
                    what = "/".join(folders[: depth + 1])
                    raise BadPath(f"{what} in {relative} is {_kind(found.st_mode)}", "every part before is a folder")
                inner = _open(part, here, relative, os.O_DIRECTORY)
                os.close(here)
                here = inner
            found = self._look(here, name, relative, relative)
            if not stat.S_ISREG(found.st_mode):
                raise BadPath(f"{relative} is {_kind(found.st_mode)}", "only regular files are read")
            return _contents(name, here, relative)
        finally:
            os.close(here)

    def _look(self, here: int, part: str, relative: str, so_far: str) -> os.stat_result:
        """Check a name against its folder's listing and give what it is, links not followed."""
        of = os.fstat(here)
        try:
            listing = self._listings.setdefault((of.st_dev, of.st_ino), frozenset(map(_utf8, os.listdir(here))))
        except OSError as error:
            raise BadPath(f"{relative} cannot be read: {error.strerror}") from error
        alike = sorted(entry for entry in listing if entry != part and _folded(entry) == _folded(part))
        if part not in listing:
            near = f"there is {alike[0]!r}: names must agree letter by letter" if alike else _near(part, listing)
            raise BadPath(f"{so_far} does not exist", near)
        if alike:
            raise BadPath(
                f"{so_far} and {alike[0]!r} differ only by case or Unicode form",
                "rename one: they are one file on other machines",
            )
        try:
            return os.stat(part.encode(), dir_fd=here, follow_symlinks=False)
        except OSError as error:
            raise BadPath(f"{so_far} cannot be read: {error.strerror}") from error


def check_path(relative: str) -> None:
    """Check a path's form: relative, under the folder, NFC.

    Raises:
        BadPath: it is not.
    """
    try:
        check_relative_path(relative)
    except ValueError as error:
        raise BadPath(str(error), "a path under the folder of bundle.yaml, e.g. prompts/answer.yaml") from error


def _contents(name: str, here: int, relative: str) -> bytes:
    # O_NONBLOCK: should the file have become a FIFO since it was looked at, opening it does not wait.
    descriptor = _open(name, here, relative, os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise BadPath(f"{relative} is {_kind(found.st_mode)}", "only regular files are read")
        if found.st_size > MAX_FILE:
            raise BadPath(f"{relative} has {found.st_size:,} bytes", f"at most {MAX_FILE:,}")
        parts: list[bytes] = []
        left = MAX_FILE + 1
        while left > 0 and (part := os.read(descriptor, min(left, 1 << 16))):
            parts.append(part)
            left -= len(part)
    except OSError as error:
        raise BadPath(f"{relative} cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if left <= 0:
        raise BadPath(f"{relative} grew while it was read", f"at most {MAX_FILE:,} bytes")
    return b"".join(parts)


def _open(name: str, here: int, relative: str, flags: int) -> int:
    try:
        return os.open(name.encode(), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=here)
    except OSError as error:
        raise BadPath(f"{relative} cannot be read: {error.strerror}") from error


def _utf8(name: str) -> str:
    """Give a directory entry's name as UTF-8 whatever the locale says names are written in."""
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _near(part: str, listing: frozenset[str]) -> str:
    near = difflib.get_close_matches(part, sorted(listing), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def _kind(mode: int) -> str:
    for test, name in (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISREG, "a file"),
    ):
        if test(mode):
            return name
    return "no regular file"
