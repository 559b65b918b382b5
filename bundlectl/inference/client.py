"""The HTTP client that every model call goes through: HTTP/1.1 over one pool of connections.

It does what a call to a model needs and nothing else: no redirects (a credential must not travel to another host), no
proxies from the environment, no cookies, no compression, no retries. Why it is not a client library's:
docs/decisions/http-client.md.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlsplit

from bundlectl import __version__
from bundlectl.inference.connection import Response
from bundlectl.inference.pool import Pool
from bundlectl.inference.provider import ProviderError

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
