"""From the cases' results to the signed verdict: rules without I/O.

For one scorer (over the suite, or over one tag), with n cases that it applies to, s the sum of the measured
scores, u unmeasured and e errors, the first line that holds decides:

    1. n = 0                        inconclusive: nothing was measured
    2. e / n > max_errors           fail if even s + u + e would stay under the floor, else error
    3. u / n > max_unmeasured       fail if even s + u would stay under the floor, else inconclusive
    4. s / n < floor                fail: what is missing counts 0
    5.                              pass

Without a floor a scorer is reported and cannot fail; lines 2 and 3 still hold, line 1 only keeps it from deciding.
A case that was asked more than once has so many rows, and n counts rows. A must-pass case has to score 1 in every
row of it.

A must-pass case has to score 1 on every deciding scorer that applies to it (at least one): less fails, an error is
an error whatever ``max_errors``, unmeasured is inconclusive. A suite that demands nothing is inconclusive. So is a
run that is not complete, whatever its scores; only a failed must-pass case makes it worse. Results over two states
of one index are inconclusive, and so is a suite with margins that was not compared with a baseline. The worst
verdict wins, that of the comparison (:mod:`bundlectl.evaluation.comparison`) and those of bounds of latency and cost
(:mod:`bundlectl.evaluation.bounds`) among them.

A bundle that is evaluated again is judged by all that was ever measured of it: the rows of earlier looks are pooled
with those of this one, but for errors, which say nothing about the bundle.

Consequences, held by property tests: lowering a score, or turning a measured score into an error, never brings
a verdict nearer to pass (fail and error are equally far). The mean that is reported is of the measured scores alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain

from bundlectl import __version__
from bundlectl.evaluation.bounds import measure_run
from bundlectl.evaluation.dataset import tags_of
from bundlectl.evaluation.fold import Fold, Tally
from bundlectl.evaluation.report import CaseResult, is_complete
from bundlectl.evaluation.scorers.table import decides
from bundlectl.evaluation.suite import LoadedSuite
from bundlectl.model.attestation import Comparison, EvaluationResult, ScoreSummary
from bundlectl.model.suite import Suite
from bundlectl.model.verdict import Verdict, worst

_SLACK = 1e-9
"""A mean this little under its floor is rounding, not failing."""

_WHYS = 3


def summarise(
    loaded: LoadedSuite,
    results: Sequence[CaseResult],
    *,
    bindings: str,
    actor: str,
    started: datetime,
    finished: datetime,
    report: str | None = None,
    repeats: int = 1,
    compared: Comparison | None = None,
    uncompared: str = "it was compared with no baseline",
    earlier: Sequence[CaseResult] = (),
    unfit: Mapping[str, str] | None = None,
    tool_version: str = __version__,
) -> EvaluationResult:
    """Judge a run.

    Args:
        loaded: the suite that was run.
        results: what was measured, each repeat of a case at most once.
        bindings: digest of the bindings it ran with.
        actor: who evaluated, as a principal's id.
        started: when the run began; an older result from its journal counts from when it was measured.
        finished: when it ended.
        report: digest of the per-case report.
        repeats: how often each case was to be asked.
        compared: the comparison with a baseline.
        uncompared: why there is none, which is inconclusive in a suite with margins; empty where margins have nothing
            to be compared with, because nothing is live yet.
        earlier: rows of earlier looks at this bundle.
        unfit: judged scorers that may not decide what they gate, and why (:func:`bundlectl.evaluation.judges.unfit`).
        tool_version: the version that measured.

    Raises:
        ValueError: a row has two results, or a result belongs to no case of the suite.
    """
    run = _Run(loaded, results)
    complete = run.complete(repeats)
    for row in earlier:
        run.see_snapshots(row)
        if row.error is None:
            run.count(row)
    rows = [_undecided(row, unfit or {}) for row in _rows(loaded, run.fold, complete)]
    must_pass = {
        case_id: _must_pass(run.must_pass.get(case_id, ()), loaded.suite, unfit or {})
        for case_id in loaded.suite.must_pass
    }
    pooled = chain(results, (row for row in earlier if row.error is None))
    measures = measure_run(loaded.suite, pooled, complete=complete)
    reasons = [
        *_completeness(loaded, results, repeats, complete),
        *_must_pass_reasons(must_pass, complete),
        *_index_moved(run.snapshots),
        *_comparison(loaded, compared, uncompared),
        *_demands_nothing(loaded.suite),
        *((row.verdict, f"{_label(row)}: {row.why}") for row in rows if complete and _counts(row)),
        *((found.verdict, f"{found.measure}: {found.why}") for found in measures if complete),
    ]
    verdict = worst(verdict for verdict, _ in reasons)
    return EvaluationResult(
        suite=loaded.suite.name,
        suite_digest=loaded.suite_digest,
        dataset_digest=loaded.dataset_digest,
        task=loaded.suite.task,
        cases=len(run.fold.cases),
        verdict=verdict,
        why=_why(reasons, verdict),
        scores=rows,
        must_pass_failed=[case_id for case_id, (found, _) in must_pass.items() if found in ("fail", "error")],
        complete=complete,
        report=report,
        snapshots=run.searched,
        bindings=bindings,
        tool_version=tool_version,
        started=min(started, run.oldest or started),
        finished=finished,
        actor=actor,
        repeats=repeats if repeats > 1 else None,
        flaky=(flaky_cases(loaded, run.fold) or None),
        comparison=compared,
        measures=measures or None,
    )


def flaky_cases(loaded: LoadedSuite, rows: Fold) -> list[str]:
    """Name the cases whose rows do not score alike, whatever the scorer; how fast an answer came is not looked at."""
    keys = [line.key for line in loaded.suite.scorers if line.name != "latency"]
    return [
        case.id
        for case in (loaded.cases if rows.repeated else ())
        if any(len({value for value in rows.values(case.id, key) if value is not None}) > 1 for key in keys)
    ]


class _Run:
    """What is to be known of a run's rows, from reading them once.

    ``must_pass``: the rows of such cases. ``snapshots``: those that answered, by index; ``searched``: the first of the
    run's own. ``oldest``: when the first row was measured.
    """

    def __init__(self, loaded: LoadedSuite, results: Sequence[CaseResult]) -> None:
        self.fold = Fold(loaded)
        self.must_pass: dict[str, list[CaseResult]] = {case_id: [] for case_id in loaded.suite.must_pass}
        self.snapshots: dict[str, set[str]] = {}
        self.searched: dict[str, str] = {}
        self.oldest: datetime | None = None
        self._loaded = loaded
        self._turns: dict[str, int] = {}
        for row in results:
            self._turns[row.id] = self._turns.get(row.id, 0) | 1 << row.row[1]
            self.count(row)
            self.see_snapshots(row)
            for index, snapshot in row.snapshots.items():
                self.searched.setdefault(index, snapshot)
            self.oldest = min(self.oldest or row.time, row.time)
        if sum(turns.bit_count() for turns in self._turns.values()) != len(results):
            raise ValueError("a case has two results")
        strangers = dict.fromkeys(self._turns)
        for case in loaded.cases:
            strangers.pop(case.id, None)
        if strangers:
            raise ValueError(f"results belong to no case of the suite: {', '.join(sorted(strangers))}")

    def count(self, row: CaseResult) -> None:
        """Take a row's scores."""
        self.fold.add(row)
        if row.id in self.must_pass:
            self.must_pass[row.id].append(row)

    def see_snapshots(self, row: CaseResult) -> None:
        """Take what a row searched."""
        for index, snapshot in row.snapshots.items():
            self.snapshots.setdefault(index, set()).add(snapshot)

    def complete(self, repeats: int) -> bool:
        """Say whether every case of the suite has its results; asked before rows of earlier looks are counted."""
        return is_complete(self._loaded, self._turns, repeats)


