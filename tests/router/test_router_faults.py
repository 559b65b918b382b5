"""What a caller gets when a model misbehaves, as a table: docs/router-faults.md holds it, and is compared with it.

Every row is one request over a socket to the server, and the server's calls over sockets to a model server that does
what the row says, each time it is asked. ``UPDATE_GOLDEN=1`` writes the table anew.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bundlectl.model.components import Model, Route, Routes, Rule, When
from bundlectl.model.receipt import Receipt
from bundlectl.router.router import Router
from bundlectl.router.served import Served
from bundlectl.router.server import Server
from tests.router.test_router_server import body, serving
from tests.support.answering import NOW, Setting, parts, setting
from tests.support.certificates import self_signed
from tests.support.fake_bedrock import KEY, SECRET, BadFrame, FakeBedrock, StreamError, Without, fake_bedrock
from tests.support.fake_bedrock import Answer as BedrockAnswer
from tests.support.fake_models import (
    Cut,
    Drip,
    Fail,
    FakeModels,
    Hangup,
    Huge,
    Raw,
    Refuse,
    Say,
    Stall,
    fake_models,
    throttle,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "router-faults.md"
BEGIN, END = "<!-- written by tests/router/test_router_faults.py -->\n", "<!-- end of the table -->\n"
LONG = "A plain sentence of words that goes on. " * 40
DEADLINES: dict[str, dict[str, Any]] = {
    "patient": {"timeout": "60s"},
    "hasty": {"timeout": "500ms"},
    "first": {"timeout": "60s", "first_token": "400ms"},
    "between": {"timeout": "60s", "between_tokens": "1500ms"},
}
PATHS = ("OpenAI", "Bedrock", "SageMaker")


@dataclass(frozen=True, eq=False)
class Fault:
    """What a model does, at every call or (``once``) at the first; ``aws``: what is that in Bedrock's words."""

    name: str
    does: Any
    aws: Any = None
    once: bool = False
    modes: Sequence[str] = ("whole", "stream")
    whole: str = "patient"
    """Which of the deadlines is right for it, asked for a whole answer and for a stream."""
    stream: str = "patient"
    paths: Sequence[str] = PATHS
    place: str = ""
    """Where the model is instead of at the fake server: ``tls``, ``plain``, ``dns`` or ``port``."""

    def step(self, path: str) -> Any:
        return self.does if path == "OpenAI" or self.aws is None else self.aws


def _aws(code: str, status: int, **headers: str) -> Fail:
    return Fail(status, code, "SECRET PROMPT ECHO", headers)


def _sse(text: str) -> Raw:
    return Raw(text.encode(), "text/event-stream")


HALF = b'data: {"choices": [{"index": 0, "delta": {"content": "Half an ans"}}]}\n\n'
FAULTS = [
    Fault("none", Say("Use promote [1]."), BedrockAnswer("Use promote [1].")),
    Fault("429 once, Retry-After: 0", throttle("0"), _aws("ThrottlingException", 429, **{"Retry-After": "0"}), True),
    Fault("429 always", throttle(None), _aws("ThrottlingException", 429)),
    Fault("429, Retry-After: one hour", throttle("3600"), _aws("ThrottlingException", 429, **{"Retry-After": "3600"})),
    Fault("500 always", Fail(500), _aws("InternalServerException", 500)),
    Fault("503 once", Fail(503), _aws("ServiceUnavailableException", 503), True),
    Fault("400", Fail(400, "invalid_request_error"), _aws("ValidationException", 400)),
    Fault("401 or 403: the credential is wrong", Fail(401, "invalid_api_key"), _aws("AccessDeniedException", 403)),
    Fault("302 to somewhere else", Fail(302, headers={"Location": "http://127.0.0.1:9/"})),
    Fault("the model's own refusal", Refuse(), BedrockAnswer("No.", stop="guardrail_intervened"), paths=PATHS[:2]),
    Fault("stalls before the headers", Stall(), whole="hasty", stream="first"),
    Fault("stalls in the body", Stall("body"), modes=("whole",), whole="hasty"),
    Fault("stalls before the first token", Stall("first_token"), modes=("stream",), stream="first"),
    Fault("stalls after some tokens", Stall("stream", "Half an ans"), modes=("stream",), stream="between"),
    Fault("stalls after much text", Stall("stream", LONG), modes=("stream",), stream="between"),
    Fault("slow drip, longer than the timeout", Drip(every=0.05), whole="hasty", stream="hasty"),
    Fault("closes the connection at once", Hangup()),
    Fault("cut body", Cut(), modes=("whole",)),
    Fault("stream ends without its end marker", Cut(), Without(("metadata",)), modes=("stream",)),
    Fault("the same, after much text", Cut(LONG), modes=("stream",)),
    Fault("stream's connection is cut", Cut(abrupt=True), modes=("stream",)),
    Fault("the same, after much text", Cut(LONG, abrupt=True), modes=("stream",)),
    Fault("not JSON", Raw(b"<html>502</html>"), modes=("whole",)),
    Fault("JSON of another form", Raw(b'{"hello": []}'), modes=("whole",)),
    Fault(
        "an event that is not JSON",
        _sse("data: {nonsense\n\n"),
        BadFrame("not json"),
        modes=("stream",),
        paths=PATHS[:2],
    ),
    Fault(
        "an event with an error",
        _sse('data: {"error": {"message": "SECRET"}}\n\n'),
        StreamError("throttlingException"),
        modes=("stream",),
        paths=PATHS[:2],
    ),
    Fault("not a stream at all", Raw(b"<html>502</html>", "text/html"), modes=("stream",)),
    *(
        Fault(f"a frame {what}", None, BadFrame(how), modes=("stream",), paths=PATHS[1:])
        for how, what in (
            ("crc", "with a wrong checksum"),
            ("prelude", "with a wrong length"),
            ("cut", "that is cut"),
            ("untyped", "without a type"),
        )
    ),
    Fault("6 MiB of answer", Huge()),
    Fault("certificate nobody vouches for", Say(""), place="tls", paths=PATHS[:1]),
    Fault("no TLS where it should be", Say(""), place="plain", paths=PATHS[:1]),
    Fault("name that does not resolve", Say(""), place="dns", paths=PATHS[:1]),
    Fault("nobody listens", Say(""), place="port", paths=PATHS[:1]),
]


