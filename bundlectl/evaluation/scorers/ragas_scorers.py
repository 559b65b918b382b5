"""Metrics of ragas as scorers: without a judge by words and ids, with one by what it makes of question and answer.

The library is an extra and is loaded when a run with such a scorer begins, not before. A metric that gives no number,
or one outside of 0 to 1, is an error of its row; rounding in the last place is not.
"""

from __future__ import annotations

import asyncio
import importlib
import math
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from bundlectl.evaluation.scorers.judge import Judge, NoRuling
from bundlectl.evaluation.scorers.judged import Exhibit, JudgedOptions, JudgedScorer, question_of
from bundlectl.evaluation.scorers.score import Sample, Score, Weighed, failed, measured, total, unmeasured
from bundlectl.evaluation.scorers.text import text_of
from bundlectl.inference.embeddings import Embedder, open_embedder
from bundlectl.model.components import Embedding
from bundlectl.model.errors import MissingExtra
from bundlectl.model.suite import Case
from bundlectl.model.types import Strict

VERSION: Final = 1
_PLACES = 12
_BROKEN = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What ragas raises when a row is not to its taste."""


def library() -> Any:
    """Load ragas.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module("bundlectl.evaluation.scorers.ragas_library")
    except ModuleNotFoundError as error:
        raise MissingExtra("A scorer of ragas", "ragas") from error


