"""receipts export: from production to a dataset that eval takes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bundlectl.actions.context import Context
from bundlectl.actions.receipt_cases import Exported, Wanted, export_cases, moment
from bundlectl.actions.routing import input_key, receipts_folder
from bundlectl.evaluation.dataset import read_dataset
from bundlectl.model.contract import Degraded, Refused
from bundlectl.model.errors import NotFound, SourceError, UsageError
from bundlectl.model.receipt import Receipt
from bundlectl.receipts.writer import ReceiptLog
from bundlectl.router.contract import input_digest
from tests.actions.test_actions_workspace import context
from tests.receipts.test_receipts_log import receipt
from tests.support.workspace import Workspace

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


class Place:
    """A workspace with receipts and a caller's own log of inputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[dict[str, Any]] = []
        self._asked = 0

    def wrote(self, ctx: Context, question: str, *, logged: Any = None, **changes: Any) -> Receipt:
        self._asked += 1
        id_ = f"{self._asked:012x}"
        digest = input_digest({"question": question}, input_key(ctx))
        made = receipt(
            id_, changes.pop("time", NOON + timedelta(minutes=self._asked)), **{"input_digest": digest, **changes}
        )
        with ReceiptLog(receipts_folder(ctx, "support"), process=f"p{self._asked}") as log:
            log.write(made)
        if logged is not False:
            self.lines.append({"receipt": id_, "input": {"question": logged or question}})
        return made


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return context(tmp_path)


def export(place: Place, ctx: Context, *, force: bool = False, **wanted: Any) -> Exported:
    inputs = place.folder / "inputs.jsonl"
    inputs.write_text("".join(json.dumps(line) + "\n" for line in place.lines))
    return export_cases(ctx, "support", place.folder / "cases.jsonl", inputs, Wanted(**wanted), force=force)


def questions(place: Place) -> list[Any]:
    return [case.input["question"] for case in read_dataset(place.folder, "cases.jsonl").cases]


REFUSED = Refused(code="no_answer", reason="nothing")


def test_a_receipt_becomes_a_case(place: Place, ctx: Context) -> None:
    made = place.wrote(ctx, "Why?", refused=REFUSED, scopes=["a", "b"], latency_class="batch")
    place.lines[0] |= {"expected": {"contains": ["because"]}, "tags": ["angry"], "group": "g"}
    found = export(place, ctx)
    assert (found.receipts, found.cases, found.open, found.unjoined) == (1, 1, 0, [])
    (case,) = read_dataset(place.folder, "cases.jsonl").cases
    assert read_dataset(place.folder, "cases.jsonl").digest == found.dataset_digest
    assert case.id == f"receipt-{made.id}"
    assert (case.tenant, case.role, case.scopes, case.profile) == ("acme", "agent", ["a", "b"], "plain")
    assert case.latency_class == "batch"
    assert case.tags == ["receipt", "refused:no_answer", "angry"]
    assert case.expected.contains == ["because"] and case.group == "g"
    assert (place.folder / "cases.jsonl").stat().st_mode & 0o777 == 0o600


def test_an_input_that_was_not_sent_is_no_case(place: Place, ctx: Context) -> None:
    place.wrote(ctx, "Why?")
    other = place.wrote(ctx, "How?", logged="What?")
    silent = place.wrote(ctx, "When?", logged=False)
    strange = place.wrote(ctx, "Who?", input_digest="hmac-sha256-00000000:" + "0" * 64)
    found = export(place, ctx)
    assert questions(place) == ["Why?"]
    whys = {one.receipt: one.why for one in found.unjoined}
    assert "digest differs" in whys[other.id]
    assert "no input" in whys[silent.id]
    assert "another receipt key" in whys[strange.id]


def test_of_two_inputs_the_one_that_was_sent_counts(place: Place, ctx: Context) -> None:
    made = place.wrote(ctx, "Why?", logged="Wrong")
    place.lines.append({"receipt": made.id, "input": {"question": "Why?"}})
    export(place, ctx)
    assert questions(place) == ["Why?"]


FILTERS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["fine", "refused", "blocked", "degraded", "failed", "late"]),
    ({"refused": "any"}, ["refused", "blocked"]),
    ({"refused": "no_answer"}, ["refused"]),
    ({"degraded": True}, ["degraded"]),
    ({"error": True, "degraded": True}, ["degraded", "failed"]),
    ({"tenant": "other"}, ["late"]),
    ({"environment": "prod", "since": NOON + timedelta(days=1)}, ["late"]),
    ({"until": NOON + timedelta(minutes=2)}, ["fine"]),
]


