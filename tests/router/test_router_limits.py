"""Limits and budgets: counted, reserved and settled in this process; laws by hypothesis; and over the whole path."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlectl.inference.prices import PRICE_BOOK, Price, PriceBook
from bundlectl.model.bindings import Bindings, Limit, Limits
from bundlectl.model.components import Model
from bundlectl.model.errors import UsageError
from bundlectl.router.identity import LOCAL
from bundlectl.router.limits import ASSUMED_OUTPUT, CompiledLimits, Exceeded, Granted, Need, whole_seconds
from bundlectl.router.limits_memory import DAY, SWEEP, MemoryCounts
from bundlectl.router.routing import CompiledRoute
from tests.router.test_router_server import ask, body, serving
from tests.support.answering import contract, parts, setting
from tests.support.fake_models import Fail, FakeModels, Say, fake_models

NOON = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
async def fake() -> AsyncIterator[FakeModels]:
    async with fake_models() as server:
        yield server


class Clock:
    """Both clocks of counting, moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    @property
    def at(self) -> datetime:
        return NOON + timedelta(seconds=self.now)


def need(limit: Limit, subject: str = "tenant:a", **amounts: Any) -> Need:
    return Need(subject, limit, **amounts)


def taken(counts: MemoryCounts, clock: Clock, *needs: Need) -> Granted:
    found = counts.take(needs, clock.at)
    assert isinstance(found, Granted), found
    return found


def refused(counts: MemoryCounts, clock: Clock, *needs: Need) -> Exceeded:
    found = counts.take(needs, clock.at)
    assert isinstance(found, Exceeded), found
    return found


def test_requests_refill_steadily_and_say_when() -> None:
    clock = Clock()
    counts, limit = MemoryCounts(clock), Limit(requests_per_minute=60)
    for _ in range(60):
        taken(counts, clock, need(limit, requests=1))
    full = refused(counts, clock, need(limit, requests=1))
    assert "60 requests per minute" in full.reason() and full.retry_after == pytest.approx(1.0)
    taken(counts, clock, need(limit, "tenant:b", requests=1))
    clock.now = 0.9
    refused(counts, clock, need(limit, requests=1))
    clock.now = 1.0
    taken(counts, clock, need(limit, requests=1))
    assert whole_seconds(0.2) == 1 and whole_seconds(1.2) == 2


def test_tokens_are_reserved_and_what_was_not_used_comes_back() -> None:
    clock = Clock()
    counts, limit = MemoryCounts(clock), Limit(tokens_per_minute=1000)
    first = taken(counts, clock, need(limit, tokens=600))
    later = refused(counts, clock, need(limit, tokens=600))
    assert later.retry_after == pytest.approx(12.0)
    counts.settle(first, 100, 0.0, clock.at)
    second = taken(counts, clock, need(limit, tokens=600))
    counts.settle(second, 1600, 0.0, clock.at)  # more than reserved: a debt
    assert refused(counts, clock, need(limit, tokens=100)).retry_after == pytest.approx((700 + 100) * 60 / 1000)
    never = refused(counts, clock, need(limit, tokens=1001))
    assert never.retry_after is None and "ever" in never.reason()
    clock.now = 3600.0
    assert taken(counts, clock, need(limit, tokens=1000))
    refused(counts, clock, need(limit, tokens=1))  # an hour's rest saved up a minute's worth


def test_money_is_reserved_settled_and_released() -> None:
    clock = Clock()
    counts, limit = MemoryCounts(clock), Limit(usd_per_day=1.0)
    held = taken(counts, clock, need(limit, usd=0.7))
    waits = refused(counts, clock, need(limit, usd=0.7))
    assert waits.retry_after == 1.0  # only a request under way is in the way
    counts.settle(held, 0, 0.0, clock.at)
    held = taken(counts, clock, need(limit, usd=0.7))
    counts.settle(held, 10, 0.65, clock.at)
    over = refused(counts, clock, need(limit, usd=0.7))
    assert over.retry_after == DAY / 2 and "1 US dollars" in over.reason()
    taken(counts, clock, need(limit, usd=0.0))  # what is free goes on
    assert refused(counts, clock, need(limit, usd=1.1)).retry_after is None


