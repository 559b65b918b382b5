"""What an evaluation remembers: each ingredient of the keys misses when it changes, and nothing changed hits."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlectl.evaluation.cache import EvaluationCache, held
from bundlectl.evaluation.remembering import Ingredients, Memory, answer_key, scorer_digest
from bundlectl.evaluation.report import CaseResult
from bundlectl.evaluation.runner import Side, run_sides
from bundlectl.evaluation.scorers.score import Sample, Score, measured, unmeasured
from bundlectl.evaluation.scorers.table import demands_time, make_scorers
from bundlectl.evaluation.suite import LoadedSuite, read_suite, request_of
from bundlectl.inference.provider import Passage
from bundlectl.model.components import Output
from bundlectl.model.contract import Answer
from bundlectl.model.suite import Case, Scorer
from tests.evaluation.builders import NOW, D, Outcome, ScriptedRouter, answer, case, receipt, suite, write_suite

OTHER = "sha256:" + "e" * 64
MADE = Ingredients(
    components={"prompts": D, "models": D},
    bindings={"models": {"m": {"base_url": "http://a"}}},
    models={"m": {"model": "x", "parameters": {"temperature": 0, "seed": 1}}},
    addresses={"fast": "https://a eu-central-1"},
    prices="USD-1",
    actor="eve",
    look=1,
    beside=None,
    tool_version="1",
)
CHANGED = [
    replace(MADE, components={"prompts": OTHER, "models": D}),
    replace(MADE, components={"prompts": D}),
    replace(MADE, bindings={"models": {"m": {"base_url": "http://b"}}}),
    replace(MADE, models={"m": {"model": "y", "parameters": {"temperature": 0, "seed": 1}}}),
    replace(MADE, models={"m": {"model": "x", "parameters": {"temperature": 1, "seed": 1}}}),
    replace(MADE, models={"m": {"model": "x", "parameters": {"temperature": 0, "seed": 2}}}),
    replace(MADE, addresses={"fast": "https://a us-east-1"}),
    replace(MADE, prices="USD-2"),
    replace(MADE, actor="mallory"),
    replace(MADE, look=2),
    replace(MADE, suite="s"),
    replace(MADE, beside=OTHER),
    replace(MADE, tool_version="2"),
]


@pytest.mark.parametrize("changed", CHANGED)
def test_each_ingredient_of_a_bundle_misses(changed: Ingredients) -> None:
    assert changed.digest() != MADE.digest() == replace(MADE).digest()


def test_every_ingredient_was_changed() -> None:
    names = {field.name for field in fields(Ingredients)}
    assert names == {name for one in CHANGED for name in names if getattr(one, name) != getattr(MADE, name)}


def test_each_part_of_a_request_misses(tmp_path: Path) -> None:
    request = request_of(case(), suite(tmp_path).suite, "p")
    key = answer_key(D, request, D, 1)
    assert key == answer_key(D, request.model_copy(), D, 1)
    others = [answer_key(OTHER, request, D, 1), answer_key(D, request, OTHER, 1), answer_key(D, request, None, 1)]
    others.append(answer_key(D, request, D, 2))
    changes = {
        "task": "other",
        "tenant_id": "u",
        "user_role": "s",
        "data_scope": ["x"],
        "latency_class": "batch",
        "response_format": "text",
        "policy_profile": "q",
        "input": {"question": "other"},
    }
    assert changes.keys() <= type(request).model_fields.keys()
    others += [answer_key(D, request.model_copy(update={name: value}), D, 1) for name, value in changes.items()]
    assert len({key, *others}) == 1 + len(others)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.text(max_size=5), json_values, max_size=3)
ingredients = st.builds(
    Ingredients,
    components=st.dictionaries(st.text(max_size=5), st.sampled_from([D, OTHER]), max_size=3),
    bindings=mappings,
    models=mappings,
    addresses=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
    prices=st.text(max_size=3),
    actor=st.text(max_size=3),
    look=st.integers(1, 9),
    beside=st.none() | st.text(max_size=3),
    tool_version=st.text(max_size=3),
)


@settings(max_examples=300)
@given(ingredients, ingredients)
def test_keys_are_equal_exactly_when_everything_is(one: Ingredients, two: Ingredients) -> None:
    def told(value: Any) -> Any:
        """Tell 1 from 1.0 and True, which Python takes to be equal."""
        if isinstance(value, Mapping):
            return {name: told(inner) for name, inner in value.items()}
        return [told(inner) for inner in value] if isinstance(value, list) else repr(value)

    same = [told(getattr(one, f.name)) == told(getattr(two, f.name)) for f in fields(Ingredients)]
    assert (one.digest() == two.digest()) == all(same)
    assert one.digest() == replace(one, components=dict(reversed(one.components.items()))).digest()


def test_each_ingredient_of_a_scorer_misses_and_its_demands_do_not() -> None:
    line, output = Scorer(name="exact", floor=0.5), Output(format="text")
    judge = {"judge": {"model": "m", "parameters": {"temperature": 0}}}
    digests = [
        scorer_digest(line, output, None, "1"),
        scorer_digest(line, output, judge, "1"),
        scorer_digest(line, output, {"judge": {"model": "m", "parameters": {"temperature": 1}}}, "1"),
        scorer_digest(line, output, {"judge": {"model": "n", "parameters": {"temperature": 0}}}, "1"),
        scorer_digest(line, output, {"file": D}, "1"),
        scorer_digest(line, output, {"file": OTHER}, "1"),
        scorer_digest(line, output, None, "2"),
        scorer_digest(line, None, None, "1"),
        scorer_digest(Scorer(name="contains"), output, None, "1"),
        scorer_digest(Scorer(name="exact", k=3), output, None, "1"),
        scorer_digest(Scorer(name="exact", by="document"), output, None, "1"),
        scorer_digest(Scorer(name="exact", options={"x": 1}), output, None, "1"),
    ]
    assert len(set(digests)) == len(digests)
    demanding = Scorer.model_validate(
        {"name": "exact", "as": "e", "floor": 0.9, "tags": {"t": 0.1}, "margin": 0.1, "must_pass": True}
        | {"tag_margins": {"t": 0.5}}
    )
    assert scorer_digest(demanding, output, None, "1") == digests[0]


# ---------------------------------------------------------------- runs


class Counting:
    """A scorer with an identity, and a count of how often it had to score."""

    def __init__(self, score: Score | None = None, **identity: Any) -> None:
        self.identity = identity
        self.calls = 0
        self.given = score or measured(0.5)

    def applies(self, case: Case) -> bool:
        return True

    def score(self, sample: Sample) -> Score:
        self.calls += 1
        return self.given


def loaded(folder: Path, n: int = 4, floor: float | None = None) -> LoadedSuite:
    cases = [{"id": f"c{i}", "expected": {"exact": "yes"}} for i in range(n)]
    speed: dict[str, Any] = {"name": "latency", "options": {"seconds": 5}, **({"floor": floor} if floor else {})}
    return read_suite(write_suite(folder, cases, [{"name": "exact", "floor": 0.5}, speed]))


def memory(
    cache: EvaluationCache, chosen: LoadedSuite, made: Ingredients = MADE, counting: Counting | None = None
) -> Memory:
    lines = chosen.suite.scorers
    scorers: dict[str, Any] = {**make_scorers(lines, None)}
    if counting is not None:
        scorers["exact"] = counting
    return Memory(
        cache, made, lines=lines, scorers=scorers, output=None, snapshot=lambda task: D, anew=demands_time(lines)
    )


def measure(
    folder: Path,
    chosen: LoadedSuite,
    router: ScriptedRouter,
    *,
    repeats: int = 1,
    made: Ingredients = MADE,
    warnings: list[str] | None = None,
) -> list[CaseResult]:
    told = [] if warnings is None else warnings
    with EvaluationCache(folder, warn=told.append) as cache:
        side = Side(router, identity="me", profile="p", memory=lambda scorers: memory(cache, chosen, made))
        (found,) = asyncio.run(run_sides(chosen, [side], repeats=repeats, pause=0))
        assert warnings is not None or not told
        return found


def good() -> ScriptedRouter:
    return ScriptedRouter(lambda request: Outcome(answer(), receipt()))


def test_the_second_run_asks_nothing_costs_nothing_and_has_no_time(tmp_path: Path) -> None:
    router = good()
    first = measure(tmp_path, loaded(tmp_path), router, repeats=2)
    assert len(router.asked) == 8 and not any(row.cached for row in first)
    second = measure(tmp_path, loaded(tmp_path), router, repeats=2)
    assert len(router.asked) == 8 and all(row.cached and row.seconds is None and row.usd == 0 for row in second)
    assert [row.time for row in second] == [row.time for row in first]
    assert [row.scores["exact"] for row in second] == [row.scores["exact"] for row in first]
    assert all("latency" in row.scores for row in first) and not any("latency" in row.scores for row in second)


@pytest.mark.parametrize("changed", CHANGED)
def test_a_run_with_anything_changed_asks_anew(tmp_path: Path, changed: Ingredients) -> None:
    router = good()
    measure(tmp_path, loaded(tmp_path, 1), router)
    measure(tmp_path, loaded(tmp_path, 1), router, made=changed)
    assert len(router.asked) == 2


def test_repeats_never_collapse(tmp_path: Path) -> None:
    router = good()
    measure(tmp_path, loaded(tmp_path), router)
    rows = measure(tmp_path, loaded(tmp_path), router, repeats=3)
    assert len(router.asked) == 4 * 3 and [row.cached for row in rows] == [True, None, None] * 4


def test_where_time_decides_every_case_is_asked_anew(tmp_path: Path) -> None:
    router = good()
    for _ in range(2):
        rows = measure(tmp_path, loaded(tmp_path, floor=0.9), router)
        assert all(row.scores["latency"].value == 1 for row in rows)
    assert len(router.asked) == 8


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(None, receipt(error={"error": "x"})),
        Outcome(answer(), receipt(error={"error": "x"})),
        Outcome(answer(degraded="the first model failed"), receipt(attempts=("invalid", "ok"))),
        Outcome(answer(degraded="throttled"), receipt(attempts=("throttled", "ok"))),
        Outcome(answer(refused="limited"), receipt()),
        Outcome(answer(refused="unauthenticated"), receipt()),
        Outcome(answer(), receipt(snapshot=OTHER)),
    ],
)
def test_errors_degraded_answers_and_other_snapshots_are_not_kept(tmp_path: Path, outcome: Outcome) -> None:
    measure(tmp_path, loaded(tmp_path, 1), ScriptedRouter(lambda request: outcome))
    assert held(tmp_path).answers == 0 and held(tmp_path).scores == 0


def test_an_entry_of_another_form_is_asked_anew_with_a_warning(tmp_path: Path) -> None:
    chosen, router, warnings = loaded(tmp_path, 1), good(), list[str]()
    measure(tmp_path, chosen, router)
    with EvaluationCache(tmp_path, warn=warnings.append) as cache:
        key = answer_key(MADE.digest(), request_of(chosen.cases[0], chosen.suite, "p"), D, 1)
        cache.put("answer", [(key, b'{"answer":{}}')])
    (row,) = measure(tmp_path, chosen, router, warnings=warnings)
    assert not row.cached and len(router.asked) == 2 and len(warnings) == 1
    assert measure(tmp_path, chosen, router)[0].cached


PASSAGE = Passage(n=1, title="t", section=(), text="words", document="d", chunk="c")


def scored(
    folder: Path,
    counting: Counting,
    *,
    text: str = "yes",
    passages: tuple[Passage, ...] = (PASSAGE,),
    asked: Case | None = None,
    beside: Answer | None = None,
) -> None:
    """Keep an answer and score it, as a run does: what is known is not made again."""
    chosen = loaded(folder, 1)
    asked = asked or chosen.cases[0]
    request = request_of(asked, chosen.suite, "p")
    with EvaluationCache(folder, warn=pytest.fail) as cache:
        mine = memory(cache, chosen, counting=counting)
        held_before = mine.recall(request, 1)
        if held_before is None or (held_before.answer.output, held_before.passages) != (text, passages):
            mine.keep(request, 1, answer(text), receipt(), passages, NOW)
        recalled = mine.recall(request, 1)
        assert recalled is not None and recalled.passages == passages
        known = mine.scores(recalled.mark, asked, beside)
        if "exact" not in known:
            sample = Sample(asked, recalled.answer, recalled.receipt, 0.0, recalled.passages, beside)
            mine.keep_scores(recalled.mark, asked, {"exact": counting.score(sample)}, beside)


def test_a_score_is_made_once_for_the_same_and_again_for_anything_else(tmp_path: Path) -> None:
    counting = Counting(judge="m", temperature=0)
    for _ in range(2):
        scored(tmp_path, counting)
    assert counting.calls == 1
    (asked,) = loaded(tmp_path, 1).cases
    expects = asked.model_copy(update={"expected": asked.expected.model_copy(update={"exact": "no"})})
    calls = 1
    for more in (
        {"asked": expects},
        {"beside": answer("theirs")},
        {"beside": answer("theirs, reworded")},
        {"text": "another answer"},
        {"passages": (replace(PASSAGE, text="other words"),)},
    ):
        scored(tmp_path, counting, **more)  # type: ignore[arg-type]
        calls += 1
        assert counting.calls == calls, more
    for other in (Counting(judge="n", temperature=0), Counting(judge="m", temperature=1), Counting(file=D), Counting()):
        scored(tmp_path, other, text="another answer")
        scored(tmp_path, other, text="another answer")
        assert other.calls == 1


@pytest.mark.parametrize("score", [unmeasured("nothing there"), Score(outcome="error", why="broke")])
def test_only_measured_scores_are_kept(tmp_path: Path, score: Score) -> None:
    counting = Counting(score)
    for _ in range(2):
        scored(tmp_path, counting)
    assert counting.calls == 2 and held(tmp_path).scores == 0
