"""Guards that look at text elsewhere: ApplyGuardrail over real sockets, Presidio in processes that can be killed."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlectl.inference.inspection import Inspection
from bundlectl.inference.presidio import PresidioProcesses
from bundlectl.model.components import BedrockCheck, Guard, PresidioCheck, Profile
from bundlectl.model.errors import UsageError
from bundlectl.router.identity import LOCAL
from bundlectl.router.inspecting import inspect_json
from tests.support.answering import contract, parts, setting
from tests.support.aws import stand_in
from tests.support.fake_bedrock import KEY, SECRET, FakeBedrock, aws_failure, fake_bedrock
from tests.support.fake_models import FakeModels, Raw, Say, Stall, fake_models

BOUND = {"bedrock": {"id": "gr-1", "version": "3"}}
USAGE = {"topicPolicyUnits": 0, "contentPolicyUnits": 1, "wordPolicyUnits": 0, "sensitiveInformationPolicyUnits": 1}


@pytest.fixture
async def bedrock(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeBedrock]:
    async with fake_bedrock() as server:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", server.url)
        monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
        yield server


@pytest.fixture
async def models() -> AsyncIterator[FakeModels]:
    async with fake_models() as server:
        yield server


def guarded(*, input: Guard | None = None, output: Guard | None = None) -> dict[str, Any]:
    values = parts()
    values["guardrails"]["guarded"] = Profile(input=input or Guard(), output=output or Guard())
    return values


def says(action: str, outputs: list[str] | None = None, **policies: Any) -> Raw:
    """Write ApplyGuardrail's answer."""
    texts = [{"text": text} for text in outputs or []]
    body = {"action": action, "outputs": texts, "assessments": [policies] if policies else [], "usage": USAGE}
    return Raw(json.dumps(body).encode())


def pii(action: str, kind: str = "NAME") -> dict[str, Any]:
    return {"piiEntities": [{"match": "SECRET NAME", "type": kind, "action": action, "detected": True}]}


BY_BEDROCK = Guard(bedrock=BedrockCheck(timeout="400ms"))
HATE = {"filters": [{"type": "HATE", "confidence": "HIGH", "action": "BLOCKED", "detected": True}]}

VERDICTS: list[tuple[str, Any, str, str, dict[str, int]]] = [
    ("nothing found", says("NONE"), "answered", "pass", {}),
    (
        "found and let through",
        says("NONE", sensitiveInformationPolicy=pii("NONE")),
        "answered",
        "flag",
        {"bedrock:pii:NAME": 1},
    ),
    (
        "anonymised",
        says("GUARDRAIL_INTERVENED", ["question", "Ask {NAME}?"], sensitiveInformationPolicy=pii("ANONYMIZED")),
        "answered",
        "redact",
        {"bedrock:pii:NAME": 1},
    ),
    (
        "anonymised, but not block by block",
        says("GUARDRAIL_INTERVENED", ["Ask {NAME}?"], sensitiveInformationPolicy=pii("ANONYMIZED")),
        "input_blocked",
        "block",
        {"bedrock:pii:NAME": 1},
    ),
    (
        "blocked",
        says("GUARDRAIL_INTERVENED", ["Sorry."], contentPolicy=HATE, sensitiveInformationPolicy=pii("ANONYMIZED")),
        "input_blocked",
        "block",
        {"bedrock:content:HATE": 1, "bedrock:pii:NAME": 1},
    ),
    (
        "blocked for no stated reason",
        says("GUARDRAIL_INTERVENED", ["Sorry."]),
        "input_blocked",
        "block",
        {"bedrock": 1},
    ),
    (
        "throttled",
        aws_failure("ThrottlingException", 429),
        "input_blocked",
        "block",
        {"guard_error": 1, "bedrock:throttled": 1},
    ),
    (
        "denied",
        aws_failure("AccessDeniedException", 403),
        "input_blocked",
        "block",
        {"guard_error": 1, "bedrock:refused": 1},
    ),
    ("stalls", Stall("headers"), "input_blocked", "block", {"guard_error": 1, "bedrock:timeout": 1}),
    ("no JSON", Raw(b"<html>"), "input_blocked", "block", {"guard_error": 1, "bedrock:invalid": 1}),
    ("another form", Raw(b'{"action": "NONE"}'), "input_blocked", "block", {"guard_error": 1, "bedrock:invalid": 1}),
    ("another verdict", says("MAYBE"), "input_blocked", "block", {"guard_error": 1, "bedrock:invalid": 1}),
]


