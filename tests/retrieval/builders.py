"""Small documents and a cheap embedder, for tests that build indexes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

from bundlectl.inference.words import terms
from bundlectl.model.components import Embedding, Retrieval
from bundlectl.model.documents import Acl, Chunking, Snapshot
from bundlectl.retrieval.documents import Document, make_document
from bundlectl.retrieval.formats import read_markdown
from bundlectl.retrieval.index import build_index, open_index
from bundlectl.retrieval.permission import Filter
from bundlectl.retrieval.search import Index

DIMENSIONS = 16
EMBEDDING = Embedding(provider="wordllama", model="l2_supercat", dimensions=DIMENSIONS)


class HashEmbedder:
    """Adds up a fixed direction per term: deterministic, offline, and alike for alike texts."""

    dimensions = DIMENSIONS

    def __init__(self) -> None:
        self.calls = 0

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        self.calls += 1
        return [self._one(text) for text in texts]

    @staticmethod
    def _one(text: str) -> list[float]:
        vector = [0.0] * DIMENSIONS
        for term in terms(text):
            for at, byte in enumerate(hashlib.sha256(term.encode()).digest()[:DIMENSIONS]):
                vector[at] += byte - 127.5
        length = math.sqrt(sum(x * x for x in vector))
        return [x / length for x in vector] if length else vector


def acl(tenant: str = "*", scope: str = "docs", roles: Sequence[str] = ("*",)) -> Acl:
    return Acl(tenant=tenant, scope=scope, roles=list(roles))


def document(key: str, text: str, labels: Acl | None = None) -> Document:
    return make_document(key, read_markdown(text.encode(), key), labels or acl())


def built(
    folder: Path, documents: Sequence[Document], embedder: HashEmbedder | None = None, chunking: Chunking | None = None
) -> Snapshot:
    return build_index(
        "docs",
        documents,
        chunking=chunking or Chunking(),
        embedding=EMBEDDING,
        embedder=embedder or HashEmbedder(),
        folder=folder,
    )


def index_of(folder: Path, documents: Sequence[Document], chunking: Chunking | None = None) -> Index:
    return open_index(folder, built(folder, documents, chunking=chunking), HashEmbedder())


def use(mode: str = "lexical", rerank: str = "none", candidates: int = 50, top: int = 6) -> Retrieval:
    return Retrieval.model_validate(
        {
            "index": "docs",
            "snapshot": "following",
            "mode": mode,
            "rerank": rerank,
            "candidates": candidates,
            "top": top,
        }
    )


def asker(tenant: str = "acme", role: str = "agent", scopes: Sequence[str] = ("docs",)) -> Filter:
    return Filter(tenant, frozenset(scopes), role)
