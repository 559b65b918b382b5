"""Asking one row of a batch: by the release that is current when it begins, as whoever handed it in.

Nobody waits for a row, so what a moment may cure is asked again rather than answered by a fallback: throttling,
timeouts, models that are away. Only its last attempt takes a degraded answer. A tenant's own limit is no attempt:
the batch waits until there is room again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, Protocol

from bundlectl.model.batch import BatchHeader, BatchOwner, BatchResult, RowState
from bundlectl.model.contract import Request
from bundlectl.model.errors import BackendUnavailable, BundlectlError
from bundlectl.router.assemble import Compiled
from bundlectl.router.batch.book import unanswered
from bundlectl.router.contract import ContractError
from bundlectl.router.identity import LOCAL, Identity, KnownIdentities
from bundlectl.router.record import STATUS, Outcome
from bundlectl.router.router import Router, error_body
from bundlectl.router.routing import NoRoute

PASSING: Final = frozenset({"throttled", "timeout", "unavailable", "broken_stream", "open_circuit"})
"""Outcomes of attempts that another time may not have."""
THROTTLED: Final = frozenset({"throttled", "open_circuit"})
"""Those after which a whole batch slows down."""

LONGEST_PAUSE: Final = 900.0
"""Seconds that are waited for a limit at most: bindings may raise it meanwhile."""


class Answering(Protocol):
    """One environment that rows are asked of; ``bundlectl.router.server.Served`` is one."""

    @property
    def app(self) -> str:
        """The app."""
        ...

    @property
    def environment(self) -> str:
        """The environment."""
        ...

    @property
    def current(self) -> Callable[[], Compiled]:
        """Gives what serves now; raises while nothing may."""
        ...

    @property
    def router(self) -> Router:
        """What answers."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of asking a row once.

    ``result`` is there when the row has ended. Else it is asked again: ``again`` after an attempt, ``wait`` before
    one. ``slow``: its whole batch does well to wait. ``usd`` was spent either way; ``None`` when a price is not known.
    """

    kind: Literal["ended", "again", "wait"]
    usd: float | None = 0.0
    result: BatchResult | None = None
    slow: bool = False
    why: str = ""
    pause: float = 0.0
    """Seconds that its batch waits at least."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row to be asked. ``attempts``: how often it was asked in vain before; ``last``: it is not asked again."""

    header: BatchHeader
    line: int
    id: str
    request: bytes
    attempts: int
    last: bool
    clock: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    def ended(
        self, state: RowState, status: int, *, answer: Any = None, error: dict[str, Any] | None = None
    ) -> BatchResult:
        """Make the row's result."""
        return BatchResult(
            id=self.id,
            line=self.line,
            state=state,
            status=status,
            attempts=self.attempts + 1,
            finished=self.clock(),
            answer=answer,
            error=error,
        )

    def unanswered(self, reason: str) -> BatchResult:
        """Make the result of a row that ends without an answer."""
        return unanswered(self.id, self.line, reason, self.attempts, self.clock())


async def ask(row: Row, source: Answering) -> Asked:
    """Ask a row once."""
    try:
        compiled = source.current()
    except BundlectlError as error:
        return Asked("wait", slow=True, why=error.what)
    identity = still_known(row.header.owner, compiled.identities)
    if identity is None:
        gone = {
            "error": "access_denied",
            "message": f"The caller {row.header.owner.name} is not known any more.",
            "why": "Its identity was taken out of the environment's bindings after the batch was handed in.",
            "fix": "Hand the row in again as a caller that is known.",
        }
        return Asked("ended", result=row.ended("refused", STATUS["access_denied"], error=gone))
    try:
        request = Request.model_validate_json(row.request)
        outcome = await source.router.handle(request, identity, compiled)
    except ContractError as error:
        told = {"error": error.code, "message": error.what, "why": error.why, "fix": error.fix}
        return Asked("ended", result=row.ended("failed", STATUS["contract"], error=told))
    return judge(row, outcome)


def judge(row: Row, outcome: Outcome) -> Asked:
    """Say what an outcome is for a row of a batch."""
    usd = outcome.receipt.cost.usd
    answer = outcome.answer
    if answer is not None and answer.refused is not None and answer.refused.code == "limited":
        later = outcome.retry_after
        if later is not None:
            return Asked("wait", usd, slow=True, why=answer.refused.reason, pause=min(later, LONGEST_PAUSE))
    outcomes = [attempt.outcome for attempt in outcome.receipt.attempts]
    slow = any(each in THROTTLED for each in outcomes)
    if answer is None:
        if _passing(outcome) and not row.last:
            return Asked("again", usd, slow=slow, why=outcome.error.what if outcome.error else "")
        return Asked("ended", usd, row.ended("failed", outcome.status, error=error_body(outcome)), slow=slow)
    if answer.degraded is not None and not row.last and outcomes and outcomes[0] in PASSING:
        return Asked("again", usd, slow=slow, why=answer.degraded.reason)
    state: RowState = "refused" if answer.refused is not None else "answered"
    return Asked("ended", usd, row.ended(state, outcome.status, answer=answer))


def still_known(owner: BatchOwner, identities: KnownIdentities) -> Identity | None:
    """Give the identity that a batch's rows run as now: with the rights that its name has now, if it has any."""
    if owner.local:
        return LOCAL
    return identities.still(Identity(owner.name, frozenset(owner.tenants), frozenset(owner.roles)))


def _passing(outcome: Outcome) -> bool:
    """Say whether another time may do better: not where every model declined, or no rule chooses one."""
    if not isinstance(outcome.error, BackendUnavailable) or isinstance(outcome.error, NoRoute):
        return False
    outcomes = {attempt.outcome for attempt in outcome.receipt.attempts}
    return not outcomes or bool(outcomes - {"refused", "disabled"})
