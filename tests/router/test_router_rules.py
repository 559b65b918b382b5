"""The router's own rules: routing, citations, breaker, budget, limits, identities; and the law of receipts."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundlectl.inference.provider import Passage
from bundlectl.model.bindings import ApiKey
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.components import Between, Rule, When
from bundlectl.model.contract import Citation
from bundlectl.router.citations import cited
from bundlectl.router.health import FAILURES, OPEN_SECONDS, Breaker, RetryBudget
from bundlectl.router.identity import LOCAL, Identity, KnownIdentities, presented_key
from bundlectl.router.routing import NoRoute, RouteTable
from tests.support.answering import HandIndex, chunk, contract, setting
from tests.support.fake_models import Fail, Raw, Say, fake_models


def test_the_first_rule_that_matches_wins() -> None:
    table = RouteTable(
        [
            Rule(when=When(profile="restricted"), use="restricted"),
            Rule(when=When(latency_class="batch", tenant="acme"), use="batch"),
            Rule(when=When(prompt_tokens=Between(over=4000, under=9000)), use="complex"),
            Rule(when=When(task="ask_json", role="agent", response_format="structured_json"), use="json"),
        ]
    )
    assert table.choose(contract(latency_class="batch"), "text", 1) == (
        "batch",
        "rule 2 of 4: latency_class is batch and tenant is acme",
    )
    why = "rule 3 of 4: prompt_tokens over 4000 and prompt_tokens under 9000"
    assert table.choose(contract(), "text", 4001) == ("complex", why)
    assert table.choose(contract("ask_json"), "structured_json", 1)[0] == "json"
    for tokens in (4000, 9000):
        with pytest.raises(NoRoute):
            table.choose(contract(), "text", tokens)


PACKED = [
    Passage(n=n, title="T", section=("S",), text=f"text of {n}", document=f"d{n}.md", chunk=f"c{n}") for n in (1, 2, 3)
]


@pytest.mark.parametrize(
    ("output", "numbers", "unknown"),
    [
        ("See [2] and [1], [2].", [2, 1], []),
        ("See [1, 3][9] and [0], [x], [12345].", [1, 3], [9, 0]),
        ({"answer": "By [3].", "citations": [1, "[2]", "x", True, None, 7]}, [1, 2], [7]),
        ({"answer": "By [3].", "more": ["[1]"]}, [3, 1], []),
        ({"answer": "[3]", "citations": []}, [], []),
        ({"citations": [{"n": 2, "quote": "text of 2"}, {"n": 2}, {"quote": "x"}, {"n": "1"}]}, [2, 1], []),
        (None, [], []),
    ],
)
def test_citations(output: Any, numbers: list[int], unknown: list[int]) -> None:
    found, not_packed = cited(output, None, PACKED)
    assert [c.n for c in found] == numbers and not_packed == unknown
    assert all(c.document == f"d{c.n}.md" and c.chunk == f"c{c.n}" for c in found)


def test_quotes_are_verbatim_or_left_out_and_places_are_ours() -> None:
    given_ = [
        Citation(n=1, document="forged", section=[], chunk="forged", quote="text of"),
        Citation(n=2, document="d2.md", section=[], chunk="c2", quote="never said"),
    ]
    found, _ = cited("x", given_, PACKED)
    assert [(c.document, c.quote) for c in found] == [("d1.md", "text of"), ("d2.md", None)]


def test_the_breaker_opens_probes_once_and_closes() -> None:
    breaker = Breaker()
    for n in range(FAILURES):
        assert breaker.allows(n)
        breaker.failed(float(n))
    opened = FAILURES - 1
    assert not breaker.allows(opened + OPEN_SECONDS - 0.1)
    assert breaker.allows(opened + OPEN_SECONDS) and not breaker.allows(opened + OPEN_SECONDS)
    breaker.failed(opened + OPEN_SECONDS)
    assert not breaker.allows(opened + OPEN_SECONDS + 1)
    assert breaker.allows(opened + 2 * OPEN_SECONDS)
    breaker.released()
    assert breaker.allows(opened + 2 * OPEN_SECONDS)
    for stale in (breaker.released, lambda began: breaker.failed(opened + 3 * OPEN_SECONDS, began)):
        stale(opened - 1.0)
        assert not breaker.allows(opened + 2 * OPEN_SECONDS), "calls from before it opened are no probe"
    breaker.succeeded()
    assert breaker.allows(0) and breaker.allows(0)


def test_the_retry_budget_is_a_tenth_of_a_thousand_requests() -> None:
    budget, granted = RetryBudget(), 0
    for _ in range(1000):
        budget.earn()
        granted += budget.spend()
    assert 95 <= granted <= 100


def test_identities() -> None:
    def key(id_: str, value: str, **claims: Any) -> ApiKey:
        return ApiKey(id=id_, hash="sha256:" + hashlib.sha256(value.encode()).hexdigest(), **claims)

    known = KnownIdentities([key("a", "ka", tenants=["acme"], roles=["*"]), key("b", "kb", tenants=["*"], roles=["x"])])
    a = known.of_key("ka")
    assert a is not None and a.name == "a" and a.may_claim("acme", "any") and not a.may_claim("zenith", "any")
    b = known.of_key("kb")
    assert b is not None and b.may_claim("zenith", "x") and not b.may_claim("zenith", "y")
    assert known.of_key(None) is None and known.of_key("kc") is None and known.of_key("") is None
    assert KnownIdentities([]).of_key(None) is LOCAL
    assert not Identity("n", frozenset({"acme"}), frozenset({"r"})).may_claim("*", "r")
    assert presented_key([(b"x-api-key", b" k "), (b"authorization", b"Bearer  t ")]) == "t"
    assert presented_key([(b"x-api-key", b" k ")]) == "k" and presented_key([]) is None


# ---------------------------------------------------------------- the law of receipts

TELLING = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=6, max_size=60)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    question=TELLING,
    text=TELLING,
    said=TELLING,
    how=st.sampled_from(["text", "json", "invalid json", "odd keys", "error", "echo", "quotes"]),
)
def test_a_receipt_holds_no_text_of_question_documents_or_answer(question: str, text: str, said: str, how: str) -> None:
    # Marked, so that the words are surely not part of any receipt by themselves.
    question, text, said = f"QQ{question}QQ", f"DD{text}DD", f"AA{said}AA"

    async def one() -> tuple[str, int]:
        async with fake_models() as fake:
            import json

            answers = {
                "text": Say(said),
                "json": Say(json.dumps({"answer": said, "citations": [1]})),
                "invalid json": Say(json.dumps({"answer": 1, "citations": [said]})),
                "odd keys": Say(json.dumps({"answer": said, "citations": [], said: {said: 5}})),
                "error": Fail(400, code="bad", message=question + said),
                "echo": Raw(json.dumps({"error": {"message": question, "code": said}}).encode()),
                "quotes": Say(said),
            }
            fake.default = answers[how]
            task = "ask_json" if "json" in how or "keys" in how else "ask"
            tenant = "quotes-only" if how == "quotes" else "acme"
            async with setting(fake.base_url, index=HandIndex([chunk(text)])) as s:
                outcome = await s.router.handle(contract(task, question, tenant_id=tenant), LOCAL)
                return outcome.receipt.model_dump_json(), outcome.status

    receipt, status = asyncio.run(one())
    assert status in (200, 503)
    for secret in (question, text, said):
        assert secret not in receipt and secret[:6] not in receipt


def test_the_router_loads_nothing_heavy() -> None:
    program = (
        "import sys, bundlectl.router.router, bundlectl.router.assemble, bundlectl.router.identity;"
        "print([m for m in ('httptools','lancedb','numpy','wordllama','starlette','boto3','opentelemetry.sdk')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_prompt_digest_is_of_canonical_json() -> None:
    async def one() -> tuple[str, list[dict[str, str]]]:
        async with fake_models() as fake, setting(fake.base_url) as s:
            question = 'tab\t quote" back\\ é \u2028 \x01 \x7f 😀 </script>'
            outcome = await s.router.handle(contract("chat", question), LOCAL)
            return outcome.receipt.prompt_digest or "", fake.requests[0]["messages"]

    found, sent = asyncio.run(one())
    assert found == digest(canonical(sent))
