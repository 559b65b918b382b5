"""Kept answers: to whom and what they are given again, to whom never; in memory and in a real redis-server."""

from __future__ import annotations

import ast
import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic_core import to_json

import bundlectl
from bundlectl.insight.explain import explain
from bundlectl.insight.kept import MADE_THERE, as_made
from bundlectl.model.bindings import AnswerCaching, Bindings
from bundlectl.model.contract import ReleaseRef, Request
from bundlectl.model.errors import NotFound, UsageError
from bundlectl.router.assemble import OpenIndex, World, assemble
from bundlectl.router.cache import (
    AnswerCache,
    CompiledCaching,
    MemoryCache,
    Place,
    caching_of,
    compile_caching,
    place_of,
)
from bundlectl.router.cache_redis import RedisCache
from bundlectl.router.identity import LOCAL, Identity
from bundlectl.router.limits_memory import MemoryCounts
from bundlectl.router.redis_link import RedisLink
from bundlectl.router.router import Router
from tests.router.test_router_server import body, serving
from tests.support.answering import NOW, HandIndex, Setting, contract, setting
from tests.support.fake_models import Fail, FakeModels, Say, fake_models
from tests.support.redis_server import RedisServer, redis_server

BUNDLE = "sha256:" + "0" * 64
CACHE: dict[str, Any] = {"cache": {"ttl": "1h"}}


@pytest.fixture
async def fake() -> AsyncIterator[FakeModels]:
    async with fake_models() as server:
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@contextlib.asynccontextmanager
async def redis_cache(
    server: RedisServer, told: list[str] | None = None
) -> AsyncIterator[tuple[RedisCache, RedisLink]]:
    link = RedisLink(server.url, (told if told is not None else []).append)
    try:
        yield RedisCache(link, "support", "prod", (told if told is not None else []).append), link
    finally:
        await link.close()


def caching(s: Setting, cache: AnswerCache) -> Any:
    return Router(lambda: s.compiled, s.receipts, lambda: NOW, cache=cache)


@pytest.mark.parametrize("task", ["ask", "ask_json", "chat"])
async def test_the_same_question_is_answered_once(fake: FakeModels, task: str) -> None:
    if task == "ask_json":
        fake.default = Say('{"answer": "Run promote.", "citations": [1]}')
    async with setting(fake.base_url, bindings=CACHE) as s:
        router = caching(s, MemoryCache())
        first = await router.handle(contract(task), LOCAL)
        second = await router.handle(contract(task), LOCAL)
        assert len(fake.requests) == 1
        assert first.receipt.cache == "miss" and first.answer.cache is None and "cache" not in first.answer.form()
        assert second.answer.output == first.answer.output and second.answer.citations == first.answer.citations
        assert (second.answer.route, second.answer.model) == (first.answer.route, first.answer.model)
        assert second.answer.cache == "hit" and second.answer.cached_from == first.receipt.id
        receipt = second.receipt
        assert (receipt.cache, receipt.cached_from) == ("hit", first.receipt.id) and receipt.id != first.receipt.id
        assert receipt.cost.usd == 0.0 and receipt.usage.input_tokens == 0 and receipt.attempts == []
        assert receipt.answer_digest == first.receipt.answer_digest
        assert list(receipt.stages) == ["identity", "limits", "access", "input_guard", "cache"]
        streamed = [event async for event in router.stream(contract(task), LOCAL)]
        assert [event.kind for event in streamed] == ["start", "delta", "done"]
        assert streamed[-1].data["cache"] == "hit" and len(fake.requests) == 1


async def test_a_streamed_answer_is_kept_too_and_one_given_up_is_not(fake: FakeModels) -> None:
    async with setting(fake.base_url, bindings=CACHE) as s:
        router = caching(s, MemoryCache())
        stream = router.stream(contract(), LOCAL)
        async for event in stream:
            if event.kind == "start":
                break
        await stream.aclose()
        assert s.receipts.last.error["error"] == "cancelled"
        whole = [event async for event in router.stream(contract(), LOCAL)]
        assert s.receipts.last.cache == "miss"
        again = await router.handle(contract(), LOCAL)
        assert again.receipt.cache == "hit" and again.answer.output == whole[-1].data["output"]


