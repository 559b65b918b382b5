"""Signing requests: root and owners sign on a machine that is kept offline. A file goes out, a signature comes back.

The machine that signs believes the pin that it holds, and nothing else: it opens every keyring in the request from
there, works out again what would change, and refuses a request whose summary says something else.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bundlectl.actions.context import Context
from bundlectl.actions.opening import read_pin
from bundlectl.actions.signed_before import check_signed_before, remember_signed
from bundlectl.model.attestation import KEYRING_PAYLOAD_TYPE, POLICY_PAYLOAD_TYPE, Envelope
from bundlectl.model.canonical import canonical, digest, parse_json
from bundlectl.model.errors import BackendUnavailable, UsageError, VerificationFailed
from bundlectl.model.keyring import Keyring, Policy
from bundlectl.model.signing import SigningRequest, WhoSigns
from bundlectl.model.types import Strict
from bundlectl.resolver.keyrings import keyring_chain, open_chain
from bundlectl.trust.envelope import brief, envelope_bytes, open_document, parse_envelope, payload_of, seal
from bundlectl.trust.keyring import ACTIVE_OR_RETIRED, VerifiedKeyring, unsigned
from bundlectl.trust.policy import check_policy, open_policy, policy_differences
from bundlectl.trust.signers import Signer, open_key
from bundlectl.trust.succession import differences

MAX_REQUEST = 8 * 1024 * 1024
TYPES = {"keyring": KEYRING_PAYLOAD_TYPE, "policy": POLICY_PAYLOAD_TYPE}


class ShownRequest(Strict):
    """A request as the machine that would sign it understands it."""

    document: str
    app: str | None
    version: int
    digest: str
    present: int
    present_digest: str
    changes: list[str]
    signers: list[WhoSigns]


class SignedRequest(Strict):
    """A signature over a request, in a file that goes back."""

    request: ShownRequest
    signed_by: list[str]
    file: str


@dataclass(frozen=True)
class Opened:
    """A request that was read and judged: the document is unsigned, the keyring verified from the pin."""

    request: SigningRequest
    payload: bytes
    keyring: VerifiedKeyring
    document: Keyring | Policy
    shown: ShownRequest


def open_signers(ctx: Context, uris: Sequence[str], role: str) -> list[Signer]:
    """Open the keys that were named, or else the workspace's key of a role: root's, or an owner's.

    Raises:
        UsageError: one is not there, or is an identity.
    """
    return [open_key(uri, ctx.passphrase) for uri in uris] or [ctx.key(role)]


def keyring_signers(current: VerifiedKeyring, document: Keyring) -> list[WhoSigns]:
    """Say who has to sign the next keyring: enough of the present root, and enough of its own."""
    new = sorted(p for p in document.root.principals if document.principals[p].state == "active")
    who = [
        WhoSigns(
            why=f"root of keyring {current.version}",
            principals=sorted(current.roots()),
            threshold=current.document.root.threshold,
        ),
        WhoSigns(why=f"root of keyring {document.version}", principals=new, threshold=document.root.threshold),
    ]
    return who[:1] if who[0].principals == new and who[0].threshold == document.root.threshold else who


def policy_signers(keyring: VerifiedKeyring, app: str) -> list[WhoSigns]:
    """Say who has to sign an app's policy: enough of its owners."""
    owners = keyring.app(app).owners
    return [WhoSigns(why=f"owners of {app}", principals=sorted(keyring.owners(app)), threshold=owners.threshold)]


def write_request(
    ctx: Context, path: Path, document: Keyring | Policy, *, policy: Envelope | None = None
) -> SigningRequest:
    """Write the request to sign the next keyring, or an app's next policy.

    Args:
        ctx: the context.
        path: where to; must not exist.
        document: checked already.
        policy: with a policy: the present one, if there is one.

    Raises:
        UsageError: something is at the path.
        BackendUnavailable: it cannot be written.
    """
    pin = read_pin(ctx)
    chain = keyring_chain(ctx.registry, pin)
    current = open_chain(chain, pin)
    payload = canonical(document.form())
    if isinstance(document, Keyring):
        summary, who = differences(current.document, document), keyring_signers(current, document)
    else:
        summary = policy_changes(current, policy, document)
        who = policy_signers(current, document.app)
    request = SigningRequest(
        document="keyring" if isinstance(document, Keyring) else "policy",
        app=None if isinstance(document, Keyring) else document.app,
        version=document.version,
        payload=base64.b64encode(payload).decode("ascii"),
        digest=digest(payload),
        summary=summary,
        signers=who,
        keyrings=[parse_envelope(data, "a keyring") for data in chain],
        policy=policy,
    )
    write_new(path, canonical(request.form()))
    return request


