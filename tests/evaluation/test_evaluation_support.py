"""The example app's own suite: it reads, and the bundle in the repository meets it with nothing but the wheel."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bundlectl.actions.context import Context
from bundlectl.actions.evaluate import evaluate
from bundlectl.actions.index import index_build
from bundlectl.actions.keyring import keyring_init
from bundlectl.bundling.documents import load_document
from bundlectl.evaluation.suite import read_suite
from bundlectl.model.documents import IndexSource
from bundlectl.retrieval.documents import read_documents

ROOT = Path(__file__).resolve().parents[2]


def test_the_suite_reads_and_demands_what_it_should() -> None:
    loaded = read_suite(ROOT / "evals" / "support.yaml")
    floors = {line.key: line for line in loaded.suite.scorers}
    assert floors["forbidden"].floor == 1.0 and loaded.suite.must_pass
    assert loaded.suite.splits == ["tuning", "heldout"] and len(loaded.cases) >= 100
    for key in ("retrieval_hit", "refusal", "json_schema"):
        assert {"split:tuning", "split:heldout"} <= floors[key].tags.keys()
    heldout = sum(case.split == "heldout" for case in loaded.cases) / len(loaded.cases)
    assert 0.3 <= heldout <= 0.4
    assert any(case.expected.forbidden_documents for case in loaded.cases)


def test_what_the_suite_quotes_stands_in_the_documents() -> None:
    file = ROOT / "bundles" / "support" / "indexes" / "support_docs.yaml"
    documents = {one.key: " ".join(one.text.split()) for one in read_documents(load_document(file, IndexSource), file)}
    cases = [case for case in read_suite(ROOT / "evals" / "support.yaml").cases if case.expected.spans]
    assert len(cases) >= 10
    for case in cases:
        for span in case.expected.spans or []:
            assert span.text is not None and " ".join(span.text.split()) in documents[span.document], case.id


@pytest.mark.slow
def test_the_support_bundle_meets_its_suite(tmp_path: Path) -> None:
    ids = itertools.count()
    ctx = Context(
        registry_url=str(tmp_path / "registry"),
        clock=lambda: datetime.now(UTC),
        new_id=lambda: f"{next(ids):024x}",
        trust_first_use=True,
    )
    keyring_init(ctx, "support")
    index_build(ctx, ROOT / "bundles/support/indexes/support_docs.yaml", app="support")
    (found,) = evaluate(
        ctx,
        str(ROOT / "bundles" / "support"),
        suite=ROOT / "evals" / "support.yaml",
        bindings_file=ROOT / "bundles/support/environments/staging.yaml",
    )
    assert found.result.verdict == "pass", found.result.why
    hit = next(row for row in found.result.scores if row.scorer == "retrieval_hit" and row.tag is None)
    assert hit.mean is not None and hit.mean < 0.9  # else the questions have become too easy to tell anything