@pytest.mark.parametrize(
    ("step", "becomes", "action", "findings"), [v[1:] for v in VERDICTS], ids=[v[0] for v in VERDICTS]
)
async def test_the_guardrail_says(
    bedrock: FakeBedrock, models: FakeModels, step: Any, becomes: str, action: str, findings: dict[str, int]
) -> None:
    bedrock.then(step)
    models.then(Say("Use promote [1]."))
    async with setting(models.base_url, values=guarded(input=BY_BEDROCK), bindings={"guards": BOUND}) as s:
        outcome = await s.router.handle(contract(question="Ask Jane?", policy_profile="guarded"), LOCAL)
    assert (outcome.answer.refused.code if outcome.answer.refused else "answered") == becomes
    (record, *_) = outcome.receipt.guards
    assert (record.side, record.action, record.findings) == ("input", action, findings)
    assert "SECRET" not in outcome.receipt.model_dump_json() + outcome.answer.model_dump_json()
    asked = json.dumps(models.requests)
    assert ("{NAME}" in asked) == (action == "redact") and ("Jane" in asked) == (action in ("pass", "flag"))
    sent = bedrock.seen[0]
    assert sent.path == "/guardrail/gr-1/version/3/apply"
    assert sent.body == {"source": "INPUT", "content": [{"text": {"text": t}} for t in ("question", "Ask Jane?")]}
    if action in ("pass", "redact"):
        assert record.units == {"contentPolicyUnits": 1, "sensitiveInformationPolicyUnits": 1}


async def test_the_guardrail_sees_what_the_detectors_left(bedrock: FakeBedrock, models: FakeModels) -> None:
    guard = Guard.model_validate({"detectors": [{"entity": "email", "action": "redact"}], "bedrock": {}})
    bedrock.then(says("NONE"))
    async with setting(models.base_url, values=guarded(input=guard), bindings={"guards": BOUND}) as s:
        await s.router.handle(contract(question="Mail jane@example.com", policy_profile="guarded"), LOCAL)
    assert [block["text"]["text"] for block in bedrock.seen[0].body["content"]] == ["question", "Mail [EMAIL]"]


async def test_answer_and_quotes_are_inspected(bedrock: FakeBedrock) -> None:
    """The extractive model quotes; what the guardrail makes of a quote is what leaves."""
    redacted = says("GUARDRAIL_INTERVENED", ["All of it.", "A quote."], sensitiveInformationPolicy=pii("ANONYMIZED"))
    bedrock.then(redacted)
    async with setting(values=guarded(output=BY_BEDROCK), bindings={"guards": BOUND}) as s:
        asked = contract(tenant_id="quotes-only", policy_profile="guarded")
        outcome = await s.router.handle(asked, LOCAL)
    assert bedrock.seen[0].body["source"] == "OUTPUT"
    assert outcome.answer.output == "All of it." and [c.quote for c in outcome.answer.citations] == ["A quote."]


@pytest.mark.parametrize("blocks", [True, False])
async def test_a_stream_is_held_until_the_guardrail_has_seen_it(
    bedrock: FakeBedrock, models: FakeModels, blocks: bool
) -> None:
    bedrock.then(says("GUARDRAIL_INTERVENED", ["No."], contentPolicy=HATE) if blocks else says("NONE"))
    models.then(Say("Something hateful. " * 60))
    async with setting(models.base_url, values=guarded(output=BY_BEDROCK), bindings={"guards": BOUND}) as s:
        events = [e async for e in s.router.stream(contract(policy_profile="guarded"), LOCAL)]
    texts = [event.data["text"] for event in events if event.kind == "delta"]
    if blocks:
        assert not texts and events[-1].data["refused"]["code"] == "output_blocked"
    else:
        assert texts == ["Something hateful. " * 60] and events[-1].kind == "done"


