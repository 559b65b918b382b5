"""What a keyless signature brings along, and what root says of the Sigstore instances that may vouch for identities.

The signature extension of DSSE 1.1 (https://github.com/secure-systems-lab/dsse/blob/master/extensions.md) holds
Sigstore's ``VerificationMaterial`` (protobuf-specs, ``sigstore_bundle.proto``) in the JSON form of a bundle v0.3: one
leaf certificate, one log entry with its proof, and signed timestamps where there are any. Fields that nothing here
reads are refused, and base64 has one spelling, so that one signature has one form.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from bundlectl.model.types import Name, Strict

MATERIAL_KIND: Final = "application/vnd.dev.sigstore.verificationmaterial;version=0.1"


def _one_spelling(text: str) -> str:
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise ValueError(f"not base64: {error}") from error
    if not data or base64.b64encode(data).decode("ascii") != text:
        raise ValueError("not in the one spelling of base64, or empty")
    return text


Base64 = Annotated[str, Field(max_length=32 * 1024), AfterValidator(_one_spelling)]
"""Standard base64 of at least one byte."""

Hash = Annotated[str, Field(max_length=64), AfterValidator(_one_spelling)]
"""Standard base64 of a digest."""

Count = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,18})$")]
"""A whole number as protobuf's JSON writes 64 bits: in a string."""


class RawBytes(Strict):
    """A certificate in DER."""

    rawBytes: Base64


class LogId(Strict):
    """A log: the digest of its public key."""

    keyId: Hash


class KindVersion(Strict):
    """What kind of entry it is; only ``hashedrekord`` verifies."""

    kind: Annotated[str, Field(max_length=64)]
    version: Annotated[str, Field(max_length=64)]


class InclusionPromise(Strict):
    """The log's signature over the entry and its time."""

    signedEntryTimestamp: Base64


class Checkpoint(Strict):
    """The log's signed note on its size and root."""

    envelope: Annotated[str, Field(max_length=16 * 1024)]


class InclusionProof(Strict):
    """The path from the entry to the checkpoint's root (RFC 6962)."""

    logIndex: Count
    rootHash: Hash
    treeSize: Count
    hashes: Annotated[list[Hash], Field(max_length=64)] = []
    checkpoint: Checkpoint


class LogEntry(Strict):
    """One entry of a transparency log. Without a promise, the time comes from a signed timestamp."""

    logIndex: Count
    logId: LogId
    kindVersion: KindVersion
    integratedTime: Count | None = None
    inclusionPromise: InclusionPromise | None = None
    inclusionProof: InclusionProof
    canonicalizedBody: Base64

    @model_validator(mode="after")
    def _both(self) -> LogEntry:
        if (self.inclusionPromise is None) != (self.integratedTime in (None, "0")):
            raise ValueError("a log's promise and its time come together: the promise is what signs the time")
        return self


class SignedTimestamp(Strict):
    """A timestamp authority's reply (RFC 3161) in DER."""

    signedTimestamp: Base64


class Timestamps(Strict):
    """Signed timestamps over the signature."""

    rfc3161Timestamps: Annotated[list[SignedTimestamp], Field(min_length=1, max_length=4)]


class VerificationMaterial(Strict):
    """Who signed, as a certificate authority says, and when, as a log says."""

    certificate: RawBytes
    tlogEntries: Annotated[list[LogEntry], Field(min_length=1, max_length=1)]
    timestampVerificationData: Timestamps | None = None


class SignatureExtension(Strict):
    """DSSE's signature extension: what is needed to judge a signature whose key lived for minutes. Nobody signs it."""

    kind: Literal["application/vnd.dev.sigstore.verificationmaterial;version=0.1"] = MATERIAL_KIND
    ext: VerificationMaterial


class SigstoreInstance(Strict):
    """A Sigstore instance that root trusts, and the OIDC issuers whose identities it may vouch for.

    ``trusted_root`` is Sigstore's own document (``trustedroot+json;version=0.1``): certificate authorities, CT logs,
    transparency logs and timestamp authorities, each with the time in which it counts. It is part of what root signs,
    so no machine that verifies asks anybody for it.
    """

    name: Name
    issuers: Annotated[list[Annotated[str, Field(min_length=1, max_length=500)]], Field(min_length=1, max_length=64)]
    trusted_root: dict[str, Any]
