"""The journal of batches on this machine: one SQLite file, which several processes may use at once.

Write-ahead log, and every commit is on the disk before it is answered (synchronous=FULL). Never on a network file
system: SQLite's locks do not hold there. The file is its owner's alone (mode 0600): until a row has its result, it
holds what was asked, and then the answer.

A row is leased to a worker until a time, which the worker moves on while it lives. A lease that ran out is anybody's.
A row's result is stored where the row has none yet, in one transaction with its state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bundlectl.model.batch import Batch, BatchCounts, BatchHeader, BatchResult, RowState
from bundlectl.model.errors import BackendUnavailable
from bundlectl.router.batch.book import KEEP, BatchMissing, KeyTaken, NewRow, Settings, unanswered
from bundlectl.router.batch_sqlite import JournalFile
from bundlectl.router.router import random_ids

FORGOTTEN: Final = 3600.0
"""Seconds after which rows that became no batch are swept: whoever stored them is gone."""
_RATE_OVER: Final = 60.0


@dataclass(frozen=True, slots=True)
class LeasedRow:
    """A row that a worker may ask now. ``attempts``: how often it was asked in vain before."""

    header: BatchHeader
    line: int
    id: str
    request: bytes
    attempts: int


@dataclass(frozen=True, slots=True)
class Settled:
    """What came of a row: its ``result``, or that it is put back for ``pause`` seconds, ``asked`` or not.

    ``pause_batch``: its whole batch waits, see :meth:`Journal.pause`.
    """

    row: LeasedRow
    usd: float | None
    result: BatchResult | None = None
    pause: float = 0.0
    asked: bool = False
    pause_batch: tuple[float, float, float] | None = None


class Journal:
    """Implements ``Book``, and gives rows to workers."""

    def __init__(self, path: Path, clock: Callable[[], datetime]) -> None:
        """Open the file, which is made if it is not there.

        Args:
            path: the file.
            clock: the present time, UTC: leases of all processes on this machine are told by it.

        Raises:
            UsageError: it is no journal, or one of a later version.
            BackendUnavailable: it cannot be opened or made.
        """
        self.path = path
        self._clock = clock
        self._ids = random_ids()
        self._file = JournalFile(path)
        self._db = self._file.db

    # ------------------------------------------------------------ handing in

    def begin(self) -> str:
        """See ``Book.begin``."""
        name = self._ids()
        with self._file.writing():
            self._db.execute("INSERT INTO uploads VALUES (?, ?)", (name, self._now()))
        return name

    def add(self, upload: str, rows: Sequence[NewRow]) -> None:
        """See ``Book.add``."""
        with self._file.writing():
            self._db.executemany(
                "INSERT INTO rows (upload, line, id, request) VALUES (?, ?, ?, ?)",
                [(upload, row.line, row.id, row.request) for row in rows],
            )

    def discard(self, upload: str) -> None:
        """See ``Book.discard``."""
        with self._file.writing():
            if self._db.execute("DELETE FROM uploads WHERE name = ?", (upload,)).rowcount:
                self._db.execute("DELETE FROM rows WHERE upload = ?", (upload,))

    def accept(self, header: BatchHeader) -> tuple[BatchHeader, bool]:
        """See ``Book.accept``."""
        with self._file.writing():
            held = self._find(header.id)
            if held is not None:
                if held.body != header.body:
                    raise KeyTaken(held.id)
                return held, False
            if not self._db.execute("DELETE FROM uploads WHERE name = ?", (header.upload,)).rowcount:
                raise BackendUnavailable("The rows of the batch are not there any more.", fix="Send it again.")
            self._db.execute(
                "INSERT INTO batches (id, upload, app, environment, header, created, expires)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    header.id,
                    header.upload,
                    header.app,
                    header.environment,
                    header.model_dump_json(),
                    self._now(),
                    header.expires.timestamp(),
                ),
            )
        return header, True

    # ------------------------------------------------------------ looking

    def header(self, batch: str) -> BatchHeader:
        """See ``Book.header``."""
        with self._file.reading():
            held = self._find(batch)
        if held is None:
            raise BatchMissing(batch)
        return held

    def status(self, batch: str) -> Batch:
        """See ``Book.status``."""
        header = self.header(batch)
        now = self._now()
        with self._file.reading():
            found = self._db.execute(
                "SELECT created, finished, cancelled, paused FROM batches WHERE id = ?", (batch,)
            ).fetchone()
            states = self._db.execute(
                "SELECT state, count(*), sum(usd), sum(unpriced) FROM rows WHERE upload = ? GROUP BY state",
                (header.upload,),
            ).fetchall()
            lately = self._db.execute(
                "SELECT count(*) FROM rows WHERE upload = ? AND finished > ?", (header.upload, now - _RATE_OVER)
            ).fetchone()[0]
        if found is None:
            raise BatchMissing(batch)
        created, finished, cancelled, paused = found
        counts = BatchCounts(**{state: count for state, count, _, _ in states})
        left = counts.waiting + counts.running
        rate = lately / max(1.0, min(_RATE_OVER, now - created)) if left and lately else None
        return Batch(
            id=header.id,
            app=header.app,
            environment=header.environment,
            identity=header.owner.name,
            state=_state(counts, header.rows, cancelled=cancelled is not None),
            created=header.created,
            expires=header.expires,
            finished=_time(finished),
            rows=header.rows,
            counts=counts,
            usd=None if any(row[3] for row in states) else round(sum(row[2] for row in states), 9),
            rate=None if rate is None else round(rate, 3),
            eta_seconds=None if rate is None else round(left / rate, 1),
            paused_until=_time(paused) if left and paused > now else None,
        )

    def page(self, batch: str, after: int, limit: int) -> list[tuple[int, bytes]]:
        """See ``Book.page``."""
        upload = self.header(batch).upload
        with self._file.reading():
            rows = self._db.execute(
                "SELECT line, id, state, reason, attempts, finished, result FROM rows"
                " WHERE upload = ? AND line > ? AND finished IS NOT NULL ORDER BY line LIMIT ?",
                (upload, after, limit),
            ).fetchall()
        return [(row[0], row[6] if row[6] is not None else _without_answer(*row[:6])) for row in rows]

    def recent(self, limit: int) -> list[Batch]:
        """See ``Book.recent``."""
        with self._file.reading():
            found = self._db.execute("SELECT id FROM batches ORDER BY created DESC, id LIMIT ?", (limit,)).fetchall()
        return [self.status(row[0]) for row in found]

    def cancel(self, batch: str) -> None:
        """See ``Book.cancel``."""
        upload = self.header(batch).upload
        now = self._now()
        with self._file.writing():
            self._db.execute(
                "UPDATE batches SET cancelled = ? WHERE id = ? AND cancelled IS NULL AND finished IS NULL", (now, batch)
            )
            if self._db.execute("SELECT cancelled FROM batches WHERE id = ?", (batch,)).fetchone()[0] is not None:
                self._end_waiting(upload, "cancelled", "cancelled", now)
                self._end_batch(batch, upload, now)

    # ------------------------------------------------------------ working

    def claim(self, worker: str, count: int, sources: Sequence[tuple[str, str]], settings: Settings) -> list[LeasedRow]:
        """Lease rows to a worker: of the batches of some (app, environment), evenly, the oldest first."""
        now = self._now()
        with self._file.reading():
            busy = self._open_batches(sources, now)
        if not busy:
            return []
        claimed: list[LeasedRow] = []
        with self._file.writing():
            for batch, upload, header, expires, cancelled, paused in self._open_batches(sources, now):
                self._take_back(upload, now, settings.starts)
                if expires <= now:
                    self._end_waiting(upload, "failed", "expired", now)
                elif cancelled is not None:
                    self._end_waiting(upload, "cancelled", "cancelled", now)
                self._end_batch(batch, upload, now)
                if expires <= now or cancelled is not None or paused > now or len(claimed) >= count:
                    continue
                share = max(1, -(-count // len(busy)))
                rows = self._db.execute(
                    "UPDATE rows SET state = 'running', worker = ?, until = ?, starts = starts + 1 WHERE rowid IN"
                    " (SELECT rowid FROM rows WHERE upload = ? AND state = 'waiting' AND not_before <= ?"
                    "  ORDER BY not_before, rowid LIMIT ?) RETURNING line, id, request, attempts",
                    (worker, now + settings.lease, upload, now, min(share, count - len(claimed))),
                ).fetchall()
                parsed = BatchHeader.model_validate_json(header)
                claimed += [LeasedRow(parsed, *row) for row in rows]
        return claimed

    def extend(self, worker: str, rows: Sequence[LeasedRow], lease: float) -> None:
        """Move on a worker's leases of rows that are under way."""
        until = self._now() + lease
        with self._file.writing():
            self._db.executemany(
                "UPDATE rows SET until = ? WHERE upload = ? AND line = ? AND worker = ? AND state = 'running'",
                [(until, row.header.upload, row.line, worker) for row in rows],
            )

    def finish(self, row: LeasedRow, result: BatchResult, usd: float | None) -> bool:
        """Store a row's result; False when it has one already, which stays. What was spent counts all the same."""
        return self.settle([Settled(row, usd, result=result)], "")[0]

    def settle(self, rows: Sequence[Settled], worker: str) -> list[bool]:
        """Store what came of rows, in one transaction; for each, whether its result is the one that stays.

        A row without a result waits again, unless another worker has it by now. One that is put back without having
        been asked has not lost its worker either.
        """
        now = self._now()
        kept: list[bool] = []
        with self._file.writing():
            for one in rows:
                self._spent(one.row, one.usd)
                if one.pause_batch is not None:
                    self._pause(one.row.header.id, *one.pause_batch)
                kept.append(self._finish(one.row, one.result, now) if one.result else self._put_back(one, worker, now))
            for batch, upload in {(one.row.header.id, one.row.header.upload) for one in rows}:
                self._end_batch(batch, upload, now)
        return kept

    def _finish(self, row: LeasedRow, result: BatchResult, now: float) -> bool:
        data = result.model_dump_json(by_alias=True, exclude_none=True).encode()
        done = self._db.execute(
            "UPDATE rows SET state = ?, result = ?, attempts = ?, finished = ?, request = NULL, worker = NULL"
            " WHERE upload = ? AND line = ? AND finished IS NULL",
            (result.state, data, result.attempts, now, row.header.upload, row.line),
        ).rowcount
        if done and result.state == "answered":
            self._db.execute("UPDATE batches SET pauses = 0 WHERE id = ? AND pauses > 0", (row.header.id,))
        return bool(done)

    def _put_back(self, one: Settled, worker: str, now: float) -> bool:
        self._db.execute(
            "UPDATE rows SET state = 'waiting', worker = NULL, not_before = ?, attempts = attempts + ?,"
            " starts = max(0, starts - 1) WHERE upload = ? AND line = ? AND state = 'running' AND worker = ?",
            (now + one.pause, int(one.asked), one.row.header.upload, one.row.line, worker),
        )
        return False

    def put_back(self, row: LeasedRow, worker: str, *, pause: float, asked: bool, usd: float | None = 0.0) -> None:
        """End a lease without a result: the row waits ``pause`` seconds. ``asked``: that counts as an attempt."""
        self.settle([Settled(row, usd, pause=pause, asked=asked)], worker)

    def pause(self, batch: str, first: float, longest: float, least: float = 0.0) -> None:
        """Let a whole batch wait, longer each time until a row is answered, and at least ``least`` seconds."""
        with self._file.writing():
            self._pause(batch, first, longest, least)

    def _pause(self, batch: str, first: float, longest: float, least: float) -> None:
        now = self._now()
        found = self._db.execute("SELECT paused, pauses FROM batches WHERE id = ?", (batch,)).fetchone()
        if found is not None and found[0] <= now:
            seconds = max(least, min(longest, first * 2.0 ** min(found[1], 20)))
            self._db.execute("UPDATE batches SET paused = ?, pauses = pauses + 1 WHERE id = ?", (now + seconds, batch))

    def open_rows(self, sources: Sequence[tuple[str, str]]) -> int:
        """Count the rows of some apps' environments that have no result yet."""
        with self._file.reading():
            return sum(
                self._db.execute(
                    "SELECT count(*) FROM rows WHERE upload IN"
                    " (SELECT upload FROM batches WHERE app = ? AND environment = ? AND finished IS NULL)"
                    " AND finished IS NULL",
                    source,
                ).fetchone()[0]
                for source in sources
            )

    def sweep(self) -> None:
        """Delete batches that were kept long enough, and rows that became no batch."""
        now = self._now()
        with self._file.writing():
            old = self._db.execute("SELECT id, upload FROM batches WHERE expires < ?", (now - KEEP,)).fetchall()
            gone = self._db.execute("SELECT name FROM uploads WHERE began < ?", (now - FORGOTTEN,)).fetchall()
            for batch, _ in old:
                self._db.execute("DELETE FROM batches WHERE id = ?", (batch,))
            for upload in [row[1] for row in old] + [row[0] for row in gone]:
                self._db.execute("DELETE FROM rows WHERE upload = ?", (upload,))
                self._db.execute("DELETE FROM uploads WHERE name = ?", (upload,))

    def close(self) -> None:
        """See ``Book.close``."""
        self._file.close()

    # ------------------------------------------------------------ inside

    def _open_batches(self, sources: Sequence[tuple[str, str]], now: float) -> list[Any]:
        """Give (id, upload, header, expires, cancelled, paused) of batches that have not ended, the oldest first."""
        found: list[Any] = []
        for app, environment in sources:
            found += self._db.execute(
                "SELECT id, upload, header, expires, cancelled, paused FROM batches"
                " WHERE app = ? AND environment = ? AND finished IS NULL AND (paused <= ? OR expires <= ?"
                " OR cancelled IS NOT NULL) ORDER BY created, id",
                (app, environment, now, now),
            ).fetchall()
        return found

    def _take_back(self, upload: str, now: float, starts: int) -> None:
        """Let rows of lost workers wait again; one that lost too many has failed."""
        lost = (upload, now)
        self._db.execute(
            "UPDATE rows SET state = 'failed', reason = 'worker_lost', finished = ?, request = NULL, worker = NULL"
            " WHERE upload = ? AND state = 'running' AND until < ? AND starts >= ?",
            (now, *lost, starts),
        )
        self._db.execute(
            "UPDATE rows SET state = 'waiting', worker = NULL WHERE upload = ? AND state = 'running' AND until < ?",
            lost,
        )

    def _end_waiting(self, upload: str, state: str, reason: str, now: float) -> None:
        self._db.execute(
            "UPDATE rows SET state = ?, reason = ?, finished = ?, request = NULL"
            " WHERE upload = ? AND state = 'waiting'",
            (state, reason, now, upload),
        )

    def _end_batch(self, batch: str, upload: str, now: float) -> None:
        self._db.execute(
            "UPDATE batches SET finished = ? WHERE id = ? AND finished IS NULL AND NOT EXISTS"
            " (SELECT 1 FROM rows WHERE upload = ? AND state IN ('waiting', 'running'))",
            (now, batch, upload),
        )

    def _spent(self, row: LeasedRow, usd: float | None) -> None:
        self._db.execute(
            "UPDATE rows SET usd = usd + ?, unpriced = max(unpriced, ?) WHERE upload = ? AND line = ?",
            (usd or 0.0, int(usd is None), row.header.upload, row.line),
        )

    def _find(self, batch: str) -> BatchHeader | None:
        found = self._db.execute("SELECT header FROM batches WHERE id = ?", (batch,)).fetchone()
        return None if found is None else BatchHeader.model_validate_json(found[0])

    def _now(self) -> float:
        return self._clock().timestamp()


def _state(counts: BatchCounts, rows: int, *, cancelled: bool) -> Any:
    if counts.waiting + counts.running == 0:
        return "cancelled" if cancelled else "completed"
    if cancelled:
        return "cancelling"
    return "waiting" if counts.waiting == rows else "running"


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _without_answer(line: int, row: str, state: RowState, reason: str, attempts: int, finished: float) -> bytes:
    """Write the result of a row that ended without being answered."""
    result = unanswered(row, line, reason, attempts, datetime.fromtimestamp(finished, UTC))
    return result.model_copy(update={"state": state}).model_dump_json(by_alias=True, exclude_none=True).encode()
