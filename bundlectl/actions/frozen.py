"""Answering in a process that is frozen between requests, as on AWS Lambda: nothing is left to the background.

Receipts are on the disk before the last byte of an answer leaves; and who slept past a poll looks at the registry
before it answers, so that a rollback reaches it with the first request after.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from bundlectl.model.errors import BackendUnavailable
from bundlectl.resolver.resolver import Status

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOK_SECONDS: Final = 2.0
"""The longest that a request waits for a look at the registry; what was verified last answers then."""


class Following(Protocol):
    """A resolver, as far as it is asked here."""

    status: Status

    async def poll_now(self) -> None:
        """Look at the registry once."""
        ...


class Log(Protocol):
    """A log of receipts."""

    def flush(self) -> None:
        """Wait until what was taken is on the disk."""
        ...


class Frozen:
    """ASGI around a server. One event loop."""

    def __init__(
        self,
        app: Asgi,
        logs: Sequence[Log],
        following: Sequence[Following],
        poll: float,
        clock: Callable[[], datetime],
        warn: Callable[[str], None],
    ) -> None:
        """Take the server, what it writes and follows, the seconds between polls, the time of day, and who is told."""
        self._app = app
        self._logs = logs
        self._following = following
        self._poll = timedelta(seconds=poll)
        self._clock = clock
        self._warn = warn
        self._looked: datetime | None = None
        self._look: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look, answer, flush, and let go of the last byte."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        await self._refresh()

        async def flushed(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                await asyncio.to_thread(self._flush)
            await send(message)

        await self._app(scope, receive, flushed)

    async def _refresh(self) -> None:
        """Look at the registry where polls were missed; by the time of day, as other clocks stand still meanwhile."""
        now = self._clock()
        missed = now - 2 * self._poll
        seen = [one.status.last_poll for one in self._following]
        if all(at is not None and at > missed for at in seen):
            return
        if self._look is None and (self._looked is None or self._looked < missed):
            self._looked = now
            self._look = asyncio.create_task(self._look_at_all())
        if self._look is not None:
            await asyncio.wait({self._look}, timeout=LOOK_SECONDS)

    async def _look_at_all(self) -> None:
        try:
            await asyncio.gather(*(one.poll_now() for one in self._following))
        finally:
            self._look = None

    def _flush(self) -> None:
        for log in self._logs:
            try:
                log.flush()
            except BackendUnavailable as error:
                self._warn(f"{error.what} {error.why}")