# ---------------------------------------------------------------- scorers


def _rows(loaded: LoadedSuite, fold: Fold, complete: bool) -> Iterator[ScoreSummary]:
    """Give each scorer's summary over all cases, then over each tag that has a floor."""
    tagged: dict[str, set[str]] = {tag: set() for line in loaded.suite.scorers for tag in line.tags}
    for case in loaded.cases if tagged else ():
        for named in tags_of(case) & tagged.keys():
            tagged[named].add(case.id)
    for line in loaded.suite.scorers:
        for tag, floor in [(None, line.floor), *sorted(line.tags.items())]:
            scores = fold.tally(line.key, None if tag is None else tagged[tag])
            yield judge_scores(line.key, tag, floor, scores, loaded.suite, complete=complete)


def judge_scores(
    key: str, tag: str | None, floor: float | None, scores: Tally, suite: Suite, *, complete: bool = True
) -> ScoreSummary:
    """Judge one scorer's scores by the rule of this module; of an incomplete run nothing passes or fails."""
    if complete:
        verdict, why = _judge(scores.total, scores.rows, scores.unmeasured, scores.errors, floor, suite)
    else:
        verdict, why = "inconclusive", "the run is not complete"
    return ScoreSummary(
        scorer=key,
        tag=tag,
        mean=scores.total / scores.measured if scores.measured else None,
        measured=scores.measured,
        unmeasured=scores.unmeasured,
        errors=scores.errors,
        floor=floor,
        verdict=verdict,
        why=why,
    )


def _judge(
    total: float, n: int, unmeasured: int, errors: int, floor: float | None, suite: Suite
) -> tuple[Verdict, str]:
    def under(best: float) -> bool:
        return floor is not None and best / n < floor - _SLACK

    if n == 0:
        return "inconclusive", "no case expects what it measures" + ("" if floor is not None else "; it has no floor")
    if errors / n > suite.max_errors:
        if under(total + unmeasured + errors):
            return "fail", f"under the floor {floor:g}, even if the {errors} errors were right answers"
        return "error", f"{errors} of {n} are errors; the suite allows {_percent(suite.max_errors)}"
    if unmeasured / n > suite.max_unmeasured:
        if under(total + unmeasured):
            return "fail", f"under the floor {floor:g}, even if the {unmeasured} unmeasured were right"
        return (
            "inconclusive",
            f"{unmeasured} of {n} are unmeasured; the suite allows {_percent(suite.max_unmeasured)}",
        )
    missing = f" with {unmeasured + errors} missing counted as 0" if unmeasured + errors else ""
    if under(total):
        return "fail", f"{total / n:.3f}{missing} is under the floor {floor:g}"
    if floor is None:
        return "pass", "reported; it has no floor"
    return "pass", f"{total / n:.3f}{missing} reaches the floor {floor:g}"


