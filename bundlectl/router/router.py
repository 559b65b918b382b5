"""The request path: every stage of it, in one list, in order.

A request belongs to the release that was current when it began. Each stage has its name, its duration in the
receipt and, where tracing is set up, its span. Whatever happens to a request that fits the contract, it leaves a
receipt: answered, refused, failed, or given up by its caller.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, Final, Literal, NamedTuple, Protocol

from pydantic_core import to_json

from bundlectl.model.contract import Answer, Pinned, Request
from bundlectl.model.errors import BundlectlError
from bundlectl.model.receipt import Receipt
from bundlectl.router import telemetry
from bundlectl.router.admission import check_access, check_identity, guard_input
from bundlectl.router.answering import choose_route, guard_output, invoke, stream_text, validate_output
from bundlectl.router.assemble import Compiled
from bundlectl.router.cache import AnswerCache, Caching, keep, look_up
from bundlectl.router.contract import check_contract, input_digest
from bundlectl.router.grounding import pack_passages, render_prompt, retrieve
from bundlectl.router.health import RetryBudget
from bundlectl.router.identity import Identity
from bundlectl.router.limits import Counts
from bundlectl.router.limits_memory import MemoryCounts
from bundlectl.router.record import Outcome, conclude
from bundlectl.router.run import Run, Shared, SoftAlarms
from bundlectl.router.running import Concluding, Stages
from bundlectl.router.spending import check_limits, reserve, settle


class Stage(NamedTuple):
    """One step. ``run`` may name the stage to go to, or give what to wait for; it refuses by raising Refusal."""

    name: str
    run: (
        Callable[[Run], str | None]
        | Callable[[Run], None]
        | Callable[[Run], Awaitable[None] | None]
        | Callable[[Run], str | Awaitable[str | None] | None]
    )


STAGES: Final = (
    Stage("identity", check_identity),
    Stage("limits", check_limits),  # waits for Redis, where counts are shared
    Stage("access", check_access),
    Stage("input_guard", guard_input),
    Stage("cache", look_up),  # may go to the receipt; waits for Redis
    Stage("retrieval", retrieve),  # searches and reranks
    Stage("packing", pack_passages),
    Stage("prompt", render_prompt),
    Stage("route", choose_route),
    Stage("budget", reserve),
    Stage("invoke", invoke),
    Stage("output_guard", guard_output),
    Stage("output_validation", validate_output),  # may go back to invoke
    # then, always: the receipt (conclude)
)
_POSITION: Final = {**{stage.name: position for position, stage in enumerate(STAGES)}, "receipt": len(STAGES)}
_ANSWERING: Final = _POSITION["invoke"]


class ReceiptSink(Protocol):
    """Where receipts go."""

    def write(self, receipt: Receipt) -> None:
        """Take a receipt without waiting."""
        ...


@dataclass(frozen=True, slots=True)
class Event:
    """A piece of a streamed answer.

    ``start`` ({receipt, release}, and pinned where it is), ``delta`` ({text}), then ``done`` (the whole answer) or
    ``error``. Both end the stream and carry the outcome; what was shown before an ``error`` is to be discarded.
    """

    kind: Literal["start", "delta", "done", "error"]
    data: dict[str, Any]
    outcome: Outcome | None = None


class Router:
    """Answers requests by the current release. One event loop; many requests at once."""

    def __init__(
        self,
        current: Callable[[], Compiled],
        receipts: ReceiptSink,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        ids: Callable[[], str] | None = None,
        *,
        chance: Callable[[], float] = random.random,
        counts: Counts | None = None,
        cache: AnswerCache | None = None,
        on_event: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Take what a router works with.

        Args:
            current: gives the compiled release; read once per request that brings none.
            receipts: where every request leaves its receipt.
            clock: the present time, UTC.
            ids: gives receipt ids that were never given before; by default 80 random bits in hex.
            chance: gives a number in [0, 1), for the jitter of retries.
            counts: what was used of limits; by default this process's memory.
            cache: keeps answers where bindings switch that on; without one nothing is given again.
            on_event: told, once a day each, which soft limits were passed.
        """
        self._current = current
        self._receipts = receipts
        self._clock = clock
        self._ids = ids or random_ids()
        self._shared = Shared(counts or MemoryCounts(), RetryBudget(), chance, SoftAlarms(on_event), cache)
        self._tracer = telemetry.configured_tracer()
        self._instruments = telemetry.configured_instruments()

    async def answer(self, request: Request, identity: Identity) -> Answer:
        """Answer a request; a refusal is an answer.

        Raises:
            ContractError: the request does not fit the release.
            BundlectlError: nothing could answer; ``details`` holds the receipt's id.
        """
        outcome = await self.handle(request, identity)
        if outcome.answer is None:
            raise _failure(outcome)
        return outcome.answer

    async def handle(
        self,
        request: Request,
        identity: Identity,
        compiled: Compiled | None = None,
        caching: Caching = "use",
        pinned: Pinned | None = None,
    ) -> Outcome:
        """Answer a request and give its receipt too.

        Args:
            request: what is asked.
            identity: who asks.
            compiled: the release that ``identity`` was judged by, which answers then; by default the current one.
            caching: what the caller lets be done with kept answers.
            pinned: that the caller chose ``compiled``'s bundle.

        Raises:
            ContractError: the request does not fit the release.
        """
        run = self._begin(request, identity, compiled, caching, pinned)
        with Concluding(run, self._conclude, self._tracer) as concluding:
            await self._advance(run, 0, len(STAGES))
        return concluding.outcome

    async def stream(
        self,
        request: Request,
        identity: Identity,
        compiled: Compiled | None = None,
        caching: Caching = "use",
        pinned: Pinned | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Answer a request piece by piece, arguments as of :meth:`handle`; close it when the caller goes away.

        Text is released once the output guard has seen a window of it. An object is released whole, after it was
        validated: no part of one that breaks its schema ever leaves. A refusal or error before the first piece comes
        as the only event.

        Raises:
            ContractError: the request does not fit the release.
        """
        run = self._begin(request, identity, compiled, caching, pinned)
        with Concluding(run, self._conclude, self._tracer) as concluding:
            if await self._advance(run, 0, _ANSWERING):
                told = {"pinned": run.pinned.form()} if run.pinned is not None else {}
                yield Event("start", {"receipt": run.id, "release": run.compiled.ref.form()} | told)
                if run.hit is not None:
                    text = run.output if run.task.format == "text" else to_json(run.output).decode()
                    yield Event("delta", {"text": text})
                elif run.task.format == "text":
                    async with aclosing(self._stream_text(run)) as texts:
                        async for text in texts:
                            yield Event("delta", {"text": text})
                elif await self._advance(run, _ANSWERING, len(STAGES)):
                    yield Event("delta", {"text": to_json(run.output).decode()})
        outcome = concluding.outcome
        if outcome.answer is not None:
            yield Event("done", outcome.answer.form(), outcome)
        else:
            yield Event("error", error_body(outcome), outcome)

    # ------------------------------------------------------------ inside

    def _begin(
        self,
        request: Request,
        identity: Identity,
        compiled: Compiled | None,
        caching: Caching,
        pinned: Pinned | None = None,
    ) -> Run:
        compiled = compiled or self._current()
        task = check_contract(request, compiled)
        return Run(
            id=self._ids(),
            time=self._clock(),
            request=request,
            identity=identity,
            compiled=compiled,
            task=task,
            profile=task.profiles[request.policy_profile],
            shared=self._shared,
            input_digest=input_digest(request.input, compiled.input_key),
            caching=caching,
            pinned=pinned,
        )

    async def _advance(self, run: Run, position: int, end: int) -> bool:
        """Run stages until ``end``; False when the request was refused or failed on the way."""
        with Stages(run, self._tracer) as stages:
            while position < end:
                name, step = STAGES[position]
                if self._tracer is None:
                    stages.began.append((name, perf_counter()))
                else:
                    stages.begin(name)
                back: Any = step(run)
                if back is not None and back.__class__ is not str:
                    back = await back
                position = position + 1 if back is None else _POSITION[back]
            return True
        return False

    async def _stream_text(self, run: Run) -> AsyncGenerator[str, None]:
        with Stages(run, self._tracer) as stages:
            stages.begin("invoke")
            async with aclosing(stream_text(run)) as texts:
                async for text in texts:
                    yield text

    def _conclude(self, run: Run) -> Outcome:
        outcome = conclude(run)
        settle(run, outcome.receipt.usage, outcome.receipt.cost.usd)
        if run.place is not None:
            keep(run, outcome)
        self._receipts.write(outcome.receipt)
        if self._instruments is not None:
            self._instruments.record(run, outcome)
        return outcome


def random_ids() -> Callable[[], str]:
    """Give a source of ids: unique, and no secrets, so they need not cost a system call each."""
    source = random.Random(secrets.randbits(256))  # noqa: S311
    return lambda: f"{source.getrandbits(80):020x}"


def _failure(outcome: Outcome) -> BundlectlError:
    if outcome.error is None:
        raise RuntimeError(f"request {outcome.receipt.id} ended with neither an answer nor an error")
    return outcome.error


def error_body(outcome: Outcome) -> dict[str, Any]:
    """Give the JSON object of an outcome without an answer."""
    error = _failure(outcome)
    return {
        "error": error.code,
        "message": error.what,
        "why": error.why,
        "fix": error.fix,
        "receipt": outcome.receipt.id,
    }