async def test_off_by_default_and_where_nobody_keeps_answers(fake: FakeModels) -> None:
    async with setting(fake.base_url) as s:
        found = [await caching(s, MemoryCache()).handle(contract(), LOCAL) for _ in range(2)]
        assert [one.receipt.cache for one in found] == ["off", "off"] and len(fake.requests) == 2
    async with setting(fake.base_url, bindings=CACHE) as s:  # evaluation, drift, replay, ask and dev have no cache
        found = [await s.router.handle(contract(), LOCAL) for _ in range(2)]
        assert [one.receipt.cache for one in found] == ["off", "off"] and len(fake.requests) == 4


async def test_where_no_answers_are_kept_no_key_for_them_is_fetched() -> None:
    bound = {"cache": {"ttl": "1h", "key": "env:MISSING"}, "disabled_models": ["small", "own"]}
    async with setting(bindings={**bound, "cache": {"ttl": "1h"}}) as s:
        bindings = Bindings.model_validate(bound)
        world = World(open_index=no_index)
        assert (await assemble(s.bundle, bindings, s.compiled.ref, world)).caching is None
        with pytest.raises(NotFound, match="MISSING"):
            await assemble(s.bundle, bindings, s.compiled.ref, replace(world, keeps_answers=True))


async def no_index(*_: Any) -> OpenIndex:
    return OpenIndex(searcher=HandIndex([]), snapshot=BUNDLE)


async def test_explain_reads_a_hit(fake: FakeModels) -> None:
    """What is read of a hit is what made its answer; without that receipt nothing is claimed of it."""
    async with setting(fake.base_url, bindings=CACHE) as s:
        router = caching(s, MemoryCache())
        first, second = [(await router.handle(contract(), LOCAL)).receipt for _ in range(2)]
        fake.default = Say("Something else [2].")
        third = (await router.handle(contract(), LOCAL, caching="off")).receipt
    assert as_made(second, first).form() == first.form() | {
        key: second.form()[key] for key in ("id", "cache", "cached_from", "usage", "cost", "stages")
    }
    same = explain(first, second, made_b=first)
    assert same.same_answer == "yes" and [row.question for row in same.rows if row.changed == "yes"] == ["cache"]
    told = explain(second, third, made_a=first)
    assert told.causes == [] and told.summary.endswith("Not knowable from receipts: model.")
    assert first.id in told.a.notes[0] and told.a.model == told.b.model
    lost = explain(second, third)
    assert lost.causes == [] and first.id in lost.a.notes[0] and "not here" in lost.a.notes[0]
    assert {row.question for row in lost.rows if row.changed == "unknown"} == set(MADE_THERE)
    assert "retrieved context" in lost.summary


