"""A model that struggles is not flooded: how often it is called, over the requests that came."""

from __future__ import annotations

import asyncio

from bundlectl.router.identity import LOCAL
from tests.benchmarks.brownout import app
from tests.support.answering import contract, setting
from tests.support.fake_models import Fail, Say, fake_models

REQUESTS = 1000


async def test_retries_add_at_most_a_tenth_to_the_calls_of_a_struggling_model() -> None:
    async with fake_models() as fake, setting(fake.base_url, values=app()) as s:
        # Every third call is refused: never five in a row, so the breaker stays closed and only the budget holds.
        fake.reply = lambda _: Fail(429) if len(fake.requests) % 3 == 0 else Say("Use promote [1].")
        outcomes = []
        for _ in range(REQUESTS // 20):
            asked = (s.router.handle(contract("chat"), LOCAL) for _ in range(20))
            outcomes += await asyncio.gather(*asked)
    assert all(outcome.status == 200 for outcome in outcomes)
    retried = [one for one in outcomes if sum(a.model == "small" for a in one.receipt.attempts) == 2]
    degraded = [one for one in outcomes if one.answer is not None and one.answer.degraded]
    assert s.compiled.breakers["small"].opened is None
    assert REQUESTS * 1.05 < len(fake.requests) <= REQUESTS * 1.1
    assert len(fake.requests) == REQUESTS + len(retried), "what the receipts say is what the model saw"
    assert 0 < len(degraded) < REQUESTS / 3
