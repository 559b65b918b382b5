"""A model server on 127.0.0.1 that speaks OpenAI chat completions, scripted to misbehave request by request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.support.started import started

STALL = 30.0
"""Seconds of a stall: longer than any deadline in the tests; the server's end cuts it short."""


@dataclass(frozen=True)
class Say:
    """Answer with this text; a stream sends it in pieces of ``piece`` characters."""

    text: str
    piece: int = 5
    model: str = "fake-model-0125"
    finish: str = "stop"


@dataclass(frozen=True)
class Fail:
    """Answer with a status and an OpenAI-style error."""

    status: int
    code: str = "server_error"
    message: str = "the server is unwell"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stall:
    """Stop before the headers, before the first token (headers are sent), or after ``after`` characters."""

    where: str = "headers"
    text: str = "An answer that never"
    seconds: float = STALL


@dataclass(frozen=True)
class Cut:
    """Stream some text, then end. ``abrupt`` closes the connection in the middle of the chunked body."""

    text: str = "Half an ans"
    abrupt: bool = False


@dataclass(frozen=True)
class Raw:
    """Answer 200 with these bytes."""

    body: bytes
    content_type: str = "application/json"


@dataclass(frozen=True)
class Refuse:
    """Answer with the model's own refusal."""


@dataclass(frozen=True)
class Drip:
    """Answer, but so slowly: a piece of ``piece`` characters (a whole reply: bytes) every ``every`` seconds."""

    text: str = "An answer that comes drop by drop, and takes longer than anybody waits for it."
    every: float = 0.1
    piece: int = 1


@dataclass(frozen=True)
class Huge:
    """Answer with ``size`` characters of text."""

    size: int = 6 * 1024 * 1024

    @property
    def text(self) -> str:
        return "words and " * (self.size // 10)


@dataclass(frozen=True)
class Hangup:
    """Close the connection without a word."""


Step = Say | Fail | Stall | Cut | Raw | Refuse | Drip | Huge | Hangup


def throttle(retry_after: str | None = "0") -> Fail:
    """Answer 429."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return Fail(429, "rate_limit_exceeded", "slow down", headers)


class FakeModels:
    """The server: steps are used up one per request; then ``default`` answers. ``requests`` holds the bodies."""

    def __init__(self) -> None:
        self.script: deque[Step] = deque()
        self.default: Step = Say("Use promote [1].")
        self.delay = 0.0  # seconds before every answer
        self.by_model: dict[str, Step] = {}
        self.reply: Callable[[dict[str, Any]], Step] | None = None  # from the request's body, before the script
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.base_url = ""
        self._ending = asyncio.Event()

    def then(self, *steps: Step) -> FakeModels:
        self.script.extend(steps)
        return self

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        if self.delay:
            await asyncio.sleep(self.delay)
        if body["model"] in self.by_model:
            step = self.by_model[body["model"]]
        elif self.reply is not None:
            step = self.reply(body)
        else:
            step = self.script.popleft() if self.script else self.default
        if isinstance(step, Fail):
            error = {"error": {"message": step.message, "type": step.code, "code": step.code}}
            return web.json_response(error, status=step.status, headers=step.headers)
        if isinstance(step, Raw):
            return web.Response(body=step.body, content_type=step.content_type)
        if isinstance(step, Stall) and step.where == "headers":
            await self._stall(step.seconds)
            return web.json_response(_whole(Say("too late"), body))
        if isinstance(step, Hangup):
            return hung_up(request)
        if body.get("stream"):
            return await self._stream(request, step)
        if isinstance(step, Drip):
            return await dripped(request, step, json.dumps(_whole(step, body)).encode(), self._ending)
        if isinstance(step, Stall | Cut):
            return await self._partial(request, step, body)
        return web.json_response(_whole(step, body))

    async def _partial(self, request: web.Request, step: Stall | Cut, body: dict[str, Any]) -> web.StreamResponse:
        """Start a JSON body and stall in it, or close the connection."""
        data = json.dumps(_whole(Say(step.text), body)).encode()
        response = web.StreamResponse(headers={"content-type": "application/json", "content-length": str(len(data))})
        await response.prepare(request)
        await response.write(data[: len(data) // 2])
        if isinstance(step, Stall):
            await self._stall(step.seconds)
        assert request.transport is not None
        request.transport.close()
        return response

    async def _stream(self, request: web.Request, step: Step) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        model = step.model if isinstance(step, Say) else "fake-model-0125"

        async def event(value: dict[str, Any]) -> None:
            await response.write(b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n")

        def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return {"object": "chat.completion.chunk", "model": model, "choices": [choice]}

        await response.write(b": keep-alive\n\n")
        await event(chunk({"role": "assistant", "content": ""}))
        if isinstance(step, Stall) and step.where == "first_token":
            await self._stall(step.seconds)
        if isinstance(step, Refuse):
            await event(chunk({"refusal": "I cannot help with that."}))
        text = step.text if isinstance(step, Say | Stall | Cut | Drip | Huge) else ""
        piece = step.piece if isinstance(step, Say | Drip) else 65536 if isinstance(step, Huge) else 5
        for start in range(0, len(text), piece):
            await event(chunk({"content": text[start : start + piece]}))
            if isinstance(step, Drip):
                await self._stall(step.every)
        if isinstance(step, Stall):
            await self._stall(step.seconds)
        if isinstance(step, Cut):
            if step.abrupt:
                assert request.transport is not None
                request.transport.close()
            return response
        await event(chunk({}, step.finish if isinstance(step, Say) else "stop"))
        await event({"object": "chat.completion.chunk", "model": model, "choices": [], "usage": _usage(text)})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _stall(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), seconds)


def hung_up(request: web.Request) -> web.StreamResponse:
    """Close the connection of a request that has no answer yet."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def dripped(request: web.Request, step: Drip, data: bytes, ending: asyncio.Event) -> web.StreamResponse:
    """Send a JSON body in drops, until the end of it or of the server."""
    response = web.StreamResponse(headers={"content-type": "application/json", "content-length": str(len(data))})
    await response.prepare(request)
    for start in range(0, len(data), step.piece):
        await response.write(data[start : start + step.piece])
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ending.wait(), step.every)
            break
    return response


