"""What an evaluation need not do again: answers and scores, by everything that they depend on. DESIGN section 10.

An answer depends on the bundle's components, the tool's version, the request, the searched snapshot, the bindings
(endpoints among them), the models with all their parameters (a seed is one), and the number of the repeat: repeats
are never one answer. It depends on who asks and on the look as well: a second look at a digest that got the first
one's answers would be no second look, and no evaluator rests on answers that somebody else got, or that nobody
signed for. Beside a baseline it depends on the other bundle too: rows of a comparison belong beside each other in
time.

A score depends on the answer as it was kept, with the context that it was made from, and so on all that the answer
depends on; on the case with what it expects, on what the suite says of the scorer but for its demands, on the
scorer's own identity (a judge and its parameters), the output's schema and the tool's version.

Errors and degraded answers are never kept, nor scores that are not measured; and how long an answer took is never
given back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

from pydantic import ValidationError

from bundlectl import __version__
from bundlectl.evaluation.cache import EvaluationCache
from bundlectl.evaluation.scorers.score import AnyScorer, Score
from bundlectl.evaluation.scorers.table import timed
from bundlectl.inference.provider import Passage
from bundlectl.model.canonical import digest
from bundlectl.model.components import Output
from bundlectl.model.contract import Answer, Request
from bundlectl.model.receipt import Receipt
from bundlectl.model.suite import Case
from bundlectl.model.suite import Scorer as ScorerLine
from bundlectl.model.types import Strict, Time

DEMANDS = frozenset({"as", "floor", "tags", "must_pass", "margin", "tag_margins"})
"""What a suite's line says of a scorer that no score depends on."""


@runtime_checkable
class Identified(Protocol):
    """A scorer whose scores depend on more than its line: a judge, its parameters, the content of a file."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """All of it, as JSON."""
        ...


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """What every answer of one side of a run depends on, besides the request, the snapshot and the repeat.

    ``components``: digests of those that answers come from, by name. ``bindings``: as JSON, endpoints among them.
    ``models``: provider, id and parameters by name. ``addresses``: where models are asked, by route, as far as more
    than bindings says it: the AWS configuration. ``prices``: the price book that costs are by. ``actor``: who will
    sign; ``look``: the number of that look at the digest, by the ``suite`` of that name; None where nobody will sign.
    ``beside``: the other bundle of a comparison, and which of
    the two this one is.
    """

    components: Mapping[str, str]
    bindings: Mapping[str, Any]
    models: Mapping[str, Any]
    addresses: Mapping[str, str]
    prices: str
    actor: str
    look: int
    suite: str | None = None
    beside: str | None = None
    tool_version: str = __version__

    def digest(self) -> str:
        """Give the digest of all of it."""
        return _digest({name: getattr(self, name) for name in self.__dataclass_fields__})


class Kept(Strict):
    """An answer as it is kept: with the record of how it came, what it was made from, and when it was given."""

    answer: Answer
    receipt: Receipt
    passages: tuple[Passage, ...]
    time: Time


@dataclass(frozen=True, slots=True)
class Recalled:
    """An answer that was given before. ``mark`` stands for it and all that it depends on, in the keys of its scores."""

    answer: Answer
    receipt: Receipt
    passages: tuple[Passage, ...]
    time: datetime
    mark: str


def answer_key(ingredients: str, request: Request, snapshot: str | None, repeat: int) -> str:
    """Give the key of an answer; ``ingredients`` is the digest of them, ``snapshot`` the state that is searched."""
    return _digest(["answer", ingredients, request.form(), snapshot, repeat])


def scorer_digest(
    line: ScorerLine, output: Output | None, identity: Mapping[str, Any] | None = None, tool_version: str = __version__
) -> str:
    """Give the digest of a scorer: its line without its demands, the schema it may read, its identity, the version."""
    said = {name: value for name, value in line.form().items() if name not in DEMANDS}
    return _digest([said, output.form() if output is not None else None, dict(identity or {}), tool_version])


def score_key(mark: str, seen: str, scorer: str) -> str:
    """Give the key of a score: an answer's mark, the digest of what else a scorer sees, and that of the scorer."""
    return digest(f"score {mark} {seen} {scorer}".encode())


