"""copy: a bundle goes to another registry with what is attested, and its releases there count as a soak."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bundlectl.actions.copying import Copied, contexts, copy
from bundlectl.actions.gc import gc
from bundlectl.actions.promote import promote
from bundlectl.actions.renew import renew
from bundlectl.actions.retaining import Retention
from bundlectl.model.attestation import RELEASE
from bundlectl.model.errors import Conflict, GateNotPassed, NotFound, UsageError, VerificationFailed
from bundlectl.model.keyring import EvaluationRequirement, Gate, Grant, Soak, SoakRegistry
from bundlectl.storage.store import open_store
from bundlectl.trust.abroad import is_release
from tests.support.aws import stand_in
from tests.support.ceremony import Ceremony
from tests.support.world import ROLES, SUITE, entry

APP = "support"
DAY = {"days": 1}


class Two:
    """A source in which staging is live and renewed daily, and a target whose prod asks for a soak in it."""

    def __init__(self, folder: Path, *, max_age: str = "7d", **gate: Any) -> None:
        (folder / "source").mkdir()
        (folder / "target").mkdir()
        self.source = Ceremony(folder / "source", gates={"staging": Gate(expires_after="14d")})
        named = SoakRegistry(id=self.source.world.registry_id, keyring=self.source.world.pin, max_age=max_age)
        soak = Soak(environment="staging", at_least="1d", registry=named)
        # The target's registry is another: it has a principal of its own more.
        self.target = Ceremony(
            folder / "target",
            gates={"prod": Gate(soak=soak, **gate)},
            principals={"person": entry("person")},
        )
        self.bundle = self.source.world.bundle("v1").digest
        self.reference = f"{APP}@{self.bundle}"

    def later(self, **span: float) -> None:
        self.source.later(**span)
        self.target.later(**span)

    def copy(self, reference: str | None = None) -> Copied:
        return copy(self.source.context(), self.target.context(), reference or self.reference)

    def promote(self) -> Any:
        return promote(self.target.context(), self.reference, environment="prod", reason="in a test")

    def soaked(self) -> None:
        promote(self.source.context(), self.reference, environment="staging", reason="in a test")
        self.later(**DAY)
        renew(self.source.context(), f"{APP}:staging")

    def soak(self) -> tuple[str, str]:
        plan = promote(
            self.target.context(), self.reference, environment="prod", reason="in a test", plan_only=True
        ).plan
        found = next(check for check in plan.checks if check.name == "soak")
        return found.verdict, found.why


@pytest.fixture
def two(tmp_path: Path) -> Two:
    return Two(tmp_path)


def test_a_bundle_goes_to_another_registry_and_live_there(two: Two) -> None:
    two.soaked()
    done = two.copy(f"{APP}:staging")
    assert (done.bundle, done.attestations, done.counts, done.missing) == (two.bundle, 3, 3, [])
    assert [(one.environment, one.serial, one.live) for one in done.releases] == [("staging", 2, True)]
    ours = two.target.world.registry
    assert ours.get_bundle(APP, two.bundle).digest == two.bundle
    kinds = sorted(kind for kind, _, _ in ours.attestations(APP, two.bundle))
    assert kinds == ["approval", "evaluation", "provenance", "release", "release"]
    assert two.copy() == done.model_copy(), "again: nothing new"
    assert two.soak()[0] == "pass"
    assert two.promote().released.serial == 1


def test_only_what_is_signed_counts_as_a_soak(two: Two) -> None:
    promote(two.source.context(), two.reference, environment="staging", reason="in a test")
    two.copy()
    two.later(days=3)
    assert two.soak() == ("fail", two.soak()[1]), "a promotion proves no soak, however long ago"
    assert "prove 0 s" in two.soak()[1]
    with pytest.raises(GateNotPassed):
        two.promote()
    renew(two.source.context(), f"{APP}:staging")
    assert two.soak()[0] == "fail", "not copied yet"
    two.copy()
    assert two.soak()[0] == "pass"
    two.later(days=8)
    verdict, why = two.soak()
    assert (verdict, "8 d old" in why) == ("inconclusive", True), "nobody has said for a week that it still runs"


def test_nothing_copied_is_inconclusive(two: Two) -> None:
    two.target.world.bundle("v1")
    assert two.soak()[0] == "inconclusive"


def test_a_release_of_somewhere_else_does_not_count(two: Two, tmp_path: Path) -> None:
    two.soaked()
    two.copy()
    ours = two.target.world.registry
    store = two.target.world.store
    kept = {key: store.get(key).data for key in store.list(f"apps/{APP}/referrers/") if "/release/" in key}
    assert len(kept) == 2
    for key in kept:  # without the promoter's release the renewer's word is nothing
        if json.loads(_payload(kept[key]))["predicate"]["action"] == "promotion":
            store.delete(key)
    assert two.soak()[0] == "inconclusive"
    for key, data in kept.items():
        if key not in set(store.list(f"apps/{APP}/referrers/")):
            store.create(key, data)
    assert two.soak()[0] == "pass"
    # The target's own promoter signs a release that names the source: it is no promoter of the source.
    other = two.target.world
    envelopes = [envelope for _, _, envelope in ours.attestations(APP, two.bundle) if is_release(envelope)]
    for key in kept:
        store.delete(key)
    forged = {**json.loads(_payload(kept[min(kept)]))["predicate"], "action": "promotion", "actor": "person"}
    ours.attach(APP, two.bundle, "release", other.attest(two.bundle, RELEASE, forged, ["person"]))
    assert two.soak()[0] == "inconclusive"
    assert len(envelopes) == 2


def test_what_the_source_s_root_says_counts(two: Two) -> None:
    two.soaked()
    two.source.world.set_state("promoter", "compromised")
    two.copy()
    assert two.soak()[0] == "inconclusive", "its promoter's word counts nowhere any more"


def test_a_blocked_bundle_has_not_soaked(two: Two) -> None:
    two.soaked()
    two.copy()
    two.source.world.block(two.bundle)
    # The copy is refused nothing; the newer keyring that comes with it says so.
    two.copy()
    assert two.soak()[0] == "fail"


def test_a_source_whose_root_s_word_has_run_out_proves_nothing(two: Two) -> None:
    """Whoever can delete from the target can hold back the source's newer keyrings; the expiry is what ends that."""
    two.source.world.rotate(expires=two.source.world.now() + timedelta(days=3))
    two.soaked()
    two.copy()
    assert two.soak()[0] == "pass"
    two.later(days=3)
    verdict, why = two.soak()
    assert (verdict, "has run out" in why) == ("inconclusive", True)
    two.source.world.rotate(expires=two.source.world.now() + timedelta(days=300))
    two.copy()
    assert two.soak()[0] == "pass"


