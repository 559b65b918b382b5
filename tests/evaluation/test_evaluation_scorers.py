"""Golden numbers, each computed by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlectl.evaluation.scorers.score import Sample, Score, score_case
from bundlectl.evaluation.scorers.table import KINDS, make_scorer
from bundlectl.model.components import Output
from bundlectl.model.suite import Scorer as Line
from tests.evaluation.builders import answer, case, chunk, receipt

SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}


def given_score(line: dict[str, Any], a_case: Any, an_answer: Any, a_receipt: Any = None, seconds: float = 1.0) -> Any:
    output = Output(format="structured_json", schema_=SCHEMA)
    scorer = make_scorer(Line.model_validate(line), output)
    return score_case(scorer, Sample(a_case, an_answer, a_receipt or receipt(), seconds))


def value(*args: Any, **kwargs: Any) -> float | None:
    score = given_score(*args, **kwargs)
    return None if score is None else score.value


TEXT = [
    ("exact", {"exact": "14 days"}, " 14 days\n", 1.0),
    ("exact", {"exact": "14 days"}, "14 Days", 0.0),
    ("exact", {"exact": "yes"}, {"answer": "yes", "citations": []}, 1.0),
    ("exact", {"exact": "yes"}, {"text": "yes"}, 0.0),
    ("exact", {"exact": "yes"}, {"answer": 1}, 0.0),
    ("contains", {"contains": ["exit code 5", "--plan", "S3"]}, "EXIT  code\n5 and s3", 2 / 3),
    ("contains", {"contains": ["straße"]}, "STRASSE", 1.0),
    ("contains", {"contains": ["no"]}, "", 0.0),
    ("regex", {"regex": r"\b\d+ days\b"}, "after 14 days.", 1.0),
    ("regex", {"regex": r"^\d+ days$"}, "after 14 days.", 0.0),
]


@pytest.mark.parametrize(("name", "expected", "output", "golden"), TEXT)
def test_text(name: str, expected: dict[str, Any], output: Any, golden: float) -> None:
    assert value({"name": name}, case(**expected), answer(output)) == pytest.approx(golden, abs=1e-15)
    assert value({"name": name}, case(**expected), answer(refused="no_answer")) == 0
    assert given_score({"name": name}, case(refusal=False), answer(output)) is None


def test_text_stands_in_another_field() -> None:
    line = {"name": "exact", "options": {"field": "summary"}}
    assert value(line, case(exact="yes"), answer({"summary": "yes"})) == 1
    assert value(line, case(exact="yes"), answer({"answer": "yes"})) == 0


def test_an_empty_list_expects_nothing() -> None:
    assert given_score({"name": "contains"}, case(contains=[]), answer()) is None
    assert given_score({"name": "forbidden"}, case(forbidden_documents=[]), answer()) is None
    assert given_score({"name": "retrieval_hit"}, case(documents=[]), answer()) is None


# Final order by rank:  1 a/[A,x]  2 b/[B]  3 a/[A,x]  4 a/[A,y]  5 c/[C]
CHUNKS = (
    chunk("c", "C", rank=5),
    chunk("a", "A", "x", rank=1),
    chunk("b", "B", rank=2),
    chunk("a", "A", "y", rank=4, packed=False),
    chunk("a", "A", "x", rank=3),
)


def wanted(*items: tuple[str, list[str] | None]) -> Any:
    return case(documents=[{"document": d} | ({"section": s} if s is not None else {}) for d, s in items])


L3, L4, L5, L6 = (math.log2(n) for n in (3, 4, 5, 6))
AY, AX, B, C = ("a", ["A", "y"]), ("a", ["A", "x"]), ("b", ["B"]), ("c", ["C"])

RETRIEVAL = [
    # wanted, by, k, hit, recall, mrr, ndcg
    ([AX], "section", 6, 1, 1, 1, 1),
    ([B], "section", 6, 1, 1, 1 / 2, 1 / L3),
    ([AY], "section", 6, 1, 1, 1 / 4, 1 / L5),
    ([AY], "section", 3, 0, 0, 0, 0),
    ([("a", ["A"])], "section", 6, 0, 0, 0, 0),  # a heading path is equal or not: no parents
    ([AY, C], "section", 6, 1, 1, 1 / 4, (1 / L5 + 1 / L6) / (1 + 1 / L3)),
    ([AX, AY, C, ("z", ["Z"])], "section", 4, 1, 2 / 4, 1, (1 + 1 / L5) / (1 + 1 / L3 + 1 / L4 + 1 / L5)),
    ([B, C], "section", 1, 0, 0, 0, 0),
    ([AX, B, C], "section", 1, 1, 1 / 3, 1, 1),  # with one place, the best possible is one of the three
    ([("a", None)], "section", 6, 1, 1, 1, 1),
    ([AY], "document", 6, 1, 1, 1, 1),
    ([AX, AY, B], "document", 6, 1, 1, 1, 1),  # documents a and b, at 1 and 2
    ([("z", None)], "document", 6, 0, 0, 0, 0),
]


@pytest.mark.parametrize(("items", "by", "k", "hit", "recall", "mrr", "ndcg"), RETRIEVAL)
def test_retrieval(items: Any, by: str, k: int, hit: float, recall: float, mrr: float, ndcg: float) -> None:
    golden = {"hit": hit, "recall": recall, "mrr": mrr, "ndcg": ndcg}
    for name, number in golden.items():
        line = {"name": f"retrieval_{name}", "by": by, "k": k}
        assert value(line, wanted(*items), answer(), receipt(*CHUNKS)) == pytest.approx(number, abs=1e-12), name


def test_the_final_order_is_that_after_reranking() -> None:
    chunks = (chunk("a", rank=1, reranked=2), chunk("b", rank=2, reranked=1))
    line = {"name": "retrieval_mrr", "by": "document"}
    assert value(line, wanted(("b", None)), answer(), receipt(*chunks)) == 1


def test_only_what_was_packed() -> None:
    line = {"name": "retrieval_hit", "options": {"packed": True}}
    assert value(line, wanted(AY), answer(), receipt(*CHUNKS)) == 0
    mrr = {"name": "retrieval_mrr", "options": {"packed": True}}
    assert value(mrr, wanted(C), answer(), receipt(*CHUNKS)) == 1 / 4


@pytest.mark.parametrize("name", ["retrieval_hit", "retrieval_recall", "retrieval_mrr", "retrieval_ndcg"])
def test_empty_retrieval_is_a_zero_and_none_is_unmeasured(name: str) -> None:
    assert value({"name": name}, wanted(AX), answer(), receipt()) == 0
    assert value({"name": name}, wanted(AX), answer(refused="access_denied"), receipt(searched=False)) == 0
    assert given_score({"name": name}, wanted(AX), answer(), receipt(searched=False)).outcome == "unmeasured"


SECTIONS = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=8)


@given(found=SECTIONS, sought=st.sets(st.sampled_from("abcdefg"), min_size=1), k=st.integers(1, 8))
def test_laws_of_retrieval(found: list[str], sought: set[str], k: int) -> None:
    chunks = receipt(*(chunk(name, rank=n) for n, name in enumerate(found, 1)))
    scores = {
        name: value(
            {"name": f"retrieval_{name}", "k": k, "by": "document"},
            wanted(*((s, None) for s in sorted(sought))),
            answer(),
            chunks,
        )
        for name in ("hit", "recall", "mrr", "ndcg")
    }
    hit, recall, mrr, ndcg = scores["hit"], scores["recall"], scores["mrr"], scores["ndcg"]
    assert hit is not None and recall is not None and mrr is not None and ndcg is not None
    assert 0 <= mrr <= hit <= 1 and 0 <= recall <= hit and 0 <= ndcg <= hit
    assert (hit == 0) == (recall == 0) == (mrr == 0) == (ndcg == 0)
    best = min(k, len(sought))
    if len(set(found[:best])) == best and set(found[:best]) <= sought:
        assert ndcg == pytest.approx(1)  # nothing could stand higher


REFUSAL = [
    (False, None, 1),
    (False, "no_answer", 0),
    ("no_answer", "no_answer", 1),
    ("no_answer", None, 0),
    ("access_denied", "no_answer", 0),
    ("access_denied", "access_denied", 1),
]


@pytest.mark.parametrize(("expected", "got", "golden"), REFUSAL)
def test_refusal(expected: Any, got: str | None, golden: float) -> None:
    assert value({"name": "refusal"}, case(refusal=expected), answer(refused=got)) == golden
    assert given_score({"name": "refusal"}, case(exact="x"), answer(refused=got)) is None


def test_forbidden() -> None:
    line, forbids = {"name": "forbidden"}, case(forbidden_documents=["c", "z"])
    assert value(line, forbids, answer(), receipt(chunk("a", rank=1))) == 1
    assert value(line, forbids, answer(), receipt(chunk("c", rank=40, packed=False))) == 0
    assert value(line, forbids, answer(cited=["z"]), receipt()) == 0
    assert value(line, forbids, answer(refused="access_denied"), receipt(searched=False)) == 1


def test_json_schema() -> None:
    line, plain = {"name": "json_schema"}, case(refusal=False)
    assert value(line, plain, answer({"answer": "x"})) == 1
    assert value(line, plain, answer({"answer": 1})) == 0
    assert value(line, plain, answer("x")) == 0
    assert value(line, plain, answer(refused="no_answer")) == 0
    assert value(line, plain, answer({"answer": "x"}, degraded="the output was no good")) == 0
    assert given_score(line, case(refusal="no_answer"), answer(refused="no_answer")) is None
    own = {"name": "json_schema", "options": {"schema": {"type": "object", "required": ["citations"]}}}
    assert value(own, plain, answer({"answer": "x"})) == 0
    nothing = make_scorer(Line(name="json_schema"), Output())
    assert score_case(nothing, Sample(plain, answer({}), receipt(), 1.0)) == Score(
        outcome="unmeasured", why="neither the bundle's task nor the scorer's options have a schema"
    )


def test_json_schema_says_where_and_not_what() -> None:
    score = given_score({"name": "json_schema"}, case(), answer({"answer": ["secret words"]}))
    assert score.why == "does not fit /properties/answer/type"


def test_latency() -> None:
    line = {"name": "latency", "options": {"seconds": 0.5}}
    assert value(line, case(), answer(), seconds=0.5) == 1
    assert value(line, case(), answer(), seconds=0.500001) == 0


class Giving:
    """A scorer that gives what it is told, or raises it."""

    def __init__(self, gives: Any) -> None:
        self.gives = gives

    def applies(self, a_case: Any) -> bool:
        return True

    def score(self, sample: Any) -> Score:
        if isinstance(self.gives, Exception):
            raise self.gives
        return Score.model_construct(value=self.gives, outcome="measured", why="")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -0.01, 1.01, None])
def test_a_score_that_is_no_number_from_0_to_1_is_an_error(bad: Any) -> None:
    score = score_case(Giving(bad), Sample(case(), answer(), receipt(), 1.0))
    assert score is not None and score.outcome == "error" and score.value is None


@pytest.mark.parametrize("error", [KeyError("secret"), ValueError("secret"), TypeError("x"), ZeroDivisionError()])
def test_a_scorer_that_raises_is_an_error_that_quotes_nothing(error: Exception) -> None:
    score = score_case(Giving(error), Sample(case(), answer(), receipt(), 1.0))
    assert score == Score(outcome="error", why=f"the scorer broke: {type(error).__name__}")


RAGAS_JUDGED = {
    f"ragas_{metric}"
    for metric in (
        "faithfulness",
        "context_precision",
        "context_recall",
        "factual_correctness",
        "answer_relevancy",
    )
}


def test_every_kind_makes_a_scorer() -> None:
    for name in KINDS:
        options = {
            "latency": {"seconds": 1},
            "cost": {"usd": 1},
            "python": {"file": "own.py"},
            "rubric": {"judge": "main", "criteria": "right"},
            "pairwise": {"judge": "main", "criteria": "right"},
        }.get(name, {"judge": "main"} if name in RAGAS_JUDGED else {})
        make_scorer(Line(name=name, options=options), None)
