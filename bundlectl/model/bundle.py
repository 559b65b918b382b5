"""A bundle as it is held in memory: manifest, components, files; identity = sha256 of the manifest bytes.

The manifest is an OCI image manifest v1.1 (https://github.com/opencontainers/image-spec/blob/v1.1.0/manifest.md)
with an artifactType, the empty config, one layer per component and one per file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

from pydantic import Field, TypeAdapter, ValidationError

from bundlectl.model.canonical import canonical, digest, parse_json
from bundlectl.model.components import (
    COMPONENTS,
    Access,
    Application,
    Embedding,
    Evaluation,
    Guardrails,
    Models,
    Outputs,
    Prompts,
    Retrievals,
    Routes,
)
from bundlectl.model.errors import VerificationFailed
from bundlectl.model.types import Digest, Strict, wrong_fields

ARTIFACT_TYPE: Final = "application/vnd.bundlectl.bundle.v1+json"
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY_BYTES = b"{}"
EMPTY_DIGEST = digest(EMPTY_BYTES)
FILE_TYPE = "application/vnd.bundlectl.file.v1"

MAX_LAYER = 4 * 1024 * 1024
MAX_LAYERS = 200


def component_type(name: str) -> str:
    """Give the media type of a component's layer."""
    return f"application/vnd.bundlectl.{name}.v1+json"


class Descriptor(Strict):
    """An OCI content descriptor: media type, digest, size in bytes; nothing else."""

    mediaType: str
    digest: Digest
    size: int = Field(ge=0)


class Manifest(Strict):
    """The OCI image manifest of a bundle."""

    schemaVersion: Literal[2] = 2
    mediaType: Literal["application/vnd.oci.image.manifest.v1+json"] = MANIFEST_TYPE
    artifactType: Literal["application/vnd.bundlectl.bundle.v1+json"] = ARTIFACT_TYPE
    config: Descriptor
    layers: list[Descriptor] = Field(max_length=MAX_LAYERS)


@dataclass(frozen=True, slots=True)
class Components:
    """Every component, parsed."""

    access: Access
    application: Application
    embedding: Embedding | None
    evaluation: Evaluation
    guardrails: Guardrails
    models: Models
    output: Outputs
    prompts: Prompts
    retrieval: Retrievals
    routes: Routes


_ADAPTERS: dict[str, TypeAdapter[Any]] = {
    "access": TypeAdapter(Access),
    "application": TypeAdapter(Application),
    "embedding": TypeAdapter(Embedding | None),
    "evaluation": TypeAdapter(Evaluation),
    "guardrails": TypeAdapter(Guardrails),
    "models": TypeAdapter(Models),
    "output": TypeAdapter(Outputs),
    "prompts": TypeAdapter(Prompts),
    "retrieval": TypeAdapter(Retrievals),
    "routes": TypeAdapter(Routes),
}


def component_document(name: str, value: Any) -> bytes:
    """Give the canonical bytes of one component's layer."""
    dumped = _ADAPTERS[name].dump_python(value, mode="json", by_alias=True, exclude_none=True)
    return canonical(dumped)


