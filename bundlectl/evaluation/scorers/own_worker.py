"""The process that runs a scorer of one's own: it loads the code once, then scores one sample for each line it reads.

Whatever the code raises ends the process, after a last line that says what and where: a scorer's state after an
exception is not to be trusted. What the code prints goes to standard error.
"""

from __future__ import annotations

import importlib
import inspect
import json
import linecache
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

from bundlectl.evaluation.scorers.score import Sample, Score
from bundlectl.inference.provider import Passage
from bundlectl.model.contract import Answer
from bundlectl.model.receipt import Receipt
from bundlectl.model.suite import Case

ASYNC = "it is async, and scorers are called plainly"


class _NoScorer(Exception):
    """The code was loaded and is no scorer."""


def main() -> None:
    """Load, answer, until there is nothing more to read."""
    # Both are for samples and answers alone: what the code prints must not be taken for an answer, nor must it, or what
    # it starts, read a sample.
    samples = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    loading = json.loads(samples.readline())
    place = loading["shown"]
    sys.excepthook = _last_words(answers, place, loading=True)
    score = _load(loading)
    _say(answers, {"loaded": True})
    sys.excepthook = _last_words(answers, place, loading=False)
    for line in samples:
        _say(answers, _answer(score(_sample(json.loads(line)))))


def _load(loading: dict[str, Any]) -> Callable[[Sample], Any]:
    found: Any
    if loading["source"] is not None:
        shown = loading["shown"]
        linecache.cache[shown] = (len(loading["source"]), None, loading["source"].splitlines(True), shown)
        module: dict[str, Any] = {"__name__": "bundlectl_own_scorer", "__file__": shown}
        exec(compile(loading["source"], shown, "exec"), module)  # noqa: S102 - what this process is for
        found = module.get(loading["name"])
    else:
        name, _, attribute = loading["name"].partition(":")
        found = importlib.import_module(name)
        for part in attribute.split("."):
            found = getattr(found, part, None) if part else found
    settings = loading["settings"]
    if inspect.isclass(found):
        make: Callable[..., Any] = found
        found = getattr(make(settings) if settings else make(), "score", None)
        settings = None
    if not callable(found):
        raise _NoScorer(f"{loading['name']} is no function, and no class with a method score")
    if inspect.iscoroutinefunction(found):
        raise _NoScorer(ASYNC)
    function = found
    return (lambda sample: function(sample, settings)) if settings else function


def _sample(given: dict[str, Any]) -> Sample:
    return Sample(
        case=_model(Case, given["case"]),
        answer=_model(Answer, given["answer"]),
        receipt=_model(Receipt, given["receipt"]),
        seconds=given["seconds"],
        passages=tuple(Passage(**{**one, "section": tuple(one["section"])}) for one in given["passages"]),
        beside=_model(Answer, given["beside"]) if given["beside"] is not None else None,
    )


def _model(kind: Any, value: Any) -> Any:
    return kind.model_validate_json(json.dumps(value), by_alias=True, by_name=False)


def _answer(given: Any) -> dict[str, Any]:
    if isinstance(given, Score):
        return {"score": given.model_dump(mode="json")}
    if given is None:
        return {"score": Score(outcome="unmeasured", why="the scorer gave no value").model_dump(mode="json")}
    if inspect.isawaitable(given):
        if inspect.iscoroutine(given):
            given.close()
        return {"error": ASYNC}
    if not isinstance(given, (int, float)):
        return {"error": f"it gave a {type(given).__name__}, and a score is a number between 0 and 1"}
    value = float(given)
    if not 0 <= value <= 1:  # NaN is not, either
        return {"error": f"it gave {value}, which is no score between 0 and 1"}
    return {"score": Score(value=value, outcome="measured").model_dump(mode="json")}


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _last_words(
    answers: TextIO, shown: str, *, loading: bool
) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    """Say what ended the process, and where; its message only while loading: later it may quote an answer."""

    def say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        line = error.lineno if isinstance(error, SyntaxError) and error.filename == shown else None
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == shown:
                line = trace.tb_lineno
            trace = trace.tb_next
        where = f"{shown}:{line}" if line is not None else shown
        what = str(error) if kind is _NoScorer else kind.__name__ + (f": {error}" if loading else "")
        _say(answers, {"raised": f"{where}: {what}"[:2000]})

    return say
