"""The keyring's life: every verb makes version N+1, or the request to have it signed where the keys are."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundlectl.actions import succession
from bundlectl.actions.applying import apply, export_keyring
from bundlectl.actions.keyring import keyring_show
from bundlectl.actions.opening import open_trust
from bundlectl.actions.promote import promote
from bundlectl.actions.signing import show_request, sign_request
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.errors import BundlectlError, Conflict, NotFound, UsageError, VerificationFailed
from bundlectl.model.keyring import Keyring
from bundlectl.model.release import MAX_SERIAL
from bundlectl.trust.envelope import parse_envelope, payload_of
from bundlectl.trust.keyring import keyring_digest
from tests.support.ceremony import Ceremony


@pytest.fixture
def ceremony(tmp_path: Path) -> Ceremony:
    return Ceremony(tmp_path)


def states(ceremony: Ceremony) -> dict[str, str]:
    return {shown.principal: shown.state for shown in keyring_show(ceremony.context()).principals}


def test_add(ceremony: Ceremony) -> None:
    ctx = ceremony.context()
    who: dict[str, Any] = {"owner": "ann", "role": "approver", "key": ceremony.pub("ann")}
    made = succession.add(ctx, "ann", **who, apps=["support"], environments=["prod"], reason="joined")
    assert made.version == 2
    assert made.changes[0] == "reason: joined"
    assert made.changes[2] == "new grant: approver for ann (apps support; environments prod)"
    keyring = open_trust(ctx)
    assert keyring.document.reason == "joined"
    assert "ann" in keyring.principals("approver", "support", "prod")
    assert "ann" not in keyring.principals("approver", "support", "staging")
    with pytest.raises(UsageError, match="already is approver there"):
        succession.add(ctx, "ann", **who, apps=["support"], environments=["prod"])
    succession.add(ctx, "ann", **who, apps=["support"], environments=["staging"])
    assert "ann" in open_trust(ctx).principals("approver", "support", "staging")


KNOWN = {"principal": "approver", "owner": "approver@example.com", "key": "approver.pub"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"principal": "builder"}, "another key or owner"),
        ({"key": "builder.pub"}, "one key under two names"),
        (
            {"principal": "approver", "owner": "approver@example.com", "key": "approver.pub", "role": "promoter"},
            "more than one role",
        ),
        ({"apps": ["billing"]}, "does not name the app billing"),
        ({"key": "missing.pub"}, "cannot be read"),
        ({"key": "ann.pem"}, "holds a private key"),
        ({"environments": ["PROD"]}, "pattern"),
        ({"principal": "Ann Smith"}, "pattern"),
        ({"reason": "x" * 1001}, "at most 1000"),
    ],
)
def test_what_cannot_be_added(ceremony: Ceremony, change: dict[str, Any], says: str) -> None:
    ceremony.key("ann")
    given: dict[str, Any] = {"principal": "ann", "owner": "ann", "role": "approver", "key": "ann.pub"} | change
    given["key"] = str(ceremony.home / "keys" / given["key"])
    with pytest.raises(BundlectlError, match=says):
        succession.add(ceremony.context(), given.pop("principal"), **given)
    assert open_trust(ceremony.context()).version == 1


def test_only_root_signs_keyrings(ceremony: Ceremony) -> None:
    for name in ("promoter", "owner", "stranger"):
        with pytest.raises(VerificationFailed, match="not signed by enough"):
            succession.block(ceremony.context(signer=name), digest(b"x"), reason="x")
    assert open_trust(ceremony.context()).version == 1


def test_retire_refuses_while_a_live_release_depends_on_the_key(ceremony: Ceremony) -> None:
    world, ctx = ceremony.world, ceremony.context()
    for name in ("staging", "prod"):
        world.promote(name, world.bundle("v1"))
    with pytest.raises(UsageError) as refused:
        succession.retire(ctx, "promoter", reason="replaced")
    assert "support:prod" in refused.value.why
    assert "support:staging" in refused.value.why
    assert refused.value.details["depends"]
    with pytest.raises(UsageError, match="owner cannot be retired"):
        succession.retire(ctx, "owner", reason="left")
    succession.retire(ctx, "builder", reason="ci moved")  # evidence of a retired key still counts
    assert states(ceremony)["builder"] == "retired"
    succession.add(ctx, "promoter-2", owner="ci", role="promoter", key=ceremony.pub("promoter-2"))
    world.keyring = open_trust(ctx)
    for name in ("staging", "prod"):
        world.promote(name, world.bundle("v2"), actor="promoter-2")
    assert succession.retire(ctx, "promoter", reason="replaced").consequences == []
    assert states(ceremony)["promoter"] == "retired"
    with pytest.raises(UsageError, match="already is retired"):
        succession.retire(ctx, "promoter", reason="again")


def test_compromise_is_never_refused_names_what_falls_and_is_for_ever(ceremony: Ceremony) -> None:
    world, ctx = ceremony.world, ceremony.context()
    world.promote("prod", world.bundle("v1"))
    made = succession.compromise(ctx, "promoter", reason="in a log")
    assert [line.split(": ")[0] for line in made.consequences] == ["support:prod"]
    with pytest.raises(UsageError, match="already is compromised"):
        succession.retire(ctx, "promoter", reason="perhaps not")


def test_block_by_digest_and_by_reference(ceremony: Ceremony) -> None:
    world, ctx = ceremony.world, ceremony.context()
    first, second = world.bundle("v1"), world.bundle("v2")
    world.promote("prod", first)
    assert succession.block(ctx, second.digest, reason="leaks").consequences == []
    made = succession.block(ctx, f"support@{first.digest[:20]}", reason="leaks too")
    assert made.consequences[0].startswith("support:prod: Root has blocked")
    assert open_trust(ctx).blocked(first.digest) == "leaks too"
    with pytest.raises(UsageError, match="blocked already: leaks"):
        succession.block(ctx, second.digest, reason="again")


def test_epoch_begins_anew(ceremony: Ceremony) -> None:
    world, ctx = ceremony.world, ceremony.context()
    world.promote("prod", world.bundle("v1"))
    made = succession.epoch(ctx, "support:prod", reason="the promoter's key was stolen")
    assert made.changes[1] == "support:prod: epoch 1 -> 2; no release made before counts"
    assert made.consequences[0].startswith("support:prod: Release 1 of support:prod is of epoch 1")
    with pytest.raises(VerificationFailed, match="does not name the app"):
        succession.epoch(ctx, "billing:prod", reason="x")


def test_recovery_from_a_fast_forward(ceremony: Ceremony) -> None:
    """A stolen promoter's key pushed the serial to its end: promoting says what root has to do, and then goes on."""
    world, ctx = ceremony.world, ceremony.context()
    ref = f"support@{world.bundle('v1').digest}"
    world.promote("dev", world.bundle("evil"))
    world.promote("dev", world.bundle("evil"), serial=MAX_SERIAL)
    with pytest.raises(VerificationFailed, match="used up") as refused:
        promote(ctx, ref, environment="dev", reason="x")
    assert "bundlectl keyring epoch support:dev" in refused.value.fix
    succession.epoch(ctx, "support:dev", reason="fast forward")
    released = promote(ctx, ref, environment="dev", reason="anew").released
    assert released is not None
    assert (released.epoch, released.serial) == (2, 1)


