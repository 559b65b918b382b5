"""One connection of a caller: uvicorn's, with bounds for heads, and a deadline for answers that nobody reads.

uvicorn waits for ever for the rest of a head, keeps however much of it comes, and waits for a caller that takes nothing
of what it is sent. The bounds of a body are the server's own.
"""

from __future__ import annotations

from asyncio import TimerHandle, Transport
from typing import ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\ncontent-length: 96\r\n"
    b"connection: close\r\n\r\n"
    b'{"error":"headers_too_large","message":"The headers are too large.","why":"","fix":"Send less."}'
)


class Connection(HttpToolsProtocol):
    """Costs a request whose head comes in one piece, as nearly all do, three comparisons."""

    head_seconds: ClassVar[float] = 10.0
    """How long a head may take, from the connection or its first byte; the connection is closed then."""

    head_bytes: ClassVar[int] = 64 * 1024
    """What of a head may be there before it is whole; more is refused with 431, whoever sends it."""

    behind_bytes: ClassVar[int] = 1024 * 1024
    """What may come behind a request that is not answered yet, or of a body whose request was."""

    stalled_seconds: ClassVar[float] = 30.0
    """How long a caller may take nothing while more is waiting for it; the answer is given up then."""

    _head: TimerHandle | None = None
    _size = 0
    _stalled: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._head = self.loop.call_later(self.head_seconds, self._late)

    def data_received(self, data: bytes) -> None:
        """Take a piece; an unfinished head is waited for, but neither for ever nor for any amount of it."""
        before = self.cycle
        super().data_received(data)
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            if self._head is None:
                self._head = self.loop.call_later(self.head_seconds, self._late)
            if cycle is not None and cycle.more_body:
                self._more(data, self.behind_bytes)
            else:
                self._more(data, self.head_bytes, _TOO_LARGE)
        elif self._head is not None:
            self._head.cancel()
            self._head = None
        elif cycle is before and not cycle.more_body:
            self._more(data, self.behind_bytes)

    def _more(self, data: bytes, most: int, last: bytes = b"") -> None:
        """Count what belongs to no request yet; with more of it than is held for anybody, end, with some last words."""
        self._size += len(data)
        if self._size > most and not self.transport.is_closing():
            self.transport.write(last)
            self.transport.close()

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
        self._size = 0
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
