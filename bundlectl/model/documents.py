"""Documents, chunks and snapshots: what retrieval searches, and what a bundle pins of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bundlectl.model.canonical import canonical, digest
from bundlectl.model.components import Embedding
from bundlectl.model.types import Digest, Name, Principal, RelativePath, StoreName, Strict, Time

EVERYONE = "*"
"""Tenant or role that stands for all."""


class Acl(Strict):
    """Who may see a document: one tenant or ``*``, one scope, roles or ``*``."""

    tenant: str
    scope: Name
    roles: list[str] = Field(min_length=1)


class Chunk(Strict):
    """A piece of one section. ``start`` and ``end`` are character offsets in the document's text."""

    id: str
    document: RelativePath
    version: Digest
    title: str
    section: list[str]
    text: str
    start: int
    end: int
    tokens: int
    acl: Acl
    updated: str | None = None

    def digest(self) -> str:
        """Digest of everything that is served or decided on; the snapshot lists it."""
        return digest(canonical(self.form()))


class DocumentVersion(Strict):
    """One document as it was indexed. ``version`` is the digest of its text and labels."""

    document: RelativePath
    version: Digest
    title: str
    acl: Acl
    updated: str | None = None
    chunks: list[Digest]
    sections: list[SectionVersion]


class SectionVersion(Strict):
    """A section of a document: heading path, how often that path came before, digest of its normalised text."""

    path: list[str]
    ordinal: int
    digest: Digest


DocumentVersion.model_rebuild()


class Chunking(Strict):
    """How sections are cut: at most this many tokens, with this many repeated."""

    tokens: Annotated[int, Field(ge=16, le=4000)] = 180
    overlap: Annotated[int, Field(ge=0, le=1000)] = 0


class Snapshot(Strict):
    """One immutable state of an index. Its digest is of its canonical bytes; the indexer signs them."""

    apiVersion: Literal["bundlectl/v1"] = "bundlectl/v1"
    kind: Literal["Snapshot"] = "Snapshot"
    index: Name
    chunking: Chunking
    embedding: Embedding
    documents: list[DocumentVersion]


class IndexPointer(Strict):
    """Which snapshot of an index is the newest, and when its source was last checked. The indexer signs it."""

    apiVersion: Literal["bundlectl/v1"] = "bundlectl/v1"
    kind: Literal["IndexPointer"] = "IndexPointer"
    app: StoreName
    index: Name
    snapshot: Digest
    documents: Annotated[int, Field(ge=0)]
    checked: Time
    actor: Principal


TABLES_LIST = "files.json"
"""The name of the list beside a snapshot's tables."""


class TableFile(Strict):
    """One file of the tables."""

    path: RelativePath
    size: Annotated[int, Field(ge=0)]
    digest: Digest


class TableFiles(Strict):
    """Every file of a snapshot's tables."""

    files: list[TableFile]


class IndexSourceEntry(Strict):
    """Files of one scope. Labels not given here come from each file's front matter."""

    scope: Name
    include: list[str] = Field(min_length=1)
    tenant: str | None = None
    roles: list[str] | None = None


class IndexSource(Strict):
    """An index source file: where its documents come from and how they are cut and embedded.

    ``base`` is relative to the file; document keys are paths relative to ``base``.
    """

    apiVersion: Literal["bundlectl/v1"]
    kind: Literal["IndexSource"]
    index: Name
    base: str = "."
    sources: list[IndexSourceEntry] = Field(min_length=1)
    chunking: Chunking = Chunking()
    embedding: Embedding
