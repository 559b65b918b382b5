"""Whole requests through the router, against a real model server on a socket."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from bundlectl.model.components import Output, Route, Routes, Rule, When
from bundlectl.model.errors import BundlectlError, NotFound, UsageError, VerificationFailed
from bundlectl.router.contract import ContractError
from bundlectl.router.identity import LOCAL, Identity
from bundlectl.router.router import Router
from tests.support.answering import NOW, PASSAGES, HandIndex, bundle_of, chunk, contract, parts, setting
from tests.support.fake_models import Cut, Fail, FakeModels, Raw, Refuse, Say, Stall, Step, fake_models, throttle


@pytest.fixture
async def fake() -> AsyncIterator[FakeModels]:
    async with fake_models() as server:
        yield server


async def test_an_answer_says_what_made_it(fake: FakeModels) -> None:
    fake.then(Say("Run promote with a reason [1], or see [1, 2] and [9]."))
    async with setting(fake.base_url) as s:
        outcome = await s.router.handle(contract(), LOCAL)
    answer, receipt = outcome.answer, outcome.receipt
    assert outcome.status == 200 and answer.output.startswith("Run promote")
    assert (answer.route, answer.model, answer.degraded, answer.refused) == ("fast", "small", None, None)
    assert [(c.n, c.document, c.section) for c in answer.citations] == [
        (1, "guide-1.md", ["Part 1"]),
        (2, "guide-2.md", ["Part 2"]),
    ]
    assert answer.usage.input_tokens == 100 and answer.cost.usd and answer.receipt == receipt.id
    assert answer.release.serial == 7 and answer.release.bundle == s.bundle.digest
    assert receipt.access == "allow" and receipt.access_policies == ["agents"]
    assert receipt.route_why == "rule 4 of 4: matches everything"
    assert [a.outcome for a in receipt.attempts] == ["ok"]
    assert receipt.attempts[0].provider_model == "fake-model-0125"
    assert receipt.prompt_reached_model is True and receipt.prompt_tokens and receipt.prompt_digest
    assert receipt.validation.errors == ["citation 9 names no passage"]
    assert receipt.retrieval.stale is False and receipt.retrieval.staleness == 0
    assert [c.packed for c in receipt.retrieval.chunks] == [True, True]
    assert receipt.cache == "off" and receipt.answer_digest and receipt.input_digest.startswith("hmac-sha256-")
    assert list(receipt.stages) == [
        "identity", "limits", "access", "input_guard", "cache", "retrieval", "packing", "prompt", "route", "budget",
        "invoke", "output_guard", "output_validation",
    ]  # fmt: skip
    assert s.receipts.kept == [receipt]
    sent = fake.requests[0]
    assert sent["messages"][0]["content"] == "Answer ask as text from these passages."
    assert PASSAGES[0].text in sent["messages"][1]["content"]


async def test_json_with_its_schema(fake: FakeModels) -> None:
    fake.then(Say(json.dumps({"answer": "Run promote.", "citations": [2, 7]})))
    async with setting(fake.base_url) as s:
        outcome = await s.router.handle(contract("ask_json", response_format="structured_json"), LOCAL)
    assert outcome.answer.output == {"answer": "Run promote.", "citations": [2, 7]}
    assert [c.n for c in outcome.answer.citations] == [2]
    assert outcome.receipt.validation.outcome == "valid"
    assert fake.requests[0]["response_format"]["type"] == "json_schema"


# step(s) of the selected route's model (two attempts), status, degraded?, outcomes of all attempts
ROUTES: list[tuple[str, list[Step], str | None, list[str]]] = [
    ("throttled once", [throttle("0"), Say("Fine [1].")], None, ["throttled", "ok"]),
    ("throttled twice", [throttle("0"), throttle("0"), Say("Own [1].")], "second", ["throttled"] * 2 + ["ok"]),
    ("throttled for long", [throttle("60"), Say("Own [1].")], "second", ["throttled", "ok"]),
    ("500 then well", [Fail(500), Say("Fine [1].")], None, ["unavailable", "ok"]),
    ("500 everywhere", [Fail(500)] * 3, "last", ["unavailable"] * 3 + ["ok"]),
    ("bad key", [Fail(401), Say("Own [1].")], "second", ["refused", "ok"]),
    ("declines", [Refuse(), Say("Own [1].")], "second", ["refused", "ok"]),
    ("no first token", [Stall("first_token"), Say("Fine [1].")], None, ["timeout", "ok"]),
    ("stalls in the stream", [Stall("stream"), Say("Own [1].")], "second", ["timeout", "ok"]),
    ("cut", [Cut(abrupt=True), Say("Fine [1].")], None, ["broken_stream", "ok"]),
    ("no end marker", [Cut(), Say("Fine [1].")], None, ["broken_stream", "ok"]),
    ("nonsense", [Raw(b"data: nonsense\n\n"), Say("Fine [1].")], None, ["invalid", "ok"]),
    ("huge", [Say("x" * (4 * 2**20 + 1), piece=2**19)] * 2 + [Say("Own [1].")], "second", ["invalid"] * 2 + ["ok"]),
]


@pytest.mark.parametrize(("steps", "other", "outcomes"), [r[1:] for r in ROUTES], ids=[r[0] for r in ROUTES])
async def test_a_misbehaving_model(fake: FakeModels, steps: list[Step], other: str | None, outcomes: list[str]) -> None:
    fake.then(*steps)
    async with setting(fake.base_url) as s:
        began = time.monotonic()
        outcome = await s.router.handle(contract(), LOCAL)
    assert time.monotonic() - began < 3
    assert outcome.status == 200
    assert [a.outcome for a in outcome.receipt.attempts] == outcomes
    assert outcome.answer.route == (other or "fast")
    if other is None:
        assert outcome.answer.degraded is None
    else:
        reason = outcome.answer.degraded.reason
        assert reason.startswith("route fast (model small) failed: ") and f"answered by route {other}" in reason
    if other == "last":
        assert "Passages that may answer" in outcome.answer.output
        assert outcome.receipt.prompt_reached_model is False
        assert outcome.answer.citations[0].quote


async def test_retry_after_is_waited_for(fake: FakeModels) -> None:
    fake.then(throttle("0.3"), Say("Fine [1]."))
    async with setting(fake.base_url) as s:
        began = time.monotonic()
        await s.router.handle(contract(), LOCAL)
    assert time.monotonic() - began >= 0.3


async def test_nothing_answers_within_the_restricted_list(fake: FakeModels) -> None:
    fake.then(Stall("headers"))
    async with setting(fake.base_url) as s:
        outcome = await s.router.handle(contract("chat", policy_profile="restricted"), LOCAL)
        with pytest.raises(BundlectlError) as caught:
            fake.then(Fail(500))
            await s.router.answer(contract("chat", policy_profile="restricted"), LOCAL)
    assert outcome.status == 503 and outcome.answer is None and len(fake.requests) == 2
    assert outcome.receipt.error == {"error": "nothing_answered", "stage": "invoke"}
    assert [a.route for a in outcome.receipt.attempts] == ["restricted"]
    assert outcome.receipt.route_why == "rule 1 of 4: profile is restricted"
    assert caught.value.details["receipt"] == s.receipts.last.id and caught.value.exit_code == 6


async def test_a_disabled_model_is_skipped_and_recorded(fake: FakeModels) -> None:
    async with setting(fake.base_url, bindings={"disabled_models": ["small"]}) as s:
        outcome = await s.router.handle(contract(), LOCAL)
    assert [(a.model, a.outcome) for a in outcome.receipt.attempts] == [("small", "disabled"), ("own", "ok")]
    assert "disabled" in outcome.answer.degraded.reason and outcome.answer.route == "second"
    assert fake.requests[0]["model"] == "own-8b"


async def test_the_circuit_opens_and_the_budget_ends(fake: FakeModels) -> None:
    fake.by_model["gpt-4o-mini"] = Fail(500)
    async with setting(fake.base_url) as s:
        for _ in range(5):
            outcome = await s.router.handle(contract(), LOCAL)
    assert [a.outcome for a in outcome.receipt.attempts] == ["open_circuit", "ok"]
    assert sum(r["model"] == "gpt-4o-mini" for r in fake.requests) == 5


async def test_an_extractive_route_is_no_degraded_answer() -> None:
    async with setting() as s:
        answer = await s.router.answer(contract(tenant_id="quotes-only"), LOCAL)
        as_json = await s.router.answer(contract("ask_json", tenant_id="quotes-only"), LOCAL)
        refused = await s.router.handle(contract(tenant_id="quotes-only", question="What is the moon made of?"), LOCAL)
    assert answer.degraded is None and answer.route == "quotes" and answer.cost.usd == 0
    assert as_json.output["citations"][0] == 1
    assert refused.status == 200 and refused.answer.refused.code == "no_answer" and refused.answer.output is None
    assert s.receipts.last.prompt_reached_model is False


# ---------------------------------------------------------------- output form

VALID = '{"answer": "Run promote.", "citations": [1]}'
FORM_TABLE: list[tuple[str, list[str], str, str, int]] = [
    ("valid", [VALID], "valid", "fast", 1),
    ("missing brace", ['{"answer": "Run promote.", "citations": [1]'], "repaired", "fast", 1),
    ("fenced", ["```json\n" + VALID + "\n```"], "repaired", "fast", 1),
    ("asked again", ['{"answer": 5}', VALID], "asked_again", "fast", 2),
    ("prose, then valid", ["I would run promote.", VALID], "asked_again", "fast", 2),
    ("the next route", ["no", "no again", VALID], "valid", "second", 3),
    ("the last route", ["no", "no again", "nor here", "nor again"], "valid", "last", 4),
]


@pytest.mark.parametrize(
    ("texts", "how", "route", "calls"), [r[1:] for r in FORM_TABLE], ids=[r[0] for r in FORM_TABLE]
)
async def test_output_that_misses_its_form(
    fake: FakeModels, texts: list[str], how: str, route: str, calls: int
) -> None:
    fake.then(*(Say(text) for text in texts))
    async with setting(fake.base_url) as s:
        outcome = await s.router.handle(contract("ask_json"), LOCAL)
    assert outcome.receipt.validation.outcome == how
    assert outcome.answer.route == route and len(fake.requests) == calls
    assert outcome.answer.output["citations"][0] == 1
    assert (outcome.answer.degraded is None) == (route == "fast")
    attempts = outcome.receipt.attempts
    assert attempts[-1].outcome == "ok" and all(a.outcome == "invalid" for a in attempts[:-1])
    if how == "asked_again":
        again = fake.requests[1]["messages"]
        assert again[-2] == {"role": "assistant", "content": texts[0]} and "does not fit" in again[-1]["content"]
    if route == "second":
        assert fake.requests[2]["messages"] == fake.requests[0]["messages"]


async def test_an_object_that_was_cut_off_is_asked_for_again_and_not_guessed(fake: FakeModels) -> None:
    half = {"finish_reason": "length", "message": {"content": '{"citations": [1], "answer": "At most 10'}}
    silent = {"finish_reason": "length", "message": {"content": ""}}
    usage = {"prompt_tokens": 5, "completion_tokens": 7}
    half, silent = (Raw(json.dumps({"choices": [one], "usage": usage}).encode()) for one in (half, silent))
    values = parts()
    values["routes"] = Routes(routes={"fast": Route(model="small", fallback=["last"]), "last": Route(model="plain")},
                              select=[Rule(use="fast")])  # fmt: skip
    fake.then(half, Say('{"citations": [1], "answer": "At most 1000"}'), half, silent)
    async with setting(fake.base_url, values=values) as s:
        outcome = await s.router.handle(contract("ask_json"), LOCAL)
        assert outcome.answer.output["answer"] == "At most 1000" and outcome.answer.degraded is None
        assert "cut off" in fake.requests[1]["messages"][-1]["content"]
        outcome = await s.router.handle(contract("ask_json"), LOCAL)
        assert outcome.answer.route == "last" and outcome.receipt.usage.output_tokens == 14
        assert s.compiled.breakers["small"].failures == 0, "a caller may have wished for it"


@pytest.mark.parametrize(
    "value", ['"\\ud800 half"', "1e999", "[" * 150 + "]" * 150, "[" * 800 + "]" * 800, "[" * 50_000, "NaN"]
)
async def test_no_output_of_a_model_is_a_defect(fake: FakeModels, value: str) -> None:
    values = parts()
    anything = {"type": "object", "required": ["answer"]}
    values["output"]["ask_json"] = Output(format="structured_json", schema_=anything, repair=0)
    fake.default = Say(f'{{"answer": {value}}}', piece=100_000)
    for profile in ("plain", "guarded"):
        async with setting(fake.base_url, values=values) as s:
            outcome = await s.router.handle(contract("ask_json", policy_profile=profile), LOCAL)
        if outcome.status == 200:
            json.loads(outcome.answer.model_dump_json(), parse_constant=pytest.fail)


async def test_what_an_answer_holds_arrives_as_it_is(fake: FakeModels) -> None:
    values = parts()
    values["output"]["ask_json"] = Output(format="structured_json", schema_={"type": "object"}, repair=0)
    held = {"none": None, "big": 12345678901234567890, "float": 0.1, "list": [None, {"x": None}], "a": True}
    fake.default = Say(json.dumps(held))
    async with setting(fake.base_url, values=values) as s:
        answer = await s.router.answer(contract("ask_json"), LOCAL)
    assert json.loads(answer.model_dump_json(exclude_none=True))["output"] == held
    assert answer.form()["output"] == held


async def test_a_request_stays_with_the_release_it_began_on(fake: FakeModels) -> None:
    fake.default = Stall("headers", seconds=0.2)
    async with setting(fake.base_url) as old, setting(fake.base_url, bindings={"disabled_models": ["small"]}) as new:
        current = old.compiled
        router = Router(lambda: current, old.receipts, lambda: NOW)
        running = [asyncio.ensure_future(router.handle(contract(), LOCAL)) for _ in range(20)]
        await asyncio.sleep(0.05)
        current = new.compiled
        after = await router.handle(contract(tenant_id="quotes-only"), LOCAL)
        before = await asyncio.gather(*running)
    assert {o.receipt.release.bindings for o in before} == {old.compiled.ref.bindings}
    assert after.receipt.release.bindings == new.compiled.ref.bindings != old.compiled.ref.bindings


# ---------------------------------------------------------------- who may ask what

SALES = Identity("sales", frozenset({"acme"}), frozenset({"intern"}))


@pytest.mark.parametrize("changes", [{"user_role": "agent"}, {"user_role": "intern", "tenant_id": "zenith"}])
async def test_a_role_or_tenant_that_the_identity_may_not_claim(fake: FakeModels, changes: dict[str, str]) -> None:
    async with setting(fake.base_url) as s:
        outcome = await s.router.handle(contract(**changes), SALES)
    assert outcome.status == 403 and outcome.answer.refused.code == "access_denied"
    assert outcome.receipt.identity == "sales" and outcome.receipt.access is None
    assert list(outcome.receipt.stages) == ["identity"]
    assert s.index.asked == [] and fake.requests == []


async def test_policies_deny_and_nothing_is_searched(fake: FakeModels) -> None:
    async with setting(fake.base_url) as s:
        fine = await s.router.handle(contract(user_role="intern"), SALES)
        denied = await s.router.handle(contract(user_role="intern", data_scope=["docs", "tickets"]), SALES)
        visitor = await s.router.handle(contract(user_role="visitor"), LOCAL)
        beyond = await s.router.handle(contract(data_scope=["docs", "secrets"]), LOCAL)
    assert fine.status == 200
    assert beyond.answer is not None and beyond.answer.refused is not None
    assert "secrets is beyond" in beyond.answer.refused.reason
    for outcome in (denied, visitor, beyond):
        assert outcome.status == 403 and outcome.receipt.access == "deny"
    assert len(s.index.asked) == 1


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"task": "nope"}, ["task"]),
        ({"policy_profile": "restricted"}, ["policy_profile"]),
        ({"response_format": "structured_json"}, ["response_format"]),
        ({"input": {"query": "x"}}, ["input.question", "input.query"]),
        ({"input": {"question": ["a"]}}, ["input.question"]),
        ({"input": {"question": "\ud800"}}, ["input"]),
    ],
)
async def test_what_does_not_fit_the_contract(changes: dict[str, Any], fields: list[str]) -> None:
    async with setting() as s:
        with pytest.raises(ContractError) as caught:
            await s.router.handle(contract(**changes), LOCAL)
    assert [field for field, _ in caught.value.fields] == fields
    assert s.receipts.kept == []


async def test_an_async_route_answers_in_batches_only(fake: FakeModels) -> None:
    async with setting(fake.base_url) as s:
        with pytest.raises(ContractError) as caught:
            await s.router.handle(contract(tenant_id="slow-corp"), LOCAL)
        assert caught.value.details["receipt"] == s.receipts.last.id
        assert s.receipts.last.error == {"error": "contract", "stage": "route"}
        fine = await s.router.handle(contract(tenant_id="slow-corp", latency_class="batch"), LOCAL)
    assert fine.status == 200 and fine.answer.route == "batch"


# ---------------------------------------------------------------- documents


async def test_a_lying_index_puts_nothing_of_others_into_prompt_answer_or_receipt(fake: FakeModels) -> None:
    others = [
        chunk("SECRET of zenith: promote a release.", n=8, tenant="zenith"),
        chunk("SECRET scope: promote a release.", n=9, scope="tickets"),
        chunk("SECRET role: promote a release.", n=7, roles=["admin"]),
    ]
    for tenant in ("acme", "quotes-only"):
        async with setting(fake.base_url, index=HandIndex([*others, *PASSAGES], lies=True)) as s:
            outcome = await s.router.handle(contract(tenant_id=tenant), LOCAL)
        assert outcome.receipt.retrieval.removed_by_permission == 3
        assert {c.document for c in outcome.receipt.retrieval.chunks} == {"guide-1.md", "guide-2.md"}
        assert "SECRET" not in outcome.answer.model_dump_json()
        assert s.index.asked[0][1].tenant == tenant
    assert "SECRET" not in json.dumps(fake.requests)
    async with setting(fake.base_url, index=HandIndex(others, lies=True)) as s:
        outcome = await s.router.handle(contract(), LOCAL)
    assert outcome.answer.refused.code == "no_answer" and len(fake.requests) == 1


async def test_no_scope_finds_nothing_and_asks_no_model(fake: FakeModels) -> None:
    async with setting(fake.base_url) as s:
        outcome = await s.router.handle(contract(data_scope=[]), LOCAL)
    assert outcome.answer.refused.code == "no_answer" and outcome.status == 200
    assert fake.requests == [] and outcome.receipt.route is None and outcome.receipt.prompt_digest is None


async def test_staleness_is_told_and_unknown_is_never_fresh(fake: FakeModels) -> None:
    async with setting(fake.base_url, checked=NOW - timedelta(days=2)) as s:
        old = await s.router.handle(contract(), LOCAL)
    async with setting(fake.base_url, checked=None) as s:
        unknown = await s.router.handle(contract(), LOCAL)
    assert old.receipt.retrieval.stale is True and old.receipt.retrieval.staleness == 2 * 86400
    assert unknown.receipt.retrieval.stale is True and unknown.receipt.retrieval.staleness is None


# ---------------------------------------------------------------- guards


async def test_the_redacted_input_is_the_only_one(fake: FakeModels) -> None:
    async with setting(fake.base_url) as s:
        question = "I am bob@example.org, how do I promote?"
        outcome = await s.router.handle(contract(question=question, policy_profile="guarded"), LOCAL)
    assert "bob@example.org" not in json.dumps(fake.requests) and "[EMAIL]" in json.dumps(fake.requests)
    assert "bob@" not in s.index.asked[0][0]
    assert outcome.receipt.guards[0].findings == {"email": 1}


@pytest.mark.parametrize("question", ["my card is 4111 1111 1111 1111", "x" * 501])
async def test_blocked_input(fake: FakeModels, question: str) -> None:
    async with setting(fake.base_url) as s:
        outcome = await s.router.handle(contract(question=question, policy_profile="guarded"), LOCAL)
    assert outcome.status == 422 and outcome.answer.refused.code == "input_blocked" and fake.requests == []


async def test_personal_data_of_documents_is_redacted_in_answer_and_quotes(fake: FakeModels) -> None:
    question = "Who helps, where do I write about rollback?"
    fake.default = Say("Write to jane.doe@example.com [2].")
    async with setting(fake.base_url) as s:
        model = await s.router.handle(contract(question=question, policy_profile="guarded"), LOCAL)
        fake.default = Say('{"answer": "jane.doe\\u0040example.com", "citations": [2]}')
        as_json = await s.router.handle(contract("ask_json", question=question, policy_profile="guarded"), LOCAL)
        quoted = await s.router.handle(
            contract(question=question, policy_profile="guarded", tenant_id="quotes-only"), LOCAL
        )
    assert model.answer.output == "Write to [EMAIL] [2]."
    assert as_json.answer.output == {"answer": "[EMAIL]", "citations": [2]}
    assert "[EMAIL]" in quoted.answer.output
    assert any("[EMAIL]" in (c.quote or "") for c in quoted.answer.citations)
    for outcome in (model, as_json, quoted):
        assert "jane.doe" not in outcome.answer.model_dump_json()
        assert outcome.receipt.guards[1].findings["email"] >= 1


async def test_blocked_output(fake: FakeModels) -> None:
    fake.default = Say("The card is 4111111111111111.")
    async with setting(fake.base_url) as s:
        outcome = await s.router.handle(contract(policy_profile="guarded"), LOCAL)
    assert outcome.status == 200 and outcome.answer.refused.code == "output_blocked"
    assert outcome.answer.output is None and outcome.answer.citations == [] and outcome.receipt.answer_digest is None


# ---------------------------------------------------------------- failures of ours and of the caller


async def test_a_caller_that_goes_away_leaves_a_receipt(fake: FakeModels) -> None:
    fake.then(Stall("headers"))
    async with setting(fake.base_url) as s:
        task = asyncio.ensure_future(s.router.handle(contract(), LOCAL))
        await asyncio.sleep(0.15)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert s.receipts.last.error == {"error": "cancelled", "stage": "invoke"}


async def test_a_defect_leaves_a_receipt_and_is_no_answer() -> None:
    index = HandIndex([])
    index.chunks = None  # type: ignore[assignment]
    async with setting(index=index) as s:
        with pytest.raises(TypeError):
            await s.router.handle(contract(), LOCAL)
    assert s.receipts.last.error == {"error": "defect", "stage": "retrieval"}


async def test_a_rule_leads_around_an_unhealthy_model(fake: FakeModels) -> None:
    """Before any attempt, so that the answer is a route of its own and no degraded one."""
    values = parts()
    around = Rule(when=When(unhealthy="small"), use="second")
    values["routes"] = values["routes"].model_copy(update={"select": [around, *values["routes"].select]})
    async with setting(fake.base_url, values=values) as s:
        assert (await s.router.handle(contract(), LOCAL)).answer.route == "fast"
        for failing in range(5):
            assert not s.compiled.unhealthy("small"), failing
            s.compiled.breakers["small"].failed(time.monotonic())
        outcome = await s.router.handle(contract(), LOCAL)
        assert outcome.answer.route == "second" and outcome.answer.degraded is None
        assert outcome.receipt.route_why == "rule 1 of 5: unhealthy is small"
        assert [a.model for a in outcome.receipt.attempts] == ["own"]
        s.compiled.breakers["small"].opened -= 60
        assert (await s.router.handle(contract(), LOCAL)).answer.route == "fast", "the probe goes through"
    off = {"disabled_models": ["small"], "models": {"own": {"base_url": fake.base_url}}}
    async with setting(fake.base_url, values=values, bindings=off) as s:
        assert (await s.router.handle(contract(), LOCAL)).answer.route == "second"


async def test_no_rule_matches(fake: FakeModels) -> None:
    values = parts()
    values["routes"] = Routes(routes={"a": Route(model="small")}, select=[Rule(when=When(role="x"), use="a")])
    async with setting(fake.base_url, values=values) as s:
        outcome = await s.router.handle(contract(), LOCAL)
    assert outcome.status == 503 and outcome.receipt.error == {"error": "no_route", "stage": "route"}


# ---------------------------------------------------------------- assembling


@pytest.mark.parametrize(
    ("bindings", "error"),
    [
        ({"models": {}}, UsageError),
        ({"models": {"renamed": {}}}, UsageError),
        ({"disabled_models": ["renamed"]}, UsageError),
        ({"indexes": {"other": "s3://x"}}, UsageError),
        ({"models": {"small": {"base_url": "http://x", "credential": "env:NOT_SET"}}}, NotFound),
    ],
)
async def test_bindings_that_do_not_fit(bindings: dict[str, Any], error: type[BundlectlError]) -> None:
    with pytest.raises(error):
        async with setting(bindings=bindings):
            pass


async def test_a_failed_access_case_stops_assembling() -> None:
    values = parts()
    case = values["access"].cases[0].model_copy(update={"expect": "deny"})
    values["access"] = values["access"].model_copy(update={"cases": [case, *values["access"].cases[1:]]})
    with pytest.raises(VerificationFailed, match="1 of the bundle's access cases"):
        async with setting(values=values):
            pass
    assert bundle_of(values).digest != bundle_of(parts()).digest
