"""Where batches are kept, as those who use it see it: one journal on this machine, or a store and a queue.

A batch is accepted once all of it is stored. From then on each of its rows is asked at least once, and gets exactly
one result: of two that were made for one row, because a worker was lost and came back, the first that is stored is
the one.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from bundlectl.model.batch import Batch, BatchHeader, BatchResult, RowState
from bundlectl.model.errors import Conflict, NotFound, UsageError

WINDOW: Final = 24 * 3600.0
"""Seconds after which what is left of a batch fails."""
KEEP: Final = 30 * 24 * 3600.0
"""Seconds for which a journal keeps a batch after its window."""


class BatchMissing(NotFound):
    """There is no such batch, or not for who asks: the two look the same."""

    code = "no_such_batch"

    def __init__(self, batch: str) -> None:
        super().__init__(f"There is no batch {batch} here.", fix="Use the id that submitting it gave.")


class KeyTaken(Conflict):
    """An idempotency key came again, with another body."""

    code = "idempotency_conflict"

    def __init__(self, batch: str) -> None:
        super().__init__(
            f"The idempotency key was used for {batch}, which had another body.",
            fix="Send a key of its own with each batch; the same key repeats the same bytes.",
            details={"batch": batch},
        )


class NotFinished(UsageError):
    """Results of all rows were asked for, and some have none yet."""

    code = "not_finished"

    def __init__(self, batch: Batch) -> None:
        super().__init__(
            f"{batch.id} has not ended: {batch.done} of {batch.rows} rows have a result.",
            fix="Ask again later, or ask for those that are there: ?partial=true, or --partial.",
        )


class BadRows(UsageError):
    """Lines of the input are no requests that the release and the caller's rights take. Nothing was accepted.

    ``problems``: each with line (from 1), field and message; with ``more``, reading stopped there. ``denied``: one is a
    right that the caller does not have.
    """

    code = "bad_rows"

    def __init__(self, problems: Sequence[dict[str, Any]], *, denied: bool, more: bool = False) -> None:
        lines = sorted({one["line"] for one in problems})
        others = f" and {len(lines) - 1} others" if len(lines) > 2 else f" and line {lines[-1]}" if lines[1:] else ""
        stopped = ", where reading stopped" if more else ""
        super().__init__(
            f"Line {lines[0]}{others} of the batch cannot be taken{stopped}; nothing was accepted.",
            why="\n".join(f"line {one['line']}: {one['field']}: {one['message']}" for one in problems),
            fix="Correct the lines and send the whole batch again.",
            details={"lines": list(problems)},
        )
        self.problems = list(problems)
        self.denied = denied


@dataclass(frozen=True, slots=True)
class NewRow:
    """A row to be stored: its line from 1, its id, and its request as JSON without the id."""

    line: int
    id: str
    request: bytes


@dataclass(frozen=True, slots=True)
class Settings:
    """How batches are worked on. Seconds throughout; a row that was asked ``attempts`` times in vain has failed."""

    concurrency: int = 4
    attempts: int = 8
    starts: int = 5
    """After a row's worker was lost so often, the row has failed."""
    lease: float = 60.0
    first_pause: float = 2.0
    longest_pause: float = 120.0
    idle: float = 1.0
    """Between two looks for work, where nobody tells of it."""
    grace: float = 25.0
    """How long rows that are under way may go on when the worker is told to end."""


class Book(Protocol):
    """Batches as they are handed in, looked at and collected. Methods block; safe to use from several threads.

    Each raises ``BackendUnavailable`` when it could not do its work, and ``BatchMissing`` for an unknown batch.
    """

    def begin(self) -> str:
        """Give a name to store rows under."""
        ...

    def add(self, upload: str, rows: Sequence[NewRow]) -> None:
        """Store rows; they belong to nothing yet."""
        ...

    def discard(self, upload: str) -> None:
        """Forget rows, unless they became a batch meanwhile."""
        ...

    def accept(self, header: BatchHeader) -> tuple[BatchHeader, bool]:
        """Make a batch of the rows of an upload; False with the one that is there, when it came before.

        Raises:
            KeyTaken: the one that is there had another body.
        """
        ...

    def header(self, batch: str) -> BatchHeader:
        """Give what was accepted."""
        ...

    def status(self, batch: str) -> Batch:
        """Say how far a batch has come."""
        ...

    def page(self, batch: str, after: int, limit: int) -> list[tuple[int, bytes]]:
        """Give (line, result as JSON) of rows that have one, in order, beginning after a line; none: that was all."""
        ...

    def cancel(self, batch: str) -> None:
        """Let no row begin any more; what is under way may end."""
        ...

    def recent(self, limit: int) -> list[Batch]:
        """Give the batches that were accepted last, the newest first."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


_UNANSWERED: Final[dict[str, tuple[RowState, int, str, str]]] = {
    "cancelled": ("cancelled", 499, "cancelled", "The batch was cancelled before the row had an answer."),
    "expired": ("failed", 503, "batch_expired", "The batch's time was up before the row had an answer."),
    "worker_lost": ("failed", 503, "worker_lost", "Every worker that began the row was lost before it had an answer."),
}
"""Reasons for which a row ends without an answer: state, status, code, message."""


def unanswered(row: str, line: int, reason: str, attempts: int, finished: datetime) -> BatchResult:
    """Make the result of a row that ends without an answer: ``cancelled``, ``expired`` or ``worker_lost``."""
    state, status, code, message = _UNANSWERED[reason]
    error = {"error": code, "message": message, "why": "", "fix": "Send the row again in a new batch."}
    return BatchResult(id=row, line=line, state=state, status=status, attempts=attempts, finished=finished, error=error)


def batch_id(app: str, environment: str, owner: str, key: str | None) -> str:
    """Give a batch's id: the same for the same caller's same idempotency key, else a new one."""
    if key is None:
        return f"batch-{secrets.token_hex(16)}"
    parts = "\0".join((app, environment, owner, key))
    return f"batch-{hashlib.sha256(parts.encode()).hexdigest()[:32]}"