class Bundle:
    """A whole bundle whose every byte was checked against its digests.

    Made by :func:`make_bundle` from components and files, or by :func:`open_bundle` from stored bytes.
    """

    def __init__(self, manifest_bytes: bytes, manifest: Manifest, blobs: Mapping[str, bytes]) -> None:
        self.manifest_bytes = manifest_bytes
        self.manifest = manifest
        self.blobs = dict(blobs)
        self.digest = digest(manifest_bytes)

    def component_digests(self) -> dict[str, str]:
        """Give each component's digest by its name; components that the bundle lacks are left out."""
        names = {component_type(name): name for name in COMPONENTS}
        return {names[d.mediaType]: d.digest for d in self.manifest.layers if d.mediaType in names}

    @cached_property
    def components(self) -> Components:
        """Parse the components.

        Raises:
            VerificationFailed: a component is missing or does not have its form.
        """
        digests = self.component_digests()
        parsed: dict[str, Any] = {}
        for name in COMPONENTS:
            if name not in digests:
                raise VerificationFailed(f"Bundle {self.digest} has no {name} component.")
            raw = parse_json(self.blobs[digests[name]], what=f"component {name} of {self.digest}")
            try:
                parsed[name] = _ADAPTERS[name].validate_python(raw)
            except ValidationError as error:
                raise VerificationFailed(
                    f"Component {name} of bundle {self.digest} does not have the form this version knows.",
                    why=wrong_fields(error),
                    fix="If it was built by a newer bundlectl, use that version or a newer one.",
                ) from error
        return Components(**parsed)

    def file(self, ref_digest: str) -> bytes:
        """Give a file layer's bytes by digest."""
        return self.blobs[ref_digest]


def make_bundle(components: Mapping[str, bytes], files: Mapping[str, bytes]) -> Bundle:
    """Assemble a bundle from component documents and files.

    Args:
        components: canonical bytes by component name; all of :data:`COMPONENTS`.
        files: bytes by path. The path is in the component that refers to the file, so two files with the
            same bytes are one layer.

    Returns:
        the bundle; the same input gives the same digest on every machine.
    """
    layers: list[Descriptor] = []
    blobs: dict[str, bytes] = {EMPTY_DIGEST: EMPTY_BYTES}
    for name in sorted(components):
        data = components[name]
        layers.append(Descriptor(mediaType=component_type(name), digest=digest(data), size=len(data)))
        blobs[digest(data)] = data
    for path in sorted(files):
        data = files[path]
        if digest(data) not in blobs:
            layers.append(Descriptor(mediaType=FILE_TYPE, digest=digest(data), size=len(data)))
            blobs[digest(data)] = data
    config = Descriptor(mediaType=EMPTY_TYPE, digest=EMPTY_DIGEST, size=len(EMPTY_BYTES))
    manifest = Manifest(config=config, layers=sorted(layers, key=lambda d: d.mediaType))
    manifest_bytes = canonical(manifest.form())
    return Bundle(manifest_bytes, manifest, blobs)


def open_manifest(manifest_bytes: bytes, expected: str) -> Manifest:
    """Check the bytes of a manifest against its digest and parse it.

    Raises:
        VerificationFailed: the digest or the form is wrong.
    """
    if digest(manifest_bytes) != expected:
        raise VerificationFailed(
            f"The manifest of {expected} has other bytes than its digest says.",
            why=f"They digest to {digest(manifest_bytes)}.",
        )
    try:
        return Manifest.model_validate(parse_json(manifest_bytes, what=f"manifest {expected}"))
    except ValidationError as error:
        raise VerificationFailed(f"{expected} is not a bundle manifest.", why=wrong_fields(error)) from error


def open_bundle(manifest_bytes: bytes, blobs: Mapping[str, bytes], expected: str) -> Bundle:
    """Check every stored byte of a bundle against its digests.

    Args:
        manifest_bytes: the manifest as stored.
        blobs: layer bytes by digest; the empty config may be left out.
        expected: the digest that was asked for.

    Raises:
        VerificationFailed: a digest or size is wrong, or a layer is missing.
    """
    manifest = open_manifest(manifest_bytes, expected)
    held: dict[str, bytes] = {EMPTY_DIGEST: EMPTY_BYTES}
    for descriptor in [manifest.config, *manifest.layers]:
        data = held.get(descriptor.digest, blobs.get(descriptor.digest))
        if data is None:
            raise VerificationFailed(f"Layer {descriptor.digest} of bundle {expected} is missing.")
        if len(data) != descriptor.size or digest(data) != descriptor.digest:
            raise VerificationFailed(
                f"Layer {descriptor.digest} of bundle {expected} has other bytes than its digest says."
            )
        held[descriptor.digest] = data
    return Bundle(manifest_bytes, manifest, held)
