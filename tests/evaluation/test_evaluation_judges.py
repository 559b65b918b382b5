"""Judges over the real wire: rubric and preference, replies that are no ruling, and which judges may decide."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bundlectl.evaluation.calibration import Calibration, Judged, figures, kappa, rate, read_calibrations, weakness
from bundlectl.evaluation.journal import Journal
from bundlectl.evaluation.judges import unfit
from bundlectl.evaluation.labels import read_labels
from bundlectl.evaluation.report import CaseResult
from bundlectl.evaluation.runner import Side, run_sides
from bundlectl.evaluation.scorers.judge import Judge, endpoint_of
from bundlectl.evaluation.scorers.judged import JudgedScorer
from bundlectl.evaluation.scorers.score import AnyScorer, Sample, Weighed, measured, weigh_case
from bundlectl.evaluation.scorers.table import make_scorer
from bundlectl.evaluation.suite import read_suite
from bundlectl.inference.bedrock import open_bedrock
from bundlectl.inference.client import HttpClient
from bundlectl.inference.openai import OpenAIProvider
from bundlectl.inference.prices import PRICE_BOOK, PriceBook, read_price_book
from bundlectl.inference.provider import ModelCall, ModelReply, Passage
from bundlectl.model.bindings import ModelBinding
from bundlectl.model.components import Model
from bundlectl.model.errors import SourceError
from bundlectl.model.suite import Judge as Settings
from bundlectl.model.suite import Scorer as Line
from bundlectl.model.suite import Suite
from tests.evaluation.builders import NOW, Outcome, ScriptedRouter, answer, case, receipt, result, write_suite
from tests.support.fake_bedrock import API_KEY, Answer, fake_bedrock
from tests.support.fake_judge import BOOK, MODEL, first_always, judge
from tests.support.fake_models import FakeModels, Say, fake_models, throttle

RUBRIC = {"name": "rubric", "options": {"judge": "main", "criteria": "It says yes."}}
PAIRWISE = {"name": "pairwise", "options": {"judge": "main", "criteria": "The one that says yes."}}
YES = case(answer="yes")


@pytest.fixture(scope="module")
def prices(tmp_path_factory: pytest.TempPathFactory) -> PriceBook:
    file = tmp_path_factory.mktemp("prices") / "book.json"
    file.write_text(json.dumps(BOOK))
    return read_price_book(file)


@asynccontextmanager
async def opened(fake: FakeModels, prices: PriceBook, **settings: Any) -> AsyncIterator[Judge]:
    session = HttpClient()
    try:
        binding = ModelBinding(base_url=fake.base_url)
        made = Settings.model_validate({"provider": "openai", "model": "judge", "retries": 1, **settings})
        yield Judge("main", made, binding, OpenAIProvider(session, fake.base_url, "key"), prices)
    finally:
        await session.close()


async def weigh(scorer: AnyScorer, judge: Judge | None, text: str, beside: str | None = None) -> Weighed:
    assert isinstance(scorer, JudgedScorer)
    bound = scorer.bound({"main": judge} if judge is not None else {})
    other = answer(beside) if beside is not None else None
    passages = (Passage(1, "t", (), "It is so: yes.", "d", "c"),)
    found = await weigh_case(bound, Sample(YES, answer(text), receipt(), 1.0, passages, other))
    assert found is not None
    return found


def scorer(line: dict[str, Any]) -> AnyScorer:
    return make_scorer(Line.model_validate(line), None)


# ---------------------------------------------------------------- rubric


async def test_a_rubric_names_a_level_and_what_it_cost(prices: PriceBook) -> None:
    async with fake_models() as fake, opened(fake, prices, parameters={"temperature": 0, "seed": 7}) as main:
        fake.reply = judge()
        good = await weigh(scorer(RUBRIC), main, "yes")
        bad = await weigh(scorer(RUBRIC), main, "no")
    assert (good.score.value, bad.score.value, good.score.judge) == (1, 0, MODEL)
    assert good.usd is not None and good.usd > 0
    sent = fake.requests[0]
    assert sent["model"] == "judge" and sent["temperature"] == 0 and sent["seed"] == 7
    shown = json.loads(sent["messages"][1]["content"])
    assert shown["answer"] == "yes" and shown["reference"] == "yes" and "passages" not in shown
    assert sent["response_format"]["json_schema"]["schema"]["properties"]["score"]["enum"] == [0, 0.5, 1]


@pytest.mark.parametrize(
    "text",
    [
        "It is good, 10 of 10.",
        '{"reason": "", "score": NaN}',
        '{"reason": "", "score": Infinity}',
        '{"reason": "", "score": 1.5}',
        '{"reason": "", "score": -0.5}',
        '{"reason": "", "score": 0.7}',
        '{"reason": "", "score": "1"}',
        '{"reason": "", "score": true}',
        '{"reason": ""}',
        "[1]",
        "",
    ],
)
async def test_what_is_no_ruling_is_asked_for_once_more_and_then_an_error(text: str, prices: PriceBook) -> None:
    async with fake_models() as fake, opened(fake, prices) as main:
        fake.default = Say(text)
        found = await weigh(scorer(RUBRIC), main, "yes")
        assert found.score.outcome == "error" and found.score.value is None and len(fake.requests) == 2
        assert found.usd is not None and found.usd > 0, "what was said badly was paid for as well"
        fake.then(Say(text), Say('{"reason": "", "score": 0.5}'))
        assert (await weigh(scorer(RUBRIC), main, "yes")).score.value == 0.5


async def test_a_throttled_judge_is_retried_and_a_dead_one_is_an_error(
    prices: PriceBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bundlectl.evaluation.scorers.judge.PAUSE", 0.01)
    async with fake_models() as fake, opened(fake, prices) as main:
        fake.then(throttle(), Say('{"reason": "", "score": 1}'))
        assert (await weigh(scorer(RUBRIC), main, "yes")).score.value == 1
        fake.default = throttle()
        found = await weigh(scorer(RUBRIC), main, "yes")
        assert found.score.outcome == "error" and "throttled" in found.score.why


async def test_without_a_judge_nothing_is_measured() -> None:
    found = await weigh(scorer(RUBRIC), None, "yes")
    assert found.score.outcome == "unmeasured" and "main" in found.score.why


async def test_an_answer_without_a_text_is_not_shown_to_a_judge(prices: PriceBook) -> None:
    async with fake_models() as fake, opened(fake, prices) as main:
        made = scorer(RUBRIC)
        assert isinstance(made, JudgedScorer)
        refused = Sample(YES, answer(refused="no_answer"), receipt(), 1.0)
        found = await weigh_case(made.bound({"main": main}), refused)
        assert found is not None and found.score.value == 0 and not fake.requests
    assert not made.applies(case(refusal="no_answer"))


async def test_a_judge_on_bedrock(prices: PriceBook) -> None:
    model = Model(provider="bedrock", model="amazon.nova-pro-v1:0", parameters={"temperature": 0})
    session = HttpClient()
    async with fake_bedrock() as fake:
        try:
            binding = ModelBinding(region="us-east-1", base_url=fake.url)
            provider = await asyncio.to_thread(open_bedrock, "main", model, binding, {}, session, {}, API_KEY)
            settings = Settings(provider="bedrock", model="amazon.nova-pro-v1:0", parameters={"temperature": 0})
            main = Judge("main", settings, binding, provider, PRICE_BOOK)
            said = {"reason": "so", "score": 1}
            fake.then(Answer(json.dumps(said)))
            found = await weigh(scorer(RUBRIC), main, "yes")
        finally:
            await session.close()
    assert found.score.value == 1 and found.usd is not None and found.usd > 0, found
    assert fake.seen[0].body["inferenceConfig"]["temperature"] == 0


def test_an_endpoint_holds_no_credential() -> None:
    found = endpoint_of(ModelBinding(base_url="https://user:secret@llm.internal:8443/v1/?key=secret"))
    assert found == "https://llm.internal:8443/v1"


def test_identities_differ_with_all_that_a_score_depends_on(prices: PriceBook) -> None:
    def identity(line: dict[str, Any], **settings: Any) -> str:
        made = scorer(line)
        assert isinstance(made, JudgedScorer)
        chosen = Settings.model_validate({"provider": "openai", "model": "judge", **settings})
        binding = ModelBinding(base_url=settings.pop("at", "https://a/v1"), credential="env:KEY")
        main = Judge("main", chosen, binding, OpenAIProvider(None, None, None), prices)  # type: ignore[arg-type]
        return json.dumps(dict(made.bound({"main": main}).identity), sort_keys=True)

    options = RUBRIC["options"]
    assert isinstance(options, dict)
    every = [
        identity(RUBRIC),
        identity(RUBRIC, model="other"),
        identity(RUBRIC, parameters={"temperature": 1}),
        identity({"name": "rubric", "options": {**options, "criteria": "It says no."}}),
        identity({"name": "rubric", "options": {**options, "passages": True}}),
        identity(
            {
                "name": "rubric",
                "options": {**options, "levels": [{"score": 0, "means": "no"}, {"score": 1, "means": "yes"}]},
            }
        ),
        identity(PAIRWISE),
    ]
    assert len(set(every)) == len(every) and not any("KEY" in one for one in every)
    assert identity(RUBRIC, timeout="5s", retries=0) == every[0], "how long one waits for a judge changes no score"


# ---------------------------------------------------------------- pairwise


@pytest.mark.parametrize(
    ("ours", "theirs", "value", "asked"),
    [("yes", "no", 1, 2), ("no", "yes", 0, 2), ("yes, sure", "yes, really", 0.5, 2), ("yes", "yes", 0.5, 0)],
)
async def test_a_preference_holds_in_both_orders(
    ours: str, theirs: str, value: float, asked: int, prices: PriceBook
) -> None:
    async with fake_models() as fake, opened(fake, prices) as main:
        fake.reply = judge()
        found = await weigh(scorer(PAIRWISE), main, ours, theirs)
    assert found.score.value == value and len(fake.requests) == asked
    if asked:
        shown = [json.loads(body["messages"][1]["content"]) for body in fake.requests]
        assert {(one["first"], one["second"]) for one in shown} == {(ours, theirs), (theirs, ours)}
        assert not any("candidate" in json.dumps(one) or "baseline" in json.dumps(one) for one in shown), "blind"


@pytest.mark.parametrize("said", ["first", "second", "tie"])
async def test_a_judge_that_goes_by_position_finds_ties_only(said: str, prices: PriceBook) -> None:
    async with fake_models() as fake, opened(fake, prices) as main:
        fake.reply = judge(preferred=lambda shown: said)
        for ours, theirs in (("yes", "no"), ("no", "yes")):
            assert (await weigh(scorer(PAIRWISE), main, ours, theirs)).score.value == 0.5
    assert first_always({}) == "first"


async def test_half_a_comparison_is_an_error(prices: PriceBook) -> None:
    async with fake_models() as fake, opened(fake, prices) as main:
        fake.reply = judge(preferred=lambda shown: "first" if shown["first"] == "yes" else "perhaps")
        found = await weigh(scorer(PAIRWISE), main, "yes", "no")
    assert found.score.outcome == "error"


async def test_without_the_baselines_answer_nothing_is_preferred(prices: PriceBook) -> None:
    async with fake_models() as fake, opened(fake, prices) as main:
        found = await weigh(scorer(PAIRWISE), main, "yes")
    assert found.score.outcome == "unmeasured" and "baseline" in found.score.why


# ---------------------------------------------------------------- calibration


def test_wilsons_interval_and_kappa() -> None:
    # scipy.stats.binomtest(hits, of).proportion_ci(0.95, method="wilson")
    golden = [
        (0, 10, 0.0, 0.277533),
        (3, 10, 0.107791, 0.603222),
        (50, 60, 0.719684, 0.906868),
        (10, 10, 0.722467, 1.0),
    ]
    for hits, of, low, high in golden:
        found = rate(hits, of)
        assert found is not None and (found.low, found.high) == pytest.approx((low, high), abs=2e-6)
    assert rate(0, 0) is None
    pairs = [("good", "good")] * 20 + [("good", "bad")] * 5 + [("bad", "good")] * 10 + [("bad", "bad")] * 15
    assert kappa(pairs) == pytest.approx(0.4)
    assert kappa([("good", "good")] * 9) is None and kappa([]) is None


def _figures(good: int, bad: int, *, hit: float = 0.95, errors: int = 0) -> Any:
    pairs = [Judged("good", "good" if n < hit * good else "bad") for n in range(good)]
    pairs += [Judged("bad", "bad" if n < hit * bad else "good") for n in range(bad)]
    return figures([*pairs, *[Judged("good", None)] * errors])


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (_figures(50, 49), "99 labels"),
        (_figures(100, 0), "all labelled answers good"),
        (figures([Judged("good", "good")] * 60 + [Judged("bad", "good")] * 60), "does not tell good from bad"),
        (figures([Judged("good", "bad")] * 60 + [Judged("bad", "good")] * 60), "does not tell good from bad"),
        (_figures(60, 60, hit=0.5), "does not tell good from bad"),
        (_figures(50, 50), None),
    ],
)
def test_what_a_calibration_has_to_show(found: Any, why: str | None) -> None:
    assert (weakness(found) is None) if why is None else (why in (weakness(found) or ""))


def test_no_ruling_is_a_wrong_one() -> None:
    found = _figures(50, 50, hit=1, errors=25)
    assert found.errors == 25 and found.sensitivity.value == pytest.approx(2 / 3, abs=1e-5)


def _fit(prices: PriceBook, change: Callable[[dict[str, Any]], Any] = lambda form: None, **rows: Any) -> str:
    main = Judge(
        "main",
        Settings(provider="openai", model="judge"),
        ModelBinding(base_url="https://a/v1"),
        OpenAIProvider(None, None, None),  # type: ignore[arg-type]
        prices,
    )
    line = {**RUBRIC, **rows.pop("line", {"floor": 0.5})}
    made = scorer(line)
    assert isinstance(made, JudgedScorer)
    bound = made.bound({"main": main})
    record: dict[str, Any] = {
        "scorer": "rubric",
        "identity": json.loads(json.dumps(dict(bound.identity))),
        "models": [MODEL],
        "labels": "sha256:" + "a" * 64,
        "good": 0.5,
        "figures": _figures(50, 50).form(),
        "tool_version": "0",
        "time": NOW,
    }
    change(record)
    suite = Suite(
        apiVersion="bundlectl/v1", kind="Suite", name="s", task="t", dataset="d", scorers=[Line.model_validate(line)]
    )

    def of(models: list[str]) -> list[Any]:
        return [
            result(f"c{n}", rubric=measured(1).model_copy(update={"judge": model})) for n, model in enumerate(models)
        ]

    calibrations = {"rubric": Calibration.model_validate(record)} if record.get("scorer") else {}
    found = unfit(suite, {"rubric": bound}, calibrations, of(rows.get("ours", [MODEL])), of(rows.get("theirs", [])))
    return found.get("rubric", "")


def test_which_judges_may_decide(prices: PriceBook) -> None:
    assert _fit(prices) == ""
    assert _fit(prices, theirs=[MODEL]) == ""
    assert "not calibrated" in _fit(prices, lambda form: form.update(scorer=None))
    assert _fit(prices, lambda form: form.update(scorer=None), line={}) == "", "what gates nothing needs no labels"
    assert "99 labels" in _fit(prices, lambda form: form.update(figures=_figures(50, 49).form()))
    assert "judge.model" in _fit(prices, lambda form: form["identity"]["judge"].update(model="older"))
    assert "rubric" in _fit(prices, lambda form: form["identity"].update(rubric="sha256:0"))
    assert "judge.endpoint" in _fit(prices, lambda form: form["identity"]["judge"].update(endpoint="https://b/v1"))
    assert "judge-2027" in _fit(prices, ours=[MODEL, "judge-2027"])
    assert "the baseline was judged by judge-2025" in _fit(prices, theirs=["judge-2025"])
    assert "'good'" in _fit(prices, lambda form: form.update(good=1.0))
    for gate in ({"margin": 0.1}, {"must_pass": True}, {"tags": {"x": 0.5}}, {"tag_margins": {"x": 0.5}}):
        assert "not calibrated" in _fit(prices, lambda form: form.update(scorer=None), line=gate)


# ---------------------------------------------------------------- files


def _judged_suite(folder: Path, **options: Any) -> Path:
    chosen = {"judge": "main", "criteria": "It says yes.", **options}
    cases = [{"id": "one", "expected": {"answer": "yes"}}]
    judges = {"main": {"provider": "openai", "model": "judge"}}
    return write_suite(folder, cases, [{"name": "rubric", "options": chosen}], judges=judges)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"judge": "mian"}, "the suite has no judge 'mian'"),
        ({"criteria": ""}, "criteria"),
        ({"levels": [{"score": 1, "means": "a"}, {"score": 0, "means": "b"}]}, "lowest score to the highest"),
        ({"levels": [{"score": 0, "means": "a"}, {"score": 2, "means": "b"}]}, "score"),
        ({"labels": "../labels.jsonl"}, "labels"),
    ],
)
def test_wrong_options_are_found_in_the_suite(tmp_path: Path, options: dict[str, Any], why: str) -> None:
    with pytest.raises(SourceError) as caught:
        read_suite(_judged_suite(tmp_path, **options))
    assert any(why in problem.message for problem in caught.value.problems)


def test_a_calibration_is_part_of_the_suites_digest(tmp_path: Path) -> None:
    path = _judged_suite(tmp_path, calibration="rubric.json")
    before = read_suite(path)
    assert before.calibrations == {}
    record = Calibration(
        scorer="rubric",
        identity={},
        models=[],
        labels="sha256:" + "a" * 64,
        good=0.5,
        figures=_figures(50, 50),
        tool_version="0",
        time=NOW,
    )
    (tmp_path / "rubric.json").write_text(json.dumps(record.form(), indent=2))
    after = read_suite(path)
    assert after.calibrations["rubric"] == record and after.suite_digest != before.suite_digest
    (tmp_path / "rubric.json").write_text(json.dumps({**record.form(), "scorer": "other"}))
    assert "of 'other'" in read_calibrations(after.suite, tmp_path)[1][0].message
    (tmp_path / "rubric.json").write_text("{}")
    with pytest.raises(SourceError):
        read_suite(path)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not JSON"),
        ('{"case": "one", "answer": "yes"}', "label"),
        ('{"case": "two", "answer": "yes", "label": "good"}', "no case 'two'"),
        ('{"case": "one", "answer": "yes", "label": "tie"}', "by itself"),
        (
            '{"case": "one", "answer": "yes", "label": "good"}\n{"case": "one", "answer": "yes", "label": "bad"}',
            "already",
        ),
        ("", "no label"),
    ],
)
def test_wrong_labels_name_their_line(tmp_path: Path, line: str, why: str) -> None:
    (tmp_path / "labels.jsonl").write_text(line)
    with pytest.raises(SourceError) as caught:
        read_labels(tmp_path, "labels.jsonl", {"one": YES}, paired=False)
    assert any(why in problem.message for problem in caught.value.problems)


async def test_a_judge_of_preferences_is_held_against_people_with_ties(tmp_path: Path, prices: PriceBook) -> None:
    lines = [
        {"case": "one", "answer": "yes", "other": "no", "label": "good"},
        {"case": "one", "answer": "no", "other": "yes", "label": "bad"},
        {"case": "one", "answer": "yes 1", "other": "yes 2", "label": "tie"},
        {"case": "one", "answer": "yes 3", "other": "yes 4", "label": "good"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    labels = read_labels(tmp_path, "pairs.jsonl", {"one": YES}, paired=True)
    made = scorer(PAIRWISE)
    assert isinstance(made, JudgedScorer)
    async with fake_models() as fake, opened(fake, prices) as main:
        fake.reply = judge()
        bound = made.bound({"main": main})
        said = [(await bound.examine(exhibit)).score.value for exhibit in labels.exhibits]
    assert said == [1, 0, 0.5, 0.5]
    senses = {"good": "good", "bad": "bad", "tie": "neither"}
    pairs = [
        Judged(senses[label.label], bound.sense(value))  # type: ignore[arg-type]
        for label, value in zip(labels.labels, said, strict=True)
        if value is not None
    ]
    found = figures(pairs)
    assert found.sensitivity is not None and found.specificity is not None
    assert (found.sensitivity.value, found.specificity.value, found.good, found.bad) == (0.5, 1, 2, 1)
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"case": "one", "answer": "yes", "label": "good"}))
    with pytest.raises(SourceError):
        read_labels(tmp_path, "pairs.jsonl", {"one": YES}, paired=True)


# ---------------------------------------------------------------- in a run


class Stub:
    """A provider that prefers the answer that says yes, and counts."""

    name, reads_prompt, deterministic = "openai", True, False

    def __init__(self) -> None:
        self.calls = 0

    async def generate(self, call: ModelCall) -> ModelReply:
        self.calls += 1
        shown = json.loads(call.messages[1]["content"])
        better = "first" if shown["first"] == "yes" else "second"
        return ModelReply(json.dumps({"reason": "", "better": better}), provider_model=MODEL)

    def stream(self, call: ModelCall) -> Any:
        raise NotImplementedError


async def test_both_sides_of_a_preference_are_asked_together_and_add_up_to_one(
    tmp_path: Path, prices: PriceBook
) -> None:
    cases = [{"id": name, "expected": {}} for name in ("a", "b", "c")]
    judges = {"main": {"provider": "openai", "model": "judge"}}
    suite = read_suite(write_suite(tmp_path, cases, [PAIRWISE, {"name": "refusal"}], judges=judges))
    stub = Stub()
    main = Judge("main", Settings(provider="openai", model="judge"), ModelBinding(), stub, prices)
    says = {"a": ("yes", "no"), "b": ("no", "yes"), "c": ("yes", "yes")}
    routers = [
        ScriptedRouter(lambda request, side=side: Outcome(answer(says[request.input["question"]][side]), receipt()))
        for side in (0, 1)
    ]
    keys = ["sha256:" + number * 64 for number in "12"]

    async def measure() -> list[Sequence[CaseResult]]:
        with Journal(tmp_path / "j", keys[0]) as ours, Journal(tmp_path / "j", keys[1]) as theirs:
            sides = [
                Side(router, identity="me", profile="p", journal=journal, judges={"main": main})
                for router, journal in zip(routers, (ours, theirs), strict=True)
            ]
            return await run_sides(suite, sides, concurrency=2, pause=0)

    with Journal(tmp_path / "j", keys[0]) as ours:
        # The candidate's row of "a" was kept by an earlier run, and its text was not.
        ours.add(result("a", pairwise=0.0))
    candidate, baseline = await measure()
    assert [row.scores["pairwise"].value for row in candidate] == [1, 0, 0.5]
    assert [row.scores["pairwise"].value for row in baseline] == [0, 1, 0.5]
    assert stub.calls == 4, "the same text is a tie without a judge"
    assert await measure() == [candidate, baseline] and stub.calls == 4
    (alone,) = await run_sides(suite, [Side(routers[0], identity="me", profile="p", judges={"main": main})], pause=0)
    assert all("pairwise" not in row.scores for row in alone)