def open_request(ctx: Context, path: Path) -> Opened:
    """Read a request and judge it from this machine's pin. The registry is not asked.

    Raises:
        UsageError: there is no such file, or this machine has no pin.
        VerificationFailed: its keyrings do not follow from the pin, its document breaks a rule or does not
            succeed the present one, or its summary says something else than its payload.
    """
    request = _parse(read_file(path, MAX_REQUEST), str(path))
    payload = _payload(request, path)
    keyring = open_chain([envelope_bytes(envelope) for envelope in request.keyrings], read_pin(ctx))
    envelope = Envelope(payload=request.payload, payloadType=TYPES[request.document], signatures=[])
    document: Keyring | Policy
    if request.document == "keyring":
        document = open_document(envelope, KEYRING_PAYLOAD_TYPE, Keyring, "The keyring in the request")
        unsigned(keyring, document)
        changes, who = differences(keyring.document, document), keyring_signers(keyring, document)
    else:
        document = open_document(envelope, POLICY_PAYLOAD_TYPE, Policy, "The policy in the request")
        check_policy(document)
        _check_follows(document, request.policy)
        changes = policy_changes(keyring, request.policy, document)
        who = policy_signers(keyring, document.app)
    same = (request.version, request.summary, request.signers) == (document.version, changes, who)
    if not same or canonical(document.form()) != payload:
        raise VerificationFailed(
            f"{path} says something else than what it asks to be signed.",
            why="What it would change:\n" + "\n".join(f"  {line}" for line in changes),
            fix="Do not sign it. Find out where it comes from.",
        )
    shown = ShownRequest(
        document=request.document,
        app=request.app,
        version=request.version,
        digest=request.digest,
        present=keyring.version,
        present_digest=keyring.digest,
        changes=changes,
        signers=who,
    )
    return Opened(request, payload, keyring, document, shown)


def show_request(ctx: Context, path: Path) -> ShownRequest:
    """Say what a request would change, and who has to sign it; sign nothing."""
    return open_request(ctx, path).shown


def sign_request(
    ctx: Context, path: Path, *, signers: Sequence[str] = (), out: Path | None = None, again: bool = False
) -> SignedRequest:
    """Sign a request on the machine that holds the key, and write the signature to a file.

    Args:
        ctx: the context; of the registry only the pin beside it is used.
        path: the request.
        signers: the keys; without any, the workspace's key of root, or of owner for a policy.
        out: where the signature goes; by default beside the request, with the principal's name.
        again: sign although this machine signed another such version before, which was given up.

    Raises:
        UsageError: a key is not one of those that have to sign, this machine signed another such version
            before, or the file is there already.
        VerificationFailed: see :func:`open_request`.
    """
    opened = open_request(ctx, path)
    keys = open_signers(ctx, signers, "root" if opened.request.document == "keyring" else "owner")
    names = [_principal(opened, key) for key in keys]
    line = f"{opened.request.document} {opened.keyring.registry}" + (f" {opened.shown.app}" if opened.shown.app else "")
    check_signed_before(ctx, line, opened.request.version, opened.request.digest, again=again)
    envelope = seal(opened.payload, TYPES[opened.request.document], keys)
    file = out if out is not None else path.with_name(f"{path.name}.{'-'.join(names).replace('/', '_')}.sig")
    remember_signed(ctx, line, opened.request.version, opened.request.digest)
    write_new(file, envelope_bytes(envelope))
    return SignedRequest(request=opened.shown, signed_by=names, file=str(file))


