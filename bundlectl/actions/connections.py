"""One connection of a caller: uvicorn's, with deadlines for heads that do not come and for answers that nobody reads.

uvicorn waits for ever for the rest of a head, and for a caller that takes nothing of what it is sent. The deadline of
a body is the server's own.
"""

from __future__ import annotations

from asyncio import TimerHandle, Transport
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Connection(HttpToolsProtocol):
    """Costs a request whose head comes in one piece, as nearly all do, two comparisons."""

    head_seconds: ClassVar[float] = 10.0
    """How long a head may take, from the connection or its first byte; the connection is closed then."""

    stalled_seconds: ClassVar[float] = 30.0
    """How long a caller may take nothing while more is waiting for it; the answer is given up then."""

    _head: TimerHandle | None = None
    _stalled: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._head = self.loop.call_later(self.head_seconds, self._late)

    def data_received(self, data: bytes) -> None:
        """Take a piece; where it leaves a head unfinished, wait for the rest of it, but not for ever."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            if self._head is None:
                self._head = self.loop.call_later(self.head_seconds, self._late)
        elif self._head is not None:
            self._head.cancel()
            self._head = None

    def _late(self) -> None:
        self._head = None
        if self.cycle is None or self.cycle.response_complete:
            self._end()

    def pause_writing(self) -> None:
        """Give a caller that does not read some time."""
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        """Go on: it reads."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def on_response_complete(self) -> None:
        """Begin to wait for the next head; what is closed is not waited for for ever either."""
        super().on_response_complete()
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._abort_later()

    def timeout_keep_alive_handler(self) -> None:
        """End an idle connection."""
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        for timer in (self._head, self._stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _end(self) -> None:
        """Close, after what is still to be sent; where nobody has read it by now, without."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _abort_later(self) -> None:
        if self._stalled is None:
            self._stalled = self.loop.call_later(self.stalled_seconds, self.transport.abort)
