"""DSSE v1.0.2 envelopes, with the signature extension of v1.1, and the in-toto statements in them.

https://github.com/secure-systems-lab/dsse/blob/master/protocol.md. Base64 is standard and strict: what decodes
must encode to the same text, so one payload has one spelling. (The protocol lets verifiers take the URL-safe
alphabet too; we write every envelope ourselves and take only what we write.)

Nothing here trusts an envelope: :func:`signed_by` says which of the candidates signed it, the caller decides
whether they may and whether they are enough.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from bundlectl.model.attestation import PAYLOAD_TYPE, STATEMENT_TYPE, Envelope, EnvelopeSignature, Statement
from bundlectl.model.canonical import canonical, hex_of, parse_document
from bundlectl.model.errors import UsageError, VerificationFailed
from bundlectl.model.keyring import KeyringEntry, Oidc
from bundlectl.model.sigstore import SigstoreInstance
from bundlectl.model.types import Strict
from bundlectl.trust.keys import key_id, verifies
from bundlectl.trust.signers import AnySigner, IdentitySigner

MAX_ENVELOPE = 1024 * 1024
"""Bytes of an envelope on its own."""

D = TypeVar("D", bound=Strict)


def pae(payload_type: str, payload: bytes) -> bytes:
    """Give the bytes that are signed: ``DSSEv1 LEN(type) type LEN(body) body``, lengths in bytes.

    Raises:
        VerificationFailed: the payload type has no UTF-8 form (a lone surrogate).
    """
    try:
        name = payload_type.encode()
    except UnicodeEncodeError as error:
        raise VerificationFailed("An envelope's payload type is not Unicode text.") from error
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)


def seal(payload: bytes, payload_type: str, signers: Sequence[AnySigner]) -> Envelope:
    """Sign a payload. Each key and each identity signs once, even when it is given twice.

    Raises:
        UsageError: no signer was given.
    """
    if not signers:
        raise UsageError("Nothing can be signed without a signer.", fix="Name one: --signer file:PATH")
    message = pae(payload_type, payload)
    once = {signer.identity if isinstance(signer, IdentitySigner) else signer.key_id: signer for signer in signers}
    return Envelope(
        payload=_encode(payload),
        payloadType=payload_type,
        signatures=[_sign(signer, message) for signer in once.values()],
    )


def envelope_bytes(envelope: Envelope) -> bytes:
    """Give the canonical JSON of an envelope: what we store, and what its digest is of.

    Raises:
        VerificationFailed: a text in it is not Unicode (a lone surrogate).
    """
    try:
        return canonical(envelope.form())
    except ValueError as error:
        raise VerificationFailed("An envelope holds text that is not Unicode.", why=str(error)) from error


def parse_envelope(data: bytes, what: str) -> Envelope:
    """Parse stored bytes as an envelope. Nothing is verified yet, but its base64 is known to be strict.

    Args:
        data: the stored bytes.
        what: what they are, for the error message.

    Raises:
        VerificationFailed: too large, no JSON, another form, or base64 that is not strict.
    """
    if len(data) > MAX_ENVELOPE:
        raise VerificationFailed(f"{what} is larger than an envelope may be ({MAX_ENVELOPE} bytes).")
    try:
        envelope = Envelope.model_validate(parse_document(data, what=what))
    except ValidationError as error:
        raise VerificationFailed(f"{what} is not a DSSE envelope.", why=brief(error)) from error
    payload_of(envelope)
    for signature in envelope.signatures:
        _signature(signature.sig)
    return envelope


def payload_of(envelope: Envelope) -> bytes:
    """Give the payload's bytes.

    Raises:
        VerificationFailed: its base64 is not the one spelling.
    """
    return _decode(envelope.payload, "The payload")


def signed_by(
    envelope: Envelope, candidates: Mapping[str, KeyringEntry], sigstore: Sequence[SigstoreInstance] = ()
) -> frozenset[str]:
    """Give the candidates that validly signed the envelope.

    Every signature is tried against every candidate's key: ``keyid`` is a hint that nobody signed, and it may be
    left out. Where it is there and names another key than the one that signed, somebody rewrote it. Where two
    candidates hold the same key material only the first by id is given, so the result's size is the number
    of distinct principals *and* of distinct keys. For an OIDC identity the identity is the material; a signature is its
    own when the certificate that comes with it names it and one of the Sigstore instances vouches for both.

    Args:
        envelope: the envelope.
        candidates: principal -> entry.
        sigstore: the instances that root trusts (:attr:`VerifiedKeyring.sigstore`); without them no identity counts.

    Raises:
        VerificationFailed: a signature is not strict base64, or valid under a key that is not its keyid's; or it says
            that a candidate's identity made it and the extra ``sigstore`` is not installed.
    """
    message = pae(envelope.payloadType, payload_of(envelope))
    signatures = [(signature.keyid, _signature(signature.sig)) for signature in envelope.signatures]
    by_material: dict[str, str] = {}
    identities: dict[Oidc, str] = {}
    for principal in sorted(candidates):
        entry = candidates[principal]
        if entry.oidc is not None:
            identities.setdefault(entry.oidc, principal)
        if entry.key is None or key_id(entry.key.public) in by_material:
            continue
        material = key_id(entry.key.public)
        for keyid, signature in signatures:
            if verifies(entry.key, signature, message):
                _check_keyid(keyid, material, principal)
                by_material[material] = principal
    endorsed = {identities[one] for one, why in _claims(envelope, message, identities, sigstore) if why is None}
    return frozenset(by_material.values()) | endorsed


def objections(
    envelope: Envelope, candidates: Mapping[str, KeyringEntry], sigstore: Sequence[SigstoreInstance]
) -> list[str]:
    """Say of each signature that names a candidate's identity and does not count why not, for people."""
    message = pae(envelope.payloadType, payload_of(envelope))
    identities = {entry.oidc: name for name, entry in sorted(candidates.items()) if entry.oidc is not None}
    claims = _claims(envelope, message, identities, sigstore)
    return [f"A signature in the name of {identities[one]} does not count: {why}." for one, why in claims if why]


