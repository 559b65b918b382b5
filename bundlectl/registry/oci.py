"""A bundle and its attestations as an OCI image layout (``oci:DIR``), and back.

https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md. The layout's ``index.json`` names one
image index; that names the bundle's manifest first, then one manifest per attestation: an artifact whose
``subject`` is the bundle and whose one layer is the DSSE envelope. So ``skopeo copy --all`` carries everything
and keeps every digest, and a registry that knows referrers finds them by the subject.

Every descriptor has a media type, a digest and a size only: Debian's skopeo rewrites richer ones. A copy
without ``--all`` takes the index's first manifest, the bundle, and leaves the attestations behind: what is
then imported is whole as a bundle, and :attr:`Imported.missing` says what is not there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bundlectl.model.attestation import KINDS, OTHER_KIND, Envelope
from bundlectl.model.bundle import (
    EMPTY_BYTES,
    EMPTY_DIGEST,
    EMPTY_TYPE,
    MANIFEST_TYPE,
    MAX_LAYER,
    Bundle,
    Descriptor,
    open_bundle,
    open_manifest,
)
from bundlectl.model.canonical import canonical, digest, hex_of, parse_json
from bundlectl.model.errors import BackendUnavailable, NotFound, UsageError, VerificationFailed
from bundlectl.model.types import Digest, Strict, wrong_fields
from bundlectl.registry.collecting import needs_of, spare
from bundlectl.registry.registry import Registry, check_app
from bundlectl.trust.envelope import envelope_bytes, open_statement, parse_envelope

INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
ATTESTATION_TYPE: Final = "application/vnd.in-toto+json"
ENVELOPE_TYPE: Final = "application/vnd.dsse.envelope.v1+json"

_LAYOUT = canonical({"imageLayoutVersion": "1.0.0"})
_MAX_BLOB = max(MAX_LAYER, 4 * 1024 * 1024)
_WITH_ALL = "Copy again with everything: skopeo copy --all"


class _Index(Strict):
    schemaVersion: Literal[2] = 2
    mediaType: Literal["application/vnd.oci.image.index.v1+json"] | None = None
    manifests: list[Descriptor] = Field(max_length=1000)


class _Named(BaseModel):
    """A descriptor of ``index.json``. Nothing digests that file, and tools add names and platforms to it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    mediaType: str
    digest: Digest
    size: int = Field(ge=0)


