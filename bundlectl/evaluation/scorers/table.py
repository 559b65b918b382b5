"""The scorers by the name that suites use, and how a suite's line becomes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bundlectl.evaluation.scorers import citations, ragas_scorers
from bundlectl.evaluation.scorers.conduct import (
    Cost,
    CostOptions,
    Forbidden,
    Latency,
    LatencyOptions,
    NoOptions,
    Refusal,
)
from bundlectl.evaluation.scorers.form import JsonSchema, SchemaOptions
from bundlectl.evaluation.scorers.grounding import Groundedness, GroundingOptions
from bundlectl.evaluation.scorers.judge import Judge
from bundlectl.evaluation.scorers.judged import JudgedOptions, JudgedScorer
from bundlectl.evaluation.scorers.own import OwnScorer
from bundlectl.evaluation.scorers.own_code import OwnCode, OwnOptions
from bundlectl.evaluation.scorers.pairwise import Pairwise, PairwiseOptions
from bundlectl.evaluation.scorers.retrieval import (
    Formula,
    RetrievalOptions,
    RetrievalScorer,
    hit,
    mrr,
    ndcg,
    recall,
)
from bundlectl.evaluation.scorers.rubric import Rubric, RubricOptions
from bundlectl.evaluation.scorers.score import AnyScorer
from bundlectl.evaluation.scorers.spans import (
    Overlap,
    SpanOptions,
    SpanScorer,
    span_iou,
    span_precision,
    span_recall,
)
from bundlectl.evaluation.scorers.text import Contains, Exact, Regex, TextOptions
from bundlectl.model.components import Output
from bundlectl.model.suite import Scorer as ScorerLine
from bundlectl.model.types import Strict


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of scorer.

    ``options``: what its ``options`` may hold. ``decides``: whether a must-pass case has to score 1 here unless
    the suite says otherwise; not so where less than 1 is no failure. ``timed``: it reads the clock, so that its score
    says nothing about an answer that was given before.
    """

    options: type[Strict]
    make: Callable[[ScorerLine, Any, Output | None], AnyScorer]
    decides: bool = True
    timed: bool = False


def _text(make: Callable[[TextOptions], AnyScorer], line: ScorerLine, options: Any, output: Output | None) -> AnyScorer:
    return make(options)


def _retrieval(formula: Formula, line: ScorerLine, options: Any, output: Output | None) -> AnyScorer:
    return RetrievalScorer(formula, line.by, line.k, options)


def _spans(formula: Callable[[Overlap], float], line: ScorerLine, options: Any, output: Output | None) -> AnyScorer:
    return SpanScorer(formula, line.k, options)


def _citations(
    formula: Callable[[citations.Cited], float], line: ScorerLine, options: Any, output: Output | None
) -> AnyScorer:
    return citations.CitationScorer(formula, line.by)


def _schema(line: ScorerLine, options: Any, output: Output | None) -> AnyScorer:
    own = output.schema_ if output is not None else None
    return JsonSchema(options.schema_ if options.schema_ is not None else own)


def _ragas_text(metric: str, options: type[Strict], needs: str) -> Kind:
    return Kind(
        options, lambda line, options, output: ragas_scorers.RagasText(metric, options, (needs,)), decides=False
    )


def _ragas_ids(metric: str) -> Kind:
    return Kind(NoOptions, lambda line, options, output: ragas_scorers.RagasIds(metric, options), decides=False)


def _ragas_judged(make: type[ragas_scorers.RagasJudged], options: type[Strict] = JudgedOptions) -> Kind:
    return Kind(options, lambda line, options, output: make(options), decides=False)


