"""The cache under eval: what a second run does not ask again, and what no cache may ever give back."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bundlectl.actions.caching import cache_folder, ingredients_of
from bundlectl.actions.context import Silent
from bundlectl.actions.drift import drift
from bundlectl.actions.policy import set_policy
from bundlectl.evaluation.cache import FILE, held
from bundlectl.evaluation.remembering import Ingredients
from bundlectl.inference.aws import AwsService
from bundlectl.inference.bedrock import BedrockProvider
from bundlectl.inference.prices import PRICE_BOOK
from bundlectl.inference.sagemaker import SageMakerProvider
from bundlectl.model.bindings import Bindings
from bundlectl.model.components import Evaluation
from bundlectl.model.errors import GateNotPassed
from bundlectl.trust.signers import generate_key
from tests.evaluation.test_evaluation_baseline import APP, CAREFUL, Shop, fake, run, shop
from tests.support.fake_models import Say
from tests.support.workspace import spawn

__all__ = ["fake", "shop"]  # fixtures


def asked(shop: Shop) -> int:
    return len(shop.fake.requests)


def test_an_unsigned_run_is_answered_by_the_one_before(shop: Shop) -> None:
    equal, suite = shop.bundle(CAREFUL + " and kindness"), shop.suite(120)
    first = shop.evaluate(equal, suite, sign=False)
    before = asked(shop)
    again = shop.evaluate(equal, suite, sign=False)
    assert asked(shop) == before and again.result.cache_hits == 240 and first.result.cache_hits == 0
    assert again.result.scores == first.result.scores and again.result.verdict == first.result.verdict == "pass"
    assert again.result.oldest == min(row.time for row in first.report.rows) and again.result.usd == 0
    assert held(cache_folder(shop.ctx)).answers == 120 + 240
    shop.evaluate(equal, suite, sign=False, cache=False)
    assert asked(shop) == before + 240
    shop.evaluate(equal, suite, sign=False, repeats=2)
    assert asked(shop) == before + 480


def test_what_an_answer_does_not_come_from_may_change(shop: Shop) -> None:
    suite = shop.suite(30, scorer={"floor": 0.5, "margin": None})
    one = shop.bundle(CAREFUL + " twice", evaluation=Evaluation(suites=["s"]))
    two = shop.bundle(CAREFUL + " twice", evaluation=Evaluation(suites=["s", "t"]))
    three = shop.bundle(CAREFUL + " thrice", evaluation=Evaluation(suites=["s"]))
    assert one != two
    shop.evaluate(one, suite, baseline=None)
    before = asked(shop)
    found = shop.evaluate(two, suite, baseline=None)
    assert asked(shop) == before and found.result.look == 1 and found.result.cache_hits == 30
    assert found.attestation is not None
    shop.evaluate(three, suite, baseline=None)
    assert asked(shop) == before + 30


def test_a_signed_look_never_rests_on_an_earlier_look_nor_on_unsigned_answers(shop: Shop) -> None:
    """Otherwise ten looks pooled one set of answers; or somebody asks unsigned until it looks well, and signs that."""
    equal, suite = shop.bundle(CAREFUL + " and kindness"), shop.suite(40)
    shop.evaluate(equal, suite, sign=False)
    for look in (1, 2, 3):
        before = asked(shop)
        found = shop.evaluate(equal, suite)
        assert asked(shop) == before + 80 and found.result.look == look and found.result.cache_hits == 0
        receipts = [row.receipt for row in found.report.cases]
        assert len(set(receipts)) == 40
    pooled = [row.receipt for row in found.report.cases]
    assert len(pooled) == 40 and found.result.scores[0].measured == 120


def test_two_evaluators_looks_do_not_mix(shop: Shop) -> None:
    """Where a gate asks for two evaluators, neither may rest on answers that the other got."""
    key, public = shop.folder / "second.pem", shop.folder / "second.pub"
    public.write_text(generate_key(key).public_pem)
    who = ("second", "--owner", "another team", "--role", "evaluator", "--key", str(public))
    added = run(shop, "keyring", "add", *who)
    assert added.exit_code == 0, added.output
    equal, suite = shop.bundle(CAREFUL + " and kindness"), shop.suite(40)
    answers = iter(range(10**6))
    shop.fake.reply = lambda body: Say("yes", model=f"turn-{next(answers)}")
    first = shop.evaluate(equal, suite)
    before = asked(shop)
    shop.ctx.signer_uri = f"file:{key}"
    other = shop.evaluate(equal, suite)
    assert asked(shop) == before + 80
    assert first.result.actor != other.result.actor == "second"
    assert (first.result.look, other.result.look) == (1, 1) and other.result.pooled is None
    assert not {row.model for row in first.report.cases} & {row.model for row in other.report.cases}
    third = shop.evaluate(equal, suite)
    assert third.result.look == 2 and third.result.pooled == [other.result.report]


def test_age_is_judged_by_the_oldest_answer(shop: Shop) -> None:
    policy = json.loads((shop.folder / "policy.yaml").read_text())
    policy["environments"]["lab"] = {"evaluations": [{"suite": "s", "max_age": "1d"}]}
    (shop.folder / "policy.yaml").write_text(json.dumps(policy))
    set_policy(shop.ctx, shop.folder / "policy.yaml", app=APP)
    suite = shop.suite(30, scorer={"floor": 0.5, "margin": None})
    old = shop.bundle(CAREFUL + " twice", evaluation=Evaluation(suites=["s"]))
    shop.evaluate(old, suite, baseline=None)
    now = datetime.now(UTC)
    shop.ctx.clock = lambda: now + timedelta(days=3)
    new = shop.bundle(CAREFUL + " twice", evaluation=Evaluation(suites=["s", "t"]))
    found = shop.evaluate(new, suite, baseline=None)
    assert found.result.cache_hits == 30 and found.result.oldest is not None and found.result.verdict == "pass"
    assert found.result.finished - found.result.oldest >= timedelta(days=2)
    with pytest.raises(GateNotPassed) as stopped:
        shop.release(new, "lab")
    assert "age:s" in str(stopped.value.why) and "3 d old" in str(stopped.value.why)
    shop.ctx.clock = lambda: now + timedelta(days=3, minutes=1)
    shop.evaluate(new, suite, baseline=None)
    shop.release(new, "lab")


def test_drift_asks_anew(shop: Shop) -> None:
    for _ in range(2):
        before = asked(shop)
        assert drift(shop.ctx, f"{APP}:dev", suite=shop.suite(120)).verdict == "same"
        assert asked(shop) == before + 120


def test_where_time_is_measured_a_signed_run_asks_anew(shop: Shop) -> None:
    exact, speed = {"name": "exact", "floor": 0.5}, {"name": "latency", "options": {"seconds": 60}}
    suite = shop.suite(20)
    form = json.loads(suite.read_text())
    suite.write_text(json.dumps(form | {"scorers": [exact, speed]}))
    one = shop.bundle(CAREFUL + " twice", evaluation=Evaluation(suites=["s"]))
    two = shop.bundle(CAREFUL + " twice", evaluation=Evaluation(suites=["s", "t"]))
    shop.evaluate(one, suite, baseline=None)
    before = asked(shop)
    signed = shop.evaluate(two, suite, baseline=None)
    assert asked(shop) == before + 20 and [row.measured for row in signed.result.scores] == [20, 20]
    first = shop.evaluate(two, suite, baseline=None, sign=False)
    second = shop.evaluate(two, suite, baseline=None, sign=False)
    assert first.result.verdict == second.result.verdict == "pass" and second.result.cache_hits == 20
    assert [row.measured for row in second.result.scores] == [20, 0]


def test_a_cache_that_cannot_be_used_is_said_and_the_run_goes_on(shop: Shop) -> None:
    (cache_folder(shop.ctx) / FILE).write_bytes(b"no database" * 1000)
    for name in ("-wal", "-shm"):
        (cache_folder(shop.ctx) / f"{FILE}{name}").unlink(missing_ok=True)
    reporter = shop.ctx.reporter
    assert isinstance(reporter, Silent)
    reporter.warnings.clear()
    found = shop.evaluate(shop.bundle(CAREFUL + " again"), shop.suite(40))
    assert found.result.verdict == "inconclusive" and found.report.complete
    assert any("cache clear" in warning for warning in reporter.warnings)


# ---------------------------------------------------------------- on the command line


def test_cache_show_and_clear(shop: Shop, tmp_path: Path) -> None:
    equal, suite = shop.bundle(CAREFUL + " and kindness"), shop.suite(30)
    argv = ("eval", equal, "--suite", str(suite), "--bindings", str(shop.bindings), "--unsigned")
    assert "rows were answered" not in run(shop, *argv).output
    again = run(shop, *argv)
    assert "30 of 30 rows were answered by an earlier run" in again.output
    assert "rows were answered" not in run(shop, *argv, "--no-cache").output
    shown = run(shop, "cache", "show")
    assert (
        shown.exit_code == 0
        and "150 answers, 150 scores" in shown.output
        and str(cache_folder(shop.ctx)) in shown.output
    )
    assert json.loads(run(shop, "cache", "clear", "--older-than", "1d", "-o", "json").output)["answers"] == 150
    assert run(shop, "cache", "clear", "--max-size", "0").output.startswith("0 answers, 0 scores, 0.0 of at most 1024")
    wrong = run(shop, "cache", "clear", "--older-than", "soon")
    assert wrong.exit_code == 2 and "--older-than 30d" in wrong.output
    run(shop, *argv)
    assert json.loads(run(shop, "cache", "clear", "-o", "json").output)["answers"] == 0
    before = asked(shop)
    run(shop, *argv)
    assert asked(shop) == before + 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_eval_keeps_what_was_paid_for(shop: Shop, number: signal.Signals) -> None:
    equal, suite = shop.bundle(CAREFUL + " and kindness"), shop.suite(60)
    begun = asked(shop)
    shop.fake.delay = 0.02
    argv = ("eval", equal, "--suite", str(suite), "--bindings", str(shop.bindings), "--concurrency", "4", "--no-cache")
    child = spawn(shop.folder, *argv, "--registry", shop.ctx.registry_url, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while asked(shop) - begun < 20 and time.monotonic() < deadline:
            time.sleep(0.005)
        child.send_signal(number)
        _, said = child.communicate(timeout=60)
    finally:
        shop.fake.delay = 0.0
    assert child.returncode == (130 if number is signal.SIGINT else -number), said
    assert "Traceback" not in said
    paid = asked(shop) - begun
    assert 20 <= paid < 60
    whole = shop.evaluate(equal, suite, baseline=None, cache=False)
    assert whole.report.complete and whole.attestation is not None
    assert asked(shop) - begun <= 60 + 4  # the four that were under way are asked again


def test_where_the_aws_configuration_sends_questions_is_an_ingredient(shop: Shop) -> None:
    def made(url: str, region: str) -> Ingredients:
        http: Any = None
        service = AwsService(http, url, signing_name="bedrock", region=region, credentials=None)
        providers = {"a": BedrockProvider(service), "b": SageMakerProvider(service), "c": None, "d": object()}
        compiled: Any = SimpleNamespace(
            components={},
            prices=PRICE_BOOK,
            routes={name: SimpleNamespace(provider=provider) for name, provider in providers.items()},
        )
        bundle = shop.ctx.registry.get_bundle(APP, shop.bundle(CAREFUL).partition("@")[2])
        return ingredients_of(shop.ctx, bundle, Bindings(), compiled, actor="e", look=1, suite=None, beside=None)

    here = made("https://here/", "eu-central-1")
    assert here.addresses == {"a": "https://here eu-central-1", "b": "https://here eu-central-1"}
    others = [made("https://here/", "us-east-1"), made("https://there/", "eu-central-1")]
    assert len({one.digest() for one in [here, *others]}) == 3
    assert made("https://here", "eu-central-1").digest() == here.digest()
