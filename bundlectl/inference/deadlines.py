"""Deadlines for what a task awaits: what :func:`asyncio.timeout_at` does, at half its price."""

from __future__ import annotations

import asyncio
from typing import Any


class Deadline:
    """``with Deadline(at)``: past ``at``, on the loop's clock, what is awaited inside ends in TimeoutError.

    No generator may yield inside of it: the deadline would strike the code that consumes the generator.
    """

    __slots__ = ("_at", "_cancelling", "_handle", "_struck", "_task")
    _handle: asyncio.TimerHandle
    _task: asyncio.Task[Any]
    _cancelling: int

    def __init__(self, at: float) -> None:
        self._at = at
        self._struck = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline is for what runs in a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._handle = task.get_loop().call_at(self._at, self._strike)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._handle.cancel()
        # As asyncio's own: a cancellation by anyone else is not ours to swallow.
        if self._struck and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise self.late() from error

    def late(self) -> Exception:
        """Give the error of a passed deadline."""
        return TimeoutError()

    def _strike(self) -> None:
        self._struck = True
        self._task.cancel()