def test_a_new_app_and_its_owners(ceremony: Ceremony) -> None:
    ctx = ceremony.context()
    with pytest.raises(UsageError, match="billing needs an owner"):
        succession.set_app(ctx, "billing")
    made = succession.set_app(ctx, "billing", owners=["owner"], add=[ceremony.member("olga")], threshold=2)
    assert "new app billing, owned by 2 of owner, olga" in made.changes
    app = open_trust(ctx).app("billing")
    assert (app.owners.principals, app.owners.threshold) == (["owner", "olga"], 2)
    with pytest.raises(UsageError, match="like that already"):
        succession.set_app(ctx, "billing", owners=["owner", "olga"])
    with pytest.raises(VerificationFailed, match="more than one role"):
        succession.set_app(ctx, "billing", owners=["owner", "promoter"])
    with pytest.raises(UsageError, match="threshold of 5"):
        succession.set_app(ctx, "billing", threshold=5)
    with pytest.raises(VerificationFailed, match="lowers the policy floor"):
        succession.set_app(ctx, "billing", policy_floor=3)
        succession.set_app(ctx, "billing", policy_floor=2)


def test_root_is_rotated_by_old_and_new(ceremony: Ceremony) -> None:
    ctx, add = ceremony.context(), [ceremony.member("root-2"), ceremony.member("root-3")]
    with pytest.raises(VerificationFailed, match="enough of its own root") as refused:
        succession.rotate_root(ctx, add=add, threshold=2)
    assert "--request FILE" in refused.value.fix
    with pytest.raises(VerificationFailed, match="enough of the root of keyring 1"):
        succession.rotate_root(ctx, add=add, threshold=2, signers=ceremony.uris(["root-2", "root-3"]))
    succession.rotate_root(ctx, add=add, threshold=2, signers=ceremony.uris(["root", "root-2"]))
    made = succession.rotate_root(ctx, remove=["root"], signers=ceremony.uris(["root-2", "root-3"]), expires="365d")
    assert made.changes[1] == "root becomes 2 of root-2, root-3"
    assert states(ceremony)["root"] == "retired"
    with pytest.raises(VerificationFailed, match="not signed by enough"):
        succession.block(ctx, digest(b"x"), reason="x")
    with pytest.raises(UsageError, match="root is not root"):
        succession.rotate_root(ctx, remove=["root"])
    with pytest.raises(UsageError, match="Nothing would change"):
        succession.rotate_root(ctx)


