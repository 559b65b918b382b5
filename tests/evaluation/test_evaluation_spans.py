"""Spans: golden numbers by hand, and laws."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bundlectl.evaluation.scorers.score import Sample, Score, score_case
from bundlectl.evaluation.scorers.spans import common, length, union
from bundlectl.evaluation.scorers.table import make_scorer
from bundlectl.inference.provider import Passage
from bundlectl.model.receipt import UsedChunk
from bundlectl.model.suite import ExpectedSpan
from bundlectl.model.suite import Scorer as Line
from tests.evaluation.builders import D, answer, case, chunk, receipt

#        0         1         2         3         4         5         6         7
#        0123456789012345678901234567890123456789012345678901234567890123456789012345
TEXT = "Receipts are kept for thirty days.\nThen they are moved to the cold archive."
OTHER = "sha256:" + "e" * 64


def passage(start: int, end: int, document: str = "a", *, n: int = 1, version: str | None = D) -> Passage:
    text = TEXT[start:end]
    return Passage(n, "T", ("S",), text, document, f"{document}#{start}", version=version, start=start, end=end)


def scored(name: str, spans: Any, passages: Any = (), *, chunks: Any = (), **line: Any) -> Score | None:
    scorer = make_scorer(Line.model_validate({"name": name, **line}), None)
    return score_case(scorer, Sample(case(spans=spans), answer(), receipt(*chunks), 1.0, tuple(passages)))


def values(spans: Any, passages: Any = (), **more: Any) -> tuple[float | None, ...]:
    scores = [scored(name, spans, passages, **more) for name in ("span_recall", "span_precision", "span_iou")]
    return tuple(None if score is None else score.value for score in scores)


def approx(*golden: float) -> Any:
    return pytest.approx(golden, abs=1e-12)


GOLDEN = [
    # expected 0-34 (34 characters); packed 0-40: both 34 of 40
    ([(0, 34)], [(0, 40)], (1.0, 34 / 40, 34 / 40)),
    # packed 10-20 lies within: 10 of 34, all of it right
    ([(0, 34)], [(10, 20)], (10 / 34, 1.0, 10 / 34)),
    # half of it: expected 0-20, packed 10-30: both 10, either 30
    ([(0, 20)], [(10, 30)], (0.5, 0.5, 10 / 30)),
    # two spans that overlap count their 30 characters once; 10 of the 20 packed are among them
    ([(0, 20), (10, 30)], [(20, 40)], (10 / 30, 10 / 20, 10 / 40)),
    # touching is not overlapping
    ([(0, 10)], [(10, 20)], (0.0, 0.0, 0.0)),
    ([(0, 10)], [], (0.0, 0.0, 0.0)),
]


@pytest.mark.parametrize(("expected", "packed", "golden"), GOLDEN)
def test_golden(expected: Any, packed: Any, golden: Any) -> None:
    spans = [{"document": "a", "start": start, "end": end} for start, end in expected]
    assert values(spans, [passage(*place, n=n) for n, place in enumerate(packed, 1)]) == approx(*golden)
    chunks = [placed(*place, rank=n) for n, place in enumerate(packed, 1)]
    assert values(spans, chunks=chunks, options={"packed": False}) == approx(*golden)


def placed(start: int, end: int, document: str = "a", *, rank: int) -> UsedChunk:
    return chunk(document, "S", rank=rank).model_copy(update={"start": start, "end": end})


def test_another_document_is_another_document() -> None:
    assert values([{"document": "a", "start": 0, "end": 10}], [passage(0, 10, "b")]) == approx(0, 0, 0)
    assert values([{"document": "a", "start": 0, "end": 10}], [passage(0, 10, "b"), passage(0, 10)]) == approx(
        1, 0.5, 0.5
    )


def test_what_is_retrieved_twice_counts_twice_in_what_was_retrieved() -> None:
    """Chroma: the overlap counts once, what was retrieved as often as it was."""
    spans = [{"document": "a", "start": 0, "end": 10}]
    chunks = [placed(0, 10, rank=1), placed(0, 10, rank=2)]
    assert values(spans, chunks=chunks, options={"packed": False}) == approx(1, 10 / 20, 10 / 20)
    assert values(spans, chunks=chunks, options={"packed": False}, k=1) == approx(1, 1, 1)


def test_quotes_are_found_whatever_their_white_space() -> None:
    quote = "thirty days. Then  they are moved"
    assert values([{"document": "a", "text": quote}], [passage(0, 76)]) == approx(1, 32 / 76, 32 / 76)
    assert values([{"document": "a", "text": quote}], [passage(0, 76, "b")]) == approx(0, 0, 0)


def test_a_quote_that_is_cut_is_found_in_part() -> None:
    quote = {"document": "a", "text": TEXT[0:34]}
    assert values([quote], [passage(10, 60)]) == approx(24 / 34, 24 / 50, 24 / 60)
    assert values([quote], [passage(0, 17)]) == approx(17 / 34, 1, 17 / 34)
    assert values([quote], [passage(9, 30)]) == approx(21 / 34, 1, 21 / 34)
    # all but the blank between the two
    assert values([quote], [passage(0, 17), passage(18, 40, n=2)]) == approx(33 / 34, 33 / 39, 33 / 40)
    # ten characters in common stand anywhere
    assert values([quote], [passage(24, 60)]) == approx(0, 0, 0)


def test_another_version_is_unmeasured() -> None:
    span = {"document": "a", "start": 0, "end": 10, "version": OTHER}
    found = scored("span_recall", [span], [passage(0, 20)])
    assert found is not None and found.outcome == "unmeasured" and "not as it was" in found.why
    assert values([{**span, "version": D}], [passage(0, 20)])[0] == 1
    assert values([span], [passage(0, 20, "b")])[0] == 0, "the document was not retrieved in any version"


def test_another_text_at_the_place_is_unmeasured() -> None:
    span = {"document": "a", "start": 0, "end": 8, "text": "Receipts"}
    assert values([span], [passage(0, 20)])[0] == 1
    found = scored("span_recall", [{**span, "text": "Invoices"}], [passage(0, 20)])
    assert found is not None and found.outcome == "unmeasured"


def test_what_is_not_known_is_unmeasured() -> None:
    span = {"document": "a", "start": 0, "end": 10}
    nowhere = scored("span_iou", [span], chunks=[chunk("a", rank=1)], options={"packed": False})
    quoted = scored(
        "span_iou", [{"document": "a", "text": "x"}], chunks=[placed(0, 9, rank=1)], options={"packed": False}
    )
    assert nowhere is not None and nowhere.outcome == "unmeasured"
    assert quoted is not None and "give 'start' and 'end'" in quoted.why
    scorer = make_scorer(Line.model_validate({"name": "span_recall"}), None)
    asked = case(spans=[span])
    searched_nothing = score_case(scorer, Sample(asked, answer(), receipt(searched=False), 1.0))
    assert searched_nothing is not None and searched_nothing.outcome == "unmeasured"
    refused = score_case(scorer, Sample(asked, answer(refused="access_denied"), receipt(searched=False), 1.0))
    assert refused is not None and refused.value == 0
    assert score_case(scorer, Sample(case(refusal=False), answer(), receipt(), 1.0)) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": 1},
        {"start": 5, "end": 5},
        {"text": " "},
        {},
        {"text": "x", "version": D},
        {"start": -1, "end": 2},
    ],
)
def test_a_span_says_where_it_is(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ExpectedSpan.model_validate({"document": "a", **wrong})


intervals = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)).map(lambda p: (p[0], p[0] + p[1])), max_size=6)


@given(intervals, intervals)
def test_union_and_common_are_those_of_sets(some: Any, others: Any) -> None:
    def characters(found: Any) -> set[int]:
        return {at for start, end in found for at in range(start, end)}

    assert characters(union(some)) == characters(some)
    assert length(union(some)) == len(characters(some))
    assert length(common(union(some), union(others))) == len(characters(some) & characters(others))


places = st.lists(
    st.tuples(st.integers(0, 70), st.integers(1, 6)).map(lambda p: (p[0], p[0] + p[1])), min_size=1, max_size=4
)


@given(places, places, st.integers(0, 60))
def test_retrieving_more_never_loses_recall_and_iou_is_the_least(expected: Any, packed: Any, more: int) -> None:
    spans = [{"document": "a", "start": start, "end": end} for start, end in expected]
    pieces = [passage(start, end) for start, end in packed]
    recall, precision, iou = values(spans, pieces)
    assert recall is not None and precision is not None and iou is not None
    assert iou <= min(recall, precision) + 1e-12
    wider = values(spans, [*pieces, passage(more, more + 10)])[0]
    assert wider is not None and wider >= recall


@given(st.integers(0, 30), st.integers(20, 45), st.integers(0, 20), st.integers(40, 76))
def test_a_quote_that_stands_in_a_passage_counts_as_its_place(start: int, size: int, before: int, after: int) -> None:
    before, after = min(before, start), max(after, start + size)
    quote = TEXT[start : start + size]
    if quote != quote.strip() or TEXT.count(quote) > 1:
        return
    place = {"document": "a", "start": start, "end": start + size}
    packed = [passage(before, after)]
    assert values([{"document": "a", "text": quote}], packed) == values([place], packed)
