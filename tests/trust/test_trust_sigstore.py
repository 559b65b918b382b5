"""Keyless signatures: the real sigstore-python signs against an instance on loopback, and what must never count."""

from __future__ import annotations

import base64
import copy
import json
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sigstore.models import Bundle, TrustedRoot
from sigstore.verify import Verifier
from sigstore.verify.policy import Identity
from sigstore_models.trustroot.v1 import TrustedRoot as RootDocument

from bundlectl.model.attestation import Envelope
from bundlectl.model.canonical import canonical
from bundlectl.model.errors import VerificationFailed
from bundlectl.model.keyring import KeyringEntry, Oidc
from bundlectl.model.sigstore import SigstoreInstance
from bundlectl.trust.envelope import envelope_bytes, objections, pae, parse_envelope, payload_of, seal, signed_by
from bundlectl.trust.signers import AnySigner, IdentitySigner, open_signer
from tests.support.fake_sigstore import Authority, FakeSigstore, fake_sigstore, new_key
from tests.support.fake_timestamps import FakeTimestamps
from tests.support.sigstore_attacker import seal_anyhow
from tests.support.trust import signer as key_signer

ISSUER, SUBJECT = "https://ci.example.com", "https://ci.example.com/org/app/release.yml@refs/heads/main"
ME = Oidc(issuer=ISSUER, subject=SUBJECT)
CI = {"ci": KeyringEntry(owner="platform", oidc=ME)}


def signer_of(sigstore: FakeSigstore, folder: Path, issuer: str = ISSUER, subject: str = SUBJECT) -> AnySigner:
    token, config = sigstore.token(folder, issuer, subject), sigstore.config(folder)
    return open_signer(f"sigstore:?identity-token-file={token}&trust-config={config}")


def trusting(sigstore: FakeSigstore, *issuers: str, **more: Any) -> list[SigstoreInstance]:
    root = {**sigstore.trusted_root, **more}
    return [SigstoreInstance(name="own", issuers=list(issuers or (ISSUER,)), trusted_root=root)]


@dataclass
class Signed:
    """One honest signature, and the instance that vouches for it."""

    sigstore: FakeSigstore
    envelope: Envelope
    folder: Path

    @property
    def instances(self) -> list[SigstoreInstance]:
        return trusting(self.sigstore)

    def bent(self, bend: Callable[[dict[str, Any]], None]) -> Envelope:
        form = copy.deepcopy(self.envelope.form())
        bend(form["signatures"][0])
        return Envelope.model_validate(form)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signed]:
    folder = tmp_path_factory.mktemp("sigstore")
    with fake_sigstore() as sigstore:
        for n in range(3):
            seal(b"other %d" % n, "text/plain", [signer_of(sigstore, folder)])
        yield Signed(sigstore, seal(b"{}", "text/plain", [signer_of(sigstore, folder)]), folder)


