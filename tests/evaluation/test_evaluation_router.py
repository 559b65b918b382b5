"""The runner against the real router: identity, access, retrieval, fallback and receipts are its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bundlectl.evaluation.report import CaseResult
from bundlectl.evaluation.result import summarise
from bundlectl.evaluation.runner import run
from bundlectl.evaluation.suite import LoadedSuite, read_suite
from bundlectl.model.attestation import EvaluationResult
from bundlectl.model.components import Output
from bundlectl.router.identity import LOCAL
from tests.evaluation.builders import BINDINGS, write_suite
from tests.support.answering import DIGEST, SCHEMA, Setting, setting
from tests.support.fake_models import FakeModels, Say, fake_models, throttle

GUIDE = [{"document": "guide-1.md", "section": ["Part 1"]}]
CASES: list[dict[str, Any]] = [
    {
        "id": "promote",
        "input": {"question": "How do I promote a release?"},
        "scopes": ["docs"],
        "expected": {"documents": GUIDE, "contains": ["promote"], "refusal": False},
    },
    {
        "id": "secrets",
        "input": {"question": "How do I promote a release?"},
        "scopes": ["docs"],
        "expected": {"forbidden_documents": ["guide-9.md"]},
    },
    {
        "id": "visitor",
        "input": {"question": "How do I promote a release?"},
        "scopes": ["docs"],
        "role": "visitor",
        "expected": {"refusal": "access_denied"},
    },
]
SCORERS: list[dict[str, Any]] = [
    {"name": "retrieval_hit", "floor": 1.0},
    {"name": "contains", "floor": 1.0},
    {"name": "refusal", "floor": 1.0},
    {"name": "forbidden", "floor": 1.0},
    {"name": "json_schema", "floor": 1.0},
    {"name": "latency", "floor": 1.0, "options": {"seconds": 30}},
]


@pytest.fixture
async def fake() -> AsyncIterator[FakeModels]:
    async with fake_models() as server:
        yield server


def loaded(folder: Path, **more: Any) -> LoadedSuite:
    cases = [{"tenant": "acme", "role": "agent", **case} for case in CASES]
    return read_suite(write_suite(folder, cases, SCORERS, **{"task": "ask_json", "profile": "plain", **more}))


async def measure(s: Setting, suite: LoadedSuite) -> tuple[EvaluationResult, dict[str, CaseResult]]:
    output = Output(format="structured_json", schema_=SCHEMA)
    results = await run(suite, s.router, identity=LOCAL, profile="plain", output=output, pause=0)
    now = datetime.now(UTC)
    result = summarise(suite, results, bindings=BINDINGS, actor="eve", started=now, finished=now)
    return result, {found.id: found for found in results}


async def test_a_bundle_that_answers_passes(tmp_path: Path, fake: FakeModels) -> None:
    fake.default = Say('{"answer": "Run promote [1].", "citations": [1]}')
    async with setting(fake.base_url) as s:
        result, by_id = await measure(s, loaded(tmp_path, must_pass=["visitor", "secrets"]))
        assert {receipt.id for receipt in s.receipts.kept} == {found.receipt for found in by_id.values()}
    assert result.verdict == "pass", result.why
    assert result.snapshots == {"guide": DIGEST}
    assert by_id["visitor"].refused == "access_denied" and by_id["visitor"].snapshots == {}
    assert by_id["promote"].cited == ["guide-1.md"] and by_id["promote"].route == "fast"


async def test_a_throttled_model_makes_errors_though_a_fallback_answers(tmp_path: Path, fake: FakeModels) -> None:
    fake.default = throttle()
    async with setting(fake.base_url) as s:
        result, by_id = await measure(s, loaded(tmp_path))
    assert result.verdict == "error"
    assert by_id["promote"].degraded and "throttled" in (by_id["promote"].error or "")
    assert by_id["promote"].attempts == 2 and by_id["visitor"].error is None


async def test_a_model_whose_output_is_no_good_is_scored(tmp_path: Path, fake: FakeModels) -> None:
    fake.default = Say("no JSON at all")
    async with setting(fake.base_url) as s:
        result, by_id = await measure(s, loaded(tmp_path))
    assert result.verdict == "fail" and by_id["promote"].error is None
    assert by_id["promote"].scores["json_schema"].value == 0


async def test_a_task_the_bundle_lacks_is_an_error(tmp_path: Path) -> None:
    async with setting() as s:
        result, by_id = await measure(s, loaded(tmp_path, task="other"))
    assert result.verdict == "error" and "contract" in (by_id["promote"].error or "")
