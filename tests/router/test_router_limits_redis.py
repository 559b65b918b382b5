"""Limits that several processes share through a real redis-server, which is also killed under them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundlectl.model.bindings import Limit
from bundlectl.router import redis_link
from bundlectl.router.identity import LOCAL
from bundlectl.router.limits import Exceeded, Granted, LimitsUnavailable, Need
from bundlectl.router.limits_memory import MemoryCounts
from bundlectl.router.limits_redis import RedisCounts
from bundlectl.router.redis_link import RedisLink
from bundlectl.router.router import Router
from tests.router.test_router_limits import dear
from tests.support.answering import NOW, contract, setting
from tests.support.fake_models import FakeModels, Stall, fake_models
from tests.support.redis_server import RedisServer, redis_server


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
async def fake() -> AsyncIterator[FakeModels]:
    async with fake_models() as running:
        yield running


@contextlib.asynccontextmanager
async def linked(server: RedisServer, said: list[str] | None = None) -> AsyncIterator[RedisLink]:
    link = RedisLink(server.url, (said if said is not None else []).append)
    try:
        yield link
    finally:
        await link.close()


def clean(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()


async def take(counts: RedisCounts, *needs: Need, **more: Any) -> Granted | Exceeded:
    found = counts.take(needs, datetime.now(UTC), **more)
    return found if isinstance(found, Granted | Exceeded) else await found


async def test_processes_share_what_was_used(server: RedisServer) -> None:
    clean(server)
    limit = Limit(requests_per_minute=3, usd_per_day=1.0, tokens_per_minute=1000)
    need = Need("tenant:acme", limit, 1, 300, 0.3)
    async with linked(server) as a, linked(server) as b:
        one, two = RedisCounts(a, "support", "prod"), RedisCounts(b, "support", "prod")
        first = await take(one, need)
        second = await take(two, need)
        third = await take(one, need)
        assert all(isinstance(found, Granted) and not found.local for found in (first, second, third))
        over = await take(two, need)
        assert isinstance(over, Exceeded) and over.kind == "requests" and 0 < (over.retry_after or 0) <= 20
        other = await take(RedisCounts(b, "support", "staging"), need)
        assert isinstance(other, Granted)
        for found in (first, second, third):
            assert isinstance(found, Granted)
            one.settle(found, 100, 0.05, datetime.now(UTC))
        await a.settled()
    with server.client() as client:
        keys = [key.decode() for key in client.keys("*limits*")]
        assert sorted(keys) == [f"bundlectl:{{support:{env}}}:limits:tenant:acme" for env in ("prod", "staging")]
        held = client.hgetall("bundlectl:{support:prod}:limits:tenant:acme")
        assert float(held[b"spent"]) == pytest.approx(0.15) and float(held[b"reserved"]) == pytest.approx(0.0)
        assert 690 <= float(held[b"tokens"]) <= 1000
        assert 0 < client.ttl(keys[0]) <= 2 * 86400


async def test_many_at_once_never_pass_a_limit_together(server: RedisServer) -> None:
    clean(server)
    need = Need("tenant:acme", Limit(usd_per_day=1.0), 0, 0, 0.09)
    async with linked(server) as a, linked(server) as b:
        counts = [RedisCounts(a, "support", "prod"), RedisCounts(b, "support", "prod")]
        found = await asyncio.gather(*(take(counts[n % 2], need) for n in range(60)))
    assert sum(isinstance(one, Granted) for one in found) == 11


LIMITS = st.builds(
    Limit,
    requests_per_minute=st.none() | st.integers(1, 4),
    tokens_per_minute=st.none() | st.integers(1, 400),
    usd_per_day=st.none() | st.sampled_from([0.25, 0.5, 2.0]),
    soft_usd_per_day=st.none() | st.sampled_from([0.125, 0.5]),
)
STEP = st.tuples(
    st.sampled_from(["tenant:a", "tenant:b"]),
    st.integers(0, 2),
    st.sampled_from([0, 1, 50, 399]),
    st.sampled_from([0.0, 0.125, 0.25, 0.5]),
    st.sampled_from([None, 0.0, 0.5, 1.0]),
    st.booleans(),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LIMITS, LIMITS, st.lists(STEP, max_size=12))
def test_redis_decides_as_memory_does(server: RedisServer, limit: Limit, other: Limit, steps: list[Any]) -> None:
    clean(server)

    def told(found: Granted | Exceeded, needs: list[Need], cheap: list[Need]) -> Any:
        if isinstance(found, Exceeded):
            return (found.kind, found.need.subject, found.retry_after is None)
        return (found.instead, [need.subject for need in found.soft])

    async def run() -> None:
        memory = MemoryCounts(lambda: 0.0)
        async with linked(server) as link:
            counts = RedisCounts(link, "support", "prod")
            for subject, requests, tokens, usd, share, switch in steps:
                needs = [Need(subject, limit, requests, tokens, usd), Need("task:t", other, requests, tokens, usd)]
                cheap = [Need(subject, limit, requests, 0, 0.0)] if switch else []
                now = datetime.now(UTC)
                here = memory.take(needs, now, instead=cheap)
                there = await take(counts, *needs, instead=cheap)
                assert told(here, needs, cheap) == told(there, needs, cheap)
                if share is not None and isinstance(here, Granted) and isinstance(there, Granted):
                    memory.settle(here, int(tokens * share), usd * share, now)
                    counts.settle(there, int(tokens * share), usd * share, now)
                    await link.settled()

    asyncio.run(run())


async def test_redis_is_killed_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_link, "PROBE_SECONDS", 0.05)
    said: list[str] = []
    need = Need("tenant:acme", Limit(requests_per_minute=2), 1)
    with redis_server() as server:
        async with linked(server, said) as link:
            counts = RedisCounts(link, "support", "prod")
            held = await take(counts, need)
            assert isinstance(held, Granted) and not held.local
            server.kill()
            found = [await take(counts, need) for _ in range(3)]  # by this process alone, from the whole limit on
            assert [isinstance(one, Granted) and one.local for one in found] == [True, True, False]
            with pytest.raises(LimitsUnavailable) as caught:
                await take(counts, need, refuse=True)
            assert caught.value.code == "limits_unavailable" and [link.up] == [False]
            counts.settle(held, 1, 1.0, datetime.now(UTC))  # nowhere to settle it: dropped, and nobody waits
            server.start()
            while not link.up:
                await asyncio.sleep(0.02)
            again = await take(counts, need)  # the scripts are gone from Redis too
            assert isinstance(again, Granted) and not again.local
    assert len(said) == 2 and "cannot be used (ConnectionError)" in said[0] and "again" in said[1]


async def test_a_redis_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_link, "COMMAND_SECONDS", 0.1)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        link = RedisLink(f"redis://127.0.0.1:{port}", lambda _: None)
        counts = RedisCounts(link, "support", "prod")
        found = await asyncio.wait_for(take(counts, Need("tenant:a", Limit(requests_per_minute=1), 1)), 5)
        assert isinstance(found, Granted) and found.local and not link.up
        await link.close()


async def test_the_whole_path_over_redis(server: RedisServer, fake: FakeModels) -> None:
    clean(server)
    limits = {"tenants": {"default": {"requests_per_minute": 3, "usd_per_day": 1.0}}}
    async with setting(fake.base_url, values=dear(), bindings={"limits": limits}) as s, linked(server) as link:
        routers = [
            Router(lambda: s.compiled, s.receipts, lambda: NOW, counts=RedisCounts(link, "support", "prod"))
            for _ in range(2)
        ]
        found = [await routers[n % 2].handle(contract(), LOCAL) for n in range(4)]
        assert [one.status for one in found] == [200, 200, 200, 429] and 0 < (found[3].retry_after or 0) <= 20
        await link.settled()
        with server.client() as client:
            held = client.hgetall("bundlectl:{support:prod}:limits:tenant:acme")
            assert float(held[b"spent"]) == pytest.approx(3 * (found[0].receipt.cost.usd or 0))
            assert float(held[b"reserved"]) == pytest.approx(0.0)


async def test_who_goes_away_releases_what_was_reserved(server: RedisServer, fake: FakeModels) -> None:
    clean(server)
    fake.default = Stall()
    limits = {"tenants": {"default": {"usd_per_day": 1.0}}}
    async with setting(fake.base_url, values=dear(), bindings={"limits": limits}) as s, linked(server) as link:
        router = Router(lambda: s.compiled, s.receipts, lambda: NOW, counts=RedisCounts(link, "support", "prod"))
        for pause in (0.0, 0.001, 0.003, 0.05):
            asked = asyncio.ensure_future(router.handle(contract(), LOCAL))
            await asyncio.sleep(pause)
            asked.cancel()
            await asyncio.wait({asked})
        for _ in range(100):
            await asyncio.sleep(0.01)
            await link.settled()
        with server.client() as client:
            held = client.hgetall("bundlectl:{support:prod}:limits:tenant:acme")
            assert float(held.get(b"reserved", 0)) == pytest.approx(0.0)


async def test_bindings_say_what_happens_without_redis(fake: FakeModels) -> None:
    limits = {"tenants": {"default": {"requests_per_minute": 1}}}
    for policy, status in ((None, 200), ("local", 200), ("refuse", 503)):
        bound = {**limits, "on_redis_down": policy} if policy else limits
        async with setting(fake.base_url, bindings={"limits": bound}) as s:
            link = RedisLink("redis://127.0.0.1:1/0", lambda _: None)
            await link.start()
            router = Router(lambda: s.compiled, s.receipts, lambda: NOW, counts=RedisCounts(link, "a", "b"))
            outcome = await router.handle(contract(), LOCAL)
            assert outcome.status == status
            if status == 503:
                assert (
                    outcome.error is not None
                    and outcome.error.code == "limits_unavailable"
                    and s.receipts.last.error["stage"] == "limits"
                )
            await link.close()