async def test_an_unbound_guardrail_makes_nothing(models: FakeModels) -> None:
    with pytest.raises(UsageError, match="applies the guardrail bedrock, which is not bound"):
        async with setting(models.base_url, values=guarded(input=BY_BEDROCK)):
            pass


async def test_on_ministack(monkeypatch: pytest.MonkeyPatch, models: FakeModels) -> None:
    """A server that others wrote; the guardrail is made by boto3."""
    aws = stand_in("ministack")
    for name, value in aws.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    control = boto3.client("bedrock", region_name="us-east-1")
    made = control.create_guardrail(
        name="words",
        blockedInputMessaging="No.",
        blockedOutputsMessaging="No.",
        wordPolicyConfig={"wordsConfig": [{"text": "forbiddenword"}]},
        sensitiveInformationPolicyConfig={"piiEntitiesConfig": [{"type": "EMAIL", "action": "ANONYMIZE"}]},
    )
    version = control.create_guardrail_version(guardrailIdentifier=made["guardrailId"])["version"]
    guards = {"bedrock": {"id": made["guardrailId"], "version": version, "region": "us-east-1"}}
    values = guarded(input=Guard(bedrock=BedrockCheck(timeout="20s")))
    async with setting(models.base_url, values=values, bindings={"guards": guards}) as s:
        clean = await s.router.handle(contract(policy_profile="guarded"), LOCAL)
        bad = await s.router.handle(contract(question="forbiddenword!", policy_profile="guarded"), LOCAL)
    assert clean.receipt.guards[0].action == "pass", clean.receipt.guards
    assert bad.answer.refused.code == "input_blocked" and bad.receipt.guards[0].findings == {"bedrock:word": 1}


# ---------------------------------------------------------------- Presidio

LOOK = PresidioCheck(entities={"EMAIL_ADDRESS": "redact", "CREDIT_CARD": "block", "IP_ADDRESS": "flag"}, timeout="20s")


async def test_presidio(models: FakeModels) -> None:
    pytest.importorskip("presidio_analyzer")
    asked = [
        ("Write to jane.doe@example.com please", "redact", {"presidio:EMAIL_ADDRESS": 1}),
        ("My card is 4111 1111 1111 1111", "block", {"presidio:CREDIT_CARD": 1}),
        ("The host is 10.1.2.3", "flag", {"presidio:IP_ADDRESS": 1}),
        ("How do I promote a release?", "pass", {}),
    ]
    async with PresidioProcesses() as presidio:
        values = guarded(input=Guard(presidio=LOOK))
        async with setting(models.base_url, values=values, presidio=presidio) as s:
            for question, action, findings in asked:
                outcome = await s.router.handle(contract("chat", question=question, policy_profile="guarded"), LOCAL)
                (record, *_) = outcome.receipt.guards
                assert (record.action, record.findings) == (action, findings)
        wrong = guarded(input=Guard(presidio=LOOK.model_copy(update={"entities": {"PERSON": "redact"}})))
        with pytest.raises(UsageError, match="Presidio finds no PERSON here"):
            async with setting(models.base_url, values=wrong, presidio=presidio):
                pass
        missing = guarded(input=Guard(presidio=LOOK.model_copy(update={"model": "no_such_model"})))
        with pytest.raises(UsageError, match="no_such_model"):
            async with setting(models.base_url, values=missing, presidio=presidio):
                pass
    sent = json.dumps(models.requests)
    assert "[EMAIL_ADDRESS]" in sent and "jane" not in sent and "4111" not in sent