def test_export_gives_the_signed_bytes(ceremony: Ceremony, tmp_path: Path) -> None:
    ctx = ceremony.context()
    succession.block(ctx, digest(b"x"), reason="x")
    file = tmp_path / "keyring.json"
    made = export_keyring(ctx, file)
    assert file.read_bytes() == ceremony.world.registry.keyring_bytes(2)
    assert made.digest == digest(payload_of(parse_envelope(file.read_bytes(), "it"))) == open_trust(ctx).digest
    assert export_keyring(ctx, tmp_path / "first.json", version=1).digest == ceremony.world.pin
    with pytest.raises(NotFound):
        export_keyring(ctx, tmp_path / "none.json", version=3)
    with pytest.raises(UsageError, match="already there"):
        export_keyring(ctx, file)


# ---------------------------------------------------------------- root keys offline


@pytest.fixture
def two_roots(ceremony: Ceremony) -> Ceremony:
    uris = ceremony.uris(["root", "root-2"])
    succession.rotate_root(ceremony.context(), add=[ceremony.member("root-2")], threshold=2, signers=uris)
    return ceremony


def test_a_request_goes_out_and_signatures_come_back(two_roots: Ceremony, tmp_path: Path) -> None:
    ctx, request = two_roots.context(), tmp_path / "change.json"
    bad = digest(b"bad")
    made = succession.block(ctx, bad, reason="leaks", request=request)
    assert (made.version, made.request) == (3, str(request))
    assert open_trust(ctx).version == 2
    signed = []
    for name in ("root", "root-2"):
        offline = two_roots.offline(tmp_path / name, signer=name)
        shown = show_request(offline, request)
        assert shown.changes == ["reason: leaks", f"blocked: {bad}: leaks"] == made.changes
        assert shown.digest == made.digest
        signed.append(Path(sign_request(offline, request).file))
    with pytest.raises(VerificationFailed, match="not signed by enough"):
        apply(ctx, request, signed[:1])
    assert open_trust(ctx).version == 2
    applied = apply(ctx, request, signed)
    assert open_trust(ctx).digest == applied.digest == made.digest
    assert apply(ctx, request, signed) == applied  # twice changes nothing
    assert open_trust(ctx).blocked(bad) == "leaks"


def test_the_loser_of_a_race_is_told(two_roots: Ceremony, tmp_path: Path) -> None:
    ctx, request = two_roots.context(), tmp_path / "change.json"
    succession.block(ctx, digest(b"mine"), reason="x", request=request)
    sigs = [Path(sign_request(ctx, request, signers=[two_roots.key(n)]).file) for n in ("root", "root-2")]
    succession.block(ctx, digest(b"theirs"), reason="x", signers=two_roots.uris(["root", "root-2"]))
    with pytest.raises(Conflict, match="does not follow keyring 3"):
        apply(ctx, request, sigs)
    present = open_trust(ctx)
    assert present.blocked(digest(b"mine")) is None

    def theirs_comes_first(keyring: Any) -> Keyring:
        succession.block(ctx, digest(b"again"), reason="x", signers=two_roots.uris(["root", "root-2"]))
        return succession.succession.block(keyring, digest(b"mine"), "x")

    with pytest.raises(Conflict, match="keyring 4 first"):
        succession.change(ctx, theirs_comes_first, two_roots.uris(["root", "root-2"]), None)


