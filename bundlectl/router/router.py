"""The request path: every stage of it, in one list, in order.

A request belongs to the release that was current when it began. Each stage has its name, its duration in the
receipt and, where tracing is set up, its span. Whatever happens to a request that fits the contract, it leaves a
receipt: answered, refused, failed, or given up by its caller.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from pydantic_core import to_json

from bundlectl.model.contract import Answer, Request
from bundlectl.model.errors import BackendUnavailable, BundlectlError
from bundlectl.model.receipt import Receipt
from bundlectl.router import telemetry
from bundlectl.router.admission import check_access, check_identity, check_limits, guard_input
from bundlectl.router.answering import choose_route, guard_output, invoke, stream_text, validate_output
from bundlectl.router.assemble import Compiled
from bundlectl.router.contract import ContractError, check_contract, input_digest
from bundlectl.router.grounding import pack_passages, render_prompt, retrieve
from bundlectl.router.health import RetryBudget
from bundlectl.router.identity import Identity
from bundlectl.router.limits import TenantLimits
from bundlectl.router.record import Outcome, conclude
from bundlectl.router.run import Refusal, Run, Shared

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


@dataclass(frozen=True, slots=True)
class Stage:
    """One step. ``run`` may name an earlier stage to go back to; it refuses by raising Refusal."""

    name: str
    run: Callable[[Run], str | None] | Callable[[Run], None] | Callable[[Run], Awaitable[None]]
    waits: bool = False


STAGES: Final = (
    Stage("identity", check_identity),
    Stage("limits", check_limits),
    Stage("access", check_access),
    Stage("input_guard", guard_input),
    Stage("retrieval", retrieve, waits=True),  # searches and reranks
    Stage("packing", pack_passages),
    Stage("prompt", render_prompt),
    Stage("route", choose_route),
    Stage("invoke", invoke, waits=True),
    Stage("output_guard", guard_output, waits=True),
    Stage("output_validation", validate_output),  # may go back to invoke
    # then, always: the receipt (conclude)
)
_POSITION: Final = {stage.name: position for position, stage in enumerate(STAGES)}
_ANSWERING: Final = _POSITION["invoke"]


class ReceiptSink(Protocol):
    """Where receipts go."""

    def write(self, receipt: Receipt) -> None:
        """Take a receipt without waiting."""
        ...


class Cancelled(BackendUnavailable):
    """The caller went away before its answer was there."""

    code = "cancelled"


class Defect(BundlectlError):
    """What the receipt of a request says that met a defect of ours; the exception itself goes on."""

    code = "defect"


@dataclass(frozen=True, slots=True)
class Event:
    """A piece of a streamed answer.

    ``start`` ({receipt, release, route}), ``delta`` ({text}), then ``done`` (the whole answer) or ``error``. Both end
    the stream and carry the outcome; what was shown before an ``error`` is to be discarded.
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
    ) -> None:
        """Take what a router works with.

        Args:
            current: gives the compiled release; read once per request that brings none.
            receipts: where every request leaves its receipt.
            clock: the present time, UTC.
            ids: gives receipt ids that were never given before; by default 80 random bits in hex.
            chance: gives a number in [0, 1), for the jitter of retries.
        """
        self._current = current
        self._receipts = receipts
        self._clock = clock
        self._ids = ids or random_ids()
        self._shared = Shared(TenantLimits(), RetryBudget(), chance)
        self._tracer = telemetry.configured_tracer()

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

    async def handle(self, request: Request, identity: Identity, compiled: Compiled | None = None) -> Outcome:
        """Answer a request and give its receipt too.

        Args:
            request: what is asked.
            identity: who asks.
            compiled: the release that ``identity`` was judged by, which answers then; by default the current one.

        Raises:
            ContractError: the request does not fit the release.
        """
        run = self._begin(request, identity, compiled)
        with self._concluding(run) as concluded:
            await self._advance(run, 0, len(STAGES))
        return concluded()

    async def stream(
        self, request: Request, identity: Identity, compiled: Compiled | None = None
    ) -> AsyncGenerator[Event, None]:
        """Answer a request piece by piece, arguments as of :meth:`handle`; close it when the caller goes away.

        Text is released once the output guard has seen a window of it. An object is released whole, after it was
        validated: no part of one that breaks its schema ever leaves. A refusal or error before the first piece comes
        as the only event.

        Raises:
            ContractError: the request does not fit the release.
        """
        run = self._begin(request, identity, compiled)
        with self._concluding(run) as concluded:
            if await self._advance(run, 0, _ANSWERING):
                yield Event("start", {"receipt": run.id, "release": run.compiled.ref.form()})
                if run.task.format == "text":
                    async with aclosing(self._stream_text(run)) as texts:
                        async for text in texts:
                            yield Event("delta", {"text": text})
                elif await self._advance(run, _ANSWERING, len(STAGES)):
                    yield Event("delta", {"text": to_json(run.output).decode()})
        outcome = concluded()
        if outcome.answer is not None:
            yield Event("done", outcome.answer.form(), outcome)
        else:
            yield Event("error", error_body(outcome), outcome)

    # ------------------------------------------------------------ inside

    def _begin(self, request: Request, identity: Identity, compiled: Compiled | None) -> Run:
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
        )

    @contextmanager
    def _concluding(self, run: Run) -> Iterator[Callable[[], Outcome]]:
        """Write the receipt at the end, whatever the end is; give a function that gives the outcome."""
        made: list[Outcome] = []
        with ExitStack() as stack:
            span = stack.enter_context(telemetry.request_span(self._tracer, run)) if self._tracer else None
            try:
                yield lambda: made[0]
            except (asyncio.CancelledError, GeneratorExit):
                run.error = Cancelled("The caller went away before the answer was there.")
                raise
            except BaseException:
                run.error = Defect("A defect of bundlectl ended the request.")
                raise
            finally:
                outcome = conclude(run)
                made.append(outcome)
                self._shared.limits.settle(run.request.tenant_id, outcome.receipt.cost.usd, run.time)
                self._receipts.write(outcome.receipt)
                if span is not None:
                    telemetry.end_request(span, outcome)
        if isinstance(run.error, ContractError):
            raise run.error

    async def _advance(self, run: Run, position: int, end: int) -> bool:
        """Run stages until ``end``; False when the request was refused or failed on the way."""
        while position < end:
            stage = STAGES[position]
            back: Any = None
            with _InStage(run, stage.name, self._tracer):
                back = stage.run(run)
                if stage.waits:
                    back = await back
            if run.refused is not None or run.error is not None:
                return False
            position = position + 1 if back is None else _POSITION[back]
        return True

    async def _stream_text(self, run: Run) -> AsyncGenerator[str, None]:
        with _InStage(run, "invoke", self._tracer):
            async with aclosing(stream_text(run)) as texts:
                async for text in texts:
                    yield text


