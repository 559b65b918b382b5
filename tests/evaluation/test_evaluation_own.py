"""Scorers of one's own: files and entry points, run in processes, through the runner."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from bundlectl.evaluation.report import CaseResult
from bundlectl.evaluation.result import summarise
from bundlectl.evaluation.runner import run
from bundlectl.evaluation.scorers import own
from bundlectl.evaluation.scorers.score import Sample
from bundlectl.evaluation.scorers.table import make_scorer
from bundlectl.evaluation.suite import LoadedSuite, read_suite
from bundlectl.model.errors import SourceError, UsageError
from tests.evaluation.builders import BINDINGS, NOW, Outcome, ScriptedRouter, answer, receipt, write_suite

GOOD = """
def score(sample):
    return len(sample.answer.output) / 4
"""


def loaded(folder: Path, source: str, n: int = 2, *, floor: float | None = 0.5, **options: Any) -> LoadedSuite:
    (folder / "scorers").mkdir(exist_ok=True)
    (folder / "scorers" / "mine.py").write_text(source)
    line = {"name": "python", "as": "mine", "floor": floor, "options": {"file": "scorers/mine.py", **options}}
    cases = [{"id": f"c{i}", "expected": {}, "tags": ["even"] if i % 2 == 0 else []} for i in range(n)]
    return read_suite(write_suite(folder, cases, [{k: v for k, v in line.items() if v is not None}]))


def measure(suite: LoadedSuite, *texts: str) -> list[CaseResult]:
    answers = dict(zip((case.id for case in suite.cases), texts or ["yes"] * len(suite.cases), strict=True))
    router = ScriptedRouter(lambda request: Outcome(answer(answers[request.input["question"]]), receipt()))
    return asyncio.run(run(suite, router, identity="me", profile="p", pause=0))


def outcomes(results: list[CaseResult]) -> list[Any]:
    return [
        (score.value if score.outcome == "measured" else score.outcome) for r in results for score in r.scores.values()
    ]


def why(results: list[CaseResult]) -> str:
    return results[0].scores["mine"].why


def test_a_function_scores(tmp_path: Path) -> None:
    assert outcomes(measure(loaded(tmp_path, GOOD), "yes", "four")) == [0.75, 1.0]


def test_a_class_with_settings_and_tags(tmp_path: Path) -> None:
    source = """
import bundlectl
from bundlectl.evaluation.scorers.score import Score

class Mine:
    def __init__(self, settings):
        self.asked = 0
        self.limit = settings["limit"]

    def score(self, sample):
        self.asked += 1
        print("talk")
        return Score(value=self.asked / self.limit, outcome="measured", why="counted")
"""
    suite = loaded(tmp_path, source, 3, **{"class": "Mine", "settings": {"limit": 4}, "tags": ["even"]})
    results = measure(suite)
    assert outcomes(results) == [0.25, 0.5], "one process for the run, and only cases with the tag"
    assert why(results) == "counted"


def test_what_a_sample_holds(tmp_path: Path) -> None:
    source = """
def score(sample, settings):
    assert sample.case.expected.extra == {"tone": "calm"}
    assert sample.receipt.id == "r1" and sample.seconds >= 0
    return settings["value"]
"""
    (tmp_path / "s.py").write_text(source)
    line = {"name": "python", "options": {"file": "s.py", "settings": {"value": 0.5}}}
    suite = read_suite(write_suite(tmp_path, [{"id": "a", "expected": {"extra": {"tone": "calm"}}}], [line]))
    assert outcomes(measure(suite)) == [0.5]


BAD_VALUES = ["float('nan')", "1.5", "-0.1", "'yes'", "[1]", "float('inf')", "2"]


def test_a_bad_value_is_an_error(tmp_path: Path) -> None:
    source = f"VALUES = iter([{', '.join(BAD_VALUES)}])\ndef score(sample):\n    return next(VALUES)\n"
    suite = loaded(tmp_path, source, len(BAD_VALUES))
    results = measure(suite)
    assert outcomes(results) == ["error"] * len(BAD_VALUES)
    judged = summarise(suite, results, bindings=BINDINGS, actor="me", started=NOW, finished=NOW)
    assert judged.verdict != "pass"


def test_true_is_one_and_none_is_unmeasured(tmp_path: Path) -> None:
    source = "VALUES = iter([True, False, None])\ndef score(sample):\n    return next(VALUES)\n"
    assert outcomes(measure(loaded(tmp_path, source, 3))) == [1, 0, "unmeasured"]


def test_an_exception_is_an_error_of_its_row(tmp_path: Path) -> None:
    source = """
