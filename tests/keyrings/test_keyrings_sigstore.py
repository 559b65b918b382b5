"""OIDC identities in every role: root lets them in, CI jobs sign as them, a resolver serves what they released."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bundlectl.actions import succession
from bundlectl.actions.attest import approve
from bundlectl.actions.build import build
from bundlectl.actions.context import Context
from bundlectl.actions.doctor import examine
from bundlectl.actions.evaluate import evaluate
from bundlectl.actions.gc import gc
from bundlectl.actions.keyring import keyring_show
from bundlectl.actions.opening import open_trust
from bundlectl.actions.policy import set_policy
from bundlectl.actions.promote import promote
from bundlectl.actions.rollback import rollback
from bundlectl.actions.signing import show_request, sign_request
from bundlectl.actions.status import history
from bundlectl.actions.trust_root import trust_root
from bundlectl.actions.verify import verify
from bundlectl.model.attestation import PAYLOAD_TYPE, SNAPSHOT_PAYLOAD_TYPE
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.documents import IndexPointer
from bundlectl.model.errors import BundlectlError, GateNotPassed, UsageError, VerificationFailed
from bundlectl.model.keyring import Keyring, Oidc, Role, Soak, SoakRegistry
from bundlectl.model.release import MAX_HEAD, Head, Release
from bundlectl.registry.head import release_of
from bundlectl.registry.pointers import verify_pointer
from bundlectl.registry.registry import Registry
from bundlectl.resolver.resolver import Resolver, VerifiedBundle
from bundlectl.storage.directory import DirectoryStore
from bundlectl.trust.abroad import Abroad, judge_soak_abroad
from bundlectl.trust.envelope import envelope_bytes, seal
from bundlectl.trust.keyring import VerifiedKeyring, check_keyring
from bundlectl.trust.signers import open_signer
from tests.support.ceremony import Ceremony
from tests.support.fake_sigstore import Authority, FakeSigstore, fake_sigstore, new_key
from tests.support.sigstore_attacker import seal_anyhow
from tests.support.workspace import APP, ROOT, Workspace, environment

GITHUB = "https://token.actions.githubusercontent.com"
LOGIN = "https://login.example.com"
POLICY = f"""\
apiVersion: bundlectl/v1
kind: Policy
environments:
  dev: {{}}
  staging:
    provenance: 1
    evaluations: [{{suite: {APP}}}]
  prod:
    provenance: 1
    evaluations: [{{suite: {APP}}}]
    approvals: 1
    soak: {{environment: staging}}
    confirm: true
    expires_after: 14d
"""


def workflow(name: str) -> str:
    return f"https://github.com/org/app/.github/workflows/{name}.yml@refs/heads/main"


WHO: dict[Role, Oidc] = {
    "builder": Oidc(issuer=GITHUB, subject=workflow("build")),
    "evaluator": Oidc(issuer=GITHUB, subject=workflow("eval")),
    "approver": Oidc(issuer=LOGIN, subject="ann@example.com"),
    "promoter": Oidc(issuer=GITHUB, subject=workflow("release")),
    "renewer": Oidc(issuer=GITHUB, subject=workflow("renew")),
}


def token_of(instance: FakeSigstore, folder: Path, who: Oidc) -> Path:
    """Write a token as the identity's provider would."""
    named = "email" if "@example" in who.subject else "job_workflow_ref"
    return instance.token(folder, who.issuer, "x", **{named: who.subject.removeprefix("https://github.com/")})


