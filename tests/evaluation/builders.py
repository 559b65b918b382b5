"""Cases, answers, receipts and suites for the evaluation's tests; and a router that answers from a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bundlectl.evaluation.report import CaseResult
from bundlectl.evaluation.scorers.score import Score
from bundlectl.evaluation.suite import LoadedSuite, read_suite
from bundlectl.inference.provider import Passage
from bundlectl.model.contract import Answer, Citation, Cost, Degraded, Refused, ReleaseRef, Request
from bundlectl.model.receipt import Attempt, Receipt, RetrievalRecord, UsedChunk
from bundlectl.model.suite import Case

NOW = datetime(2026, 11, 23, 18, 0, tzinfo=UTC)
D = "sha256:" + "d" * 64
BUNDLE = "sha256:" + "b" * 64
BINDINGS = "sha256:" + "c" * 64
REF = ReleaseRef(app="support", environment="-", epoch=1, serial=0, bundle=BUNDLE, bindings=BINDINGS)
COST = Cost(usd=0.0, price_book="none")


def case(id_: str = "one", **expected: Any) -> Case:
    return Case.model_validate(
        {"id": id_, "input": {"question": "?"}, "tenant": "t", "role": "r", "expected": expected}
    )


def answer(output: Any = "yes", *, refused: Any = None, degraded: str | None = None, cited: Any = ()) -> Answer:
    return Answer(
        output=None if refused else output,
        format="text" if isinstance(output, str) else "structured_json",
        refused=Refused(code=refused, reason="because") if refused else None,
        degraded=Degraded(reason=degraded) if degraded else None,
        citations=[Citation(n=n, document=name, section=[], chunk="c") for n, name in enumerate(cited, 1)],
        release=REF,
        route="fast",
        cost=COST,
        receipt="r1",
    )


def chunk(document: str, *section: str, rank: int, reranked: int | None = None, packed: bool = True) -> UsedChunk:
    return UsedChunk(
        chunk=f"{document}#{rank}",
        digest=D,
        document=document,
        version=D,
        section=list(section),
        score=1 / rank,
        rank=rank,
        reranked=reranked,
        packed=packed,
    )


def receipt(
    *chunks: UsedChunk,
    searched: bool = True,
    attempts: tuple[Any, ...] = ("ok",),
    error: dict[str, Any] | None = None,
    snapshot: str = D,
) -> Receipt:
    retrieval = RetrievalRecord(
        use="docs",
        index="docs",
        snapshot=snapshot,
        mode="lexical",
        rerank="none",
        candidates=len(chunks),
        removed_by_permission=0,
        context_tokens=0,
        chunks=list(chunks),
    )
    return Receipt(
        id="r1",
        time=NOW,
        identity="local",
        task="answer",
        tenant="t",
        role="r",
        scopes=[],
        latency_class="interactive",
        response_format="text",
        profile="p",
        release=REF,
        components={},
        code_version="0",
        input_digest="hmac-sha256:0",
        attempts=[Attempt(route="fast", model="m", provider="p", outcome=o, seconds=0.1) for o in attempts],
        retrieval=retrieval if searched else None,
        cost=COST,
        stages={},
        error=error,
    )


@dataclass
class Outcome:
    answer: Answer | None
    receipt: Receipt
    passages: tuple[Passage, ...] = ()


@dataclass
class ScriptedRouter:
    """Answers each question by the function; keeps what it was asked, and how many at once."""

    reply: Callable[[Request], Outcome]
    delay: float = 0.0
    asked: list[Request] = field(default_factory=list)
    under_way: int = 0
    most: int = 0

    async def handle(self, request: Request, identity: str) -> Outcome:
        self.asked.append(request)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(self.delay)
            return self.reply(request)
        finally:
            self.under_way -= 1


def write_suite(folder: Path, cases: list[dict[str, Any]], scorers: list[dict[str, Any]], **more: Any) -> Path:
    """Write a suite and its dataset; JSON is YAML."""
    lines = [{"input": {"question": c["id"]}, "tenant": "t", "role": "r", **c} for c in cases]
    (folder / "cases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    document = {
        "apiVersion": "bundlectl/v1",
        "kind": "Suite",
        "name": "s",
        "task": "answer",
        "dataset": "cases.jsonl",
        "scorers": scorers,
        **more,
    }
    path = folder / "suite.yaml"
    path.write_text(json.dumps(document, indent=1))
    return path


def suite(folder: Path, n: int = 3, *, scorers: Any = None, **more: Any) -> LoadedSuite:
    """Give a suite of n cases c0, c1, … that each expect the text 'yes'."""
    cases = [{"id": f"c{i}", "expected": {"exact": "yes"}, "tags": ["even"] if i % 2 == 0 else []} for i in range(n)]
    return read_suite(write_suite(folder, cases, scorers or [{"name": "exact", "floor": 0.5}], **more))


def result(id_: str, **scores: float | Score | None) -> CaseResult:
    """Give a case's result; a number is measured, None is an error."""

    def made(score: float | Score | None) -> Score:
        if score is None:
            return Score(outcome="error", why="broke")
        return score if isinstance(score, Score) else Score(value=float(score), outcome="measured")

    return CaseResult(id=id_, scores={key: made(score) for key, score in scores.items()}, time=NOW)
