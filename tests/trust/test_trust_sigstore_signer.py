"""``sigstore:``: whose token it takes, when it asks for a new certificate, and how it says that the services fail."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from bundlectl.model.errors import BackendUnavailable, BundlectlError, MissingExtra, UsageError
from bundlectl.trust.envelope import seal
from bundlectl.trust.signers import AnySigner, IdentitySigner, open_key, open_signer
from tests.support.fake_sigstore import FakeSigstore, fake_sigstore, new_key

ISSUER, SUBJECT = "https://ci.example.com", "https://ci.example.com/release.yml"
CI_VARIABLES = ("GITHUB_ACTIONS", "GITLAB_CI", "BUILDKITE", "CIRCLECI", "GOOGLE_SERVICE_ACCOUNT_NAME")
FULCIO, REKOR = "/api/v2/signingCert", "/api/v1/log/entries"


@pytest.fixture
def sigstore(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSigstore]:
    for name in CI_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with fake_sigstore() as running:
        yield running


def opened(sigstore: FakeSigstore, folder: Path, token: Path | None = None) -> AnySigner:
    file = token or sigstore.token(folder, ISSUER, SUBJECT)
    return open_signer(f"sigstore:?identity-token-file={file}&trust-config={sigstore.config(folder)}")


def test_one_certificate_signs_more_than_once(sigstore: FakeSigstore, tmp_path: Path) -> None:
    signer = opened(sigstore, tmp_path)
    assert isinstance(signer, IdentitySigner)
    assert (signer.identity.issuer, signer.identity.subject) == (ISSUER, SUBJECT)
    for n in range(3):
        seal(b"%d" % n, "t", [signer, signer])
    assert sigstore.asked == {FULCIO: 1, REKOR: 3}
    token = next(tmp_path.glob("token-*")).read_text().strip()
    assert token not in repr(signer) + str(vars(signer))


def test_a_new_certificate_near_the_end_of_the_old(sigstore: FakeSigstore, tmp_path: Path) -> None:
    sigstore.lifetime = timedelta(minutes=1)
    token = sigstore.token(tmp_path, ISSUER, SUBJECT)
    signer = opened(sigstore, tmp_path, token)
    seal(b"1", "t", [signer])
    assert sigstore.asked == {FULCIO: 2, REKOR: 1}
    token.write_text(sigstore.token(tmp_path, ISSUER, SUBJECT + "x").read_text())
    with pytest.raises(UsageError, match="another identity's than when this began"):
        seal(b"2", "t", [signer])


def test_github_actions(sigstore: FakeSigstore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job asks the runner's endpoint for its token; without the permission it is told which one it lacks."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    uri = f"sigstore:?trust-config={sigstore.config(tmp_path)}"
    with pytest.raises(UsageError, match="no identity token") as caught:
        open_signer(uri)
    assert "id-token: write" in caught.value.fix
    assert "ACTIONS_ID_TOKEN_REQUEST_TOKEN" in caught.value.why
    ref = "org/app/.github/workflows/release.yml@refs/heads/main"
    issuer = "https://token.actions.githubusercontent.com"
    token = sigstore.token(tmp_path, issuer, "repo:org/app:ref:refs/heads/main", job_workflow_ref=ref).read_text()
    path = base64.urlsafe_b64encode(token.strip().encode()).decode()
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "request-token")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", f"{sigstore.url}/token/{path}?api-version=2.0")
    signer = open_signer(uri)
    assert isinstance(signer, IdentitySigner)
    assert signer.identity.subject == f"https://github.com/{ref}"


def test_gitlab(sigstore: FakeSigstore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITLAB_CI", "true")
    uri = f"sigstore:?trust-config={sigstore.config(tmp_path)}"
    with pytest.raises(UsageError, match="no identity token") as caught:
        open_signer(uri)
    assert "SIGSTORE_ID_TOKEN" in caught.value.why
    monkeypatch.setenv("SIGSTORE_ID_TOKEN", sigstore.token(tmp_path, ISSUER, SUBJECT).read_text().strip())
    signer = open_signer(uri)
    assert isinstance(signer, IdentitySigner)
    assert signer.identity.subject == SUBJECT


def test_the_public_instance_is_the_default(
    sigstore: FakeSigstore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sigstore.models import ClientTrustConfig

    from bundlectl.trust.sigstore_signer import public_root

    config = ClientTrustConfig.from_json(sigstore.config(tmp_path).read_text())
    monkeypatch.setattr(ClientTrustConfig, "production", staticmethod(lambda: config))
    signer = open_signer(f"sigstore:?identity-token-file={sigstore.token(tmp_path, ISSUER, SUBJECT)}")
    assert isinstance(signer, IdentitySigner)
    assert public_root()["tlogs"] == sigstore.trusted_root["tlogs"]


def test_another_audience(sigstore: FakeSigstore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sigstore.audience = "our-sigstore"
    token, config = sigstore.token(tmp_path, ISSUER, SUBJECT), sigstore.config(tmp_path)
    with pytest.raises(UsageError, match="identity token cannot be used"):
        open_signer(f"sigstore:?identity-token-file={token}&trust-config={config}")
    open_signer(f"sigstore:?identity-token-file={token}&trust-config={config}&audience=our-sigstore")
    monkeypatch.setenv("GITLAB_CI", "true")
    monkeypatch.setenv("OUR_SIGSTORE_ID_TOKEN", token.read_text().strip())
    open_signer(f"sigstore:?trust-config={config}&audience=our-sigstore")


def test_no_identity(sigstore: FakeSigstore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no CI job that is known") as caught:
        open_signer(f"sigstore:?trust-config={sigstore.config(tmp_path)}")
    assert "identity-token-file" in caught.value.fix


def test_what_the_uri_must_not_hold(sigstore: FakeSigstore, tmp_path: Path) -> None:
    token = sigstore.token(tmp_path, ISSUER, SUBJECT)
    secret = token.read_text().strip()
    for uri in (
        f"sigstore:?identity-token={secret}",
        f"sigstore:?{secret}",
        f"sigstore:{secret}",
        f"sigstore:?identity-token-file={token}&identity-token-file={token}",
        "sigstore:?trust-config=",
        f"sigstore:?identity-token-file={tmp_path / 'none'}",
        f"sigstore:?identity-token-file={token}&trust-config={token}",
        f"sigstore:?identity-token-file={token}&trust-config={tmp_path / 'none'}",
    ):
        with pytest.raises(UsageError) as caught:
            open_signer(uri)
        assert secret not in str(caught.value)


def test_percent_signs_are_decoded_and_plus_signs_are_not(sigstore: FakeSigstore, tmp_path: Path) -> None:
    token = sigstore.token(tmp_path, ISSUER, SUBJECT).rename(tmp_path / "a+b & c")
    quoted = str(token).replace(" ", "%20").replace("&", "%26")
    open_signer(f"sigstore:?identity-token-file={quoted}&trust-config={sigstore.config(tmp_path)}")


@pytest.mark.parametrize("claims", [{"exp": int(time.time()) - 60}, {"aud": "vault"}, {"sub": None}])
def test_a_token_that_cannot_be_used(sigstore: FakeSigstore, tmp_path: Path, claims: dict[str, object]) -> None:
    token = sigstore.token(tmp_path, ISSUER, SUBJECT, **claims)
    with pytest.raises(UsageError, match="identity token cannot be used") as caught:
        opened(sigstore, tmp_path, token)
    assert token.read_text().strip() not in str(caught.value)


def test_a_token_of_another_identity_provider(sigstore: FakeSigstore, tmp_path: Path) -> None:
    token = FakeSigstore().token(tmp_path, ISSUER, SUBJECT)
    with pytest.raises(BackendUnavailable, match="certificate authority refuses") as caught:
        opened(sigstore, tmp_path, token)
    assert "401" in caught.value.why


def test_the_services_refuse_stall_or_are_gone(
    sigstore: FakeSigstore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer = opened(sigstore, tmp_path)
    sigstore.refuse = 503
    with pytest.raises(BackendUnavailable, match="log refuses") as caught:
        seal(b"x", "t", [signer])
    assert "not today" in str(caught.value)
    sigstore.refuse, sigstore.stall = 0, 3
    monkeypatch.setattr("bundlectl.trust.sigstore_signer.READ_SECONDS", 0.3)
    with pytest.raises(BackendUnavailable, match="log cannot be reached"):
        seal(b"x", "t", [signer])
    config = json.loads(sigstore.config(tmp_path).read_text())
    config["signingConfig"]["caUrls"][0]["url"] = "http://127.0.0.1:9"
    (tmp_path / "gone.json").write_text(json.dumps(config))
    token = sigstore.token(tmp_path, ISSUER, SUBJECT)
    with pytest.raises(BackendUnavailable, match="certificate authority cannot be reached"):
        open_signer(f"sigstore:?identity-token-file={token}&trust-config={tmp_path / 'gone.json'}")


def test_what_would_not_verify_is_not_handed_out(sigstore: FakeSigstore, tmp_path: Path) -> None:
    """A log with another key than the trust config names: found out before anything is stored."""
    signer = opened(sigstore, tmp_path)
    sigstore.log = new_key()
    with pytest.raises(BackendUnavailable, match="does not verify") as caught:
        seal(b"x", "t", [signer])
    assert "checkpoint" in caught.value.why
    token, config = sigstore.token(tmp_path, ISSUER, SUBJECT), sigstore.config(tmp_path)
    sigstore.ct = new_key()
    with pytest.raises(BackendUnavailable, match="cannot be used") as caught:
        open_signer(f"sigstore:?identity-token-file={token}&trust-config={config}")
    assert "SCT" in caught.value.why


def test_root_and_owners_sign_with_keys(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is an identity, and this takes a key"):
        open_key(f"sigstore:?identity-token-file={tmp_path / 'none'}")
    with pytest.raises(UsageError) as caught:
        open_key("sigstore:eyJhbGciOi")
    assert "eyJ" not in str(caught.value)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bundlectl.trust.sigstore_signer", None)
    with pytest.raises(MissingExtra) as caught:
        open_signer("sigstore:")
    assert "bundlectl[sigstore]" in caught.value.fix
    assert isinstance(caught.value, BundlectlError)
