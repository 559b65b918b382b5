"""Packing: order kept, budget held, nothing twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bundlectl.model.documents import Chunk, Chunking
from bundlectl.retrieval.chunking import count_tokens, cut
from bundlectl.retrieval.packing import pack
from bundlectl.retrieval.search import Hit
from tests.retrieval.builders import document


def hits(chunks: list[Chunk]) -> list[Hit]:
    return [Hit(chunk, chunk.digest(), 1.0, rank) for rank, chunk in enumerate(chunks, start=1)]


def one(key: str, text: str) -> Chunk:
    return cut(document(key, f"# T\n\n{text}"), Chunking())[0]


def test_numbers_and_places() -> None:
    packed = pack(hits([one("b.md", "first words"), one("a.md", "second words")]), context_tokens=100, top=6)
    assert [(p.n, p.document, p.text, p.section, p.chunk) for p in packed.passages] == [
        (1, "b.md", "first words", ("T",), "b.md#0000.000"),
        (2, "a.md", "second words", ("T",), "a.md#0000.000"),
    ]
    assert packed.chunks == {"a.md#0000.000", "b.md#0000.000"}
    assert packed.tokens == 2 * (1 + 1) + count_tokens("first words second words")


def test_top() -> None:
    packed = pack(hits([one(f"{n}.md", f"text {n}") for n in range(9)]), context_tokens=1000, top=3)
    assert [passage.document for passage in packed.passages] == ["0.md", "1.md", "2.md"]


def test_what_does_not_fit_whole_is_passed_over() -> None:
    packed = pack(hits([one("a.md", "a b c"), one("b.md", "x " * 100), one("c.md", "d e f")]), context_tokens=50, top=6)
    assert [passage.text for passage in packed.passages] == ["a b c", "d e f"]
    assert packed.tokens <= 50


def test_same_text_is_taken_once() -> None:
    packed = pack(hits([one("a.md", "the same  text"), one("b.md", "the same\ntext")]), context_tokens=100, top=6)
    assert [passage.document for passage in packed.passages] == ["a.md"]


def test_overlapping_chunks_become_one_passage() -> None:
    text = " ".join(f"word{n}." for n in range(60))
    chunks = cut(document("a.md", f"# T\n\n{text}"), Chunking(tokens=40, overlap=15))
    assert len(chunks) >= 3
    packed = pack(hits([chunks[1], chunks[0], chunks[2]]), context_tokens=1000, top=1)
    (passage,) = packed.passages
    assert passage.chunk == chunks[1].id
    assert passage.text in text
    assert passage.text == text[: len(passage.text)]
    assert packed.chunks == {chunk.id for chunk in chunks[:3]}
    assert packed.tokens == count_tokens(passage.text) + 2


def test_nothing() -> None:
    assert pack([], context_tokens=100, top=6).passages == ()


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 60)), max_size=12),
    st.integers(50, 200),
    st.integers(1, 6),
)
def test_budget_order_and_top_hold(sizes: list[tuple[int, int]], budget: int, top: int) -> None:
    chunks = [one(f"{n}.md", f"word{kind} " * size) for n, (kind, size) in enumerate(sizes)]
    packed = pack(hits(chunks), context_tokens=budget, top=top)
    assert packed.tokens <= budget
    assert len(packed.passages) <= top
    order = [chunk.id for chunk in chunks]
    places = [order.index(passage.chunk) for passage in packed.passages]
    assert places == sorted(places)
    assert len({passage.text for passage in packed.passages}) == len(packed.passages)
    spent = sum(
        count_tokens(p.title) + count_tokens(" ".join(p.section)) + count_tokens(p.text) for p in packed.passages
    )
    assert spent == packed.tokens