def edited(edit: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        form = json.loads(path.read_bytes())
        edit(form)
        path.write_text(json.dumps(form))

    return write


def payload(form: dict[str, Any], edit: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(base64.b64decode(form["payload"]))
    edit(document)
    made = Keyring.model_validate(document)
    form["payload"] = base64.b64encode(canonical(made.form())).decode()
    form["digest"] = keyring_digest(made)


@pytest.mark.parametrize(
    ("bend", "says"),
    [
        pytest.param(edited(lambda f: f.update(summary=["harmless"])), "says something else", id="a summary that lies"),
        pytest.param(
            edited(lambda f: payload(f, lambda d: d["root"].update(threshold=1))),
            "root becomes 1 of",
            id="another change than the summary says",
        ),
        pytest.param(
            edited(lambda f: payload(f, lambda d: d.update(previous=digest(b"x")))),
            "follows another",
            id="another past",
        ),
        pytest.param(
            edited(lambda f: payload(f, lambda d: d["principals"]["root"].update(owner="mallory"))),
            "changes the key or the owner",
            id="an owner changed",
        ),
        pytest.param(edited(lambda f: f.update(digest=digest(b"x"))), "another digest", id="a digest that lies"),
        pytest.param(edited(lambda f: f["keyrings"].pop(0)), "does not hold the keyring", id="no keyring of the pin"),
        pytest.param(
            edited(lambda f: f["keyrings"][1]["signatures"].pop()), "not signed by enough", id="a keyring by too few"
        ),
        pytest.param(edited(lambda f: f.update(more=1)), "is no signing request", id="an unknown field"),
        pytest.param(lambda path: path.write_bytes(b"{"), "not valid JSON", id="no JSON"),
        pytest.param(lambda path: path.write_bytes(b" " * (8 * 1024 * 1024 + 1)), "is over", id="endless data"),
    ],
)
def test_a_bent_request_is_not_signed(
    two_roots: Ceremony, tmp_path: Path, bend: Callable[[Path], None], says: str
) -> None:
    request = tmp_path / "change.json"
    succession.block(two_roots.context(), digest(b"bad"), reason="leaks", request=request)
    bend(request)
    with pytest.raises(BundlectlError) as refused:
        sign_request(two_roots.offline(tmp_path / "off", signer="root"), request)
    assert says in str(refused.value)
    assert list(tmp_path.glob("*.sig")) == []


def test_only_those_asked_sign_and_files_are_never_replaced(two_roots: Ceremony, tmp_path: Path) -> None:
    ctx, request = two_roots.context(), tmp_path / "change.json"
    succession.block(ctx, digest(b"bad"), reason="leaks", request=request)
    with pytest.raises(UsageError, match="not one of those that have to sign") as refused:
        sign_request(ctx, request, signers=[two_roots.key("promoter")])
    assert "2 of root, root-2" in refused.value.why
    sign_request(ctx, request)
    with pytest.raises(UsageError, match="already there"):
        sign_request(ctx, request)
    with pytest.raises(UsageError, match="already there"):
        succession.block(ctx, digest(b"other"), reason="leaks", request=request)
    other = tmp_path / "other.json"
    succession.block(ctx, digest(b"other"), reason="leaks", request=other)
    theirs = sign_request(ctx, other, again=True)
    with pytest.raises(VerificationFailed, match="signs something else"):
        apply(ctx, request, [Path(theirs.file)])


def test_a_machine_signs_one_line_of_versions(two_roots: Ceremony, tmp_path: Path) -> None:
    """Rollback: the carrier leaves the newest keyring out, to have a fork signed in which nothing was revoked."""
    ctx, offline = two_roots.context(), two_roots.offline(tmp_path / "off", signer="root")
    old, new, fork = (tmp_path / f"{name}.json" for name in ("old", "new", "fork"))
    succession.block(ctx, digest(b"never stored"), reason="x", request=old)
    succession.compromise(ctx, "promoter", reason="stolen", signers=two_roots.uris(["root", "root-2"]))
    succession.block(ctx, digest(b"y"), reason="y", request=new)
    sign_request(offline, new)
    with pytest.raises(UsageError, match="signed version 4 before, and is now asked for version 3"):
        sign_request(offline, old)
    with pytest.raises(UsageError, match="already there"):
        sign_request(offline, new)  # the same again is no other line
    succession.block(ctx, digest(b"z"), reason="z", request=fork)
    with pytest.raises(UsageError, match="--again"):
        sign_request(offline, fork)
    assert sign_request(offline, fork, again=True).signed_by == ["root"]
    (offline.workspace / "signed.json").write_text("{")
    with pytest.raises(UsageError, match="signed before"):
        sign_request(offline, new)


def test_a_retirement_is_judged_again_when_it_is_applied(two_roots: Ceremony, tmp_path: Path) -> None:
    ctx, request, world = two_roots.context(), tmp_path / "change.json", two_roots.world
    world.keyring = open_trust(ctx)
    succession.retire(ctx, "promoter", reason="replaced", request=request)
    sigs = [Path(sign_request(ctx, request, signers=[two_roots.key(n)]).file) for n in ("root", "root-2")]
    world.promote("prod", world.bundle("v1"))
    with pytest.raises(UsageError, match="promoter cannot be retired"):
        apply(ctx, request, sigs)
