"""Many requests through the router while a model is unwell: what callers get, how long they wait, how many calls.

    python -m tests.benchmarks.brownout    # prints the table of docs/router-faults.md

Requests come at a steady rate, whether or not those before them are answered, before, during and after. Callers,
server and model server are one process with sockets between them. Amplification is calls of the model that is unwell,
divided by requests.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from bundlectl.model.components import Route, Routes, Rule
from bundlectl.router.router import Router
from tests.benchmarks.measure import Effort, Result
from tests.router.test_router_server import serving
from tests.support.answering import NOW, Setting, contract, parts, setting
from tests.support.fake_models import Fail, FakeModels, Say, Stall, Step, fake_models

GOOD = Say("Use promote [1].")


@dataclass(frozen=True)
class Brownout:
    """A way of being unwell: ``step`` for so large a ``share`` of the calls."""

    name: str
    step: Step
    share: float


BROWNOUTS = (
    Brownout("5 % of calls answer 503", Fail(503), 0.05),
    Brownout("30 % of calls answer 429", Fail(429, "rate_limit_exceeded", "slow down"), 0.30),
    Brownout("every call answers 503", Fail(503), 1.0),
    Brownout("30 % of calls stall", Stall(), 0.30),
    Brownout("every call stalls", Stall(), 1.0),
)


@dataclass
class Phase:
    """What came of the requests of one phase."""

    name: str
    calls: int = 0
    breaker: str = ""
    waited: list[float] = field(default_factory=list)
    answered: int = 0
    degraded: int = 0
    failed: int = 0

    @property
    def requests(self) -> int:
        return len(self.waited)

    @property
    def amplification(self) -> float:
        return self.calls / self.requests

    def row(self, brownout: str) -> str:
        cuts = statistics.quantiles(self.waited, n=100)
        shares = " / ".join(f"{n / self.requests:.1%}" for n in (self.answered, self.degraded, self.failed))
        waits = f"{cuts[49] * 1e3:.0f} / {cuts[98] * 1e3:.0f} ms"
        return (
            f"| {brownout} | {self.name} | {self.requests} | {self.amplification:.2f} | {waits} | {shares} "
            f"| {self.breaker} |"
        )


def app() -> dict[str, Any]:
    """Give an app with one retry, a timeout of two seconds, and the extractive provider as fallback."""
    values = parts()
    fast = Route(model="small", timeout="2s", retries=1, fallback=["last"])
    values["routes"] = Routes(routes={"fast": fast, "last": Route(model="plain")}, select=[Rule(use="fast")])
    return values


async def play(
    brownout: Brownout, rate: float, seconds: tuple[float, float, float], *, seed: int = 7, model_seconds: float = 0.02
) -> list[Phase]:
    """Send ``rate`` requests a second before, during and after, for so many seconds each."""
    chance = random.Random(seed)
    phases = [Phase(name) for name in ("before", "during", "after")]
    now = phases[0]

    def reply(_: dict[str, Any]) -> Step:
        now.calls += 1
        return brownout.step if now.name == "during" and chance.random() < brownout.share else GOOD

    async with AsyncExitStack() as stack:
        fake: FakeModels = await stack.enter_async_context(fake_models())
        fake.reply, fake.delay = reply, model_seconds
        s: Setting = await stack.enter_async_context(setting(fake.base_url, values=app()))
        s.router = Router(lambda: s.compiled, s.receipts, lambda: NOW, chance=random.Random(seed).random)
        client = await stack.enter_async_context(serving(s))
        breaker = s.compiled.breakers["small"]
        tasks = []
        for now, length in zip(phases, seconds, strict=True):
            began, count, opened = time.monotonic(), max(1, int(rate * length)), 0
            for n in range(count):
                await asyncio.sleep(max(0.0, began + n / rate - time.monotonic()))
                opened += breaker.opened is not None
                tasks.append(asyncio.create_task(_one(client, now)))
            now.breaker = f"open for {opened / count:.0%}" if opened else "closed"
        await asyncio.gather(*tasks)
    return phases


async def _one(client: aiohttp.ClientSession, phase: Phase) -> None:
    began = time.monotonic()
    async with client.post("/v1/requests", json=contract().form()) as response:
        answer = await response.json()
    phase.waited.append(time.monotonic() - began)
    if response.status != 200:
        phase.failed += 1
    elif "degraded" in answer:
        phase.degraded += 1
    else:
        phase.answered += 1


def brownouts(effort: Effort) -> list[Result]:
    results = []
    for brownout in BROWNOUTS if effort.soak else BROWNOUTS[1:2]:
        phases = asyncio.run(play(brownout, 100.0, (1.0, effort.of(10, 40), 1.0)))
        during = phases[1]
        note = f"calls of the model, against requests; {during.answered / during.requests:.1%} answered by it, "
        note += f"{during.degraded / during.requests:.1%} degraded, {during.failed} failed; breaker {during.breaker}"
        results.append(
            Result(f"brownout: {brownout.name}", during.calls, during.requests, during.amplification, "calls", note)
        )
    return results


def main() -> None:
    print("| the model | when | requests | amplification | p50 / p99 | answered / degraded / failed | breaker |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for brownout in BROWNOUTS:
        for phase in asyncio.run(play(brownout, 100.0, (5.0, 20.0, 15.0))):
            print(phase.row(brownout.name), flush=True)


if __name__ == "__main__":
    main()
