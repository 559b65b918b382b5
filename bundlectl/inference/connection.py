"""One HTTP/1.1 connection to a model server: a request out, its response in (RFC 9112).

llhttp parses, by way of httptools. What comes is kept until it is read; beyond :data:`HELD` bytes the server waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from bundlectl.inference.provider import ProviderError

if TYPE_CHECKING:
    from bundlectl.inference.pool import Pool

HELD: Final = 2**18
"""Bytes of a body that are kept unread; more of it is not taken from the network."""
MAX_HEAD: Final = 2**16
"""Bytes of a head, and of anything else that is no body, in one piece; more is no response."""
_WITHOUT_BODY: Final = frozenset({204, 304})


class Response:
    """The response to one request. ``headers``: names in lower case; of repeated ones all values, with commas.

    Whoever was given one releases it: read to its end, its connection is used again.
    """

    __slots__ = ("_connection", "headers", "status")

    def __init__(self, status: int, headers: dict[str, str], connection: Connection) -> None:
        self.status = status
        self.headers = headers
        self._connection: Connection | None = connection

    @property
    def content_length(self) -> int | None:
        """The body's length in bytes, where the head says it."""
        length = self.headers.get("content-length", "")
        return int(length) if length.isdecimal() else None

    async def read_some(self) -> bytes:
        """Give what has come of the body, waiting for some; ``b""`` at its end.

        Raises:
            ProviderError: ``broken_stream``: the connection ended within it.
        """
        return await self._connection.read_some() if self._connection is not None else b""

    async def parts(self) -> AsyncIterator[bytes]:
        """Give the body as it comes; errors as of :meth:`read_some`."""
        while part := await self.read_some():
            yield part

    def release(self) -> None:
        """Read no more of it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.finish()


class Connection(asyncio.Protocol):
    """Speaks with one server, one request at a time."""

    _transport: asyncio.Transport

    def __init__(self, pool: Pool) -> None:
        self.idle_since = 0.0
        self._pool = pool
        self._parser = HttpResponseParser(self)
        self._lost = False
        self._reset("")
        self._whole = True

    def _reset(self, what: str) -> None:
        self._what = what
        self._fields: list[tuple[bytes, bytes]] = []
        self._came = 0
        self._headed = False
        self._framed = True
        self._whole = self._lasting = False
        self._parts: list[bytes] = []
        self._held = 0
        self._error: ProviderError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return self._whole and not self._lost and not self._transport.is_closing()

    async def ask(self, request: bytes, what: str) -> Response:
        """Send a request and give its response, once the head is there; ``what`` names the server in errors.

        Raises:
            ProviderError: ``unavailable``: the connection ended, or what came is not HTTP.
        """
        self._reset(what)
        self._transport.write(request)
        try:
            while not self._headed:
                await self._news()
        except BaseException:
            self.abort()
            raise
        headers: dict[str, str] = {}
        for name, value in self._fields:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        return Response(self._parser.get_status_code(), headers, self)

    async def read_some(self) -> bytes:
        """As :meth:`Response.read_some`."""
        while not self._parts and not self._whole:
            await self._news()
        parts = self._parts
        if not parts:
            return b""
        if self._held > HELD:
            self._transport.resume_reading()
        self._parts, self._held = [], 0
        return b"".join(parts) if len(parts) > 1 else parts[0]

    def finish(self) -> None:
        """Keep the connection for another request where this one is over, and end it otherwise."""
        if self.usable and self._lasting and not self._transport.get_write_buffer_size():
            self._parts = []
            self._pool.keep(self)
        else:
            self.abort()

    def abort(self) -> None:
        """End it at once, whatever the server does."""
        self._framed = True  # an end of our own is not the end of a body
        self._transport.abort()

    async def _news(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _tell(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: ProviderError) -> None:
        if self._error is None and not self._whole:
            self._error = error
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(error)

    # ------------------------------------------------------------ of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass

    def data_received(self, data: bytes) -> None:
        """Parse what comes; what nobody asked for ends the connection."""
        if self._whole:
            self.abort()
            return
        self._came += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._broken(type(error).__name__)
            return
        if self._came > MAX_HEAD:
            self._broken(f"a {'trailer' if self._headed else 'head'} of more than {MAX_HEAD} bytes")
        elif self._headed:
            if self._held > HELD and not self._whole:
                self._transport.pause_reading()
            self._tell()

    def eof_received(self) -> None:
        """Take the end of the server's side: the end of a body that nothing else ends."""
        if self._headed and not self._framed:
            self._whole = True
            self._tell()

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what is waited for."""
        self._lost = True
        self._pool.gone(self)
        if error is None:
            self.eof_received()
        if self._headed:
            self._fail(ProviderError("broken_stream", f"{self._what}: the reply was cut.", why="the reply was cut"))
        else:
            why = "the connection was closed before a reply"
            self._fail(ProviderError("unavailable", f"{self._what} cannot be reached.", why=why))

    def _broken(self, why: str) -> None:
        if self._whole:
            self._tell()
        elif self._headed:
            self._fail(ProviderError("broken_stream", f"{self._what}: the reply is not HTTP.", why=why))
        else:
            self._fail(ProviderError("unavailable", f"{self._what} does not answer in HTTP.", why=why))
        self.abort()

    # ------------------------------------------------------------ of the parser

    def on_message_begin(self) -> None:
        """Refuse a second response to one request: it must not be taken for a part of the first."""
        if self._whole:
            raise HttpParserError("more than one response")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; trailers are dropped."""
        if not self._headed:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """Learn how the body ends; an interim response (1xx) is none."""
        status = self._parser.get_status_code()
        if status < 200:
            return
        self._headed = True
        self._framed = status in _WITHOUT_BODY or any(
            name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self._fields
        )

    def on_body(self, body: bytes) -> None:
        """Keep a piece."""
        self._came = 0
        self._parts.append(body)
        self._held += len(body)

    def on_message_complete(self) -> None:
        """Note the end; after an interim response the real one follows."""
        if self._headed:
            self._whole = True
            self._lasting = self._parser.should_keep_alive()
        else:
            self._fields = []