def score(sample):
    if sample.case.id == "c0":
        raise KeyError("the secret answer")
    return 1
"""
    results = measure(loaded(tmp_path, source))
    assert outcomes(results) == ["error", 1.0]
    assert "mine.py:4: KeyError" in why(results)
    assert "secret" not in why(results)


def test_a_scorer_that_reads_its_input_takes_no_sample(tmp_path: Path) -> None:
    source = "def score(sample):\n    return 1 if sample.case.id != 'c0' else input()\n"
    results = measure(loaded(tmp_path, source, 3))
    assert outcomes(results) == ["error", 1.0, 1.0] and "EOFError" in why(results)


def test_a_row_that_is_given_up_leaves_no_answer_to_the_next(tmp_path: Path) -> None:
    source = "import time\ndef score(sample):\n    time.sleep(sample.seconds)\n    return sample.seconds / 100\n"
    suite = loaded(tmp_path, source, 1)

    async def main() -> float | None:
        scorer = make_scorer(suite.suite.scorers[0], None, suite.code["mine"])
        assert isinstance(scorer, own.OwnScorer)
        await scorer.open()
        slow, fast = (Sample(suite.cases[0], answer(), receipt(), seconds) for seconds in (2.0, 0.0))
        given_up = asyncio.create_task(scorer.weigh(slow))
        await asyncio.sleep(0.2)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        score = (await scorer.weigh(fast)).score
        await scorer.close()
        return score.value

    assert asyncio.run(main()) == 0


@pytest.mark.parametrize("ending", ["raise SystemExit(0)", "os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_a_process_that_ends_is_an_error(tmp_path: Path, ending: str) -> None:
    source = f"import os\ndef score(sample):\n    if sample.case.id == 'c0':\n        {ending}\n    return 1\n"
    assert outcomes(measure(loaded(tmp_path, source))) == ["error", 1.0]


def test_a_scorer_that_hangs_is_stopped(tmp_path: Path) -> None:
    source = """
import subprocess, time
def score(sample):
    if sample.case.id == "c0":
        subprocess.Popen(["sleep", "600"])
        time.sleep(600)
    return 1
