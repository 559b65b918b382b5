"""Bedrock Runtime and SageMaker Runtime on 127.0.0.1: real event-stream frames, checked signatures, scripted faults.

It takes the same steps as :mod:`tests.support.fake_models` and those of its own that only event streams have.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import struct
import zlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from aiohttp import web

from tests.support.fake_models import Cut, Drip, Fail, Hangup, Huge, Raw, Stall, dripped, hung_up
from tests.support.started import started

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
KEY = "AKIDEXAMPLE"
API_KEY = "bedrock-api-key-of-tests"
USAGE = {"inputTokens": 100, "outputTokens": 7, "totalTokens": 107}


@dataclass(frozen=True)
class Answer:
    """Answer with this text, or with ``tool`` as what a tool is called with; ``also`` is merged into the reply."""

    text: str = "Use promote [1]."
    piece: int = 5
    stop: str = "end_turn"
    tool: dict[str, Any] | None = None
    usage: dict[str, Any] = field(default_factory=lambda: dict(USAGE))
    also: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StreamError:
    """Stream some text, then an exception frame (``modeled``) or an error frame."""

    code: str
    text: str = "Half an ans"
    details: dict[str, Any] = field(default_factory=dict)
    modeled: bool = True


@dataclass(frozen=True)
class BadFrame:
    """Stream some text, then a frame with a wrong checksum (``crc``, ``prelude``), cut, or without a type."""

    how: str = "crc"
    text: str = "Half an ans"


@dataclass(frozen=True)
class Without:
    """Stream the whole answer but for these events."""

    events: tuple[str, ...]
    text: str = "Whole it seems"


Step = Answer | Fail | Stall | Cut | Raw | StreamError | BadFrame | Without | Drip | Huge | Hangup


def aws_failure(code: str, status: int, message: str = "SECRET PROMPT ECHO", **headers: str) -> Fail:
    """Answer with an error as AWS's REST-JSON services write them."""
    return Fail(status, code, message, headers)


def frame(headers: dict[str, str], payload: bytes) -> bytes:
    """Encode one message of ``application/vnd.amazon.eventstream``."""
    head = b""
    for name, value in headers.items():
        raw = value.encode()
        head += struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(raw)) + raw
    prelude = struct.pack("!II", 16 + len(head) + len(payload), len(head))
    body = prelude + struct.pack("!I", zlib.crc32(prelude)) + head + payload
    return body + struct.pack("!I", zlib.crc32(body))


def event(kind: str, value: Any) -> bytes:
    """Encode an event; bytes stay as they are, the rest becomes JSON."""
    binary = isinstance(value, bytes)
    content_type = "application/octet-stream" if binary else "application/json"
    headers = {":event-type": kind, ":content-type": content_type, ":message-type": "event"}
    return frame(headers, value if binary else json.dumps(value).encode())


@dataclass
class Seen:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


async def _nowhere(seen: Seen) -> dict[str, str]:
    return {}


