"""The connections of the HTTP client: opened, kept for the next call, and handed to who waits where there are many."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections import deque
from contextlib import suppress
from typing import Any, Final

from aiohappyeyeballs import start_connection

from bundlectl.inference.connection import Connection
from bundlectl.inference.provider import ProviderError

IDLE: Final = 15.0
"""Seconds after which a connection that is not used is closed."""
RESOLVED: Final = 60.0
"""Seconds for which a name's addresses are remembered."""
NEXT_ADDRESS: Final = 0.25
"""Seconds until the next of several addresses is tried beside the one before (RFC 8305)."""


class Pool:
    """The connections of a client: in use, and kept for the next call; the last used one is used first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: dict[Connection, tuple[str, int, bool]] = {}
        self._opening = 0
        self._idle: dict[tuple[str, int, bool], list[Connection]] = {}
        self._waiting: deque[tuple[tuple[str, int, bool], asyncio.Future[Connection | None]]] = deque()
        self._names: dict[tuple[str, int], tuple[float, asyncio.Task[list[Any]]]] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    def take(self, server: tuple[str, int, bool]) -> Connection | None:
        """Give a connection that is kept to a server."""
        idle = self._idle.get(server)
        while idle:
            connection = idle.pop()
            if connection.usable:
                return connection
        return None

    async def open(self, server: tuple[str, int, bool], what: str) -> Connection:
        """Open a connection, once there may be another one.

        Raises:
            ProviderError: ``unavailable``: the name does not resolve, nobody listens, or TLS fails.
        """
        again = False
        while not self._room() and not self._end_idle():
            turn: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
            (self._waiting.appendleft if again else self._waiting.append)((server, turn))
            try:
                kept = await turn
            except BaseException:
                if turn.done() and not turn.cancelled():
                    self._give_back(turn.result())
                raise
            if kept is None:
                break
            if kept.usable:
                return kept
            again = True
        else:
            self._opening += 1
        try:
            return await self._connect(server)
        except (OSError, UnicodeError, RuntimeError) as error:
            raise ProviderError("unavailable", f"{what} cannot be reached.", why=_why(error)) from error
        finally:
            self._opening -= 1
            self._next()

    def keep(self, connection: Connection) -> None:
        """Keep a connection for the next call; whoever waits longest is given it, or its place."""
        server = self._open.get(connection)
        if server is None or self._closed:
            connection.abort()
            return
        if self._waiting and (first := self._first()) is not None:
            if first[0] == server:
                self._waiting.popleft()
                first[1].set_result(connection)
            else:
                connection.abort()
            return
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.setdefault(server, []).append(connection)
        if self._sweep is None:
            self._sweep = loop.call_later(IDLE, self._end_unused)

    def gone(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        server = self._open.pop(connection, None)
        if server is not None and connection in (idle := self._idle.get(server, [])):
            idle.remove(connection)
        self._next()

    def close(self) -> None:
        """End every connection, and open no more."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in tuple(self._open):
            connection.abort()

    # ------------------------------------------------------------ inside

    async def _connect(self, server: tuple[str, int, bool]) -> Connection:
        host, port, tls = server
        loop = asyncio.get_running_loop()
        if self._closed:
            raise ConnectionAbortedError("the client was closed")
        addresses = await self._resolve(host, port)
        context = await asyncio.to_thread(_tls) if tls else None
        try:
            sock = await start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS, loop=loop)
        except OSError:
            self._names.pop((host, port), None)
            raise
        try:
            _, connection = await loop.create_connection(
                lambda: Connection(self), sock=sock, ssl=context, server_hostname=host if tls else None
            )
        except BaseException:
            # The loop's by now: were it closed here, the loop would go on with its number, by then another socket's.
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            raise
        if self._closed or not connection.usable:
            connection.abort()
            raise ConnectionAbortedError("the client was closed, or the server ended the connection at once")
        self._open[connection] = server
        return connection

    async def _resolve(self, host: str, port: int) -> list[Any]:
        """Look a name up, once for all who wait: each lookup holds a thread, for long where no name server answers."""
        loop = asyncio.get_running_loop()
        until, lookup = self._names.get((host, port), (0.0, None))
        if lookup is None or until <= loop.time():
            lookup = loop.create_task(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            lookup.add_done_callback(functools.partial(self._looked_up, (host, port)))
            self._names[host, port] = loop.time() + RESOLVED, lookup
        return await asyncio.shield(lookup)

    def _looked_up(self, name: tuple[str, int], lookup: asyncio.Task[list[Any]]) -> None:
        """Remember no failure."""
        if lookup.cancelled() or lookup.exception() is not None:
            self._names.pop(name, None)

    def _room(self) -> bool:
        return len(self._open) + self._opening < self._limit

    def _first(self) -> tuple[tuple[str, int, bool], asyncio.Future[Connection | None]] | None:
        """Give who waits longest, and what for."""
        while self._waiting:
            if not self._waiting[0][1].done():
                return self._waiting[0]
            self._waiting.popleft()
        return None

    def _next(self) -> None:
        """Give a free place to who waits longest."""
        if self._waiting and self._room() and (first := self._first()) is not None:
            self._waiting.popleft()
            self._opening += 1
            first[1].set_result(None)

    def _give_back(self, given: Connection | None) -> None:
        """Take back what was given to one who has left."""
        if given is None:
            self._opening -= 1
            self._next()
        elif given.usable:
            self.keep(given)

    def _end_idle(self) -> bool:
        """Make room by ending a connection that is kept for a server that nobody asks now."""
        for idle in self._idle.values():
            if idle:
                connection = idle.pop(0)
                self._open.pop(connection, None)
                connection.abort()
                return True
        return False

    def _end_unused(self) -> None:
        loop = asyncio.get_running_loop()
        oldest = loop.time() - IDLE
        for server, idle in list(self._idle.items()):
            while idle and idle[0].idle_since <= oldest:
                idle.pop(0).abort()
            if not idle:
                del self._idle[server]
        self._sweep = loop.call_later(IDLE / 2, self._end_unused) if self._idle else None


@functools.cache
def _tls() -> ssl.SSLContext:
    """Make the one TLS configuration, of the system's trusted roots; reading them takes a moment."""
    return ssl.create_default_context()


def _why(error: Exception) -> str:
    """Name a failure without its text, which may hold addresses of a network."""
    if isinstance(error, socket.gaierror | UnicodeError):
        return "its name does not resolve"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    if isinstance(error, ConnectionResetError | ConnectionAbortedError):
        return "the connection was closed before a reply"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate is not trusted"
    if isinstance(error, ssl.SSLError):
        return "no TLS could be agreed on"
    return type(error).__name__
