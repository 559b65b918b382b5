"""How a run passes through its stages and how it ends: timed, traced where tracing is set up, always with a receipt.

Both are classes with ``__enter__`` and ``__exit__``: as generators they cost a tenth of a whole request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from bundlectl.model.errors import BackendUnavailable, BundlectlError
from bundlectl.router import telemetry
from bundlectl.router.contract import ContractError
from bundlectl.router.record import Outcome
from bundlectl.router.run import Refusal, Run

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer


class Cancelled(BackendUnavailable):
    """The caller went away before its answer was there."""

    code = "cancelled"


class Defect(BundlectlError):
    """What the receipt of a request says that met a defect of ours; the exception itself goes on."""

    code = "defect"


class Concluding:
    """Makes the outcome of a run at its end, whatever the end is."""

    __slots__ = ("_conclude", "_opened", "_run", "_span", "outcome")
    outcome: Outcome

    def __init__(self, run: Run, conclude: Callable[[Run], Outcome], tracer: Tracer | None) -> None:
        """Take the run, how it is concluded, and the tracer where there is one."""
        self._run = run
        self._conclude = conclude
        self._span: AbstractContextManager[Span] | None = None
        if tracer is not None:
            self._span = telemetry.request_span(tracer, run)

    def __enter__(self) -> Concluding:
        if self._span is not None:
            self._opened = self._span.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        run = self._run
        if error is not None:
            gone = isinstance(error, asyncio.CancelledError | GeneratorExit)
            gave_up = Cancelled("The caller went away before the answer was there.")
            run.error = gave_up if gone else Defect("A defect of bundlectl ended the request.")
        try:
            self.outcome = self._conclude(run)
            if self._span is not None:
                telemetry.end_request(self._opened, self.outcome)
        finally:
            if self._span is not None:
                self._span.__exit__(kind, error, trace)
        if error is None and isinstance(run.error, ContractError):
            raise run.error


class Stages:
    """Times stages, each until the next one begins, traces them, and turns a refusal or failure into the run's."""

    __slots__ = ("_run", "_span", "_tracer", "began")

    def __init__(self, run: Run, tracer: Tracer | None) -> None:
        """Take the run, and the tracer where there is one."""
        self._run = run
        self.began: list[tuple[str, float]] = []
        """Which began, and when."""
        self._tracer = tracer
        self._span: AbstractContextManager[None] | None = None

    def __enter__(self) -> Stages:
        return self

    def begin(self, name: str) -> None:
        """End the stage before and begin another."""
        self.began.append((name, time.perf_counter()))
        if self._tracer is not None:
            self._leave_span(None)
            self._span = telemetry.stage_span(self._tracer, name, self._run)
            self._span.__enter__()

    def _leave_span(self, error: BaseException | None) -> None:
        if self._span is not None:
            span, self._span = self._span, None
            span.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        run = self._run
        for (name, began), (_, ended) in pairwise([*self.began, ("", time.perf_counter())]):
            run.stages[name] = run.stages.get(name, 0.0) + ended - began
            run.failed_stage = name
        # A refusal is no error of its span.
        self._leave_span(None if isinstance(error, Refusal) else error)
        if error is None:
            return False
        if isinstance(error, Refusal):
            run.refused = error.refused
            return True
        if isinstance(error, BundlectlError):
            error.details["receipt"] = run.id
            run.error = error
            return True
        return False
