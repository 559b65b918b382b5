"""Keys in AWS KMS: against ministack as a server, and against a server that is told what to answer.

moto hashes a DIGEST once more (DESIGN 14): it shows that a signature which does not hold goes nowhere.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from bundlectl.model.attestation import PAYLOAD_TYPE
from bundlectl.model.errors import BackendUnavailable, UsageError, VerificationFailed
from bundlectl.model.keyring import KeyringEntry, PublicKey
from bundlectl.trust.awskms import KmsSigner
from bundlectl.trust.envelope import make_statement, seal, signed_by
from bundlectl.trust.signers import open_signer
from tests.support.aws import REGION, StandIn, stand_in
from tests.support.trust import APP, BUNDLE


@pytest.fixture
def ministack(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return use(stand_in("ministack"), monkeypatch)


def use(aws: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    for name, value in aws.environ.items():
        monkeypatch.setenv(name, value)
    return aws


def make_key(aws: StandIn, spec: str = "ECC_NIST_P256", usage: str = "SIGN_VERIFY", alias: str = "") -> str:
    client = aws.client("kms")
    arn = str(client.create_key(KeySpec=spec, KeyUsage=usage)["KeyMetadata"]["Arn"])
    if alias:
        client.create_alias(AliasName=f"alias/{alias}", TargetKeyId=arn)
    return arn


def holds(signer: Any) -> bool:
    entry = KeyringEntry(owner="ci", key=PublicKey(scheme=signer.scheme, public=signer.public_pem))
    envelope = seal(make_statement(APP, BUNDLE, "urn:x:y", {}), PAYLOAD_TYPE, [signer])
    return signed_by(envelope, {"ci": entry}) == {"ci"}


def test_a_key_signs_by_arn_by_id_and_by_alias(ministack: StandIn) -> None:
    arn = make_key(ministack, alias="promoter")
    signers = [open_signer(f"awskms:{name}") for name in (arn, arn.rpartition("/")[2], "alias/promoter")]
    assert len({signer.key_id for signer in signers}) == 1
    assert all(signer.scheme == "ecdsa-p256-sha256" for signer in signers)
    assert all(holds(signer) for signer in signers)


def test_an_alias_that_moves_does_not_move_the_signer(ministack: StandIn) -> None:
    make_key(ministack, alias="moving")
    signer = open_signer("awskms:alias/moving")
    ministack.client("kms").update_alias(AliasName="alias/moving", TargetKeyId=make_key(ministack))
    assert holds(signer)
    assert open_signer("awskms:alias/moving").key_id != signer.key_id


@pytest.mark.parametrize(
    ("spec", "usage"),
    [("RSA_2048", "SIGN_VERIFY"), ("ECC_NIST_P384", "SIGN_VERIFY"), ("RSA_2048", "ENCRYPT_DECRYPT")],
)
def test_a_key_of_another_kind(ministack: StandIn, spec: str, usage: str) -> None:
    client = ministack.client("kms")
    try:
        arn = client.create_key(KeySpec=spec, KeyUsage=usage)["KeyMetadata"]["Arn"]
    except client.exceptions.ClientError as error:
        pytest.skip(f"ministack makes no such key: {error}")
    with pytest.raises(UsageError, match="not of the kind") as refused:
        open_signer(f"awskms:{arn}")
    assert "ECC_NIST_P256" in refused.value.fix


def test_a_key_that_is_not_there(ministack: StandIn) -> None:
    with pytest.raises(UsageError, match="has no key awskms:alias/none"):
        open_signer("awskms:alias/none")


def test_a_disabled_key(ministack: StandIn) -> None:
    arn = make_key(ministack)
    signer = open_signer(f"awskms:{arn}")
    ministack.client("kms").disable_key(KeyId=arn)
    with pytest.raises(BackendUnavailable, match="KMS does not let us use") as refused:
        signer.sign(b"x")
    assert "Enable the key" in refused.value.fix


def test_a_signature_that_does_not_hold_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    moto = use(stand_in("moto"), monkeypatch)
    signer = open_signer(f"awskms:{make_key(moto)}")
    with pytest.raises(VerificationFailed, match="does not hold"):
        signer.sign(b"x")


# ---------------------------------------------------------------- a KMS that is told what to answer


class Told:
    """A server on loopback that answers each call from a script: (status, code), or an object."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.calls: list[str] = []
        told = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                told.calls.append(self.headers["x-amz-target"].rpartition(".")[2])
                answer = told.answers.pop(0) if len(told.answers) > 1 else told.answers[0]
                status, body = 200, answer
                if isinstance(answer, tuple):
                    status, body = answer[0], {"__type": answer[1], "message": "in a test"}
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/x-amz-json-1.1")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    made = Told()
    use(StandIn("told", made.url), monkeypatch)
    yield made
    made.close()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self) -> float:
        return self.now