"""
    began = time.monotonic()
    results = measure(loaded(tmp_path, source, timeout=3))
    assert outcomes(results) == ["error", 1.0]
    assert "longer than 3 s" in why(results)
    assert time.monotonic() - began < 60


def test_after_three_hangs_the_rest_is_not_tried(tmp_path: Path) -> None:
    source = "import time\ndef score(sample):\n    time.sleep(600)\n"
    results = measure(loaded(tmp_path, source, 5, timeout=0.2))
    assert outcomes(results) == ["error"] * 5
    assert sum("not tried" in r.scores["mine"].why for r in results) == 2


def test_a_scorer_that_always_breaks_is_not_tried_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "MOST_CRASHES", 2)
    results = measure(loaded(tmp_path, "def score(sample):\n    raise ValueError\n", 4))
    assert outcomes(results) == ["error"] * 4
    assert sum("not tried" in r.scores["mine"].why for r in results) == 2


BROKEN = [
    ("import no_such_module\ndef score(sample):\n    return 1\n", "mine.py:1: ModuleNotFoundError: No module named"),
    ("def score(sample):\n    return 1\n\n1 / 0\n", "mine.py:4: ZeroDivisionError"),
    ("from os import path as score\n", "is no function"),
    ("async def late(sample):\n    return 1\nscore = late\n", "async"),
    ("import neighbour\ndef score(sample):\n    return 1\n", "neighbour"),
]


@pytest.mark.parametrize(("source", "message"), BROKEN)
def test_what_cannot_be_loaded_stops_the_run_before_anything_is_asked(
    tmp_path: Path, source: str, message: str
) -> None:
    suite = loaded(tmp_path, source)
    (tmp_path / "scorers" / "neighbour.py").write_text("")
    router = ScriptedRouter(lambda request: Outcome(answer(), receipt()))
    with pytest.raises(UsageError) as caught:
        asyncio.run(run(suite, router, identity="me", profile="p", pause=0))
    assert message in caught.value.why
    assert not router.asked


UNREADABLE: list[tuple[str, dict[str, Any], int, str]] = [
    ("def score(sample:\n", {}, 1, "this is no Python"),
    ("x = 1\nasync def score(sample):\n    return 1\n", {}, 2, "async"),
    ("class Mine:\n    async def score(self, sample):\n        return 1\n", {"class": "Mine"}, 2, "async"),
    ("def scores(sample):\n    return 1\n", {}, 0, "has no function 'score'"),
    ("class Mine:\n    pass\n", {"class": "Mine"}, 1, "no method 'score'"),
    ("class score:\n    pass\n", {}, 1, "is a class"),
    ("def Mine():\n    pass\n", {"class": "Mine"}, 1, "is no class"),
]


@pytest.mark.parametrize(("source", "options", "line", "message"), UNREADABLE)
def test_what_is_wrong_with_a_file_is_said_with_its_line(
    tmp_path: Path, source: str, options: dict[str, Any], line: int, message: str
) -> None:
    with pytest.raises(SourceError) as caught:
        loaded(tmp_path, source, **options)
    (problem,) = caught.value.problems
    assert problem.line == line and message in problem.message
    assert problem.file.endswith("scorers/mine.py")


def test_reading_a_suite_runs_nothing(tmp_path: Path) -> None:
    loaded(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w')\n{GOOD}")
    assert not (tmp_path / "ran").exists()


def test_the_file_lies_under_the_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.py").write_text(GOOD)
    suites = tmp_path / "suites"
    suites.mkdir()
    (suites / "link.py").symlink_to(tmp_path / "elsewhere" / "mine.py")
    for name in ("../elsewhere/mine.py", "/etc/passwd", "link.py", "gone.py"):
        with pytest.raises(SourceError):
            read_suite(
                write_suite(suites, [{"id": "a", "expected": {}}], [{"name": "python", "options": {"file": name}}])
            )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"file": "a.py", "entry_point": "b"},
        {"file": "a.py", "function": "f", "class": "C"},
        {"file": "a.py", "timeout": 0},
    ],
)
def test_options_say_one_place(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(SourceError):
        read_suite(write_suite(tmp_path, [{"id": "a", "expected": {}}], [{"name": "python", "options": options}]))


def test_the_digest_of_the_suite_is_of_the_code(tmp_path: Path) -> None:
    one = loaded(tmp_path, GOOD)
    other = loaded(tmp_path, GOOD + "# and more\n")
    assert one.suite == other.suite
    assert one.suite_digest != other.suite_digest
    assert loaded(tmp_path, GOOD).suite_digest == one.suite_digest


def test_only_named_variables_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "x")
    monkeypatch.setenv("WANTED", "y")
    source = "import os\ndef score(sample):\n    return 'SECRET_KEY' not in os.environ and 'WANTED' in os.environ\n"
    assert outcomes(measure(loaded(tmp_path, source, 1, environment=["WANTED"]))) == [1.0]


def test_an_entry_point_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme_scorers.py").write_text("class Tone:\n    def score(self, sample):\n        return 0.25\n")
    info = tmp_path / "acme_scorers-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-scorers\nVersion: 1.2\n")
    (info / "RECORD").write_text("acme_scorers.py,sha256=abc,10\n")
    (info / "entry_points.txt").write_text("[bundlectl.scorers]\ntone = acme_scorers:Tone\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    # The worker is isolated from this process's path; what is installed is found there, and stands in for it here.
    monkeypatch.setattr(own, "_START", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {own._START}")
    suites = tmp_path / "suites"
    suites.mkdir()
    line = {"name": "python", "options": {"entry_point": "tone"}}
    suite = read_suite(write_suite(suites, [{"id": "a", "expected": {}}], [line]))
    assert outcomes(measure(suite)) == [0.25]
    (info / "RECORD").write_text("acme_scorers.py,sha256=def,10\n")
    assert read_suite(suites / "suite.yaml").suite_digest != suite.suite_digest
    with pytest.raises(SourceError) as caught:
        read_suite(write_suite(suites, [{"id": "a", "expected": {}}], [{**line, "options": {"entry_point": "no"}}]))
    assert "there are: tone" in str(caught.value.problems[0])


def test_no_process_is_left(tmp_path: Path) -> None:
    source = f"import os\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n{GOOD}"
    measure(loaded(tmp_path, source))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
