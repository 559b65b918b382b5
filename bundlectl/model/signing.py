"""Signing requests: what goes to a machine that is kept offline, and what it remembers of what it signed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bundlectl.model.attestation import Envelope
from bundlectl.model.types import Digest, Principal, StoreName, Strict


class WhoSigns(Strict):
    """A threshold that has to be met, and who can help to meet it."""

    why: str
    principals: list[Principal]
    threshold: Annotated[int, Field(ge=1)]


class SigningRequest(Strict):
    """The exact bytes that are to be signed, and all that is needed to judge them without the registry.

    ``payload`` is base64 of the document's canonical bytes, and ``digest`` of those bytes. ``summary`` says what
    changes; whoever signs works it out again and refuses a request that says something else. ``keyrings`` are
    every version from 1 to the present one, ``policy`` the app's present policy.
    """

    apiVersion: Literal["bundlectl/v1"] = "bundlectl/v1"
    kind: Literal["SigningRequest"] = "SigningRequest"
    document: Literal["keyring", "policy"]
    app: StoreName | None = None
    version: Annotated[int, Field(ge=1)]
    payload: str
    digest: Digest
    summary: list[str]
    signers: list[WhoSigns] = Field(min_length=1)
    keyrings: list[Envelope] = Field(min_length=1)
    policy: Envelope | None = None


class LastSigned(Strict):
    """A version and the digest of its payload."""

    version: Annotated[int, Field(ge=1)]
    digest: Digest


class SignedBefore(Strict):
    """The newest version that a machine signed of each line (``keyring REGISTRY-ID``, ``policy REGISTRY-ID APP``)."""

    lines: dict[str, LastSigned] = {}