def versions(*packages: str) -> dict[str, str]:
    """Give the versions of installed packages; one that is not installed is left out."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def scored(value: float) -> Score:
    """Make a score of what a metric gave."""
    return measured(round(value, _PLACES) + 0.0 if math.isfinite(value) else value)


class RagasTextOptions(Strict):
    """``field``: where the text of a structured answer stands."""

    field: str = "answer"


class RougeOptions(RagasTextOptions):
    """``rouge_type``: single words, or the longest common subsequence; ``mode``: which of the three figures."""

    rouge_type: Literal["rouge1", "rougeL"] = "rougeL"
    mode: Literal["fmeasure", "precision", "recall"] = "fmeasure"


class SimilarityOptions(RagasTextOptions):
    """``distance``: how two strings are compared."""

    distance: Literal["levenshtein", "hamming", "jaro", "jaro_winkler"] = "levenshtein"


class _Plain:
    """A scorer that asks no judge. ``metric`` is its name without the prefix; ``needs`` are libraries that it uses."""

    def __init__(self, metric: str, options: Strict, needs: tuple[str, ...] = ()) -> None:
        self.metric, self.options, self._needs = metric, options, needs

    @property
    def identity(self) -> Mapping[str, Any]:
        """The versions of the libraries."""
        return {"libraries": versions("ragas", *self._needs), "version": VERSION}

    async def open(self) -> None:
        """Load ragas, before anything is asked."""
        await asyncio.to_thread(library)

    async def close(self) -> None:
        """Hold nothing."""


class RagasText(_Plain):
    """How like the reference the answer is, by its words."""

    options: RagasTextOptions

    def applies(self, case: Case) -> bool:
        """Cases with ``expected.answer``."""
        return case.expected.answer is not None

    async def weigh(self, sample: Sample) -> Weighed:
        """Compare; an answer without a text is like nothing."""
        text = text_of(sample.answer, self.options.field)
        if text is None:
            refused = sample.answer.refused
            return Weighed(measured(0, f"refused: {refused.code}" if refused else "the output has no text"))
        options = self.options.model_dump(exclude={"field"})
        try:
            value = await library().text_score(self.metric, options, sample.case.expected.answer, text)
        except _BROKEN as error:
            return Weighed(failed(f"ragas broke: {type(error).__name__}"))
        return Weighed(scored(value))


class RagasIds(_Plain):
    """How many of the packed documents were expected, or of the expected ones were packed; each counts once."""

    def applies(self, case: Case) -> bool:
        """Cases with ``expected.documents``."""
        return bool(case.expected.documents)

    async def weigh(self, sample: Sample) -> Weighed:
        """Compare; of nothing, no share is right."""
        retrieved = list(dict.fromkeys(passage.document for passage in sample.passages))
        expected = list(dict.fromkeys(one.document for one in sample.case.expected.documents or []))
        if not retrieved:
            nothing = (
                unmeasured("nothing was packed") if "precision" in self.metric else measured(0, "nothing was packed")
            )
            return Weighed(nothing)
        try:
            return Weighed(scored(await library().id_score(self.metric, retrieved, expected)))
        except _BROKEN as error:
            return Weighed(failed(f"ragas broke: {type(error).__name__}"))


class FactualOptions(JudgedOptions):
    """``mode``: claims of the answer that the reference holds, the other way round, or both."""

    mode: Literal["precision", "recall", "f1"] = "f1"
    atomicity: Literal["low", "high"] = "low"
    coverage: Literal["low", "high"] = "low"


class RelevancyOptions(JudgedOptions):
    """``strictness``: how many questions the judge makes up from the answer; ``embedding``: how they are compared."""

    strictness: Annotated[int, Field(ge=1, le=10)] = 3
    embedding: Embedding = Embedding(provider="wordllama", model="l2_supercat", dimensions=256)


class RagasJudged(JudgedScorer):
    """A metric of ragas that asks our judge. Its prompts are ragas', so ragas' version is what names the rubric."""

    metric: ClassVar[str]
    needs_reference: ClassVar[bool] = False
    needs_contexts: ClassVar[bool] = False
    of_answer: ClassVar[bool] = True
    """Whether the answer's text is looked at; else only what was retrieved for it."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """The judge, the metric, and the versions of the libraries."""
        return {**super().identity, "libraries": versions("ragas", *self._libraries())}

    def rubric(self) -> dict[str, Any]:
        """Name the metric and its options."""
        return {"ragas": self.metric, "options": self._own()}

    def applies(self, case: Case) -> bool:
        """Cases that expect an answer, and give a reference where one is needed."""
        return super().applies(case) and (case.expected.answer is not None or not self.needs_reference)

    async def open(self) -> None:
        """Load ragas, before anything is asked."""
        await asyncio.to_thread(library)
        self._embedder()

    async def close(self) -> None:
        """Hold nothing."""

    async def weigh(self, sample: Sample) -> Weighed:
        """Show the judge what the metric looks at."""
        if self.judge is not None and not self.of_answer:
            contexts = tuple(passage.text for passage in sample.passages)
            return await self.examine(Exhibit(sample.case, "", contexts))
        return await super().weigh(sample)

    async def ask(self, judge: Judge, exhibit: Exhibit) -> Weighed:
        """Run the metric."""
        if self.needs_contexts and not exhibit.passages:
            nothing = "nothing was packed"
            return Weighed(measured(0, nothing) if self.metric == "context_recall" else unmeasured(nothing))
        loaded = library()
        llm = loaded.JudgeLLM(judge)
        try:
            value = await loaded.judged_score(
                self.metric,
                llm,
                {name: value for name, value in self._own().items() if name != "embedding"},
                self._embedder(),
                question=question_of(exhibit.case),
                response=exhibit.text,
                contexts=list(exhibit.passages),
                reference=exhibit.case.expected.answer or "",
            )
        except NoRuling as error:
            raise NoRuling(error.what, total([*llm.spent, error.usd])) from error
        except _BROKEN as error:
            return Weighed(failed(f"ragas broke: {type(error).__name__}"), total(llm.spent))
        score = scored(value).model_copy(update={"judge": ", ".join(sorted(llm.models)) or None})
        return Weighed(score, total(llm.spent))

    def _own(self) -> dict[str, Any]:
        """Give the metric's own options."""
        return self.options.model_dump(mode="json", exclude=set(JudgedOptions.model_fields))

    def _libraries(self) -> tuple[str, ...]:
        return ()

    def _embedder(self) -> Embedder | None:
        return None


class Faithfulness(RagasJudged):
    """The share of the answer's statements that follow from what was retrieved."""

    metric = "faithfulness"
    needs_contexts = True


class ContextPrecision(RagasJudged):
    """Whether what was retrieved first is what the reference answer can be made from."""

    metric = "context_precision"
    needs_reference = needs_contexts = True
    of_answer = False


class ContextRecall(RagasJudged):
    """The share of the reference answer's statements that what was retrieved holds."""

    metric = "context_recall"
    needs_reference = needs_contexts = True
    of_answer = False


class FactualCorrectness(RagasJudged):
    """How far the claims of answer and reference are the same."""

    metric = "factual_correctness"
    needs_reference = True


class AnswerRelevancy(RagasJudged):
    """How like the question are questions that the judge makes up from the answer."""

    options: RelevancyOptions
    metric = "answer_relevancy"
    _made: Embedder | None = None

    def _libraries(self) -> tuple[str, ...]:
        return ("wordllama",) if self.options.embedding.provider == "wordllama" else ()

    def _embedder(self) -> Embedder | None:
        if self._made is None:
            self._made = open_embedder(self.options.embedding)
        return self._made
