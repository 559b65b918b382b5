"""Writing receipts: JSON Lines in one folder per day (UTC), by one background thread, never in a request's way.

``<folder>/date=2026-11-23/<process>.jsonl``; each process has files of its own, so no two write to one. A
receipt that cannot be stored (disk full, queue full) is counted and reported, and the request goes on.
"""

from __future__ import annotations

import os
import queue
import secrets
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path

from bundlectl.model.errors import BackendUnavailable
from bundlectl.model.receipt import Receipt

QUEUE = 10_000
BATCH = 500
REPORT_EVERY = 1000
"""Of receipts that are lost in a row, the first and every so many after it are reported."""


@dataclass(frozen=True, slots=True)
class _Flush:
    done: threading.Event


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
        self._queue: queue.Queue[Receipt | _Flush | None] = queue.Queue(capacity)
        self._counts = threading.Lock()
        self._closed = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="receipts", daemon=True)
        self._thread.start()

    def write(self, receipt: Receipt) -> None:
        """Take a receipt to be written soon."""
        if self._closed:
            self._lose(1, "the receipt log is closed")
            return
        try:
            self._queue.put_nowait(receipt)
        except queue.Full:
            self._lose(1, f"{self._queue.maxsize} receipts are waiting to be written")

    def flush(self, timeout: float = 10.0) -> None:
        """Wait until what was taken so far is on disk (fsync), or was counted as lost.

        Raises:
            BackendUnavailable: it took longer than ``timeout`` seconds.
        """
        if self._closed:
            return
        marker = _Flush(threading.Event())
        try:
            self._queue.put(marker, timeout=timeout)
        except queue.Full:
            raise _slow(self.folder) from None
        if not marker.done.wait(timeout):
            raise _slow(self.folder)

    def close(self, timeout: float = 10.0) -> None:
        """Write what waits and end the thread; later receipts are counted as lost.

        Raises:
            BackendUnavailable: it took longer than ``timeout`` seconds.
        """
        if self._closed:
            return
        self.flush(timeout)
        self._closed = True
        self._queue.put(None)
        self._thread.join(timeout)

    def __enter__(self) -> ReceiptLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            taken = [self._queue.get()]
            while len(taken) < BATCH:
                try:
                    taken.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            receipts = [item for item in taken if isinstance(item, Receipt)]
            flushes = [item for item in taken if isinstance(item, _Flush)]
            self._store(receipts, sync=bool(flushes))
            for flush in flushes:
                flush.done.set()
            if None in taken:
                return

    def _store(self, receipts: Iterable[Receipt], *, sync: bool) -> None:
        by_day: dict[str, list[bytes]] = {}
        for receipt in receipts:
            line = receipt.model_dump_json(by_alias=True, exclude_none=True).encode() + b"\n"
            by_day.setdefault(receipt.time.astimezone(UTC).strftime("%Y-%m-%d"), []).append(line)
        for day, lines in by_day.items():
            try:
                append(self.folder / f"date={day}" / self._file, b"".join(lines), sync=sync)
            except OSError as error:
                self._lose(len(lines), error.strerror or type(error).__name__)
                continue
            self._failing = False
            with self._counts:
                self.written += len(lines)
        if sync and not by_day:
            self._sync_today()

    def _sync_today(self) -> None:
        """Bring the newest file to disk when a flush came after its lines were written."""
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
        with self._counts:
            before, self.lost = self.lost, self.lost + count
            tell = not self._failing or before // REPORT_EVERY != self.lost // REPORT_EVERY
            self._failing = True
        if tell and self._on_loss is not None:
            self._on_loss(f"{self.lost} receipts could not be stored in {self.folder}: {why}.")


def append(path: Path, data: bytes, *, sync: bool = False) -> None:
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
            if sync:
                os.fsync(handle)
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