def patient() -> tuple[Callable[[], KmsSigner], Clock]:
    clock = Clock()
    return lambda: KmsSigner("awskms:alias/x", "alias/x", deadline=20, sleep=clock.sleep, monotonic=clock), clock


@pytest.mark.parametrize(
    ("answer", "says", "fix"),
    [
        ((400, "AccessDeniedException"), "KMS denies access to the key awskms:alias/x", "Allow kms:GetPublicKey"),
        ((400, "KMSInvalidStateException"), "KMS does not let us use", "cancel its deletion"),
        ((400, "ExpiredTokenException"), "KMS does not take our credentials", "Log in again"),
        ((400, "SomethingNewException"), "KMS cannot be reached", "Nothing was signed"),
    ],
)
def test_a_refusal_is_told_at_once(told: Told, answer: Any, says: str, fix: str) -> None:
    told.answers = [answer]
    make, clock = patient()
    with pytest.raises(BackendUnavailable) as refused:
        make()
    assert says in refused.value.what
    assert fix in refused.value.fix
    assert refused.value.exit_code == 6
    assert (len(told.calls), clock.now) == (1, 0)


@pytest.mark.parametrize("answer", [(400, "ThrottlingException"), (500, "KMSInternalException"), (503, "x")])
def test_what_is_busy_is_asked_again_until_the_deadline(told: Told, answer: Any) -> None:
    told.answers = [answer]
    make, clock = patient()
    with pytest.raises(BackendUnavailable, match="AWS KMS"):
        make()
    assert 5 < len(told.calls) < 200
    assert 15 < clock.now <= 20


def test_what_was_busy_for_a_while(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    real = stand_in("ministack")
    arn = make_key(real)
    client = real.client("kms")
    shown = client.get_public_key(KeyId=arn)
    public = {
        "KeyId": arn,
        "KeySpec": "ECC_NIST_P256",
        "KeyUsage": "SIGN_VERIFY",
        "PublicKey": base64.b64encode(shown["PublicKey"]).decode(),
    }
    told.answers = [(400, "ThrottlingException"), (500, "x"), public]
    make, _ = patient()
    assert make().public_pem.startswith("-----BEGIN PUBLIC KEY")
    assert told.calls == ["GetPublicKey"] * 3


def test_kms_that_is_not_there(monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "http://127.0.0.1:9")
    make, clock = patient()
    with pytest.raises(BackendUnavailable, match="AWS KMS cannot be reached"):
        make()
    assert clock.now > 15


def test_without_a_region_and_without_credentials(monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    with pytest.raises(BackendUnavailable, match="credentials"):
        open_signer("awskms:alias/x")
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(UsageError, match="needs a region"):
        open_signer("awskms:alias/x")
    with pytest.raises(BackendUnavailable, match="credentials"):
        open_signer(f"awskms:arn:aws:kms:{REGION}:000000000000:key/x")


def test_what_comes_back_that_is_no_key(told: Told) -> None:
    told.answers = [{"KeyId": "x", "KeyUsage": "SIGN_VERIFY", "PublicKey": "AAAA"}]
    with pytest.raises(VerificationFailed, match="no public key"):
        open_signer("awskms:alias/x")


def test_key_files_load_no_boto3() -> None:
    code = "import sys, bundlectl.trust.signers; sys.exit('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
