"""Where evaluations keep answers and scores for the next run: one SQLite file, for any number of processes at once.

Entries are found by the digest of all that they depend on (:mod:`bundlectl.evaluation.remembering`), so none is ever
out of date; those kept longest go first when the file is full. Each stands beside a digest of its bytes, so that one
that was damaged is not found. The values are texts of answers and documents, in clear: only their owner may read them.

A cache is a convenience. What is wrong with it is said once, and then the run goes on without it.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

from bundlectl.model.errors import BackendUnavailable
from bundlectl.model.types import Strict

FILE: Final = "cache-1.sqlite"
"""The number is the form's: another version with another form has a file of its own."""
LIMIT: Final = 2**30
"""Bytes of entries that are kept at most."""
TOGETHER: Final = 50
"""Entries that are written at once: what a kill may lose. A transaction for each would take longer than the rest."""
WAIT: Final = 10.0
"""Seconds to wait for another process that is writing."""

_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS entries (n INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE NOT NULL,"
    " kind TEXT NOT NULL, kept REAL NOT NULL, digest BLOB NOT NULL, value BLOB NOT NULL)"
)

Kind = Literal["answer", "score"]


class Held(Strict):
    """How much is kept. ``bytes`` and ``limit`` are of the entries; the file is somewhat larger."""

    folder: str
    limit: int
    answers: int
    scores: int
    bytes: int


