"""Whatever is sent, the server answers as its OpenAPI document says, and never with a defect."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from bundlectl.actions.listening import configured
from bundlectl.router.batch.http import BatchApi
from bundlectl.router.batch.journal import Journal
from bundlectl.router.metrics import Metrics
from bundlectl.router.router import Router
from bundlectl.router.served import Served
from bundlectl.router.server import Server
from tests.router.test_router_server import IDENTITIES, KEY, body
from tests.support.answering import NOW, Setting, setting
from tests.support.fake_models import fake_models

CHECKS = (
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
)
MANY = int(os.environ.get("FUZZ", "1"))
"""How many times as many examples, by chance then: for who looks for something new."""
QUICK: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "derandomize": MANY == 1,
    "suppress_health_check": list(HealthCheck),
}


@contextlib.contextmanager
def running(folder: Path, **bindings: Any) -> Iterator[tuple[int, Setting]]:
    """Run a server, its batches and a model server in a thread of their own."""
    started: list[tuple[int, Setting]] = []
    ready, ends = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with fake_models() as fake:
            address = {"base_url": fake.base_url}
            bound = {"models": {"small": address, "own": address}, **bindings}
            async with setting(fake.base_url, bindings=bound) as s:
                metrics = Metrics()
                router = Router(lambda: s.compiled, metrics.of(s.receipts), lambda: NOW)
                served = Served("support", "prod", lambda: s.compiled, router)
                journal = Journal(folder / "batches.sqlite3", lambda: NOW)
                app = Server([served], metrics=metrics, batches=BatchApi(journal))
                config = configured(app)
                config.port, config.log_level = 0, "critical"
                server = uvicorn.Server(config)
                server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
                task = asyncio.ensure_future(server._serve())
                while not server.started:
                    await asyncio.sleep(0.01)
                started.append((server.servers[0].sockets[0].getsockname()[1], s))
                ready.set()
                await ends.wait()
                server.should_exit = True
                await task
                journal.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    try:
        assert ready.wait(30)
        yield started[0]
    finally:
        loop.call_soon_threadsafe(ends.set)
        thread.join(30)
        loop.close()


def send(port: int, method: str, path: str, data: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


# ---------------------------------------------------------------- the contract

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
FIELDS = sorted(body())
CHANGES = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=10), JSON, max_size=3)
WORDS = st.text(max_size=200)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "x-app": st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40),
        "accept": st.sampled_from(["text/event-stream", "application/json", "*/*"]),
        "cache-control": st.sampled_from(["no-store", "no-cache", "max-age=0", ","]),
        "content-type": st.sampled_from(["application/json", "text/plain", "multipart/form-data"]),
    },
)


@pytest.fixture(scope="module")
def open_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with running(tmp_path_factory.mktemp("open")) as (port, _):
        yield port


def fits(status: int, data: bytes) -> None:
    """Check what holds for every answer to a request."""
    assert status in (200, 400, 403, 406, 422, 429), (status, data[:500])
    if not data.startswith(b"event:"):
        told = json.loads(data)
        assert "receipt" in told or {"error", "message", "why", "fix"} <= set(told)


@given(CHANGES, WORDS, HEADERS)
@settings(max_examples=100 * MANY, **QUICK)
def test_no_contract_meets_a_defect(open_port: int, changes: dict[str, Any], words: str, headers: Any) -> None:
    asked = {**body(), "input": {"question": words}, **changes}
    data = json.dumps(asked).encode("utf-8", "surrogatepass")
    fits(*send(open_port, "POST", "/v1/requests", data, headers))


@given(st.binary(max_size=300) | WORDS.map(lambda text: text.encode("utf-8", "surrogatepass")), HEADERS)
@settings(max_examples=40 * MANY, **QUICK)
def test_nor_do_bytes(open_port: int, data: bytes, headers: Any) -> None:
    for path in ("/v1/requests", "/v1/chat/completions", "/v1/batches"):
        status, _ = send(open_port, "POST", path, data, headers)
        assert status in (400, 406, 413, 422)


# ---------------------------------------------------------------- the document


@schemathesis.serializer("application/jsonl")
def _lines(_: schemathesis.SerializationContext, value: Any) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "surrogatepass")


def fuzz(port: int, headers: dict[str, str], *, examples: int) -> set[tuple[str, int]]:
    """Ask every operation of the document for what it allows and what it does not; give operations and statuses."""
    seen: set[tuple[str, int]] = set()
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")

    def ask(operation: schemathesis.APIOperation, mode: schemathesis.GenerationMode) -> None:
        @given(operation.as_strategy(mode))
        @settings(max_examples=examples, **QUICK)
        def conforms(case: schemathesis.Case) -> None:
            response = case.call(headers=headers)
            seen.add((operation.label, response.status_code))
            case.validate_response(response, checks=CHECKS)

        conforms()

    for found in schema.get_all_operations():
        ask(found.ok(), schemathesis.GenerationMode.POSITIVE)
        with contextlib.suppress(Unsatisfiable):  # where nothing is asked for, nothing can be wrong
            ask(found.ok(), schemathesis.GenerationMode.NEGATIVE)
    return seen


def test_the_document_holds(open_port: int) -> None:
    seen = fuzz(open_port, {}, examples=5 * MANY)
    assert not [one for one in seen if one[1] >= 500]
    assert {("POST /v1/requests", 422), ("GET /metrics", 200), ("GET /readyz", 200)} <= seen


def test_it_holds_for_strangers_and_for_who_is_known(tmp_path: Path) -> None:
    with running(tmp_path, **IDENTITIES) as (port, _):
        asked = {label for label, status in fuzz(port, {}, examples=1) if status == 401}
        assert {"POST /v1/requests", "POST /v1/chat/completions", "GET /v1/batches/{batch}"} <= asked
        seen = fuzz(port, {"x-api-key": KEY}, examples=2 * MANY)
    assert not [one for one in seen if one[1] >= 500 or one[1] == 401]
