"""The one HTTP session that every model call goes through, and its failures in the providers' vocabulary.

Replies are capped, redirects are not followed (a credential must not travel to another host) and proxies from
the environment are not used. What a failing server wrote is never quoted: it may repeat the prompt, and
errors reach receipts.
"""

from __future__ import annotations

import asyncio
import io
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
from pydantic_core import from_json, to_json

from bundlectl.inference.provider import ErrorKind, ProviderError

MAX_REPLY = 4 * 1024 * 1024
MAX_ERROR = 16 * 1024
MAX_RETRY_AFTER = 3600.0
_LARGE = 2**20
"""Bodies above this are handed over as a file, which aiohttp sends in pieces."""
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def open_session(*, connections: int = 512) -> aiohttp.ClientSession:
    """Open the session; the caller closes it. It has no deadline of its own: each call brings one.

    Args:
        connections: the most connections open at once, over all hosts.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, ttl_dns_cache=60),
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        read_bufsize=2**16,
    )


async def post_json(
    session: aiohttp.ClientSession, url: str, body: Mapping[str, Any], headers: Mapping[str, str], what: str
) -> aiohttp.ClientResponse:
    """Post JSON and give the response, which the caller releases, once its headers are there with status 200.

    The caller holds the deadline around it; ``what`` names the model in errors.

    Raises:
        ProviderError: any other status, or a failure of the connection.
    """
    data = to_json(body)
    with failures(what):
        response = await session.post(
            url,
            data=as_payload(data),
            headers={"content-type": "application/json", **headers},
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


@contextmanager
def failures(what: str) -> Iterator[None]:
    """Turn the HTTP client's failures into ProviderErrors."""
    try:
        yield
    except aiohttp.ClientPayloadError as error:
        raise ProviderError("broken_stream", f"{what}: the reply was cut.", why=type(error).__name__) from error
    except aiohttp.InvalidURL as error:
        raise ProviderError("refused", f"{what}: its bound base_url is not a URL.") from error
    except (aiohttp.ClientError, ConnectionError) as error:
        raise ProviderError("unavailable", f"{what} cannot be reached.", why=type(error).__name__) from error


@asynccontextmanager
async def deadline(at: float, what: str, which: str) -> AsyncIterator[None]:
    """Turn a passed deadline into a ProviderError of kind ``timeout``.

    No generator may yield inside of it: the deadline would strike the code that consumes the generator.

    Args:
        at: on the loop's clock.
        what: the model, for the error.
        which: what was waited for.
    """
    try:
        async with asyncio.timeout_at(at):
            yield
    except TimeoutError as error:
        raise ProviderError("timeout", f"{what}: no {which} in time.", why=f"no {which} in time") from error


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
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
    return b"".join(parts)


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
        except ValueError:
            return None
    return min(max(found, 0.0), MAX_RETRY_AFTER) if found == found else None
