"""Reading a batch as it comes in: lines are judged one by one, and stored in portions, in flat memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import to_json

from bundlectl.model.batch import BatchHeader, BatchOwner, BatchRequest
from bundlectl.model.canonical import parse_json
from bundlectl.model.errors import UsageError, VerificationFailed
from bundlectl.router.assemble import Compiled
from bundlectl.router.batch.book import WINDOW, BadRows, Book, NewRow, batch_id
from bundlectl.router.contract import ContractError, check_contract
from bundlectl.router.identity import Identity

MAX_ROWS: Final = 100_000
MAX_BYTES: Final = 256 * 1024 * 1024
MAX_LINE: Final = 192 * 1024
"""Bytes of one line."""
MAX_CLAIMS: Final = 1000
"""Different pairs of tenant and role in one batch."""
PORTION: Final = 256
SHOWN: Final = 20
"""Lines that are named when a batch is not taken; with more, reading stops there."""

Problem = dict[str, Any]


class BatchTooLarge(UsageError):
    """The batch has more rows or bytes than one may have."""

    code = "too_large"


@dataclass(frozen=True, slots=True)
class Submission:
    """Who hands in what for which release. ``compiled`` judges the rows; those that answer may be later ones."""

    compiled: Compiled
    owner: BatchOwner
    identity: Identity
    key: str | None = None


class Intake:
    """Cuts pieces into lines and judges them. Not for several threads at once."""

    def __init__(self, submission: Submission) -> None:
        self._to = submission
        self._rest = bytearray()
        self._skipping = False
        self._ids: set[str] = set()
        self._digest = hashlib.sha256()
        self._bytes = 0
        self._line = 0
        self.problems: list[Problem] = []
        self.denied = False
        self.claims: set[tuple[str, str]] = set()

    @property
    def rows(self) -> int:
        """How many rows there are so far."""
        return len(self._ids)

    @property
    def digest(self) -> str:
        """The digest of the bytes that came."""
        return f"sha256:{self._digest.hexdigest()}"

    def feed(self, piece: bytes) -> list[NewRow]:
        """Take bytes and give the rows that they complete.

        Raises:
            BadRows: too many lines cannot be taken to go on reading.
            BatchTooLarge: it has too many rows or bytes.
        """
        self._digest.update(piece)
        self._bytes += len(piece)
        if self._bytes > MAX_BYTES:
            raise BatchTooLarge(f"The batch is larger than {MAX_BYTES} bytes.", fix="Split it.")
        if self._skipping:
            _, ended, piece = piece.partition(b"\n")
            self._skipping = not ended
        self._rest += piece
        *lines, rest = self._rest.split(b"\n")
        self._rest = rest
        if len(self._rest) > MAX_LINE:
            lines.append(rest)  # judged as it is: it is too long already, however it goes on
            self._rest = bytearray()
            self._skipping = True
        return self._judge(lines)

    def end(self) -> list[NewRow]:
        """Give what is left when everything has come.

        Raises:
            BadRows: lines cannot be taken, or there are none.
            BatchTooLarge: it has too many rows.
        """
        rows = self._judge([self._rest] if self._rest else [])
        if not self.rows and not self.problems:
            self._wrong("(body)", "there is no row")
        if self.problems:
            raise BadRows(self.problems, denied=self.denied)
        return rows

    def _judge(self, lines: list[bytearray]) -> list[NewRow]:
        rows: list[NewRow] = []
        for line in lines:
            self._line += 1
            if line.strip():
                row = self._row(bytes(line))
                if row is not None:
                    rows.append(row)
            if self.rows > MAX_ROWS:
                raise BatchTooLarge(f"The batch has more than {MAX_ROWS:,} rows.", fix="Split it.")
            if len(self.problems) >= SHOWN:
                raise BadRows(self.problems, denied=self.denied, more=True)
        return rows

    def _row(self, line: bytes) -> NewRow | None:
        if len(line) > MAX_LINE:
            self._wrong("(line)", f"longer than {MAX_LINE} bytes")
            return None
        try:
            request = BatchRequest.model_validate(parse_json(line, what="The line"))
        except VerificationFailed as error:
            self._wrong("(line)", f"not one JSON object in UTF-8: {error.why or error.what}")
            return None
        except ValidationError as error:
            for found in error.errors(include_url=False, include_context=False, include_input=False):
                self._wrong(".".join(str(part) for part in found["loc"]) or "(line)", found["msg"])
            return None
        if request.id in self._ids:
            self._wrong("id", f"{request.id} stands on an earlier line too")
            return None
        self._ids.add(request.id)
        return (
            NewRow(self._line, request.id, to_json(request.model_dump(exclude={"id"}))) if self._fits(request) else None
        )

    def _fits(self, request: BatchRequest) -> bool:
        before = len(self.problems)
        claim = (request.tenant_id, request.user_role)
        if claim not in self.claims:
            if not self._to.identity.may_claim(*claim):
                self.denied = True
                self._wrong("tenant_id", "the caller may not act for this tenant in this role")
            self.claims.add(claim)
            if len(self.claims) > MAX_CLAIMS:
                self._wrong("tenant_id", f"more than {MAX_CLAIMS} pairs of tenant and role in one batch")
        try:
            check_contract(request, self._to.compiled)
        except ContractError as error:
            for field, message in error.fields:
                self._wrong(field, message)
        return len(self.problems) == before

    def _wrong(self, field: str, message: str) -> None:
        if len(self.problems) < SHOWN:
            self.problems.append({"line": max(1, self._line), "field": field, "message": message})


async def take_in(
    book: Book,
    submission: Submission,
    pieces: AsyncIterator[bytes],
    now: datetime,
) -> tuple[BatchHeader, bool]:
    """Read, judge and store a batch, in threads; give what was accepted, and whether it is new.

    Args:
        book: where it is kept.
        submission: who hands it in, for which release.
        pieces: the body, in pieces of any size.
        now: the present time.

    Raises:
        BadRows, BatchTooLarge: it is not taken.
        KeyTaken: the idempotency key had another body.
        BackendUnavailable: it cannot be stored.
    """
    intake = Intake(submission)
    upload = await asyncio.to_thread(book.begin)
    accepted = False
    try:
        waiting: list[NewRow] = []
        async for piece in pieces:
            waiting += await asyncio.to_thread(intake.feed, piece)
            while len(waiting) >= PORTION:
                portion, waiting = waiting[:PORTION], waiting[PORTION:]
                await asyncio.to_thread(book.add, upload, portion)
        waiting += await asyncio.to_thread(intake.end)
        if waiting:
            await asyncio.to_thread(book.add, upload, waiting)
        ref, owner = submission.compiled.ref, submission.owner
        now = now.astimezone(UTC).replace(microsecond=0)
        header = BatchHeader(
            id=batch_id(ref.app, ref.environment, owner.name, submission.key),
            app=ref.app,
            environment=ref.environment,
            owner=owner,
            created=now,
            expires=datetime.fromtimestamp(now.timestamp() + WINDOW, UTC),
            rows=intake.rows,
            body=intake.digest,
            upload=upload,
            claims=sorted(intake.claims),
        )
        held, accepted = await asyncio.to_thread(book.accept, header)
        return held, accepted
    finally:
        if not accepted:
            await asyncio.to_thread(book.discard, upload)
