"""Requests pinned to a bundle (``x-bundle``), over a real socket, by a resolver that follows a registry."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import openai
import pytest

from bundlectl.inference.client import HttpClient
from bundlectl.model.bindings import Bindings
from bundlectl.model.bundle import Bundle
from bundlectl.model.components import Model
from bundlectl.model.contract import Answer
from bundlectl.registry.layout import history_key
from bundlectl.resolver import standby
from bundlectl.resolver.resolver import Resolver
from bundlectl.resolver.trusted import VerifiedBundle
from bundlectl.router import assemble as assembling
from bundlectl.router.assemble import Compiled
from bundlectl.router.cache import MemoryCache
from bundlectl.router.router import Router
from bundlectl.router.served import Served
from bundlectl.router.server import Server
from tests.router.test_router_server import serving
from tests.support.answering import Receipts
from tests.support.fake_models import FakeModels, Say, fake_models
from tests.support.world import START, World, flip, tiny_bundle

BODY = {
    "task": "answer",
    "tenant_id": "acme",
    "user_role": "support_agent",
    "policy_profile": "plain",
    "input": {"question": "Why?"},
}
MAY, MAY_NOT = {"x-api-key": "key-of-oncall"}, {"x-api-key": "key-of-product"}


def _key(name: str, **more: Any) -> dict[str, Any]:
    digest = "sha256:" + hashlib.sha256(f"key-of-{name}".encode()).hexdigest()
    return {"id": name, "hash": digest, "tenants": ["acme"], "roles": ["*"], **more}


@dataclass
class Live:
    """A registry with releases of a bundle that says ``v1: …``, then ``v2: …`` to its model; and a server of it."""

    world: World
    fake: FakeModels
    receipts: Receipts
    client: aiohttp.ClientSession
    resolver: Resolver[Compiled]

    def promote(self, text: str) -> Bundle:
        """Promote the bundle of a text."""
        bundle = tiny_bundle(text, models={"plain": Model(provider="openai", model="m")})
        self.world.registry.put_bundle("support", bundle)
        self.world.promote("prod", bundle, bindings=_bindings(self.fake).form(), evidence=self.world.evidence(bundle))
        return bundle

    async def ask(self, bundle: Bundle | str | None = None, **headers: str) -> tuple[int, Any]:
        """Ask, pinned to a bundle, and give status and answer; what the model was asked is in ``fake``."""
        if bundle is not None:
            headers["x-bundle"] = bundle.digest if isinstance(bundle, Bundle) else bundle
        async with self.client.post("/v1/requests", json=BODY, headers=MAY | headers) as response:
            text = await response.text()
            stream = response.content_type == "text/event-stream"
            return response.status, _events(text) if stream else json.loads(text)

    @property
    def said(self) -> str:
        """The first words of what the model was asked last."""
        return str(self.fake.requests[-1]["messages"][0]["content"])[:2]


def _bindings(fake: FakeModels) -> Bindings:
    return Bindings.model_validate(
        {
            "models": {"plain": {"base_url": fake.base_url}},
            "identities": {"api_keys": [_key("oncall", may_pin=True), _key("product")]},
            "cache": {"ttl": "1h"},
        }
    )


def _events(text: str) -> list[tuple[str, Any]]:
    parts = [block.split("\n") for block in text.split("\n\n") if block]
    return [(lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))) for lines in parts]


@contextlib.asynccontextmanager
async def _live(*texts: str) -> AsyncIterator[tuple[Live, list[Bundle]]]:
    world, receipts = World(), Receipts()
    async with fake_models() as fake, HttpClient() as http:
        fake.default = Say("Because.")
        outside = assembling.World(http=http, input_key=b"k" * 32, keeps_answers=True)

        async def prepare(verified: VerifiedBundle) -> Compiled:
            return await assembling.assemble(verified.bundle, verified.bindings, verified.ref, outside)

        resolver = Resolver(world.registry, "support", "prod", world.pin, prepare, poll=3600.0, clock=world.now)
        live = Live(world, fake, receipts, None, resolver)  # type: ignore[arg-type]
        bundles = [live.promote(text) for text in texts]
        await resolver.start()
        router = Router(resolver.current, receipts, lambda: START, cache=MemoryCache())
        served = Served("support", "prod", resolver.current, router, lambda: resolver.status, resolver)
        try:
            async with serving(app=Server([served])) as client:
                live.client = client
                yield live, bundles
        finally:
            await resolver.stop()


async def test_head_and_the_rollback_target_answer_and_say_so() -> None:
    async with _live("v1", "v2") as (live, (old, new)):
        for headers in ({}, {"cache-control": "no-store"}):
            status, found = await live.ask(**headers)
            assert status == 200 and live.said == "v2" and "pinned" not in found
        status, found = await live.ask(old)
        answer = Answer.model_validate(found)
        assert status == 200 and live.said == "v1" and (answer.release.bundle, answer.release.serial) == (old.digest, 1)
        assert found["pinned"] == {"to": "rollback_target", "epoch": 1, "serial": 2}
        kept = live.receipts.last
        assert kept.pinned == answer.pinned and kept.release == answer.release and kept.components["prompts"]
        assert kept.cache == "miss", "an answer of one bundle is not given for another"
        status, found = await live.ask(new.digest[:19])
        assert found["release"]["bundle"] == new.digest and found["pinned"]["to"] == "head"
        assert found["cache"] == "hit", "head is head, named or not"
        async with live.client.get("/v1/releases") as response:
            (state,) = (await response.json())["releases"]
        assert state["rollback_target"] == old.digest and state["release"]["bundle"] == new.digest


async def test_streams_and_openais_format() -> None:
    async with _live("v1", "v2") as (live, (old, _)):
        status, events = await live.ask(old, accept="text/event-stream")
        assert status == 200 and live.said == "v1"
        assert [kind for kind, _ in events][:1] + [kind for kind, _ in events][-1:] == ["start", "done"]
        for _, told in (events[0], events[-1]):
            assert told["release"]["bundle"] == old.digest and told["pinned"]["to"] == "rollback_target"
        chat = openai.AsyncOpenAI(base_url=f"{live.client._base_url}/v1", api_key="key-of-oncall", max_retries=0)
        asked: dict[str, Any] = {
            "model": "support/answer",
            "messages": [{"role": "user", "content": "Who?"}],
            "metadata": {"user_role": "support_agent"},
            "extra_headers": {"x-bundle": old.digest},
        }
        async with chat:
            got = await chat.chat.completions.create(**asked)
            assert live.said == "v1" and got.system_fingerprint == old.digest
            assert (got.model_extra or {})["bundlectl"]["pinned"]["serial"] == 2
            chunks = [chunk async for chunk in await chat.chat.completions.create(stream=True, **asked)]
            assert {chunk.system_fingerprint for chunk in chunks} == {old.digest}
            with pytest.raises(openai.PermissionDeniedError, match="may_pin"):
                await chat.with_options(api_key="key-of-product").chat.completions.create(**asked)


async def test_who_may_not_and_what_is_not_there() -> None:
    async with _live("v1", "v2") as (live, (old, new)):
        for named in (old, new, "nonsense"):
            status, found = await live.ask(named, **MAY_NOT)
            assert (status, found["error"]) == (403, "pin_not_allowed") and old.digest not in json.dumps(found)
        assert (await live.ask(**MAY_NOT))[0] == 200
        for named in ("latest", "sha256:12", old.digest.upper()):
            assert (await live.ask(named))[1]["error"] == "bad_pin"
        status, found = await live.ask("sha256:" + "0" * 64)
        assert (status, found["error"]) == (406, "bundle_not_served")
        assert old.digest in found["why"] and new.digest in found["why"] and found["fix"]
        assert len(live.fake.requests) == 1 and len(live.receipts.kept) == 1


async def test_head_changes_between_two_pinned_requests() -> None:
    async with _live("v1") as (live, (first,)):
        assert (await live.ask(first))[1]["pinned"] == {"to": "head", "epoch": 1, "serial": 1}
        second = live.promote("v2")
        await live.resolver.poll_now()
        status, found = await live.ask(first, **{"cache-control": "no-store"})
        assert status == 200 and live.said == "v1"
        assert found["pinned"] == {"to": "rollback_target", "epoch": 1, "serial": 2}
        third = live.promote("v3")
        await live.resolver.poll_now()
        status, found = await live.ask(first)
        assert status == 406 and second.digest in found["why"] and third.digest in found["why"]


async def test_head_changes_while_the_target_is_prepared() -> None:
    """Whoever waits is judged anew, by the release that came meanwhile: none of the former one's is answered from."""
    async with _live("v1", "v2") as (live, (old, _)):
        prepare = live.resolver._prepare

        async def late(verified: VerifiedBundle) -> Compiled:
            if verified.bundle.digest == old.digest:
                live.promote("v3")
                await live.resolver.poll_now()
            return await prepare(verified)

        live.resolver._standby._prepare = late  # type: ignore[union-attr]
        status, found = await live.ask(old)
        assert (status, found["error"]) == (406, "bundle_not_served") and not live.fake.requests


