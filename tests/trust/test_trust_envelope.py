"""DSSE: the specification's vector, an independent implementation, and what must never verify."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlectl.model.attestation import EVALUATION, PAYLOAD_TYPE, Envelope, EnvelopeSignature
from bundlectl.model.canonical import canonical
from bundlectl.model.errors import UsageError, VerificationFailed
from bundlectl.model.keyring import KeyringEntry, Oidc, Policy, PublicKey
from bundlectl.trust.envelope import (
    envelope_bytes,
    make_statement,
    open_document,
    open_statement,
    pae,
    parse_envelope,
    payload_of,
    seal,
    signed_by,
)
from bundlectl.trust.keys import P256, check_public_key, key_id, public_pem_of, verifies
from tests.support.trust import APP, BUNDLE, signer

VECTOR = Path(__file__).parents[3] / "shared" / "data" / "dsse" / "vector.json"
SCHEMES = ["ed25519", P256]


def entry(name: str, scheme: str = "ed25519") -> KeyringEntry:
    held = signer(name, scheme)
    return KeyringEntry(owner=name, key=PublicKey.model_validate({"scheme": scheme, "public": held.public_pem}))


def vector() -> dict[str, object]:
    if not VECTOR.exists():
        pytest.skip(f"the DSSE test vector is not here: {VECTOR.name} in shared/data/dsse")
    found = json.loads(VECTOR.read_text())
    assert isinstance(found, dict)
    return found


def test_pae_and_envelope_are_those_of_the_specification() -> None:
    spec = vector()
    kind, body = str(spec["payloadType"]), str(spec["payload_utf8"]).encode()
    assert pae(kind, body) == str(spec["pae"]).encode()
    envelope = parse_envelope(json.dumps(spec["envelope"]).encode(), "the vector")
    assert payload_of(envelope) == body
    # The vector's signature is raw r||s; ours are DER. The numbers are the same.
    raw = base64.b64decode(envelope.signatures[0].sig)
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    public = ec.EllipticCurvePublicNumbers(int(str(spec["x"])), int(str(spec["y"])), ec.SECP256R1()).public_key()
    key = PublicKey(scheme="ecdsa-p256-sha256", public=public_pem_of(public))
    assert verifies(key, der, pae(kind, body))
    assert not verifies(key, raw, pae(kind, body))


def test_pae_counts_bytes() -> None:
    assert pae("ü", b"\xff\x00") == b"DSSEv1 2 \xc3\xbc 2 \xff\x00"
    assert pae("", b"") == b"DSSEv1 0  0 "


@given(st.text(), st.binary(), st.text(), st.binary())
def test_pae_is_injective(one: str, first: bytes, two: str, second: bytes) -> None:
    if (one, first) != (two, second):
        try:
            assert pae(one, first) != pae(two, second)
        except VerificationFailed:
            assert any("\ud800" <= c <= "\udfff" for c in one + two)


@settings(max_examples=30, deadline=None)
@given(
    payload=st.binary(max_size=200),
    kind=st.text(st.characters(codec="utf-8"), max_size=40),
    scheme=st.sampled_from(SCHEMES),
)
def test_an_independent_implementation_agrees(payload: bytes, kind: str, scheme: str) -> None:
    dsse = pytest.importorskip("securesystemslib.dsse")
    keys = pytest.importorskip("securesystemslib.signer")
    held = signer("a", scheme)
    ours = seal(payload, kind, [held])
    theirs = dsse.Envelope.from_dict(json.loads(envelope_bytes(ours)))
    oracle = keys.SSlibKey(
        ours.signatures[0].keyid,
        {"ed25519": "ed25519", P256: "ecdsa"}[scheme],
        {"ed25519": "ed25519", P256: "ecdsa-sha2-nistp256"}[scheme],
        {"public": oracle_public(held.public_pem, scheme)},
    )
    assert theirs.pae() == pae(kind, payload)
    assert list(theirs.verify([oracle], 1)) == [ours.signatures[0].keyid]
    assert signed_by(ours, {"a": entry("a", scheme)}) == {"a"}


def oracle_public(pem: str, scheme: str) -> str:
    if scheme != "ed25519":
        return pem
    loaded = load_pem_public_key(pem.encode())
    assert isinstance(loaded, Ed25519PublicKey)
    return loaded.public_bytes_raw().hex()


@settings(max_examples=50, deadline=None)
@given(payload=st.binary(max_size=500), scheme=st.sampled_from(SCHEMES))
def test_what_is_sealed_opens_and_no_one_else_signed_it(payload: bytes, scheme: str) -> None:
    envelope = seal(payload, "x/y", [signer("a", scheme)])
    again = parse_envelope(envelope_bytes(envelope), "it")
    assert again == envelope
    assert payload_of(again) == payload
    assert signed_by(again, {"a": entry("a", scheme), "b": entry("b", scheme)}) == {"a"}
    assert signed_by(again, {"b": entry("b", scheme)}) == frozenset()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_flipped_byte_verifies_as_something_else(scheme: str) -> None:
    """Each byte of a stored envelope, three ways: it is refused, or says the very same thing by the same signer."""
    payload = make_statement(APP, BUNDLE, EVALUATION, {"a": 1})
    data = envelope_bytes(seal(payload, PAYLOAD_TYPE, [signer("a", scheme)]))
    candidates = {"a": entry("a", scheme)}
    kept = 0
    for place in range(len(data)):
        for mask in (0x01, 0x20, 0x80):
            broken = data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]
            try:
                envelope = parse_envelope(broken, "it")
                signed = signed_by(envelope, candidates)
            except VerificationFailed:
                continue
            if signed:
                kept += 1
                assert payload_of(envelope) == payload
                assert envelope.payloadType == PAYLOAD_TYPE
    # Only the keyid, a hint that nobody signed, may change.
    assert kept <= 3 * len(seal(b"x", "x", [signer("a", scheme)]).signatures[0].keyid)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_edit_of_the_bytes_verifies_as_something_else(data: st.DataObject) -> None:
    payload = make_statement(APP, BUNDLE, EVALUATION, {"a": 1})
    stored = envelope_bytes(seal(payload, PAYLOAD_TYPE, [signer("a")]))
    start = data.draw(st.integers(0, len(stored)))
    end = data.draw(st.integers(start, min(len(stored), start + 40)))
    broken = stored[:start] + data.draw(st.binary(max_size=40)) + stored[end:]
    try:
        envelope = parse_envelope(broken, "it")
        signed = signed_by(envelope, {"a": entry("a")})
    except VerificationFailed:
        return
    if signed:
        assert (payload_of(envelope), envelope.payloadType) == (payload, PAYLOAD_TYPE)


def test_thresholds_cannot_be_met_by_repeating() -> None:
    once = seal(b"x", "t", [signer("a"), signer("a")])
    assert len(once.signatures) == 1
    twice = Envelope(payload=once.payload, payloadType="t", signatures=once.signatures * 5)
    assert signed_by(twice, {"a": entry("a"), "b": entry("b")}) == {"a"}


def test_one_key_under_two_names_counts_once() -> None:
    envelope = seal(b"x", "t", [signer("a")])
    assert signed_by(envelope, {"a": entry("a"), "another": entry("a")}) == {"a"}


def test_one_key_written_in_two_ways_counts_once() -> None:
    held = signer("a", P256)
    public = load_pem_public_key(held.public_pem.encode())
    point = public.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    der = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point
    respelled = f"-----BEGIN PUBLIC KEY-----\n{base64.b64encode(der).decode()}\n-----END PUBLIC KEY-----\n"
    assert respelled != held.public_pem
    assert key_id(respelled) == held.key_id
    both = {
        "a": entry("a", P256),
        "b": KeyringEntry(owner="b", key=PublicKey(scheme="ecdsa-p256-sha256", public=respelled)),
    }
    assert len(signed_by(seal(b"x", "t", [held]), both)) == 1


def test_the_keyid_is_a_hint_that_may_be_missing_and_may_not_lie() -> None:
    good = seal(b"x", "t", [signer("a")])

    def under(keyid: str) -> frozenset[str]:
        signature = EnvelopeSignature(keyid=keyid, sig=good.signatures[0].sig)
        hinted = Envelope(payload=good.payload, payloadType="t", signatures=[signature])
        return signed_by(hinted, {"a": entry("a"), "b": entry("b")})

    assert under("") == under(signer("a").key_id) == {"a"}
    for keyid in ("nonsense", signer("b").key_id):
        with pytest.raises(VerificationFailed, match="id of another key"):
            under(keyid)


def test_no_signature_is_no_signer() -> None:
    empty = Envelope(payload="eA==", payloadType="t", signatures=[])
    assert signed_by(empty, {"a": entry("a")}) == frozenset()
    with pytest.raises(UsageError, match="signer"):
        seal(b"x", "t", [])


def test_an_oidc_identity_never_matches_a_key_signature() -> None:
    oidc = KeyringEntry(owner="ci", oidc=Oidc(issuer="https://i", subject="s"))
    assert signed_by(seal(b"x", "t", [signer("a")]), {"ci": oidc}) == frozenset()


def test_another_payload_type_breaks_the_signature() -> None:
    good = seal(b"x", "t", [signer("a")])
    moved = Envelope(payload=good.payload, payloadType="u", signatures=good.signatures)
    assert signed_by(moved, {"a": entry("a")}) == frozenset()


def test_a_high_s_is_the_same_signature_over_the_same_payload() -> None:
    held = signer("a", P256)
    good = seal(b"x", "t", [held])
    r, s = decode_dss_signature(base64.b64decode(good.signatures[0].sig))
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    other = base64.b64encode(encode_dss_signature(r, order - s)).decode()
    both = Envelope(
        payload=good.payload,
        payloadType="t",
        signatures=[good.signatures[0], EnvelopeSignature(keyid=held.key_id, sig=other)],
    )
    assert signed_by(both, {"a": entry("a", P256), "b": entry("b", P256)}) == {"a"}


def test_a_weak_key_is_refused_for_anyone_could_sign_for_it() -> None:
    identity = Ed25519PublicKey.from_public_bytes(b"\x01" + bytes(31))
    forged = b"\x01" + bytes(63)
    identity.verify(forged, b"anything at all")  # the library takes it: this is the attack
    key = PublicKey(scheme="ed25519", public=public_pem_of(identity))
    with pytest.raises(VerificationFailed, match="small order"):
        verifies(key, forged, b"anything at all")


def test_a_key_must_be_of_the_scheme_it_says() -> None:
    wrong = PublicKey(scheme="ed25519", public=signer("a", P256).public_pem)
    with pytest.raises(VerificationFailed, match="scheme"):
        check_public_key(wrong)
    other_curve = public_pem_of(ec.generate_private_key(ec.SECP384R1()).public_key())
    with pytest.raises(VerificationFailed, match="kind"):
        check_public_key(PublicKey(scheme="ecdsa-p256-sha256", public=other_curve))
    with pytest.raises(VerificationFailed, match="cannot be read"):
        check_public_key(PublicKey(scheme="ed25519", public="-----BEGIN PUBLIC KEY-----\n?\n-----END PUBLIC KEY-----"))


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        ("eB==", "stray bits in the last character"),
        ("eA=", "padding short"),
        ("eA", "no padding"),
        ("eA==\n", "a newline"),
        (" eA==", "a space"),
        ("e A==", "a space inside"),
        ("-_8=", "the URL-safe alphabet"),
        ("eA==eA==", "two texts"),
        ("eÄ==", "not ASCII"),
        ("\ud800", "no text at all"),
    ],
)
def test_base64_has_one_spelling(payload: str, why: str) -> None:
    envelope = Envelope(payload=payload, payloadType="t", signatures=[])
    with pytest.raises(VerificationFailed):
        payload_of(envelope)
    sig = Envelope(payload="eA==", payloadType="t", signatures=[EnvelopeSignature(sig=payload)])
    with pytest.raises(VerificationFailed):
        signed_by(sig, {"a": entry("a")})


def test_an_empty_signature_is_malformed() -> None:
    envelope = Envelope(payload="eA==", payloadType="t", signatures=[EnvelopeSignature(sig="")])
    with pytest.raises(VerificationFailed, match="empty"):
        signed_by(envelope, {"a": entry("a")})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"payload":"eA==","payloadType":"t","signatures":[],"more":1}',
        b'{"payload":"eA==","payload":"eA==","payloadType":"t","signatures":[]}',
        b'{"payload":1,"payloadType":"t","signatures":[]}',
        b'{"payload":"eA==","payloadType":"t"}',
        b'{"payload":"eA==","payloadType":"t","signatures":[{"sig":"eA==","cert":"x"}]}',
        b'{"payload":"eA==","payloadType":"t","signatures":[' + b",".join([b'{"sig":"eA=="}'] * 33) + b"]}",
        b'{"payload":"eA==","payloadType":"t","signatures":[]} x',
        b"\xff\xfe",
        b"[" * 100_000,
        b" " * (1024 * 1024 + 1),
    ],
)
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(VerificationFailed, match="The referrer"):
        parse_envelope(data, "The referrer")


def test_a_lone_surrogate_is_refused_and_not_a_crash() -> None:
    envelope = Envelope(payload="eA==", payloadType="\ud800", signatures=[])
    with pytest.raises(VerificationFailed):
        signed_by(envelope, {"a": entry("a")})
    with pytest.raises(VerificationFailed):
        envelope_bytes(envelope)


def test_a_statement_is_what_it_says() -> None:
    envelope = seal(make_statement(APP, BUNDLE, EVALUATION, {"a": 1}), PAYLOAD_TYPE, [signer("a")])
    statement = open_statement(envelope)
    assert (statement.bundle, statement.subject[0].name, statement.predicate) == (BUNDLE, APP, {"a": 1})


GOOD = json.loads(make_statement(APP, BUNDLE, EVALUATION, {}))


@pytest.mark.parametrize(
    "broken",
    [
        {key: value for key, value in GOOD.items() if key != "_type"},
        {**GOOD, "_type": "https://in-toto.io/Statement/v0.1"},
        {**{key: value for key, value in GOOD.items() if key != "_type"}, "type_": GOOD["_type"]},
        {**GOOD, "subject": []},
        {**GOOD, "subject": GOOD["subject"] * 2},
        {**GOOD, "subject": [{"name": APP, "digest": {"sha256": "b" * 63}}]},
        {**GOOD, "subject": [{"name": APP, "digest": {"sha256": "b" * 64, "sha512": "c" * 128}}]},
        {**GOOD, "extra": 1},
        [GOOD],
    ],
)
def test_a_statement_of_another_form_is_refused(broken: object) -> None:
    with pytest.raises(VerificationFailed, match="Statement v1"):
        open_statement(seal(canonical(broken), PAYLOAD_TYPE, [signer("a")]))


def test_a_statement_under_another_payload_type_is_refused() -> None:
    envelope = seal(canonical(GOOD), "application/vnd.bundlectl.keyring.v1+json", [signer("a")])
    with pytest.raises(VerificationFailed, match="wrong payload type"):
        open_statement(envelope)


def test_a_document_must_say_its_kind_itself() -> None:
    bare = canonical({"app": APP, "version": 1, "environments": {"dev": {}}})
    with pytest.raises(VerificationFailed, match="does not say what it is"):
        open_document(seal(bare, "p", [signer("a")]), "p", Policy, "The policy")