async def test_only_serve_gives_a_router_a_cache() -> None:
    with_one = set()
    for file in Path(bundlectl.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id != "Router":
                continue
            if any(keyword.arg == "cache" for keyword in node.keywords):
                with_one.add(file.name)
    assert with_one == {"serve.py"}


async def test_what_is_never_kept(fake: FakeModels) -> None:
    async with setting(fake.base_url, bindings=CACHE) as s:
        cache = MemoryCache()
        router = caching(s, cache)
        refused = await router.handle(contract(user_role="visitor"), LOCAL)
        blocked = await router.handle(contract(policy_profile="guarded", question="4111111111111111"), LOCAL)
        none = await router.handle(contract(data_scope=[]), LOCAL)
        fake.default = Say("Card 4111 1111 1111 1111 is it.")
        output = await router.handle(contract(policy_profile="guarded"), LOCAL)
        fake.default = Say("You may transfer at most 10", finish="length")
        assert (await router.handle(contract(), LOCAL)).answer.cut
        fake.default = Fail(500)
        degraded = await router.handle(contract(), LOCAL)
        failed = await router.handle(contract("chat", policy_profile="restricted"), LOCAL)
        codes = [one.answer.refused.code for one in (refused, blocked, none, output)]
        assert codes == ["access_denied", "input_blocked", "no_answer", "output_blocked"]
        assert degraded.answer.degraded and failed.answer is None
        assert not cache._entries


async def test_rights_come_before_kept_answers(fake: FakeModels) -> None:
    async with setting(fake.base_url, bindings=CACHE) as s:
        router = caching(s, MemoryCache())
        await router.handle(contract(), LOCAL)
        stranger = Identity("stranger", frozenset({"zenith"}), frozenset({"agent"}))
        assert (await router.handle(contract(), stranger)).status == 403
        assert (await router.handle(contract(user_role="visitor"), LOCAL)).status == 403
        assert s.receipts.last.cache == "off"


async def test_callers_opt_out(fake: FakeModels) -> None:
    async with setting(fake.base_url, bindings=CACHE) as s:
        s.router = caching(s, MemoryCache())
        async with serving(s) as client:

            async def cache(control: str, accept: str = "application/json") -> str:
                headers = {"cache-control": control, "accept": accept}
                async with client.post("/v1/requests", json=body(), headers=headers) as response:
                    assert response.status == 200 and await response.read()
                return str(s.receipts.last.cache)

            assert await cache("no-store") == "off"
            assert await cache("max-age=0") == "miss"
            assert await cache("") == "hit"
            assert await cache("", "text/event-stream") == "hit"
            assert await cache("no-store", "text/event-stream") == "off"
            fake.default = Say("Another answer, newer [1].")
            assert await cache("No-Cache, max-age=0") == "miss"
            assert await cache("") == "hit"
            async with client.post("/v1/requests", json=body()) as response:
                found = await response.json()
            assert found["cache"] == "hit" and found["output"].startswith("Another")
    assert caching_of([(b"cache-control", b"no-cache"), (b"cache-control", b" NO-STORE")]) == "off"


# ---------------------------------------------------------------- the key

ASKED: dict[str, Any] = {
    "task": "ask",
    "tenant_id": "acme",
    "user_role": "agent",
    "data_scope": ["docs"],
    "latency_class": "interactive",
    "policy_profile": "plain",
    "input": {"question": "How?"},
}
OTHERS: list[tuple[str, Any]] = [
    ("task", "chat"),
    ("tenant_id", "zenith"),
    ("user_role", "intern"),
    ("data_scope", ["docs", "tickets"]),
    ("data_scope", []),
    ("latency_class", "batch"),
    ("policy_profile", "guarded"),
    ("input", {"question": "How? "}),
    ("input", {"question": "how?"}),
]


async def place(s: Setting, **changes: Any) -> Place:
    request = Request.model_validate({**ASKED, **changes})
    run = s.router._begin(request, LOCAL, None, "use")
    run.input = request.input
    assert s.compiled.caching is not None
    return place_of(run, s.compiled.caching)


async def test_any_field_alone_leads_elsewhere() -> None:
    async with setting(bindings=CACHE) as s:
        here = await place(s)
        assert await place(s) == here
        assert (await place(s, data_scope=["docs", "docs"])).name == here.name
        for field, value in OTHERS:
            there = await place(s, **{field: value})
            assert there.name != here.name, field
            assert (there.tenant != here.tenant) is (field == "tenant_id")
        for secret in ("How?", "acme", "agent"):
            assert secret not in here.name + here.tenant


async def test_any_change_of_release_or_key_leads_elsewhere() -> None:
    async with setting(bindings=CACHE) as s:
        plain = s.compiled.caching
        assert plain is not None
        assert plain.base[1:] == ("support", "prod", s.compiled.ref.bundle, s.compiled.ref.bindings)
        names = {(await place(s)).name}
        changes = [replace(plain, secret=b"another")]
        changes += [
            replace(plain, base=(*plain.base[:at], plain.base[at] + "x", *plain.base[at + 1 :]))
            for at in range(len(plain.base))
        ]
        for changed in changes:
            object.__setattr__(s.compiled, "caching", changed)
            names.add((await place(s)).name)
        assert len(names) == 7


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.fixed_dictionaries({"question": st.text(max_size=5), "more": VALUES}), min_size=2, max_size=2))
def test_names_are_equal_just_when_inputs_are(inputs: list[dict[str, Any]]) -> None:
    def name(value: dict[str, Any]) -> str:
        asked = Request.model_validate({**ASKED, "input": {"question": "x"}})
        run: Any = SimpleNamespace(request=asked, input=value, task=SimpleNamespace(index=None, format="text"))
        return place_of(run, CompiledCaching(1.0, 1, 1, b"k" * 32, ("a",))).name

    one, other = inputs
    with contextlib.suppress(UnicodeEncodeError):  # half a surrogate pair never comes so far
        same = to_json(_sorted(one)) == to_json(_sorted(other))
        assert (name(one) == name(other)) is same
        assert name(one) == name(dict(reversed(one.items())))


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(one) for one in value] if isinstance(value, list) else value


