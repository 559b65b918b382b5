"""How one immutable object is put and read: there with our bytes, or a clear no.

An immutable object's key fixes its bytes, so finding it there already with the same bytes is success. With
other bytes it is damage or an attack, never a conflict to be retried.
"""

from __future__ import annotations

from bundlectl.model.canonical import digest
from bundlectl.model.errors import VerificationFailed
from bundlectl.storage.store import AlreadyThere, KeyMissing, OutcomeUnknown, Store

_ATTEMPTS = 3


def put_immutable(store: Store, key: str, data: bytes) -> bool:
    """Make sure that ``key`` holds ``data``; say whether it surely did not hold anything before.

    Raises:
        VerificationFailed: it holds other bytes.
        OutcomeUnknown: three attempts gave no answer; repeating is safe.
        StoreUnavailable: nothing was written.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            store.create(key, data)
        except AlreadyThere:
            if holds(store, key, data):
                return False
        except OutcomeUnknown:
            if holds(store, key, data):
                return False
            if attempt == _ATTEMPTS:
                raise
        else:
            return True
    # Reached when the object was there at each create and gone at each read.
    raise VerificationFailed(
        f"{key} is there and not there in turn.",
        why="Someone deletes it while it is being written.",
        fix="Look at who else writes to this registry, then repeat the command.",
    )


def holds(store: Store, key: str, data: bytes) -> bool:
    """Say whether ``key`` holds ``data``; False if there is no such object.

    Raises:
        VerificationFailed: it holds other bytes.
    """
    found = read_or_none(store, key)
    if found is None:
        return False
    if found != data:
        raise VerificationFailed(
            f"{key} already holds other bytes.",
            why=f"They digest to {digest(found)}, and what belongs there to {digest(data)}. It is damaged or forged.",
            fix="Restore it from a backup or an earlier version; if it was damaged, delete it and repeat.",
            details={"key": key, "found": digest(found), "expected": digest(data)},
        )
    return True


def read_or_none(store: Store, key: str) -> bytes | None:
    """Read an object; None if there is none."""
    try:
        return store.get(key).data
    except KeyMissing:
        return None


def check_digest(data: bytes, expected: str, key: str) -> bytes:
    """Give the bytes back if they are what their name says.

    Raises:
        VerificationFailed: they are not.
    """
    if digest(data) != expected:
        raise VerificationFailed(
            f"{key} has other bytes than its name says.",
            why=f"They digest to {digest(data)}. It is damaged or forged.",
            fix="Restore it from a backup or an earlier version of the object.",
            details={"key": key, "found": digest(data), "expected": expected},
        )
    return data
