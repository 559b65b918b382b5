"""The HTTP server on a real socket: uvicorn, the router, and a model server behind it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import uvicorn

from bundlectl.model.contract import Answer
from bundlectl.model.errors import UsageError, VerificationFailed
from bundlectl.resolver.resolver import Status
from bundlectl.router.http_error import HttpError
from bundlectl.router.loopback import check_bind
from bundlectl.router.messages import MAX_BODY, _plain, _strict
from bundlectl.router.served import Served
from bundlectl.router.server import Server
from tests.support.answering import Setting, contract, setting
from tests.support.fake_models import Cut, Fail, FakeModels, Say, Stall, fake_models

KEY, OTHER = "key-of-acme", "key-of-zenith"
IDENTITIES = {
    "identities": {
        "api_keys": [
            {"id": name, "hash": "sha256:" + hashlib.sha256(key.encode()).hexdigest(), "tenants": [t], "roles": ["*"]}
            for name, key, t in (("a", KEY, "acme"), ("z", OTHER, "zenith"))
        ]
    }
}


@pytest.fixture
async def fake() -> AsyncIterator[FakeModels]:
    async with fake_models() as server:
        yield server


@contextlib.asynccontextmanager
async def serving(*settings: Setting, app: Server | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    made = [Served(s.compiled.ref.app, s.compiled.ref.environment, lambda s=s: s.compiled, s.router) for s in settings]
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app or Server(made), log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.ensure_future(server._serve([listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    base = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        async with aiohttp.ClientSession(base) as client:
            yield client
    finally:
        server.should_exit = True
        await task
        listener.close()


def body(**changes: Any) -> dict[str, Any]:
    return {**contract().form(), **changes}


async def ask(client: aiohttp.ClientSession, value: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    data = io.BytesIO(value if isinstance(value, bytes) else json.dumps(value).encode())
    async with client.post("/v1/requests", data=data, headers=headers) as response:
        assert response.content_type == "application/json"
        return response.status, await response.json()


NAMED = '{"task": "ask", "tenant_id": "acme", "user_role": "agent", "policy_profile": "plain", '


@pytest.mark.parametrize(
    ("rest", "plain"),
    [
        (r'"input": {"question": "Wie geht\u2019s?", "name": ""}}', True),
        ('"data_scope": ["docs"],\n "response_format": null, "input": {"a": "b"}} ', True),
        ('"input": {"question": "Why: this?"}}', False),
        ('"input": {"question": {"a": "b"}}}', False),
        ('"input": {"question": [12, null]}}', False),
        (r'"input": {"question": "half \ud800"}}', False),
    ],
)
def test_the_quick_look_reads_what_the_strict_one_does(rest: str, plain: bool) -> None:
    quick, strict = _plain((NAMED + rest).encode()), _strict((NAMED + rest).encode())
    assert quick == (strict if plain else None)
    assert quick is None or quick.model_fields_set == strict.model_fields_set


@pytest.mark.parametrize(
    "rest",
    [
        '"input": {"a": "b"}, "task" : "ask"}',
        '"input": {"a": "b", "a": "c"}}',
        '"input": {"a": "b"}, "input": {"a": "b", "c": "d"}}',
        '"input": {"a": NaN}}',
        '"input": {"a": "b"}} {}',
        '"input": {"a": "b",}}',
    ],
)
def test_what_is_not_strictly_json_gets_through_neither(rest: str) -> None:
    assert _plain((NAMED + rest).encode()) is None
    with pytest.raises(HttpError) as refused:
        _strict((NAMED + rest).encode())
    assert refused.value.status == 400


async def test_an_answer_over_http(fake: FakeModels) -> None:
    async with setting(fake.base_url) as s, serving(s) as client:
        status, found = await ask(client, body())
        assert status == 200 and Answer.model_validate(found).citations[0].n == 1
        assert found["receipt"] == s.receipts.last.id and s.receipts.last.identity == "local"
        assert "degraded" not in found


STATUS: list[tuple[str, dict[str, Any], int, str]] = [
    ("access denied", {"user_role": "visitor"}, 403, "access_denied"),
    ("blocked input", {"policy_profile": "guarded", "input": {"question": "4111111111111111"}}, 422, "input_blocked"),
    ("no answer", {"data_scope": []}, 200, "no_answer"),
]


@pytest.mark.parametrize(("changes", "status", "code"), [r[1:] for r in STATUS], ids=[r[0] for r in STATUS])
async def test_refusals_are_answers_with_a_status(
    fake: FakeModels, changes: dict[str, Any], status: int, code: str
) -> None:
    async with setting(fake.base_url) as s, serving(s) as client:
        for accept in ("application/json", "text/event-stream"):
            if status == 200 and accept == "text/event-stream":
                continue
            got, found = await ask(client, body(**changes), accept=accept)
            assert got == status and found["refused"]["code"] == code and found["receipt"]


BAD: list[tuple[bytes, int, str, str]] = [
    (b"", 400, "bad_json", "char 0"),
    (b'{"task": }', 400, "bad_json", "line 1 column 10"),
    (b'{"task": "a", "task": "b"}', 400, "bad_json", "duplicate key 'task'"),
    (b"\xff", 400, "bad_json", "utf-8"),
    (b"[" * 100_000, 400, "bad_json", ""),
    (b"[]", 422, "contract", "(body)"),
    (json.dumps(body(task=5)).encode(), 422, "contract", "task"),
    (json.dumps(body(model="mine")).encode(), 422, "contract", "model"),
    (json.dumps(body(data_scope=["docs", "NO"])).encode(), 422, "contract", "data_scope.1"),
    (json.dumps(body(tenant_id="*")).encode(), 422, "contract", "tenant_id"),
    (json.dumps(body(tenant_id="acme\n")).encode(), 422, "contract", "tenant_id"),
    (json.dumps(body(task="unknown")).encode(), 422, "contract", "task"),
    (json.dumps(body(input={})).encode(), 422, "contract", "input"),
    (b'{"x": "' + b"y" * MAX_BODY + b'"}', 413, "too_large", "1048576"),
]


@pytest.mark.parametrize(("data", "status", "code", "names"), BAD)
async def test_bodies_that_do_not_fit(data: bytes, status: int, code: str, names: str) -> None:
    async with setting() as s, serving(s) as client:
        got, found = await ask(client, data)
        assert (got, found["error"]) == (status, code)
        assert names in json.dumps(found) and set(found) >= {"error", "message", "why", "fix"}
        if code == "contract":
            assert names in [field["field"] for field in found["fields"]]
        assert s.receipts.kept == []


async def test_a_chunked_body_is_capped_too() -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 65536

    async with setting() as s, serving(s) as client, client.post("/v1/requests", data=endless()) as response:
        assert response.status == 413


async def test_nothing_could_answer(fake: FakeModels) -> None:
    fake.default = Fail(500)
    chat = body(task="chat", data_scope=[], policy_profile="restricted")
    async with setting(fake.base_url) as s, serving(s) as client:
        status, found = await ask(client, chat)
        assert status == 503 and found["error"] == "nothing_answered"
        assert found["receipt"] == s.receipts.last.id and "restricted: unavailable" in found["why"]


async def test_identities(fake: FakeModels) -> None:
    async with setting(fake.base_url, bindings=None) as open_, serving(open_) as client:
        assert (await ask(client, body()))[0] == 200
    address = {"base_url": fake.base_url}
    bound = {"models": {"small": address, "own": address}, **IDENTITIES}
    async with setting(fake.base_url, bindings=bound) as s, serving(s) as client:
        for headers in ({}, {"x-api-key": "wrong"}, {"authorization": "Basic x"}, {"x-api-key": "k" * 4000}):
            status, found = await ask(client, body(), **headers)
            assert (status, found["error"]) == (401, "unauthenticated") and found["why"]
        assert s.receipts.kept == []
        assert (await ask(client, body(), authorization=f"bearer {KEY}"))[0] == 200
        assert s.receipts.last.identity == "a"
        assert (await ask(client, body(), **{"x-api-key": OTHER}))[0] == 403
        assert KEY not in s.receipts.last.model_dump_json()
        assert (await ask(client, body(tenant_id="zenith"), **{"x-api-key": OTHER}))[0] == 200


async def test_the_bind_check() -> None:
    async with setting() as s:
        for host in ("127.0.0.1", "::1", "localhost", "127.8.0.1"):
            told = check_bind(host, [s.compiled])
            assert told and "support:prod has no identities" in told
        for host in ("0.0.0.0", "::", "10.0.0.5", "example.com", ""):
            with pytest.raises(UsageError, match="may not listen"):
                check_bind(host, [s.compiled])
    bound = {"models": {"small": {"base_url": "http://x"}, "own": {"base_url": "http://x"}}, **IDENTITIES}
    async with setting(bindings=bound) as s:
        assert check_bind("0.0.0.0", [s.compiled]) is None


async def test_a_release_without_identities_stays_on_loopback_wherever_the_server_listens() -> None:
    async def status(address: str | None, host: bytes | None = None, origin: bytes | None = None) -> int:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": json.dumps(body(data_scope=[])).encode(), "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        server = None if address is None else (address, 80)
        headers = [(name, value) for name, value in ((b"host", host), (b"origin", origin)) if value is not None]
        scope = {"type": "http", "method": "POST", "path": "/v1/requests", "headers": headers, "server": server}
        await Server([Served("support", "prod", lambda: s.compiled, s.router)])(scope, receive, send)
        if sent[0]["status"] == 401:
            assert (b"www-authenticate", b"Bearer") in sent[0]["headers"]
            assert "No identities are configured" in json.loads(sent[1]["body"])["why"]
        return int(sent[0]["status"])

    async with setting() as s:
        assert await status("127.0.0.1") == 200
        assert await status("10.0.0.5") == 401
        assert await status(None) == 401
        for name in (b"127.0.0.1", b"127.0.0.1:8080", b"localhost:8080", b"[::1]:8080"):
            assert await status("127.0.0.1", name) == 200, name
        for name in (b"rebound.example.com", b"rebound.example.com:8080", b"127.0.0.1.example.com", b"[::1", b""):
            assert await status("127.0.0.1", name) == 401, "a web page may point its own name at this machine"
        for page, answered in ((b"http://localhost:3000", 200), (b"http://[::1]:3000", 200), (b"null", 401)):
            assert await status("127.0.0.1", b"127.0.0.1:8080", page) == answered, page
        assert await status("127.0.0.1", b"127.0.0.1:8080", b"https://example.com") == 401, "it may not spend either"


async def sse(client: aiohttp.ClientSession, value: Any) -> list[tuple[str, dict[str, Any]]]:
    headers = {"accept": "text/event-stream"}
    async with client.post("/v1/requests", json=value, headers=headers) as response:
        assert response.status == 200 and response.content_type == "text/event-stream"
        blocks = (await response.text()).strip().split("\n\n")
    lines = [block.split("\n") for block in blocks]
    return [(one[0].removeprefix("event: "), json.loads(one[1].removeprefix("data: "))) for one in lines]


async def test_streams(fake: FakeModels) -> None:
    fake.then(Say("Line one\nline two é [1]. " * 60), Cut("words " * 300))
    async with setting(fake.base_url) as s, serving(s) as client:
        found = await sse(client, body())
        assert found[0][0] == "start" and found[-1][0] == "done"
        assert "".join(data["text"] for kind, data in found if kind == "delta") == found[-1][1]["output"]
        broken = await sse(client, body())
        assert broken[-1][0] == "error" and broken[-1][1]["receipt"] == s.receipts.last.id


async def test_a_caller_that_hangs_up_ends_the_call(fake: FakeModels) -> None:
    fake.then(Stall("stream", "words " * 300))
    async with setting(fake.base_url) as s, serving(s) as client:
        headers = {"accept": "text/event-stream"}
        response = await client.post("/v1/requests", json=body(), headers=headers)
        await response.content.readuntil(b"event: delta")
        response.close()
        for _ in range(60):
            if s.receipts.kept:
                break
            await asyncio.sleep(0.01)
        assert s.receipts.last.error == {"error": "cancelled", "stage": "invoke"}


async def test_the_other_paths(fake: FakeModels) -> None:
    async with setting(fake.base_url) as s, serving(s) as client:
        for path, key in (("/healthz", "status"), ("/readyz", "environments"), ("/v1/releases", "releases")):
            async with client.get(path) as response:
                assert response.status == 200 and key in await response.json()
        async with client.get("/v1/releases") as response:
            assert (await response.json())["releases"][0]["release"]["bundle"] == s.bundle.digest
        for method, path, status in (
            ("GET", "/nothing", 404),
            ("POST", "/healthz", 405),
            ("GET", "/v1/requests", 405),
        ):
            async with client.request(method, path) as response:
                assert response.status == status and "error" in await response.json()
                assert bool(response.headers.get("allow")) == (status == 405)
        async with client.get("/openapi.json") as response:
            document = await response.json()
        schemas = document["components"]["schemas"]
        assert "tenant_id" in schemas["Request"]["properties"] and "receipt" in schemas["Answer"]["properties"]
        named = set(json.dumps(document).split('"#/components/schemas/')[1:])
        assert {one.partition('"')[0] for one in named} <= set(schemas)


async def test_strangers_are_not_told_what_went_wrong() -> None:
    status = Status(last_error="s3://secret-bucket is not there", alarms=("signed by bob@corp",))
    async with setting(bindings=IDENTITIES) as s:
        app = Server([Served("support", "prod", lambda: s.compiled, s.router, lambda: status)])
        async with serving(app=app) as client:
            for path in ("/v1/releases", "/readyz"):
                for who, told in (({"host": "elsewhere"}, False), ({"host": "x", "x-api-key": KEY}, True), ({}, True)):
                    async with client.get(path, headers=who) as response:
                        text = await response.text()
                        assert response.status == 200 and s.bundle.digest in text
                    assert ("secret-bucket" in text, "bob@corp" in text) == (told, told), who


async def test_not_ready_until_a_release_is_loaded() -> None:
    async with setting() as s:
        held: list[Any] = []

        def current() -> Any:
            if not held:
                raise VerificationFailed("support:prod is not resolved yet.")
            return held[0]

        server = Server([Served("support", "prod", current, s.router)])
        async with serving(app=server) as client:
            async with client.get("/readyz") as response:
                assert response.status == 503 and (await response.json())["environments"][0]["ready"] is False
            assert (await ask(client, body()))[0] == 503
            async with client.get("/healthz") as response:
                assert response.status == 200
            held.append(s.compiled)
            async with client.get("/readyz") as response:
                assert response.status == 200


async def test_several_apps_in_one_process(fake: FakeModels) -> None:
    async with setting(fake.base_url) as one, setting(fake.base_url) as two:
        made = [
            Served("support", "prod", lambda: one.compiled, one.router),
            Served("sales", "prod", lambda: two.compiled, two.router),
        ]
        async with serving(app=Server(made)) as client:
            status, found = await ask(client, body())
            assert status == 422 and "x-app: support:prod" in found["fix"] and "sales:prod" in found["why"]
            assert (await ask(client, body(), **{"x-app": "sales"}))[0] == 200
            assert (await ask(client, body(), **{"x-app": "support:prod"}))[0] == 200
            assert (await ask(client, body(), **{"x-app": "nobody"}))[0] == 406
    assert len(one.receipts.kept) == len(two.receipts.kept) == 1


class _Wire:
    """One request handed to the ASGI application by hand: its body comes when the test says so."""

    def __init__(self, server: Server, *headers: tuple[bytes, bytes]) -> None:
        self.sent: list[Any] = []
        self.asked = 0
        self._body: asyncio.Queue[bytes] = asyncio.Queue()
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/requests",
            "headers": list(headers),
            "server": ("127.0.0.1", 80),
        }
        self._task = asyncio.ensure_future(server(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        self.asked += 1
        return {"type": "http.request", "body": await self._body.get(), "more_body": False}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    async def wait_until_asked(self) -> None:
        while not self.asked:
            await asyncio.sleep(0)

    async def answer(self, data: bytes | None = None) -> tuple[int, Any]:
        if data is not None:
            self._body.put_nowait(data)
        await asyncio.wait_for(self._task, 5)
        return self.sent[0]["status"], json.loads(self.sent[1]["body"])


def _bound(keys: dict[str, Any]) -> dict[str, Any]:
    return {"models": {"small": {"base_url": "http://x"}, "own": {"base_url": "http://x"}}, **keys}


@pytest.mark.parametrize("accept", [b"application/json", b"text/event-stream"])
async def test_a_request_belongs_to_the_release_that_judged_its_identity(accept: bytes) -> None:
    async with setting(bindings=_bound(IDENTITIES)) as s, setting(bindings={}) as next_:
        reads = 0

        def current() -> Any:
            # The next release, for which a key is worth nothing, comes with the first read after the judgement.
            nonlocal reads
            reads += 1
            return s.compiled if reads <= 3 else next_.compiled

        router = type(s.router)(current, s.receipts)
        server = Server([Served("support", "prod", current, router)])
        wire = _Wire(server, (b"x-api-key", KEY.encode()), (b"accept", accept))
        await wire.answer(json.dumps(body(user_role="visitor")).encode())
        assert s.receipts.last.identity == "a" and s.receipts.last.release == s.compiled.ref
        assert reads == 3, "twice before the body (are keys of tokens missing? who calls?), once after it"


async def test_a_release_that_knows_the_caller_no_longer_is_heard_while_the_body_comes() -> None:
    async with setting(bindings=_bound(IDENTITIES)) as s:
        keys = [{**IDENTITIES["identities"]["api_keys"][1]}]
        async with setting(bindings=_bound({"identities": {"api_keys": keys}})) as next_:
            held = [s.compiled]
            wire = _Wire(Server([Served("support", "prod", lambda: held[0], s.router)]), (b"x-api-key", KEY.encode()))
            await wire.wait_until_asked()
            held[0] = next_.compiled
            assert (await wire.answer(json.dumps(body()).encode()))[0] == 401


async def test_a_stranger_sends_no_body_and_a_body_has_a_deadline() -> None:
    async with setting(bindings=_bound(IDENTITIES)) as s:
        served = [Served("support", "prod", lambda: s.compiled, s.router)]
        for headers in ((), ((b"x-api-key", b"wrong"),)):
            wire = _Wire(Server(served), *headers)
            assert (await wire.answer())[0] == 401 and wire.asked == 0
            assert (b"connection", b"close") in wire.sent[0]["headers"]
        slow = _Wire(Server(served, body_seconds=0.05), (b"x-api-key", KEY.encode()))
        status, told = await slow.answer()
        assert (status, told["error"]) == (408, "timeout") and (b"connection", b"close") in slow.sent[0]["headers"]
        large = _Wire(Server(served), (b"x-api-key", KEY.encode()), (b"x-more", b"y" * 40_000))
        assert (await large.answer())[0] == 431 and large.asked == 0
        assert s.receipts.kept == []