@dataclass(frozen=True)
class Row:
    """What came of one request."""

    status: int
    answer: dict[str, Any]
    events: tuple[str, ...]
    receipt: Receipt
    calls: int

    def got(self) -> str:
        """Say what the caller got."""
        told = self.answer
        if "error" in told:
            said = f"error `{told['error']}`"
        elif "refused" in told:
            said = f"refused, `{told['refused']['code']}`"
        else:
            said = "answer" + (f" of route `{told['route']}`, degraded" if "degraded" in told else "")
        if not self.events:
            return said
        return f"{'text, then ' if 'delta' in self.events and 'error' in told else ''}{said}"

    def attempts(self) -> str:
        """Say what the receipt says of the model's route."""
        named = [
            f"{one.outcome}{f' ({one.why})' if one.why else ''}"
            for one in self.receipt.attempts
            if one.model == "small"
        ]
        return ", ".join(f"{named.count(one)} x {one}" for one in dict.fromkeys(named))


def _app(path: str) -> dict[str, Any]:
    """Give an app whose tenants are named for the deadlines of their routes; ``alone-`` is without a fallback."""
    values = parts()
    if path == "Bedrock":
        values["models"]["small"] = Model(provider="bedrock", model="amazon.nova-lite-v1:0")
    elif path == "SageMaker":
        values["models"]["small"] = Model(provider="sagemaker", model="own-endpoint")
    routes = {"last": Route(model="plain")}
    for name, deadlines in DEADLINES.items():
        routes[name] = Route(model="small", retries=1, fallback=["last"], **deadlines)
        routes[f"alone-{name}"] = Route(model="small", retries=1, **deadlines)
    rules = [Rule(when=When(tenant=name), use=name) for name in routes if name != "last"]
    values["routes"] = Routes(routes=routes, select=[*rules, Rule(use="last")])
    return values


class Bench:
    """A server, and behind it a model server that does what it is told."""

    def __init__(self, fake: FakeModels | FakeBedrock, s: Setting) -> None:
        self.client: aiohttp.ClientSession
        self._fake, self._s = fake, s
        self._server: Server

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._server(scope, receive, send)

    @property
    def _calls(self) -> int:
        return len(self._fake.requests if isinstance(self._fake, FakeModels) else self._fake.seen)

    async def ask(self, fault: Fault, path: str, mode: str, *, fallback: bool = True) -> Row:
        """Ask once, as if nothing had been asked before."""
        s, fake = self._s, self._fake
        for breaker in s.compiled.breakers.values():
            breaker.succeeded()
        router = Router(lambda: s.compiled, s.receipts, lambda: NOW, chance=lambda: 0.0)
        self._server = Server([Served("support", "prod", lambda: s.compiled, router)])
        good = Say("Use promote [1].") if isinstance(fake, FakeModels) else BedrockAnswer("Use promote [1].")
        fake.default = good if fault.once else fault.step(path)  # type: ignore[assignment]
        if fault.once:
            fake.then(fault.step(path))
        before = self._calls
        tenant = ("" if fallback else "alone-") + (fault.stream if mode == "stream" else fault.whole)
        accept = "text/event-stream" if mode == "stream" else "application/json"
        asked = body(tenant_id=tenant)
        async with self.client.post("/v1/requests", json=asked, headers={"accept": accept}) as response:
            if response.content_type == "application/json":
                kinds, answer = (), await response.json()
            else:
                kinds, answer = await _events(response)
        receipt = s.receipts.kept.pop()
        assert not s.receipts.kept and "SECRET" not in receipt.model_dump_json()
        return Row(response.status, answer, kinds, receipt, self._calls - before)