def collect(opened: Opened, signatures: Sequence[Path]) -> Envelope:
    """Join signature files to one envelope. Whether they are valid, and enough, is judged when it is opened.

    Raises:
        UsageError: none was given.
        VerificationFailed: one is no envelope, or signs something else.
    """
    if not signatures:
        raise UsageError("No signature file was named.", fix="keyring apply REQUEST SIGNATURE…")
    found: dict[str, dict[str, Any]] = {}
    for path in signatures:
        envelope = parse_envelope(read_file(path, MAX_REQUEST), str(path))
        if envelope.payloadType != TYPES[opened.request.document] or payload_of(envelope) != opened.payload:
            raise VerificationFailed(
                f"{path} signs something else than the request.",
                why=f"It signs {digest(payload_of(envelope))}; the request is about {opened.request.digest}.",
            )
        found |= {signature.sig: signature.form() for signature in envelope.signatures}
    in_order = sorted(found.values(), key=lambda one: (one["keyid"], one["sig"]))
    return Envelope.model_validate(
        {"payload": opened.request.payload, "payloadType": TYPES[opened.request.document], "signatures": in_order}
    )


def read_file(path: Path, limit: int) -> bytes:
    """Read a file that was carried here.

    Raises:
        UsageError: it cannot be read, or is over the limit.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read.", why=error.strerror or str(error)) from error
    if len(data) > limit:
        raise UsageError(f"{path} is over {limit} bytes.")
    return data


def write_new(path: Path, data: bytes) -> None:
    """Write a file that is carried elsewhere; nothing is replaced.

    Raises:
        UsageError: something is there already.
        BackendUnavailable: it cannot be written.
    """
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise UsageError(f"{path} is already there; nothing was changed.", fix="Name another file.") from error
    except OSError as error:
        raise BackendUnavailable(f"{path} cannot be written.", why=error.strerror or str(error)) from error


def _parse(data: bytes, what: str) -> SigningRequest:
    try:
        return SigningRequest.model_validate(parse_json(data, what=what))
    except ValidationError as error:
        raise VerificationFailed(f"{what} is no signing request.", why=brief(error)) from error


def _payload(request: SigningRequest, path: Path) -> bytes:
    try:
        payload = base64.b64decode(request.payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise VerificationFailed(f"The payload of {path} is not base64.", why=str(error)) from error
    if digest(payload) != request.digest:
        raise VerificationFailed(f"The payload of {path} has another digest than it says.")
    return payload


def policy_changes(keyring: VerifiedKeyring, present: Envelope | None, document: Policy) -> list[str]:
    """Say what a policy changes. One that does not verify is no measure: then all of the new one is shown."""
    if present is None:
        return policy_differences(None, document)
    try:
        before = open_policy(present, keyring, document.app, states=ACTIVE_OR_RETIRED).document
    except VerificationFailed as error:
        return [f"the present policy does not verify: {error.what}", *policy_differences(None, document)]
    return policy_differences(before, document)


def _check_follows(document: Policy, present: Envelope | None) -> None:
    expected: tuple[int, str | None] = (1, None)
    if present is not None:
        before = open_document(present, POLICY_PAYLOAD_TYPE, Policy, "The present policy")
        expected = (before.version + 1, digest(payload_of(present)))
    if (document.version, document.previous) != expected:
        raise VerificationFailed(f"The policy in the request does not follow the present policy of {document.app}.")


def _principal(opened: Opened, signer: Signer) -> str:
    """Give as whom a key would sign; only those who are asked to may."""
    asked = {name for who in opened.shown.signers for name in who.principals}
    documents = [opened.keyring.document, *([opened.document] if isinstance(opened.document, Keyring) else [])]
    for document in documents:
        name = VerifiedKeyring(document, "", b"", None).principal_of(signer.public_pem)
        if name in asked and name is not None:
            return name
    raise UsageError(
        f"The key {signer.uri} is not one of those that have to sign.",
        why="; ".join(f"{who.threshold} of {', '.join(who.principals)} ({who.why})" for who in opened.shown.signers),
        fix="Use the key of one of them: --signer URI",
    )