def _claims(
    envelope: Envelope, message: bytes, identities: Mapping[Oidc, str], sigstore: Sequence[SigstoreInstance]
) -> list[tuple[Oidc, str | None]]:
    """Give each signature whose certificate names one of the identities, and why it does not count; None: it does."""
    found: list[tuple[Oidc, str | None]] = []
    for signature in envelope.signatures if identities else ():
        if signature.extension is None:
            continue
        from bundlectl.trust.identities import certificate_of, certified_key_id, identity_of, objection

        certificate = certificate_of(signature.extension)
        identity = identity_of(certificate)
        if identity is None or identity not in identities:
            continue
        raw = _signature(signature.sig)
        why = objection(identity, signature.extension, certificate, raw, message, sigstore)
        if why is None:
            _check_keyid(signature.keyid, certified_key_id(certificate), identities[identity])
        found.append((identity, why))
    return found


def _check_keyid(keyid: str, material: str, principal: str) -> None:
    if keyid not in ("", material):
        raise VerificationFailed(
            f"A signature of {principal!r} goes under the id of another key.",
            why=f"It says {keyid}; the key that made it is {material}.",
            fix="Somebody changed the envelope after it was signed. Restore it, or have it signed again.",
        )


def _sign(signer: AnySigner, message: bytes) -> EnvelopeSignature:
    if isinstance(signer, IdentitySigner):
        made = signer.endorse(message)
        return EnvelopeSignature(keyid=made.key_id, sig=_encode(made.signature), extension=made.extension)
    return EnvelopeSignature(keyid=signer.key_id, sig=_encode(signer.sign(message)))


def open_document(envelope: Envelope, payload_type: str, model: type[D], what: str) -> D:
    """Parse the payload of an envelope whose payload type must be this one. Signatures are the caller's to check.

    ``apiVersion`` and ``kind`` must stand in the payload itself where the model has them.

    Raises:
        VerificationFailed: another payload type, no JSON, or another form.
    """
    check_payload_type(envelope, payload_type, what)
    raw = parse_document(payload_of(envelope), what=what)
    said: tuple[str, ...] = tuple(name for name in ("apiVersion", "kind") if name in model.model_fields)
    if not isinstance(raw, dict) or any(name not in raw for name in said):
        raise VerificationFailed(f"{what} does not say what it is.", why="It has no apiVersion and kind.")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise VerificationFailed(
            f"{what} does not have the form this version knows.",
            why=brief(error),
            fix="If a newer bundlectl wrote it, use that version or a newer one.",
        ) from error


def check_payload_type(envelope: Envelope, expected: str, what: str) -> None:
    """Check the payload type: a signature over one kind of document is none over another.

    Raises:
        VerificationFailed: it is another one.
    """
    if envelope.payloadType != expected:
        raise VerificationFailed(
            f"{what} has the wrong payload type.", why=f"It is {envelope.payloadType!r}; {expected!r} is due."
        )


def make_statement(app: str, bundle_digest: str, predicate_type: str, predicate: dict[str, Any]) -> bytes:
    """Give the canonical bytes of an in-toto statement about a bundle of an app.

    Raises:
        ValueError: the predicate holds something JSON has no form for.
    """
    return canonical(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": app, "digest": {"sha256": hex_of(bundle_digest)}}],
            "predicateType": predicate_type,
            "predicate": predicate,
        }
    )


def open_statement(envelope: Envelope) -> Statement:
    """Parse the in-toto statement in an envelope; the payload type is checked, signatures are the caller's.

    Raises:
        VerificationFailed: another payload type, or no statement v1 with exactly one subject.
    """
    check_payload_type(envelope, PAYLOAD_TYPE, "A statement")
    raw = parse_document(payload_of(envelope), what="a statement")
    # The model has a default for _type; a statement that does not say what it is must not get it.
    if not isinstance(raw, dict) or raw.get("_type") != STATEMENT_TYPE or "type_" in raw:
        raise VerificationFailed("A statement is not an in-toto Statement v1.")
    try:
        return Statement.model_validate(raw)
    except ValidationError as error:
        raise VerificationFailed("A statement is not an in-toto Statement v1.", why=brief(error)) from error


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decode(text: str, what: str) -> bytes:
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise VerificationFailed(f"{what} of an envelope is not base64.", why=str(error)) from error
    # Decoders take stray bits in the last character; two spellings of one payload would have two digests.
    if _encode(data) != text:
        raise VerificationFailed(f"{what} of an envelope is not in the one spelling of base64.")
    return data


def _signature(text: str) -> bytes:
    data = _decode(text, "A signature")
    if not data:
        raise VerificationFailed("A signature of an envelope is empty.")
    return data


def brief(error: ValidationError) -> str:
    """Give the first few findings, each on a line: pydantic's own text is longer than a reader at night wants."""
    found = [f"{'.'.join(str(part) for part in e['loc']) or '(whole)'}: {e['msg']}" for e in error.errors()[:5]]
    return "\n".join(found)