async def test_an_index_that_moves_on_leads_elsewhere(fake: FakeModels) -> None:
    class Moving:
        now = "sha256:" + "1" * 64

        def current(self) -> OpenIndex:
            return OpenIndex(searcher=s.index, snapshot=self.now, following=True, checked=NOW)

    async with setting(fake.base_url, bindings=CACHE) as s:
        moving = Moving()
        object.__setattr__(s.compiled.tasks["ask"], "index", moving)
        router = caching(s, MemoryCache())
        kept = [(await router.handle(contract(), LOCAL)).receipt.cache for _ in range(2)]
        moving.now = "sha256:" + "2" * 64
        kept.append((await router.handle(contract(), LOCAL)).receipt.cache)
        assert kept == ["miss", "hit", "miss"]


async def test_tenants_and_redacted_inputs(fake: FakeModels) -> None:
    async with setting(fake.base_url, bindings=CACHE) as s:
        router = caching(s, MemoryCache())
        found = [
            (await router.handle(contract(tenant_id=tenant), LOCAL)).receipt.cache
            for tenant in ("acme", "zenith", "acme", "zenith")
        ]
        assert found == ["miss", "miss", "hit", "hit"]
        redacted = [
            await router.handle(contract(policy_profile="guarded", question=f"Ask {who}@example.com?"), LOCAL)
            for who in ("jane", "john")
        ]
        # After redaction both ask the same. Each receipt has its own input's digest and what was found in it.
        assert [one.receipt.cache for one in redacted] == ["miss", "hit"]
        assert redacted[0].receipt.input_digest != redacted[1].receipt.input_digest
        assert [one.receipt.guards[0].action for one in redacted] == ["redact", "redact"]


async def test_a_hit_counts_as_a_request_and_costs_nothing(fake: FakeModels) -> None:
    bindings = {**CACHE, "limits": {"tenants": {"default": {"requests_per_minute": 3, "usd_per_day": 1.0}}}}
    async with setting(fake.base_url, bindings=bindings) as s:
        counts = MemoryCounts()
        router: Any = Router(lambda: s.compiled, s.receipts, lambda: NOW, cache=MemoryCache(), counts=counts)
        found = [await router.handle(contract(), LOCAL) for _ in range(4)]
        assert [one.status for one in found] == [200, 200, 200, 429]
        assert counts._counts["tenant:acme"].spent == pytest.approx(found[0].receipt.cost.usd)


# ---------------------------------------------------------------- memory

AT = Place("t", "n", None)


def small(**changes: Any) -> CompiledCaching:
    return CompiledCaching(
        **{"ttl": 60.0, "max_entries": 3, "max_bytes": 10_000, "secret": b"k" * 32, "base": (), **changes}
    )


async def test_memory_is_bounded_and_forgets_in_time() -> None:
    cache, caching_ = MemoryCache(), small()
    for n in range(4):
        cache.put(caching_, Place("t", str(n), None), b"x")
        if n == 2:
            assert cache.get(caching_, Place("t", "0", None)) == b"x"
    assert [cache.get(caching_, Place("t", str(n), None)) for n in range(4)] == [b"x", None, b"x", b"x"]
    cache.put(caching_, AT, b"y" * 9_000)
    assert cache.get(caching_, AT) and cache._bytes <= 10_000
    cache.put(caching_, Place("t", "huge", None), b"z" * 20_000)
    assert cache.get(caching_, Place("t", "huge", None)) is None
    cache.put(small(ttl=0.01), AT, b"brief")
    await asyncio.sleep(0.1)
    assert cache.get(caching_, AT) is None and "n" not in cache._entries
    cache.close()
    assert cache._bytes == 0 and not cache._entries


