"""The HTTP client that every model call goes through: HTTP/1.1 over one pool of connections.

It does what a call to a model needs and nothing else: no redirects (a credential must not travel to another host), no
proxies from the environment, no cookies, no compression, no retries. Why it is not a client library's:
docs/decisions/http-client.md.
"""

from __future__ import annotations

import asyncio
import functools
import re
import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from aiohappyeyeballs import start_connection

from bundlectl import __version__
from bundlectl.inference.connection import Connection, Response
from bundlectl.inference.provider import ProviderError

IDLE: Final = 15.0
"""Seconds after which a connection that is not used is closed."""
RESOLVED: Final = 60.0
"""Seconds for which a name's addresses are remembered."""
NEXT_ADDRESS: Final = 0.25
"""Seconds until the next of several addresses is tried beside the one before (RFC 8305)."""
_FIELD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [^\x00-\x08\x0a-\x1f\x7f]*")
_UNSAFE: Final = re.compile(r"[^\x21-\x7e]")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a URL points: the server, and what its request line and Host say."""

    host: str
    port: int
    tls: bool
    target: bytes
    authority: bytes

    @property
    def server(self) -> tuple[str, int, bool]:
        """What connections are shared by."""
        return self.host, self.port, self.tls


@functools.lru_cache(maxsize=1024)
def address_of(url: str) -> Address:
    """Read a URL; paths and queries are sent as they are written.

    Raises:
        ValueError: it is no http or https URL, holds a user, or characters that belong percent-encoded.
    """
    parts = urlsplit(url)
    host, tls = parts.hostname, parts.scheme == "https"
    if parts.scheme not in ("http", "https") or not host or parts.username is not None or _UNSAFE.search(url):
        raise ValueError("not an http or https URL")
    port = parts.port or (443 if tls else 80)
    name = f"[{host}]" if ":" in host else host
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    authority = name if port == (443 if tls else 80) else f"{name}:{port}"
    return Address(host, port, tls, target.encode("ascii"), authority.encode("ascii"))


def head_of(headers: Mapping[str, str]) -> bytes:
    """Write headers as they are sent.

    Raises:
        ValueError: a name or value would end its line, or is not of Latin-1.
    """
    lines = [f"{name}: {value}".encode("latin-1") for name, value in headers.items()]
    if not all(_FIELD.fullmatch(line) for line in lines):
        raise ValueError("a header holds what headers may not")
    return b"".join(line + b"\r\n" for line in lines)


_ALWAYS: Final = head_of({"User-Agent": f"bundlectl/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"})


class Observed(Protocol):
    """One call as an observer sees it."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What is to be sent with it."""
        ...

    def answered(self, status: int) -> None:
        """Take the response's status."""
        ...


Observer = Callable[[str, str], AbstractContextManager[Observed]]
"""Given a method and a URL, what goes around a call, until its response's head is there."""


class HttpClient:
    """For one event loop. It has no deadline of its own: each call brings one."""

    def __init__(self, *, connections: int = 2048, observe: Observer | None = None) -> None:
        """Take how many connections may be open at once, over all servers, and who observes calls.

        Calls beyond that wait for a connection.
        """
        self._pool = Pool(connections)
        self._observe = observe

    async def post(self, url: str, head: bytes, body: bytes, what: str) -> Response:
        """Send a body, and give the response once its head is there.

        Args:
            url: where to.
            head: headers as :func:`head_of` writes them, without Host and Content-Length.
            body: the whole of it.
            what: the server, in errors: "model small".

        Raises:
            ProviderError: ``unavailable``: there is no connection, or no HTTP; ``refused``: ``url`` is not one.
        """
        return await self._send("POST", url, b"%bContent-Length: %d\r\n" % (head, len(body)), body, what)

    async def get(self, url: str, what: str) -> Response:
        """Ask for what is at a URL; arguments and errors as of :meth:`post`."""
        return await self._send("GET", url, b"", b"", what)

    async def _send(self, method: str, url: str, head: bytes, body: bytes, what: str) -> Response:
        if self._observe is None:
            return await self._exchange(method, url, head, body, what)
        with self._observe(method, url) as call:
            response = await self._exchange(method, url, head + head_of(call.headers), body, what)
            call.answered(response.status)
            return response

    async def _exchange(self, method: str, url: str, head: bytes, body: bytes, what: str) -> Response:
        try:
            address = address_of(url)
        except ValueError as error:
            raise ProviderError("refused", f"{what}: its bound base_url is not a URL.") from error
        request = b"%b %b HTTP/1.1\r\nHost: %b\r\n%b%b\r\n%b" % (
            method.encode(),
            address.target,
            address.authority,
            _ALWAYS,
            head,
            body,
        )
        connection = self._pool.take(address.server) or await self._pool.open(address.server, what)
        return await connection.ask(request, what)

    async def __aenter__(self) -> HttpClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End every connection."""
        self._pool.close()
        await asyncio.sleep(0)  # connections end in the loop's next turn


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
