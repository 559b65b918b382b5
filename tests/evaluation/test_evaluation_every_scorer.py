"""The example suite with every scorer there is, end to end: models, judges and ragas on the local model server.

The one file that loads ragas, which takes seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bundlectl.actions.build import build
from bundlectl.actions.promote import promote
from bundlectl.cli.program import program
from bundlectl.evaluation.scorers.judge import Judge
from bundlectl.evaluation.scorers.judged import JudgedScorer
from bundlectl.evaluation.scorers.score import AnyScorer, Sample, Weighed, weigh_case
from bundlectl.evaluation.scorers.table import KINDS, make_scorer
from bundlectl.evaluation.suite import read_suite
from bundlectl.inference.client import HttpClient
from bundlectl.inference.openai import OpenAIProvider
from bundlectl.inference.prices import PRICE_BOOK
from bundlectl.inference.provider import Passage
from bundlectl.model.attestation import EvaluationResult
from bundlectl.model.bindings import ModelBinding
from bundlectl.model.errors import MissingExtra
from bundlectl.model.suite import Judge as Settings
from bundlectl.model.suite import Scorer as Line
from bundlectl.trust.envelope import open_statement
from tests.evaluation.builders import answer, case, receipt
from tests.support.fake_judge import BOOK, MODEL, judge, ruling
from tests.support.fake_models import FakeModels, Say, Step, fake_models, fake_models_in_a_thread
from tests.support.workspace import APP, Workspace

EVERY = Path(__file__).with_name("every")
ANSWERS = {
    json.loads(line)["input"]["question"]: json.loads(line)["expected"].get("answer", "?")
    for line in (EVERY / "cases.jsonl").read_text().splitlines()
}


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeModels]:
    with fake_models_in_a_thread() as server:
        yield server


class Office:
    """The app with a model and a judge on the fake server, the suite beside it, and `dev` live with quotes."""

    def __init__(self, folder: Path, fake: FakeModels) -> None:
        self.fake = fake
        self.judge = judge()
        fake.reply = self.reply
        self.work = Workspace.at(folder, live=True)
        self.every = self.work.folder / "every"
        shutil.copytree(EVERY, self.every)
        self.model = self.work.folder / "model.json"
        self.write("model.json", {"quotes": {"base_url": fake.base_url}})
        self.write("judges.json", {"main": {"base_url": fake.base_url, "credential": "env:JUDGE_KEY"}})
        (self.work.folder / "prices.json").write_text(json.dumps(BOOK))
        self.work.edit("bundle.yaml", "quotes: {provider: extractive}", "quotes: {provider: openai, model: m}")
        self.work.edit("bundle.yaml", "fast: {model: quotes, timeout: 5s}", "fast: {model: quotes, timeout: 2m}")
        self.bundle = build(self.work.context(), self.work.folder).bundle

    def reply(self, body: dict[str, Any]) -> Step:
        """Answer right, or judge."""
        if body["model"] == "judge":
            return self.judge(body)
        question = body["messages"][-1]["content"].rpartition("Question: ")[2].strip()
        return Say(json.dumps({"answer": f"{ANSWERS[question]} [1]", "citations": [1]}))

    def write(self, name: str, models: dict[str, Any]) -> None:
        form = {"apiVersion": "bundlectl/v1", "kind": "Bindings", "models": models}
        (self.work.folder / name).write_text(json.dumps(form))

    def label(self, n: int, wrong: int = 0) -> None:
        """Label n answers, every other one good; the first so many labels are not what the judge will say."""
        lines = []
        for number in range(n):
            good = number % 2 == 0
            text = f"Within 5 working days we refund the price, {number}." if good else f"After {number} months."
            said = good if number >= wrong else not good
            lines.append({"case": "refund-time", "answer": text, "label": "good" if said else "bad", "by": "ada"})
        (self.every / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(self, *argv: str) -> Result:
        before = Path.cwd()
        os.chdir(self.work.folder)
        try:
            return CliRunner().invoke(program(), [*argv, "--judge-bindings", "judges.json"], catch_exceptions=False)
        finally:
            os.chdir(before)

    def evaluate(self, *more: str) -> Result:
        reference = f"{APP}@{self.bundle}"
        suite = ["--suite", "every/suite.yaml", "--bindings", "model.json", "--baseline", f"{APP}:dev"]
        return self.run("eval", reference, *suite, *more)

    def calibrate(self, *more: str) -> Result:
        return self.run("judge", "calibrate", "every/suite.yaml", *more)


@pytest.fixture
def office(tmp_path: Path, fake: FakeModels, monkeypatch: pytest.MonkeyPatch) -> Office:
    made = Office(tmp_path, fake)
    monkeypatch.setenv("JUDGE_KEY", "a-secret-of-the-judge")
    monkeypatch.setenv("BUNDLECTL_PRICE_BOOK", str(made.work.folder / "prices.json"))
    return made


def test_the_example_has_every_scorer() -> None:
    assert {line.name for line in read_suite(EVERY / "suite.yaml").suite.scorers} == set(KINDS)


def test_every_scorer_end_to_end(office: Office) -> None:
    """Not calibrated, 99 labels, 100 labels, another judge: what the gate says each time."""
    first = office.evaluate("-o", "json")
    assert first.exit_code == 3, first.output
    (found,) = json.loads(first.stdout)
    result = EvaluationResult.model_validate_json(json.dumps(found["result"]))
    wrong = {
        (row["id"], key): score["why"]
        for row in found["report"]["cases"]
        for key, score in row["scores"].items()
        if score["outcome"] != "measured"
    }
    assert not wrong
    assert result.verdict == "inconclusive" and "right: shown, but its judge is not calibrated" in result.why
    rows = {row.scorer: row for row in result.scores}
    assert all(row.measured and row.mean is not None for row in rows.values()), result.scores
    assert rows["right"].mean == 1 and rows["ragas_id_context_recall"].mean == 1
    assert rows["ragas_bleu"].mean is not None and rows["ragas_bleu"].mean > 0.5
    assert result.comparison is not None and not result.comparison.stored
    (pair,) = [row for row in result.comparison.scores if row.scorer == "pairwise"]
    assert pair.candidate is not None and pair.baseline == pytest.approx(1 - pair.candidate)
    assert result.judging is not None and result.usd is not None and 0 < result.judging <= result.usd
    known = {one.scorer: one for one in result.scorers or []}
    assert known["right"].models == [MODEL] and known["right"].identity["judge"]["model"] == "judge"
    assert known["ragas_bleu"].identity["libraries"]["ragas"] == "0.4.3"
    assert "a-secret-of-the-judge" not in first.output
    assert any(headers.get("Authorization") == "Bearer a-secret-of-the-judge" for headers in office.fake.headers)

    office.label(99)
    short = office.calibrate()
    assert short.exit_code == 3 and "99 labels, and 100 are needed" in short.output
    assert "99 labels, and 100 are needed" in office.evaluate().output

    office.label(100)
    done = office.calibrate("-o", "json")
    assert done.exit_code == 0, done.output
    (record,) = json.loads(done.stdout)
    assert record["record"]["figures"]["sensitivity"]["value"] == 1 and record["record"]["models"] == [MODEL]
    passed = office.evaluate("-o", "json")
    assert passed.exit_code == 0, passed.output
    signed = _signed(office)
    (right,) = [one for one in signed.scorers or [] if one.scorer == "right"]
    assert signed.verdict == "pass" and right.calibration is not None and right.calibration.labels == 100
    assert right.calibration_digest == record["digest"] and right.calibration.kappa == 1

    promote(
        office.work.context(), f"{APP}@{office.bundle}", environment="dev", reason="good", bindings_file=office.model
    )
    drifted = office.run("drift", f"{APP}:dev", "--suite", "every/suite.yaml")
    assert "right is left out" not in drifted.stderr and "ragas_faithfulness is left out" in drifted.stderr
    assert drifted.exit_code == 3 and "no case flipped" in drifted.stdout, drifted.output

    office.judge = judge(model="judge-2027-01")
    drifted = office.run("drift", f"{APP}:dev", "--suite", "every/suite.yaml")
    assert f"right is left out: its judge was {MODEL} when calibrated, and is judge-2027-01" in drifted.stderr
    moved = office.evaluate("--no-cache")
    assert moved.exit_code == 3 and "judge-2027-01" in moved.output and "inconclusive" in moved.output


def _signed(office: Office) -> EvaluationResult:
    registry = office.work.context().registry
    envelopes = [e for kind, _, e in registry.attestations(APP, office.bundle) if kind == "evaluation"]
    results = [EvaluationResult.model_validate(open_statement(e).predicate) for e in envelopes]
    return max((one for one in results if one.suite == "every"), key=lambda one: one.look or 1)


def test_a_judge_that_calls_everything_good_may_not_decide(office: Office) -> None:
    office.label(100)
    office.judge = judge(graded=lambda shown: 1)
    found = office.calibrate()
    assert found.exit_code == 3 and "does not tell good from bad" in found.output
    stopped = office.calibrate("--max-cost", "0.0001")
    assert stopped.exit_code == 2 and "nothing was written" in stopped.stderr


def test_what_judges_cost_stops_a_run(office: Office) -> None:
    found = office.evaluate("--max-cost", "0.001", "--unsigned")
    assert found.exit_code == 3 and "--max-cost allows" in found.stderr and "inconclusive" in found.stdout


def test_without_an_address_judges_measure_nothing_and_nothing_passes(office: Office) -> None:
    before = Path.cwd()
    os.chdir(office.work.folder)
    try:
        suite = ["--suite", "every/suite.yaml", "--bindings", "model.json", "--unsigned"]
        found = CliRunner().invoke(program("eval"), ["eval", ".", *suite], catch_exceptions=False)
    finally:
        os.chdir(before)
    assert found.exit_code == 3 and "judges that need an address: main" in found.stderr
    assert "pairwise" in found.stderr


# ---------------------------------------------------------------- ragas by itself

PASSAGES = (
    Passage(1, "t", (), "Paris is the capital of France. It is large.", "d1", "c1"),
    Passage(2, "t", (), "Berlin is in Germany.", "d2", "c2"),
)
RIGHT = "Paris is the capital of France."


def ragas(metric: str, text: str | None, passages: tuple[Passage, ...] = PASSAGES, reply: Any = None) -> Weighed:
    """Score one answer by one metric of ragas, its judge on the fake server."""

    async def score() -> Weighed:
        async with fake_models() as fake:
            fake.reply = reply or judge()
            session = HttpClient()
            try:
                settings = Settings(provider="openai", model="judge", retries=0, timeout="2m")
                provider = OpenAIProvider(session, fake.base_url, None)
                main = Judge("main", settings, ModelBinding(base_url=fake.base_url), provider, PRICE_BOOK)
                options = {"judge": "main"} if "judge" in KINDS[f"ragas_{metric}"].options.model_fields else {}
                made: AnyScorer = make_scorer(Line(name=f"ragas_{metric}", options=options), None)
                made = made.bound({"main": main}) if isinstance(made, JudgedScorer) else made
                asked = case(answer=RIGHT, documents=[{"document": "d1"}])
                given = answer(text) if text is not None else answer(refused="no_answer")
                found = await weigh_case(made, Sample(asked, given, receipt(), 1.0, passages))
            finally:
                await session.close()
        assert found is not None
        return found

    return asyncio.run(score())


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("bleu", 1),
        ("rouge", 1),
        ("chrf", 1),
        ("string_similarity", 1),
        ("id_context_precision", 0.5),
        ("id_context_recall", 1),
        ("faithfulness", 1),
        ("context_precision", 1),
        ("context_recall", 1),
        ("factual_correctness", 1),
    ],
)
def test_what_ragas_measures(metric: str, value: float) -> None:
    found = ragas(metric, RIGHT).score
    assert found.value == pytest.approx(value, abs=1e-9), found


def test_bleu_sees_what_comes_after_the_references_last_sentence() -> None:
    found = ragas("bleu", f"{RIGHT} And London is on the moon.").score
    assert found.value is not None and found.value < 0.7, "sentence by sentence, as ragas does it, this scores 1"


@pytest.mark.parametrize(
    ("metric", "passages", "value"),
    [
        ("id_context_precision", (), None),
        ("id_context_recall", (), 0),
        ("context_precision", (), None),
        ("context_recall", (), 0),
        ("faithfulness", (), None),
    ],
)
def test_an_empty_retrieval_is_never_right(metric: str, passages: tuple[Passage, ...], value: float | None) -> None:
    found = ragas(metric, RIGHT, passages).score
    assert (found.value, found.outcome) == (value, "unmeasured" if value is None else "measured")


@pytest.mark.parametrize("metric", ["bleu", "faithfulness", "factual_correctness", "answer_relevancy"])
def test_a_refused_answer_is_like_nothing(metric: str) -> None:
    assert ragas(metric, None).score.value == 0


def _changed(key: str, change: Any) -> Any:
    """Give a judge whose replies that hold a key are changed."""

    def reply(body: dict[str, Any]) -> Step:
        schema = body["response_format"]["json_schema"]["schema"]["properties"]
        said = ruling(body["messages"][-1]["content"], schema)
        return Say(json.dumps(change(said) if key in said else said), model=MODEL)

    return reply


@pytest.mark.parametrize(
    ("metric", "reply"),
    [
        ("faithfulness", lambda body: Say("I think so.")),
        ("faithfulness", _changed("statements", lambda said: {"statements": []})),
        ("faithfulness", _changed("statements", lambda said: {"statements": said["statements"] * 2})),
        ("context_precision", _changed("verdict", lambda said: {**said, "verdict": 7})),
        ("context_recall", _changed("classifications", lambda said: {"classifications": []})),
        ("context_recall", _changed("classifications", lambda said: {"verdict": 1})),
        ("answer_relevancy", _changed("question", lambda said: {**said, "noncommittal": 3})),
    ],
)
def test_what_ragas_cannot_measure_is_an_error(metric: str, reply: Any) -> None:
    text = f"{RIGHT} It is large."
    doubled = reply if metric != "faithfulness" else _only_verdicts(reply)
    found = ragas(metric, text, reply=doubled)
    assert found.score.outcome == "error" and found.score.value is None, found


def _only_verdicts(reply: Any) -> Any:
    """Let the statements be as they are, and change what is said of them."""

    def chosen(body: dict[str, Any]) -> Step:
        plain = judge()(body)
        assert isinstance(plain, Say)
        statements = json.loads(plain.text).get("statements", [])
        return plain if statements and isinstance(statements[0], str) else reply(body)

    return chosen


def test_a_missing_extra_is_told_before_anything_is_asked(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("bundlectl.evaluation.scorers.ragas_scorers.importlib.import_module", missing)
    asked = len(office.fake.requests)
    found = office.evaluate("--no-cache", "--unsigned", "--fresh")
    assert found.exit_code == MissingExtra.exit_code and "pip install 'bundlectl[ragas]'" in found.stderr
    assert len(office.fake.requests) == asked