# ---------------------------------------------------------------- Redis


async def test_processes_share_answers_that_redis_cannot_read(server: RedisServer, fake: FakeModels) -> None:
    with server.client() as client:
        client.flushall()
    async with (
        setting(fake.base_url, bindings=CACHE) as s,
        redis_cache(server) as (one, a),
        redis_cache(server) as (
            two,
            _,
        ),
    ):
        first = await caching(s, one).handle(contract(), LOCAL)
        await a.settled()
        second = await caching(s, two).handle(contract(), LOCAL)
        assert second.receipt.cached_from == first.receipt.id and len(fake.requests) == 1
        other = await caching(s, two).handle(contract(tenant_id="zenith"), LOCAL)
        assert other.receipt.cache == "miss"
    with server.client() as client:
        (key,) = [name for name in client.keys("*") if b":cache:" in name][:1]
        value = client.get(key)
        assert 0 < client.ttl(key) <= 3600
        seen = key + value
        assert not any(text.encode() in seen for text in ("acme", "promote", first.receipt.id, "fast"))


async def test_a_writer_to_redis_plants_nothing(server: RedisServer) -> None:
    told: list[str] = []
    here, there = Place("t", "here", None), Place("t", "there", None)
    async with redis_cache(server, told) as (cache, link):

        async def got(where: Place, caching_: CompiledCaching) -> bytes | None:
            found = cache.get(caching_, where)
            return await found if found is not None else None

        cache.put(small(), here, b"an answer")
        await link.settled()
        assert await got(here, small()) == b"an answer"
        assert await got(here, small(secret=b"o" * 32)) is None
        with server.client() as client:
            sealed = client.get(cache._name(here))
            assert sealed is not None
            for planted in (b"", b"short", b"x" * 100, sealed[:-1] + bytes([sealed[-1] ^ 1]), b"\0" * 8 + sealed[8:]):
                client.set(cache._name(here), planted)
                assert await got(here, small()) is None
            client.set(cache._name(there), sealed)  # moved to another question
            assert await got(there, small()) is None
            client.set(cache._name(here), sealed)  # without an expiry
            assert await got(here, small()) == b"an answer"
            await asyncio.sleep(0.05)
            assert await got(here, small(ttl=0.01)) is None
    assert len(told) == 1 and "not put there" in told[0]


async def test_redis_away_means_nothing_is_kept(fake: FakeModels) -> None:
    link = RedisLink("redis://127.0.0.1:1/0", lambda _: None)
    async with setting(fake.base_url, bindings=CACHE) as s:
        router = caching(s, RedisCache(link, "support", "prod", lambda _: None))
        found = [(await router.handle(contract(), LOCAL)).receipt.cache for _ in range(3)]
        assert found == ["miss"] * 3 and not link.up
    await link.close()


# ---------------------------------------------------------------- bindings


def test_keys_of_caches() -> None:
    ref = ReleaseRef(app="a", environment="prod", epoch=1, serial=1, bundle=BUNDLE, bindings=BUNDLE)
    bound = AnswerCaching(ttl="1h", key="env:KEY")
    made = [
        compile_caching(bound, ref, World(environ={"KEY": "k" * 16}, input_key=own)) for own in (b"1" * 32, b"2" * 32)
    ]
    assert made[0] == made[1], "servers with the same key share answers"
    with pytest.raises(UsageError, match="fewer than 16"):
        compile_caching(bound, ref, World(environ={"KEY": "k" * 15}))
    with pytest.raises(NotFound):
        compile_caching(bound, ref, World())
    plain = AnswerCaching(ttl="1h")
    assert compile_caching(plain, ref, World()) != compile_caching(plain, ref, World())


def test_bindings_of_caches() -> None:
    assert "cache" not in Bindings().form()
    assert AnswerCaching(ttl="10m").form() == {"ttl": "10m", "max_entries": 10_000, "max_bytes": 64 * 1024 * 1024}
    for wrong in ({"ttl": "0s"}, {"ttl": "8d"}, {"ttl": "500ms"}, {}, {"ttl": "1h", "key": "plain-text"}):
        with pytest.raises(ValidationError):
            AnswerCaching.model_validate(wrong)
