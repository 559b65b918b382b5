"""What scorers that ask a judge have in common: their options, what they show of an answer, how a ruling counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field

from bundlectl.evaluation.scorers.judge import Judge, NoRuling
from bundlectl.evaluation.scorers.score import Sample, Score, Weighed, failed, measured, unmeasured
from bundlectl.evaluation.scorers.text import text_of
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.suite import Case
from bundlectl.model.types import Name, RelativePath, Strict

VERSION: Final = 1
"""Part of every identity; raised when a prompt or what is made of a reply changes."""

Sense = Literal["good", "bad", "neither"]


class JudgedOptions(Strict):
    """Options of every scorer that asks a judge.

    ``judge``: one of the suite's judges. ``field``: where the text of a structured answer stands. ``labels``: what
    people said of answers, JSON Lines; ``calibration``: where `judge calibrate` writes how well the judge agrees with
    them. Both beside the suite. ``good``: the least score that counts as a good answer where the two are held together.
    """

    judge: Name
    field: str = "answer"
    labels: RelativePath | None = None
    calibration: RelativePath | None = None
    good: Annotated[float, Field(gt=0, le=1)] = 0.5


@dataclass(frozen=True, slots=True)
class Exhibit:
    """What a judge is shown: a case and the text of its answer; ``other`` is the answer beside it, for a preference."""

    case: Case
    text: str
    passages: tuple[str, ...] = ()
    other: str | None = None


class JudgedScorer(ABC):
    """A scorer that asks a judge. Without one, which is so until it is :meth:`bound`, nothing is measured."""

    paired = False
    """Whether it scores an answer beside the baseline's."""

    def __init__(self, options: JudgedOptions, judge: Judge | None = None) -> None:
        self.options, self.judge = options, judge

    def bound(self, judges: Mapping[str, Judge]) -> Self:
        """Give the same scorer with its judge, where that one was opened."""
        return type(self)(self.options, judges.get(self.options.judge))

    @property
    def identity(self) -> Mapping[str, Any]:
        """The judge, and what it is asked."""
        judge = {"judge": dict(self.judge.identity)} if self.judge is not None else {}
        return {**judge, "rubric": digest(canonical(self.rubric())), "version": VERSION}

    @abstractmethod
    def rubric(self) -> dict[str, Any]:
        """Give all that shapes the prompt and the score besides the exhibit, as JSON."""

    def applies(self, case: Case) -> bool:
        """Every case that expects an answer."""
        return not case.expected.refusal

    async def weigh(self, sample: Sample) -> Weighed:
        """Show the answer to the judge."""
        if self.judge is None:
            return Weighed(unmeasured(f"the judge {self.options.judge} has no address here"))
        text = text_of(sample.answer, self.options.field)
        if text is None:
            return Weighed(self.without_text(sample))
        return await self.examine(Exhibit(sample.case, text, tuple(passage.text for passage in sample.passages)))

    def without_text(self, sample: Sample) -> Score:
        """Score what has no text to judge: there is nothing good about it."""
        refused = sample.answer.refused
        return measured(0, f"refused: {refused.code}" if refused is not None else "the output has no text")

    async def examine(self, exhibit: Exhibit) -> Weighed:
        """Score an exhibit; a judge that gives no ruling makes an error."""
        if self.judge is None:
            return Weighed(unmeasured(f"the judge {self.options.judge} has no address here"))
        try:
            return await self.ask(self.judge, exhibit)
        except NoRuling as error:
            return Weighed(failed(error.what), error.usd)

    @abstractmethod
    async def ask(self, judge: Judge, exhibit: Exhibit) -> Weighed:
        """Ask the judge and score.

        Raises:
            NoRuling: it gave none.
        """

    def sense(self, value: float) -> Sense:
        """Say what a score or a label of an answer means where judge and people are held together."""
        return "good" if value >= self.options.good else "bad"


def ruled(value: float, model: str | None, usd: float | None) -> Weighed:
    """Make the score of a ruling."""
    return Weighed(measured(value).model_copy(update={"judge": model}), usd)


def question_of(case: Case) -> str:
    """Give the question of a case: its one input, else the one called question, else all of them as JSON."""
    texts = [value for value in case.input.values() if isinstance(value, str)]
    if len(case.input) == 1 and texts:
        return texts[0]
    named = case.input.get("question")
    return named if isinstance(named, str) else canonical(case.input).decode()