def material(signature: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = signature["extension"]["ext"]
    return found


def entry(signature: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = material(signature)["tlogEntries"][0]
    return found


def test_an_identity_signs_and_counts_without_the_network(honest: Signed, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("verification asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    from bundlectl.trust.sigstore_verifier import judge

    judge.cache_clear()
    stored = parse_envelope(envelope_bytes(honest.envelope), "it")
    assert signed_by(stored, CI, honest.instances) == {"ci"}
    assert objections(stored, CI, honest.instances) == []
    assert signed_by(stored, CI) == frozenset()
    assert len(envelope_bytes(stored)) < 6000


def test_sigstores_own_verifier_takes_it(honest: Signed) -> None:
    """What stands in the extension, with the signature, is a bundle v0.3 over the pre-authentication encoding."""
    signature = honest.envelope.signatures[0]
    assert signature.extension is not None
    document = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": signature.extension.ext.form(),
        "messageSignature": {"signature": signature.sig},
    }
    root = TrustedRoot(RootDocument.from_json(json.dumps(honest.sigstore.trusted_root)))
    message = pae(honest.envelope.payloadType, payload_of(honest.envelope))
    policy = Identity(identity=SUBJECT, issuer=ISSUER)
    Verifier(trusted_root=root).verify_artifact(message, Bundle.from_json(json.dumps(document)), policy)


def test_without_an_extension_an_envelope_has_the_bytes_it_always_had() -> None:
    made = seal(b"{}", "text/plain", [key_signer("a")])
    assert set(json.loads(envelope_bytes(made))["signatures"][0]) == {"keyid", "sig"}


def test_an_email_and_a_workflow_are_named_as_the_certificate_names_them(honest: Signed, tmp_path: Path) -> None:
    config = honest.sigstore.config(tmp_path)
    github = "https://token.actions.githubusercontent.com"
    ref = "org/app/.github/workflows/release.yml@refs/heads/main"
    rows = {
        "ann@example.com": honest.sigstore.token(
            tmp_path, ISSUER, "10769150350006150715113082367", email="ann@example.com"
        ),
        f"https://github.com/{ref}": honest.sigstore.token(
            tmp_path, github, "repo:org/app:ref:refs/heads/main", job_workflow_ref=ref
        ),
    }
    for subject, token in rows.items():
        made = open_signer(f"sigstore:?identity-token-file={token}&trust-config={config}")
        assert isinstance(made, IdentitySigner)
        assert made.identity.subject == subject
        candidates = {"x": KeyringEntry(owner="x", oidc=made.identity)}
        assert signed_by(seal(b"x", "t", [made]), candidates, trusting(honest.sigstore, ISSUER, github)) == {"x"}


@pytest.mark.parametrize(
    "other",
    [
        Oidc(issuer=ISSUER, subject=SUBJECT + "x"),
        Oidc(issuer=ISSUER, subject=SUBJECT.upper()),
        Oidc(issuer=ISSUER, subject=SUBJECT.replace("main", "feature")),
        Oidc(issuer=ISSUER + "/", subject=SUBJECT),
        Oidc(issuer="https://other.example.com", subject=SUBJECT),
    ],
)
def test_another_subject_or_issuer(honest: Signed, other: Oidc) -> None:
    candidates = {"ci": KeyringEntry(owner="platform", oidc=other)}
    assert signed_by(honest.envelope, candidates, trusting(honest.sigstore, ISSUER, other.issuer + "#")) == frozenset()
    assert signed_by(honest.envelope, candidates | {"me": CI["ci"]}, honest.instances) == {"me"}


def test_an_issuer_that_the_instance_does_not_vouch_for(honest: Signed) -> None:
    """A private instance certifies identities of the public issuers as it likes; root says whose count."""
    elsewhere = trusting(honest.sigstore, "https://other.example.com")
    assert signed_by(honest.envelope, CI, elsewhere) == frozenset()
    assert objections(honest.envelope, CI, elsewhere) == [
        "A signature in the name of ci does not count: the keyring trusts no Sigstore instance for identities of "
        f"{ISSUER}."
    ]


ATTACKERS: dict[str, tuple[dict[str, Any], str]] = {
    "another certificate authority": ({"authority": Authority()}, "certificate chain"),
    "another CT log": ({"ct": new_key()}, "SCT"),
    "another transparency log": ({"log": new_key()}, "checkpoint"),
    "a certificate that was over": ({"log_ahead": timedelta(minutes=11)}, "certificate chain"),
    "a certificate that had not begun": ({"log_ahead": timedelta(minutes=-11)}, "certificate chain"),
    "a certificate of two names": ({"two_names": "https://ci.example.com/other"}, ""),
}


@pytest.mark.parametrize("name", ATTACKERS)
def test_what_another_instance_signs_does_not_count(honest: Signed, tmp_path: Path, name: str) -> None:
    """Each differs from the trusted one in the one thing that is named."""
    changes, why = ATTACKERS[name]
    with fake_sigstore(honest.sigstore.like(**changes)) as theirs:
        token = theirs.token(tmp_path, ISSUER, SUBJECT)
        envelope = seal_anyhow(theirs, tmp_path, token, b"{}", "text/plain")
    assert signed_by(envelope, CI, honest.instances) == frozenset()
    told = objections(envelope, CI, honest.instances)
    assert why in " ".join(told), told
    assert bool(told) == bool(why)


@pytest.mark.parametrize(
    ("list_", "span", "why"),
    [
        ("certificateAuthorities", {"start": "2020-01-01T00:00:00Z", "end": "2021-01-01T00:00:00Z"}, "authority"),
        ("certificateAuthorities", {"start": "2120-01-01T00:00:00Z"}, "authority"),
        ("tlogs", {"start": "2020-01-01T00:00:00Z", "end": "2021-01-01T00:00:00Z"}, "transparency log"),
        ("ctlogs", {"start": "2020-01-01T00:00:00Z", "end": "2021-01-01T00:00:00Z"}, "CT log"),
    ],
)
def test_what_root_says_is_over_vouches_no_more(honest: Signed, list_: str, span: dict[str, str], why: str) -> None:
    root = copy.deepcopy(honest.sigstore.trusted_root)
    held = root[list_][0]
    (held if list_ == "certificateAuthorities" else held["publicKey"])["validFor"] = span
    instances = [SigstoreInstance(name="own", issuers=[ISSUER], trusted_root=root)]
    assert signed_by(honest.envelope, CI, instances) == frozenset()
    assert why in objections(honest.envelope, CI, instances)[0]


def other_entry(honest: Signed, signature: dict[str, Any]) -> None:
    """The log entry of another signature by the same identity, whole and valid."""
    other = seal(b"other", "text/plain", [signer_of(honest.sigstore, honest.folder)]).form()
    material(signature)["tlogEntries"] = other["signatures"][0]["extension"]["ext"]["tlogEntries"]


def other_certificate(honest: Signed, signature: dict[str, Any]) -> None:
    other = seal(b"other", "text/plain", [signer_of(honest.sigstore, honest.folder)]).form()
    signature["keyid"] = ""
    material(signature)["certificate"] = other["signatures"][0]["extension"]["ext"]["certificate"]


def flip(text: str) -> str:
    data = bytearray(base64.b64decode(text))
    data[len(data) // 2] ^= 1
    return base64.b64encode(bytes(data)).decode()


def drop(place: dict[str, Any], name: str) -> None:
    del place[name]


def mallory(honest: Signed, signature: dict[str, Any]) -> None:
    """Another log's promise and checkpoint on the honest entry."""
    thief = honest.sigstore.like(log=new_key())
    body = json.loads(base64.b64decode(entry(signature)["canonicalizedBody"]))
    theirs = next(iter(thief.append(body).values()))
    entry(signature)["inclusionPromise"]["signedEntryTimestamp"] = theirs["verification"]["signedEntryTimestamp"]


def forged_checkpoint(honest: Signed, signature: dict[str, Any]) -> None:
    thief = honest.sigstore.like(log=new_key())
    body = json.loads(base64.b64decode(entry(signature)["canonicalizedBody"]))
    proof = next(iter(thief.append(body).values()))["verification"]["inclusionProof"]
    root = base64.b64encode(bytes.fromhex(proof["rootHash"])).decode()
    size, index = str(proof["treeSize"]), str(proof["logIndex"])
    found = {"logIndex": index, "treeSize": size, "rootHash": root, "hashes": []}
    entry(signature)["inclusionProof"] = {**found, "checkpoint": {"envelope": proof["checkpoint"]}}


BENT: dict[str, Callable[[Signed, dict[str, Any]], None]] = {
    "the log entry of another signature": other_entry,
    "the certificate of another signature": other_certificate,
    "another log's promise": mallory,
    "another log's proof and checkpoint": forged_checkpoint,
    "no promise and no time": lambda _, s: [drop(entry(s), n) for n in ("inclusionPromise", "integratedTime")] and None,
    "another time": lambda _, s: entry(s).update(integratedTime=str(int(entry(s)["integratedTime"]) + 1)),
    "another index in the proof": lambda _, s: entry(s)["inclusionProof"].update(logIndex="0"),
    "a proof without its path": lambda _, s: entry(s)["inclusionProof"].update(hashes=[]),
    "another body": lambda _, s: entry(s).update(canonicalizedBody=flip(entry(s)["canonicalizedBody"])),
    "another kind of entry": lambda _, s: entry(s)["kindVersion"].update(kind="dsse"),
    "a signature flipped": lambda _, s: s.update(sig=flip(s["sig"])),
    "a promise flipped": lambda _, s: entry(s)["inclusionPromise"].update(
        signedEntryTimestamp=flip(entry(s)["inclusionPromise"]["signedEntryTimestamp"])
    ),
    "no certificate and log entry at all": lambda _, s: drop(s, "extension"),
    "a time too large for any clock": lambda _, s: entry(s).update(integratedTime="9223372036854775807"),
}


@pytest.mark.parametrize("name", BENT)
def test_a_bent_signature_does_not_count(honest: Signed, name: str) -> None:
    envelope = honest.bent(lambda signature: BENT[name](honest, signature))
    assert signed_by(envelope, CI, honest.instances) == frozenset()
    assert signed_by(honest.envelope, CI, honest.instances) == {"ci"}


def test_no_log_entry_and_fields_that_nobody_reads_are_no_envelope(honest: Signed) -> None:
    bends: list[Callable[[dict[str, Any]], object]] = [
        lambda s: material(s).update(tlogEntries=[]),
        lambda s: drop(material(s), "tlogEntries"),
        lambda s: drop(material(s), "certificate"),
        lambda s: material(s).update(tlogEntries=[entry(s), entry(s)]),
        lambda s: material(s).update(x509CertificateChain={"certificates": []}),
        lambda s: entry(s).update(note="x"),
        lambda s: drop(entry(s), "inclusionPromise"),
        lambda s: drop(entry(s), "integratedTime"),
        lambda s: entry(s).update(integratedTime="0"),
        lambda s: s["extension"].update(kind="application/x509"),
        lambda s: material(s)["certificate"].update(rawBytes=material(s)["certificate"]["rawBytes"] + "\n"),
    ]
    for bend in bends:
        form = copy.deepcopy(honest.envelope.form())
        bend(form["signatures"][0])
        with pytest.raises(VerificationFailed):
            parse_envelope(canonical(form), "it")


def test_the_payload_flipped_and_the_type_changed(honest: Signed) -> None:
    for change in ({"payload": base64.b64encode(b"[]").decode()}, {"payloadType": "text/html"}):
        assert signed_by(honest.envelope.model_copy(update=change), CI, honest.instances) == frozenset()


def test_under_the_id_of_another_key(honest: Signed) -> None:
    with pytest.raises(VerificationFailed, match="under the id of another key"):
        signed_by(honest.bent(lambda s: s.update(keyid="sha256:" + "0" * 64)), CI, honest.instances)
    assert signed_by(honest.bent(lambda s: s.update(keyid="")), CI, honest.instances) == {"ci"}


def test_one_identity_under_two_names_counts_once(honest: Signed) -> None:
    both = {"a": CI["ci"], "b": CI["ci"]}
    assert signed_by(honest.envelope, both, honest.instances) == {"a"}


def test_a_key_and_an_identity_beside_each_other(honest: Signed, tmp_path: Path) -> None:
    signers = [key_signer("a"), signer_of(honest.sigstore, tmp_path), key_signer("a")]
    envelope = seal(b"x", "t", signers)
    assert len(envelope.signatures) == 2
    key = KeyringEntry.model_validate(
        {"owner": "a", "key": {"scheme": "ed25519", "public": key_signer("a").public_pem}}
    )
    assert signed_by(envelope, {"a": key, **CI}, honest.instances) == {"a", "ci"}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, as timestamp authority")
def test_a_signed_timestamp_stands_in_for_the_logs_promise(honest: Signed, tmp_path: Path) -> None:
    """As the public instance does it: with an authority's word on the time, the log need not give its own."""
    folders = [tmp_path / name for name in ("own", "other")]
    for folder in folders:
        folder.mkdir()
    own, other = (FakeTimestamps(folder) for folder in folders)
    with fake_sigstore(honest.sigstore.like(stamps=own)) as stamped:
        made = Signed(stamped, seal(b"{}", "text/plain", [signer_of(stamped, tmp_path)]), tmp_path)
        instances = made.instances
        assert signed_by(made.envelope, CI, instances) == {"ci"}

        def bare(signature: dict[str, Any]) -> None:
            drop(entry(signature), "inclusionPromise")
            drop(entry(signature), "integratedTime")

        def stamp(signature: dict[str, Any]) -> dict[str, Any]:
            found: dict[str, Any] = material(signature)["timestampVerificationData"]["rfc3161Timestamps"][0]
            return found

        assert signed_by(made.bent(bare), CI, instances) == {"ci"}
        reply = stamp(made.envelope.form()["signatures"][0])["signedTimestamp"]
        theirs = copy.deepcopy(stamped.trusted_root) | {"timestampAuthorities": [other.trusted("x")]}
        none = copy.deepcopy(stamped.trusted_root) | {"timestampAuthorities": []}
        for root in (theirs, none):
            strange = [SigstoreInstance(name="own", issuers=[ISSUER], trusted_root=root)]
            assert signed_by(made.bent(bare), CI, strange) == frozenset()
        elsewhere = seal(b"other", "text/plain", [signer_of(stamped, tmp_path)]).form()["signatures"][0]
        for changed in (flip(reply), base64.b64encode(b"x").decode(), stamp(elsewhere)["signedTimestamp"]):

            def bent(signature: dict[str, Any], changed: str = changed) -> None:
                bare(signature)
                stamp(signature)["signedTimestamp"] = changed

            assert signed_by(made.bent(bent), CI, instances) == frozenset()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, as timestamp authority")
def test_a_log_of_the_second_generation(tmp_path: Path) -> None:
    """Rekor v2 gives no time of its own: the authority's word is all there is, and without it nothing counts."""
    with fake_sigstore(FakeSigstore(generation=2, stamps=FakeTimestamps(tmp_path))) as sigstore:
        for n in range(3):
            seal(b"other %d" % n, "text/plain", [signer_of(sigstore, tmp_path)])
        made = Signed(sigstore, seal(b"{}", "text/plain", [signer_of(sigstore, tmp_path)]), tmp_path)
        assert sigstore.asked["/api/v2/log/entries"] == 4
        instances = made.instances
    assert entry(made.envelope.form()["signatures"][0])["kindVersion"]["version"] == "0.0.2"
    assert signed_by(parse_envelope(envelope_bytes(made.envelope), "it"), CI, instances) == {"ci"}
    bends: list[Callable[[dict[str, Any]], object]] = [
        lambda s: drop(material(s), "timestampVerificationData"),
        lambda s: entry(s).update(canonicalizedBody=flip(entry(s)["canonicalizedBody"])),
        lambda s: entry(s)["inclusionProof"].update(rootHash=flip(entry(s)["inclusionProof"]["rootHash"])),
        lambda s: entry(s)["inclusionProof"].update(logIndex="0"),
        lambda s: entry(s)["kindVersion"].update(version="0.0.1"),
        lambda s: s.update(sig=flip(s["sig"])),
    ]
    with pytest.raises(ValidationError, match="promise and its time come together"):
        made.bent(lambda s: entry(s).update(integratedTime="1700000000"))
    for number, bend in enumerate(bends):
        envelope = made.bent(lambda signature, bend=bend: bend(signature))  # type: ignore[misc]
        assert signed_by(envelope, CI, instances) == frozenset(), number


PATHS = [
    ("certificate", "rawBytes"),
    ("tlogEntries", 0, "logIndex"),
    ("tlogEntries", 0, "logId", "keyId"),
    ("tlogEntries", 0, "kindVersion", "kind"),
    ("tlogEntries", 0, "kindVersion", "version"),
    ("tlogEntries", 0, "integratedTime"),
    ("tlogEntries", 0, "inclusionPromise", "signedEntryTimestamp"),
    ("tlogEntries", 0, "inclusionProof", "logIndex"),
    ("tlogEntries", 0, "inclusionProof", "rootHash"),
    ("tlogEntries", 0, "inclusionProof", "treeSize"),
    ("tlogEntries", 0, "inclusionProof", "hashes", 0),
    ("tlogEntries", 0, "inclusionProof", "checkpoint", "envelope"),
    ("tlogEntries", 0, "canonicalizedBody"),
]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(PATHS), at=st.integers(0, 4000), bit=st.integers(0, 7), cut=st.booleans())
def test_any_bit_flipped_is_refused_and_breaks_nothing(
    honest: Signed, path: tuple[Any, ...], at: int, bit: int, cut: bool
) -> None:
    form = copy.deepcopy(honest.envelope.form())
    place: Any = form["signatures"][0]["extension"]["ext"]
    for part in path[:-1]:
        place = place[part]
    text: str = place[path[-1]]
    if path[-1] in ("logIndex", "treeSize", "integratedTime", "kind", "version", "envelope"):
        data = bytearray(text.encode())
        data[at % len(data)] ^= 1 << bit
        changed = bytes(data).decode("latin-1")
    else:
        data = bytearray(base64.b64decode(text))
        data = data[: at % len(data)] if cut else data
        if not cut:
            data[at % len(data)] ^= 1 << bit
        changed = base64.b64encode(bytes(data)).decode()
    place[path[-1]] = changed
    try:
        envelope = parse_envelope(canonical(form), "it")
        counted = signed_by(envelope, CI, honest.instances)
    except VerificationFailed:
        return
    # Nobody signs the name that stands before a checkpoint's signature; the checkpoint itself is as it was.
    assert counted == frozenset() or (path[-1] == "envelope" and changed.split("\n\n")[0] == text.split("\n\n")[0])


def as_x509_version(data: bytes, version: int) -> str:
    """Give a certificate, or what holds one, with another version in the first certificate of version 3."""
    found = bytes.fromhex("a003020102")
    assert found in data
    return base64.b64encode(data.replace(found, found[:-1] + bytes([version]), 1)).decode()


@pytest.mark.parametrize("version", [1, 3, 127])
def test_a_certificate_of_another_version_is_refused_and_breaks_nothing(honest: Signed, version: int) -> None:
    """The library has an error of its own for it, which is none of those that its other refusals are."""

    def bend(signature: dict[str, Any]) -> None:
        held = material(signature)["certificate"]
        held["rawBytes"] = as_x509_version(base64.b64decode(held["rawBytes"]), version)

    with pytest.raises(VerificationFailed, match="cannot be read"):
        signed_by(honest.bent(bend), CI, honest.instances)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, as timestamp authority")
def test_a_timestamp_that_brings_a_certificate_of_another_version_breaks_nothing(
    honest: Signed, tmp_path: Path
) -> None:
    with fake_sigstore(honest.sigstore.like(stamps=FakeTimestamps(tmp_path))) as stamped:
        made = Signed(stamped, seal(b"{}", "text/plain", [signer_of(stamped, tmp_path)]), tmp_path)
        instances = made.instances

    def bend(signature: dict[str, Any]) -> None:
        held = material(signature)["timestampVerificationData"]["rfc3161Timestamps"][0]
        held["signedTimestamp"] = as_x509_version(base64.b64decode(held["signedTimestamp"]), 80)

    assert signed_by(made.bent(bend), CI, instances) == frozenset()
    assert "80 is not a valid" in objections(made.bent(bend), CI, instances)[0]


def test_without_the_extra_it_says_what_to_install(honest: Signed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bundlectl.trust.sigstore_verifier", None)
    with pytest.raises(VerificationFailed, match="cannot be judged here") as caught:
        signed_by(honest.envelope, CI, honest.instances)
    assert "bundlectl[sigstore]" in caught.value.fix
    somebody = {"x": KeyringEntry(owner="x", oidc=Oidc(issuer=ISSUER, subject="https://ci.example.com/x"))}
    assert signed_by(honest.envelope, somebody, honest.instances) == frozenset()