@asynccontextmanager
async def bench(path: str, place: str, folder: Path) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        fake: FakeModels | FakeBedrock
        if path == "OpenAI":
            fake = await stack.enter_async_context(fake_models(tls=self_signed(folder) if place == "tls" else None))
            others = {
                "dns": "http://models.invalid/v1",
                "plain": fake.base_url.replace("http://", "https://"),
                "port": "http://127.0.0.1:9/v1",
            }
            address = others.get(place, fake.base_url)
        else:
            fake = await stack.enter_async_context(fake_bedrock())
            address = fake.url
        s = await stack.enter_async_context(setting(address, values=_app(path)))
        made = Bench(fake, s)
        made.client = await stack.enter_async_context(serving(app=made))  # type: ignore[arg-type]
        yield made


async def _events(response: aiohttp.ClientResponse) -> tuple[tuple[str, ...], dict[str, Any]]:
    kinds: list[str] = []
    data = ""
    async for chunk in _lines(response):
        name, _, value = chunk.partition(": ")
        if name == "event":
            kinds.append(value)
        elif name == "data":
            data = value
    assert kinds[-1] in ("done", "error"), "a stream says how it ended"
    return tuple(kinds), json.loads(data)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    for line in (await response.read()).decode().split("\n"):
        yield line


def _markdown(rows: Sequence[tuple[Fault, str, str, Row]]) -> str:
    lines = [
        "| the model | path | asked for | status | the caller gets | the receipt's attempts | calls |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    merged: dict[tuple[str, ...], list[str]] = {}
    for fault, path, mode, row in rows:
        told = (fault.name, mode, str(row.status), row.got(), row.attempts(), str(row.calls))
        merged.setdefault(told, []).append(path)
    for (name, mode, status, got, attempts, calls), paths in merged.items():
        lines.append(f"| {name} | {', '.join(paths)} | {mode} | {status} | {got} | {attempts} | {calls} |")
    return "\n".join(lines) + "\n"


async def test_the_table_of_faults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    cases = [
        (fault, path, mode)
        for fault in FAULTS
        for mode in fault.modes
        for path in fault.paths
        if fault.step(path) is not None
    ]

    async def asked(path: str, place: str) -> dict[tuple[Fault, str, str], Row]:
        async with bench(path, place, tmp_path) as there:
            mine = [case for case in cases if (case[1], case[0].place) == (path, place)]
            return {case: await there.ask(*case) for case in mine}

    found: dict[tuple[Fault, str, str], Row] = {}
    for part in await asyncio.gather(*(asked(*place) for place in {(path, fault.place) for fault, path, _ in cases})):
        found |= part
    rows = [(*case, found[case]) for case in cases]
    for fault, _, mode, row in rows:
        # Whatever a model does: no 5xx where a fallback is left, and not more than one retry.
        assert row.status == 200 and row.calls <= 2, (fault.name, mode, row)
        if "error" in row.answer:
            assert "delta" in row.events, "an error after 200 is for streams whose text the caller has already"
    table = _markdown(rows)
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    held, _, tail = rest.partition(END)
    if os.environ.get("UPDATE_GOLDEN"):
        PAGE.write_text(head + BEGIN + table + END + tail, encoding="utf-8")
    else:
        assert table == held, "if it is meant: UPDATE_GOLDEN=1 pytest tests/router/test_router_faults.py"


ALONE = ("429 always", "500 always", "400", "stalls before the headers", "not JSON", "closes the connection at once")


async def test_without_a_fallback_it_is_an_error_that_says_why(tmp_path: Path) -> None:
    async with bench("OpenAI", "", tmp_path) as there:
        for fault in (one for one in FAULTS if one.name in ALONE):
            for mode in fault.modes:
                row = await there.ask(fault, "OpenAI", mode, fallback=False)
                assert row.answer["error"] == "nothing_answered" and row.answer["receipt"] == row.receipt.id
                assert row.answer["why"].startswith("alone-") and row.receipt.degraded is None
                told = (200, ("start", "error")) if mode == "stream" else (503, ())
                assert (row.status, row.events) == told, fault.name
