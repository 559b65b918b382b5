"""A candidate beside what is live: a worse prompt is stopped, five cases settle nothing, asking again does not help."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bundlectl.actions.context import Context
from bundlectl.actions.drift import drift
from bundlectl.actions.evaluate import Evaluated, Settings, evaluate
from bundlectl.actions.keyring import keyring_init
from bundlectl.actions.policy import set_policy
from bundlectl.actions.promote import promote
from bundlectl.cli.program import program
from bundlectl.evaluation.report import Report
from bundlectl.model.bundle import Bundle
from bundlectl.model.components import Model
from bundlectl.model.errors import BackendUnavailable, GateNotPassed
from tests.support.fake_models import Fail, FakeModels, Say, Step, fake_models_in_a_thread
from tests.support.world import tiny_bundle

APP = "support"
CAREFUL, HASTY = "Answer with care", "Answer in haste"
MARGIN = 0.05


class Shop:
    """An app whose answers come from the fake model server, which reads the prompt."""

    def __init__(self, folder: Path, fake: FakeModels) -> None:
        self.folder, self.fake = folder, fake
        ids = count()
        self.ctx = Context(
            registry_url=str(folder / "registry"),
            clock=lambda: datetime.now(UTC),
            new_id=lambda: f"{next(ids):024x}",
        )
        keyring_init(self.ctx, APP, suites=["s"])
        asks = {"suite": "s", "no_worse": {"exact": MARGIN}}
        policy = {
            "apiVersion": "bundlectl/v1",
            "kind": "Policy",
            "environments": {"dev": {"evaluations": [asks]}, "lab": {}},
        }
        (folder / "policy.yaml").write_text(json.dumps(policy))
        set_policy(self.ctx, folder / "policy.yaml", app=APP)
        bindings = {
            "apiVersion": "bundlectl/v1",
            "kind": "Bindings",
            "models": {"plain": {"base_url": fake.base_url}},
            "limits": {"tenants": {"default": {"requests_per_minute": 1}}},
        }
        self.bindings = folder / "bindings.yaml"
        self.bindings.write_text(json.dumps(bindings))
        self.wrong = 0.35
        fake.reply = self.reply

    def reply(self, body: dict[str, Any]) -> Step:
        """Say yes with care; in haste, no to some questions, the same ones every time."""
        text = body["messages"][-1]["content"]
        hasty = text.startswith(HASTY) and random.Random(text).random() < self.wrong
        return Say("no" if hasty else "yes")

    def bundle(self, text: str, **parts: Any) -> str:
        """Build and store a bundle, and give its reference."""
        made: Bundle = tiny_bundle(
            text, app=APP, **({"models": {"plain": Model(provider="openai", model="m")}} | parts)
        )
        self.ctx.registry.put_bundle(APP, made)
        return f"{APP}@{made.digest}"

    def suite(self, n: int, **more: Any) -> Path:
        """Write a suite of n questions, each a group of its own, that want a yes."""
        folder = self.folder / f"suite-{n}"
        folder.mkdir(exist_ok=True)
        who = {"tenant": "acme", "role": "support_agent", "expected": {"exact": "yes"}}
        cases = [{"id": f"q{i}", "input": {"question": f"Is it {i}?"}, **who} for i in range(n)]
        (folder / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
        form = {"apiVersion": "bundlectl/v1", "kind": "Suite", "name": "s", "task": "answer", "dataset": "cases.jsonl"}
        scorer = {"name": "exact", "margin": MARGIN, **more.pop("scorer", {})}
        (folder / "s.yaml").write_text(json.dumps({**form, "scorers": [scorer], **more}))
        return folder / "s.yaml"

    def evaluate(self, reference: str, suite: Path, baseline: str | None = f"{APP}:dev", **how: Any) -> Evaluated:
        """Evaluate by one suite."""
        settings = Settings(baseline=baseline, concurrency=16, **how)
        (found,) = evaluate(self.ctx, reference, suite=suite, bindings_file=self.bindings, settings=settings)
        return found

    def release(self, reference: str, environment: str = "dev") -> None:
        """Promote."""
        promote(self.ctx, reference, environment=environment, reason="in a test", bindings_file=self.bindings)


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeModels]:
    with fake_models_in_a_thread() as server:
        yield server


@pytest.fixture
def shop(tmp_path: Path, fake: FakeModels) -> Shop:
    made = Shop(tmp_path, fake)
    careful = made.bundle(CAREFUL)
    first = made.evaluate(careful, made.suite(120))
    assert first.result.verdict == "pass" and first.result.comparison is None  # nothing is live to be worse than
    made.release(careful)
    return made


def test_a_worse_prompt_is_stopped_at_the_gate_and_the_report_shows_which_cases(shop: Shop) -> None:
    hasty = shop.bundle(HASTY)
    found = shop.evaluate(hasty, shop.suite(120))
    result, comparison = found.result, found.result.comparison
    assert result.verdict == "fail" and comparison is not None and comparison.verdict == "fail"
    assert comparison.environment == "dev" and not comparison.stored and comparison.tried == 2
    (row,) = comparison.scores
    assert row.claim == "worse" and row.groups == 120 and row.high < 0 and row.mcnemar is not None
    wrong = {f"q{i}" for i in range(120) if shop.reply(_asked(HASTY, i)) == Say("no")}
    assert {change.case for change in found.changes} == wrong
    stored = Report.model_validate_json(shop.ctx.registry.get_blob(APP, str(result.report)))
    assert stored.baseline is not None and stored.baseline.bundle == comparison.baseline
    assert {case.id for case in stored.cases if case.scores["exact"].value == 0} == wrong
    with pytest.raises(GateNotPassed) as stopped:
        shop.release(hasty)
    assert stopped.value.exit_code == 3
    assert "no-worse:s/exact" in str(stopped.value.why) and "worse, beyond the margin" in str(stopped.value.why)


def _asked(text: str, i: int) -> dict[str, Any]:
    return {"messages": [{"content": f"{text}: Is it {i}?"}]}


def test_an_equal_prompt_passes(shop: Shop) -> None:
    equal = shop.bundle(CAREFUL + " and kindness")
    found = shop.evaluate(equal, shop.suite(120))
    assert found.result.verdict == "pass", found.result.why
    assert found.result.comparison is not None and found.result.comparison.scores[0].claim == "no_worse"
    assert found.changes == []
    shop.release(equal)


def test_five_cases_settle_nothing_and_say_how_many_would(shop: Shop) -> None:
    hasty = shop.bundle(HASTY)
    found = shop.evaluate(hasty, shop.suite(5))
    assert found.result.verdict == "inconclusive" and "about 331 groups" in found.result.why
    assert found.result.comparison is not None and found.result.comparison.scores[0].needed == 331
    with pytest.raises(GateNotPassed):
        shop.release(hasty)


def test_ten_evaluations_of_one_digest_do_not_make_it_pass(shop: Shop) -> None:
    """Worse by the margin and drawn anew each time: alone, one look in ten or so would let it pass."""
    asked: Counter[str] = Counter()

    def reply(body: dict[str, Any]) -> Step:
        text = body["messages"][-1]["content"]
        asked[text] += 1
        wrong = text.startswith(HASTY) and random.Random(f"{text} {asked[text]}").random() < MARGIN
        return Say("no" if wrong else "yes")

    shop.fake.reply = reply
    hasty, suite = shop.bundle(HASTY), shop.suite(60)
    for look in range(1, 11):
        found = shop.evaluate(hasty, suite)
        comparison = found.result.comparison
        assert found.result.verdict != "pass" and comparison is not None
        assert comparison.alpha == pytest.approx(0.05 / (look * (look + 1)))
        assert found.result.look == look and len(found.result.pooled or []) == look - 1
    assert found.result.scores[0].measured == 600
    assert found.result.flaky
    assert found.result.oldest is not None and found.result.oldest <= found.result.started
    with pytest.raises(GateNotPassed):
        shop.release(hasty)


def test_a_part_of_the_suite_passes_nothing_and_attaches_nothing(shop: Shop) -> None:
    equal = shop.bundle(CAREFUL + " and more")
    found = shop.evaluate(equal, shop.suite(120), only=["q1*"])
    assert found.result.verdict == "inconclusive" and found.attestation is None
    with pytest.raises(GateNotPassed):
        shop.release(equal)


def test_a_comparison_with_something_else_than_what_is_live_is_no_evidence(shop: Shop) -> None:
    equal, other = shop.bundle(CAREFUL + " and more"), shop.bundle(CAREFUL + " or less")
    assert shop.evaluate(equal, shop.suite(120), baseline=other).result.verdict == "pass"
    with pytest.raises(GateNotPassed) as stopped:
        shop.release(equal)
    assert "is live now" in str(stopped.value.why) and f"--baseline {APP}:dev" in stopped.value.fix


def test_a_gate_with_an_anchor_wants_a_comparison_with_it_as_well(shop: Shop) -> None:
    anchor = shop.evaluate(f"{APP}:dev", shop.suite(1), baseline=None, sign=False).bundle
    requirement = {"suite": "s", "no_worse": {"exact": MARGIN}, "anchor": anchor}
    form = json.loads((shop.folder / "policy.yaml").read_text())
    form["environments"]["dev"]["evaluations"] = [requirement]
    (shop.folder / "policy.yaml").write_text(json.dumps(form))
    set_policy(shop.ctx, shop.folder / "policy.yaml", app=APP)
    second, third, suite = shop.bundle(CAREFUL + " twice"), shop.bundle(CAREFUL + " thrice"), shop.suite(120)
    shop.evaluate(second, suite)
    shop.release(second)  # the anchor is live, so one comparison serves
    shop.evaluate(third, suite)
    with pytest.raises(GateNotPassed) as stopped:
        shop.release(third)
    assert f"--baseline {APP}@{anchor}" in stopped.value.fix
    again = shop.evaluate(third, suite, baseline=f"{APP}@{anchor}")
    assert again.result.look == 2 and again.result.verdict == "pass"
    shop.release(third)


def test_a_suite_with_margins_needs_a_baseline(shop: Shop) -> None:
    found = shop.evaluate(shop.bundle(CAREFUL + " and more"), shop.suite(120), baseline=None)
    assert found.result.verdict == "inconclusive" and "--baseline support:prod" in found.result.why


def test_a_price_nobody_knows_stops_a_run_that_has_a_limit_and_the_next_one_goes_on(shop: Shop) -> None:
    equal, suite = shop.bundle(CAREFUL + " and more"), shop.suite(120)
    found = shop.evaluate(equal, suite, max_cost=1.0)
    assert found.result.verdict == "inconclusive" and found.attestation is None and not found.report.complete
    kept = len(found.report.cases)
    assert 0 < kept < 120
    before = len(shop.fake.requests)
    whole = shop.evaluate(equal, suite)
    assert whole.result.verdict == "pass" and whole.result.look == 1
    assert len(shop.fake.requests) - before == 240 - kept - len(
        found.report.baseline.cases if found.report.baseline else []
    )


def test_repeats_are_asked_each_and_name_what_is_flaky(shop: Shop) -> None:
    turns: Counter[str] = Counter()

    def reply(body: dict[str, Any]) -> Step:
        text = body["messages"][-1]["content"]
        turns[text] += 1
        return Say("no" if text.endswith("Is it 3?") and turns[text] % 2 else "yes")

    shop.fake.reply = reply
    found = shop.evaluate(shop.bundle(CAREFUL + " again"), shop.suite(30, repeats=2), baseline=None)
    assert found.result.repeats == 2 and found.result.flaky == ["q3"]
    assert [case.repeat for case in found.report.cases[:4]] == [None, 2, None, 2]


def test_where_nothing_can_differ_the_baselines_own_result_is_used(shop: Shop) -> None:
    plain = {"models": {"plain": Model(provider="extractive")}}
    bindings = shop.folder / "none.yaml"
    bindings.write_text(json.dumps({"apiVersion": "bundlectl/v1", "kind": "Bindings"}))
    shop.bindings = bindings
    suite = shop.suite(80, scorer={"floor": 0.0})
    one, two = shop.bundle("one", **plain), shop.bundle("two", **plain)
    assert shop.evaluate(one, suite, baseline=None).attestation
    shop.release(one, "lab")
    comparison = shop.evaluate(two, suite, baseline=f"{APP}:lab").result.comparison
    assert comparison is not None and comparison.stored and comparison.scores[0].difference == 0
    assert comparison.verdict == "pass"
    twice = shop.evaluate(two, suite, baseline=f"{APP}:lab", repeats=2)
    assert twice.report.complete and twice.result.verdict == "pass" and twice.result.cache_hits == 80


# ---------------------------------------------------------------- on the command line


def run(shop: Shop, *argv: str) -> Result:
    return CliRunner().invoke(
        program(), [*argv, "--registry", shop.ctx.registry_url], prog_name="bundlectl", env={"COLUMNS": "160"}
    )


def test_the_table_shows_the_comparison_and_the_exit_code_is_3(shop: Shop) -> None:
    hasty, suite = shop.bundle(HASTY), shop.suite(120)
    ran = run(shop, "eval", hasty, "--suite", str(suite), "--baseline", "support:dev", "--concurrency", "16")
    assert ran.exit_code == 3, ran.output
    for shown in ("candidate", "baseline", "difference", "interval", "verdict", "needed", "worse: q", "s: fail"):
        assert shown in ran.output
    few = run(shop, "eval", hasty, "--suite", str(shop.suite(5)), "--baseline", "support:dev")
    assert few.exit_code == 3 and "331" in few.output and "look 2 at this bundle" in few.output
    stopped = run(shop, "promote", hasty, "--to", "dev", "--reason", "try")
    assert stopped.exit_code == 3 and "no-worse:s/exact" in stopped.output


def test_drift_ends_with_7_and_says_what_moved(shop: Shop) -> None:
    shop.fake.reply = lambda body: Say("no" if "Is it 1" in body["messages"][-1]["content"] else "yes", model="new")
    ran = run(shop, "drift", "support:dev", "--suite", str(shop.suite(120)))
    assert ran.exit_code == 7, ran.output
    assert "fake-model-0125 -> new" in ran.output and "flipped and stays: q1" in ran.output
    assert run(shop, "drift", "support:dev", "--suite", str(shop.suite(5))).exit_code == 3


# ---------------------------------------------------------------- drift


def test_what_did_not_change_has_not_drifted(shop: Shop) -> None:
    found = drift(shop.ctx, f"{APP}:dev", suite=shop.suite(120))
    assert found.verdict == "same" and found.flips == [] and found.moved == []


def test_another_model_behind_the_same_name_is_drift(shop: Shop) -> None:
    shop.fake.reply = lambda body: Say("yes", model="fake-model-0626")
    found = drift(shop.ctx, f"{APP}:dev", suite=shop.suite(120))
    assert found.verdict == "drifted"
    (moved,) = found.moved
    assert (moved.then, moved.now) == (["fake-model-0125"], ["fake-model-0626"])


def test_worse_answers_of_the_same_model_are_drift_and_the_flips_that_stay_are_named(shop: Shop) -> None:
    shop.fake.reply = lambda body: Say("no" if "Is it 1" in body["messages"][-1]["content"] else "yes")
    found = drift(shop.ctx, f"{APP}:dev", suite=shop.suite(120))
    assert found.verdict == "drifted" and not found.moved
    assert {flip.case for flip in found.flips} == {f"q{i}" for i in range(120) if str(i).startswith("1")}
    assert all(flip.stayed == flip.again == 5 for flip in found.flips)


def test_a_single_passing_flip_is_no_drift(shop: Shop) -> None:
    turns: Counter[str] = Counter()

    def reply(body: dict[str, Any]) -> Step:
        text = body["messages"][-1]["content"]
        turns[text] += 1
        return Say("no" if text.endswith("Is it 7?") and turns[text] == 1 else "yes")

    shop.fake.reply = reply
    found = drift(shop.ctx, f"{APP}:dev", suite=shop.suite(120))
    assert found.verdict == "same"
    assert [(flip.case, flip.stayed) for flip in found.flips] == [("q7", 0)]


def test_an_outage_says_nothing_about_drift(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bundlectl.evaluation.runner.PAUSE", 0.0)
    shop.evaluate(shop.bundle(CAREFUL), shop.suite(5))  # the live bundle, by the suite that is asked in the outage
    shop.fake.reply = lambda body: Fail(503)
    with pytest.raises(BackendUnavailable) as raised:
        drift(shop.ctx, f"{APP}:dev", suite=shop.suite(5))
    assert raised.value.exit_code == 6


def test_without_a_signed_result_or_with_few_cases_drift_is_not_known(shop: Shop) -> None:
    unknown = drift(shop.ctx, f"{APP}:dev", suite=shop.suite(30))
    assert unknown.verdict == "inconclusive" and unknown.fix.startswith(f"bundlectl eval {APP}:dev --suite")
    shop.evaluate(shop.bundle(CAREFUL), shop.suite(30))
    assert drift(shop.ctx, f"{APP}:dev", suite=shop.suite(30)).verdict == "inconclusive"
