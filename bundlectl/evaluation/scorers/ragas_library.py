"""The one file that imports ragas, which takes seconds: its metrics, with our judge and embedder in place of its own.

Nothing of ragas' surroundings is used. Its judge is ours, with the suite's parameters, and reaches no other address;
its cache is never made, as its keys leave out judge and temperature; its means are never taken, as they drop the rows
that are no number. Usage is not reported: the variable is set before the import, which reads it.
"""

from __future__ import annotations

import asyncio
import os
import re
from typing import Any, TypeVar

os.environ["RAGAS_DO_NOT_TRACK"] = "true"

from pydantic import BaseModel, ValidationError
from ragas import SingleTurnSample
from ragas.embeddings.base import BaseRagasEmbedding
from ragas.llms.base import InstructorBaseRagasLLM
from ragas.metrics._context_precision import IDBasedContextPrecision
from ragas.metrics._context_recall import IDBasedContextRecall
from ragas.metrics.collections import (
    AnswerRelevancy,
    BleuScore,
    CHRFScore,
    ContextPrecision,
    ContextRecall,
    DistanceMeasure,
    FactualCorrectness,
    Faithfulness,
    NonLLMStringSimilarity,
    RougeScore,
)

from bundlectl.evaluation.scorers.judge import Judge, Misread
from bundlectl.inference.embeddings import Embedder

Form = TypeVar("Form", bound=BaseModel)

_FLAGS = frozenset({"verdict", "attributed", "noncommittal"})


class JudgeLLM(InstructorBaseRagasLLM):
    """Our judge as ragas' model, for one row. ``spent`` and ``models`` are what its replies cost and who gave them.

    ragas takes a flag of 7 for true, and a share of the verdicts that came for that of the verdicts it asked for. So a
    flag has to be 0 or 1, and every statement has to have a verdict, or there is no ruling.
    """

    def __init__(self, judge: Judge) -> None:
        self.spent: list[float | None] = []
        self.models: set[str] = set()
        self._judge = judge
        self._statements: int | None = None

    def generate(self, prompt: str, response_model: type[Form]) -> Form:
        """Refuse: every metric here asks asynchronously."""
        raise RuntimeError("a judge is asked asynchronously")

    async def agenerate(self, prompt: str, response_model: type[Form]) -> Form:
        """Ask the judge for JSON of a form.

        Raises:
            NoRuling: it gave none.
        """

        def read(value: Any) -> Form:
            try:
                made = response_model.model_validate(value)
            except ValidationError as error:
                raise Misread("its reply does not have the form that ragas asks for") from error
            self._check(made)
            return made

        message = {"role": "user", "content": prompt}
        ruling = await self._judge.rule([message], response_model.model_json_schema(), read)
        self.spent.append(ruling.usd)
        if ruling.model is not None:
            self.models.add(ruling.model)
        said = getattr(ruling.said, "claims", None) or getattr(ruling.said, "statements", None)
        self._statements = len(said) if said and all(isinstance(one, str) for one in said) else None
        return ruling.said

    def _check(self, made: BaseModel) -> None:
        parts = [made, *(one for _, value in made if isinstance(value, list) for one in value)]
        for part in parts:
            for name, value in part if isinstance(part, BaseModel) else ():
                if name in _FLAGS and value not in (0, 1):
                    raise Misread(f"its {name} is neither 0 nor 1")
        verdicts = getattr(made, "statements", None)
        if (
            isinstance(verdicts, list)
            and not any(isinstance(one, str) for one in verdicts)
            and self._statements is not None
            and len(verdicts) != self._statements
        ):
            raise Misread("it did not give each statement one verdict")


class OurEmbedding(BaseRagasEmbedding):
    """Our embedder as ragas' one."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self._embedder = embedder

    def embed_text(self, text: str, **kwargs: Any) -> list[float]:
        """Embed; may take long."""
        return self._embedder.embed([text])[0]

    async def aembed_text(self, text: str, **kwargs: Any) -> list[float]:
        """Embed beside the loop."""
        return await asyncio.to_thread(self.embed_text, text)


async def text_score(name: str, options: dict[str, Any], reference: str, response: str) -> float:
    """Compare an answer with a reference by its words."""
    metric: Any
    if name == "bleu":
        # ragas cuts both texts at ". " and holds sentence n against sentence n; what one has more is left out, so that
        # a right first sentence and any second one score 1. As one sentence each they are held together whole.
        reference, response = (re.sub(r"\. ", ".\n", text) for text in (reference, response))
        metric = BleuScore()
    elif name == "rouge":
        metric = RougeScore(**options)
    elif name == "chrf":
        metric = CHRFScore()
    else:
        metric = NonLLMStringSimilarity(distance_measure=DistanceMeasure(options["distance"]))
    return float((await metric.ascore(reference=reference, response=response)).value)


async def id_score(name: str, retrieved: list[str], expected: list[str]) -> float:
    """Compare what was retrieved with what was to be, by ids."""
    metric: Any = IDBasedContextPrecision() if name == "id_context_precision" else IDBasedContextRecall()
    sample = SingleTurnSample(retrieved_context_ids=retrieved, reference_context_ids=expected)
    # The public method makes an event of the call before it asks whether to report it, and for that a file at home.
    return float(await metric._single_turn_ascore(sample, None))


async def judged_score(
    name: str,
    llm: JudgeLLM,
    options: dict[str, Any],
    embedder: Embedder | None,
    *,
    question: str,
    response: str,
    contexts: list[str],
    reference: str,
) -> float:
    """Score by a metric that asks the judge.

    Raises:
        NoRuling: the judge gave none.
    """
    metric: Any
    shown: dict[str, Any]
    if name == "faithfulness":
        metric = Faithfulness(llm=llm)
        shown = {"user_input": question, "response": response, "retrieved_contexts": contexts}
    elif name in ("context_precision", "context_recall"):
        metric = ContextPrecision(llm=llm) if name == "context_precision" else ContextRecall(llm=llm)
        shown = {"user_input": question, "reference": reference, "retrieved_contexts": contexts}
    elif name == "factual_correctness":
        metric, shown = FactualCorrectness(llm=llm, **options), {"response": response, "reference": reference}
    elif embedder is not None:
        metric = AnswerRelevancy(llm=llm, embeddings=OurEmbedding(embedder), **options)
        shown = {"user_input": question, "response": response}
    else:
        raise ValueError(f"{name} compares meanings, and has no embedder")
    return float((await metric.ascore(**shown)).value)
