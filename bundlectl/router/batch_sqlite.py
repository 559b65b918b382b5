"""The journal's file: its form, how it is opened, and transactions that are on the disk when they have ended."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bundlectl.model.errors import BackendUnavailable, UsageError

VERSION: Final = 1
BUSY_SECONDS: Final = 30.0

_SCHEMA: Final = """
CREATE TABLE uploads (name TEXT PRIMARY KEY, began REAL NOT NULL) STRICT;
CREATE TABLE batches (
  id TEXT PRIMARY KEY, upload TEXT NOT NULL, app TEXT NOT NULL, environment TEXT NOT NULL, header TEXT NOT NULL,
  created REAL NOT NULL, expires REAL NOT NULL, finished REAL, cancelled REAL,
  paused REAL NOT NULL DEFAULT 0, pauses INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE rows (
  upload TEXT NOT NULL, line INTEGER NOT NULL, id TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'waiting', request BLOB,
  attempts INTEGER NOT NULL DEFAULT 0, starts INTEGER NOT NULL DEFAULT 0, not_before REAL NOT NULL DEFAULT 0,
  worker TEXT, until REAL, usd REAL NOT NULL DEFAULT 0, unpriced INTEGER NOT NULL DEFAULT 0,
  finished REAL, reason TEXT, result BLOB
) STRICT;
CREATE UNIQUE INDEX rows_by_line ON rows (upload, line);
CREATE INDEX rows_by_state ON rows (upload, state, not_before);
CREATE INDEX rows_by_end ON rows (upload, finished) WHERE finished IS NOT NULL;
"""


class JournalFile:
    """One open file. ``db`` is used inside of :meth:`reading` and :meth:`writing`, by one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open the file, which is made if it is not there.

        Raises:
            UsageError: it is one of another version.
            BackendUnavailable: it cannot be opened or made, or is no journal.
        """
        self._path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise BackendUnavailable(f"The batch journal {path} cannot be made.", why=error.strerror or "") from error
        with self._failures():
            self.db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                self._open()
            except BaseException:
                self.db.close()
                raise

    def _open(self) -> None:
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=FULL")
        with self._transaction():
            version = self.db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    self.db.execute(statement)
                self.db.execute(f"PRAGMA user_version={VERSION}")
            elif version != VERSION:
                raise UsageError(
                    f"The batch journal {self._path} has form {version}, and this bundlectl knows {VERSION}.",
                    fix="Use the bundlectl that wrote it, or move the file away once its batches have ended.",
                )

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the file for reading.

        Raises:
            BackendUnavailable: it cannot be read.
        """
        with self._lock, self._failures():
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the file for one transaction, which is undone where the block raises.

        Raises:
            BackendUnavailable: nothing was written.
        """
        with self._lock, self._failures(), self._transaction():
            yield

    def close(self) -> None:
        """Close it."""
        with self._lock:
            self.db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            raise

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise BackendUnavailable(
                f"The batch journal {self._path} cannot be used.",
                why=str(error),
                fix="Check the disk; move a file that is no journal, or damaged, away.",
            ) from error
