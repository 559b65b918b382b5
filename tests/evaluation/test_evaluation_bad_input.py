"""Bad input and faults, as a user meets them: each has its verdict, message and exit code, and none becomes a pass.

Judges that answer no JSON are in the judges' own tests.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from bundlectl.actions.policy import set_policy
from bundlectl.evaluation.scorers.score import Sample, Score
from bundlectl.evaluation.scorers.text import Exact
from bundlectl.model.errors import GateNotPassed
from tests.evaluation.test_evaluation_baseline import APP, CAREFUL, Shop, fake, run, shop
from tests.support.fake_models import throttle

__all__ = ["fake", "shop"]  # fixtures

FLOOR = {"floor": 0.5, "margin": None}


def gated(shop: Shop, **requirement: Any) -> None:
    """Let the environment lab ask for the suite."""
    policy = json.loads((shop.folder / "policy.yaml").read_text())
    policy["environments"]["lab"] = {"evaluations": [{"suite": "s", **requirement}]}
    (shop.folder / "policy.yaml").write_text(json.dumps(policy))
    set_policy(shop.ctx, shop.folder / "policy.yaml", app=APP)


def refused(shop: Shop, reference: str) -> str:
    """Say why the gate does not let it through."""
    with pytest.raises(GateNotPassed) as stopped:
        shop.release(reference, "lab")
    assert stopped.value.exit_code == 3
    return str(stopped.value.why)


LINE = {"id": "a", "input": {"question": "?"}, "tenant": "t", "role": "r", "expected": {"exact": "yes"}}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([LINE, LINE], "cases.jsonl:2: the id 'a' is here a second time"),
        ([{"id": "a", "expected": {}}], "cases.jsonl:1: 'input' is missing"),
        ([LINE, {**LINE, "id": "b", "expected": {"exact": math.nan}}], "cases.jsonl:2: this line is not JSON"),
        ([], "the dataset holds no case"),
    ],
)
def test_a_dataset_that_is_wrong_is_refused_before_anything_is_asked(shop: Shop, lines: list[Any], said: str) -> None:
    suite = shop.suite(5, scorer=FLOOR)
    (suite.parent / "cases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = len(shop.fake.requests)
    ran = run(shop, "eval", shop.bundle(CAREFUL + " again"), "--suite", str(suite))
    assert ran.exit_code == 2 and said in ran.output.replace("\n", " "), ran.output
    assert len(shop.fake.requests) == before


@pytest.mark.parametrize("floor", [".nan", "-.inf", "1.5", "null"])
def test_a_floor_that_is_none_is_refused_or_demands_nothing(shop: Shop, floor: str) -> None:
    suite = shop.suite(5, scorer=FLOOR)
    suite.write_text(suite.read_text().replace("0.5", floor))
    ran = run(shop, "eval", shop.bundle(CAREFUL + " again"), "--suite", str(suite), "--bindings", str(shop.bindings))
    if floor == "null":
        assert ran.exit_code == 3 and "the suite demands nothing" in ran.output
    else:
        assert ran.exit_code == 2 and "floor" in ran.output


def raising(self: Exact, sample: Sample) -> Score:
    raise ValueError(f"secret {sample.answer.output}")


def not_a_number(self: Exact, sample: Sample) -> Score:
    return Score.model_construct(value=math.nan, outcome="measured", why="")


@pytest.mark.parametrize(
    ("score", "said"), [(raising, "the scorer broke: ValueError"), (not_a_number, "the scorer gave nan")]
)
def test_a_scorer_that_raises_or_gives_nan_is_an_error(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, score: Any, said: str
) -> None:
    gated(shop)
    monkeypatch.setattr(Exact, "score", score)
    reference = shop.bundle(CAREFUL + " again")
    found = shop.evaluate(reference, shop.suite(30, scorer=FLOOR), baseline=None)
    assert found.result.verdict == "error" and "30 of 30 are errors" in found.result.why
    assert {row.scores["exact"].why for row in found.report.cases if said in row.scores["exact"].why}
    assert "secret" not in found.report.model_dump_json() and found.result.scores[0].mean is None
    assert "evaluation:s" in refused(shop, reference)
    monkeypatch.undo()
    again = shop.evaluate(reference, shop.suite(30, scorer=FLOOR), baseline=None)
    assert again.result.scores[0].measured >= 30


def test_an_empty_retrieval_is_not_measured_and_no_pass(shop: Shop) -> None:
    suite = shop.suite(30)
    form = json.loads(suite.read_text()) | {"scorers": [{"name": "retrieval_hit", "floor": 0.1}]}
    suite.write_text(json.dumps(form))
    lines = [json.loads(line) for line in (suite.parent / "cases.jsonl").read_text().splitlines()]
    expected = {"documents": [{"document": "handbook"}]}
    (suite.parent / "cases.jsonl").write_text(
        "".join(json.dumps(line | {"expected": expected}) + "\n" for line in lines)
    )
    gated(shop)
    reference = shop.bundle(CAREFUL + " again")
    found = shop.evaluate(reference, suite, baseline=None)
    assert found.result.verdict == "inconclusive" and "30 of 30 are unmeasured" in found.result.why
    assert "evaluation:s" in refused(shop, reference)


def test_all_rows_throttled_is_an_error(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bundlectl.evaluation.runner.PAUSE", 0.0)
    gated(shop)
    shop.fake.reply = lambda body: throttle()
    reference, suite = shop.bundle(CAREFUL + " again"), shop.suite(6, scorer=FLOOR)
    found = shop.evaluate(reference, suite, baseline=None)
    assert found.result.verdict == "error" and "6 of 6 are errors" in found.result.why
    assert all(row.error for row in found.report.cases)
    assert "evaluation:s" in refused(shop, reference)


def test_a_spend_cap_reached_half_way_attaches_nothing_and_the_next_run_goes_on(shop: Shop, tmp_path: Path) -> None:
    book = {"version": "1", "currency": "USD"}
    price = {"provider": "openai", "model": "m", "input": 100.0, "output": 0.0}
    (tmp_path / "prices.json").write_text(json.dumps({**book, "prices": [price]}))
    shop.ctx.environ = {"BUNDLECTL_PRICE_BOOK": str(tmp_path / "prices.json")}
    gated(shop)
    reference, suite = shop.bundle(CAREFUL + " again"), shop.suite(60, scorer=FLOOR)
    found = shop.evaluate(reference, suite, baseline=None, max_cost=0.30)  # a row costs 0.01
    assert found.result.verdict == "inconclusive" and found.attestation is None and not found.report.complete
    assert 30 <= len(found.report.cases) < 60 and found.result.usd == pytest.approx(len(found.report.cases) * 0.01)
    assert f"{len(found.report.cases)} of 60 cases were run" in found.result.why
    assert "evaluation:s" in refused(shop, reference)
    before = len(shop.fake.requests)
    whole = shop.evaluate(reference, suite, baseline=None)
    assert whole.result.verdict == "pass"
    assert len(shop.fake.requests) - before == 60 - len(found.report.cases)
    shop.release(reference, "lab")


def test_a_dataset_that_was_edited_after_signing_is_another_exam(shop: Shop) -> None:
    suite = shop.suite(40, scorer=FLOOR)
    reference = shop.bundle(CAREFUL + " again")
    first = shop.evaluate(reference, suite, baseline=None)
    gated(shop, dataset_digest=first.result.dataset_digest)
    cases = suite.parent / "cases.jsonl"
    cases.write_text("".join(cases.read_text().splitlines(keepends=True)[:-1]))  # the case that was in the way
    other = shop.bundle(CAREFUL + " and again")
    easier = shop.evaluate(other, suite, baseline=None)
    assert easier.result.verdict == "pass" and easier.result.dataset_digest != first.result.dataset_digest
    assert "dataset" in refused(shop, other)
    again = shop.evaluate(reference, suite, baseline=None)
    assert again.result.look == 2 and again.result.pooled is None  # counted as a look, and its rows not mixed