@dataclass
class Team:
    """A workspace whose five roles are identities; the development keys of those roles count no more."""

    work: Workspace
    sigstore: FakeSigstore
    folder: Path
    digest: ClassVar[str] = ""

    def uri(self, who: Oidc, sigstore: FakeSigstore | None = None) -> str:
        instance = sigstore or self.sigstore
        token, config = token_of(instance, self.folder, who), instance.config(self.folder)
        return f"sigstore:?identity-token-file={token}&trust-config={config}"

    def context(self, role: Role | None = None, *, who: Oidc | None = None, **how: Any) -> Context:
        made = self.work.context(**how)
        if role is not None or who is not None:
            made.signer_uri = self.uri(who or WHO[role])  # type: ignore[index]
        return made

    def release(self, name: str, ref: str) -> str:
        made = promote(self.context("promoter"), ref, environment=name, reason="by identities", confirmed=name).released
        assert made is not None
        return made.release

    @property
    def registry(self) -> Registry:
        return Registry(DirectoryStore(self.work.registry))

    def resolver(self, name: str, state: Path | None = None) -> Resolver[str]:
        async def prepare(bundle: VerifiedBundle) -> str:
            return bundle.bundle.digest

        pin = (self.work.home / "pin").read_text().strip()
        return Resolver(self.registry, APP, name, pin, prepare, state_dir=state)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    with fake_sigstore() as sigstore:
        team = Team(Workspace.at(folder), sigstore, folder)
        ctx = team.context()
        trust_root(ctx, "own", sigstore.config(folder), issuers=[GITHUB, LOGIN], reason="our Sigstore")
        for role, who in WHO.items():
            owner = "ann" if role == "approver" else "platform"
            succession.add(ctx, f"oidc-{role}", owner=owner, role=role, oidc=who, apps=[APP])
            succession.compromise(ctx, f"developer-{role}", reason="keys are over")
        (folder / "policy.yaml").write_text(POLICY)
        set_policy(ctx, folder / "policy.yaml", app=APP)
        yield team


@pytest.fixture
def team(made: Team, tmp_path: Path) -> Team:
    import shutil

    shutil.copytree(made.work.folder, tmp_path / APP, symlinks=True)
    return Team(Workspace(tmp_path / APP), made.sigstore, tmp_path)


@pytest.fixture(scope="module")
def released(made: Team) -> Team:
    """Everything by identities, as three CI jobs and a person: live in dev, staging and prod."""
    folder = made.work.folder
    ref = build(made.context("builder"), folder).reference
    evaluate(made.context("evaluator"), ref, suite=folder / "evals" / f"{APP}.yaml")
    with pytest.raises(GateNotPassed):
        promote(made.context("promoter"), ref, environment="prod", reason="too early", confirmed="prod")
    approve(made.context("approver"), ref, environment="prod", reason="read it")
    for name in ("dev", "staging", "prod"):
        made.release(name, ref)
    Team.digest = ref.partition("@")[2]
    return made


def copy(team: Team, folder: Path) -> Team:
    import shutil

    shutil.copytree(team.work.folder, folder / APP, symlinks=True)
    return Team(Workspace(folder / APP), team.sigstore, folder)