class Memory:
    """Answers and scores of one side of a run.

    ``timed``: keys of the scorers that read the clock; no score of theirs is kept.
    """

    def __init__(
        self,
        cache: EvaluationCache,
        ingredients: Ingredients,
        *,
        lines: Sequence[ScorerLine],
        scorers: Mapping[str, AnyScorer],
        output: Output | None,
        snapshot: Callable[[str], str | None],
        anew: bool = False,
    ) -> None:
        """Take what keys are made of.

        Args:
            cache: where entries are kept.
            ingredients: of the bundle.
            lines: the suite's scorers.
            scorers: those of them that the run makes use of, made, by their keys.
            output: how the bundle's task answers.
            snapshot: gives the state of the index that a task searches now; None if it searches none.
            anew: give back no answer, only keep them.
        """
        self.timed = timed(lines)
        self._cache, self._of = cache, ingredients.digest()
        self._scorers = {
            line.key: scorer_digest(line, output, _identity(scorers[line.key]))
            for line in lines
            if line.key in scorers and line.key not in self.timed
        }
        self._snapshot, self._anew = snapshot, anew

    def recall(self, request: Request, repeat: int) -> Recalled | None:
        """Give the answer to the same request, if it was kept."""
        if self._anew:
            return None
        key = answer_key(self._of, request, self._snapshot(request.task), repeat)
        value = self._cache.get([key]).get(key)
        if value is None:
            return None
        try:
            found = Kept.model_validate_json(value, by_alias=True, by_name=False)
        except ValidationError:
            self._cache.damaged()
            return None
        return Recalled(found.answer, found.receipt, found.passages, found.time, _mark(key, value))

    def keep(
        self,
        request: Request,
        repeat: int,
        answer: Answer,
        receipt: Receipt,
        passages: tuple[Passage, ...],
        at: datetime,
    ) -> str | None:
        """Keep an answer that may be given back, and give its mark: one that is no error and not degraded."""
        if answer.degraded is not None or receipt.error is not None:
            return None
        snapshot = self._snapshot(request.task)
        if receipt.retrieval is not None and receipt.retrieval.snapshot != snapshot:
            return None  # the index moved on meanwhile
        key = answer_key(self._of, request, snapshot, repeat)
        kept = Kept(answer=answer, receipt=receipt, passages=passages, time=at)
        value = kept.model_dump_json(by_alias=True, exclude_none=True).encode()
        self._cache.put("answer", [(key, value)])
        return _mark(key, value)

    def scores(self, mark: str, case: Case, beside: Answer | None = None) -> dict[str, Score]:
        """Give the scores that were kept of an answer, by itself or beside another bundle's."""
        of = _seen(case, beside)
        keys = {name: score_key(mark, of, scorer) for name, scorer in self._scorers.items()}
        kept = self._cache.get(list(keys.values()))
        found = {name: self._score(kept[key]) for name, key in keys.items() if key in kept}
        return {name: score for name, score in found.items() if score is not None}

    def keep_scores(self, mark: str, case: Case, scores: Mapping[str, Score], beside: Answer | None = None) -> None:
        """Keep scores of an answer, those that are measured."""
        of = _seen(case, beside)
        self._cache.put(
            "score",
            [
                (score_key(mark, of, self._scorers[name]), score.model_dump_json().encode())
                for name, score in scores.items()
                if name in self._scorers and score.outcome == "measured"
            ],
        )

    def _score(self, value: bytes) -> Score | None:
        try:
            return Score.model_validate_json(value)
        except ValidationError:
            self._cache.damaged()
            return None


def _identity(scorer: AnyScorer) -> Mapping[str, Any] | None:
    return scorer.identity if isinstance(scorer, Identified) else None


def _seen(case: Case, beside: Answer | None) -> str:
    """Give the digest of a case with all that it expects, and of another bundle's answer to it."""
    return _digest([case.form(), beside.form() if beside is not None else None])


def _mark(key: str, value: bytes) -> str:
    return digest(key.encode() + b"\n" + value)


def _digest(value: Any) -> str:
    # JSON of a model may hold numbers that have no canonical form, so this is a digest of plain sorted JSON.
    return digest(_WRITER.encode(value).encode("utf-8", "surrogatepass"))


_WRITER = json.JSONEncoder(default=dict, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
