"""Search one snapshot for one request: permitted candidates, scored over permitted statistics, verified.

1. The filter names the partitions (sets of labels) that the request may see; only their rows are asked for.
2. Candidates are fetched so that nothing outside these partitions can decide which: the full-text index is
   asked for *every* permitted row that holds a term of the question, so its own ranking, whose statistics
   cover all tenants, never cuts; vectors are compared exactly.
3. Candidates are scored over the statistics of the permitted partitions; equal scores stand in order of id.
4. Each row is verified on the way out: its bytes must be listed in the snapshot, and the labels in these bytes
   must pass the filter. What does not is dropped and counted.
5. Reranking reorders what is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

from bundlectl.inference.embeddings import Embedder
from bundlectl.inference.words import terms, unique
from bundlectl.model.canonical import digest
from bundlectl.model.components import Retrieval
from bundlectl.model.documents import Chunk, Snapshot
from bundlectl.model.errors import UsageError
from bundlectl.retrieval.permission import Filter
from bundlectl.retrieval.rows import Rows
from bundlectl.retrieval.scoring import Floats, Partition, Statistics, bm25, cosine, coverage, fuse, order
from bundlectl.retrieval.tables import reported

FETCH = 5000
"""So many rows at most are fetched by terms; past it a question's commonest terms select no rows, they only score."""

SLACK = 1000
"""So many rows more are asked for than can match: rows that someone added to the table push none of ours out."""

_COLUMNS = ["id", "terms", "length", "form"]

_THREADS: Final = ThreadPoolExecutor(thread_name_prefix="search")
"""Of their own: where a store hangs, searches must not take the threads that renew credentials."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A candidate. ``rank`` counts from 1 before reranking; ``reranked`` after it, ``None`` where there was none.

    ``score`` is the search's: BM25, cosine, or the fusion of both.
    """

    chunk: Chunk
    digest: str
    score: float
    rank: int
    reranked: int | None = None


