"""What promote need not read: evidence that a verified head carries, and gc's marks of what is live elsewhere.

To read less must decide nothing else: what lies beside the bundle counts, newest or not, wherever its bytes came from.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from bundlectl.actions.gc import gc
from bundlectl.actions.promote import Promoted, promote
from bundlectl.actions.retaining import Retention
from bundlectl.model.attestation import EnvelopeSignature
from bundlectl.model.bundle import Bundle
from bundlectl.model.errors import Conflict, GateNotPassed, VerificationFailed
from bundlectl.model.keyring import Soak
from bundlectl.registry import layout
from bundlectl.registry.registry import Registry
from bundlectl.storage.faults import FaultyStore, no_faults
from bundlectl.storage.memory import MemoryStore
from tests.support.ceremony import Ceremony
from tests.support.world import default_gates

APP = "support"


@pytest.fixture
def ceremony(tmp_path: Path) -> Ceremony:
    gates = default_gates()
    soaked = gates["prod"].model_copy(update={"soak": Soak(environment="staging", at_least="1m")})
    return Ceremony(tmp_path, store=MemoryStore(), gates={**gates, "prod": soaked})


def soaked(ceremony: Ceremony, text: str = "v1") -> Bundle:
    """Build a bundle with all its evidence and leave it in staging for an hour."""
    bundle = ceremony.world.bundle(text)
    ceremony.world.promote("staging", bundle)
    ceremony.later(hours=1)
    return bundle


def evaluated_again(ceremony: Ceremony, bundle: Bundle, **changes: Any) -> str:
    envelope = ceremony.world.evaluation(bundle, **changes)
    return ceremony.world.registry.attach(APP, bundle.digest, "evaluation", envelope)


def release(ceremony: Ceremony, reference: str, store: Any = None, **how: Any) -> Promoted:
    ctx = ceremony.context()
    ctx.__dict__["registry"] = Registry(store or ceremony.world.store)
    return promote(ctx, reference, environment="prod", reason="in a test", **how)


def reads(ceremony: Ceremony, reference: str, **how: Any) -> list[str]:
    store = FaultyStore(ceremony.world.store, no_faults)
    release(ceremony, reference, store, **how)
    return [key for method, key in store.calls if method == "get"]


@pytest.mark.parametrize("reference", ["digest", "environment"])
def test_what_staging_carries_and_what_is_live_there_is_not_read_again(ceremony: Ceremony, reference: str) -> None:
    bundle = soaked(ceremony)
    named = f"{APP}@{bundle.digest}" if reference == "digest" else f"{APP}:staging"
    found = reads(ceremony, named)
    # Only the approval, which is for prod: no head of staging carries it.
    assert [key.split("/")[4] for key in found if "/referrers/" in key] == ["approval"]
    assert layout.gc_key(APP) not in found
    assert found.count(layout.head_key(APP, "staging")) == 1
    head = ceremony.world.head_of("prod")[1]
    assert len(head.evidence) == 3


def test_an_evaluation_that_came_after_staging_is_read_and_stops_it(ceremony: Ceremony) -> None:
    bundle = soaked(ceremony)
    evaluated_again(ceremony, bundle, verdict="fail")
    with pytest.raises(GateNotPassed, match="says fail") as caught:
        release(ceremony, f"{APP}@{bundle.digest}")
    assert "evaluation" in caught.value.why


def test_evidence_that_was_removed_counts_no_more_though_staging_carries_it(ceremony: Ceremony) -> None:
    bundle = soaked(ceremony)
    store = ceremony.world.store
    for key in list(store.list(layout.referrers_prefix(APP, bundle.digest))):
        if "/evaluation/" in key:
            store.delete(key)
    with pytest.raises(GateNotPassed, match="inconclusive"):
        release(ceremony, f"{APP}@{bundle.digest}")


def test_damaged_evidence_is_refused_where_it_is_read(ceremony: Ceremony) -> None:
    bundle = soaked(ceremony)
    key = layout.referrer_key(APP, bundle.digest, "evaluation", evaluated_again(ceremony, bundle))
    ceremony.world.store.swap(key, b"{}", ceremony.world.store.get(key).tag)
    with pytest.raises(VerificationFailed, match="other bytes"):
        release(ceremony, f"{APP}@{bundle.digest}")


@pytest.mark.parametrize("kind", ["provenance", "evaluation", "approval"])
def test_evidence_that_was_respelled_a_hundred_times_does_not_fill_the_head(ceremony: Ceremony, kind: str) -> None:
    """Anyone who may attach can write the same signed statement anew: with other key ids, with signatures of nobody."""
    bundle = soaked(ceremony)
    registry = ceremony.world.registry
    honest = next(found for name, _, found in registry.attestations(APP, bundle.digest) if name == kind)
    for n in range(100):
        junk = [EnvelopeSignature(sig=base64.b64encode(bytes([n, m] * 32)).decode()) for m in range(31)]
        bare = honest.signatures[0].model_copy(update={"keyid": ""})
        registry.attach(APP, bundle.digest, kind, honest.model_copy(update={"signatures": [bare, *junk]}))
    assert release(ceremony, f"{APP}@{bundle.digest}").released is not None
    head = ceremony.world.head_of("prod")[1]
    assert len(head.evidence) == 3
    ceremony.world.verify("prod")


def test_marks_are_read_of_what_is_not_live_where_it_is_to_soak(ceremony: Ceremony) -> None:
    bundle = ceremony.world.bundle("never released")
    ceremony.later(days=100)
    ctx = ceremony.context()
    ctx.__dict__["registry"] = Registry(ceremony.world.store)
    assert gc(ctx, APP, retention=Retention(releases=1, window="1d"), delete=True).bundles == [bundle.digest]
    with pytest.raises(Conflict, match="marked for collection"):
        release(ceremony, f"{APP}@{bundle.digest}", plan_only=True)


@pytest.mark.parametrize("window", ["1s", "1h", "1d"])
def test_gc_keeps_for_a_day_what_was_live(ceremony: Ceremony, window: str) -> None:
    """Promote relies on it: what it found live in staging is not deleted before it commits, whoever moves staging."""
    bundle = soaked(ceremony)
    for text in ("v2", "v3", "v4"):
        ceremony.world.promote("staging", ceremony.world.bundle(text))
    ceremony.later(hours=23)
    ctx = ceremony.context()
    ctx.__dict__["registry"] = Registry(ceremony.world.store)
    found = gc(ctx, APP, retention=Retention(releases=1, window=window))
    assert bundle.digest not in found.bundles
    assert any(one.bundle == bundle.digest for one in found.kept)
