"""Large datasets and many rows: read back as they were put there, and not held."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from bundlectl.evaluation.fold import Fold
from bundlectl.evaluation.journal import Journal
from bundlectl.evaluation.report import CaseResult, make_report, report_bytes
from bundlectl.evaluation.result import summarise
from bundlectl.evaluation.runner import run
from bundlectl.evaluation.scorers.score import Score
from bundlectl.evaluation.shelf import HELD, Picked, Shelf
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.errors import BackendUnavailable
from bundlectl.model.suite import Case
from tests.evaluation.builders import BINDINGS, BUNDLE, NOW, D, Outcome, ScriptedRouter, answer, receipt, result, suite


def a_case(number: int) -> Case:
    return Case.model_validate(
        {
            "id": f"c{number} \U0001f600",
            "input": {"question": "Äh\n?", "null": None, "whole": 1.0, "part": 0.1 + 0.2, "deep": [{"a": -0.0}]},
            "tenant": "t",
            "role": "r",
            "tags": ["a", "b"],
            "expected": {"refusal": False, "extra": {"n": 1e-9, "none": None}},
        }
    )


def test_what_is_read_back_is_what_was_put_there() -> None:
    cases = [a_case(number) for number in range(HELD + 50)]
    shelf = Shelf(Case, cases)
    assert len(shelf) == len(cases) and list(shelf) == cases and shelf == cases
    assert [shelf[at] for at in (0, HELD - 1, HELD, -1)] == [cases[at] for at in (0, HELD - 1, HELD, -1)]
    assert repr(shelf[HELD].input) == repr(cases[HELD].input) and shelf[HELD].form() == cases[HELD].form()
    assert list(shelf[HELD - 2 : HELD + 2]) == cases[HELD - 2 : HELD + 2]
    assert Picked(shelf, [HELD + 3, 1])[::-1] == [cases[1], cases[HELD + 3]]
    for beyond in (len(cases), -len(cases) - 1):
        with pytest.raises(IndexError):
            shelf[beyond]


def test_rows_are_read_back_whole() -> None:
    row = CaseResult(
        id="c",
        tags=["x"],
        scores={
            "exact": Score(value=1 / 3, outcome="measured", why="ü"),
            "rubric": Score(outcome="error", why="broke"),
        },
        error="gone",
        snapshots={"docs": D},
        seconds=0.123456,
        attempts=2,
        time=NOW,
        repeat=3,
        usd=1e-7,
        cached=True,
    )
    shelf = Shelf(CaseResult, [row] * (HELD + 1))
    assert shelf[HELD] == row and shelf[HELD] is not row
    assert canonical(shelf[HELD].form()) == canonical(row.form())


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(Case, [a_case(0)] * HELD)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(BackendUnavailable, match="temporary file") as raised:
        shelf.add(a_case(1))
    assert raised.value.exit_code == 6 and "TMPDIR" in raised.value.fix


async def test_a_run_beyond_what_is_held_is_the_same_in_order_and_bytes(tmp_path: Path) -> None:
    many = HELD + 40
    loaded = suite(tmp_path, many)
    assert loaded.dataset_digest == digest(canonical([case.form() for case in loaded.cases]))
    router = ScriptedRouter(lambda request: Outcome(answer("yes"), receipt()))
    with Journal(tmp_path / "j", D) as journal:
        rows = await run(loaded, router, identity="me", profile="p", journal=journal, concurrency=3)
    assert [row.id for row in rows] == [f"c{number}" for number in range(many)]
    with Journal(tmp_path / "j", D) as journal:
        assert len(journal.finished) == many
        again = await run(loaded, router, identity="me", profile="p", journal=journal)
    assert again == rows and len(router.asked) == many
    report = make_report(loaded, rows, bundle=BUNDLE, bindings=BINDINGS)
    assert report.complete and report_bytes(report) == canonical(report.form())
    plain = make_report(loaded, list(rows), bundle=BUNDLE, bindings=BINDINGS)
    assert report_bytes(plain) == report_bytes(report)
    found = summarise(loaded, rows, bindings=BINDINGS, actor="me", started=NOW, finished=NOW)
    assert found.verdict == "pass" and found.scores[0].measured == many


def test_columns_tell_what_is_absent_from_what_is_missing(tmp_path: Path) -> None:
    loaded = suite(tmp_path, 3)
    rows = [
        result("c0", exact=0.25),
        result("c1", exact=None),
        result("c0", exact=1.0),
        result("c2"),
        result("c0", exact=Score(outcome="unmeasured", why="nothing there")),
    ]
    fold = Fold(loaded, rows)
    assert fold.values("c0", "exact") == [0.25, 1.0, None] and fold.values("c1", "exact") == [None]
    assert fold.values("c2", "exact") == [] == fold.values("nobody", "exact") and fold.repeated
    tally = fold.tally("exact")
    assert (tally.total, tally.measured, tally.unmeasured, tally.errors, tally.rows) == (1.25, 2, 1, 1, 4)
    assert fold.tally("exact", {"c1", "nobody"}).rows == 1


def test_values_beyond_those_held_take_eight_bytes_each() -> None:
    value = a_case(0)
    shelf = Shelf(Case, [value] * HELD)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(5000):
            shelf.add(value)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / 5000 < 16
