"""One request on its way through the stages: what it brought, and what each stage has found so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from bundlectl.inference.provider import ModelReply, Passage
from bundlectl.model.contract import Citation, Cost, Pinned, Refused, Request
from bundlectl.model.errors import BundlectlError
from bundlectl.model.receipt import GuardRecord, RetrievalRecord, ValidationRecord
from bundlectl.retrieval.permission import Filter
from bundlectl.router.assemble import Compiled, CompiledProfile, CompiledTask
from bundlectl.router.cache import AnswerCache, Caching, Hit, Place
from bundlectl.router.health import RetryBudget
from bundlectl.router.identity import Identity
from bundlectl.router.invocation import Invocation
from bundlectl.router.limits import Counts, Granted, soft_reason
from bundlectl.router.routing import CompiledRoute
from bundlectl.stages.guards import Action
from bundlectl.stages.output import OutputResult

RefusalCode = Literal["access_denied", "input_blocked", "output_blocked", "no_answer", "unauthenticated", "limited"]


class Refusal(Exception):
    """Ends a request with a refusal."""

    def __init__(self, code: RefusalCode, reason: str) -> None:
        super().__init__(reason)
        self.refused = Refused(code=code, reason=reason)


@dataclass(frozen=True, slots=True)
class Shared:
    """What all requests of one router share, whatever the release."""

    counts: Counts
    budget: RetryBudget
    chance: Callable[[], float]
    """Gives a number in [0, 1), for jitter."""

    alarms: SoftAlarms
    cache: AnswerCache | None = None


class SoftAlarms:
    """Tells of each soft limit once a day that it is passed."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._day = 0
        self._told: set[str] = set()

    def passed(self, granted: Granted) -> None:
        """Tell of those that were passed."""
        if granted.day != self._day:
            self._day = granted.day
            self._told.clear()
        for need in granted.soft:
            if need.subject not in self._told:
                self._told.add(need.subject)
                self._tell(f"{soft_reason([need])} is passed")


def guard_record(side: Literal["input", "output"], action: Action, findings: dict[str, int]) -> GuardRecord:
    """Make the record of a guard; those that found nothing are one and the same."""
    if action == "pass" and not findings:
        return _FOUND_NOTHING[side]
    return GuardRecord(side=side, action=action, findings=dict(findings))


_FOUND_NOTHING: Final = {
    "input": GuardRecord(side="input", action="pass"),
    "output": GuardRecord(side="output", action="pass"),
}


class Run:
    """The state of one request. It belongs to one release from its first stage to its last.

    What no stage has found yet is as the class says it.
    """

    question: str = ""
    access: Literal["allow", "deny"] | None = None
    access_policies: Sequence[str] = ()
    allowed: Filter | None = None
    hits: tuple[Any, ...] = ()
    retrieval: RetrievalRecord | None = None
    passages: tuple[Passage, ...] = ()
    messages: Sequence[dict[str, str]] = ()
    prompt_digest: str | None = None
    prompt_tokens: int | None = None
    route: CompiledRoute | None = None
    route_why: str = ""
    invocation: Invocation | None = None
    granted: Granted | None = None
    soft_limits: list[str] | None = None
    retry_after: float | None = None
    cache: Literal["off", "miss", "hit"] = "off"
    place: Place | None = None
    hit: Hit | None = None
    reply: ModelReply | None = None
    checked: OutputResult | None = None
    output: Any = None
    citations: Sequence[Citation] = ()
    unknown_citations: Sequence[int] = ()
    validation: ValidationRecord | None = None
    asked_again: int = 0

    refused: Refused | None = None
    error: BundlectlError | None = None
    failed_stage: str = ""
    cost: Cost | None = None

    def __init__(
        self,
        id: str,
        time: datetime,
        request: Request,
        identity: Identity,
        compiled: Compiled,
        task: CompiledTask,
        profile: CompiledProfile,
        shared: Shared,
        input_digest: str,
        caching: Caching = "use",
        pinned: Pinned | None = None,
    ) -> None:
        self.id = id
        self.time = time
        self.request = request
        self.identity = identity
        self.compiled = compiled
        self.task = task
        self.profile = profile
        self.shared = shared
        self.input_digest = input_digest
        self.caching = caching
        self.pinned = pinned
        self.input: dict[str, Any] = {}
        self.guards: dict[str, GuardRecord] = {}
        self.stages: dict[str, float] = {}
