"""The signed pointer at an index's newest snapshot: parse it, and believe it on an indexer's word."""

from __future__ import annotations

from pydantic import ValidationError

from bundlectl.model.attestation import SNAPSHOT_PAYLOAD_TYPE
from bundlectl.model.canonical import parse_document
from bundlectl.model.documents import IndexPointer, Snapshot
from bundlectl.model.errors import NotFound, VerificationFailed
from bundlectl.model.types import wrong_fields
from bundlectl.registry.registry import Registry
from bundlectl.trust.envelope import open_document, parse_envelope, signed_by
from bundlectl.trust.keyring import ACTIVE_OR_RETIRED, VerifiedKeyring


def parse_pointer(data: bytes) -> IndexPointer:
    """Parse a pointer's envelope; its signatures are not looked at.

    Raises:
        VerificationFailed: it is no pointer.
    """
    return open_document(
        parse_envelope(data, "index pointer"), SNAPSHOT_PAYLOAD_TYPE, IndexPointer, "The index pointer"
    )


def verify_pointer(data: bytes, keyring: VerifiedKeyring, app: str, index: str) -> IndexPointer:
    """Believe a pointer.

    Raises:
        VerificationFailed: no indexer of the app signed it, it is another index's, or its snapshot is blocked.
    """
    pointer = parse_pointer(data)
    indexers = keyring.principals("indexer", app, None, states=ACTIVE_OR_RETIRED)
    if not signed_by(parse_envelope(data, "index pointer"), indexers, keyring.sigstore):
        raise VerificationFailed(
            f"The pointer of index {index!r} is not signed by an indexer of {app}.",
            fix=f"Build the index again with an indexer's key: {', '.join(indexers) or 'the keyring names none'}.",
        )
    if (pointer.app, pointer.index) != (app, index):
        raise VerificationFailed(f"The pointer of index {index!r} is that of {pointer.app}/{pointer.index}.")
    reason = keyring.blocked(pointer.snapshot)
    if reason is not None:
        raise VerificationFailed(f"Root has blocked the newest snapshot of index {index!r}.", why=reason)
    return pointer


def read_pointer(registry: Registry, keyring: VerifiedKeyring, app: str, index: str) -> tuple[IndexPointer, bytes]:
    """Read and believe the pointer at an index's newest snapshot; its bytes beside it.

    Raises:
        NotFound: the index was never built.
        VerificationFailed: it cannot be believed.
    """
    stored = registry.index_pointer(app, index)
    if stored is None:
        raise NotFound(f"{app} has no index {index!r}.", fix="Build it: bundlectl index build FILE")
    return verify_pointer(stored.data, keyring, app, index), stored.data


def read_snapshot(registry: Registry, app: str, snapshot: str) -> Snapshot:
    """Read a snapshot by its digest.

    Raises:
        NotFound: it is not stored.
        VerificationFailed: its bytes are others, or not a snapshot.
    """
    return parse_snapshot(registry.get_blob(app, snapshot), snapshot)


def parse_snapshot(data: bytes, snapshot: str) -> Snapshot:
    """Parse a snapshot's bytes, whose digest was checked.

    Raises:
        VerificationFailed: they are no snapshot.
    """
    try:
        return Snapshot.model_validate(parse_document(data, what=f"snapshot {snapshot}"))
    except ValidationError as error:
        raise VerificationFailed(f"{snapshot} is not a snapshot.", why=wrong_fields(error)) from error
