"""Whoever signs through Sigstore's own client, with any instance and no check of ours: careless, or an attacker."""

from __future__ import annotations

import base64
from pathlib import Path

from sigstore.models import ClientTrustConfig
from sigstore.oidc import IdentityToken
from sigstore.sign import Signer, SigningContext

from bundlectl.model.attestation import Envelope, EnvelopeSignature
from bundlectl.trust.envelope import pae
from bundlectl.trust.sigstore_signer import _extension
from tests.support.fake_sigstore import FakeSigstore


def seal_anyhow(
    instance: FakeSigstore, folder: Path, token: Path, payload: bytes, payload_type: str, *, signed: bytes | None = None
) -> Envelope:
    """Seal a payload as whom the token names; with ``signed``, over another payload than the envelope's."""
    context = SigningContext.from_trust_config(ClientTrustConfig.from_json(instance.config(folder).read_text()))
    signer = Signer(IdentityToken(token.read_text().strip()), context)
    bundle = signer.sign_artifact(pae(payload_type, payload if signed is None else signed))
    made = EnvelopeSignature(sig=base64.b64encode(bundle.signature).decode(), extension=_extension(bundle))
    encoded = base64.b64encode(payload).decode()
    return Envelope(payload=encoded, payloadType=payload_type, signatures=[made])
