"""Build an index: documents to a snapshot and its tables; and open one that was built.

A snapshot is a function of the documents, the settings and nothing else; its tables lie in a folder named
after its digest and never change. Building the same state again finds them there and does no work.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bundlectl.inference.embeddings import Embedder
from bundlectl.model.canonical import canonical, digest, hex_of
from bundlectl.model.components import Embedding
from bundlectl.model.documents import Chunk, Chunking, DocumentVersion, SectionVersion, Snapshot
from bundlectl.model.errors import BundlectlError, UsageError
from bundlectl.retrieval.chunking import cut, searched_text
from bundlectl.retrieval.documents import Document
from bundlectl.retrieval.search import Index
from bundlectl.retrieval.tables import open_tables, reported, write_tables

BATCH = 256
"""Texts per call of the embedder."""


def snapshot_digest(snapshot: Snapshot) -> str:
    """Give the digest that bundles pin and folders are named after: of the snapshot's canonical bytes."""
    return digest(canonical(snapshot.form()))


def build_index(
    index: str,
    documents: Sequence[Document],
    *,
    chunking: Chunking,
    embedding: Embedding,
    embedder: Embedder,
    folder: Path,
) -> Snapshot:
    """Write the documents' tables to ``folder/<snapshot hex>/``, whole or not at all.

    Args:
        index: the index's logical name.
        documents: as :func:`~bundlectl.retrieval.documents.read_documents` gives them.
        chunking: how to cut.
        embedding: the settings that ``embedder`` was made from; they become part of the snapshot.
        embedder: makes the vectors; not called when the folder is there and whole.
        folder: where snapshots of this index lie; made when missing.

    Raises:
        UsageError: no documents, two with one key, or vectors of the wrong dimension.
        BackendUnavailable: the folder cannot be written.
    """
    if not documents:
        raise UsageError(f"The index '{index}' has no documents.", fix="Give its source files to include.")
    ordered = sorted(documents, key=lambda document: document.key)
    if len({document.key for document in ordered}) < len(ordered):
        raise UsageError(f"The index '{index}' has two documents with one key.")
    pieces = {document.key: cut(document, chunking) for document in ordered}
    snapshot = Snapshot(
        index=index,
        chunking=chunking,
        embedding=embedding,
        documents=[_version(document, pieces[document.key]) for document in ordered],
    )
    target = folder / hex_of(snapshot_digest(snapshot))
    if _whole(target, snapshot):
        return snapshot
    chunks = [chunk for document in ordered for chunk in pieces[document.key]]
    vectors = _embed(chunks, embedding, embedder)
    with reported(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".building-", dir=folder))
    try:
        write_tables(str(made), chunks, vectors, embedding.dimensions)
        with reported(str(folder)):
            _put_in_place(made, target, snapshot)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return snapshot


def open_index(
    folder: Path | str,
    snapshot: Snapshot,
    embedder: Embedder | None,
    *,
    storage_options: Mapping[str, str] | None = None,
) -> Index:
    """Open the tables of a snapshot.

    Args:
        folder: a folder or ``s3://`` address that holds snapshots by their hex digest.
        snapshot: the verified snapshot; what the tables say is believed only as far as it agrees.
        embedder: needed for modes and reranking that use vectors.
        storage_options: LanceDB's, for an object store.

    Raises:
        NotFound: the snapshot is not there.
        BackendUnavailable: it cannot be read.
        UsageError: the embedder makes vectors of another dimension.
    """
    if embedder is not None and embedder.dimensions != snapshot.embedding.dimensions:
        raise UsageError(
            f"The embedder makes vectors of {embedder.dimensions} dimensions, "
            f"and index '{snapshot.index}' has {snapshot.embedding.dimensions}.",
            fix="Use the embedding that the index was built with, or build it again.",
        )
    name = snapshot_digest(snapshot)
    where = f"{str(folder).rstrip('/')}/{hex_of(name)}"
    table, partitions = open_tables(where, dict(storage_options) if storage_options else None)
    return Index(table, partitions, snapshot, name, where, embedder)


def section_digest(text: str) -> str:
    """Give the digest of a section's text; white space counts once, so that reflowing changes nothing."""
    return digest(" ".join(text.split()).encode())


def _version(document: Document, chunks: Sequence[Chunk]) -> DocumentVersion:
    return DocumentVersion(
        document=document.key,
        version=document.version,
        title=document.title,
        acl=document.acl,
        updated=document.updated,
        chunks=[chunk.digest() for chunk in chunks],
        sections=[
            SectionVersion(
                path=list(section.path),
                ordinal=section.ordinal,
                digest=section_digest(document.text[section.start : section.end]),
            )
            for section in document.sections
        ],
    )


def _embed(chunks: Sequence[Chunk], embedding: Embedding, embedder: Embedder) -> list[list[float]]:
    vectors: list[list[float]] = []
    for start in range(0, len(chunks), BATCH):
        vectors += embedder.embed([searched_text(chunk) for chunk in chunks[start : start + BATCH]])
    wrong = {len(vector) for vector in vectors} - {embedding.dimensions}
    if wrong or len(vectors) != len(chunks):
        raise UsageError(
            f"The embedder gave vectors of {sorted(wrong)} dimensions, and {embedding.dimensions} were declared."
            if wrong
            else f"The embedder gave {len(vectors)} vectors for {len(chunks)} chunks.",
            fix="Set embedding.dimensions to what the model gives.",
        )
    return vectors


def _whole(target: Path, snapshot: Snapshot) -> bool:
    """Say whether a folder holds exactly the chunks of the snapshot; a damaged one is built again."""
    if not target.is_dir():
        return False
    try:
        table, _ = open_tables(str(target))
        with reported(str(target)):
            forms = table.search().select(["form"]).to_arrow()["form"].to_pylist()
            found = sorted(digest(form) for form in forms)
    except BundlectlError:
        return False
    return found == sorted(listed for document in snapshot.documents for listed in document.chunks)


def _put_in_place(made: Path, target: Path, snapshot: Snapshot) -> None:
    """Make the tables durable and give them their name; whoever comes second leaves the first's."""
    for folder, _, files in os.walk(made):
        for name in (*files, "."):
            handle = os.open(Path(folder) / name, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    try:
        made.rename(target)
    except OSError:
        if _whole(target, snapshot):
            return
        if not target.is_dir():
            raise
        damaged = Path(tempfile.mkdtemp(prefix=".damaged-", dir=target.parent))
        target.rename(damaged / "tables")
        made.rename(target)
        shutil.rmtree(damaged, ignore_errors=True)
    handle = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
