"""Scorers for how a request was treated: refusal, forbidden, latency, cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from bundlectl.evaluation.scorers.score import Sample, Score, measured, unmeasured
from bundlectl.model.suite import Case
from bundlectl.model.types import Strict


class NoOptions(Strict):
    """A scorer without options."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """1 when the request was refused with the expected code, or answered where ``refusal: false``; else 0."""

    def applies(self, case: Case) -> bool:
        """Cases with ``expected.refusal``."""
        return case.expected.refusal is not None

    def score(self, sample: Sample) -> Score:
        """Compare the codes; a wrong kind of refusal is wrong."""
        wanted = sample.case.expected.refusal or "an answer"
        got = sample.answer.refused.code if sample.answer.refused is not None else "an answer"
        return measured(1) if got == wanted else measured(0, f"expected {wanted}, got {got}")


@dataclass(frozen=True, slots=True)
class Forbidden:
    """1 when no forbidden document is among the chunks that were retrieved (packed or not) nor cited; else 0.

    Nothing retrieved is nothing leaked: a request that was refused before the search scores 1.
    """

    def applies(self, case: Case) -> bool:
        """Cases with at least one of ``expected.forbidden_documents``."""
        return bool(case.expected.forbidden_documents)

    def score(self, sample: Sample) -> Score:
        """Look for each."""
        retrieval = sample.receipt.retrieval
        retrieved = {chunk.document for chunk in retrieval.chunks} if retrieval is not None else set()
        cited = {citation.document for citation in sample.answer.citations}
        leaked = sorted((retrieved | cited) & set(sample.case.expected.forbidden_documents or []))
        return measured(0, "reached: " + ", ".join(leaked)) if leaked else measured(1)


class LatencyOptions(Strict):
    """``seconds``: the bound, from request to whole answer."""

    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Latency:
    """1 when the answer or refusal came within the bound; else 0. The mean is the share that did."""

    options: LatencyOptions

    def applies(self, case: Case) -> bool:
        """Every case."""
        return True

    def score(self, sample: Sample) -> Score:
        """Compare."""
        if sample.seconds <= self.options.seconds:
            return measured(1)
        return measured(0, f"{sample.seconds:.3f} s, over {self.options.seconds:g} s")


class CostOptions(Strict):
    """``usd``: the bound, in US dollars a request."""

    usd: Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Cost:
    """1 when the request cost no more than the bound; else 0. The mean is the share that did.

    The cost is that of the receipt, failed attempts among it. Where a price is not known it is unmeasured.
    """

    options: CostOptions

    def applies(self, case: Case) -> bool:
        """Every case."""
        return True

    def score(self, sample: Sample) -> Score:
        """Compare."""
        usd = sample.receipt.cost.usd
        if usd is None:
            return unmeasured("the price of a model that was called is not known")
        if usd <= self.options.usd:
            return measured(1)
        return measured(0, f"{usd:.6f} USD, over {self.options.usd:g}")
