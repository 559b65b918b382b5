"""Citations and groundedness: golden numbers by hand, and laws."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlectl.evaluation.scorers.grounding import Context, is_negated, numbers_of
from bundlectl.evaluation.scorers.score import Sample, Score, score_case
from bundlectl.evaluation.scorers.statements import statements, wants_an_answer
from bundlectl.evaluation.scorers.table import make_scorer
from bundlectl.inference.provider import Passage
from bundlectl.model.contract import Answer, Citation, Cost
from bundlectl.model.suite import Scorer as Line
from tests.evaluation.builders import answer, case, receipt

PASSAGES = tuple(
    Passage(n, title, section, text, document, f"{document}#{n}")
    for n, title, section, document, text in [
        (
            1,
            "Receipts",
            ("Receipts", "Keeping"),
            "a",
            "Receipts are kept for 30 days. Then they go to the cold archive.",
        ),
        (
            2,
            "Rollback",
            ("Rollback",),
            "b",
            "A rollback reaches every server within one poll interval. It needs no build.",
        ),
        (3, "Keys", ("Keys",), "c", "A retired key verifies old releases. A compromised key verifies nothing."),
    ]
)


def cite(n: int, quote: str | None = None) -> Citation:
    by = PASSAGES[n - 1]
    return Citation(n=n, document=by.document, section=list(by.section), chunk=by.chunk, quote=quote)


def said(output: Any, *cited: int | Citation) -> Answer:
    citations = [one if isinstance(one, Citation) else cite(one) for one in cited]
    return answer(output).model_copy(update={"citations": citations})


def scored(
    name: str, given_answer: Answer, *, passages: Any = PASSAGES, expected: Any = None, **line: Any
) -> Score | None:
    scorer = make_scorer(Line.model_validate({"name": name, **line}), None)
    return score_case(scorer, Sample(case(**(expected or {"refusal": False})), given_answer, receipt(), 1.0, passages))


def value(*args: Any, **kwargs: Any) -> float | None:
    score = scored(*args, **kwargs)
    assert score is not None
    return score.value


A = {"document": "a", "section": ["Receipts", "Keeping"]}
OTHER_SECTION = {"document": "a", "section": ["Receipts", "Erasing"]}
B = {"document": "b"}

CITED = [
    # one right of one; one of two expected
    ([1], "Kept for 30 days [1].", [A, B], 1.0, 0.5),
    # a and b right, c wrong; both expected are cited
    ([1, 2, 3], "x [1][2][3]", [A, B], 2 / 3, 1.0),
    # two citations of one section are one
    ([1, 1], "x [1] y [1]", [A], 1.0, 1.0),
    # [7] names no passage
    ([1], "x [1] y [7]", [A], 0.5, 1.0),
    # the right document, another section
    ([1], "x [1]", [OTHER_SECTION], 0.0, 0.0),
    ([3], "x [3]", [A], 0.0, 0.0),
    ([], "x", [A], 0.0, 0.0),
    ([], "x [9]", [A], 0.0, 0.0),
]


@pytest.mark.parametrize(("cited", "text", "documents", "correct", "recalled"), CITED)
def test_citations(cited: Any, text: str, documents: Any, correct: float, recalled: float) -> None:
    expected = {"documents": documents}
    assert value("citation_correctness", said(text, *cited), expected=expected) == pytest.approx(correct)
    assert value("citation_recall", said(text, *cited), expected=expected) == pytest.approx(recalled)


def test_citations_by_document() -> None:
    expected = {"documents": [OTHER_SECTION]}
    assert value("citation_correctness", said("x [1]", 1), expected=expected, by="document") == 1
    assert value("citation_recall", said("x [1]", 1), expected=expected, by="document") == 1


def test_what_was_not_packed_is_no_right_citation() -> None:
    expected = {"documents": [A]}
    assert value("citation_correctness", said("x [1]", 1), expected=expected, passages=PASSAGES[1:]) == 0
    assert value("citation_recall", said("x [1]", 1), expected=expected, passages=PASSAGES[1:]) == 0


def test_a_refusal_cites_nothing() -> None:
    for name in ("citation_correctness", "citation_recall", "citation_coverage", "groundedness"):
        assert value(name, answer(refused="no_answer"), expected={"documents": [A]}) == 0
        assert scored(name, said("x"), expected={"refusal": "no_answer"}) is None
        assert scored(name, said("x"), expected={"forbidden_documents": ["d"]}) is None


COVERED = [
    ("Kept for 30 days [1]. Then archived [1].", 1.0),
    ("Kept for 30 days [1]. Then archived.", 0.5),
    ("Kept for 30 days. [1] Then archived. [1]", 1.0),
    ("Kept for 30 days. [1][2] Then archived.", 0.5),
    ("Passages that may answer:\n- Kept for 30 days [1]\n- No build is needed [2]\n", 1.0),
    ("Kept for 30 days [9]. Then archived [1].", 0.5),
    ("# Keeping\n\nKept for 30 days [1]. Does that help?", 1.0),
]


@pytest.mark.parametrize(("text", "golden"), COVERED)
def test_coverage(text: str, golden: float) -> None:
    assert value("citation_coverage", said(text, 1)) == golden
    assert value("citation_coverage", said({"answer": text, "citations": [1]}, 1)) == golden


def test_coverage_by_quotes_beside_the_text() -> None:
    output = {"answer": "Receipts are kept for 30 days. They are pink.", "citations": [{"n": 1}]}
    assert value("citation_coverage", said(output, cite(1, "Receipts are kept for 30 days."))) == 0.5
    beside = scored("citation_coverage", said(output, 1))
    assert beside is not None and beside.outcome == "unmeasured"
    assert value("citation_coverage", said(output)) == 0
    nothing = scored("citation_coverage", said({"answer": "", "citations": []}, 1))
    assert nothing is not None and nothing.outcome == "unmeasured"


GROUNDED = [
    ("Receipts are kept for 30 days.", True),
    ("receipts ARE kept, for 30 days", True),
    ("For thirty days receipts are kept.", False),  # thirty is no digit that it knows
    ("Receipts are kept for 90 days.", False),
    ("Receipts are not kept for 30 days.", False),
    ("Receipts are kept for 30 days and go to the cold archive.", True),  # two sentences in a row
    ("Receipts that turn 30 days old go to the archive.", False),  # said limits: in altogether different words
    ("Receipts go to the insurance department.", False),
    ("A rollback needs no build.", True),
    ("A rollback needs a build.", False),
    ("A rollback doesn't need any build.", True),
    ("A compromised key verifies nothing.", True),
    ("A compromised key verifies.", True),  # said limits: the words stand there in a row
    ("Keys can be retired.", True),
]


@pytest.mark.parametrize(("text", "supported"), GROUNDED)
def test_grounded(text: str, supported: bool) -> None:
    assert Context(PASSAGES).supports(text) is supported
    assert value("groundedness", said(text)) == (1.0 if supported else 0.0)


def test_groundedness_is_a_share() -> None:
    assert value("groundedness", said("Receipts are kept for 30 days. They are pink and expensive.")) == 0.5
    nothing = scored("groundedness", said("?"))
    assert nothing is not None and nothing.outcome == "unmeasured"
    unpacked = scored("groundedness", said("Receipts are kept."), passages=())
    assert unpacked is not None and unpacked.outcome == "unmeasured"
    loose = scored("groundedness", said("Receipts go to the insurance department."), options={"threshold": 0.2})
    assert loose is not None and loose.value == 1


def test_numbers_are_compared_as_numbers() -> None:
    assert numbers_of("1,000 or 2.50 and 007 in three") == {"1000", "2.5", "7", "3"}
    assert numbers_of("version 2.14.0") == {"2.14.0"}
    assert not numbers_of("sha256 and v2")


@pytest.mark.parametrize("text", ["It is not so", "it isn't", "it isn’t", "without it", "None is", "cannot"])
def test_negations(text: str) -> None:
    assert is_negated(text)
    assert not is_negated("It is noted and known, nonetheless")


@given(st.sampled_from(PASSAGES), st.data())
def test_what_a_passage_says_word_for_word_is_supported(passage: Passage, data: st.DataObject) -> None:
    words = passage.text.split()
    start = data.draw(st.integers(0, len(words) - 1))
    end = data.draw(st.integers(start + 1, len(words)))
    assert Context(PASSAGES).supports(" ".join(words[start:end]))


@given(st.text(max_size=60), st.floats(0.1, 1.0), st.floats(0.1, 1.0))
def test_a_higher_threshold_never_supports_more(text: str, one: float, other: float) -> None:
    context = Context(PASSAGES)
    low, high = sorted((one, other))
    assert context.supports(text, low) >= context.supports(text, high)


@given(st.text(alphabet="ab .?![1]\n-#:", max_size=80))
def test_statements_are_pieces_of_the_text(text: str) -> None:
    for one in statements(text):
        assert one.text and not one.text.endswith((":", "?"))


def test_who_wants_an_answer() -> None:
    assert wants_an_answer(case(refusal=False))
    assert wants_an_answer(case(contains=["x"]))
    assert not wants_an_answer(case(refusal="no_answer", contains=["x"]))
    assert not wants_an_answer(case())


def test_cost() -> None:
    line = {"options": {"usd": 0.01}}

    def costing(usd: float | None) -> Score | None:
        scorer = make_scorer(Line.model_validate({"name": "cost", **line}), None)
        paid = receipt().model_copy(update={"cost": Cost(usd=usd, price_book="b")})
        return score_case(scorer, Sample(case(), answer(), paid, 1.0))

    for usd, golden in ((0.0, 1.0), (0.01, 1.0), (0.0101, 0.0), (None, None)):
        found = costing(usd)
        assert found is not None and found.value == golden
    unknown = costing(None)
    assert unknown is not None and unknown.outcome == "unmeasured"
