"""Answers a second of ``router.answer()`` in this process, one after the other."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bundlectl.actions.ask import request_for
from bundlectl.actions.context import Context
from bundlectl.actions.index import index_build
from bundlectl.actions.keyring import keyring_init
from bundlectl.actions.opening import load_bundle
from bundlectl.actions.routing import router_of
from bundlectl.inference.provider import Delta, ModelCall, ModelReply
from bundlectl.model.bindings import Bindings
from bundlectl.model.contract import ReleaseRef, Request, Usage
from bundlectl.receipts.writer import ReceiptLog
from bundlectl.router.assemble import World, assemble
from bundlectl.router.identity import LOCAL
from bundlectl.router.router import Router
from tests.benchmarks.measure import Effort, Result, async_seconds, paired, rates
from tests.support.answering import bundle_of, contract, parts

ROOT = Path(__file__).resolve().parents[2]
HELD = ReleaseRef(
    app="support", environment="prod", epoch=1, serial=7, bundle="sha256:" + "0" * 64, bindings="sha256:" + "0" * 64
)


def context(folder: Path) -> Context:
    return Context(str(folder / ".bundlectl" / "registry"), lambda: datetime.now(UTC), lambda: "id")


class AtOnce:
    """A model that answers at once."""

    name = "openai"
    reads_prompt = True
    deterministic = True

    async def generate(self, call: ModelCall) -> ModelReply:
        return ModelReply("Use promote with the environment and a reason.", Usage(input_tokens=20, output_tokens=9))

    def stream(self, call: ModelCall) -> AsyncIterator[Delta]:
        raise NotImplementedError


def whole_replies() -> dict[str, Any]:
    """Give the tests' app without first-token deadlines, which make every call a stream."""
    values = parts()
    routes = values["routes"].routes
    patient = {name: route.model_copy(update={"first_token": None, "timeout": "30s"}) for name, route in routes.items()}
    return values | {"routes": values["routes"].model_copy(update={"routes": patient})}


async def no_op() -> None:
    """What it costs to await anything."""


def answer_in_process(effort: Effort) -> list[Result]:
    return asyncio.run(_measured(effort))


async def _measured(effort: Effort) -> list[Result]:
    with tempfile.TemporaryDirectory() as folder:
        return [
            await _without_retrieval(Path(folder), effort.of(1_000, 20_000)),
            await _with_retrieval(Path(folder), effort.of(40, 400)),
        ]


async def _compared(name: str, note: str, requests: list[Request], answer: Answer, rounds: int = 9) -> Result:
    async def ours() -> None:
        for request in requests:
            await answer(request)

    async def against() -> None:
        for _ in requests:
            await no_op()

    await ours()
    pairs = [(await async_seconds(ours), await async_seconds(against)) for _ in range(rounds)]
    note += "; against awaiting a coroutine that does nothing"
    return paired(name, "1/s", note, rates(pairs, len(requests)))


Answer = Callable[[Request], Awaitable[object]]


async def _without_retrieval(folder: Path, count: int) -> Result:
    world = World(make_provider=lambda *_: AtOnce(), open_index=_no_index)
    compiled = await assemble(bundle_of(whole_replies()), Bindings(), HELD, world)
    requests = [
        contract("chat", f"How do I promote release {n}?", tenant_id=f"tenant-{n % 50}", policy_profile="guarded")
        for n in range(count)
    ]
    with ReceiptLog(folder / "receipts", capacity=2 * count) as log:
        router = Router(lambda: compiled, log)

        async def answer(request: Request) -> None:
            assert (await router.answer(request, LOCAL)).output is not None

        result = await _compared(
            "router.answer(), no retrieval",
            "all stages, guards on both sides, receipts written, a model that answers at once, 50 tenants; hoped for: "
            ">= 2,934, TensorZero's embedded gateway",
            requests,
            answer,
        )
        assert log.lost == 0
    return result


async def _no_index(*_: object) -> Any:
    """Give what is never searched here."""
    return None


async def _with_retrieval(folder: Path, count: int) -> Result:
    ctx = context(folder)
    await asyncio.to_thread(keyring_init, ctx, "support", owner="bench")
    source = ROOT / "bundles" / "support"
    built = await asyncio.to_thread(index_build, ctx, source / "indexes" / "support_docs.yaml", app="support")
    app, bundle = await asyncio.to_thread(load_bundle, ctx, str(source))
    cases = [json.loads(line) for line in (ROOT / "evals" / "support.jsonl").read_text("utf-8").splitlines()]
    requests = [
        request_for(
            bundle,
            case["input"]["question"],
            task=None,
            tenant=case["tenant"],
            role=case["role"],
            scopes=case["scopes"],
            profile=None,
        )
        for case in cases[:count]
    ]
    async with router_of(ctx, app, bundle, Bindings(disabled_models=["own"])) as (router, _):
        return await _compared(
            "router.answer(), retrieval, extractive",
            f"the example's questions over {built.chunks} chunks",
            requests,
            lambda request: router.answer(request, LOCAL),
            rounds=5,
        )
