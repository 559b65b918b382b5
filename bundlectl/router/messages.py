"""The messages of the hot route: a head and a body read within bounds, a request out of it, an answer written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import to_json

from bundlectl.inference.deadlines import Deadline
from bundlectl.model.canonical import parse_json
from bundlectl.model.contract import Request
from bundlectl.model.errors import BundlectlError, VerificationFailed
from bundlectl.router.contract import ContractError
from bundlectl.router.direct import send_whole, whole_body
from bundlectl.router.http_error import HttpError, http_error
from bundlectl.router.limits import whole_seconds

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_BODY: Final = 1024 * 1024
MAX_HEADERS: Final = 32 * 1024
_JSON: Final = (b"content-type", b"application/json")


def check_headers(headers: list[tuple[bytes, bytes]]) -> None:
    """Bound a head.

    Raises:
        HttpError: 431: it is too large.
    """
    size = 0
    for name, value in headers:
        size += len(name) + len(value)
    if size > MAX_HEADERS:
        raise http_error(
            431, "headers_too_large", f"The headers are larger than {MAX_HEADERS} bytes.", fix="Send less."
        )


def header_of(headers: list[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """Give a header's value, its name in lower case; of repeated ones the first."""
    for key, value in headers:
        if key == name:
            return value
    return None


async def read_body(headers: list[tuple[bytes, bytes]], receive: Receive, limit: float) -> bytes | None:
    """Read the body within ``limit`` seconds; ``None`` when the caller went away.

    Raises:
        HttpError: 408: it was not there in time; 413: it is too large.
    """
    length = header_of(headers, b"content-length")
    if length is not None and length.isdigit() and int(length) > MAX_BODY:
        raise _too_large()
    body = whole_body(receive)
    if body is not None:
        if len(body) > MAX_BODY:
            raise _too_large()
        return body
    parts: list[bytes] = []
    size = 0
    try:
        with Deadline(asyncio.get_running_loop().time() + limit):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                part = message.get("body", b"")
                size += len(part)
                if size > MAX_BODY:
                    raise _too_large()
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        what = f"The body was not there within {limit:g} seconds."
        raise http_error(408, "timeout", what, fix="Send the request in one go.") from None


def read_request(body: bytes) -> Request:
    """Read the request; one that is as plain as nearly all are in a single pass, at half the price.

    Raises:
        HttpError: 400: it is not JSON; 422: it is not a request.
    """
    return _plain(body) or _strict(body)


def _plain(body: bytes) -> Request | None:
    """Give a request whose input is strings alone, if each key stands in it once.

    This parser would take the last of equal keys. There are none where all colons are those behind the fields' names.
    """
    try:
        request = Request.__pydantic_validator__.validate_json(body)
    except ValidationError:
        return None
    if body.count(b":") != len(request.__pydantic_fields_set__) + len(request.input):
        return None
    return request if {str}.issuperset(map(type, request.input.values())) else None


def _strict(body: bytes) -> Request:
    try:
        value = parse_json(body, what="The body")
    except VerificationFailed as error:
        raise http_error(400, "bad_json", error.what, why=error.why, fix="Send one JSON object in UTF-8.") from error
    try:
        return Request.model_validate(value)
    except ValidationError as error:
        fields = [
            (".".join(str(part) for part in found["loc"]) or "(body)", _said(found["type"], found["msg"]))
            for found in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise HttpError(422, problem(ContractError(fields, fix="See /openapi.json."))) from error


def _said(kind: str, message: str) -> str:
    return "Input should be a JSON object" if kind == "model_type" else message


def problem(error: BundlectlError) -> dict[str, Any]:
    """Give the JSON object of an error."""
    body: dict[str, Any] = {"error": error.code, "message": error.what, "why": error.why, "fix": error.fix}
    return body | {key: error.details[key] for key in ("fields", "receipt") if key in error.details}


async def send_json(send: Send, status: int, body: Any, *, retry_after: float | None = None) -> None:
    """Write a JSON answer of plain values."""
    await send_body(send, status, to_json(body), retry_after=retry_after)


async def send_body(
    send: Send,
    status: int,
    body: bytes,
    *,
    close: bool = False,
    retry_after: float | None = None,
    also: tuple[bytes, bytes] | None = None,
) -> None:
    """Write a JSON answer; ``close`` ends the connection after it, ``also`` is one more header."""
    headers = [_JSON, (b"content-length", str(len(body)).encode())]
    if also is not None:
        headers.append(also)
    if retry_after is not None:
        headers.append((b"retry-after", str(whole_seconds(retry_after)).encode()))
    if close:
        headers.append((b"connection", b"close"))
    elif send_whole(send, status, headers, body):
        return
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _too_large() -> HttpError:
    return http_error(413, "too_large", f"The body is larger than {MAX_BODY} bytes.", fix="Send less.")
