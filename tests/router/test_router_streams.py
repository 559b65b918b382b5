"""Streamed answers: guarded before release, whole or an error, never two models in one answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlectl.model.components import Detector, Guard
from bundlectl.model.contract import Answer
from bundlectl.router import invocation
from bundlectl.router.identity import LOCAL, Identity
from bundlectl.router.router import Event
from bundlectl.router.run import Refusal
from bundlectl.router.windows import WINDOW, GuardedStream
from bundlectl.stages.guards import CompiledGuard, GuardOutcome
from tests.support.answering import Setting, contract, setting
from tests.support.fake_models import Cut, Fail, FakeModels, Say, Stall, fake_models, throttle

LONG = "A plain sentence of words that goes on. " * 40


@pytest.fixture
async def fake() -> AsyncIterator[FakeModels]:
    async with fake_models() as server:
        yield server


async def events(s: Setting, identity: Identity = LOCAL, **changes: Any) -> list[Event]:
    return [event async for event in s.router.stream(contract(**changes), identity)]


def text(found: list[Event]) -> str:
    return "".join(event.data["text"] for event in found if event.kind == "delta")


async def test_start_deltas_and_the_whole_answer(fake: FakeModels) -> None:
    fake.then(Say(LONG + "Run promote [1]."))
    async with setting(fake.base_url) as s:
        found = await events(s)
    assert found[0].kind == "start" and found[0].data["receipt"] == s.receipts.last.id
    assert found[-1].kind == "done" and sum(event.kind == "delta" for event in found) > 3
    assert text(found) == LONG + "Run promote [1]."
    answer = Answer.model_validate(found[-1].data)
    assert answer.output == text(found) and [c.n for c in answer.citations] == [1]
    assert answer.usage.input_tokens == 100
    assert s.receipts.last.attempts[0].outcome == "ok" and len(s.receipts.kept) == 1
    assert "invoke" in s.receipts.last.stages


async def test_an_object_is_released_whole_after_it_was_validated(fake: FakeModels) -> None:
    fake.then(Say('{"answer": 5}'), Say('{"answer": "Run promote.", "citations": [1]}'))
    async with setting(fake.base_url) as s:
        found = await events(s, task="ask_json")
    assert [event.kind for event in found] == ["start", "delta", "done"]
    assert json.loads(text(found)) == found[-1].data["output"]
    assert s.receipts.last.validation.outcome == "asked_again"


@pytest.mark.parametrize(("kept", "failures"), [(0.0, 1), (0.3, 0)])
async def test_a_stream_that_breaks_before_a_slow_reader_is_not_the_models_failure(
    fake: FakeModels, monkeypatch: pytest.MonkeyPatch, kept: float, failures: int
) -> None:
    monkeypatch.setattr(invocation, "SLOW_READER", 0.2)
    fake.then(Cut(LONG))
    async with setting(fake.base_url) as s:
        async for event in s.router.stream(contract(), LOCAL):
            if event.kind == "delta":
                await asyncio.sleep(kept)
                kept = 0.0
        assert event.kind == "error" and s.compiled.breakers["small"].failures == failures


async def test_before_the_first_released_byte_another_model_may_answer(fake: FakeModels) -> None:
    fake.then(Cut("Half an answer"), throttle("0"), Say("The other model [1]."))
    async with setting(fake.base_url) as s:
        found = await events(s)
    assert text(found) == "The other model [1]." and found[-1].data["degraded"]
    assert [a.outcome for a in s.receipts.last.attempts] == ["broken_stream", "throttled", "ok"]


@pytest.mark.parametrize("step", [Cut(LONG), Cut(LONG, abrupt=True), Stall("stream", LONG)])
async def test_after_it_a_broken_stream_is_an_error(fake: FakeModels, step: Any) -> None:
    fake.then(step)
    async with setting(fake.base_url) as s:
        found = await events(s)
    assert found[-1].kind == "error" and found[-1].data["error"] == "model_unavailable"
    assert found[-1].data["receipt"] == s.receipts.last.id
    assert text(found) and LONG.startswith(text(found)) and len(fake.requests) == 1
    assert s.receipts.last.error == {"error": "model_unavailable", "stage": "invoke"}
    assert s.receipts.last.answer_digest is None


async def test_refused_or_failed_before_the_first_piece_is_the_only_event(fake: FakeModels) -> None:
    async with setting(fake.base_url) as s:
        nobody = Identity("nobody", frozenset(), frozenset())
        denied = await events(s, identity=nobody)
        fake.then(Fail(500))
        failed = await events(s, task="chat", policy_profile="restricted")
        quiet = await events(s, tenant_id="quotes-only", question="What is the moon made of?")
    assert [e.kind for e in denied] == ["done"] and denied[0].outcome is not None and denied[0].outcome.status == 403
    assert [e.kind for e in failed] == ["start", "error"]
    assert [e.kind for e in quiet] == ["start", "done"] and quiet[-1].data["refused"]["code"] == "no_answer"


@pytest.mark.parametrize("piece", [1, 7, 100_000])
async def test_personal_data_never_leaves_in_pieces(fake: FakeModels, piece: int) -> None:
    said = LONG + "Write to jane.doe@example.com now. " + LONG
    fake.then(Say(said, piece=piece))
    async with setting(fake.base_url) as s:
        found = await events(s, task="chat", policy_profile="guarded")
    assert text(found) == said.replace("jane.doe@example.com", "[EMAIL]") == found[-1].data["output"]
    assert s.receipts.last.guards[1].findings == {"email": 1}


async def test_a_block_ends_the_stream_with_a_refusal(fake: FakeModels) -> None:
    fake.then(Say(LONG + "The card is 4111 1111 1111 1111, " + LONG))
    async with setting(fake.base_url) as s:
        found = await events(s, task="chat", policy_profile="guarded")
        fake.then(Say(LONG * 3))
        long = await events(s, task="chat", policy_profile="guarded")
    assert "4111" not in text(found)
    assert found[-1].data["refused"]["code"] == "output_blocked" and "output" not in found[-1].data
    assert long[-1].data["refused"]["code"] == "output_blocked" and len(text(long)) <= 4000


async def test_a_caller_that_goes_away_ends_the_call_and_leaves_a_receipt(fake: FakeModels) -> None:
    fake.then(Stall("stream", LONG))
    async with setting(fake.base_url) as s:
        stream = s.router.stream(contract(), LOCAL)
        async for event in stream:
            if event.kind == "delta":
                break
        await stream.aclose()
        await asyncio.sleep(0)
    assert s.receipts.last.error == {"error": "cancelled", "stage": "invoke"} and len(s.receipts.kept) == 1


# ---------------------------------------------------------------- the law of the window

GUARD = CompiledGuard.compile(
    Guard(
        max_chars=1_000_000,
        detectors=[
            Detector(entity="email", action="redact"),
            Detector(entity="iban", action="redact"),
            Detector(entity="credit_card", action="redact"),
            Detector(name="ticket", pattern=r"TICKET-\d+", action="flag"),
        ],
    )
)
WORDS = st.sampled_from(
    [
        "plain", "words", "and", "jane.doe@example.com", "DE89 3704 0044 0532 0130 00", "4111 1111 1111 1111",
        "TICKET-12345", "\n\n", "x" * 90, "[EMAIL]", "é", "a@b", "5500-0000-0000-0004",
    ]
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(words=st.lists(WORDS, min_size=20, max_size=120), cuts=st.lists(st.integers(1, 200), min_size=1, max_size=30))
def test_what_is_released_is_what_the_guard_makes_of_the_whole(words: list[str], cuts: list[int]) -> None:
    whole = " ".join(words)
    gate = GuardedStream(GUARD, 1_000_000)
    released, at, turn = "", 0, 0
    while at < len(whole):
        size = cuts[turn % len(cuts)]
        released += gate.feed(whole[at : at + size])
        at, turn = at + size, turn + 1
        assert at - len(released) >= 0 or "[" in released
    released += gate.feed("", last=True)
    expected = GUARD.apply(whole)
    assert released == expected.text
    assert gate.findings == expected.findings


def test_it_holds_back_no_more_than_it_must() -> None:
    gate = GuardedStream(GUARD, 1_000_000)
    released = "".join(gate.feed("word ") for _ in range(1000))
    assert 5000 - len(released) < 2 * WINDOW
    with pytest.raises(Refusal):
        GuardedStream(GUARD, 10).feed("x" * 11)


def test_a_finding_that_does_not_end_is_not_inspected_anew_at_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = CompiledGuard.compile(Guard(max_chars=100_000, detectors=[Detector(entity="private_key", action="redact")]))
    looked = 0

    def counted(self: CompiledGuard, text: str) -> GuardOutcome:
        nonlocal looked
        looked += len(text)
        return apply(self, text)

    apply = CompiledGuard.apply
    monkeypatch.setattr(CompiledGuard, "apply", counted)
    whole = "-----BEGIN PRIVATE KEY-----\n" + ("MIIE" * 16 + "\n") * 150
    gate = GuardedStream(guard, 100_000)
    released = [gate.feed(whole[at : at + 4]) for at in range(0, len(whole), 4)]
    assert "".join([*released, gate.feed("", last=True)]) == "[PRIVATE_KEY]"
    assert looked < 100 * len(whole)
