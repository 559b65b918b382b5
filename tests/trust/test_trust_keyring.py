"""The keyring: pins, thresholds, one key one role, and what may not change from N to N+1."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlectl.model.attestation import KEYRING_PAYLOAD_TYPE, PAYLOAD_TYPE
from bundlectl.model.canonical import canonical
from bundlectl.model.errors import UsageError, VerificationFailed
from bundlectl.model.keyring import Keyring
from bundlectl.trust.envelope import envelope_bytes, seal
from bundlectl.trust.founding import member, new_keyring
from bundlectl.trust.keyring import (
    ACTIVE_OR_RETIRED,
    VerifiedKeyring,
    check_keyring,
    keyring_digest,
    next_keyring,
    open_keyring,
    seal_keyring,
)
from tests.support.trust import (
    APP,
    BUNDLE,
    NOW,
    OTHER,
    founding_keyring,
    opened_keyring,
    sealed,
    signer,
    signers,
    with_states,
)

Form = dict[str, Any]


def changed(edit: Callable[[Form], object]) -> Keyring:
    form = copy.deepcopy(founding_keyring().form())
    edit(form)
    return Keyring.model_validate(form)


def follower(edit: Callable[[Form], object] = lambda form: None, current: VerifiedKeyring | None = None) -> Keyring:
    """Version N+1 of the founding keyring with an edit."""
    current = current or opened_keyring()

    def both(form: Form) -> None:
        form.update(version=current.version + 1, previous=current.digest)
        edit(form)

    form = copy.deepcopy(current.document.form())
    both(form)
    return Keyring.model_validate(form)


def key_of(name: str) -> Form:
    return {"scheme": "ed25519", "public": signer(name).public_pem}


def test_the_pinned_keyring_opens_and_its_digest_is_the_registry() -> None:
    document = founding_keyring()
    keyring = opened_keyring(document)
    assert keyring.registry == keyring.digest == keyring_digest(document)
    assert keyring.version == 1
    assert keyring.epoch(APP, "prod") == keyring.epoch("no-such-app", "prod") == 1
    assert keyring.blocked(BUNDLE) is None
    assert list(keyring.principals("promoter", APP, "prod")) == ["promoter-1"]
    assert list(keyring.roots()) == ["root-1", "root-2", "root-3"]
    assert list(keyring.owners(APP)) == ["owner-1", "owner-2"]
    assert keyring.owner("builder-1") == "ben"
    assert keyring.principal_of(signer("builder-1").public_pem) == "builder-1"
    assert keyring.principal_of(signer("stranger").public_pem) is None
    assert keyring.roles_of("root-1") == {"root"}
    assert keyring.roles_of("owner-1") == {"owner"}
    assert keyring.roles_of("builder-1") == {"builder"}
    with pytest.raises(VerificationFailed, match="does not name the app"):
        keyring.owners("other")
    with pytest.raises(VerificationFailed, match="does not name the principal"):
        keyring.owner("nobody")


def test_a_keyring_is_opened_by_its_pin_only() -> None:
    data = envelope_bytes(seal_keyring(founding_keyring(), signers("root-1", "root-2")))
    with pytest.raises(VerificationFailed, match="not the one that is pinned"):
        open_keyring(data, OTHER)
    with pytest.raises(VerificationFailed, match="belongs to the registry"):
        open_keyring(data, keyring_digest(founding_keyring()), registry=OTHER)


def test_the_registry_of_a_later_pin_is_known_only_when_given() -> None:
    second = follower()
    data = sealed(second, "root-1", "root-2")
    assert open_keyring(data, keyring_digest(second)).registry is None
    assert open_keyring(data, keyring_digest(second), registry=OTHER).registry == OTHER
    current = opened_keyring()
    assert next_keyring(current, data).registry == current.registry


@pytest.mark.parametrize(
    "names",
    [
        ("root-1",),
        ("root-1", "root-1"),
        ("owner-1", "owner-2"),
        ("builder-1", "promoter-1"),
        ("stranger", "other-stranger"),
        ("root-1", "promoter-1"),
    ],
)
def test_too_few_roots_make_no_keyring(names: tuple[str, ...]) -> None:
    document = founding_keyring()
    with pytest.raises(VerificationFailed, match="not signed by enough"):
        open_keyring(sealed(document, *names), keyring_digest(document))
    with pytest.raises(VerificationFailed, match="not signed by enough"):
        next_keyring(opened_keyring(), sealed(follower(), *names))


@pytest.mark.parametrize("state", ["retired", "compromised"])
def test_a_root_that_is_not_active_does_not_count(state: str) -> None:
    document = with_states(founding_keyring(), root_2=state)
    with pytest.raises(VerificationFailed, match="not signed by enough"):
        open_keyring(sealed(document, "root-1", "root-2"), keyring_digest(document))
    assert open_keyring(sealed(document, "root-1", "root-3"), keyring_digest(document)).version == 1


def test_a_keyring_is_nothing_under_another_payload_type() -> None:
    payload = canonical(founding_keyring().form())
    data = envelope_bytes(seal(payload, PAYLOAD_TYPE, signers("root-1", "root-2")))
    with pytest.raises(VerificationFailed, match="wrong payload type"):
        open_keyring(data, keyring_digest(founding_keyring()))


def test_a_keyring_with_an_unknown_field_is_refused() -> None:
    payload = canonical({**founding_keyring().form(), "more": 1})
    data = envelope_bytes(seal(payload, KEYRING_PAYLOAD_TYPE, signers("root-1", "root-2")))
    with pytest.raises(VerificationFailed, match="form this version knows"):
        open_keyring(data, OTHER)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (
            lambda f: f["principals"].update(twin={"owner": "x", "key": key_of("builder-1")}),
            "one key under two names",
        ),
        (lambda f: f["grants"].append({"role": "promoter", "principals": ["builder-1"]}), "more than one role"),
        (lambda f: f["grants"].append({"role": "promoter", "principals": ["root-1"]}), "more than one role"),
        (lambda f: f["grants"].append({"role": "approver", "principals": ["owner-1"]}), "more than one role"),
        (lambda f: f["apps"][APP]["owners"]["principals"].append("root-1"), "more than one role"),
        (lambda f: f["grants"].append({"role": "builder", "principals": ["ghost"]}), "does not list"),
        (lambda f: f["root"]["principals"].append("ghost"), "does not list"),
        (lambda f: f["apps"][APP]["owners"]["principals"].append("ghost"), "does not list"),
        (lambda f: f.update(previous=OTHER), "predecessor"),
        (lambda f: f.update(version=2), "predecessor"),
        (
            lambda f: f["principals"]["root-1"].update(state="retired") or f["root"].update(threshold=3),
            "root threshold",
        ),
        (
            lambda f: f["principals"]["builder-1"]["key"].update(scheme="ecdsa-p256-sha256"),
            "unusable key for 'builder-1'",
        ),
        (lambda f: f["principals"]["builder-1"]["key"].update(public="x"), "unusable key for 'builder-1'"),
        (
            lambda f: [
                f["principals"].update({name: {"owner": name, "oidc": {"issuer": "https://i", "subject": "s"}}})
                for name in ("ci-1", "ci-2")
            ],
            "one key under two names",
        ),
    ],
)
def test_a_keyring_keeps_its_own_rules(edit: Callable[[Form], object], says: str) -> None:
    document = changed(edit)
    with pytest.raises(VerificationFailed, match=says):
        check_keyring(document)
    with pytest.raises(VerificationFailed, match=says):
        seal_keyring(document, signers("root-1", "root-2"))
    with pytest.raises(VerificationFailed, match=says):
        open_keyring(sealed(document, "root-1", "root-2", "root-3"), keyring_digest(document))


def test_the_next_keyring_follows() -> None:
    current = opened_keyring()
    second = follower(
        lambda f: (
            f["apps"][APP].update(epochs={"prod": 2}, policy=3),
            f["blocked"].append({"digest": BUNDLE, "reason": "leaks"}),
            f["principals"]["builder-1"].update(state="retired"),
        )
    )
    keyring = next_keyring(current, sealed(second, "root-2", "root-3"))
    assert keyring.version == 2
    assert keyring.epoch(APP, "prod") == 2
    assert keyring.epoch(APP, "dev") == 1
    assert keyring.blocked(BUNDLE) == "leaks"
    assert list(keyring.principals("builder", APP, "prod")) == ["builder-2"]
    assert list(keyring.principals("builder", APP, "prod", states=ACTIVE_OR_RETIRED)) == ["builder-1", "builder-2"]


def busy() -> VerifiedKeyring:
    """A current keyring with everything that may not go backwards."""
    return opened_keyring(
        changed(
            lambda f: (
                f["apps"][APP].update(epochs={"prod": 3}, policy=4),
                f["apps"].update(second={"owners": {"principals": ["owner-2"]}}),
                f["principals"]["builder-2"].update(state="compromised"),
            )
        )
    )


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda f: f.update(version=3), "does not follow"),
        (lambda f: f.update(previous=OTHER), "follows another keyring"),
        (
            lambda f: (f["principals"].pop("indexer-1"), f["grants"].__setitem__(slice(None), [])),
            "lost the principal",
        ),
        (lambda f: f["principals"]["builder-1"].update(key=key_of("thief")), "changes the key or the owner"),
        (lambda f: f["principals"]["builder-1"].update(owner="ann"), "changes the key or the owner"),
        (lambda f: f["principals"]["builder-2"].update(state="active"), "active again"),
        (lambda f: f["principals"]["builder-2"].update(state="retired"), "retired again"),
        (lambda f: f["apps"].pop("second"), "lost the app"),
        (lambda f: f["apps"][APP].update(policy=3), "lowers the policy floor"),
        (lambda f: f["apps"][APP].update(epochs={"prod": 2}), "lowers the epoch"),
        (lambda f: f["apps"][APP].update(epochs={}), "lowers the epoch"),
    ],
)
def test_what_may_not_change(edit: Callable[[Form], object], says: str) -> None:
    current = busy()
    following = follower(edit, current)
    with pytest.raises(VerificationFailed, match=says):
        next_keyring(current, sealed(following, "root-1", "root-2", "root-3"))
    assert next_keyring(current, sealed(follower(current=current), "root-1", "root-2")).version == 2


def test_the_same_and_an_older_version_do_not_follow() -> None:
    first = opened_keyring()
    second = next_keyring(first, sealed(follower(), "root-1", "root-2"))
    for data in (first.data, second.data):
        with pytest.raises(VerificationFailed, match="does not follow"):
            next_keyring(second, data)


def new_roots(form: Form) -> None:
    for name in ("new-1", "new-2"):
        form["principals"][name] = {"owner": name, "key": key_of(name)}
    form["root"] = {"principals": ["new-1", "new-2"], "threshold": 2}


@pytest.mark.parametrize(
    ("names", "enough"),
    [
        (("root-1", "root-2", "new-1", "new-2"), True),
        (("new-1", "new-2"), False),
        (("root-1", "new-1", "new-2"), False),
        (("root-1", "root-2"), False),
        (("root-1", "root-2", "new-1"), False),
        (("root-1", "root-2", "root-3", "new-1", "stranger"), False),
    ],
)
def test_new_roots_need_both_thresholds(names: tuple[str, ...], enough: bool) -> None:
    data = sealed(follower(new_roots), *names)
    if enough:
        assert list(next_keyring(opened_keyring(), data).roots()) == ["new-1", "new-2"]
    else:
        with pytest.raises(VerificationFailed, match="not signed by enough"):
            next_keyring(opened_keyring(), data)


def test_a_stolen_root_key_is_replaced_by_the_others() -> None:
    following = follower(lambda f: f["principals"]["root-1"].update(state="compromised"))
    current = opened_keyring()
    second = next_keyring(current, sealed(following, "root-2", "root-3"))
    # The thief's key and one of ours were enough for version 1; they are no longer for version 3.
    third = follower(current=second)
    with pytest.raises(VerificationFailed, match="not signed by enough"):
        next_keyring(second, sealed(third, "root-1", "root-2"))


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from(["root-1", "root-2", "root-3", "owner-1", "builder-1", "stranger"]), min_size=1))
def test_only_distinct_roots_count(names: set[str]) -> None:
    document = founding_keyring()
    data = sealed(document, *sorted(names))
    if len({name for name in names if name.startswith("root")}) >= 2:
        open_keyring(data, keyring_digest(document))
    else:
        with pytest.raises(VerificationFailed):
            open_keyring(data, keyring_digest(document))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_flipped_bit_never_makes_another_keyring(data: st.DataObject) -> None:
    good = opened_keyring()
    place = data.draw(st.integers(0, len(good.data) - 1))
    bit = data.draw(st.integers(0, 7))
    broken = good.data[:place] + bytes([good.data[place] ^ (1 << bit)]) + good.data[place + 1 :]
    try:
        found = open_keyring(broken, good.digest)
    except VerificationFailed:
        return
    assert found.document == good.document


def test_grants_are_scoped_to_app_and_environment() -> None:
    def edit(form: Form) -> None:
        form["grants"] = [
            {"role": "promoter", "principals": ["promoter-1"], "apps": [APP], "environments": ["staging"]},
            {"role": "builder", "principals": ["builder-1"]},
            {"role": "builder", "principals": ["builder-2"], "apps": ["second"]},
        ]

    keyring = opened_keyring(changed(edit))
    assert list(keyring.principals("promoter", APP, "staging")) == ["promoter-1"]
    assert keyring.principals("promoter", APP, "prod") == {}
    assert keyring.principals("promoter", "second", "staging") == {}
    assert list(keyring.principals("promoter", APP, None)) == ["promoter-1"]
    assert list(keyring.principals("builder", APP, "prod")) == ["builder-1"]
    assert list(keyring.principals("builder", "second", "prod")) == ["builder-1", "builder-2"]
    assert keyring.principals("approver", APP, "prod") == {}


def test_a_signer_learns_early_that_it_may_not() -> None:
    keyring = opened_keyring(with_states(founding_keyring(), builder_2="retired"))
    assert keyring.signing_principal(signer("builder-1"), "builder", APP, "prod") == "builder-1"
    for name, says in (
        ("stranger", "not in keyring 1"),
        ("builder-2", "retired and signs no more"),
        ("evaluator-1", "is not a builder for support:prod"),
    ):
        with pytest.raises(UsageError, match=says) as caught:
            keyring.signing_principal(signer(name), "builder", APP, "prod")
        assert caught.value.fix


def test_expiry_is_judged_with_a_given_time() -> None:
    keyring = opened_keyring(founding_keyring(expires=NOW))
    assert not keyring.expired(NOW - timedelta(seconds=1))
    assert keyring.expired(NOW)
    assert not opened_keyring().expired(NOW + timedelta(days=10_000))


def test_distinct_counts_key_material() -> None:
    keyring = opened_keyring()
    assert keyring.distinct(["builder-1", "builder-1", "builder-2"]) == 2
    assert keyring.distinct([]) == 0


def test_a_new_keyring_needs_its_people() -> None:
    root = member("r", "r", "root", signer("r"))
    owner = member("o", "o", "owner", signer("o"))
    with pytest.raises(UsageError, match="role root"):
        new_keyring(APP, [owner])
    with pytest.raises(UsageError, match="role owner"):
        new_keyring(APP, [root])
    with pytest.raises(UsageError, match="at least 2"):
        new_keyring(APP, [root, owner], root_threshold=2)
    with pytest.raises(UsageError, match="same id"):
        new_keyring(APP, [root, owner, member("r", "x", "builder", signer("x"))])
    with pytest.raises(VerificationFailed, match="one key under two names"):
        new_keyring(APP, [root, owner, member("b", "b", "builder", signer("o"))])