def random_ids() -> Callable[[], str]:
    """Give a source of ids: unique, and no secrets, so they need not cost a system call each."""
    source = random.Random(secrets.randbits(256))  # noqa: S311
    return lambda: f"{source.getrandbits(80):020x}"


class _InStage:
    """Times a stage, traces it, and turns its refusal or failure into the run's.

    A class, because as a generator it cost a tenth of a whole request.
    """

    __slots__ = ("_began", "_name", "_run", "_span")

    def __init__(self, run: Run, name: str, tracer: Tracer | None) -> None:
        self._run = run
        self._name = name
        self._span = telemetry.stage_span(tracer, name, run) if tracer is not None else None

    def __enter__(self) -> None:
        self._run.failed_stage = self._name
        if self._span is not None:
            self._span.__enter__()
        self._began = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        run, name = self._run, self._name
        run.stages[name] = run.stages.get(name, 0.0) + time.perf_counter() - self._began
        if self._span is not None:
            # A refusal is no error of its span.
            self._span.__exit__(*((None, None, None) if isinstance(error, Refusal) else (kind, error, trace)))
        if isinstance(error, Refusal):
            run.refused = error.refused
            return True
        if isinstance(error, BundlectlError):
            error.details["receipt"] = run.id
            run.error = error
            return True
        return False


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
