"""A streamed attempt, whatever its format: its deadlines, its pieces, its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol, TypeVar

from bundlectl.inference.connection import Response
from bundlectl.inference.http import deadline
from bundlectl.inference.provider import Delta, ModelCall, ModelReply, ProviderError

AFTER_THE_END = 0.05
"""Seconds to wait for a stream to close once its end marker has come: a connection read to its end is used again."""

Event = TypeVar("Event")
Taken = TypeVar("Taken", contravariant=True)


class Gathered(Protocol[Taken]):
    """Reads a stream's events. ``ended``: its end marker has come."""

    @property
    def ended(self) -> bool:
        """Whether the reply is whole."""
        ...

    def take(self, event: Taken, /) -> str:
        """Read one event and give its text, which may be empty."""
        ...

    def reply(self) -> ModelReply:
        """Give the whole reply; asked only after the end."""
        ...


async def stream_reply(
    call: ModelCall,
    what: str,
    begin: Callable[[], Awaitable[Response]],
    read: Callable[[Response], AsyncGenerator[Event, None]],
    gathered: Gathered[Event],
) -> AsyncGenerator[Delta, None]:
    """Make one attempt, giving text as it comes; the last delta carries the whole reply.

    The deadline of the first token ends with the first text, and the one between tokens begins with each text; events
    without text do not count. No deadline counts the time that the consumer takes: that says nothing of the model.

    Raises:
        ProviderError: it failed; ``broken_stream`` when it stopped before its end marker, however complete its
            text looks.
    """
    clock = asyncio.get_running_loop().time
    began = clock()
    end, which = began + call.total, "whole reply"
    next_by = end
    if call.first_token is not None and call.first_token < call.total:
        next_by, which = began + call.first_token, "first token"
    with deadline(next_by, what, which):
        response = await begin()
    try:
        async with aclosing(read(response)) as events:
            while not gathered.ended:
                with deadline(next_by, what, which):
                    event = await anext(events, None)
                if event is None:
                    raise broken(what)
                text = gathered.take(event)
                if text:
                    given = clock()
                    yield Delta(text)
                    now = clock()
                    end += now - given
                    next_by, which = end, "whole reply"
                    if call.between_tokens is not None:
                        soon = now + call.between_tokens
                        if soon < end:
                            next_by, which = soon, "next token"
            await _read_out(events)
        yield Delta("", gathered.reply())
    finally:
        response.release()


async def whole_of(deltas: AsyncGenerator[Delta, None], what: str) -> ModelReply:
    """Give the reply of a stream that nobody reads piece by piece."""
    async with aclosing(deltas):
        async for delta in deltas:
            if delta.reply is not None:
                return delta.reply
    raise broken(what)


def broken(what: str) -> ProviderError:
    """Make the error of a stream that stopped early."""
    return ProviderError("broken_stream", f"{what}: the stream ended without its end marker.")


async def _read_out(events: AsyncGenerator[Event, None]) -> None:
    """Read what follows the end marker, briefly; the reply is whole, so nothing in it is a failure."""
    try:
        async with asyncio.timeout(AFTER_THE_END):
            async for _ in events:
                pass
    except (TimeoutError, ProviderError):
        return