@dataclass(frozen=True, slots=True)
class Signals:
    """What a search says about its own health.

    ``spread`` is how far the best score stands above the last of the top (0 all alike, 1 the last is worth
    nothing); ``lift`` how many places the top rose on average by reranking; ``tampered`` rows whose bytes the
    snapshot does not list.
    """

    empty: bool
    candidates: int
    removed_by_permission: int
    tampered: int
    spread: float
    lift: float
    documents: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Candidates in final order, at most ``retrieval.candidates``; what was dropped; signals.

    ``signals.documents`` maps each document among the hits to its version.
    """

    hits: tuple[Hit, ...]
    removed_by_permission: int
    tampered: int
    signals: Signals


class Index:
    """One snapshot's tables, open. Made by :func:`~bundlectl.retrieval.index.open_index`; safe across threads."""

    def __init__(
        self,
        table: Any,
        partitions: Sequence[Partition],
        snapshot: Snapshot,
        digest_: str,
        where: str,
        embedder: Embedder | None,
    ) -> None:
        self.snapshot = snapshot
        self.digest = digest_
        self._table = table
        self._partitions = tuple(partitions)
        self._where = where
        self._embedder = embedder
        self._listed = frozenset(listed for document in snapshot.documents for listed in document.chunks)

    async def search(self, question: str, allowed: Filter, retrieval: Retrieval) -> SearchResult:
        """Search in a thread of its own; see :meth:`search_now`."""
        search = partial(copy_context().run, self.search_now, question, allowed, retrieval)
        return await asyncio.get_running_loop().run_in_executor(_THREADS, search)

    def search_now(self, question: str, allowed: Filter, retrieval: Retrieval) -> SearchResult:
        """Search, verify and rerank.

        Raises:
            UsageError: the mode or the reranking needs an embedder, and the index was opened without.
            BackendUnavailable: the tables cannot be read.
        """
        statistics = Statistics.over(part for part in self._partitions if allowed.permits(part.acl))
        asked = unique(terms(question))
        query: list[float] | None = None
        if retrieval.mode != "lexical" or retrieval.rerank == "vector":
            query = self._embed(question)
        columns = _COLUMNS if query is None else [*_COLUMNS, "vector"]
        rows = Rows(asked)
        if statistics.chunks:
            if retrieval.mode != "vector":
                rows.add(self._by_terms(asked, statistics, columns))
            if retrieval.mode != "lexical" and query is not None and any(query):
                rows.add(self._by_vector(query, statistics, retrieval.candidates, columns))
        scores = self._score(rows, query, statistics, retrieval.mode)
        kept, removed, tampered = self._verify(rows, scores, allowed, retrieval)
        hits = [Hit(chunk, found, float(scores[row]), rank) for rank, (row, chunk, found) in enumerate(kept, start=1)]
        hits = self._rerank(hits, rows.only([row for row, _, _ in kept]), query, statistics, retrieval.rerank)
        signals = _signals(hits, removed, tampered, retrieval.top)
        return SearchResult(tuple(hits), removed, tampered, signals)

    def section_texts(self) -> dict[tuple[str, tuple[str, ...], int], str]:
        """Give the verified text of every section by (document, heading path, ordinal), for comparing snapshots."""
        with reported(self._where):
            forms = self._table.search().select(["form"]).to_arrow()["form"].to_pylist()
        chunks = [Chunk.model_validate_json(form) for form in forms if digest(form) in self._listed]
        texts: dict[str, tuple[Chunk, str]] = {}
        for chunk in sorted(chunks, key=lambda chunk: chunk.id):
            section = chunk.id.rpartition(".")[0]
            before = texts.get(section)
            if before is None:
                texts[section] = (chunk, chunk.text)
            elif chunk.end > before[0].end:
                repeated = max(0, before[0].end - chunk.start)
                between = "" if repeated else " "
                texts[section] = (chunk, before[1] + between + chunk.text[repeated:])
        named: dict[tuple[str, tuple[str, ...], int], str] = {}
        for chunk, text in texts.values():
            path = tuple(chunk.section)
            ordinal = sum(1 for key in named if key[:2] == (chunk.document, path))
            named[(chunk.document, path, ordinal)] = text
        return named

    # ------------------------------------------------------------ 2. candidates

    def _by_terms(self, asked: Sequence[str], statistics: Statistics, columns: list[str]) -> Any:
        """Fetch every permitted row that holds one of the terms (past FETCH: one of the rarer terms).

        The limit is at least the number of rows that can match, so the index's own scores, which count other
        tenants' rows, cut nothing off. Which terms select is decided by the permitted statistics alone.
        """
        from lancedb.query import MatchQuery

        found = sorted((statistics.frequency(term), term) for term in asked)
        chosen: list[str] = []
        bound = 0
        for frequency, term in found:
            if frequency and (not chosen or bound + frequency <= FETCH):
                chosen.append(term)
                bound += frequency
        if not chosen:
            return None
        with reported(self._where):
            match: Any = MatchQuery
            return (
                self._table.search(match(" ".join(chosen), "terms"), query_type="fts")
                .where(self._permitted(statistics), prefilter=True)
                .limit(min(bound, statistics.chunks) + SLACK)
                .select([*columns, "_score"])
                .to_arrow()
            )

    def _by_vector(self, query: Sequence[float], statistics: Statistics, wanted: int, columns: list[str]) -> Any:
        """Fetch the nearest permitted rows by exact cosine, with every row as near as the last of them."""
        limit = wanted + 16
        while True:
            with reported(self._where):
                rows = (
                    self._table.search(np.asarray(query, dtype=np.float32), vector_column_name="vector")
                    .distance_type("cosine")
                    .bypass_vector_index()
                    .where(self._permitted(statistics), prefilter=True)
                    .limit(limit)
                    .select([*columns, "_distance"])
                    .to_arrow()
                )
            near = np.sort(rows["_distance"].to_numpy())
            if len(near) < limit or near[-1] > near[wanted - 1] + 1e-5:
                return rows
            limit *= 2  # equals at the border: which of them came first must not decide

    @staticmethod
    def _permitted(statistics: Statistics) -> str:
        # numbers only: no word of a request is ever part of a condition
        return f"partition IN ({', '.join(str(number) for number in statistics.numbers)})"

    # ------------------------------------------------------------ 3. scores

    @staticmethod
    def _score(rows: Rows, query: Sequence[float] | None, statistics: Statistics, mode: str) -> Floats:
        if not rows.ids:
            return np.zeros(0)
        if mode == "lexical" or query is None:
            return bm25(rows.counts, rows.lengths, statistics)
        near = cosine(rows.vectors, query)
        if mode == "vector":
            return near
        return fuse(bm25(rows.counts, rows.lengths, statistics), near)

    # ------------------------------------------------------------ 4. verification

    def _verify(
        self, rows: Rows, scores: Floats, allowed: Filter, retrieval: Retrieval
    ) -> tuple[list[tuple[int, Chunk, str]], int, int]:
        kept: list[tuple[int, Chunk, str]] = []
        removed = tampered = 0
        for row in order(rows.ids, scores):
            if len(kept) == retrieval.candidates:
                break
            form = rows.form(row)
            found = digest(form)
            chunk = _parsed(form) if found in self._listed else None
            if chunk is None or chunk.id != rows.ids[row]:
                tampered += 1
            elif not allowed.permits(chunk.acl):
                removed += 1
            else:
                kept.append((row, chunk, found))
        return kept, removed, tampered + rows.repeated

    # ------------------------------------------------------------ 5. reranking

    @staticmethod
    def _rerank(
        hits: list[Hit], rows: Rows, query: Sequence[float] | None, statistics: Statistics, how: str
    ) -> list[Hit]:
        if how == "none" or not hits:
            return hits
        if how == "coverage":
            scores = coverage(rows.counts, statistics) if rows.counts else np.zeros(len(hits))
        else:
            scores = cosine(rows.vectors, query or [0.0] * rows.vectors.shape[1])
        by_score = sorted(range(len(hits)), key=lambda at: (-scores[at], hits[at].rank))
        return [
            Hit(hits[at].chunk, hits[at].digest, hits[at].score, hits[at].rank, place)
            for place, at in enumerate(by_score, start=1)
        ]

    def _embed(self, question: str) -> list[float]:
        if self._embedder is None:
            raise UsageError(
                f"Index '{self.snapshot.index}' was opened without an embedder, and this search compares vectors.",
                fix="Give the bundle's embedding, or use mode: lexical with rerank: none or coverage.",
            )
        return list(self._embedder.embed([question])[0])


def _parsed(form: bytes) -> Chunk:
    return Chunk.model_validate_json(form)


def _signals(hits: Sequence[Hit], removed: int, tampered: int, top: int) -> Signals:
    first = hits[:top]
    scores = sorted((hit.score for hit in first), reverse=True)
    spread = (scores[0] - scores[-1]) / scores[0] if scores and scores[0] > 0 else 0.0
    lift = sum(hit.rank - hit.reranked for hit in first if hit.reranked is not None) / (len(first) or 1)
    return Signals(
        empty=not hits,
        candidates=len(hits),
        removed_by_permission=removed,
        tampered=tampered,
        spread=round(spread, 6),
        lift=round(lift, 6),
        documents={hit.chunk.document: hit.chunk.version for hit in hits},
    )
