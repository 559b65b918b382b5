"""The HTTP server: requests in, answers out.

``POST /v1/requests`` is plain ASGI, for speed; the other paths are Starlette's. Errors are JSON objects with
``error``, ``message``, ``why``, ``fix`` and, where one was written, ``receipt``. Statuses of requests:

====  ==========================================================================================
200   answered; or refused with ``no_answer`` or ``output_blocked``, which are answers too
400   the body is not JSON, or ``x-bundle`` is no digest
401   no identity, where identities are configured: no known API key, no valid token (``why`` says which)
403   refused with ``access_denied``; or ``x-bundle`` came from a caller who may not choose
404   no such path; 405 another method
406   ``x-app`` names an app that is not served here; or ``x-bundle`` a bundle that is not
408   the body was not there within ten seconds
409   ``x-bundle`` names the rollback target, and that does not verify
413   the body is larger than 1 MiB
422   the request does not fit the contract (``fields``), or refused with ``input_blocked``
429   refused with ``limited``; ``Retry-After`` says when it would pass, unless it never will
431   the headers are larger than 32 KiB
500   a defect
503   nothing could answer (see the receipt's attempts), no release is loaded, the keys that a token would be
      verified with or the rollback target cannot be fetched, or too many requests are under way (``Retry-After``)
====  ==========================================================================================
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bundlectl.model.contract import Pinned, Request
from bundlectl.router.access_log import RECEIPT
from bundlectl.router.cache import Caching, caching_of
from bundlectl.router.chat import ChatApi, openapi_paths
from bundlectl.router.contract import ContractError
from bundlectl.router.http_error import CHALLENGE, HttpError, http_error
from bundlectl.router.identity import Identity, Stranger, presented_key
from bundlectl.router.loopback import arrived_locally, named_locally, sent_by_a_page_elsewhere
from bundlectl.router.messages import (
    Receive,
    Scope,
    Send,
    check_headers,
    header_of,
    problem,
    read_body,
    read_request,
    send_body,
    send_json,
)
from bundlectl.router.metrics import Metrics
from bundlectl.router.openapi import openapi
from bundlectl.router.pinning import HEADER, pinned_caller
from bundlectl.router.router import Event, error_body
from bundlectl.router.served import Caller, Served
from bundlectl.router.turns import Turns, in_a_row

if TYPE_CHECKING:
    from bundlectl.router.batch.http import BatchApi

BODY_SECONDS: Final = 10.0
PATH: Final = "/v1/requests"
_UNREAD: Final = (401, 405, 408, 413, 431, 503)
_ALSO: Final = {401: (b"www-authenticate", b"Bearer"), 405: (b"allow", b"POST")}
"""What HTTP demands beside such a status."""
_STREAM: Final = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


class Server:
    """The ASGI application for some environments of some apps."""

    def __init__(
        self,
        served: Sequence[Served],
        *,
        body_seconds: float = BODY_SECONDS,
        turns: Turns | None = None,
        metrics: Metrics | None = None,
        batches: BatchApi | None = None,
    ) -> None:
        """Take what is served.

        Args:
            served: the environments.
            body_seconds: how many seconds a body may take from its head to its last byte.
            turns: how many are answered at once.
            metrics: what the environments' receipts are counted in.
            batches: the batch API.
        """
        self._served = list(served)
        self._body_seconds = body_seconds
        self._turns = turns or Turns()
        self._metrics = metrics or Metrics()
        self._metrics.gauges |= {
            "active_requests": lambda: self._turns.active,
            "waiting_requests": lambda: self._turns.queued,
            "turned_away_total": lambda: self._turns.turned_away,
        }
        document = openapi()
        document["paths"] |= openapi_paths()
        self._document = batches.described(document) if batches is not None else document
        self._other = Starlette(
            routes=[
                Route("/v1/releases", self._releases),
                Route("/healthz", self._health),
                Route("/readyz", self._ready),
                Route("/openapi.json", self._openapi),
                Route("/metrics", self._look),
                *ChatApi(self._callers, self._body, self._turns).routes(),
                *(batches.routes(self._callers) if batches is not None else ()),
            ],
            exception_handlers={404: _not_found, 405: _not_allowed, HttpError: _http_error},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Dispatch by the path."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._other(scope, receive, send)
            return
        try:
            if scope["method"] != "POST":
                raise http_error(405, "method_not_allowed", "Send requests with POST.")
            await self._answer(scope, receive, send)
        except HttpError as error:
            self._metrics.responses[error.status] += 1
            # What of a body was not read must not be taken for the next request, nor be waited for.
            close, later = error.status in _UNREAD, error.body.get("retry_after")
            also = _ALSO.get(error.status)
            await send_body(send, error.status, to_json(error.body), close=close, retry_after=later, also=also)

    # ------------------------------------------------------------ POST /v1/requests

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        check_headers(headers)
        local = arrived_locally(scope) and named_locally(header_of(headers, b"host"))
        for fetch in self._fetches(headers):
            await fetch
        known = self._known(headers, local=local)  # before anything of the body is held for a stranger
        body = await read_body(headers, receive, self._body_seconds)
        if body is None:
            return
        request = read_request(body)
        if any(one.served.loaded() is not one.compiled for one in known):
            # While the body came a release did, which may know the caller no longer.
            known = self._known(headers, local=local)
        app, bundle, pinned = header_of(headers, b"x-app"), header_of(headers, HEADER), None
        one = _choose(request, known, app)
        if bundle is not None:

            async def again() -> Caller:
                return _choose(request, self._known(headers, local=local), app)

            one, pinned = await pinned_caller(one, bundle, again)
        turns = self._turns
        if not turns.begin():
            await turns.wait(interactive=request.latency_class == "interactive")
        began = time.perf_counter()
        try:
            if b"text/event-stream" in (header_of(headers, b"accept") or b""):
                await self._stream(one, request, pinned, scope, receive, send)
                return
            caching = _caching(one, headers)
            outcome = await one.served.router.handle(request, one.identity, one.compiled, caching, pinned)
        except ContractError as error:
            raise HttpError(422, problem(error)) from error
        finally:
            turns.end(time.perf_counter() - began)
        if turns.active:
            await in_a_row()
        scope[RECEIPT] = outcome.receipt.id
        self._metrics.responses[outcome.status] += 1
        if outcome.answer is None:
            await send_json(send, outcome.status, error_body(outcome))
        else:
            answer = outcome.answer
            body = answer.__pydantic_serializer__.to_json(answer, exclude_none=True)
            await send_body(send, outcome.status, body, retry_after=outcome.retry_after)

    async def _stream(
        self, one: Caller, request: Request, pinned: Pinned | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Send events as they come, until the caller goes away: then the model's call is given up too."""
        pump = asyncio.ensure_future(self._pump(one, request, pinned, scope, send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not pump.done():
                pump.cancel()
                await asyncio.wait({pump})
        if not pump.cancelled():
            pump.result()

    async def _pump(self, one: Caller, request: Request, pinned: Pinned | None, scope: Scope, send: Send) -> None:
        """Send every event. What ends with its first event is a plain JSON answer with a status of its own."""
        started = False
        caching = _caching(one, scope["headers"])
        async with aclosing(one.served.router.stream(request, one.identity, one.compiled, caching, pinned)) as events:
            async for event in events:
                scope[RECEIPT] = event.outcome.receipt.id if event.outcome is not None else scope.get(RECEIPT)
                if not started and event.outcome is not None:
                    self._metrics.responses[event.outcome.status] += 1
                    await send_json(send, event.outcome.status, event.data, retry_after=event.outcome.retry_after)
                    return
                if not started:
                    started = True
                    self._metrics.responses[200] += 1
                    await send({"type": "http.response.start", "status": 200, "headers": _STREAM})
                last = event.outcome is not None
                await send({"type": "http.response.body", "body": _sse(event), "more_body": not last})

    def _fetches(self, headers: list[tuple[bytes, bytes]]) -> list[Awaitable[None]]:
        """Give what to wait for before the caller can be told: an issuer's keys, at first and when they are new."""
        waits: list[Awaitable[None]] = []
        for one in self._served:
            compiled = one.loaded()
            if compiled is not None and compiled.identities.tokens is not None:
                fetch = compiled.identities.look(presented_key(headers))
                if fetch is not None:
                    waits.append(fetch)
        return waits

    def _known(self, headers: list[tuple[bytes, bytes]], *, local: bool) -> list[Caller]:
        """Give the releases that know the caller. One without identities is for loopback, wherever the server listens.

        Raises:
            HttpError: none does, or nothing is loaded.
        """
        loaded = [(one, compiled) for one in self._served if (compiled := one.loaded()) is not None]
        if not loaded:
            raise http_error(503, "not_ready", "No release is loaded here.", fix="See /readyz.")
        found: list[Caller] = []
        strangers: list[Stranger] = []
        for one, compiled in loaded:
            if compiled.identities or (local and not sent_by_a_page_elsewhere(header_of(headers, b"origin"))):
                identity = compiled.identities.of(presented_key(headers))
                if isinstance(identity, Identity):
                    found.append(Caller(one, compiled, identity))
                else:
                    strangers.append(identity)
        if not found:
            raise _unknown(strangers)
        return found

    async def _callers(self, request: HttpRequest) -> list[Caller]:
        """Give the releases that know the caller, for paths that Starlette dispatches."""
        headers: list[tuple[bytes, bytes]] = request.scope["headers"]
        check_headers(headers)
        for fetch in self._fetches(headers):
            await fetch
        return self._known(headers, local=arrived_locally(request.scope) and named_locally(header_of(headers, b"host")))

    async def _is_known(self, request: HttpRequest) -> bool:
        """Say whether it is this machine or a caller that some release knows."""
        if arrived_locally(request.scope) and named_locally(header_of(request.scope["headers"], b"host")):
            return True
        try:
            return bool(await self._callers(request))
        except HttpError:
            return False

    async def _body(self, request: HttpRequest) -> bytes | None:
        """Read a body within the server's bounds; ``None`` when the caller went away."""
        return await read_body(request.scope["headers"], request.receive, self._body_seconds)

    # ------------------------------------------------------------ the rest

    async def _releases(self, request: HttpRequest) -> JSONResponse:
        whole = await self._is_known(request)
        return JSONResponse({"releases": [_state(one, whole=whole) for one in self._served]})

    async def _health(self, _: HttpRequest) -> JSONResponse:
        return JSONResponse({"status": "alive"})

    async def _ready(self, request: HttpRequest) -> JSONResponse:
        ready = bool(self._served) and all(one.loaded() is not None for one in self._served)
        whole = await self._is_known(request)
        states = [_state(one, whole=whole) for one in self._served]
        return JSONResponse(
            {"status": "ready" if ready else "not ready", "environments": states}, status_code=200 if ready else 503
        )

    async def _look(self, _: HttpRequest) -> Response:
        text = await asyncio.to_thread(self._metrics.text, self._served, datetime.now(UTC))
        return Response(text, media_type="text/plain; version=0.0.4")

    async def _openapi(self, _: HttpRequest) -> JSONResponse:
        return JSONResponse(self._document)


def _unknown(strangers: Sequence[Stranger]) -> HttpError:
    if not strangers:
        return http_error(
            401,
            "unauthenticated",
            "Only callers on this machine are answered here.",
            why="No identities are configured, so that any claim would be believed; and the request came from "
            "elsewhere, from a web page, or names another host than 127.0.0.1 or localhost.",
            fix="Bind identities in the environment's bindings, or call it as 127.0.0.1.",
        )
    later = next((one for one in strangers if one.later), None)
    if later is not None:
        return http_error(
            503,
            "identity_unavailable",
            "The token cannot be verified now.",
            why=later.why,
            fix="Try again in some seconds.",
        )
    return http_error(
        401,
        "unauthenticated",
        "The request carries no API key or token that is known here.",
        why="; ".join(dict.fromkeys(one.why for one in strangers)),
        fix="Send it as Authorization: Bearer KEY, or as x-api-key.",
    )


def _choose(request: Request, found: list[Caller], app: bytes | None) -> Caller:
    """Give the environment that a request is for: of the app that ``x-app`` names, else that has the task."""
    wanted = app.decode("latin-1") if app is not None else None
    if wanted is not None:
        found = [one for one in found if wanted in (one.served.app, one.served.name)]
        if not found:
            raise http_error(406, "unknown_app", f"The app {wanted} is not served here.", fix="See /v1/releases.")
    if len(found) == 1:
        return found[0]
    with_task = [one for one in found if request.task in one.compiled.tasks]
    if len(with_task) == 1:
        return with_task[0]
    names = [one.served.name for one in with_task or found]
    reason = "several of what is served here have this task" if with_task else "nothing served here has this task"
    fix = f"Name one with its environment in the header x-app, e.g. x-app: {names[0]}"
    raise HttpError(422, problem(ContractError([("task", f"{reason}: {', '.join(names)}")], fix=fix)))


def _state(one: Served, *, whole: bool) -> dict[str, Any]:
    """Give what is served and since when; ``whole``: also what went wrong, which names stores, folders and signers."""
    compiled, status = one.loaded(), one.status()
    state: dict[str, Any] = {"app": one.app, "environment": one.environment, "ready": compiled is not None}
    if compiled is not None:
        state["release"] = compiled.ref.form()
        state["rollback_target"] = one.rollback_target
    if status is not None:
        state |= {
            "serial": status.serial,
            "since": status.since.isoformat() if status.since else None,
            "last_poll": status.last_poll.isoformat() if status.last_poll else None,
            "stale": status.stale,
        }
        if whole:
            state |= {"last_error": status.last_error, "stopped": status.stopped, "alarms": list(status.alarms)}
    return state


def _caching(one: Caller, headers: list[tuple[bytes, bytes]]) -> Caching:
    return "use" if one.compiled.caching is None else caching_of(headers)


async def _gone(receive: Receive) -> None:
    """End when the caller has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _sse(event: Event) -> bytes:
    return b"event: " + event.kind.encode() + b"\ndata: " + to_json(event.data) + b"\n\n"


async def _not_found(request: HttpRequest, _: Exception) -> JSONResponse:
    error = http_error(404, "not_found", f"There is nothing at {request.url.path}.", fix="See /openapi.json.")
    return JSONResponse(error.body, status_code=404)


async def _http_error(_: HttpRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, HttpError)
    headers = {"connection": "close"} if error.status in _UNREAD else {}
    return JSONResponse(error.body, error.status, headers | (CHALLENGE if error.status == 401 else {}))


async def _not_allowed(request: HttpRequest, raised: Exception) -> JSONResponse:
    assert isinstance(raised, HTTPException)
    error = http_error(405, "method_not_allowed", f"{request.method} is not for {request.url.path}.")
    return JSONResponse(error.body, 405, raised.headers)