async def test_a_target_that_does_not_verify_is_an_error_and_head_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "AGAIN_SECONDS", -1.0)
    async with _live("v1", "v2") as (live, (old, _)):
        store, key = live.world.store, history_key("support", "prod", 1, 1)
        good = store.get(key)
        store.swap(key, flip(good.data, len(good.data) // 3), good.tag)
        status, found = await live.ask(old)
        assert (status, found["error"]) == (409, "pin_refused") and found["why"] and found["fix"]
        assert (await live.ask())[0] == 200 and live.said == "v2"
        store.swap(key, good.data, store.get(key).tag)
        assert (await live.ask(old))[0] == 200 and live.said == "v1"
        live.world.block(old.digest)
        live.world.tick(minutes=11)
        await live.resolver.poll_now()
        status, found = await live.ask(old)
        assert (status, found["error"]) == (409, "pin_refused") and "blocked" in found["why"]
        assert (await live.ask())[0] == 200


async def test_a_slow_preparation_asks_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "WAIT_SECONDS", 0.0)
    async with _live("v1", "v2") as (live, (old, _)):
        headers = MAY | {"x-bundle": old.digest}
        async with live.client.post("/v1/requests", json=BODY, headers=headers) as response:
            assert response.status == 503 and response.headers["retry-after"] == "5"
            assert (await response.json())["error"] == "pin_unavailable"


async def test_what_no_release_stands_behind_has_no_target() -> None:
    async with _live("v1", "v2") as (live, (old, new)):
        served = Served("support", "prod", live.resolver.current, Router(live.resolver.current, live.receipts))
        async with serving(app=Server([served])) as client:
            live.client = client
            assert (await live.ask(new))[0] == 200
            status, found = await live.ask(old)
            assert status == 406 and "no target" in found["why"]