def test_another_registry_than_the_policy_names(tmp_path: Path) -> None:
    two = Two(tmp_path)
    two.soaked()
    two.copy()
    gate = two.target.world.policy_document.environments["prod"]
    assert gate.soak is not None and gate.soak.registry is not None
    other = gate.soak.registry.model_copy(update={"keyring": two.target.world.pin})
    two.target.world.next_policy(
        {"prod": gate.model_copy(update={"soak": gate.soak.model_copy(update={"registry": other})})}
    )
    assert two.soak()[0] == "inconclusive", "the pinned keyring is not among those that came"


def test_evidence_counts_only_where_the_target_knows_the_key(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "t").mkdir()
    source = Ceremony(tmp_path / "s", gates={"dev": Gate()})
    names = {**{role: entry(f"their-{role}") for role in ROLES}}
    target = Ceremony(
        tmp_path / "t",
        gates={"dev": Gate(evaluations=[EvaluationRequirement(suite=SUITE)])},
        principals=names,
        grants=[Grant(role=role, principals=[role]) for role in ROLES],
    )
    bundle = source.world.bundle("v1").digest
    done = copy(source.context(), target.context(), f"{APP}@{bundle}")
    assert (done.attestations, done.counts) == (3, 0)
    with pytest.raises(GateNotPassed, match="inconclusive"):
        promote(target.context(signer="their-promoter"), f"{APP}@{bundle}", environment="dev", reason="in a test")


def test_a_copy_lifts_a_mark(two: Two) -> None:
    two.copy()
    two.later(days=100)
    short = Retention(releases=1, window="1d")
    assert gc(two.target.context(), APP, retention=short, delete=True).bundles == [two.bundle]
    with pytest.raises(Conflict, match="marked"):
        two.promote()
    two.copy()
    two.later(days=2)
    assert gc(two.target.context(), APP, retention=short, delete=True).bundles == []
    assert two.target.world.registry.has_bundle(APP, two.bundle)


def test_wrongly_called(two: Two) -> None:
    with pytest.raises(UsageError, match="one registry"):
        copy(two.source.context(), two.source.context(), two.reference)
    with pytest.raises(NotFound):
        two.copy(f"{APP}@sha256:{'0' * 64}")
    source, target = contexts(
        two.source.context(), str(two.source.registry), str(two.target.registry), two.target.world.pin
    )
    with pytest.raises(VerificationFailed, match="does not hold the keyring"):
        copy(source, target, two.reference)


def test_a_damaged_source_leaves_the_target_as_it_is(two: Two) -> None:
    store = two.source.world.store
    pack = f"apps/{APP}/packs/{two.bundle.removeprefix('sha256:')}"
    for key in [pack, *store.list(f"apps/{APP}/blobs/")]:
        stored = store.get(key)
        store.swap(key, stored.data[:-1] + b"?", stored.tag)
    before = sorted(two.target.world.store.list("apps/"))
    with pytest.raises(VerificationFailed):
        two.copy()
    assert sorted(two.target.world.store.list("apps/")) == before


def test_from_a_folder_into_s3(two: Two, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    aws = stand_in("moto")
    environ: Mapping[str, str] = aws.environ
    for key, value in environ.items():
        monkeypatch.setenv(key, value)
    url = f"s3://{aws.bucket()}/team/registry"
    store = open_store(url)
    for key in two.target.world.store.list(""):
        store.create(key, two.target.world.store.get(key).data)
    monkeypatch.chdir(two.target.folder)
    ctx = two.target.context(registry_url=url, signer="promoter")
    two.soaked()
    assert copy(two.source.context(), ctx, two.reference).counts == 3
    done = promote(ctx, two.reference, environment="prod", reason="in a test")
    assert done.released is not None and done.released.bundle == two.bundle


def _payload(envelope: bytes) -> bytes:
    from base64 import b64decode

    return b64decode(json.loads(envelope)["payload"])