async def test_a_resolver_serves_what_identities_released_and_asks_nobody(
    released: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a resolver asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for _ in ("cold", "with its last good"):
        resolver = released.resolver("prod", tmp_path)
        await resolver.start()
        assert resolver.current() == released.digest
        assert resolver.status.alarms == ()
        await resolver.stop()
    size = released.work.head("prod").stat().st_size
    assert size < MAX_HEAD / 4, size


def test_what_is_live_verifies_and_so_does_its_chain(released: Team) -> None:
    found = verify(released.context(), f"{APP}:prod")
    assert (found.bundle, found.serial, found.alarms, found.set_aside) == (released.digest, 1, [], [])
    told = history(released.context(), f"{APP}:prod", verify=True)
    assert [(one.actor, one.verified) for one in told.entries] == [("oidc-promoter", True)]
    head = json.loads(released.work.head("prod").read_text())
    signatures = [one for envelope in (head["release"], *head["evidence"]) for one in envelope["signatures"]]
    counted = [one for one in signatures if "extension" in one]
    assert len(counted) == 4


def test_rollback_by_an_identity(released: Team, tmp_path: Path) -> None:
    team = copy(released, tmp_path)
    team.work.edit("prompts/answer.yaml", "and from nothing else", "and from nothing else at all")
    ref = build(team.context("builder"), team.work.folder).reference
    team.release("dev", ref)
    back = rollback(team.context("promoter"), f"{APP}:dev", reason="worse")
    assert back.returned_to == 1
    assert verify(team.context(), f"{APP}:dev").bundle == released.digest


def test_a_job_of_the_command_line(released: Team, tmp_path: Path) -> None:
    """The whole way through the program, as a job of GitHub Actions: no token in argv, the actor is the principal."""
    team = copy(released, tmp_path)
    team.work.edit("prompts/answer.yaml", "and from nothing else", "and from nothing else here")
    built = team.work.json("build", ".", "--signer", team.uri(WHO["builder"]))
    token = token_of(team.sigstore, tmp_path, WHO["promoter"]).read_text().strip()
    endpoint = f"{team.sigstore.url}/token/{base64.urlsafe_b64encode(token.encode()).decode()}"
    env = {
        "BUNDLECTL_SIGNER": f"sigstore:?trust-config={team.sigstore.config(tmp_path)}",
        "GITHUB_ACTIONS": "true",
        "ACTIONS_ID_TOKEN_REQUEST_URL": f"{endpoint}?api-version=2.0",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "request-token",
    }
    told = team.work.json("promote", built["reference"], "--to", "dev", "--reason", "from a job", env=env)
    assert told["released"]["actor"] == "oidc-promoter"
    shown = team.work.run("keyring", "show").out
    assert f"oidc-builder is {workflow('build')} by {GITHUB}" in shown
    assert "sigstore own: trusted root sha256:" in shown
    refused = team.work.run(
        "promote", ".", "--to", "dev", "--reason", "x", env={"BUNDLECTL_SIGNER": "sigstore:"}, code=2
    )
    assert "identity-token-file" in refused.err


@pytest.mark.parametrize("role", ["promoter", "approver", "evaluator", "builder"])
def test_a_compromised_identity_counts_nowhere(released: Team, tmp_path: Path, role: Role) -> None:
    team = copy(released, tmp_path)
    told = succession.compromise(team.context(), f"oidc-{role}", reason="the account was taken over")
    assert any(line.startswith(f"{APP}:prod") for line in told.consequences)
    with pytest.raises(VerificationFailed):
        verify(team.context(), f"{APP}:prod")
    with pytest.raises(BundlectlError):
        promote(team.context("promoter"), f"{APP}:staging", environment="prod", reason="again", confirmed="prod")


def test_a_retired_identity_signs_no_more_and_its_word_stands(released: Team, tmp_path: Path) -> None:
    team = copy(released, tmp_path)
    succession.retire(team.context(), "oidc-builder", reason="another workflow builds")
    assert verify(team.context(), f"{APP}:prod").alarms == []
    with pytest.raises(UsageError, match="retired and signs no more"):
        build(team.context("builder"), team.work.folder)
    with pytest.raises(UsageError, match="a live release depends on it"):
        succession.retire(team.context(), "oidc-promoter", reason="x")


def test_an_instance_that_is_trusted_no_more_vouches_for_nothing(released: Team, tmp_path: Path) -> None:
    team = copy(released, tmp_path)
    told = trust_root(team.context(), "own", remove=True, reason="its log was compromised")
    assert told.changes[-1] == "Sigstore instance own is trusted no more"
    assert any(line.startswith(f"{APP}:prod") for line in told.consequences)
    with pytest.raises(VerificationFailed) as caught:
        verify(team.context(), f"{APP}:prod")
    assert "trusts no Sigstore instance" in str(caught.value)
    with pytest.raises(UsageError, match="trusts no Sigstore instance"):
        build(team.context("builder"), team.work.folder)


def test_a_new_trusted_root_that_forgets_the_old_log_is_seen_before_it_is_signed(
    released: Team, tmp_path: Path
) -> None:
    team = copy(released, tmp_path)
    other = released.sigstore.like(authority=Authority())
    other.url = released.sigstore.url
    told = trust_root(team.context(), "own", other.config(tmp_path), request=tmp_path / "request.json")
    assert any(line.startswith(f"{APP}:prod") for line in told.consequences)
    assert open_trust(team.context()).version == open_trust(released.context()).version


def test_a_stolen_promoter_alone_promotes_nothing(released: Team, tmp_path: Path) -> None:
    """An instance of the thief's own gives the identity's certificate; everything is made and nothing counts."""
    team = copy(released, tmp_path)
    team.work.edit("prompts/answer.yaml", "and from nothing else", "and from anything else")
    with fake_sigstore(FakeSigstore(provider=released.sigstore.provider)) as theirs:
        thief = team.work.context()
        thief.signer_uri = team.uri(WHO["builder"], theirs)
        ref = build(thief, team.work.folder).reference
        forger = team.work.context()
        forger.signer_uri = team.uri(WHO["promoter"], theirs)
        with pytest.raises(VerificationFailed) as caught:
            promote(forger, ref, environment="dev", reason="mine")
        assert "A signature in the name of oidc-promoter does not count" in str(caught.value)
    with pytest.raises(GateNotPassed) as gate:
        promote(team.context("promoter"), ref, environment="staging", reason="mine", confirmed="staging")
    assert "provenance" in str(gate.value.details) + str(gate.value)


PROMOTER = WHO["promoter"]
FORGED: dict[str, tuple[dict[str, Any], Oidc]] = {
    "another subject": ({}, Oidc(issuer=GITHUB, subject=workflow("release") + "x")),
    "another issuer": ({}, Oidc(issuer="https://evil.example.com", subject=PROMOTER.subject)),
    "another issuer that is trusted for others": ({}, Oidc(issuer=LOGIN, subject=PROMOTER.subject)),
    "another role": ({}, WHO["evaluator"]),
    "another certificate authority": ({"authority": Authority()}, PROMOTER),
    "another CT log": ({"ct": new_key()}, PROMOTER),
    "another transparency log": ({"log": new_key()}, PROMOTER),
    "a certificate that was over": ({"log_ahead": timedelta(minutes=11)}, PROMOTER),
}


def next_head(team: Team, instance: FakeSigstore, who: Oidc, *, signed: bytes | None = None) -> bytes:
    """Give the head that would follow prod's: in order in all but who signed it."""
    data = team.work.head("prod").read_bytes()
    head = Head.model_validate_json(data)
    statement = json.loads(base64.b64decode(head.release.payload))
    place = {"serial": head_release(head).serial + 1, "previous": digest(data), "reason": "mine"}
    statement["predicate"] |= place
    payload = canonical(statement)
    envelope = seal_anyhow(
        instance, team.folder, token_of(instance, team.folder, who), payload, PAYLOAD_TYPE, signed=signed
    )
    return canonical(head.model_copy(update={"release": envelope}).form())


def head_release(head: Head) -> Release:
    return release_of(head.release, "it")


async def test_an_attacker_who_writes_heads_and_a_resolver_that_runs(released: Team, tmp_path: Path) -> None:
    team = copy(released, tmp_path)
    resolver = team.resolver("prod")
    await resolver.start()
    honest = team.work.head("prod").read_bytes()
    heads: dict[str, bytes] = {}
    for name, (changes, who) in FORGED.items():
        with fake_sigstore(team.sigstore.like(**changes)) as theirs:
            heads[name] = next_head(team, theirs, who)
    heads["the entry of another signature"] = next_head(team, team.sigstore, PROMOTER, signed=b"{}")
    good = next_head(team, team.sigstore, PROMOTER)
    bent = json.loads(good)
    del bent["release"]["signatures"][0]["extension"]
    heads["no certificate and log entry"] = canonical(bent)
    bent = json.loads(good)
    statement = json.loads(base64.b64decode(bent["release"]["payload"]))
    statement["predicate"]["reason"] = "yours"
    bent["release"]["payload"] = base64.b64encode(canonical(statement)).decode()
    heads["a payload that was changed"] = canonical(bent)
    for name, data in heads.items():
        team.work.head("prod").write_bytes(data)
        await resolver.poll_now()
        assert resolver.status.last_error is not None, name
        assert "not signed by a promoter" in resolver.status.last_error, (name, resolver.status.last_error)
        assert (resolver.current(), resolver.status.serial) == (released.digest, 1), name
        team.work.head("prod").write_bytes(honest)
        await resolver.poll_now()
        assert resolver.status.last_error is None
    # What was refused was refused for its signature: the same head, signed by whom it names, is followed.
    team.work.head("prod").write_bytes(good)
    await resolver.poll_now()
    assert (resolver.status.last_error, resolver.status.serial) == (None, 2)
    await resolver.stop()


async def test_a_restart_beside_a_head_with_a_certificate_that_no_library_reads(released: Team, tmp_path: Path) -> None:
    """Refused like any other: a server that starts then serves its last good."""
    team = copy(released, tmp_path)
    state = tmp_path / "state"
    resolver = team.resolver("prod", state)
    await resolver.start()
    await resolver.stop()
    bent = json.loads(next_head(team, team.sigstore, PROMOTER))
    held = bent["release"]["signatures"][0]["extension"]["ext"]["certificate"]
    data = base64.b64decode(held["rawBytes"])
    held["rawBytes"] = base64.b64encode(data.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020104"))).decode()
    team.work.head("prod").write_bytes(canonical(bent))
    resolver = team.resolver("prod", state)
    await resolver.start()
    assert (resolver.current(), resolver.status.source) == (released.digest, "last_good")
    assert "certificate" in (resolver.status.last_error or "")
    await resolver.stop()
    with pytest.raises(VerificationFailed, match="cannot be read"):
        verify(team.context(), f"{APP}:prod")


@pytest.mark.parametrize("where", ["release", "evidence"])
def test_head_without_certificate_and_log_entry(released: Team, tmp_path: Path, where: str) -> None:
    team = copy(released, tmp_path)
    head = json.loads(team.work.head("prod").read_text())
    for envelope in [head["release"]] if where == "release" else head["evidence"]:
        for signature in envelope["signatures"]:
            signature.pop("extension", None)
    team.work.head("prod").write_text(json.dumps(head, separators=(",", ":"), sort_keys=True))
    with pytest.raises(VerificationFailed):
        verify(team.context(), f"{APP}:prod")


def test_the_doctor_looks_at_identities(released: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    team = copy(released, tmp_path)

    def seen(ctx: Context) -> dict[str, tuple[str, str]]:
        return {check.name: (check.verdict, check.why) for check in examine(ctx).checks}

    assert seen(team.context("builder"))["identities"] == ("pass", "5 of them, vouched for by own")
    assert seen(team.context("builder"))["signer"] == ("pass", "oidc-builder, active: builder")
    stranger = Oidc(issuer=GITHUB, subject=workflow("other"))
    assert seen(team.context(who=stranger))["signer"][0] == "fail"
    trust_root(team.context(), "own", remove=True)
    assert seen(team.context())["identities"][0] == "fail"
    monkeypatch.setattr("bundlectl.actions.doctor.find_spec", lambda name: None)
    assert "not installed" in seen(team.context())["identities"][1]


WITHOUT = """
import sys
sys.modules["sigstore"] = None
from bundlectl.cli.program import run
sys.argv = ["bundlectl", "verify", sys.argv[1]]
run()
"""


def test_a_machine_without_the_extra_says_what_it_lacks(released: Team) -> None:
    argv = [sys.executable, "-c", WITHOUT, f"{APP}:prod"]
    done = subprocess.run(
        argv, cwd=released.work.folder, capture_output=True, text=True, env={**environment(), "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 4, done.stderr
    assert "bundlectl[sigstore]" in done.stderr


def test_a_process_of_keys_alone_loads_nothing_of_sigstore(tmp_path: Path) -> None:
    ceremony = Ceremony(tmp_path)
    ceremony.world.promote("prod", ceremony.world.bundle("v1"))
    code = (
        "import sys\nfrom bundlectl.cli.program import run\nsys.argv = ['bundlectl', 'verify', 'support:prod']\n"
        "try:\n    run()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'sigstore', 'cryptography.x509.verification', 'requests'} & set(sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr


def test_root_lets_identities_in_by_the_command_line(released: Team, tmp_path: Path) -> None:
    team = copy(released, tmp_path)
    config = team.sigstore.like().config(tmp_path)
    other = "https://gitlab.example.com"
    told = team.work.quick("keyring", "trust-root", "second", str(config), "--issuer", other)
    assert told["changes"][0].startswith("new Sigstore instance second: trusted root sha256:")
    who = ("--owner", "platform", "--role", "builder", "--oidc-issuer", other)
    subject = f"{other}/org/app//.gitlab-ci.yml@refs/heads/main"
    told = team.work.quick("keyring", "add", "gitlab", *who, "--oidc-subject", subject)
    assert f"new principal gitlab, owner platform, {subject} by {other}" in told["changes"]
    shown = team.work.quick("keyring", "show")
    assert [one["issuers"] for one in shown["sigstore"]] == [[GITHUB, LOGIN], [other]]
    assert "issuer and a subject" in team.work.warm("keyring", "add", "x", *who, code=2).err
    told = team.work.quick("keyring", "trust-root", "second", "--remove", "--reason", "not needed")
    assert told["changes"][-1] == "Sigstore instance second is trusted no more"


def test_the_public_instances_trusted_roots_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that come with sigstore-python; that of production is fetched where no file is named."""
    from sigstore._utils import read_embedded
    from sigstore.models import ClientTrustConfig

    ceremony = Ceremony(tmp_path)
    for name in ("sigstore", "sigstage"):
        (tmp_path / name).write_bytes(read_embedded("trusted_root.json", f"https://tuf-repo-cdn.{name}.dev"))
        trust_root(ceremony.context(), name, tmp_path / name, issuers=[f"https://{name}.example.com"])
    config = ClientTrustConfig.from_json(FakeSigstore(url="http://127.0.0.1:9").config(tmp_path).read_text())
    monkeypatch.setattr(ClientTrustConfig, "production", staticmethod(lambda: config))
    told = trust_root(ceremony.context(), "public", issuers=[GITHUB])
    assert told.changes[0].startswith("new Sigstore instance public")


def test_who_can_be_added(tmp_path: Path) -> None:
    ceremony = Ceremony(tmp_path)
    ctx = ceremony.context()
    me = Oidc(issuer=GITHUB, subject=workflow("build"))
    who: dict[str, Any] = {"owner": "platform", "role": "builder"}
    with pytest.raises(UsageError, match="trusts no Sigstore instance") as caught:
        succession.add(ctx, "ci", **who, oidc=me)
    assert "keyring trust-root" in caught.value.fix
    root = FakeSigstore().trusted_root
    (tmp_path / "root.json").write_text(json.dumps(root))
    told = trust_root(ctx, "own", tmp_path / "root.json", issuers=[GITHUB])
    assert told.changes[0].startswith("new Sigstore instance own: trusted root sha256:")
    assert told.changes[0].endswith(f"vouches for {GITHUB}")
    added = succession.add(ctx, "ci", **who, oidc=me)
    assert f"new principal ci, owner platform, {me.subject} by {GITHUB}" in added.changes
    with pytest.raises(VerificationFailed, match="under two names"):
        succession.add(ctx, "ci-2", **who, oidc=me)
    with pytest.raises(UsageError, match="one of the two"):
        succession.add(ctx, "ci-3", **who)
    with pytest.raises(UsageError, match="one of the two"):
        succession.add(ctx, "ci-3", **who, oidc=me, key=ceremony.pub("x"))
    with pytest.raises(VerificationFailed, match="more than one role"):
        succession.add(ctx, "ci", owner="platform", role="promoter", oidc=me)
    shown = keyring_show(ctx)
    assert [one.name for one in shown.sigstore] == ["own"]
    assert ("ci", me.subject) in [(one.principal, one.subject) for one in shown.principals]


def test_identities_count_wherever_keys_do(tmp_path: Path) -> None:
    """Index pointers, gc's marks, and another registry's releases, which no promotion in these tests passes by."""
    ceremony = Ceremony(tmp_path)
    bundle = ceremony.world.bundle("v1").digest
    with fake_sigstore() as sigstore:
        trust_root(ceremony.context(), "own", sigstore.config(tmp_path), issuers=[GITHUB])
        uris = {}
        for role in ("indexer", "gc", "promoter"):
            who = Oidc(issuer=GITHUB, subject=workflow(role))
            succession.add(ceremony.context(), f"oidc-{role}", owner="platform", role=role, oidc=who)  # type: ignore[arg-type]
            config, token = sigstore.config(tmp_path), token_of(sigstore, tmp_path, who)
            uris[role] = f"sigstore:?identity-token-file={token}&trust-config={config}"
        keyring = open_trust(ceremony.context())
        now = ceremony.world.now()
        pointer = IndexPointer(
            app="support", index="docs", snapshot=bundle, documents=1, checked=now, actor="oidc-indexer"
        )

        def pointed(role: str) -> bytes:
            sealed = seal(canonical(pointer.form()), SNAPSHOT_PAYLOAD_TYPE, [open_signer(uris[role])])
            return envelope_bytes(sealed)

        assert verify_pointer(pointed("indexer"), keyring, "support", "docs") == pointer
        with pytest.raises(VerificationFailed, match="not signed by an indexer"):
            verify_pointer(pointed("gc"), keyring, "support", "docs")

        marked = gc(ceremony.context(signer_uri=uris["gc"]), "support")
        assert marked.app == "support"
        ceremony.later(hours=25)
        gc(ceremony.context(signer_uri=uris["gc"]), "support", delete=True)

        made = promote(
            ceremony.context(signer_uri=uris["promoter"]), f"support@{bundle}", environment="dev", reason="x"
        ).released
        assert made is not None
        head = ceremony.world.head_of("dev")[1]
        abroad = Abroad(open_trust(ceremony.context()), [head.release])
        registry = SoakRegistry(id=ceremony.world.pin, keyring=ceremony.world.pin)
        soak = Soak(environment="dev", registry=registry)
        asked: dict[str, Any] = {"app": "support", "bundle": bundle, "now": ceremony.world.now()}
        assert judge_soak_abroad(soak, registry, abroad, **asked).verdict == "pass"
        succession.compromise(ceremony.context(), "oidc-promoter", reason="taken over")
        abroad = Abroad(open_trust(ceremony.context()), [head.release])
        assert judge_soak_abroad(soak, registry, abroad, **asked).verdict == "inconclusive"


def test_root_judges_a_trusted_root_where_it_signs(tmp_path: Path) -> None:
    ceremony = Ceremony(tmp_path)
    file, request = tmp_path / "root.json", tmp_path / "request.json"
    file.write_text(json.dumps(FakeSigstore().trusted_root))
    trust_root(ceremony.context(), "own", file, issuers=[GITHUB, LOGIN], request=request)
    offline = ceremony.offline(tmp_path / "offline")
    assert "vouches for" in show_request(offline, request).changes[0]
    assert sign_request(offline, request, signers=[ceremony.key("root")]).signed_by == ["root"]
    with pytest.raises(UsageError, match="this takes a key"):
        sign_request(offline, request, signers=["sigstore:"])


@pytest.mark.parametrize(
    ("bend", "says"),
    [
        (lambda root: root.update(mediaType="x"), "holds no trusted root"),
        (lambda root: root.update(tlogs=[]), "cannot be used"),
        (lambda root: root.update(certificateAuthorities=[]), "cannot be used"),
        (lambda root: root.update(ctlogs="x"), "cannot be used"),
        (lambda root: root["certificateAuthorities"][0]["certChain"].update(certificates=[]), "cannot be used"),
    ],
)
def test_what_is_no_trusted_root(tmp_path: Path, bend: Any, says: str) -> None:
    ceremony, root = Ceremony(tmp_path), FakeSigstore().trusted_root
    bend(root)
    (tmp_path / "root.json").write_text(json.dumps(root))
    with pytest.raises(UsageError, match=says):
        trust_root(ceremony.context(), "own", tmp_path / "root.json", issuers=[GITHUB])


def test_how_trust_root_is_called(tmp_path: Path) -> None:
    ceremony = Ceremony(tmp_path)
    ctx, file = ceremony.context(), tmp_path / "root.json"
    with pytest.raises(UsageError, match="whose identities"):
        trust_root(ctx, "own")
    with pytest.raises(UsageError, match="takes a name alone"):
        trust_root(ctx, "own", file, remove=True)
    with pytest.raises(UsageError, match="names no Sigstore instance"):
        trust_root(ctx, "own", remove=True)
    file.write_text("[")
    with pytest.raises(UsageError, match="is not JSON"):
        trust_root(ctx, "own", file, issuers=[GITHUB])
    file.write_text(json.dumps(FakeSigstore().trusted_root))
    trust_root(ctx, "own", file, issuers=[GITHUB])
    with pytest.raises(UsageError, match="nothing was changed"):
        trust_root(ctx, "own", file)
    trust_root(ctx, "own", file, issuers=[GITHUB, LOGIN])
    with pytest.raises(VerificationFailed, match=r"for the issuer .* twice"):
        trust_root(ctx, "other", file, issuers=[LOGIN])


def test_root_and_owners_are_keys(tmp_path: Path) -> None:
    keyring: VerifiedKeyring = open_trust(Ceremony(tmp_path).context())
    for change in ("root", "owner"):
        form = keyring.document.form()
        form["principals"]["x"] = {"owner": "x", "oidc": {"issuer": GITHUB, "subject": "x"}, "state": "active"}
        place = form["root"] if change == "root" else form["apps"]["support"]["owners"]
        place["principals"].append("x")
        with pytest.raises(VerificationFailed, match=f"makes the identity 'x' {change}"):
            check_keyring(Keyring.model_validate(form))