@pytest.mark.parametrize(("wanted", "golden"), FILTERS)
def test_filters(place: Place, ctx: Context, wanted: dict[str, Any], golden: list[str]) -> None:
    place.wrote(ctx, "fine")
    place.wrote(ctx, "refused", refused=REFUSED)
    place.wrote(ctx, "blocked", refused=Refused(code="input_blocked", reason="x"))
    place.wrote(ctx, "degraded", degraded=Degraded(reason="fallback"))
    place.wrote(ctx, "failed", error={"error": "unavailable"})
    place.wrote(ctx, "late", tenant="other", time=NOON + timedelta(days=2))
    export(place, ctx, **wanted)
    assert questions(place) == golden


def test_what_was_asked_often_is_one_case(place: Place, ctx: Context) -> None:
    for _ in range(3):
        newest = place.wrote(ctx, "again")
    place.wrote(ctx, "again", tenant="other")
    found = export(place, ctx)
    assert (found.receipts, found.cases, found.repeated, found.open) == (4, 2, 2, 2)
    assert read_dataset(place.folder, "cases.jsonl").cases[0].id == f"receipt-{newest.id}"


def test_nothing_is_overwritten(place: Place, ctx: Context) -> None:
    place.wrote(ctx, "Why?")
    export(place, ctx)
    before = (place.folder / "cases.jsonl").read_bytes()
    place.wrote(ctx, "How?")
    with pytest.raises(UsageError, match="is there already"):
        export(place, ctx)
    assert (place.folder / "cases.jsonl").read_bytes() == before
    export(place, ctx, force=True)
    assert questions(place) == ["Why?", "How?"]


def test_what_cannot_be_exported(place: Place, ctx: Context) -> None:
    with pytest.raises(NotFound):
        export(place, ctx)
    place.wrote(ctx, "Why?", logged=False)
    with pytest.raises(UsageError, match="None of 1 receipts"):
        export(place, ctx)
    place.wrote(ctx, "Why?", task="other")
    with pytest.raises(UsageError, match="2 tasks"):
        export(place, ctx)
    assert not (place.folder / "cases.jsonl").exists()
    export(place, ctx, task="other")


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"receipt": "x"}', '{"receipt": "x", "input": {}}', '{"receipt": "x", "input": {"a": 1}, "y": 2}'],
)
def test_a_wrong_line_is_said_with_its_number(place: Place, ctx: Context, line: str) -> None:
    place.wrote(ctx, "Why?")
    inputs = place.folder / "inputs.jsonl"
    inputs.write_text(f"\n{line}\n")
    with pytest.raises(SourceError) as caught:
        export_cases(ctx, "support", place.folder / "cases.jsonl", inputs, Wanted())
    assert caught.value.problems[0].line == 2


def test_moments() -> None:
    assert moment("24h", NOON) == NOON - timedelta(days=1)
    assert moment("2026-11-22", NOON) == datetime(2026, 11, 22, tzinfo=UTC)
    assert moment("2026-11-22T10:00:00Z", NOON) == datetime(2026, 11, 22, 10, tzinfo=UTC)
    for wrong in ("yesterday", "2026-13-01", "2026-11-22T10:00:00"):
        with pytest.raises(UsageError):
            moment(wrong, NOON)


def test_from_a_question_that_was_asked_to_a_suite_that_asks_it(tmp_path: Path) -> None:
    made = Workspace.at(tmp_path, live=True)
    asked = json.loads(
        made.warm(
            "ask",
            "hello:prod",
            "--tenant",
            "acme",
            "--role",
            "agent",
            "What is the airspeed of a swallow?",
            "-o",
            "json",
        ).out
    )
    inputs = tmp_path / "requests.jsonl"
    inputs.write_text(
        json.dumps({"receipt": asked["receipt"]["id"], "input": {"question": "What is the airspeed of a swallow?"}})
    )
    out = made.warm(
        "receipts", "export", "hello", "--as-cases", "misses.jsonl", "--inputs", str(inputs), "-o", "json"
    ).out
    found = json.loads(out)
    assert (found["cases"], found["open"]) == (1, 1)
    (case,) = read_dataset(made.folder, "misses.jsonl").cases
    assert case.id == f"receipt-{asked['receipt']['id']}"
    again = made.warm("receipts", "export", "hello", "--as-cases", "misses.jsonl", "--inputs", str(inputs), code=2)
    assert "--force" in again.err