class FakeBedrock:
    """The server: steps are used up one per request; then ``default`` answers."""

    def __init__(self) -> None:
        self.script: deque[Step] = deque()
        self.default: Step = Answer()
        self.seen: list[Seen] = []
        self.secrets = {KEY: SECRET}
        self.url = ""
        self.accept: Callable[[Seen], Awaitable[dict[str, str]]] = _nowhere
        """Takes an asynchronous invocation and gives the headers of its answer."""
        self.connections = 0
        self._transports: set[int] = set()
        self._ending = asyncio.Event()

    def then(self, *steps: Step) -> FakeBedrock:
        self.script.extend(steps)
        return self

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        data = await request.read()
        if id(request.transport) not in self._transports:
            self._transports.add(id(request.transport))
            self.connections += 1
        path = request.raw_path
        wrong = _authorization_problem(request, data, self.secrets)
        self.seen.append(Seen(path, dict(request.headers), json.loads(data or b"{}")))
        if wrong:
            return _error(Fail(403, "InvalidSignatureException", wrong))
        _, kind, _, operation = path.split("/", 3)
        if operation == "async-invocations" and not self.script:
            return web.json_response({"InferenceId": "i1"}, status=202, headers=await self.accept(self.seen[-1]))
        step = self.script.popleft() if self.script else self.default
        if isinstance(step, Fail):
            return _error(step)
        if isinstance(step, Raw):
            return web.Response(body=step.body, content_type=step.content_type)
        if isinstance(step, Stall) and step.where == "headers":
            await self._stall(step.seconds)
            return web.json_response({})
        if isinstance(step, Hangup):
            return hung_up(request)
        if operation.endswith("stream"):
            return await self._stream(request, step, bedrock=kind == "model")
        value = converse_value(step) if kind == "model" else _chat(step, path)
        if isinstance(step, Stall | Cut):
            return await self._partial(request, step, json.dumps(value).encode())
        if isinstance(step, Drip):
            return await dripped(request, step, json.dumps(value).encode(), self._ending)
        return web.json_response(value)

    async def _partial(self, request: web.Request, step: Stall | Cut, data: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "application/json", "content-length": str(len(data))})
        await response.prepare(request)
        await response.write(data[: len(data) // 2])
        if isinstance(step, Stall):
            await self._stall(step.seconds)
        assert request.transport is not None
        request.transport.close()
        return response

    async def _stream(self, request: web.Request, step: Step, *, bedrock: bool) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "application/vnd.amazon.eventstream"})
        await response.prepare(request)
        events = list(converse_events(step) if bedrock else _sse_events(step))
        if isinstance(step, Stall) and step.where == "first_token":
            await response.write(events[0] if bedrock else b"")
            await self._stall(step.seconds)
        for one in events:
            await response.write(one)
            if isinstance(step, Drip):
                await self._stall(step.every)
        if isinstance(step, Stall):
            await self._stall(step.seconds)
        if isinstance(step, StreamError):
            kind = ("exception", "exception-type") if step.modeled else ("error", "error-code")
            headers = {":message-type": kind[0], f":{kind[1]}": step.code, ":content-type": "application/json"}
            await response.write(frame(headers, json.dumps({"message": "SECRET", **step.details}).encode()))
        if isinstance(step, BadFrame):
            await response.write(_damaged(step.how))
        if isinstance(step, Cut) and step.abrupt:
            assert request.transport is not None
            request.transport.close()
        return response

    async def _stall(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), seconds)


def _damaged(how: str) -> bytes:
    good = event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "more"}})
    if how == "crc":
        return good[:-1] + bytes([good[-1] ^ 1])
    if how == "prelude":
        return bytes([good[0] ^ 1]) + good[1:]
    if how == "payload":
        return good.replace(b"more", b"less")
    if how == "cut":
        return good[:-7]
    if how == "untyped":
        return frame({":content-type": "application/json"}, b"{}")
    if how == "not json":
        return event("contentBlockDelta", b"{nonsense")
    return b"HTTP/1.1 502 Bad Gateway\r\n\r\n" * 4


def _text(step: Step) -> str:
    return "" if isinstance(step, Fail | Raw | Hangup) else step.text


def _piece(step: Step) -> int:
    return step.piece if isinstance(step, Answer | Drip) else 65536 if isinstance(step, Huge) else 5


def converse_value(step: Step) -> dict[str, Any]:
    answer = step if isinstance(step, Answer) else Answer(_text(step))
    content: list[dict[str, Any]] = [{"text": answer.text}] if answer.text else []
    if answer.tool is not None:
        content.append({"toolUse": {"toolUseId": "t1", "name": "answer", "input": answer.tool}})
    return {
        "output": {"message": {"role": "assistant", "content": content}},
        "stopReason": answer.stop,
        "usage": answer.usage,
        "metrics": {"latencyMs": 250},
        **answer.also,
    }


