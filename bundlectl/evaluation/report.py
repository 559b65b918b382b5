"""The per-case report: what each case came to, without any text of questions, documents or answers."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, ValidatorFunctionWrapHandler, WrapValidator

from bundlectl.evaluation.scorers.score import Score
from bundlectl.evaluation.shelf import Picked, Shelf
from bundlectl.evaluation.suite import LoadedSuite
from bundlectl.model.canonical import canonical, canonical_array, digest_of
from bundlectl.model.types import Digest, Name, Strict, Time, lean


class CaseResult(Strict):
    """One case, asked and scored.

    ``scores``: by scorer key; a scorer that does not apply is not in it. ``error``: why there is no answer to score;
    then every score that applies is an error. ``refused`` is the code, ``degraded`` the reason. ``cited``:
    documents, each once, in order. ``receipt``: its id. ``seconds``: wall time of the attempt that counts.
    ``attempts``: 2 when the first one erred. ``snapshots``: which state of each index was searched. ``time``: when
    it was measured. ``repeat``: from 2, where the case was asked more than once. ``model``: the provider's id of the
    model that answered, as it was returned. ``usd``: what its attempts and its judges cost; absent where a price is
    not known. ``judging``: what of that the judges cost.
    ``cached``: an earlier run's answer was given back; it cost nothing now, ``time`` is when it was given, and
    ``seconds`` is absent.
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
    repeat: Annotated[int, Field(ge=2)] | None = None
    model: str | None = None
    usd: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    judging: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    cached: Literal[True] | None = None

    def model_post_init(self, context: Any) -> None:
        """There may be a hundred thousand of them, so each is kept small."""
        for score in self.scores.values():
            lean(score)
        lean(self)

    @property
    def row(self) -> Row:
        """The case and the number of the repeat, from 1."""
        return self.id, self.repeat or 1


Row = tuple[str, int]


def _shelved(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    # Made by this program, and read back one by one: to check them all is to hold them all.
    return value if isinstance(value, Shelf | Picked) else check(value)


Rows = Annotated[
    Sequence[CaseResult],
    WrapValidator(_shelved),
    PlainSerializer(list, return_type=list[CaseResult], when_used="always"),
]
"""An array of rows, in the order of the dataset."""


class Beside(Strict):
    """The baseline of a comparison: the same cases, asked of another bundle."""

    bundle: Digest
    bindings: Digest
    cases: Rows


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
    cases: Rows
    baseline: Beside | None = None

    @property
    def rows(self) -> Iterator[CaseResult]:
        """The rows of both bundles."""
        yield from self.cases
        yield from self.baseline.cases if self.baseline is not None else ()


def make_report(
    loaded: LoadedSuite,
    results: Sequence[CaseResult],
    *,
    bundle: str,
    bindings: str,
    repeats: int = 1,
    baseline: Beside | None = None,
    baseline_repeats: int = 1,
) -> Report:
    """Make the report of a run; ``complete`` when every case of the suite is in it, as often as it was to be asked.

    ``baseline_repeats``: how often the baseline was to be asked; once, where its own result is used.
    """
    return Report(
        suite=loaded.suite.name,
        suite_digest=loaded.suite_digest,
        dataset_digest=loaded.dataset_digest,
        bundle=bundle,
        bindings=bindings,
        complete=is_complete(loaded, turns_of(results), repeats)
        and (baseline is None or is_complete(loaded, turns_of(baseline.cases), baseline_repeats)),
        cases=results,
        baseline=baseline,
    )


def report_bytes(report: Report) -> bytes:
    """Give the canonical JSON that is stored."""
    whole = io.BytesIO()  # joined, they would be there twice
    whole.writelines(_pieces(report))
    return whole.getvalue()


def report_digest(report: Report) -> str:
    """Give its digest, without all of it at once."""
    return digest_of(_pieces(report))


def _pieces(whole: Report | Beside) -> Iterator[bytes]:
    """Give the canonical JSON row by row: the form of all rows at once is many times as large as what is written."""
    beside = whole.baseline if isinstance(whole, Report) else None
    form = whole.model_copy(update={"cases": []} | ({"baseline": None} if beside is not None else {})).form()
    parts: dict[str, Iterable[bytes]] = {name: (canonical(value),) for name, value in form.items()}
    parts["cases"] = canonical_array(row.form() for row in whole.cases)
    if beside is not None:
        parts["baseline"] = _pieces(beside)
    # The names are ASCII, of which RFC 8785's order is the plain one.
    for position, name in enumerate(sorted(parts)):
        yield (b"," if position else b"{") + canonical(name) + b":"
        yield from parts[name]
    yield b"}"


def turns_of(rows: Iterable[CaseResult]) -> dict[str, int]:
    """Give the repeats that are there of each case, as bits: of the first one bit 1."""
    found: dict[str, int] = {}
    for row in rows:
        case, repeat = row.row
        found[case] = found.get(case, 0) | 1 << repeat
    return found


def is_complete(loaded: LoadedSuite, turns: Mapping[str, int], repeats: int = 1) -> bool:
    """Say whether every case of the suite has its rows, and none was chosen for the run."""
    wanted = sum(1 << repeat for repeat in range(1, repeats + 1))
    return loaded.whole and all(turns.get(case.id, 0) & wanted == wanted for case in loaded.cases)
