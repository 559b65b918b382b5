"""APP:ENV names a release: people approve and promote what it names, so it is verified and not merely read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundlectl.actions.ask import ask
from bundlectl.actions.attest import approve
from bundlectl.actions.compare import diff
from bundlectl.actions.context import Context
from bundlectl.actions.override import override
from bundlectl.actions.promote import promote
from bundlectl.actions.show import show
from bundlectl.actions.transfer import export
from bundlectl.model.attestation import PAYLOAD_TYPE, RELEASE
from bundlectl.model.canonical import canonical
from bundlectl.model.errors import VerificationFailed
from bundlectl.registry.head import parse_head
from bundlectl.trust.envelope import make_statement, seal
from bundlectl.trust.signers import generate_key
from tests.support.workspace import APP, Workspace

STAGING = f"{APP}:staging"


def forge(work: Workspace, bundle: str, tmp_path: Path) -> None:
    """Put a head into staging that names another bundle and is signed with a key that nobody knows."""
    file = work.head("staging")
    head, release = parse_head(file.read_bytes(), "the head")
    other = release.model_copy(update={"bundle": bundle})
    statement = make_statement(APP, bundle, RELEASE, other.form())
    envelope = seal(statement, PAYLOAD_TYPE, [generate_key(tmp_path / "stranger.pem")])
    file.write_bytes(canonical(head.model_copy(update={"release": envelope}).form()))


VERBS: dict[str, Callable[[Context, Path], Any]] = {
    "approve": lambda ctx, _: approve(ctx, STAGING, environment="prod", reason="looks good"),
    "override": lambda ctx, _: override(ctx, STAGING, environment="prod", checks=["soak"], reason="now"),
    "promote": lambda ctx, _: promote(ctx, STAGING, environment="dev", reason="next"),
    "show": lambda ctx, _: show(ctx, STAGING),
    "diff": lambda ctx, _: diff(ctx, f"{APP}:dev", STAGING),
    "export": lambda ctx, tmp: export(ctx, STAGING, f"oci:{tmp / 'out'}"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_forged_head_names_no_bundle(work: Workspace, tmp_path: Path, verb: str) -> None:
    forge(work, work.next_version(), tmp_path)
    with pytest.raises(VerificationFailed, match="not signed"):
        VERBS[verb](work.context(), tmp_path)


def test_a_forged_former_release_names_no_bundle(work: Workspace, tmp_path: Path) -> None:
    second = work.next_version()
    work.release("staging")
    live = work.head("staging").read_bytes()
    archived = work.environment_folder("staging") / "history" / "1-0000000000000001.json"
    shutil.copyfile(archived, work.head("staging"))
    forge(work, second, tmp_path)
    archived.chmod(0o644)
    shutil.copyfile(work.head("staging"), archived)
    work.head("staging").write_bytes(live)
    with pytest.raises(VerificationFailed, match="not signed"):
        approve(work.context(), f"{STAGING}@1", environment="prod", reason="looks good")


def test_approve_says_what_a_verified_reference_names(work: Workspace) -> None:
    bundle = json.loads(json.dumps(show(work.context(), STAGING).form()))["bundle"]
    approved = approve(work.context(), STAGING, environment="prod", reason="looks good")
    assert (approved.bundle, approved.environment, approved.kind) == (bundle, "prod", "approval")


def test_ask_refuses_an_older_head_that_was_put_back(work: Workspace) -> None:
    work.next_version()
    work.release("dev", reason="second")
    work.release("dev", reason="third")
    shutil.copyfile(
        work.environment_folder("dev") / "history" / "1-0000000000000001.json",
        work.head("dev"),
    )
    with pytest.raises(VerificationFailed, match="put back"):
        ask(work.context(), f"{APP}:dev", "What does it cost?", tenant="acme", role="customer")
