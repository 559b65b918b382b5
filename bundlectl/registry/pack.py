"""A bundle in one object, so that a cold start needs one read.

The form: the line ``bundlectl-pack 1 <length of the manifest in bytes>``, the manifest, then the layers'
bytes in the manifest's order, each digest once and the empty config left out. The manifest says where each
layer ends, so there is nothing else to trust.
"""

from __future__ import annotations

import re

from bundlectl.model.bundle import EMPTY_DIGEST, Bundle, Manifest, open_bundle, open_manifest
from bundlectl.model.errors import VerificationFailed

_LINE = re.compile(rb"bundlectl-pack 1 (0|[1-9][0-9]{0,8})\n")


def pack(bundle: Bundle) -> bytes:
    """Give the one object; a function of the bundle's bytes alone."""
    parts = [b"bundlectl-pack 1 %d\n" % len(bundle.manifest_bytes), bundle.manifest_bytes]
    parts += [bundle.blobs[digest] for digest, _ in _layers(bundle.manifest)]
    return b"".join(parts)


def unpack(data: bytes, expected: str) -> Bundle:
    """Take it apart and check every byte.

    Raises:
        VerificationFailed: it is not the pack of ``expected``, whole and without anything added.
    """
    line = _LINE.match(data)
    if line is None:
        raise VerificationFailed(f"The pack of {expected} does not begin as a pack does.")
    at = line.end() + int(line[1])
    manifest_bytes = data[line.end() : at]
    blobs: dict[str, bytes] = {}
    for digest, size in _layers(open_manifest(manifest_bytes, expected)):
        blobs[digest] = data[at : at + size]
        at += size
    if at != len(data):
        raise VerificationFailed(
            f"The pack of {expected} has {len(data)} bytes, and its manifest says {at}.",
        )
    return open_bundle(manifest_bytes, blobs, expected)


def _layers(manifest: Manifest) -> list[tuple[str, int]]:
    sizes: dict[str, int] = {}
    for layer in manifest.layers:
        if layer.digest != EMPTY_DIGEST:
            sizes.setdefault(layer.digest, layer.size)
    return list(sizes.items())
