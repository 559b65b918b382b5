"""Suites and cases: what an evaluation runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from bundlectl.model.types import Digest, Duration, Name, RelativePath, Strict

Margin = Annotated[float, Field(gt=0, le=1)]
"""A difference of mean scores, above 0."""


class Scorer(Strict):
    """A scorer of the suite. ``floor``: the least mean that passes. ``tags``: floors for tagged cases alone.

    ``name`` is the scorer's kind; ``as_`` distinguishes two of one kind. ``k`` is the cut of ranked lists.
    The tag ``split:NAME`` stands for the cases of that split. ``must_pass``: whether a must-pass case has to score
    1 here; left out, the kind decides (not where a score below 1 is no failure: recall, MRR, nDCG, latency).
    ``margin``: how much worse than the baseline is still no worse; ``tag_margins``: the same for tagged cases alone.
    """

    name: Name
    as_: Name | None = Field(default=None, alias="as")
    floor: Annotated[float, Field(ge=0, le=1)] | None = None
    tags: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    by: Literal["document", "section"] = "section"
    k: Annotated[int, Field(ge=1, le=100)] = 6
    must_pass: bool | None = None
    margin: Margin | None = None
    tag_margins: dict[str, Margin] | None = None
    options: dict[str, Any] = {}

    @property
    def key(self) -> str:
        """The name that scores are reported under."""
        return self.as_ or self.name


class Judge(Strict):
    """A model that judges answers. Where it is reached is not the suite's to say: that is bound when it is run.

    ``timeout`` is of one call, ``retries`` are of calls that failed, ``concurrency`` is calls under way at once.
    """

    provider: Literal["bedrock", "sagemaker", "openai"]
    model: str = Field(min_length=1)
    parameters: dict[str, Any] = {}
    timeout: Duration = "60s"
    retries: Annotated[int, Field(ge=0, le=5)] = 2
    concurrency: Annotated[int, Field(ge=1, le=64)] = 4


Bound = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class LatencyBounds(Strict):
    """The most seconds that a percentile of a run may take, from request to whole answer."""

    p50: Bound | None = None
    p95: Bound | None = None
    p99: Bound | None = None


class CostBounds(Strict):
    """The most US dollars that a request may cost: on average, or a percentile of a run."""

    mean: Bound | None = None
    p50: Bound | None = None
    p95: Bound | None = None
    p99: Bound | None = None


class Bounds(Strict):
    """What a run has to keep to as a whole, whatever each case scores."""

    latency: LatencyBounds | None = None
    cost: CostBounds | None = None


class Suite(Strict):
    """A suite file: task, dataset, scorers, and the cases that must pass whatever the means say.

    ``repeats``: how often each case is asked; once unless said. ``judges``: the models that judge, by the names that
    scorers call them by. ``bounds``: of latency and cost, over the whole run.
    """

    apiVersion: Literal["bundlectl/v1"]
    kind: Literal["Suite"]
    name: Name
    task: Name
    profile: Name | None = None
    dataset: RelativePath
    splits: list[str] | None = None
    scorers: list[Scorer] = Field(min_length=1)
    must_pass: list[str] = []
    max_errors: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_unmeasured: Annotated[float, Field(ge=0, le=1)] = 0.0
    repeats: Annotated[int, Field(ge=1, le=100)] | None = None
    bounds: Bounds | None = None
    judges: dict[Name, Judge] | None = None


class ExpectedDocument(Strict):
    """A document, and a section of it, that answers the case."""

    document: str
    section: list[str] | None = None


class ExpectedSpan(Strict):
    """Characters of a document that answer the case: by their place, or as a quote.

    ``start`` and ``end`` count characters of the document as it was indexed, ``end`` beyond the last; ``version`` is
    the document's version that they count in, as receipts name it. ``text`` alone is looked for in what was retrieved;
    beside offsets it is what has to stand there.
    """

    document: str
    start: Annotated[int, Field(ge=0)] | None = None
    end: Annotated[int, Field(ge=1)] | None = None
    version: Digest | None = None
    text: str | None = None

    @model_validator(mode="after")
    def _placed(self) -> ExpectedSpan:
        if (self.start is None) != (self.end is None):
            raise ValueError("a span has a start and an end, or neither")
        if self.start is None or self.end is None:
            if self.version is not None:
                raise ValueError("a version is that of start and end, which are not there")
            if self.text is None or not self.text.strip():
                raise ValueError("a span has a start and an end, or a text")
        elif self.start >= self.end:
            raise ValueError("a span ends after it starts")
        return self


class Expected(Strict):
    """What a right answer shows. Only what is given is scored. ``extra`` is for scorers of one's own.

    ``answer``: a right answer in full, which others are held against; many wordings may be as right.
    """

    documents: list[ExpectedDocument] | None = None
    spans: list[ExpectedSpan] | None = None
    forbidden_documents: list[str] | None = None
    contains: list[str] | None = None
    exact: str | None = None
    answer: Annotated[str, Field(min_length=1)] | None = None
    regex: str | None = None
    refusal: Literal[False, "no_answer", "access_denied", "input_blocked", "output_blocked"] | None = None
    extra: dict[str, Any] | None = None

    @field_validator("refusal", mode="before")
    @classmethod
    def _no_number(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            raise ValueError("write false, or the code of the refusal that is expected")
        return value


class Case(Strict):
    """One line of a dataset."""

    id: str = Field(min_length=1, max_length=200)
    input: dict[str, Any] = Field(min_length=1)
    tenant: str
    role: str
    scopes: list[Name] = []
    profile: Name | None = None
    latency_class: Literal["interactive", "batch"] = "interactive"
    response_format: Literal["structured_json", "text"] | None = None
    tags: list[str] = []
    split: str | None = None
    group: str | None = None
    expected: Expected