KINDS: Mapping[str, Kind] = {
    "exact": Kind(TextOptions, partial(_text, Exact)),
    "contains": Kind(TextOptions, partial(_text, Contains)),
    "regex": Kind(TextOptions, partial(_text, Regex)),
    "json_schema": Kind(SchemaOptions, _schema),
    "retrieval_hit": Kind(RetrievalOptions, partial(_retrieval, hit)),
    "retrieval_recall": Kind(RetrievalOptions, partial(_retrieval, recall), decides=False),
    "retrieval_mrr": Kind(RetrievalOptions, partial(_retrieval, mrr), decides=False),
    "retrieval_ndcg": Kind(RetrievalOptions, partial(_retrieval, ndcg), decides=False),
    "refusal": Kind(NoOptions, lambda line, options, output: Refusal()),
    "forbidden": Kind(NoOptions, lambda line, options, output: Forbidden()),
    "span_recall": Kind(SpanOptions, partial(_spans, span_recall), decides=False),
    "span_precision": Kind(SpanOptions, partial(_spans, span_precision), decides=False),
    "span_iou": Kind(SpanOptions, partial(_spans, span_iou), decides=False),
    "citation_correctness": Kind(NoOptions, partial(_citations, citations.correctness), decides=False),
    "citation_recall": Kind(NoOptions, partial(_citations, citations.recall), decides=False),
    "citation_coverage": Kind(
        citations.CoverageOptions, lambda line, options, output: citations.Coverage(options), decides=False
    ),
    "groundedness": Kind(GroundingOptions, lambda line, options, output: Groundedness(options), decides=False),
    "rubric": Kind(RubricOptions, lambda line, options, output: Rubric(options), decides=False),
    "pairwise": Kind(PairwiseOptions, lambda line, options, output: Pairwise(options), decides=False),
    "ragas_bleu": _ragas_text("bleu", ragas_scorers.RagasTextOptions, "sacrebleu"),
    "ragas_rouge": _ragas_text("rouge", ragas_scorers.RougeOptions, "rouge-score"),
    "ragas_chrf": _ragas_text("chrf", ragas_scorers.RagasTextOptions, "sacrebleu"),
    "ragas_string_similarity": _ragas_text("string_similarity", ragas_scorers.SimilarityOptions, "rapidfuzz"),
    "ragas_id_context_precision": _ragas_ids("id_context_precision"),
    "ragas_id_context_recall": _ragas_ids("id_context_recall"),
    "ragas_faithfulness": _ragas_judged(ragas_scorers.Faithfulness),
    "ragas_context_precision": _ragas_judged(ragas_scorers.ContextPrecision),
    "ragas_context_recall": _ragas_judged(ragas_scorers.ContextRecall),
    "ragas_factual_correctness": _ragas_judged(ragas_scorers.FactualCorrectness, ragas_scorers.FactualOptions),
    "ragas_answer_relevancy": _ragas_judged(ragas_scorers.AnswerRelevancy, ragas_scorers.RelevancyOptions),
    "latency": Kind(LatencyOptions, lambda line, options, output: Latency(options), decides=False, timed=True),
    "python": Kind(OwnOptions, lambda line, options, output: OwnScorer(options, None), decides=False),
    "cost": Kind(CostOptions, lambda line, options, output: Cost(options), decides=False, timed=True),
}
"""Every scorer there is."""


def make_scorer(line: ScorerLine, output: Output | None, code: OwnCode | None = None) -> AnyScorer:
    """Make the scorer of one line of a suite.

    Args:
        line: the line; its kind exists.
        output: how the bundle's task answers.
        code: of a scorer of one's own; without it, it only says what it applies to.

    Raises:
        ValidationError: the options are not the kind's.
        ValueError: the schema in the options is none.
    """
    kind = KINDS[line.name]
    options = kind.options.model_validate(line.options)
    return OwnScorer(options, code) if isinstance(options, OwnOptions) else kind.make(line, options, output)


def make_scorers(
    lines: Sequence[ScorerLine],
    output: Output | None,
    code: Mapping[str, OwnCode] | None = None,
    judges: Mapping[str, Judge] | None = None,
) -> dict[str, AnyScorer]:
    """Make every scorer of a suite, by the key that its scores are reported under; the lines were checked before.

    Args:
        lines: the suite's scorers.
        output: how the bundle's task answers.
        code: that of the suite's own scorers, by their keys.
        judges: those that were opened; a scorer whose judge is not among them measures nothing.
    """
    made = {line.key: make_scorer(line, output, (code or {}).get(line.key)) for line in lines}
    return {
        key: scorer.bound(judges or {}) if isinstance(scorer, JudgedScorer) else scorer for key, scorer in made.items()
    }


def paired(lines: Sequence[ScorerLine]) -> frozenset[str]:
    """Give the keys of the scorers that score an answer beside the baseline's."""
    return frozenset(line.key for line in lines if line.name == "pairwise")


def decides(line: ScorerLine) -> bool:
    """Say whether a must-pass case has to score 1 on this line."""
    return KINDS[line.name].decides if line.must_pass is None else line.must_pass


def timed(lines: Sequence[ScorerLine]) -> frozenset[str]:
    """Give the keys of the scorers that read the clock."""
    return frozenset(line.key for line in lines if KINDS[line.name].timed)


def demands_time(lines: Sequence[ScorerLine]) -> bool:
    """Say whether a scorer that reads the clock takes part in the suite's verdict."""
    keys = timed(lines)
    return any(
        line.key in keys
        and (line.floor is not None or line.tags or line.margin is not None or line.tag_margins or line.must_pass)
        for line in lines
    )
