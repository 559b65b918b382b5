"""Ranking: BM25 as the book has it, vectors, fusion, reranking, ties, signals."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bundlectl.inference.words import terms
from bundlectl.model.documents import Chunking
from bundlectl.model.errors import UsageError
from bundlectl.retrieval import scoring
from bundlectl.retrieval.chunking import cut, searched_text
from bundlectl.retrieval.index import open_index
from bundlectl.retrieval.search import Index
from tests.retrieval.builders import HashEmbedder, acl, asker, built, document, index_of, use

PAGES = [
    document("a.md", "# Pumps\n\nOil the pump weekly. The pump is loud.\n\n## Spares\n\nSeals, oil and more oil."),
    document("b.md", "# Valves\n\nReplace the seal of a leaking valve."),
    document("c.md", "# Tools\n\nA wrench, and a hammer."),
    document("own.md", "# Ours\n\nOur pump is blue.", acl("acme")),
    document("theirs.md", "# Theirs\n\nTheir pump is red pump pump.", acl("other")),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    yield index_of(tmp_path_factory.mktemp("index"), PAGES)


def test_scores_are_textbook_bm25_over_what_is_permitted(index: Index) -> None:
    question = "oil for the leaking pumps"
    permitted = [chunk for page in PAGES if page.key != "theirs.md" for chunk in cut(page, Chunking())]
    bags = {chunk.id: Counter(terms(searched_text(chunk))) for chunk in permitted}
    average = sum(sum(bag.values()) for bag in bags.values()) / len(bags)
    expected = {}
    for id_, bag in bags.items():
        score = 0.0
        for term in set(terms(question)):
            found = sum(term in other for other in bags.values())
            idf = math.log(1 + (len(bags) - found + 0.5) / (found + 0.5))
            norm = scoring.K1 * (1 - scoring.B + scoring.B * sum(bag.values()) / average)
            score += idf * bag[term] * (scoring.K1 + 1) / (bag[term] + norm)
        if score:
            expected[id_] = score
    found = index.search_now(question, asker(), use())
    assert {hit.chunk.id: pytest.approx(hit.score) for hit in found.hits} == expected
    assert [hit.score for hit in found.hits] == sorted((hit.score for hit in found.hits), reverse=True)
    assert [hit.rank for hit in found.hits] == list(range(1, len(expected) + 1))


def test_title_and_headings_are_searched(index: Index) -> None:
    found = index.search_now("spares", asker(), use())
    assert [hit.chunk.section for hit in found.hits] == [["Pumps", "Spares"]]


def test_vector_mode_is_exact_cosine(index: Index) -> None:
    query = np.array(HashEmbedder().embed(["wrench hammer"])[0])
    found = index.search_now("wrench hammer", asker(), use("vector"))
    assert len(found.hits) == 5
    assert [hit.score for hit in found.hits] == sorted((hit.score for hit in found.hits), reverse=True)
    for hit in found.hits:
        vector = np.array(HashEmbedder().embed([searched_text(hit.chunk)])[0])
        assert hit.score == pytest.approx(float(vector @ query), abs=1e-6)


def test_hybrid_joins_both(index: Index) -> None:
    lexical = {hit.chunk.id for hit in index.search_now("wrench", asker(), use()).hits}
    hybrid = index.search_now("wrench", asker(), use("hybrid"))
    assert len(lexical) == 1
    assert len(hybrid.hits) == 5
    assert hybrid.hits[0].chunk.id in lexical


@pytest.mark.parametrize("mode", ["lexical", "vector", "hybrid"])
@pytest.mark.parametrize("candidates", [1, 3, 7])
def test_equal_scores_stand_in_order_of_id(tmp_path: Path, mode: str, candidates: int) -> None:
    pages = [document(f"{n:02}.md", "# Same\n\nThe very same words.") for n in range(40)]
    found = index_of(tmp_path, list(reversed(pages))).search_now(
        "same words", asker(), use(mode, candidates=candidates)
    )
    assert [hit.chunk.document for hit in found.hits] == [f"{n:02}.md" for n in range(candidates)]
    assert len({hit.score for hit in found.hits}) == 1


def test_coverage_puts_first_what_holds_more_of_the_question(tmp_path: Path) -> None:
    pages = [
        document("a.md", "# A\n\noil oil oil oil oil oil"),
        document("b.md", "# B\n\n" + "filler words here " * 30 + "oil and seal"),
        document("c.md", "# C\n\nnothing of it, only oil"),
    ]
    index = index_of(tmp_path, pages)
    before = index.search_now("oil seal", asker(), use())
    after = index.search_now("oil seal", asker(), use(rerank="coverage"))
    assert [hit.reranked for hit in before.hits] == [None, None, None]
    assert after.hits[0].chunk.document == "b.md"
    assert [hit.reranked for hit in after.hits] == [1, 2, 3]
    assert {hit.chunk.id: (hit.rank, hit.score) for hit in after.hits} == {
        hit.chunk.id: (hit.rank, hit.score) for hit in before.hits
    }


def test_vector_rerank_orders_by_cosine(index: Index) -> None:
    found = index.search_now("pump oil seal", asker(), use(rerank="vector"))
    near = index.search_now("pump oil seal", asker(), use("vector"))
    kept = {hit.chunk.id for hit in found.hits}
    assert [hit.chunk.id for hit in found.hits] == [hit.chunk.id for hit in near.hits if hit.chunk.id in kept]


@pytest.mark.parametrize(
    "question", ["", "the of and", "?!", "zebra", "漢字", "x" * 5000, "'; DROP TABLE chunks --", "a" * 200]
)
@pytest.mark.parametrize("mode", ["lexical", "vector", "hybrid"])
def test_odd_questions(index: Index, question: str, mode: str) -> None:
    found = index.search_now(question, asker(), use(mode, rerank="coverage"))
    assert found.signals.empty == (not found.hits)
    if mode == "lexical":
        assert found.hits == ()


def test_candidates_limit(index: Index) -> None:
    assert len(index.search_now("pump oil seal", asker(), use(candidates=2)).hits) == 2


@pytest.mark.parametrize(("mode", "rerank"), [("vector", "none"), ("hybrid", "none"), ("lexical", "vector")])
def test_vectors_need_an_embedder(tmp_path: Path, mode: str, rerank: str) -> None:
    index = open_index(tmp_path, built(tmp_path, PAGES), None)
    with pytest.raises(UsageError, match="without an embedder"):
        index.search_now("oil", asker(), use(mode, rerank))
    assert index.search_now("oil", asker(), use(rerank="coverage")).hits


async def test_search_runs_beside_the_loop(index: Index) -> None:
    results = await asyncio.gather(*(index.search("pump oil", asker(), use("hybrid")) for _ in range(8)))
    assert all(result == results[0] for result in results)
    assert results[0] == index.search_now("pump oil", asker(), use("hybrid"))


def test_signals(index: Index) -> None:
    found = index.search_now("pump oil", asker(), use(top=2)).signals
    assert (found.empty, found.candidates, found.removed_by_permission, found.tampered) == (False, 3, 0, 0)
    assert 0 < found.spread < 1
    assert found.lift == 0
    assert found.documents == {page.key: page.version for page in PAGES if page.key in ("a.md", "own.md")}
    empty = index.search_now("zebra", asker(), use()).signals
    assert (empty.empty, empty.candidates, empty.spread, empty.documents) == (True, 0, 0.0, {})


def test_section_texts(index: Index) -> None:
    texts = index.section_texts()
    assert texts[("a.md", ("Pumps", "Spares"), 0)] == "Seals, oil and more oil."
    assert len(texts) == sum(len(page.sections) for page in PAGES)


@pytest.mark.parametrize("overlap", [0, 8])
def test_section_texts_join_chunks(tmp_path: Path, overlap: int) -> None:
    text = " ".join(f"word{n}." for n in range(100))
    page = document("a.md", f"# A\n\n{text}\n\n# A\n\nsecond")
    texts = index_of(tmp_path, [page], Chunking(tokens=30, overlap=overlap)).section_texts()
    assert texts == {("a.md", ("A",), 0): text, ("a.md", ("A",), 1): "second"}


def test_scores_do_not_depend_on_the_rows_beside() -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((97, 256)).astype(np.float32)
    query = list(random.standard_normal(256))
    whole = scoring.cosine(vectors, query)
    assert all(scoring.cosine(vectors[at : at + 1], query)[0] == whole[at] for at in range(97))


def test_fusion_of_nothing_is_nothing() -> None:
    assert scoring.fuse(np.zeros(2), np.array([0.5, -1.0])).tolist() == [
        pytest.approx(0.5 * (1 - scoring.LEXICAL_WEIGHT)),
        0,
    ]
