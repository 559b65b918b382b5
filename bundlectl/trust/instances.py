"""The Sigstore instances that root trusts: the rules that they keep in a keyring, without Sigstore's own code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bundlectl.model.canonical import canonical, digest
from bundlectl.model.errors import VerificationFailed
from bundlectl.model.sigstore import SigstoreInstance

TRUSTED_ROOT_TYPE: Final = "application/vnd.dev.sigstore.trustedroot+json;version=0.1"
MAX_TRUSTED_ROOT: Final = 128 * 1024
"""Bytes of a trusted root in canonical JSON; the public instance's has 6 KB."""


def vouches(instances: Sequence[SigstoreInstance], issuer: str) -> SigstoreInstance | None:
    """Give the instance that may vouch for the identities of an issuer; None when there is none."""
    return next((one for one in instances if issuer in one.issuers), None)


def root_digest(instance: SigstoreInstance) -> str:
    """Give the digest of an instance's trusted root in canonical JSON: what two people compare."""
    return digest(canonical(instance.trusted_root))


def check_instances(instances: Sequence[SigstoreInstance], what: str) -> None:
    """Check that names and issuers are said once, and that each trusted root is of the kind that is known.

    An issuer has one instance, so that nobody can have the identities of one certified by another. Whether the trusted
    root can be used is judged where it is used, and before root signs it.

    Raises:
        VerificationFailed: they are not.
    """
    for label, values in (
        ("the Sigstore instance", [one.name for one in instances]),
        ("a Sigstore instance for the issuer", [issuer for one in instances for issuer in one.issuers]),
    ):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise VerificationFailed(f"{what} names {label} {twice[0]!r} twice.")
    for one in instances:
        known = one.trusted_root.get("mediaType") == TRUSTED_ROOT_TYPE
        try:
            size = len(canonical(one.trusted_root))
        except ValueError as error:
            raise VerificationFailed(
                f"{what}: the trusted root of the Sigstore instance {one.name!r} holds what has no form.",
                why=str(error),
            ) from error
        if not known or size > MAX_TRUSTED_ROOT:
            raise VerificationFailed(
                f"{what}: what the Sigstore instance {one.name!r} has as trusted root is none.",
                why=f"It is a {TRUSTED_ROOT_TYPE} of at most {MAX_TRUSTED_ROOT} bytes.",
            )
