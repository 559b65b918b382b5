"""The per-case report: what each case came to, without any text of questions, documents or answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from bundlectl.evaluation.scorers.score import Score
from bundlectl.evaluation.suite import LoadedSuite
from bundlectl.model.canonical import canonical
from bundlectl.model.types import Digest, Name, Strict, Time


class CaseResult(Strict):
    """One case, asked and scored.

    ``scores``: by scorer key; a scorer that does not apply is not in it. ``error``: why there is no answer to score;
    then every score that applies is an error. ``refused`` is the code, ``degraded`` the reason. ``cited``:
    documents, each once, in order. ``receipt``: its id. ``seconds``: wall time of the attempt that counts.
    ``attempts``: 2 when the first one erred. ``snapshots``: which state of each index was searched. ``time``: when
    it was measured.
    """

    id: str
    tags: list[str] = []
    split: str | None = None
    group: str | None = None
    scores: dict[Name, Score]
    error: str | None = None
    refused: str | None = None
    degraded: str | None = None
    route: str | None = None
    cited: list[str] = []
    receipt: str | None = None
    seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    attempts: int = Field(default=1, ge=1)
    snapshots: dict[Name, Digest] = {}
    time: Time


class Report(Strict):
    """Every case of one run, in the order of the dataset. Stored as a blob; the signed result names its digest."""

    apiVersion: Literal["bundlectl/v1"] = "bundlectl/v1"
    kind: Literal["EvaluationReport"] = "EvaluationReport"
    suite: Name
    suite_digest: Digest
    dataset_digest: Digest
    bundle: Digest
    bindings: Digest
    complete: bool
    cases: list[CaseResult]


def make_report(loaded: LoadedSuite, results: Sequence[CaseResult], *, bundle: str, bindings: str) -> Report:
    """Make the report of a run; ``complete`` when every case of the suite is in it."""
    return Report(
        suite=loaded.suite.name,
        suite_digest=loaded.suite_digest,
        dataset_digest=loaded.dataset_digest,
        bundle=bundle,
        bindings=bindings,
        complete=is_complete(loaded, results),
        cases=list(results),
    )


def report_bytes(report: Report) -> bytes:
    """Give the canonical JSON that is stored and digested."""
    return canonical(report.form())


def is_complete(loaded: LoadedSuite, results: Sequence[CaseResult]) -> bool:
    """Say whether every case of the suite has its result."""
    return {result.id for result in results} == {case.id for case in loaded.cases}
