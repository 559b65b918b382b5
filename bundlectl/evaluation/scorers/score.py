"""What a score is, and what a scorer promises.

Three things are told apart. A scorer that does not *apply* to a case (the case has no such expectation) gives no
score at all, and the case is not counted. A score is *unmeasured* when the case has the expectation but nothing
was there to measure it on. It is an *error* when the measuring itself failed. Neither of the last two is a zero
or a one, and neither ever helps a verdict.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import Field, model_validator

from bundlectl.inference.provider import Passage
from bundlectl.model.contract import Answer
from bundlectl.model.errors import BundlectlError
from bundlectl.model.receipt import Receipt
from bundlectl.model.suite import Case
from bundlectl.model.types import Strict


class Score(Strict):
    """One scorer's word on one case. ``value`` in [0, 1], there exactly when ``outcome`` is measured.

    ``judge``: the model that judged, by the id that its provider returned. ``why`` never quotes the
    question or the answer: it goes into reports that people pass around.
    """

    value: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    outcome: Literal["measured", "unmeasured", "error"]
    why: str = ""
    judge: str | None = None

    @model_validator(mode="after")
    def _value_if_measured(self) -> Score:
        if (self.value is not None) != (self.outcome == "measured"):
            raise ValueError("a score has a value exactly when it is measured")
        return self


def measured(value: float, why: str = "") -> Score:
    """Make a measured score; a value that is no number in [0, 1] makes an error of it."""
    if math.isnan(value) or not 0 <= value <= 1:
        return failed(f"the scorer gave {value}, which is no score between 0 and 1")
    return Score(value=float(value), outcome="measured", why=why)


def unmeasured(why: str) -> Score:
    """Make the score of a case whose expectation there was nothing to measure on."""
    return Score(outcome="unmeasured", why=why)


def failed(why: str) -> Score:
    """Make the score of a case that could not be measured because something broke."""
    return Score(outcome="error", why=why)


@dataclass(frozen=True, slots=True)
class Sample:
    """One answered case.

    ``case``: what was asked, and what a right answer shows. ``receipt``: the record of how the answer came.
    ``seconds``: wall time from request to answer. ``passages``: what was packed into the prompt, with its text.
    ``beside``: what the baseline answered to the same case in the same run; None where there is none.
    """

    case: Case
    answer: Answer
    receipt: Receipt
    seconds: float
    passages: tuple[Passage, ...] = ()
    beside: Answer | None = None


class Scorer(Protocol):
    """Measures one thing. Pure: equal samples give equal scores."""

    def applies(self, case: Case) -> bool:
        """Say whether the case expects what this scorer measures. Depends on the case alone."""
        ...

    def score(self, sample: Sample) -> Score:
        """Score the sample of a case that the scorer applies to."""
        ...


@dataclass(frozen=True, slots=True)
class Weighed:
    """A score that was waited for. ``usd``: what it cost, None where a price is not known."""

    score: Score
    usd: float | None = 0.0


def total(costs: Sequence[float | None]) -> float | None:
    """Add up; None where one is not known."""
    known = [usd for usd in costs if usd is not None]
    return math.fsum(known) if len(known) == len(costs) else None


@runtime_checkable
class AwaitedScorer(Protocol):
    """Measures one thing by asking: a judge, or a library that works asynchronously."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that a score depends on besides the sample, as JSON: judge, parameters, rubric, versions of libraries.

        Part of the key of the scoring cache and of what is signed; it holds no credential.
        """
        ...

    def applies(self, case: Case) -> bool:
        """Say whether the case expects what this scorer measures. Depends on the case alone."""
        ...

    async def weigh(self, sample: Sample) -> Weighed:
        """Score the sample of a case that the scorer applies to."""
        ...


AnyScorer = Scorer | AwaitedScorer


@runtime_checkable
class OpenedScorer(Protocol):
    """A scorer that is opened before a run and closed after it."""

    async def open(self) -> None:
        """Get ready.

        Raises:
            BundlectlError: it cannot score anything; nothing was asked yet.
        """
        ...

    async def close(self) -> None:
        """Let go of what it holds; it may not have been opened."""
        ...


_FORESEEN = (ArithmeticError, AttributeError, BundlectlError, LookupError, RuntimeError, TypeError, ValueError)
"""What a scorer raises when an answer has a shape it was not made for."""


def score_case(scorer: Scorer, sample: Sample) -> Score | None:
    """Score a case; ``None`` when the scorer does not apply. A scorer that raises makes an error, never a value."""
    if not scorer.applies(sample.case):
        return None
    try:
        given = scorer.score(sample)
    except _FORESEEN as error:
        # The message may quote the answer, so only its type is kept.
        return failed(f"the scorer broke: {type(error).__name__}")
    return _checked(given)


async def weigh_every(scorers: Mapping[str, AnyScorer], sample: Sample) -> dict[str, Weighed]:
    """Weigh a case by every scorer that applies to it; those that have to be waited for are, together."""
    # Asking whether it is an AwaitedScorer takes longer than most scores.
    slow = [key for key, scorer in scorers.items() if hasattr(scorer, "weigh")]
    found: dict[str, Weighed | None] = {}
    if slow:
        found.update(zip(slow, await asyncio.gather(*(weigh_case(scorers[key], sample) for key in slow)), strict=True))
    every = {key: found[key] if key in found else await weigh_case(scorers[key], sample) for key in scorers}
    return {key: weighed for key, weighed in every.items() if weighed is not None}


async def weigh_case(scorer: AnyScorer, sample: Sample) -> Weighed | None:
    """As :func:`score_case`, for scorers that have to be waited for as well."""
    if not hasattr(scorer, "weigh"):
        score = score_case(scorer, sample)
        return Weighed(score) if score is not None else None
    if not scorer.applies(sample.case):
        return None
    try:
        given = await scorer.weigh(sample)
    except _FORESEEN as error:
        return Weighed(failed(f"the scorer broke: {type(error).__name__}"), None)
    return Weighed(_checked(given.score), given.usd)


def _checked(given: Score) -> Score:
    if given.outcome != "measured":
        return given
    # A score that was made past its checks (model_construct) is checked again: NaN would poison every mean.
    checked = measured(math.nan if given.value is None else given.value, given.why)
    return checked.model_copy(update={"judge": given.judge})
