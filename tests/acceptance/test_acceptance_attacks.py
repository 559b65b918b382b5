"""What an attacker who can write to the registry's folder achieves: an error with exit code 4, or nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundlectl.actions.ask import ask
from bundlectl.actions.compare import diff
from bundlectl.actions.init import init
from bundlectl.actions.keyring import keyring_show, policy_show
from bundlectl.actions.promote import promote
from bundlectl.actions.show import show
from bundlectl.actions.status import history, status
from bundlectl.actions.verify import verify
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.errors import BackendUnavailable, BundlectlError, VerificationFailed
from bundlectl.model.keyring import EvaluationRequirement, Keyring, Policy
from bundlectl.trust.envelope import envelope_bytes, parse_envelope, payload_of
from bundlectl.trust.keyring import seal_keyring
from bundlectl.trust.policy import seal_policy
from bundlectl.trust.signers import open_signer
from tests.support.workspace import APP, Workspace

QUESTION = "Within how many days can I return an unused item?"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two versions released to dev and staging, the first of them to prod as well; dev went back to the first."""
    work = Workspace.at(tmp_path_factory.mktemp("two"), live=True)
    work.next_version()
    work.release("dev", reason="second in dev")
    work.release("staging", reason="second in staging")
    return work


@pytest.fixture
def work(two: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(two.folder, tmp_path / APP, symlinks=True)
    return Workspace(tmp_path / APP)


def bundles(work: Workspace) -> tuple[str, str]:
    """The digests of both versions."""
    entries = history(work.context(), f"{APP}:dev").entries
    return entries[1].bundle, entries[0].bundle


def test_older_head_put_back(work: Workspace) -> None:
    archived = work.environment_folder("dev") / "history" / "1-0000000000000001.json"
    shutil.copyfile(archived, work.head("dev"))
    # A second release is gone without a trace, so only what remembers it can tell: the next promotion does.
    live = {one["environment"]: one for one in work.quick("status")["environments"]}["dev"]
    assert live["serial"] == 1
    work.release("dev", reason="the attacker goes on")
    assert history(work.context(), f"{APP}:dev", verify=True).entries[0].serial == 2


def test_older_head_put_back_where_history_knows_better(work: Workspace) -> None:
    work.release("dev", reason="third")
    archived = work.environment_folder("dev") / "history" / "1-0000000000000001.json"
    shutil.copyfile(archived, work.head("dev"))
    for argv in (
        ("history", f"{APP}:dev"),
        ("history", f"{APP}:dev", "--verify"),
        ("promote", ".", "--to", "dev", "--reason", "x"),
        ("rollback", f"{APP}:dev@1", "--reason", "x"),
        ("verify", f"{APP}:dev"),
    ):
        assert "put back" in work.warm(*argv, "-o", "json", code=4).error["message"]
    states = {one["environment"]: one for one in work.quick("status", code=4)["environments"]}
    assert "put back" in states["dev"]["problem"], "status says what is wrong with dev and shows the others"
    assert states["prod"]["state"] == "live"


def test_head_removed(work: Workspace) -> None:
    work.head("dev").unlink()
    for argv in (
        ("history", f"{APP}:dev"),
        ("promote", ".", "--to", "dev", "--reason", "x"),
        ("rollback", f"{APP}:dev", "--reason", "x"),
        ("verify", f"{APP}:dev"),
        ("ask", f"{APP}:dev", "--tenant", "acme", "--role", "customer", QUESTION),
    ):
        error = work.warm(*argv, "-o", "json", code=4).error
        assert "tampering" in error["message"]
    states = {one["environment"]: one for one in work.quick("status", code=4)["environments"]}
    assert "tampering" in states["dev"]["problem"]
    assert {name: one["state"] for name, one in states.items()} == {"dev": "refused", "staging": "live", "prod": "live"}


def test_release_of_staging_copied_to_prod(work: Workspace) -> None:
    shutil.copyfile(work.head("staging"), work.head("prod"))
    for argv in (
        ("verify", f"{APP}:prod"),
        ("promote", ".", "--to", "prod", "--reason", "x", "--confirm", "prod"),
        ("rollback", f"{APP}:prod", "--reason", "x", "--confirm", "prod"),
        ("ask", f"{APP}:prod", "--tenant", "acme", "--role", "customer", QUESTION),
        ("history", f"{APP}:prod", "--verify"),
    ):
        work.warm(*argv, "-o", "json", code=4)
    states = {one["environment"]: one["state"] for one in work.quick("status", code=4)["environments"]}
    assert states == {"dev": "live", "staging": "live", "prod": "refused"}


def test_environment_copied_whole(work: Workspace) -> None:
    shutil.rmtree(work.environment_folder("prod"))
    shutil.copytree(work.environment_folder("staging"), work.environment_folder("prod"))
    for argv in (("verify", f"{APP}:prod"), ("history", f"{APP}:prod", "--verify"), ("history", f"{APP}:prod")):
        work.warm(*argv, "-o", "json", code=4)


def _swap_files(a: Path, b: Path) -> None:
    spare = a.with_name("spare")
    a.rename(spare)
    b.rename(a)
    spare.rename(b)


def test_files_swapped_between_two_valid_bundles(work: Workspace) -> None:
    first, second = bundles(work)
    packs = work.registry / "apps" / APP / "packs"
    _swap_files(packs / first[7:], packs / second[7:])
    for reference, wanted in ((f"{APP}@{first}", first), (f"{APP}@{second}", second), (f"{APP}:dev", second)):
        ran = work.warm("verify", reference, "-o", "json")
        assert ran.json["bundle"] == wanted, "healed from the blobs, and never the other's content"
    blobs = work.registry / "apps" / APP / "blobs" / "sha256"
    _swap_files(blobs / first[7:], blobs / second[7:])
    for reference in (f"{APP}@{first}", f"{APP}@{second}", f"{APP}:dev"):
        work.warm("verify", reference, "-o", "json", code=4)
    work.warm("promote", f"{APP}@{first}", "--to", "dev", "--reason", "x", "-o", "json", code=4)


def test_attestations_moved_to_another_bundle(work: Workspace) -> None:
    work.next_version("and from nothing in this wide world but them")
    third = work.quick("build", ".")["bundle"]
    shutil.rmtree(work.registry / "apps" / APP / "referrers" / third[7:] / "evaluation")
    second = bundles(work)[1]
    referrers = work.registry / "apps" / APP / "referrers"
    shutil.copytree(referrers / second[7:] / "evaluation", referrers / third[7:] / "evaluation")
    ran = work.warm("promote", ".", "--to", "staging", "--reason", "x", "-o", "json", code=None)
    assert ran.code in (3, 4), ran
    assert status(work.context()).environments[-1].bundle == second


def _signer(work: Workspace, role: str) -> Any:
    return open_signer(f"file:{work.home / 'keys' / f'{role}.pem'}")


def _policy(work: Workspace, **gate: Any) -> None:
    """Put the next policy, signed by the owner, with one gate changed."""
    folder = work.registry / "apps" / APP / "policy"
    envelope = parse_envelope((folder / "1.json").read_bytes(), "policy")
    document = Policy.model_validate_json(payload_of(envelope))
    gates = dict(document.environments)
    gates["staging"] = gates["staging"].model_copy(update=gate)
    changed = document.model_copy(
        update={"version": 2, "previous": digest(payload_of(envelope)), "environments": gates}
    )
    (folder / "2.json").write_bytes(envelope_bytes(seal_policy(changed, [_signer(work, "owner")])))


def test_one_signature_twice_does_not_reach_a_threshold_of_two(work: Workspace) -> None:
    _policy(work, evaluations=[EvaluationRequirement(suite=APP, threshold=2)])
    second = bundles(work)[1]
    work.warm("promote", ".", "--to", "staging", "--reason", "x", "-o", "json", code=3)
    folder = work.registry / "apps" / APP / "referrers" / second[7:] / "evaluation"
    [name] = [file for file in folder.iterdir() if not file.name.startswith(".")]
    form = json.loads(name.read_bytes())
    form["signatures"] = [*form["signatures"], {**form["signatures"][0], "keyid": "another"}]
    doubled = canonical(form)
    (folder / digest(doubled)[7:]).write_bytes(doubled)
    (folder / digest(doubled)).write_bytes(doubled)
    ran = work.warm("promote", ".", "--to", "staging", "--reason", "x", "-o", "json", code=None)
    assert ran.code in (3, 4), ran


def test_keyring_replaced_by_the_attackers(work: Workspace, tmp_path: Path) -> None:
    attacker = Workspace(tmp_path / "attacker" / APP)
    init(attacker.context(), attacker.folder, app=APP)
    shutil.copyfile(attacker.registry / "keyring" / "1.json", work.registry / "keyring" / "1.json")
    for argv in (
        ("status",),
        ("keyring", "show"),
        ("verify", f"{APP}:dev"),
        ("promote", ".", "--to", "dev", "--reason", "x"),
        ("ask", f"{APP}:dev", "--tenant", "acme", "--role", "customer", QUESTION),
        ("history", f"{APP}:dev", "--verify"),
        ("build", "."),
    ):
        error = work.warm(*argv, "-o", "json", code=4).error
        assert "pin" in (error["message"] + error["why"]).lower()


def test_registry_replaced_whole(work: Workspace, tmp_path: Path) -> None:
    attacker = Workspace.at(tmp_path / "attacker", live=True)
    _, theirs = work.registry.rename(work.home / "ours"), attacker.registry
    # The template of both has the same keys, so the attacker's keyring is made anew.
    shutil.rmtree(attacker.home)
    shutil.copytree(work.home / "ours", theirs)
    shutil.rmtree(theirs / "keyring")
    other = Workspace(tmp_path / "other" / APP)
    init(other.context(), other.folder, app=APP)
    shutil.copytree(other.registry / "keyring", theirs / "keyring")
    shutil.copytree(theirs, work.registry)
    assert "pin" in work.warm("status", "-o", "json", code=4).err.lower()


def test_keyring_two_signed_by_the_attacker(work: Workspace, tmp_path: Path) -> None:
    other = Workspace(tmp_path / "other" / APP)
    init(other.context(), other.folder, app=APP)
    envelope = parse_envelope((work.registry / "keyring" / "1.json").read_bytes(), "keyring")
    document = Keyring.model_validate_json(payload_of(envelope))
    changed = document.model_copy(update={"version": 2, "previous": digest(payload_of(envelope))})
    sealed = seal_keyring(changed, [_signer(other, "root")])
    (work.registry / "keyring" / "2.json").write_bytes(envelope_bytes(sealed))
    for argv in (("status",), ("promote", ".", "--to", "dev", "--reason", "x"), ("verify", f"{APP}:prod")):
        work.warm(*argv, "-o", "json", code=4)


def test_pin_mismatch(work: Workspace) -> None:
    wrong = "sha256:" + "0" * 64
    error = work.warm("status", "-o", "json", code=4, env={"BUNDLECTL_PIN": wrong}).error
    assert wrong in error["message"] + error["why"]
    assert work.warm("status", "-o", "json", env={"BUNDLECTL_PIN": "not a digest"}, code=None).code in (2, 4)
    (work.home / "pin").unlink()
    error = work.warm("status", "-o", "json", code=2).error
    assert "--trust-first-use" in error["fix"]
    (work.home / "pin").write_text(wrong + "\n")
    work.warm("status", "-o", "json", code=4)
    (work.home / "pin").write_text("")
    assert work.warm("status", "-o", "json", code=None).code in (2, 4)


def test_a_promoter_without_the_role(work: Workspace) -> None:
    key = f"file:{work.home / 'keys' / 'builder.pem'}"
    ran = work.warm("promote", ".", "--to", "dev", "--reason", "x", "--signer", key, "-o", "json", code=None)
    assert ran.code in (2, 4)
    assert "promoter" in ran.err


# ---------------------------------------------------------------- any byte of any file


def _truth(work: Workspace) -> dict[str, Callable[[], Any]]:
    """What a reader can find out, each by the action behind a command."""
    ctx = work.context
    prompt = {"tenant": "acme", "role": "customer", "scopes": ["help_center"]}
    first = work.known[0]  # type: ignore[attr-defined]
    return {
        "status": lambda: [e.form() for e in status(ctx()).environments],
        "history": lambda: history(ctx(), f"{APP}:dev", verify=True).form(),
        "history staging": lambda: history(ctx(), f"{APP}:staging", verify=True).form(),
        "verify dev": lambda: _without_attestations(verify(ctx(), f"{APP}:dev").form()),
        "verify first": lambda: _without_attestations(verify(ctx(), f"{APP}@{first}").form()),
        "show": lambda: show(ctx(), f"{APP}:dev").form(),
        "diff": lambda: diff(ctx(), f"{APP}:dev@1", f"{APP}:dev").form(),
        "keyring": lambda: keyring_show(ctx()).form(),
        "policy": lambda: policy_show(ctx(), APP).form(),
        "plan": lambda: _plan(promote(ctx(), f"{APP}:staging", environment="dev", reason="x", plan_only=True).form()),
        "ask": lambda: ask(ctx(), f"{APP}:dev", QUESTION, **prompt).answer.output,  # type: ignore[arg-type]
    }


def _without_attestations(form: dict[str, Any]) -> dict[str, Any]:
    return form


def _plan(form: dict[str, Any]) -> dict[str, Any]:
    """Leave out what tells how old something is."""
    for check in form["plan"]["checks"]:
        check["why"] = ""
    return form


@pytest.fixture(scope="module")
def flipping(two: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, dict[str, Any], list[Path]]:
    folder = tmp_path_factory.mktemp("flipping") / APP
    shutil.copytree(two.folder, folder, symlinks=True)
    work = Workspace(folder)
    work.known = bundles(work)  # type: ignore[attr-defined]
    truth = {name: read() for name, read in _truth(work).items()}
    files = sorted(file for file in work.registry.rglob("*") if file.is_file() and file.name != ".lock")
    return work, truth, files


FLIPS = int(os.environ.get("BUNDLECTL_FLIPS", "60"))


def test_any_flipped_byte_gives_an_error_or_the_truth(
    flipping: tuple[Workspace, dict[str, Any], list[Path]],
) -> None:
    work, truth, files = flipping
    reads = _truth(work)
    noticed: set[Path] = set()

    @settings(max_examples=FLIPS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(files), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
    def flipped(file: Path, where: float, mask: int) -> None:
        kept = file.read_bytes()
        at = int(len(kept) * where)
        changed = bytearray(kept)
        if not changed:
            return
        changed[at] ^= mask
        file.write_bytes(changed)
        try:
            for name, read in reads.items():
                try:
                    found = read()
                except (VerificationFailed, BackendUnavailable):
                    noticed.add(file)
                    continue
                except BundlectlError as error:
                    raise AssertionError(f"{name} with byte {at} of {file} changed: {error!r}") from error
                if found != truth[name]:
                    _allow_refusals(name, found, truth[name], file)
                    noticed.add(file)
        finally:
            file.write_bytes(kept)

    flipped()
    assert noticed


def _allow_refusals(name: str, found: Any, true: Any, file: Path) -> None:
    """What may differ from the truth: a part that says that it is refused, or evidence set aside aloud."""
    if name == "status":
        for ours, theirs in zip(found, true, strict=True):
            assert ours == theirs or (ours["state"] == "refused" and ours["problem"]), (file, ours)
        return
    raise AssertionError(f"{name} with {file} changed gives\n{found}\nwhich is neither the truth nor an error:\n{true}")