def _undecided(row: ScoreSummary, unfit: Mapping[str, str]) -> ScoreSummary:
    """Take back what a scorer says of a floor when it may not decide."""
    if row.floor is None or row.scorer not in unfit or row.verdict not in ("pass", "fail"):
        return row
    return row.model_copy(update={"verdict": "inconclusive", "why": f"shown, but {unfit[row.scorer]}"})


def _counts(row: ScoreSummary) -> bool:
    """Say whether a row takes part in the verdict: all but those that neither demand nor measured anything."""
    return row.floor is not None or row.measured + row.unmeasured + row.errors > 0


def _percent(share: float) -> str:
    return f"{100 * share:g} %" if share else "none"


def _label(row: ScoreSummary) -> str:
    return f"{row.scorer} [{row.tag}]" if row.tag is not None else row.scorer


# ---------------------------------------------------------------- what holds for the whole run

Reason = tuple[Verdict, str]


def _must_pass(rows: Sequence[CaseResult], suite: Suite, unfit: Mapping[str, str]) -> Reason:
    if not rows:
        return "inconclusive", "it was not run"
    found: dict[Verdict, str] = {}
    for row in rows:
        verdict, why = _must_pass_row(row, suite, unfit)
        found.setdefault(verdict, why)
    verdict = worst(found)
    return verdict, found[verdict]


def _must_pass_row(result: CaseResult, suite: Suite, unfit: Mapping[str, str]) -> Reason:
    deciding = {line.key: result.scores.get(line.key) for line in suite.scorers if decides(line)}
    scores = {key: score for key, score in deciding.items() if score is not None}
    if result.error is not None:
        return "error", result.error
    if not scores:
        return "inconclusive", "no deciding scorer applies to it"
    found: dict[Verdict, str] = {"pass": ""}
    for key, score in scores.items():
        if score.outcome == "error":
            found.setdefault("error", f"{key}: {score.why}")
        elif score.outcome == "unmeasured":
            found.setdefault("inconclusive", f"{key}: {score.why}")
        elif key in unfit:
            found.setdefault("inconclusive", f"{key}: {unfit[key]}")
        elif score.value is not None and score.value < 1 - _SLACK:
            found.setdefault("fail", f"{key} is {score.value:g}" + (f" ({score.why})" if score.why else ""))
    verdict = worst(found)
    return verdict, found[verdict]


def _must_pass_reasons(must_pass: Mapping[str, Reason], complete: bool) -> list[Reason]:
    # Cases that an incomplete run did not reach are already why it is incomplete.
    told = {case_id: reason for case_id, reason in must_pass.items() if complete or reason[0] in ("fail", "error")}
    return [(verdict, f"must pass: {case_id}: {why}") for case_id, (verdict, why) in told.items()]


def _completeness(loaded: LoadedSuite, results: Sequence[CaseResult], repeats: int, complete: bool) -> list[Reason]:
    if complete:
        return []
    if not loaded.whole and len(loaded.chosen) == len(loaded.cases):
        return [("inconclusive", "its cases were chosen, if all of them: leave --only out")]
    times = f", {repeats} times each" if repeats > 1 else ""
    return [("inconclusive", f"{len(results)} of {len(loaded.cases) * repeats} cases were run{times}")]


def _comparison(loaded: LoadedSuite, compared: Comparison | None, uncompared: str) -> list[Reason]:
    if compared is not None:
        return [] if compared.verdict in (None, "pass") else [(compared.verdict, compared.why)]
    if loaded.gates and uncompared:
        return [("inconclusive", f"the suite has margins, and {uncompared}")]
    return []


def _index_moved(seen: Mapping[str, set[str]]) -> list[Reason]:
    return [
        ("inconclusive", f"index {index} moved during the run: {len(snapshots)} snapshots answered")
        for index, snapshots in sorted(seen.items())
        if len(snapshots) > 1
    ]


def _demands_nothing(suite: Suite) -> list[Reason]:
    if (
        suite.must_pass
        or suite.bounds is not None
        or any(
            line.floor is not None or line.tags or line.margin is not None or line.tag_margins for line in suite.scorers
        )
    ):
        return []
    return [("inconclusive", "the suite demands nothing: it has no floor, no margin, no bound and no must-pass case")]


def _why(reasons: Sequence[Reason], verdict: Verdict) -> str:
    if verdict == "pass":
        return ""
    found = [why for its, why in reasons if its == verdict]
    more = len(found) - _WHYS
    return "; ".join(found[:_WHYS]) + (f"; and {more} more" if more > 0 else "")