SCRIPT = """\
import json, os, sys, time
print(json.dumps({"ready": ["EMAIL_ADDRESS"]}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    text = asked["texts"][-1]
    if text == "hang":
        time.sleep(600)
    if text == "die":
        os._exit(9)
    if text == "babble":
        print("no json", flush=True)
        continue
    time.sleep(0.5 if text == "slow" else 0)
    found = [[[0, 3, "EMAIL_ADDRESS", 1.0]] if t == "bad" else [] for t in asked["texts"]]
    print(json.dumps({"id": asked["id"], "found": found}), flush=True)
"""
CHECK = PresidioCheck(entities={"EMAIL_ADDRESS": "block"}, timeout="2s")


@pytest.mark.parametrize(("text", "kind"), [("hang", "timeout"), ("die", "unavailable"), ("babble", "unavailable")])
async def test_a_process_that_fails_blocks_and_is_started_again(
    tmp_path: Path, models: FakeModels, text: str, kind: str
) -> None:
    (tmp_path / "worker.py").write_text(SCRIPT)
    async with PresidioProcesses((sys.executable, str(tmp_path / "worker.py"))) as presidio:
        values = guarded(input=Guard(presidio=CHECK))
        async with setting(models.base_url, values=values, presidio=presidio) as s:

            async def action(question: str) -> tuple[str, dict[str, int]]:
                outcome = await s.router.handle(contract(question=question, policy_profile="guarded"), LOCAL)
                (record, *_) = outcome.receipt.guards
                return record.action, record.findings

            assert await action("fine") == ("pass", {})
            assert await action(text) == ("block", {"guard_error": 1, f"presidio:{kind}": 1})
            until = time.monotonic() + 30
            while (again := await action("fine")) != ("pass", {}):
                assert again[0] == "block" and time.monotonic() < until
                await asyncio.sleep(0.05)
            assert await action("bad") == ("block", {"presidio:EMAIL_ADDRESS": 1})


async def test_an_answer_to_who_went_away_is_nobody_elses(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(SCRIPT)
    async with PresidioProcesses((sys.executable, str(tmp_path / "worker.py"))) as presidio:
        inspector = presidio.inspector(CHECK.model_copy(update={"timeout": "20s"}))
        await inspector.ready()
        gone = asyncio.create_task(inspector.inspect(["bad", "slow"], "input"))
        await asyncio.sleep(0.1)
        gone.cancel()
        assert (await inspector.inspect(["fine"], "input")).action == "pass"


async def test_a_process_that_never_starts_makes_nothing(tmp_path: Path, models: FakeModels) -> None:
    async with PresidioProcesses((sys.executable, "-c", "pass")) as presidio:
        with pytest.raises(Exception, match="did not start"):
            async with setting(models.base_url, values=guarded(input=Guard(presidio=CHECK)), presidio=presidio):
                pass


# ---------------------------------------------------------------- JSON


class Upper:
    """Redacts nothing, and writes every text in capitals but for keys that are so already."""

    name = "upper"

    async def ready(self) -> None:
        pass

    async def inspect(self, texts: Any, side: Any) -> Inspection:
        return Inspection(tuple(f"<{t}>" if not t.startswith("K") else t for t in texts), "redact")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text().map(lambda k: "K" + k), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_every_text_of_a_value_is_seen_in_its_place(value: Any) -> None:
    def wanted(item: Any) -> Any:
        if isinstance(item, str):
            return f"<{item}>" if not item.startswith("K") else item
        if isinstance(item, dict):
            return {key: wanted(inner) for key, inner in item.items()}
        if isinstance(item, list):
            return [wanted(inner) for inner in item]
        if isinstance(item, int) and not isinstance(item, bool) and abs(item) >= 10_000_000:
            return f"<{item}>"
        return item

    made, seen = asyncio.run(inspect_json([Upper()], value, "input"))
    assert made == wanted(value) and seen.action == "redact"


async def test_a_key_that_would_be_redacted_blocks() -> None:
    made, seen = await inspect_json([Upper()], {"jane": "x"}, "output")
    assert made is None and seen.action == "block"
