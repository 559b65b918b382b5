"""The one HTTP session that every model call goes through, and its failures in the providers' vocabulary.

Replies are capped, redirects are not followed (a credential must not travel to another host) and proxies from
the environment are not used. What a failing server wrote is never quoted: it may repeat the prompt, and
errors reach receipts.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
from pydantic_core import from_json, to_json

from bundlectl.inference.deadlines import Deadline
from bundlectl.inference.provider import ErrorKind, ProviderError

MAX_REPLY = 4 * 1024 * 1024
MAX_ERROR = 16 * 1024
MAX_RETRY_AFTER = 3600.0
_LARGE = 2**20
"""Bodies above this are handed over as a file, which aiohttp sends in pieces."""
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def open_session(*, connections: int = 2048, trace: aiohttp.TraceConfig | None = None) -> aiohttp.ClientSession:
    """Open the session; the caller closes it. It has no deadline of its own: each call brings one.

    Args:
        connections: the most connections open at once, over all hosts.
        trace: told of every call; None costs nothing.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, ttl_dns_cache=60),
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        trace_configs=[trace] if trace is not None else None,
        read_bufsize=2**16,
    )


async def post_json(
    session: aiohttp.ClientSession, url: str, body: Mapping[str, Any], headers: Mapping[str, str], what: str
) -> aiohttp.ClientResponse:
    """Post JSON and give the response, which the caller releases, once its headers are there with status 200.

    The caller holds the deadline around it, and brings all headers; ``what`` names the model in errors.

    Raises:
        ProviderError: any other status, or a failure of the connection.
    """
    data = to_json(body)
    with failures(what):
        response = await session.post(
            url,
            data=as_payload(data),
            headers=headers,
            allow_redirects=False,
        )
        if response.status == 200:
            return response
        try:
            raise await _refusal(response, what)
        finally:
            response.release()


def as_payload(data: bytes) -> bytes | io.BytesIO:
    """Give a body as aiohttp sends it without holding up the event loop."""
    return data if len(data) <= _LARGE else io.BytesIO(data)


class failures:  # noqa: N801
    """Turn the HTTP client's failures into ProviderErrors, in ``with failures(what)``; ``what`` names the model.

    A class, as :class:`deadline` is: as generators the two cost half as much as the HTTP between them.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, aiohttp.ClientPayloadError):
            why = type(error).__name__
            raise ProviderError("broken_stream", f"{self._what}: the reply was cut.", why=why) from error
        if isinstance(error, aiohttp.InvalidURL):
            raise ProviderError("refused", f"{self._what}: its bound base_url is not a URL.") from error
        if isinstance(error, aiohttp.ClientError | ConnectionError):
            why = type(error).__name__
            raise ProviderError("unavailable", f"{self._what} cannot be reached.", why=why) from error


class deadline(Deadline):  # noqa: N801
    """Turn a passed deadline into a ProviderError of kind ``timeout``, in ``async with deadline(at, what, which)``."""

    __slots__ = ("_what", "_which")

    def __init__(self, at: float, what: str, which: str) -> None:
        """Take the time on the loop's clock, the model's name for the error, and what is waited for."""
        super().__init__(at)
        self._what = what
        self._which = which

    def late(self) -> Exception:
        """Say what was not there in time."""
        why = f"no {self._which} in time"
        return ProviderError("timeout", f"{self._what}: {why}.", why=why)


async def read_json(response: aiohttp.ClientResponse, what: str) -> Any:
    """Read a capped JSON body.

    Raises:
        ProviderError: ``invalid``: it is too large, or not JSON.
    """
    data = await read_capped(response, MAX_REPLY)
    if data is None:
        raise ProviderError("invalid", f"{what}: the reply is larger than {MAX_REPLY} bytes.")
    try:
        return from_json(data)
    except ValueError as error:
        raise ProviderError("invalid", f"{what}: the reply is not JSON.") from error


async def read_capped(response: aiohttp.ClientResponse, limit: int) -> bytes | None:
    """Read the body; ``None`` when it is larger than ``limit`` bytes, of which no more is then read."""
    length = response.content_length
    if length is not None and length > limit:
        return None
    content = response.content
    parts: list[bytes] = []
    size = 0
    while True:
        part = await content.readany()
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
        if content.at_eof():
            return b"".join(parts) if len(parts) > 1 else part


async def _refusal(response: aiohttp.ClientResponse, what: str) -> ProviderError:
    status = response.status
    code = _error_code(await read_capped(response, MAX_ERROR))
    why = f"HTTP {status}" + (f", {code}" if code else "")
    kind: ErrorKind = "refused"
    if status == 429:
        kind = "throttled"
    elif status >= 500 or status == 408:
        kind = "unavailable"
    after = retry_after(response.headers) if kind != "refused" else None
    return ProviderError(kind, f"{what} answered {why}.", why=why, retry_after=after)


def _error_code(data: bytes | None) -> str:
    """Give the error's own code or type where the body is an OpenAI-style error; never its message."""
    try:
        error = from_json(data or b"").get("error")
    except (ValueError, AttributeError):
        return ""
    if not isinstance(error, dict):
        return ""
    for key in ("code", "type"):
        value = error.get(key)
        if isinstance(value, str) and _CODE.fullmatch(value):
            return value
    return ""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Give the seconds of ``Retry-After`` (RFC 9110 section 10.2.3: seconds or a date); capped at an hour."""
    value = headers.get("Retry-After", "").strip()
    if not value:
        return None
    try:
        found = float(value)
    except ValueError:
        try:
            found = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(max(found, 0.0), MAX_RETRY_AFTER) if found == found else None
