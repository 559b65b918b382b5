"""explain: one thing changed at a time, and some at once; a cause is told from its consequences."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlectl.insight.explain import Explanation, Row, explain
from bundlectl.model.contract import Pinned, Refused, ReleaseRef
from bundlectl.model.receipt import GuardRecord, Receipt, ValidationRecord
from tests.insight.receipts import ONE, TWO, by_fallback, call, denied, found, receipt, sha, snapshot, used

A = receipt()
NEW = used("new.md", 1)
OTHER: dict[str, Any] = {"prompt_digest": sha("another prompt")}
REDACT = [GuardRecord(side="input", action="pass"), GuardRecord(side="output", action="redact", findings={"email": 1})]


def row(told: Explanation, question: str) -> Row:
    return next(row for row in told.rows if row.question == question)


CAUSES: dict[str, tuple[Receipt, list[str]]] = {
    "another question": (receipt("b", input_digest="hmac-sha256-k1:bb", **OTHER), ["question"]),
    "another model": (
        receipt("b", attempts=[call("large")], components={"models": "m2"}),
        ["model"],
    ),
    "what the provider serves behind its id": (receipt("b", attempts=[call(provider_model="small-2026")]), ["model"]),
    "the prompt": (receipt("b", components={"prompts": "p2"}, **OTHER), ["prompt"]),
    "retrieval settings": (
        receipt("b", components={"retrieval": "r2"}, retrieval=found(ONE), **OTHER),
        ["retrieved context"],
    ),
    "the search's mode": (
        receipt("b", components={"retrieval": "r2"}, retrieval=found(TWO, ONE, mode="hybrid"), **OTHER),
        ["retrieved context"],
    ),
    "a new document": (
        receipt("b", components={"retrieval": "r2"}, retrieval=found(NEW, ONE, snapshot="s2"), **OTHER),
        ["documents"],
    ),
    "the embedding, and with it the snapshot": (
        receipt(
            "b",
            components={"embedding": "e2", "retrieval": "r2"},
            retrieval=found(TWO, ONE, snapshot="s2", mode="vector"),
            **OTHER,
        ),
        ["embedding"],
    ),
    "the guardrails": (receipt("b", components={"guardrails": "g2"}, guards=REDACT), ["guardrail policy"]),
    "the routes": (
        receipt("b", components={"routes": "x"}, route="complex", attempts=[call("large", route="complex")]),
        ["routing"],
    ),
    "a prompt too long for its route": (
        receipt("b", components={"prompts": "p2"}, route="complex", attempts=[call("large", route="complex")], **OTHER),
        ["prompt"],
    ),
    "the output's schema": (
        receipt("b", components={"output": "o2"}, validation=ValidationRecord(outcome="repaired")),
        ["output validation"],
    ),
    "the role, that sees other documents": (receipt("b", role="intern", retrieval=found(ONE), **OTHER), ["identity"]),
    "a failing model": (by_fallback(call(outcome="timeout")), ["health"]),
    "a model disabled by the bindings": (by_fallback(call(outcome="disabled")), ["routing"]),
    "an access policy": (denied(components={"access": "a2"}), ["access policy"]),
    "a role that the policy denies": (denied(role="visitor"), ["identity"]),
    "the cache": (receipt("b", cache="hit"), ["cache"]),
}


@pytest.mark.parametrize("name", CAUSES)
def test_the_cause(name: str) -> None:
    b, causes = CAUSES[name]
    start = receipt(retrieval=found(ONE, TWO, mode="vector")) if "embedding" in name else A
    told = explain(start, b)
    assert (told.same_answer, told.causes) == ("no", causes)
    assert causes[0] in told.summary
    back = explain(b, start)
    assert (back.same_answer, back.causes) == ("no", causes), "the same, seen from the other side"


@pytest.mark.parametrize("name", CAUSES)
def test_identical_receipts(name: str) -> None:
    one = CAUSES[name][0]
    told = explain(one, one)
    assert told.same_answer == "yes"
    assert told.causes == []
    assert not [
        found for found in told.rows if found.changed == "yes" or found.reached == "yes" or found.consequence_of
    ]


def test_every_row_says_what_and_every_changed_one_that_did_not_reach_says_why() -> None:
    for b, _ in CAUSES.values():
        for one in explain(A, b).rows:
            assert one.what, one.question
            assert set(one.consequence_of) <= {other.question for other in explain(A, b).rows}


def test_a_chain_of_consequences() -> None:
    b, _ = CAUSES["a new document"]
    told = explain(A, b, snapshot_a=snapshot(one="v1", two="v1"), snapshot_b=snapshot(one="v1", two="v1", new="v1"))
    assert row(told, "documents").what.startswith("new: new.md")
    assert row(told, "documents").why == "Sent to the model: new.md."
    assert row(told, "retrieved context").consequence_of == ["documents"]
    assert row(told, "prompt").consequence_of == ["retrieved context"]
    assert "+ new.md § Part" in row(told, "retrieved context").what


def test_a_changed_and_a_removed_document() -> None:
    b = receipt("b", retrieval=found(used("one.md", 1, version="v2"), snapshot="s2"), **OTHER)
    told = explain(A, b, snapshot_a=snapshot(one="v1", two="v1"), snapshot_b=snapshot(one="v2"))
    assert row(told, "documents").what == "changed: one.md; gone: two.md"
    assert told.causes == ["documents"]


def test_a_new_snapshot_that_sent_the_same() -> None:
    b = receipt(components={"retrieval": "r2"}, retrieval=found(ONE, TWO, snapshot="s2"))
    told = explain(A, b, snapshot_a=snapshot(one="v1", two="v1"), snapshot_b=snapshot(one="v1", two="v1", new="v1"))
    assert (told.same_answer, told.causes) == ("yes", [])
    assert (row(told, "documents").changed, row(told, "documents").reached) == ("yes", "no")
    assert "although these changed" in told.summary


def test_the_same_documents_in_another_snapshot() -> None:
    b = receipt("b", retrieval=found(TWO, ONE, snapshot="s2"), **OTHER)
    told = explain(A, b, snapshot_a=snapshot(one="v1", two="v1"), snapshot_b=snapshot(one="v1", two="v1"))
    assert row(told, "documents").what == "the same documents, cut or embedded otherwise"


def test_two_causes_at_once() -> None:
    b = receipt(
        "b",
        components={"prompts": "p2", "guardrails": "g2"},
        guards=REDACT,
        **OTHER,
    )
    assert explain(A, b).causes == ["prompt", "guardrail policy"]
    b = receipt("b", input_digest="hmac-sha256-k1:bb", retrieval=found(NEW, snapshot="s2"), **OTHER)
    told = explain(A, b)
    assert told.causes == ["question"]
    assert row(told, "documents").reached == "unknown", "the question alone may have chosen the passages"


def test_what_did_not_reach_the_answer() -> None:
    unused = [
        GuardRecord(side="input", action="flag", findings={"email": 1}),
        GuardRecord(side="output", action="pass"),
    ]
    b = receipt("b", components=dict.fromkeys(("access", "guardrails", "routes", "output"), "x"), guards=unused)
    told = explain(A, b)
    assert told.causes == []
    for name in ("access policy", "guardrail policy", "routing", "output validation"):
        assert (row(told, name).changed, row(told, name).reached) == ("yes", "no"), name
    quoting = by_fallback(call(outcome="timeout"))
    later = by_fallback(call(outcome="timeout"), components={"prompts": "p2"}, **OTHER)
    assert row(explain(quoting, later), "prompt").reached == "no", "no model read it"


def test_a_refusal_is_the_cause_and_the_stages_it_kept_from_running_follow_from_it() -> None:
    told = explain(A, denied(components={"access": "a2"}))
    for name in ("retrieved context", "documents", "prompt", "routing", "model", "output validation"):
        assert row(told, name).consequence_of == ["access policy"], name
    blocked = denied(
        access="allow",
        access_policies=["agents"],
        input_digest="hmac-sha256-k1:bb",
        guards=[GuardRecord(side="input", action="block", findings={"injection": 1})],
        refused=Refused(code="input_blocked", reason="no"),
    )
    assert explain(A, blocked).causes == ["question"]
    limited = denied(access=None, access_policies=[], refused=Refused(code="limited", reason="slow down"))
    assert explain(A, limited).causes == ["health"]
    failed = by_fallback(call(outcome="timeout"), error={"error": "unavailable", "stage": "invoke"}, answer_digest=None)
    assert explain(A, failed).causes == ["health"]


def test_refusals_are_answers() -> None:
    assert explain(denied(), denied()).same_answer == "yes"
    blocked = denied(refused=Refused(code="input_blocked", reason="no"))
    assert explain(denied(), blocked).same_answer == "no"
    assert explain(A, denied()).same_answer == "no"
    error = denied(refused=None, error={"error": "defect", "stage": "invoke"})
    assert explain(denied(), error).same_answer == "no"
    assert explain(error, error).same_answer == "yes"


def test_what_no_receipt_can_know() -> None:
    told = explain(A, receipt("b"))
    assert told.causes == []
    assert row(told, "model").changed == "unknown" and "Weights" in row(told, "model").why
    assert "Not knowable from receipts: model" in told.summary
    ref = A.release.model_copy(update={"bindings": sha("other")})
    assert "bindings differ" in row(explain(A, receipt("b", release=ref)), "model").why
    assert isinstance(ref, ReleaseRef)
    keys = explain(A, receipt("b", input_digest="hmac-sha256-k2:aa"))
    assert row(keys, "question").changed == "unknown"
    code = explain(A, receipt("b", code_version="0.2.0"))
    assert (row(code, "code version").changed, row(code, "code version").reached) == ("yes", "unknown")
    quoted = by_fallback(call(outcome="timeout"))
    assert row(explain(quoted, quoted), "model").changed == "no", "quoting has no weights"


def test_a_model_that_wrote_otherwise_of_itself_is_not_blamed_on_the_form() -> None:
    told = explain(A, receipt("b", validation=ValidationRecord(outcome="repaired"), guards=REDACT))
    assert told.causes == []
    assert row(told, "output validation").consequence_of == ["model"]
    assert row(told, "guardrail policy").consequence_of == ["model"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(sorted(CAUSES)), min_size=2, max_size=2))
def test_any_two_receipts_explain_without_a_circle(names: list[str]) -> None:
    told = explain(*(CAUSES[name][0] for name in names))
    by_name: dict[str, Any] = {one.question: one for one in told.rows}
    for one in told.rows:
        assert one.question not in one.consequence_of
        seen: set[str] = set()
        ahead = list(one.consequence_of)
        while ahead:
            name = ahead.pop()
            assert name != one.question, f"{one.question} follows from itself"
            if name not in seen:
                seen.add(name)
                ahead += by_name[name].consequence_of


KEPT: dict[str, Any] = {
    "id": "r9",
    "cache": "hit",
    "cached_from": "r1",
    "attempts": [],
    "retrieval": None,
    "prompt_digest": None,
    "prompt_tokens": None,
    "prompt_reached_model": None,
    "guards": [GuardRecord(side="input", action="pass")],
    "validation": None,
}


def test_a_kept_answer_is_explained_by_what_made_it() -> None:
    changed = receipt("b", id="r2", components={"prompts": "p2"}, **OTHER)
    told = explain(changed, receipt(**KEPT), made_b=A)
    assert (
        told.causes == ["prompt"] and told.b.model == "small/openai" and "receipt r1 of 2026-11-23" in told.b.notes[0]
    )
    assert row(told, "retrieved context").changed == "no" and row(told, "cache").reached == "no"
    assert explain(A, receipt(**KEPT), made_b=A).same_answer == "yes"


def test_where_that_receipt_is_gone_nothing_is_made_up() -> None:
    changed = receipt("b", id="r2", tenant="zenith", components={"prompts": "p2"}, **OTHER)
    told = explain(changed, receipt(**KEPT))
    assert told.causes == [] and "receipt is not here" in told.b.notes[0]
    assert (row(told, "prompt").changed, row(told, "prompt").reached) == ("yes", "unknown"), "the bundle is known"
    for question in ("retrieved context", "documents", "model", "health", "output validation"):
        assert row(told, question).changed == "unknown" and "r1" in row(told, question).why
    assert row(told, "identity").reached == "unknown"


def test_a_pin_is_told() -> None:
    pinned = receipt("b", id="r2", pinned=Pinned(to="rollback_target", epoch=1, serial=8), components={"prompts": "p0"})
    assert "rollback target of release 8" in explain(A, pinned).b.notes[0]
    assert explain(A, receipt(pinned=Pinned(to="head", epoch=1, serial=8))).b.notes == []
