"""Ways to a pass that nothing stands behind: models that were left out, rows and answers that were looked at before."""

from __future__ import annotations

import json

import pytest

from bundlectl.actions.promote import promote
from bundlectl.model.components import Model, Route, Routes, Rule
from bundlectl.model.errors import GateNotPassed
from tests.evaluation.test_evaluation_baseline import CAREFUL, HASTY, Shop, fake, shop

__all__ = ["fake", "shop"]  # fixtures

FLOOR = {"floor": 0.8, "margin": None}


def test_an_evaluation_without_a_model_says_nothing_where_that_model_answers(shop: Shop) -> None:
    """The fallback of a route is measured when its model is switched off; the model's own answers are not."""
    models = {"plain": Model(provider="openai", model="m"), "spare": Model(provider="openai", model="spare")}
    routes = Routes(
        routes={"fast": Route(model="plain", fallback=["slow"]), "slow": Route(model="spare")},
        select=[Rule(use="fast")],
    )
    bundle = shop.bundle(HASTY, models=models, routes=routes)
    address = json.loads(shop.bindings.read_text())["models"]["plain"]
    form = {"apiVersion": "bundlectl/v1", "kind": "Bindings", "models": {"plain": address, "spare": address}}
    both = shop.bindings
    both.write_text(json.dumps(form))
    shop.wrong = 0.0
    shop.bindings = shop.folder / "spare.yaml"
    shop.bindings.write_text(json.dumps({**form, "disabled_models": ["plain"]}))
    found = shop.evaluate(bundle, shop.suite(120))
    assert found.result.verdict == "pass" and found.result.skipped == ["plain"]
    how = {"environment": "dev", "reason": "in a test"}
    with pytest.raises(GateNotPassed, match="gate") as stopped:
        promote(shop.ctx, bundle, bindings_file=both, **how)
    assert "models:s: It was evaluated without plain" in str(stopped.value.why) and "--bindings" in stopped.value.fix
    promote(shop.ctx, bundle, bindings_file=shop.bindings, **how)


def test_a_signed_run_goes_on_from_no_rows_that_were_measured_unsigned(shop: Shop) -> None:
    """Otherwise somebody measures all cases but one unsigned, forgets them until they look well, and signs that."""
    hasty, suite = shop.bundle(HASTY), shop.suite(120, scorer=FLOOR)
    shop.wrong = 0.0  # as luck would have it
    stopped = shop.evaluate(hasty, suite, sign=False, cache=False, max_cost=1.0)
    assert not stopped.report.complete and len(stopped.report.cases) > 0
    lucky = {row.receipt for row in stopped.report.cases}
    signed = shop.evaluate(hasty, suite, cache=False)
    assert signed.attestation is not None and lucky.isdisjoint({row.receipt for row in signed.report.cases})


def test_what_a_fresh_run_forgets_stays_forgotten(shop: Shop) -> None:
    hasty, suite = shop.bundle(HASTY), shop.suite(120, scorer=FLOOR)
    first = shop.evaluate(hasty, suite, max_cost=1.0)
    again = shop.evaluate(hasty, suite, max_cost=1.0, fresh=True, cache=False)
    last = shop.evaluate(hasty, suite, cache=False)
    receipts = {row.receipt for row in last.report.cases}
    assert receipts.isdisjoint({row.receipt for row in first.report.cases})
    assert receipts > {row.receipt for row in again.report.cases}


def test_answers_to_a_suite_of_another_name_are_not_signed_for_this_one(shop: Shop) -> None:
    """Looks are counted by the suite's name: a copy under another one would be a look that nobody counts."""
    careful = shop.bundle(CAREFUL + " and kindness")
    suite = shop.suite(30, scorer=FLOOR, name="practice")
    shop.evaluate(careful, suite, baseline=None)
    found = shop.evaluate(careful, shop.suite(30, scorer=FLOOR), baseline=None)
    assert found.attestation is not None and not any(row.cached for row in found.report.cases)


def test_naming_cases_never_passes_even_where_they_are_all_of_them(shop: Shop) -> None:
    careful, suite = shop.bundle(CAREFUL + " and kindness"), shop.suite(30, scorer=FLOOR)
    found = shop.evaluate(careful, suite, baseline=None, only=["*"])
    assert found.result.verdict == "inconclusive" and found.attestation is None
    assert "were chosen" in found.result.why
