"""Whose turn it is: so many requests are answered at once, some wait, and the rest are told at once to come back.

Waiting requests begin in the order they came, interactive ones before batch. A full queue makes room for an
interactive request by sending the newest batch one away. A request is turned away early, before it waits, where by
the pace of the last answers its turn would come too late.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from bundlectl.router.http_error import HttpError, http_error

AT_ONCE: Final = 1024
WAITING: Final = 1024
LONGEST: Final = 10.0
_SMOOTH: Final = 0.1
"""Weight of the newest answer in the mean of how long one takes."""


@dataclass(eq=False, slots=True)
class _Place:
    """One who waits."""

    interactive: bool
    begun: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


def in_a_row() -> Awaitable[None]:
    """Wait until the other requests of this turn of the event loop are at this point too.

    Going on one after the other they take half the processor's time: the same code runs many times in a row, and who
    is written to is woken once. A request that is alone waits for some microseconds.
    """
    return asyncio.sleep(0)


class Turns:
    """For one event loop; nothing is locked.

    ``active``: requests being answered. ``turned_away``: how many were told to come back. ``waited``: how many began
    after waiting.
    """

    def __init__(
        self,
        at_once: int = AT_ONCE,
        waiting: int = WAITING,
        longest: float = LONGEST,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Take how many are answered at once, how many may wait, and for how many seconds."""
        self.active = 0
        self.turned_away = 0
        self.waited = 0
        self._at_once, self._waiting, self._longest = at_once, waiting, longest
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._queues: tuple[deque[_Place], deque[_Place]] = (deque(), deque())  # interactive, batch
        self._mean = 0.0

    @property
    def queued(self) -> int:
        """How many wait."""
        return len(self._queues[0]) + len(self._queues[1])

    def begin(self) -> bool:
        """Take a turn at once where one is free and nobody waits for it; else :meth:`wait`."""
        if self.active < self._at_once and not self.queued:
            self.active += 1
            return True
        return False

    async def wait(self, *, interactive: bool) -> None:
        """Wait for a turn.

        Raises:
            HttpError: 503 with ``retry_after``: the queue is full, or the turn would come too late.
        """
        late = self._expected(interactive=interactive)
        if late > self._longest:
            raise self._away(late)
        if self.queued >= self._waiting:
            batch = self._queues[1]
            if not interactive or not batch:
                raise self._away(late)
            newest = batch.pop()
            if not newest.begun.done():  # who has just gone away by itself only makes room
                newest.begun.set_exception(self._away(late))
        place = _Place(interactive)
        queue = self._queues[0 if interactive else 1]
        queue.append(place)
        try:
            async with asyncio.timeout(self._longest):
                await place.begun
        except TimeoutError:
            self._pass_on(place)
            raise self._away(self._longest) from None
        except asyncio.CancelledError:
            self._pass_on(place)
            raise
        finally:
            if place in queue:
                queue.remove(place)
        self.waited += 1

    def _pass_on(self, place: _Place) -> None:
        """Give the turn on of one that leaves, where it came in the same moment."""
        if place.begun.done() and not place.begun.cancelled() and place.begun.exception() is None:
            self.end(None)

    def end(self, seconds: float | None) -> None:
        """Give the turn on. ``seconds`` is how long the answer took; ``None`` where there was none."""
        if seconds is not None:
            self._mean += (seconds - self._mean) * (_SMOOTH if self._mean else 1.0)
        for queue in self._queues:
            while queue:
                place = queue.popleft()
                if not place.begun.done():
                    place.begun.set_result(None)
                    return
        self.active -= 1

    @asynccontextmanager
    async def turn(self, *, interactive: bool) -> AsyncIterator[None]:
        """Hold a turn.

        Raises:
            HttpError: as :meth:`wait`.
        """
        if not self.begin():
            await self.wait(interactive=interactive)
        began = self._clock()
        try:
            yield
        finally:
            self.end(self._clock() - began)

    def _expected(self, *, interactive: bool) -> float:
        """Give how many seconds until its turn, by the mean of the last answers."""
        before = len(self._queues[0]) + (0 if interactive else len(self._queues[1]))
        return (before + 1) * self._mean / self._at_once

    def _away(self, late: float) -> HttpError:
        self.turned_away += 1
        error = http_error(
            503,
            "overloaded",
            "The server is answering as many requests as it takes at once.",
            why=f"{self.active} are under way and {self.queued} wait.",
            fix="Try again after the seconds in Retry-After.",
        )
        error.body["retry_after"] = max(1, math.ceil(late))
        return error