class _Top(BaseModel):
    """The layout's ``index.json``."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    schemaVersion: Literal[2]
    manifests: list[_Named] = Field(max_length=1000)


class _AttestationManifest(Strict):
    schemaVersion: Literal[2] = 2
    mediaType: Literal["application/vnd.oci.image.manifest.v1+json"] = MANIFEST_TYPE
    artifactType: Literal["application/vnd.in-toto+json"] = ATTESTATION_TYPE
    config: Descriptor
    layers: list[Descriptor] = Field(min_length=1, max_length=1)
    subject: Descriptor


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    bundle: str
    index: str
    """Digest of the image index: what a copy with ``--all`` is named by in another registry."""
    attestations: int


@dataclass(frozen=True, slots=True)
class Imported:
    """What was stored."""

    bundle: str
    attestations: int
    missing: tuple[str, ...]
    """What the layout should hold and does not, each in a sentence; empty when it is whole."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """A layout whose every byte was checked against the digest that names it."""

    bundle: Bundle
    attestations: list[Envelope]
    missing: tuple[str, ...]


def export(registry: Registry, app: str, bundle_digest: str, folder: Path) -> Exported:
    """Write a bundle and everything attested about it as a layout. The same content gives the same bytes.

    Args:
        registry: where it is.
        app: whose it is.
        bundle_digest: which.
        folder: a folder that does not exist yet or is empty.

    Raises:
        UsageError: the folder holds something.
        NotFound, VerificationFailed: the bundle or an attestation is not there, whole.
        BackendUnavailable: it could not be written.
    """
    bundle = registry.get_bundle(app, bundle_digest)
    blobs = {digest(data): data for data in bundle.blobs.values()}
    blobs[bundle.digest] = bundle.manifest_bytes
    blobs[EMPTY_DIGEST] = EMPTY_BYTES
    subject = _descriptor(MANIFEST_TYPE, bundle.manifest_bytes)
    listed = [subject]
    for _, _, envelope in registry.attestations(app, bundle_digest):
        data = envelope_bytes(envelope)
        manifest = _AttestationManifest(
            config=_descriptor(EMPTY_TYPE, EMPTY_BYTES), layers=[_descriptor(ENVELOPE_TYPE, data)], subject=subject
        )
        manifest_bytes = canonical(manifest.form())
        blobs |= {digest(data): data, digest(manifest_bytes): manifest_bytes}
        listed.append(_descriptor(MANIFEST_TYPE, manifest_bytes))
    index = _index(listed)
    blobs[digest(index)] = index
    _write(folder, blobs, _index([_descriptor(INDEX_TYPE, index)]))
    return Exported(bundle.digest, digest(index), len(listed) - 1)


def import_(folder: Path, registry: Registry, app: str) -> Imported:
    """Check a layout's every byte, then store its bundle and attestations.

    Signatures are not judged here: what counts is decided when it is verified or promoted.

    Raises:
        NotFound: there is no layout.
        VerificationFailed: a byte, a form or a subject is wrong, or the bundle is another app's.
    """
    found = _read(folder)
    check_app(found.bundle, app)
    spare(registry.store, app, needs_of(found.bundle))
    registry.put_bundle(app, found.bundle)
    for envelope in found.attestations:
        kind = KINDS.get(open_statement(envelope).predicateType, OTHER_KIND)
        registry.attach(app, found.bundle.digest, kind, envelope)
    return Imported(found.bundle.digest, len(found.attestations), found.missing)


def read_layout(folder: Path) -> tuple[Bundle, list[Envelope], tuple[str, ...]]:
    """Check a layout's every byte without storing it; give its bundle, its attestations and what it lacks.

    Raises:
        NotFound, VerificationFailed: as for :func:`import_`.
    """
    layout = _read(folder)
    return layout.bundle, layout.attestations, layout.missing


def missing_from(folder: Path) -> tuple[str, ...]:
    """Check a layout without storing it; give what it should hold and does not.

    Raises:
        NotFound, VerificationFailed: as for :func:`import_`.
    """
    return _read(folder).missing


# ---------------------------------------------------------------- reading


def _read(folder: Path) -> _Layout:
    marker = parse_json(_bytes_of(folder / "oci-layout", 4096), what=f"{folder}/oci-layout")
    if not isinstance(marker, dict) or marker.get("imageLayoutVersion") != "1.0.0":
        raise VerificationFailed(f"{folder} is not an OCI image layout of version 1.0.0.")
    what = f"{folder}/index.json"
    try:
        top = _Top.model_validate(parse_json(_bytes_of(folder / "index.json", _MAX_BLOB), what=what))
    except ValidationError as error:
        raise VerificationFailed(f"{what} is not an image layout's index.", why=wrong_fields(error)) from error
    if len(top.manifests) != 1:
        raise VerificationFailed(
            f"{folder} names {len(top.manifests)} images; an exported bundle is one.",
            fix="Copy it into a folder of its own.",
        )
    [named] = top.manifests
    root = Descriptor(mediaType=named.mediaType, digest=named.digest, size=named.size)
    if root.mediaType == MANIFEST_TYPE:
        missing = (
            "The index that lists the attestations: this is a copy of the bundle's manifest alone. " + _WITH_ALL + ".",
        )
        return _Layout(_bundle(folder, root), [], missing)
    if root.mediaType != INDEX_TYPE:
        raise VerificationFailed(f"{folder} holds a {root.mediaType}, which is no exported bundle.")
    what = f"The index {root.digest}"
    try:
        index = _Index.model_validate(parse_json(_blob(folder, root), what=what))
    except ValidationError as error:
        raise VerificationFailed(
            f"{what} does not have the form of an exported bundle's.",
            why=wrong_fields(error),
            fix="Export it again, and copy with a tool that keeps bytes: skopeo copy --all",
        ) from error
    if not index.manifests:
        raise VerificationFailed(f"{what} lists no bundle.")
    first, *others = index.manifests
    bundle = _bundle(folder, first)
    attestations: list[Envelope] = []
    lost: list[str] = []
    for descriptor in others:
        try:
            attestations.append(_attestation(folder, descriptor, bundle.digest))
        except NotFound:
            lost.append(f"The attestation {descriptor.digest}, which the index lists. {_WITH_ALL}.")
    return _Layout(bundle, attestations, tuple(lost))


def _bundle(folder: Path, descriptor: Descriptor) -> Bundle:
    manifest_bytes = _blob(folder, descriptor)
    manifest = open_manifest(manifest_bytes, descriptor.digest)
    try:
        blobs = {layer.digest: _blob(folder, layer) for layer in [manifest.config, *manifest.layers]}
    except NotFound as error:
        raise VerificationFailed(f"Bundle {descriptor.digest} is not whole in {folder}.", why=error.what) from error
    return open_bundle(manifest_bytes, blobs, descriptor.digest)


def _attestation(folder: Path, descriptor: Descriptor, bundle: str) -> Envelope:
    what = f"attestation manifest {descriptor.digest}"
    try:
        manifest = _AttestationManifest.model_validate(parse_json(_blob(folder, descriptor), what=what))
    except ValidationError as error:
        raise VerificationFailed(f"{what} does not have its form.", why=wrong_fields(error)) from error
    if manifest.subject.digest != bundle:
        raise VerificationFailed(f"{what} is about {manifest.subject.digest}, and the bundle is {bundle}.")
    envelope = parse_envelope(_blob(folder, manifest.layers[0]), f"the envelope of {what}")
    if open_statement(envelope).bundle != bundle:
        raise VerificationFailed(f"The statement in {what} is about another bundle than its subject says.")
    return envelope


def _blob(folder: Path, descriptor: Descriptor) -> bytes:
    if descriptor.size > _MAX_BLOB:
        raise VerificationFailed(f"{descriptor.digest} is {descriptor.size} bytes; at most {_MAX_BLOB} are read.")
    data = _bytes_of(folder / "blobs" / "sha256" / hex_of(descriptor.digest), _MAX_BLOB)
    if len(data) != descriptor.size or digest(data) != descriptor.digest:
        raise VerificationFailed(f"{descriptor.digest} in {folder} has other bytes than its digest says.")
    return data


def _bytes_of(path: Path, limit: int) -> bytes:
    """Read a regular file; a symlink could lead out of the layout, and a FIFO would never end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise VerificationFailed(f"{path} is not a regular file.")
            data = file.read(limit + 1)
    except FileNotFoundError as error:
        raise NotFound(
            f"{path} does not exist.", fix="Name a folder that export wrote or skopeo copied: oci:DIR"
        ) from error
    except OSError as error:
        raise VerificationFailed(f"{path} cannot be read.", why=error.strerror or str(error)) from error
    if len(data) > limit:
        raise VerificationFailed(f"{path} is over {limit} bytes.")
    return data


# ---------------------------------------------------------------- writing


def _descriptor(media_type: str, data: bytes) -> Descriptor:
    return Descriptor(mediaType=media_type, digest=digest(data), size=len(data))


def _index(manifests: list[Descriptor]) -> bytes:
    return canonical(_Index(mediaType=INDEX_TYPE, manifests=manifests).form())


def _write(folder: Path, blobs: dict[str, bytes], index: bytes) -> None:
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} already holds something.", fix="Export into a new or empty folder.")
        for path, data in _files(folder, blobs, index):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    except OSError as error:
        raise BackendUnavailable(
            f"The layout could not be written to {folder}.", why=error.strerror or str(error)
        ) from error


def _files(folder: Path, blobs: dict[str, bytes], index: bytes) -> Iterator[tuple[Path, bytes]]:
    # index.json last: until it is there, the folder is no layout to anybody.
    yield folder / "oci-layout", _LAYOUT
    for name in sorted(blobs):
        yield folder / "blobs" / "sha256" / hex_of(name), blobs[name]
    yield folder / "index.json", index