def converse_events(step: Step) -> list[bytes]:
    answer = step if isinstance(step, Answer) else Answer(_text(step), _piece(step))
    left_out = step.events if isinstance(step, Without) else ()
    unfinished = not isinstance(step, Answer | Without | Drip | Huge)
    start = answer.piece
    events = [("messageStart", {"role": "assistant"})]
    pieces = [answer.text[at : at + start] for at in range(0, len(answer.text), start)]
    events += [("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": piece}}) for piece in pieces]
    if answer.tool is not None:
        events.append(
            ("contentBlockStart", {"contentBlockIndex": 1, "start": {"toolUse": {"toolUseId": "t1", "name": "answer"}}})
        )
        raw = json.dumps(answer.tool)
        events += [
            ("contentBlockDelta", {"contentBlockIndex": 1, "delta": {"toolUse": {"input": raw[at : at + start]}}})
            for at in range(0, len(raw), start)
        ]
    if not unfinished:
        metadata = {"usage": answer.usage, "metrics": {"latencyMs": 250}, **answer.also}
        events += [
            ("contentBlockStop", {"contentBlockIndex": 0}),
            ("messageStop", {"stopReason": answer.stop}),
            ("metadata", metadata),
        ]
    return [event(kind, value) for kind, value in events if kind not in left_out]


def _chat(step: Step, path: str) -> dict[str, Any]:
    return {
        "model": path,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": _text(step)}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 7},
    }


def _sse_events(step: Step) -> list[bytes]:
    """Give a container's server-sent events in payload parts that are cut without regard to lines."""
    text, piece = _text(step), _piece(step)
    chunks = [
        {"choices": [{"index": 0, "delta": {"content": text[at : at + piece]}}]} for at in range(0, len(text), piece)
    ]
    if isinstance(step, Answer | Without | Drip | Huge):
        chunks.append({"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 7}})
    data = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)
    if isinstance(step, Answer | Drip | Huge):
        data += b"data: [DONE]\n\n"
    size = 65536 if isinstance(step, Huge) else 37
    return [event("PayloadPart", data[at : at + size]) for at in range(0, len(data), size)]


def _error(step: Fail) -> web.Response:
    headers = {"x-amzn-errortype": f"{step.code}:http://internal.amazon.com/coral/com.amazon.bedrock/", **step.headers}
    body = {"message": step.message}
    if step.code == "ModelError":
        body |= {"OriginalStatusCode": int(step.headers.get("Original", "500")), "OriginalMessage": "SECRET"}
    return web.json_response(body, status=step.status, headers=headers)


# ---------------------------------------------------------------- signatures


def _authorization_problem(request: web.Request, body: bytes, secrets: dict[str, str]) -> str:
    """Check an AWS signature, version 4, as the documentation writes it; nothing here comes from botocore."""
    given = request.headers.get("Authorization", "")
    if given == f"Bearer {API_KEY}":
        return ""
    scheme, _, rest = given.partition(" ")
    if scheme != "AWS4-HMAC-SHA256":
        return "no signature"
    fields = dict(part.strip().split("=", 1) for part in rest.split(","))
    key, date, region, service, _ = fields["Credential"].split("/")
    names = fields["SignedHeaders"].split(";")
    needed = {"host", "x-amz-date"} | ({"content-type"} & {name.lower() for name in request.headers})
    if key not in secrets or not needed <= set(names):
        return "not signed with what is known"
    path = quote(request.raw_path, safe="/-._~")
    headers = "".join(f"{name}:{request.headers[name].strip()}\n" for name in names)
    canonical = "\n".join(["POST", path, "", headers, ";".join(names), hashlib.sha256(body).hexdigest()])
    scope = f"{date}/{region}/{service}/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = "\n".join(["AWS4-HMAC-SHA256", request.headers["x-amz-date"], scope, digest])
    signing = f"AWS4{secrets[key]}".encode()
    for part in (date, region, service, "aws4_request"):
        signing = hmac.digest(signing, part.encode(), "sha256")
    expected = hmac.digest(signing, to_sign.encode(), "sha256").hex()
    return "" if hmac.compare_digest(expected, fields["Signature"]) else "wrong signature"


def model_of(path: str) -> str:
    """Give the model or endpoint that a path names."""
    return unquote(path.split("/")[2])


@contextlib.asynccontextmanager
async def fake_bedrock() -> AsyncIterator[FakeBedrock]:
    """Run the server on a free port of 127.0.0.1."""
    fake = FakeBedrock()
    app = web.Application(client_max_size=2**24)
    app.router.add_post("/{path:.*}", fake._handle)
    async with started(app, ending=fake._ending.set) as fake.url:
        yield fake
