"""Posting JSON to models and reading their replies, failures in the providers' vocabulary.

Replies are capped. What a failing server wrote is never quoted: it may repeat the prompt, and errors reach receipts.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from pydantic_core import from_json, to_json

from bundlectl.inference.client import HttpClient, head_of
from bundlectl.inference.connection import Response
from bundlectl.inference.deadlines import Deadline
from bundlectl.inference.provider import ErrorKind, ProviderError
from bundlectl.model.errors import UsageError

MAX_REPLY = 4 * 1024 * 1024
MAX_ERROR = 16 * 1024
MAX_RETRY_AFTER = 3600.0
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def bearer(credential: str | None) -> bytes:
    """Write the header of an API key, as :func:`~bundlectl.inference.client.head_of` writes them; of none nothing.

    Raises:
        UsageError: it holds what no header may.
    """
    try:
        return head_of({"Authorization": f"Bearer {credential}"}) if credential else b""
    except ValueError as error:
        raise UsageError(
            "A bound credential cannot be sent.",
            why="It holds a line end, or characters that are not of Latin-1.",
            fix="Store the bare key, without quotes or a line end.",
        ) from error


async def post_json(client: HttpClient, url: str, body: Mapping[str, Any], head: bytes, what: str) -> Response:
    """Post JSON and give the response, which the caller releases, once its head is there with status 200.

    The caller holds the deadline around it, and brings all headers as :func:`~bundlectl.inference.client.head_of`
    writes them; ``what`` names the model in errors.

    Raises:
        ProviderError: any other status, or a failure of the connection.
    """
    response = await client.post(url, head, to_json(body), what)
    if response.status == 200:
        return response
    try:
        raise await _refusal(response, what)
    finally:
        response.release()


class deadline(Deadline):  # noqa: N801
    """Turn a passed deadline into a ProviderError of kind ``timeout``, in ``with deadline(at, what, which)``."""

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


async def read_json(response: Response, what: str) -> Any:
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


async def read_capped(response: Response, limit: int) -> bytes | None:
    """Read the body; ``None`` when it is larger than ``limit`` bytes, of which no more is then read."""
    length = response.content_length
    if length is not None and length > limit:
        return None
    parts: list[bytes] = []
    size = 0
    while part := await response.read_some():
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
    return b"".join(parts) if len(parts) != 1 else parts[0]


async def _refusal(response: Response, what: str) -> ProviderError:
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
    """Give the seconds of ``retry-after`` (RFC 9110 section 10.2.3: seconds or a date); capped at an hour."""
    value = headers.get("retry-after", "").strip()
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
