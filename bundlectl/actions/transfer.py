"""export and import: a bundle with its attestations as an OCI layout, for skopeo and registries."""

from __future__ import annotations

from pathlib import Path

from bundlectl.model.errors import UsageError
from bundlectl.model.types import Strict

SCHEME = "oci:"


class Transferred(Strict):
    """What was written or read."""

    reference: str
    app: str
    bundle: str
    layout: str
    attestations: int
    missing_attestations: int | None = None
    warnings: list[str] = []


def oci_folder(target: str) -> Path:
    """Read ``oci:DIR``.

    Raises:
        UsageError: it has another form.
    """
    if not target.startswith(SCHEME) or len(target) == len(SCHEME):
        raise UsageError(f"{target!r} is not an OCI layout.", fix="Write oci:DIR, e.g. oci:./support")
    return Path(target.removeprefix(SCHEME))
