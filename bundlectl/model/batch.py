"""Batches: many requests handed in at once, answered when there is room, and collected later.

The input is JSON Lines of :class:`BatchRequest`, the results are JSON Lines of :class:`BatchResult` in the order of
the input, and :class:`Batch` says how far it has come.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from bundlectl.model.contract import Answer, Request
from bundlectl.model.types import StoreName, Strict, Time

RowId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
BatchId = Annotated[str, StringConstraints(pattern=r"^batch-[0-9a-f]{32}$")]
RowState = Literal["answered", "refused", "failed", "cancelled"]
"""How a row can end."""


class BatchRequest(Request):
    """One line of a batch: a request as the product sends it, with an id of its own within the batch.

    Nobody waits for it, so its latency class is ``batch``, whether that is written out or not.
    """

    id: RowId
    latency_class: Literal["batch"] = "batch"


class BatchCounts(Strict):
    """How many rows are in which state. ``running`` is told where one journal holds them, and not over a queue."""

    waiting: int = 0
    running: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    cancelled: int = 0


class QueueState(Strict):
    """What the queue holds, of all batches together, as SQS counts it: roughly."""

    visible: int
    in_flight: int
    dead_letters: int | None = None


class Batch(Strict):
    """How far a batch has come.

    ``usd`` is what its rows cost so far, tries that gave no result included; absent when a price is not known. ``rate``
    is rows per second over the last minute, ``eta_seconds`` what is left at that rate. ``paused_until`` is set while
    it waits because a limit was reached or a model is throttled. ``queue`` is there for batches over SQS.
    """

    id: BatchId
    app: StoreName
    environment: StoreName
    identity: str
    state: Literal["waiting", "running", "completed", "cancelling", "cancelled"]
    created: Time
    expires: Time
    finished: Time | None = None
    rows: int
    counts: BatchCounts
    usd: float | None = None
    rate: float | None = None
    eta_seconds: float | None = None
    paused_until: Time | None = None
    queue: QueueState | None = None

    @property
    def done(self) -> int:
        """How many rows have ended."""
        counts = self.counts
        return counts.answered + counts.refused + counts.failed + counts.cancelled

    @property
    def ended(self) -> bool:
        """Whether no row will change any more."""
        return self.state in ("completed", "cancelled")


class BatchResult(Strict):
    """What became of one row: exactly one of ``answer`` (refusals are answers) and ``error``.

    ``line`` counts from 1. ``attempts`` is how often it was asked. The release that answered and the receipt are
    in the answer; an error names the receipt of its last try, where there is one.
    """

    id: RowId
    line: int
    state: RowState
    status: int
    attempts: int
    finished: Time
    answer: Answer | None = None
    error: dict[str, Any] | None = None


class BatchOwner(Strict):
    """Who handed a batch in, as it was then. ``local``: whoever works on this machine, as with ``ask``."""

    name: str
    tenants: list[str]
    roles: list[str]
    local: bool = False


class BatchHeader(Strict):
    """What is stored of a batch as a whole when it is accepted.

    ``upload`` names the rows that were stored for it, ``claims`` every (tenant, role) among them, ``body`` the digest
    of the bytes that came.
    """

    apiVersion: Literal["bundlectl/v1"] = "bundlectl/v1"
    kind: Literal["Batch"] = "Batch"
    id: BatchId
    app: StoreName
    environment: StoreName
    owner: BatchOwner
    created: Time
    expires: Time
    rows: Annotated[int, Field(ge=1)]
    body: str
    upload: str
    claims: list[tuple[str, str]]
