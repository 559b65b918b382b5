"""Writing receipts: JSON Lines in one folder per day (UTC), by one background thread, never in a request's way.

``<folder>/date=2026-11-23/<process>.jsonl``; each process has files of its own, so no two write to one. A
receipt that cannot be stored (disk full, queue full) is counted and reported, and the request goes on.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable
from datetime import UTC, date
from pathlib import Path

from bundlectl.model.errors import BackendUnavailable
from bundlectl.model.receipt import Receipt

QUEUE = 10_000
TOGETHER = 32
"""Receipts that are made JSON in one go: the same code many times in a row takes half the time."""
BATCH = 500
GATHER = 0.05
"""Seconds that receipts are gathered before they are written together; a flush does not wait."""
REPORT_EVERY = 1000
"""Of receipts that are lost in a row, the first and every so many after it are reported."""


class ReceiptLog:
    """The receipts of one process. :meth:`write` may be called from any thread and never waits."""

    def __init__(
        self,
        folder: Path,
        *,
        on_loss: Callable[[str], None] | None = None,
        process: str | None = None,
        capacity: int = QUEUE,
    ) -> None:
        """Start the writing thread.

        Args:
            folder: made when the first receipt is written.
            on_loss: told in words when receipts were lost; called from the writing thread or the caller's.
            process: the name of this process's files; default: process id and a random part.
            capacity: how many receipts may wait to be written; more are lost, and counted.
        """
        self.folder = folder
        self.written = 0
        self.lost = 0
        self._on_loss = on_loss
        self._file = f"{process or f'{os.getpid()}-{secrets.token_hex(4)}'}.jsonl"
        self._capacity = capacity
        self._new: deque[Receipt] = deque()
        self._waiting: deque[tuple[date, bytes]] = deque()
        self._making = threading.Lock()
        self._lock = threading.Lock()
        self._some = threading.Event()
        self._hurry = threading.Event()
        self._flushes: list[threading.Event] = []
        self._closed = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="receipts", daemon=True)
        self._thread.start()

    def write(self, receipt: Receipt) -> None:
        """Take a receipt to be written soon."""
        if self._closed:
            self._lose(1, "the receipt log is closed")
        elif len(self._new) + len(self._waiting) >= self._capacity:
            self._lose(1, f"{self._capacity} receipts are waiting to be written")
        else:
            self._new.append(receipt)
            if len(self._new) >= TOGETHER:
                # Here: a thread that did all of it would take the interpreter from the requests, and costs more.
                self._make_lines()
            if not self._some.is_set():
                self._some.set()

    def flush(self, timeout: float = 10.0) -> None:
        """Wait until what was taken so far is on disk (fsync), or was counted as lost.

        Raises:
            BackendUnavailable: it took longer than ``timeout`` seconds.
        """
        if self._closed:
            return
        done = threading.Event()
        with self._lock:
            self._flushes.append(done)
            self._hurry.set()
            self._some.set()
        if not done.wait(timeout):
            raise _slow(self.folder)

    def close(self, timeout: float = 10.0) -> None:
        """Write what waits and end the thread; later receipts are counted as lost.

        Raises:
            BackendUnavailable: it took longer than ``timeout`` seconds.
        """
        if self._closed:
            return
        with self._lock:
            self._closed = True
            self._hurry.set()
            self._some.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise _slow(self.folder)
        if late := len(self._new) + len(self._waiting):
            self._lose(late, "the receipt log was closed meanwhile")

    def __enter__(self) -> ReceiptLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            self._some.wait()
            # Waking for each receipt would cost the requests more than writing it does.
            self._hurry.wait(GATHER)
            with self._lock:
                self._some.clear()
                self._hurry.clear()
                flushes, self._flushes = self._flushes, []
                closing = self._closed
            self._make_lines()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                self._store(batch)
            if flushes or closing:
                self._sync_newest()
            for done in flushes:
                done.set()
            if closing:
                return

    def _make_lines(self) -> None:
        """Make JSON of what was taken, in its order."""
        with self._making:
            for _ in range(len(self._new)):
                receipt = self._new.popleft()
                try:
                    line = receipt.__pydantic_serializer__.to_json(receipt, by_alias=True, exclude_none=True)
                except ValueError as error:
                    self._lose(1, f"{receipt.id} has no JSON: {error}")
                else:
                    self._waiting.append((receipt.time.astimezone(UTC).date(), line + b"\n"))

    def _store(self, receipts: Iterable[tuple[date, bytes]]) -> None:
        by_day: dict[date, list[bytes]] = {}
        for day, line in receipts:
            by_day.setdefault(day, []).append(line)
        for day, lines in by_day.items():
            try:
                append(self.folder / f"date={day}" / self._file, b"".join(lines))
            except OSError as error:
                self._lose(len(lines), error.strerror or type(error).__name__)
                continue
            self._failing = False
            with self._lock:
                self.written += len(lines)

    def _sync_newest(self) -> None:
        """Bring this process's newest file to disk."""
        days = sorted(self.folder.glob(f"date=*/{self._file}"))
        if not days:
            return
        try:
            handle = os.open(days[-1], os.O_WRONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            self._lose(0, error.strerror or type(error).__name__)

    def _lose(self, count: int, why: str) -> None:
        with self._lock:
            before, self.lost = self.lost, self.lost + count
            tell = not self._failing or before // REPORT_EVERY != self.lost // REPORT_EVERY
            self._failing = True
        if tell and self._on_loss is not None:
            self._on_loss(f"{self.lost} receipts could not be stored in {self.folder}: {why}.")


def append(path: Path, data: bytes) -> None:
    """Append whole lines, or nothing: what a full disk took of them is cut off again.

    Raises:
        OSError: nothing was appended.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(handle).st_size
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
        except OSError:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


def _slow(folder: Path) -> BackendUnavailable:
    return BackendUnavailable(
        f"Receipts are not stored in {folder} in time.",
        why="The disk answers too slowly.",
        fix="Check the disk; receipts that still wait may be lost when the process ends.",
    )
