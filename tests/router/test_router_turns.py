"""Whose turn it is, what is counted, and what the access log says."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from bundlectl.router.access_log import AccessLog
from bundlectl.router.http_error import HttpError, http_error
from bundlectl.router.metrics import Metrics
from bundlectl.router.router import Router
from bundlectl.router.served import Served
from bundlectl.router.server import Server
from bundlectl.router.turns import Turns
from tests.router.test_router_server import ask, body, serving
from tests.support.answering import NOW, setting
from tests.support.fake_models import Fail, FakeModels, Say, Stall, fake_models


@pytest.fixture
async def fake() -> AsyncIterator[FakeModels]:
    async with fake_models() as server:
        yield server


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_interactive_requests_begin_before_batch_and_in_their_order() -> None:
    turns = Turns(at_once=1, waiting=10)
    assert turns.begin()
    begun: list[str] = []

    async def one(name: str, interactive: bool) -> None:
        await turns.wait(interactive=interactive)
        begun.append(name)
        turns.end(0.0)

    tasks = [asyncio.create_task(one(n, n[0] == "i")) for n in ("b1", "i1", "b2", "i2")]
    await settle()
    assert (turns.active, turns.queued) == (1, 4) and not turns.begin(), "nobody overtakes who waits"
    turns.end(0.0)
    await asyncio.gather(*tasks)
    assert begun == ["i1", "i2", "b1", "b2"]
    assert (turns.active, turns.queued, turns.waited, turns.turned_away) == (0, 0, 4, 0)


async def test_a_full_queue_turns_away_at_once_and_makes_room_for_the_interactive() -> None:
    turns = Turns(at_once=1, waiting=2)
    assert turns.begin()
    first, second = [asyncio.create_task(turns.wait(interactive=False)) for _ in range(2)]
    await settle()
    with pytest.raises(HttpError) as told:
        await turns.wait(interactive=False)
    assert told.value.status == 503 and told.value.body["retry_after"] >= 1
    person = asyncio.create_task(turns.wait(interactive=True))
    await settle()
    assert second.done() and isinstance(second.exception(), HttpError), "the newest batch made room"
    turns.end(0.0)
    await person
    turns.end(0.0)
    await first
    turns.end(0.0)
    assert (turns.active, turns.queued, turns.turned_away) == (0, 0, 2)


async def test_who_would_come_too_late_is_told_before_waiting() -> None:
    turns = Turns(at_once=1, waiting=100, longest=5.0)
    assert turns.begin()
    turns.end(4.0)
    assert turns.begin()
    waiting = asyncio.create_task(turns.wait(interactive=True))
    await settle()
    with pytest.raises(HttpError) as told:
        await turns.wait(interactive=True)
    assert told.value.body["retry_after"] == 8
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert turns.queued == 0


async def test_nobody_waits_longer_than_is_said() -> None:
    turns = Turns(at_once=1, longest=0.05)
    assert turns.begin()
    with pytest.raises(HttpError):
        await turns.wait(interactive=True)
    assert (turns.active, turns.queued) == (1, 0)


async def test_who_is_sent_away_in_the_moment_of_giving_up_gives_no_turn_on() -> None:
    turns = Turns(at_once=1, waiting=1, longest=0.05)
    assert turns.begin()
    waiting = asyncio.create_task(turns.wait(interactive=False))
    await settle()
    asyncio.get_running_loop().call_soon(
        lambda: turns._queues[1].pop().begun.set_exception(http_error(503, "overloaded", "room was made"))
    )
    time.sleep(0.1)
    with pytest.raises(HttpError):
        await waiting
    assert (turns.active, turns.queued) == (1, 0)


async def test_room_is_made_by_who_has_just_gone_away() -> None:
    turns = Turns(at_once=1, waiting=1, longest=0.2)
    assert turns.begin()
    gone = asyncio.create_task(turns.wait(interactive=False))
    await settle()
    gone.cancel()
    with pytest.raises(HttpError):  # after its time, and not as a defect
        await turns.wait(interactive=True)
    await asyncio.gather(gone, return_exceptions=True)
    assert (turns.active, turns.queued) == (1, 0)


STEPS = st.lists(st.sampled_from(["come", "batch", "go", "leave", "tick"]), max_size=60)


@given(STEPS, st.integers(1, 3), st.integers(0, 4))
def test_no_turn_is_lost_or_made(steps: list[str], at_once: int, waiting: int) -> None:
    """Whatever comes, goes and gives up: never more than so many at once, and in the end nobody."""

    async def play() -> None:
        turns = Turns(at_once, waiting, longest=1000.0, clock=lambda: 0.0)
        holding = 0
        waiters: list[asyncio.Task[None]] = []

        async def come(interactive: bool) -> None:
            nonlocal holding
            if not turns.begin():
                await turns.wait(interactive=interactive)
            holding += 1

        for step in steps:
            if step in ("come", "batch"):
                waiters.append(asyncio.create_task(come(step == "come")))
            elif step == "go" and holding:
                holding -= 1
                turns.end(0.0)
            elif step == "leave":
                for task in waiters[-1:]:
                    task.cancel()
            else:
                await settle()
            assert holding <= at_once and turns.queued <= waiting and turns.active <= at_once
        await settle()
        while holding:
            holding -= 1
            turns.end(0.0)
            await settle()
        for task in waiters:
            task.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)
        assert (turns.active, turns.queued) == (0, 0)

    asyncio.run(play())


def counted(s: Any, metrics: Metrics) -> Served:
    router = Router(lambda: s.compiled, metrics.of(s.receipts), lambda: NOW, chance=lambda: 0.0)
    return Served("support", "prod", lambda: s.compiled, router)


async def test_an_overloaded_server_says_when_to_come_back(fake: FakeModels) -> None:
    fake.default = Stall("headers", seconds=0.4)
    async with setting(fake.base_url) as s:
        server = Server([counted(s, Metrics())], turns=Turns(at_once=1, waiting=1))
        async with serving(app=server) as client:
            under_way = [asyncio.create_task(ask(client, body())) for _ in range(2)]
            while server._turns.queued < 1:
                await asyncio.sleep(0.01)
            async with client.post("/v1/requests", json=body()) as response:
                told = await response.json()
                assert response.status == 503 and told["error"] == "overloaded"
                assert int(response.headers["retry-after"]) >= 1
            async with client.post("/v1/chat/completions", json={"model": "support/ask", "messages": []}) as response:
                assert response.status == 400, "what is wrong is told without a turn"
            assert [status for status, _ in await asyncio.gather(*under_way)] == [200, 200]


async def test_metrics(fake: FakeModels) -> None:
    metrics = Metrics()
    fake.then(Say("Use promote [1]."), Fail(503), Fail(503), Say("From the second."))
    async with setting(fake.base_url) as s, serving(app=Server([counted(s, metrics)], metrics=metrics)) as client:
        await ask(client, body())
        await ask(client, body())
        await ask(client, body(user_role="visitor"))
        await ask(client, body(policy_profile="guarded", input={"question": "4111111111111111"}))
        await ask(client, b"{")
        async with client.get("/metrics") as response:
            assert response.status == 200 and response.content_type == "text/plain"
            text = await response.text()
    found: dict[str, list[Any]] = {f.name: f.samples for f in text_string_to_metric_families(text)}
    outcomes = {sample.labels["outcome"]: sample.value for sample in found["bundlectl_requests"]}
    assert outcomes == {"answered": 1, "degraded": 1, "access_denied": 1, "input_blocked": 1}
    attempts = {(a.labels["model"], a.labels["outcome"]): a.value for a in found["bundlectl_model_attempts"]}
    assert attempts == {("small", "ok"): 1, ("small", "unavailable"): 2, ("own", "ok"): 1}
    statuses = {sample.labels["status"]: sample.value for sample in found["bundlectl_http_responses"]}
    assert statuses == {"200": 2, "403": 1, "422": 1, "400": 1}
    (release,) = found["bundlectl_release_info"]
    assert release.labels["serial"] == "7" and release.labels["bundle"] == s.bundle.digest
    buckets = [x for x in found["bundlectl_request_seconds"] if x.name.endswith("_bucket")]
    assert buckets[-1].labels["le"] == "+Inf" and buckets[-1].value == 4
    assert [x.value for x in buckets] == sorted(x.value for x in buckets)
    assert found["bundlectl_guard_actions"][0].labels["action"] == "block"
    assert {x.value for x in found["bundlectl_active_requests"]} == {0} and "process_cpu_seconds" in found
    assert "acme" not in text and "promote" not in text


async def test_the_access_log_has_a_line_for_each_response_and_no_content(fake: FakeModels) -> None:
    out = io.BytesIO()
    async with setting(fake.base_url) as s:
        app: Any = AccessLog(Server([counted(s, Metrics())]), out.write)
        async with serving(app=app) as client:
            await ask(client, body())
            await ask(client, b"{")
            async with client.get("/healthz?key=secret") as response:
                await response.read()
            async with client.post("/v1/requests", json=body(), headers={"accept": "text/event-stream"}) as response:
                await response.read()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(x["method"], x["path"], x["status"]) for x in lines] == [
        ("POST", "/v1/requests", 200),
        ("POST", "/v1/requests", 400),
        ("GET", "/healthz", 200),
        ("POST", "/v1/requests", 200),
    ]
    assert [x.get("receipt") for x in lines] == [s.receipts.kept[0].id, None, None, s.receipts.kept[1].id]
    assert all(x["client"] == "127.0.0.1" and x["seconds"] >= 0 and x["bytes"] > 0 for x in lines)
    assert b"secret" not in out.getvalue() and b"promote" not in out.getvalue() and b"acme" not in out.getvalue()