class EvaluationCache:
    """The cache of a folder, open for a run; a context manager. Used by one thread.

    Nothing raises: what cannot be read is not found, what cannot be written is not kept, and ``warn`` is told why,
    once for each.
    """

    def __init__(
        self,
        folder: Path,
        *,
        warn: Callable[[str], None],
        limit: int = LIMIT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = folder / FILE
        self._warn, self._limit, self._clock = warn, limit, clock
        self._reads = self._writes = True
        self._told_damage = False
        self._size = 0
        self._waiting: dict[str, tuple[Kind, float, bytes]] = {}
        self._db: sqlite3.Connection | None = None
        try:
            self._db = _open(self.path)
            self._size = _sum(self._db)
        except (OSError, sqlite3.Error) as error:
            self._stop(error, "nothing is taken from it and nothing is kept")

    def get(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Give the entries that are there and whole, of at most a few hundred keys."""
        if self._db is None or not self._reads or not keys:
            return {}
        marks = ",".join("?" * len(keys))
        try:
            rows = self._db.execute(f"SELECT key, digest, value FROM entries WHERE key IN ({marks})", keys)  # noqa: S608
            found = {key: value for key, told, value in rows if self._whole(key, told, value)}
        except sqlite3.Error as error:
            self._stop(error, "nothing more is taken from it or kept")
            return {}
        return found | {key: self._waiting[key][2] for key in keys if key in self._waiting}

    def put(self, kind: Kind, entries: Sequence[tuple[str, bytes]]) -> None:
        """Keep entries; those kept longest make room. They are written with others, at the latest when it is closed."""
        if self._db is None or not self._writes:
            return
        now = self._clock()
        self._waiting |= {key: (kind, now, value) for key, value in entries}
        if len(self._waiting) >= TOGETHER:
            self._write()

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, {}
        if self._db is None or not waiting:
            return
        rows = [(key, kind, kept, _mark(key, value), value) for key, (kind, kept, value) in waiting.items()]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "INSERT OR REPLACE INTO entries (key, kind, kept, digest, value) VALUES (?, ?, ?, ?, ?)", rows
            )
            self._size += sum(len(row[-1]) for row in rows)
            if self._size > self._limit:
                self._size = _make_room(self._db, self._limit, self._limit * 9 // 10)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._writes = False
            self._undo()
            self._warn(f"{_what(self.path, error)}: nothing more is kept in this run.")

    def close(self) -> None:
        """Write what waits, and close it."""
        self._write()
        if self._db is not None:
            self._db.close()
            self._db = None

    def __enter__(self) -> EvaluationCache:
        """Give itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def damaged(self) -> None:
        """Say, once, that an entry is not what was kept: it counts as not found."""
        if not self._told_damage:
            self._told_damage = True
            self._warn(f"The evaluation cache {self.path} holds damaged entries; what they held is asked anew.")

    def _whole(self, key: str, told: object, value: object) -> bool:
        if isinstance(value, bytes) and told == _mark(key, value):
            return True
        self.damaged()
        return False

    def _undo(self) -> None:
        if self._db is not None and self._db.in_transaction:
            try:
                self._db.execute("ROLLBACK")
            except sqlite3.Error as error:
                self._stop(error, "nothing more is taken from it or kept")

    def _stop(self, error: Exception, so: str) -> None:
        self._reads = self._writes = False
        self._warn(f"{_what(self.path, error)}: {so} in this run. If it is damaged: bundlectl cache clear")


def held(folder: Path, *, limit: int = LIMIT) -> Held:
    """Say how much is kept in a folder; where no evaluation kept anything yet, nothing is made.

    Raises:
        BackendUnavailable: it cannot be read.
    """
    counts: dict[str, int] = {}
    size = 0
    if (folder / FILE).exists():
        try:
            db = _open(folder / FILE)
            try:
                counts = dict(db.execute("SELECT kind, count(*) FROM entries GROUP BY kind"))
                size = _sum(db)
            finally:
                db.close()
        except (OSError, sqlite3.Error) as error:
            raise _unusable(folder / FILE, error) from error
    return Held(
        folder=str(folder), limit=limit, answers=counts.get("answer", 0), scores=counts.get("score", 0), bytes=size
    )


def clear(folder: Path, *, before: float | None = None, down_to: int | None = None) -> None:
    """Remove entries, and their bytes from the file; a file that is damaged is removed itself.

    Args:
        folder: the cache's.
        before: only those kept before this moment, in seconds since 1970.
        down_to: only those kept longest, until the rest has at most so many bytes.

    Raises:
        BackendUnavailable: it cannot be written, or another process kept it busy.
    """
    path = folder / FILE
    if not path.exists():
        return
    try:
        # Emptied and not deleted: another process may have it open.
        db = _open(path)
        try:
            db.execute("BEGIN IMMEDIATE")
            if before is None and down_to is None:
                db.execute("DELETE FROM entries")
            if before is not None:
                db.execute("DELETE FROM entries WHERE kept < ?", (before,))
            if down_to is not None:
                _make_room(db, down_to, down_to)
            db.execute("COMMIT")
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            db.close()
    except (OSError, sqlite3.OperationalError) as error:
        raise _unusable(path, error) from error
    except sqlite3.DatabaseError:
        try:
            for name in (FILE, f"{FILE}-wal", f"{FILE}-shm"):
                (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise _unusable(path, error) from error


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # SQLite gives its other files the mode of this one.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    db = sqlite3.connect(path, timeout=WAIT, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA secure_delete = ON")
        db.execute(_TABLE)
    except sqlite3.Error:
        db.close()
        raise
    return db


def _mark(key: str, value: bytes) -> bytes:
    """Give the digest that stands beside a value; of the key as well, so that no value answers for another."""
    return hashlib.sha256(key.encode() + b"\n" + value).digest()


def _sum(db: sqlite3.Connection) -> int:
    (size,) = db.execute("SELECT coalesce(sum(length(value)), 0) FROM entries").fetchone()
    return int(size)


def _make_room(db: sqlite3.Connection, limit: int, down_to: int) -> int:
    """Delete what was kept longest if there are more than ``limit`` bytes; give how many are left."""
    size = _sum(db)  # other processes write as well
    if size <= limit:
        return size
    last = 0
    for number, length in db.execute("SELECT n, length(value) FROM entries ORDER BY n"):
        last, size = number, size - length
        if size <= down_to:
            break
    db.execute("DELETE FROM entries WHERE n <= ?", (last,))
    return size


def _what(path: Path, error: Exception) -> str:
    return f"The evaluation cache {path} cannot be used ({error})"


def _unusable(path: Path, error: Exception) -> BackendUnavailable:
    return BackendUnavailable(
        f"The evaluation cache {path} cannot be used.",
        why=str(error),
        fix="Evaluate with --no-cache; if the file is damaged: bundlectl cache clear",
    )