def test_a_day_begins_anew_and_what_ends_after_it_belongs_to_the_day_before() -> None:
    clock = Clock()
    counts, limit = MemoryCounts(clock), Limit(usd_per_day=1.0)
    old = taken(counts, clock, need(limit, usd=0.9))
    clock.now = DAY / 2
    new = taken(counts, clock, need(limit, usd=0.9))
    counts.settle(old, 0, 0.9, clock.at)
    counts.settle(new, 0, 0.1, clock.at)
    taken(counts, clock, need(limit, usd=0.9))


def test_quiet_subjects_are_forgotten_and_debts_are_not() -> None:
    clock = Clock()
    counts, limit = MemoryCounts(clock), Limit(requests_per_minute=60)
    rich = Limit(usd_per_day=1.0)
    counts.settle(taken(counts, clock, need(rich, "tenant:rich")), 0, 1.5, clock.at)
    for n in range(SWEEP + 10):
        clock.now += 1
        taken(counts, clock, need(limit, f"tenant:{n}", requests=1))
    assert len(counts._counts) < SWEEP
    refused(counts, clock, need(rich, "tenant:rich"))


def test_what_was_spent_on_days_that_are_over_is_forgotten_too() -> None:
    clock = Clock()
    counts, limit = MemoryCounts(clock), Limit(usd_per_day=1.0)
    for day in range(4):
        clock.now = day * DAY
        for n in range(SWEEP):
            counts.settle(taken(counts, clock, need(limit, f"tenant:{day}-{n}", usd=0.5)), 0, 0.4, clock.at)
    assert len(counts._counts) <= 2 * SWEEP
    refused(counts, clock, need(limit, f"tenant:3-{n}", usd=0.7))


def test_all_or_nothing() -> None:
    clock = Clock()
    counts, one, none = MemoryCounts(clock), Limit(requests_per_minute=1), Limit(usd_per_day=0.1)
    over = refused(counts, clock, need(one, requests=1), need(none, "task:t", usd=0.2))
    assert over.need.subject == "task:t"
    taken(counts, clock, need(one, requests=1))


# ---------------------------------------------------------------- laws