def _usage(text: str) -> dict[str, int]:
    return {"prompt_tokens": 100, "completion_tokens": max(1, len(text) // 4), "total_tokens": 0}


def _whole(step: Step, body: dict[str, Any]) -> dict[str, Any]:
    text = step.text if isinstance(step, Say | Stall | Cut | Drip | Huge) else ""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if isinstance(step, Refuse):
        message = {"role": "assistant", "content": None, "refusal": "I cannot help with that."}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": step.model if isinstance(step, Say) else "fake-model-0125",
        "choices": [
            {"index": 0, "message": message, "finish_reason": step.finish if isinstance(step, Say) else "stop"}
        ],
        "usage": _usage(text),
    }


@contextlib.asynccontextmanager
async def fake_models(*, tls: ssl.SSLContext | None = None) -> AsyncIterator[FakeModels]:
    """Run the server on a free port of 127.0.0.1; ``base_url`` ends in ``/v1``, and is https with ``tls``."""
    fake = FakeModels()
    app = web.Application(client_max_size=2**24)
    app.router.add_post("/v1/chat/completions", fake._chat)
    async with started(app, tls=tls, ending=fake._ending.set) as url:
        fake.base_url = f"{url}/v1"
        yield fake


@contextlib.contextmanager
def fake_models_in_a_thread() -> Iterator[FakeModels]:
    """Run the server beside a test that runs event loops of its own, as actions do."""
    started: list[FakeModels] = []
    ready, loop = threading.Event(), asyncio.new_event_loop()
    ending = asyncio.Event()

    async def serve() -> None:
        async with fake_models() as fake:
            started.append(fake)
            ready.set()
            await ending.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    try:
        if not ready.wait(10):
            raise RuntimeError("the model server did not start")
        yield started[0]
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join(10)
        loop.close()
