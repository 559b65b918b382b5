"""Batches over HTTP.

``POST /v1/batches`` takes JSON Lines and answers once all of it is stored: 201, or 200 when the same
``Idempotency-Key`` brought the same bytes before. ``GET /v1/batches/{id}`` says how far it is, ``GET …/results`` gives
the results in the order of the input, ``POST …/cancel`` lets no row begin any more. Only the caller who handed a
batch in sees it, and only while it may still claim every tenant and role that is in it; to others it is not there.

====  ==========================================================================================
400   a header is not in its form, or pins the batch to a bundle
403   a row names a tenant or role that the caller may not claim (``lines``)
404   there is no such batch, or not for this caller
408   nothing came for thirty seconds, or not everything in ten minutes
409   the idempotency key came before with another body; results of a batch that has not ended
413   more than 100,000 rows or 256 MiB
422   lines are no requests that this release takes (``lines``: line, field and message of each)
503   it cannot be stored now
====  ==========================================================================================
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from bundlectl.model.batch import Batch, BatchHeader, BatchOwner
from bundlectl.model.errors import BackendUnavailable, BundlectlError
from bundlectl.router.assemble import Compiled
from bundlectl.router.batch.book import BadRows, BatchMissing, Book, KeyTaken, NotFinished
from bundlectl.router.batch.intake import MAX_BYTES, BatchTooLarge, Submission, take_in
from bundlectl.router.batch.openapi import LINES, PATH, openapi_paths
from bundlectl.router.identity import Identity

SILENCE: Final = 30.0
LONGEST: Final = 600.0
PAGE: Final = 200
_ID: Final = re.compile(r"batch-[0-9a-f]{32}")
_KEY: Final = re.compile(r"[!-~]{1,255}")


class Caller(Protocol):
    """Who calls, by a release that is served here."""

    @property
    def compiled(self) -> Compiled:
        """The release."""
        ...

    @property
    def identity(self) -> Identity:
        """Who it says the caller is."""
        ...


class Callers(Protocol):
    """What the server knows of who calls."""

    async def __call__(self, request: Request) -> Sequence[Caller]:
        """Give who calls, by each release that knows them; at least one, or it raises what the server answers then."""
        ...


class BatchApi:
    """The batch endpoints over one book."""

    def __init__(
        self,
        book: Book,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_accepted: Callable[[], None] = lambda: None,
    ) -> None:
        """Take the book, the present time, and what to tell when a batch was accepted."""
        self._book = book
        self._clock = clock
        self._accepted = on_accepted

    def routes(self, callers: Callers) -> list[Route]:
        """Give the routes."""
        self._callers = callers
        return [
            Route(PATH, self._guarded(self._submit), methods=["POST"]),
            Route(f"{PATH}/{{batch}}", self._guarded(self._status), methods=["GET"]),
            Route(f"{PATH}/{{batch}}/results", self._guarded(self._results), methods=["GET"]),
            Route(f"{PATH}/{{batch}}/cancel", self._guarded(self._cancel), methods=["POST"]),
        ]

    def described(self, document: dict[str, Any]) -> dict[str, Any]:
        """Give an OpenAPI document with these endpoints in it too."""
        paths, schemas = openapi_paths()
        parts = document["components"]
        return {
            **document,
            "paths": {**document["paths"], **paths},
            "components": {**parts, "schemas": {**parts["schemas"], **schemas}},
        }

    # ------------------------------------------------------------ the endpoints

    async def _submit(self, request: Request) -> Response:
        caller = _only(await self._callers(request), request.headers.get("x-app"))
        if "x-bundle" in request.headers:
            return _error(400, "batch_not_pinned", "A batch cannot be pinned (x-bundle): its rows ask what is live.")
        key = request.headers.get("idempotency-key")
        if key is not None and not _KEY.fullmatch(key):
            return _error(400, "bad_idempotency_key", "The idempotency key is not 1 to 255 visible ASCII characters.")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > MAX_BYTES:
            raise BatchTooLarge(f"The batch is larger than {MAX_BYTES} bytes.", fix="Split it.")
        submission = Submission(caller.compiled, owner_of(caller.identity), caller.identity, key)
        header, new = await take_in(self._book, submission, _pieces(request), self._clock())
        if new:
            self._accepted()
        batch = await asyncio.to_thread(self._book.status, header.id)
        return _batch(batch, 201 if new else 200)

    async def _status(self, request: Request) -> Response:
        header = await self._own(request)
        return _batch(await asyncio.to_thread(self._book.status, header.id))

    async def _results(self, request: Request) -> Response:
        header = await self._own(request)
        partly = request.query_params.get("partial", "false")
        if partly not in ("true", "false"):
            return _error(400, "bad_query", "partial is true or false.")
        if partly == "false":
            batch = await asyncio.to_thread(self._book.status, header.id)
            if not batch.ended:
                raise NotFinished(batch)
        first = await self._page(header.id, 0)
        return StreamingResponse(self._lines(header.id, first), media_type=LINES)

    async def _cancel(self, request: Request) -> Response:
        header = await self._own(request)
        await asyncio.to_thread(self._book.cancel, header.id)
        return _batch(await asyncio.to_thread(self._book.status, header.id))

    # ------------------------------------------------------------ inside

    async def _own(self, request: Request) -> BatchHeader:
        """Give the batch that is asked for, if it is the caller's."""
        callers = await self._callers(request)
        batch = request.path_params["batch"]
        if not _ID.fullmatch(batch):
            raise BatchMissing(batch[:60])
        header = await asyncio.to_thread(self._book.header, batch)
        if not any(_is_owner(one, header) for one in callers):
            raise BatchMissing(batch)
        return header

    async def _lines(self, batch: str, page: list[tuple[int, bytes]]) -> AsyncIterator[bytes]:
        while page:
            yield b"".join(line + b"\n" for _, line in page)
            page = await self._page(batch, page[-1][0])

    async def _page(self, batch: str, after: int) -> list[tuple[int, bytes]]:
        return await asyncio.to_thread(self._book.page, batch, after, PAGE)

    def _guarded(self, endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Turn what is foreseen into statuses. What of a body was not read is not waited for."""

        async def answer(request: Request) -> Response:
            try:
                return await endpoint(request)
            except ClientDisconnect:
                return Response(status_code=499)
            except BundlectlError as error:
                status = _status_of(error)
                if status is None:
                    raise
                lines = {"lines": error.problems} if isinstance(error, BadRows) else {}
                body = {"error": error.code, "message": error.what, "why": error.why, "fix": error.fix, **lines}
                headers = {"connection": "close"} if request.method == "POST" else None
                return JSONResponse(body, status, headers)

        return answer


class _Silent(BundlectlError):
    """The body does not come."""

    code = "timeout"


def owner_of(identity: Identity) -> BatchOwner:
    """Write down who hands a batch in."""
    return BatchOwner(name=identity.name, tenants=sorted(identity.tenants), roles=sorted(identity.roles))


def _is_owner(caller: Caller, header: BatchHeader) -> bool:
    ref, identity = caller.compiled.ref, caller.identity
    return (
        (ref.app, ref.environment, identity.name) == (header.app, header.environment, header.owner.name)
        and not header.owner.local
        and all(identity.may_claim(tenant, role) for tenant, role in header.claims)
    )


def _only(callers: Sequence[Caller], app: str | None) -> Caller:
    """Give the environment that a batch is for: the only one, or the one that ``x-app`` names."""
    named = [one for one in callers if app in (None, one.compiled.ref.app, _name(one))]
    if len(named) == 1:
        return named[0]
    names = ", ".join(_name(one) for one in named or callers)
    problem = {"line": 1, "field": "x-app", "message": f"names none of what is served here for this caller: {names}"}
    if named:
        problem["message"] = f"several are served here: {names}; name one in the header x-app"
    raise BadRows([problem], denied=False)


def _name(caller: Caller) -> str:
    return f"{caller.compiled.ref.app}:{caller.compiled.ref.environment}"


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    ends = loop.time() + LONGEST
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(min(SILENCE, max(0.0, ends - loop.time()))):
                piece = await anext(stream, None)
        except TimeoutError:
            raise _Silent("The batch does not come.", fix="Send it in one go.") from None
        if piece is None:
            return
        yield piece


def _status_of(error: BundlectlError) -> int | None:
    match error:
        case BadRows():
            return 403 if error.denied else 422
        case BatchTooLarge():
            return 413
        case KeyTaken() | NotFinished():
            return 409
        case BatchMissing():
            return 404
        case BackendUnavailable():
            return 503
        case _Silent():
            return 408
        case _:
            return None


def _batch(batch: Batch, status: int = 200) -> Response:
    headers = {} if batch.ended else {"retry-after": "1"}
    if status == 201:
        headers["location"] = f"{PATH}/{batch.id}"
    return JSONResponse(batch.form(), status, headers)


def _error(status: int, code: str, message: str) -> Response:
    return JSONResponse({"error": code, "message": message, "why": "", "fix": ""}, status)