SUBJECTS = ("tenant:a", "tenant:b", "task:a", "route:a")
LIMITS = st.builds(
    Limit,
    requests_per_minute=st.none() | st.integers(1, 5),
    tokens_per_minute=st.none() | st.integers(1, 500),
    usd_per_day=st.none() | st.floats(0.01, 3.0),
    soft_usd_per_day=st.none() | st.floats(0.01, 3.0),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(SUBJECTS),
        st.integers(0, 2),  # requests
        st.integers(0, 300),  # tokens
        st.floats(0.0, 1.0),  # dollars reserved
        st.floats(0.0, 1.0),  # share of it that is used
        st.sampled_from(["settle", "keep", "release"]),
        st.floats(0.0, 30.0),  # seconds until the next one
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(LIMITS, STEPS)
def test_what_is_settled_within_its_reservation_never_passes_a_hard_limit(limit: Limit, steps: list[Any]) -> None:
    clock = Clock()
    counts = MemoryCounts(clock)
    spent = dict.fromkeys(SUBJECTS, 0.0)
    used = dict.fromkeys(SUBJECTS, 0)
    asked = dict.fromkeys(SUBJECTS, 0)
    for subject, requests, tokens, usd, share, what, pause in steps:
        found = counts.take([need(limit, subject, requests=requests, tokens=tokens, usd=usd)], clock.at)
        if isinstance(found, Granted):
            asked[subject] += requests
            actual = 0 if what == "release" else int(tokens * share)
            if what != "keep":
                cost = 0.0 if what == "release" else usd * share
                counts.settle(found, actual, cost, clock.at)
                spent[subject] += cost
            used[subject] += tokens if what == "keep" else actual
        else:
            assert found.retry_after is None or found.retry_after > 0
        clock.now += pause
    minutes = clock.now / 60
    for subject in SUBJECTS:
        if limit.usd_per_day is not None:
            assert spent[subject] <= limit.usd_per_day + 1e-9
        if limit.requests_per_minute is not None:
            assert asked[subject] <= limit.requests_per_minute * (1 + minutes) + 1e-6
        if limit.tokens_per_minute is not None:
            assert used[subject] <= limit.tokens_per_minute * (1 + minutes) + 1e-6


@settings(max_examples=100, deadline=None)
@given(LIMITS, STEPS, st.sampled_from(SUBJECTS))
def test_no_subject_feels_what_another_does(limit: Limit, steps: list[Any], watched: str) -> None:
    def run(of: list[Any]) -> list[Any]:
        clock, seen = Clock(), []
        counts = MemoryCounts(clock)
        for subject, requests, tokens, usd, share, what, pause in of:
            if subject is not None:
                found = counts.take([need(limit, subject, requests=requests, tokens=tokens, usd=usd)], clock.at)
                if isinstance(found, Granted) and what != "keep":
                    counts.settle(found, int(tokens * share), usd * share, clock.at)
                if subject == watched:
                    seen.append((found.kind, found.retry_after) if isinstance(found, Exceeded) else len(found.soft))
            clock.now += pause
        return seen

    alone = [step if step[0] == watched else (None, *step[1:]) for step in steps]
    assert run(steps) == run(alone)


CALLER = {"tenant": "acme", "task": "ask", "route": "fast"}


@pytest.mark.parametrize("field", ["tenant", "task", "route"])
async def test_each_field_alone_leads_to_other_counts(field: str) -> None:
    limits = {kind + "s": {"default": {"requests_per_minute": 1, "usd_per_day": 1}} for kind in CALLER}
    async with setting(bindings={"limits": limits}) as s:
        found = s.compiled.limits

        def subjects(caller: dict[str, str]) -> set[str]:
            needs = found.calling(caller["tenant"], caller["task"], [caller["route"]], 10)
            return {one.subject for one in [*found.entering(caller["tenant"], caller["task"]), *needs]}

        other = {"tenant": "zenith", "task": "chat", "route": "second"}
        here, there = subjects(CALLER), subjects({**CALLER, field: other[field]})
        assert here - there == {f"{field}:{CALLER[field]}"} and there - here == {f"{field}:{other[field]}"}


# ---------------------------------------------------------------- the whole path


async def test_limits_hold_per_tenant_task_and_route(fake: FakeModels) -> None:
    limits = {
        "tenants": {"default": {"requests_per_minute": 3}, "vip": {}},
        "tasks": {"chat": {"requests_per_minute": 2}},
        "routes": {"quotes": {"requests_per_minute": 1}},
    }
    async with setting(fake.base_url, bindings={"limits": limits}) as s:

        async def status(task: str = "ask", tenant: str = "acme") -> int:
            outcome = await s.router.handle(contract(task, tenant_id=tenant), LOCAL)
            return int(outcome.status)

        assert [await status() for _ in range(4)] == [200, 200, 200, 429]
        assert "tenant acme" in s.receipts.last.refused.reason
        assert [await status(tenant="zenith") for _ in range(2)] == [200, 200]
        assert [await status("chat", f"t{n}") for n in range(3)] == [200, 200, 429]
        assert "task chat" in s.receipts.last.refused.reason
        assert [await status(tenant="vip") for _ in range(5)] == [200] * 5
        assert [await status(tenant="quotes-only") for _ in range(2)] == [200, 429]
        assert "route quotes" in s.receipts.last.refused.reason


def dear(max_tokens: int | None = 1000) -> dict[str, Any]:
    values = copy.deepcopy(parts())
    parameters = {"temperature": 0} if max_tokens is None else {"temperature": 0, "max_tokens": max_tokens}
    values["models"]["small"] = Model(provider="openai", model="gpt-4o-mini", parameters=parameters)
    return values


PRICE = PRICE_BOOK.prices["openai", "gpt-4o-mini"]


async def test_an_upper_bound_is_reserved_and_what_was_used_is_settled(fake: FakeModels) -> None:
    limits = {"tenants": {"default": {"usd_per_day": 1.0, "tokens_per_minute": 5000}}}
    async with setting(fake.base_url, values=dear(), bindings={"limits": limits}) as s:
        (one,) = s.compiled.limits.calling("acme", "ask", ["fast", "second", "last"], 50)
        assert one.tokens == 50 + ASSUMED_OUTPUT  # the fallback states no maximum
        assert one.usd == pytest.approx((50 * PRICE.input + 1000 * PRICE.output) / 1e6)
        outcome = await s.router.handle(contract(), LOCAL)
        count = s.router._shared.counts._counts["tenant:acme"]
        assert count.spent == pytest.approx(outcome.receipt.cost.usd) and count.reserved == 0.0
        used = outcome.receipt.usage.input_tokens + outcome.receipt.usage.output_tokens
        assert 0 < used < 1000 and count.tokens == pytest.approx(5000 - used, abs=50)
        fake.default = Fail(500)
        degraded = await s.router.handle(contract(), LOCAL)
        assert degraded.receipt.degraded and count.reserved == 0.0
        assert count.spent == pytest.approx(outcome.receipt.cost.usd)


async def test_a_request_that_never_fits_is_told_so(fake: FakeModels) -> None:
    limits = {"tenants": {"default": {"usd_per_day": 0.00001}}}
    async with setting(fake.base_url, values=dear(), bindings={"limits": limits}) as s, serving(s) as client:
        async with client.post("/v1/requests", json=body()) as response:
            found = await response.json()
            assert response.status == 429 and "retry-after" not in response.headers
        assert "ever" in found["refused"]["reason"] and fake.requests == []
        status, _ = await ask(client, body(tenant_id="quotes-only"))  # costs nothing
        assert status == 200


async def test_429_says_when_to_come_back(fake: FakeModels) -> None:
    limits = {"tenants": {"default": {"requests_per_minute": 2}}}
    async with setting(fake.base_url, bindings={"limits": limits}) as s, serving(s) as client:
        for accept in ("application/json", "text/event-stream"):
            async with client.post("/v1/requests", json=body(), headers={"accept": accept}) as response:
                assert response.status == 200 and await response.read()
        for accept in ("application/json", "text/event-stream"):
            async with client.post("/v1/requests", json=body(), headers={"accept": accept}) as response:
                assert response.status == 429 and 1 <= int(response.headers["retry-after"]) <= 30
                assert (await response.json())["refused"]["code"] == "limited"


async def test_beyond_a_soft_limit_the_cheaper_route_answers_and_it_is_told_once(fake: FakeModels) -> None:
    told: list[str] = []
    soft = {"tenants": {"default": {"soft_usd_per_day": 0.000001, "usd_per_day": 1.0}}}
    async with setting(fake.base_url, values=dear(), bindings={"limits": {**soft, "soft_route": "last"}}) as s:
        router = type(s.router)(lambda: s.compiled, s.receipts, lambda: NOON, on_event=told.append)
        found = [await router.handle(contract(), LOCAL) for _ in range(2)]
        assert [(one.status, one.answer.route) for one in found] == [(200, "last")] * 2 and fake.requests == []
        assert "soft limit" in found[0].answer.degraded.reason and "no time" not in found[0].answer.degraded.reason
        assert found[0].receipt.soft_limits == ["tenant acme: soft limit of 1e-06 US dollars per day"]
        assert told == ["tenant acme: soft limit of 1e-06 US dollars per day is passed"]
        # Restricted data does not move because it is cheaper elsewhere: marked, and answered where it must be.
        kept = await router.handle(contract("chat", policy_profile="restricted"), LOCAL)
        assert kept.answer.route == "restricted" and kept.answer.degraded is None
    async with setting(fake.base_url, values=dear(), bindings={"limits": soft}) as s:
        only_marked = await s.router.handle(contract(), LOCAL)
        assert only_marked.answer.route == "fast" and only_marked.receipt.soft_limits
        assert only_marked.answer.degraded is None


async def test_what_was_given_up_is_released(fake: FakeModels) -> None:
    limits = {"tenants": {"default": {"usd_per_day": 1.0}}}
    async with setting(fake.base_url, values=dear(), bindings={"limits": limits}) as s:
        stream = s.router.stream(contract(), LOCAL)
        async for event in stream:
            if event.kind == "start":
                break
        count = s.router._shared.counts._counts["tenant:acme"]
        assert count.reserved > 0.0
        await stream.aclose()
        assert count.reserved == 0.0


async def test_hanging_up_before_the_end_is_not_free(fake: FakeModels) -> None:
    fake.default = Say("A plain sentence of words that goes on. " * 60)
    limits = {"tenants": {"default": {"usd_per_day": 1.0, "tokens_per_minute": 9000}}}
    async with setting(fake.base_url, values=dear(), bindings={"limits": limits}) as s:
        stream = s.router.stream(contract(), LOCAL)
        shown = 0
        async for event in stream:
            shown += len(event.data.get("text", ""))
            if shown > 1000:
                break
        await stream.aclose()
        count, prompt = s.router._shared.counts._counts["tenant:acme"], s.receipts.last.prompt_tokens
        assert s.receipts.last.usage.output_tokens == 0, "nobody said"
        least = (prompt * PRICE.input + shown / 4 * PRICE.output) / 1e6
        assert count.reserved == 0.0 and least <= count.spent < 2 * least
        assert count.tokens < 9000 - prompt - shown / 4 + 100


def test_what_is_called_elsewhere_or_in_another_tier_is_reserved_at_its_own_price() -> None:
    class Elsewhere:
        def priced_as(self, model: Model) -> str:
            return f"eu-central-1/{model.model}@flex"

    model = Model(provider="bedrock", model="nova", parameters={"max_tokens": 1000})
    route = CompiledRoute("fast", "small", model, Elsewhere(), 1.0, None, None, 0, (), False)  # type: ignore[arg-type]
    book = PriceBook("1", "USD", {("bedrock", "eu-central-1/nova@flex"): Price(input=1.0, output=10.0)})
    limits = CompiledLimits(Limits(tenants={"default": Limit(usd_per_day=1.0)}), {"fast": route}, book)
    assert limits.calling("acme", "ask", ["fast"], 500)[0].usd == pytest.approx((500 * 1.0 + 1000 * 10.0) / 1e6)


async def test_bindings_name_what_the_bundle_has(fake: FakeModels) -> None:
    wrong: list[dict[str, Any]] = [{"tasks": {"nope": {}}}, {"routes": {"nope": {}}}, {"soft_route": "nope"}]
    for limits in wrong:
        with pytest.raises(UsageError, match="nope"):
            async with setting(fake.base_url, bindings={"limits": limits}):
                pass


def test_todays_form_keeps_its_bytes() -> None:
    old = {"tenants": {"default": {"requests_per_minute": 600, "usd_per_day": 5.0}}}
    assert Bindings.model_validate({"limits": old}).form()["limits"] == old
    fitting = Limits.model_validate({"tasks": {"a": {}, "default": {}}, "routes": {"r": {}}, "soft_route": "s"})
    assert fitting.fitting(["b"], ["r"]).form() == {"tenants": {}, "tasks": {"default": {}}, "routes": {"r": {}}}
    assert Limits().fitting([], []) == Limits()
