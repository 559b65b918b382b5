"""Is a candidate better than a baseline, no worse within a margin, or worse? Rules without I/O. DESIGN section 10.

For one scorer (over the suite, or over one tag), per case that it applies to:

    1. average the repeats of each side, and take candidate minus baseline
    2. average the cases within each group (``group``, else the first expected document, else the case alone)
    3. make the interval of the G group differences with two pseudo-groups: :mod:`bundlectl.evaluation.statistics`
    4. the first line that holds decides:
       G < 20          inconclusive
       low > 0         better
       low > -margin   no worse, "below" if high < 0
       high < 0        worse
                       inconclusive

A row that is missing (unmeasured, an error, never asked) counts against the claim. For ``low`` it is 0 for the
candidate and 1 for the baseline; for ``high`` it is the other way round. So nothing that is missing makes a candidate
pass, and nothing that is missing makes it worse.

The verdict is of the gated scorers and tags, those with a margin: all of them better or no worse is a pass. That is
an intersection, and needs no correction. Claims of better or worse are many chances to be wrong, so they have to
stand after Holm's correction as well; a claim that does not is taken back to no worse, or to inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bundlectl.evaluation.dataset import tags_of
from bundlectl.evaluation.fold import Fold
from bundlectl.evaluation.report import CaseResult
from bundlectl.evaluation.statistics import (
    LEAST_GROUPS,
    bootstrap,
    groups_needed,
    holm,
    interval,
    look_alpha,
    mcnemar,
    p_value,
    variance_of,
)
from bundlectl.evaluation.suite import LoadedSuite, group_of
from bundlectl.model.attestation import Claim, ComparedScore
from bundlectl.model.suite import Scorer
from bundlectl.model.types import Name, Strict
from bundlectl.model.verdict import Verdict, worst

_WHYS = 3
_VERDICTS: Mapping[Claim, Verdict] = {
    "better": "pass",
    "no_worse": "pass",
    "worse": "fail",
    "inconclusive": "inconclusive",
}


@dataclass(frozen=True)
class Compared:
    """What a comparison found; ``verdict`` is None where the suite gates nothing."""

    scores: tuple[ComparedScore, ...]
    verdict: Verdict | None
    why: str


class Change(Strict):
    """A case whose score is not the baseline's. Means over the repeats that were measured."""

    case: str
    scorer: Name
    candidate: float
    baseline: float


def compare(
    loaded: LoadedSuite,
    candidate: Iterable[CaseResult],
    baseline: Iterable[CaseResult],
    *,
    look: int = 1,
    alpha: float | None = None,
    margins: Mapping[str, float] | None = None,
    unfit: Mapping[str, str] | None = None,
) -> Compared:
    """Compare two bundles by what was measured of them.

    Args:
        loaded: the suite that both were measured by.
        candidate: rows of the candidate, those of earlier looks among them.
        baseline: rows of the baseline, likewise.
        look: which look at the candidate this is.
        alpha: one-sided; by default that of the look.
        margins: margins by scorer for scorers without one of their own; they gate as well.
        unfit: judged scorers that may not decide what they gate, and why.
    """
    alpha = look_alpha(look) if alpha is None else alpha
    sides = _Sides(Fold(loaded, candidate), Fold(loaded, baseline))
    found: list[tuple[ComparedScore, float]] = []
    for line in loaded.suite.scorers:
        overall = line.margin if line.margin is not None else (margins or {}).get(line.key)
        for tag, margin in [(None, overall), *sorted((line.tag_margins or {}).items())]:
            found.append(_score(line, tag, margin, loaded, sides, alpha))
    scores = [_undecided(score, unfit or {}) for score in _corrected(found, alpha)]
    verdict, why = verdict_of(scores)
    return Compared(tuple(scores), verdict, why)


def verdict_of(scores: Sequence[ComparedScore]) -> tuple[Verdict | None, str]:
    """Judge the gated scores: the worst counts."""
    judged = [(_VERDICTS[score.claim], f"{label(score)}: {score.why}") for score in scores if score.margin is not None]
    if not judged:
        return None, "the suite has no margin, so the comparison decides nothing"
    verdict = worst(v for v, _ in judged)
    whys = [why for v, why in judged if v == verdict] if verdict != "pass" else []
    more = len(whys) - _WHYS
    return verdict, "; ".join(whys[:_WHYS]) + (f"; and {more} more" if more > 0 else "")


def label(score: ComparedScore) -> str:
    """Name a score as people read it."""
    return f"{score.scorer} [{score.tag}]" if score.tag is not None else score.scorer


def changes(loaded: LoadedSuite, candidate: Iterable[CaseResult], baseline: Iterable[CaseResult]) -> list[Change]:
    """Give every case and scorer whose measured mean differs, the greatest losses first; speed is left out."""
    sides = _Sides(Fold(loaded, candidate), Fold(loaded, baseline))
    found = []
    for case in loaded.cases:
        for line in loaded.suite.scorers:
            if line.name == "latency":
                continue
            ours, theirs = (_mean(rows.values(case.id, line.key)) for rows in (sides.candidate, sides.baseline))
            if ours is not None and theirs is not None and ours != theirs:
                found.append(Change(case=case.id, scorer=line.key, candidate=ours, baseline=theirs))
    return sorted(found, key=lambda change: change.candidate - change.baseline)


# ---------------------------------------------------------------- one scorer


@dataclass(frozen=True)
class _Sides:
    candidate: Fold
    baseline: Fold


def _mean(values: Sequence[float | None], missing: float | None = None) -> float | None:
    """Average; what is missing counts as ``missing``, or not at all."""
    counted = [missing if value is None else value for value in values]
    known = [value for value in counted if value is not None]
    return math.fsum(known) / len(known) if known else None


@dataclass(frozen=True, slots=True)
class _Pair:
    """One case of both sides, with its group: scores of its rows, None where one is missing."""

    group: str
    candidate: list[float | None]
    baseline: list[float | None]

    def difference(self, candidate: float, baseline: float) -> float:
        """Subtract; what is missing counts as given."""
        ours, theirs = _mean(self.candidate, candidate), _mean(self.baseline, baseline)
        return (candidate if ours is None else ours) - (baseline if theirs is None else theirs)

    @property
    def missing(self) -> int:
        """How many rows are missing; a side that was never asked misses one."""
        return sum(values.count(None) or (0 if values else 1) for values in (self.candidate, self.baseline))


def _score(
    line: Scorer, tag: str | None, margin: float | None, loaded: LoadedSuite, sides: _Sides, alpha: float
) -> tuple[ComparedScore, float]:
    """Compare by one scorer; with the p-value of no difference."""
    pairs = [
        pair
        for case in loaded.cases
        if tag is None or tag in tags_of(case)
        if (
            pair := _Pair(
                group_of(case),
                sides.candidate.values(case.id, line.key),
                sides.baseline.values(case.id, line.key),
            )
        ).candidate
        or pair.baseline
    ]
    against = _group_means(pairs, candidate=0.0, baseline=1.0)
    for_it = _group_means(pairs, candidate=1.0, baseline=0.0)
    low, high = interval(against, alpha).low, interval(for_it, alpha).high
    claim, why = _claim(len(against), low, high, margin)
    shown = _shown(pairs, alpha)
    needed = None
    if claim == "inconclusive" and margin is not None:
        needed = _needed(against, margin, alpha)
        why += _settling(needed, len(against))
    score = ComparedScore(
        scorer=line.key,
        tag=tag,
        margin=margin,
        groups=len(against),
        cases=len(pairs),
        missing=sum(pair.missing for pair in pairs),
        candidate=_mean([_mean(pair.candidate) for pair in pairs]),
        baseline=_mean([_mean(pair.baseline) for pair in pairs]),
        difference=shown.difference,
        low=low,
        high=high,
        claim=claim,
        why=why,
        below=True if claim == "no_worse" and high < 0 else None,
        needed=needed,
        bootstrap=shown.bootstrap,
        mcnemar=shown.mcnemar,
    )
    return score, p_value(for_it if high < 0 else against)


def _group_means(pairs: Sequence[_Pair], *, candidate: float, baseline: float) -> list[float]:
    groups: dict[str, list[float]] = {}
    for pair in pairs:
        groups.setdefault(pair.group, []).append(pair.difference(candidate, baseline))
    return [math.fsum(values) / len(values) for values in groups.values()]


def _claim(groups: int, low: float, high: float, margin: float | None) -> tuple[Claim, str]:
    said = f"the difference is in [{low:+.3f}, {high:+.3f}]"
    if groups < LEAST_GROUPS:
        return "inconclusive", f"{groups} groups of cases, and nothing is decided by fewer than {LEAST_GROUPS}"
    if low > 0:
        return "better", said
    if margin is not None and low > -margin:
        below = ", surely a little worse" if high < 0 else ""
        return "no_worse", f"{said}, within the margin of {margin:g}{below}"
    if high < 0:
        return "worse", f"{said}{f', beyond the margin of {margin:g}' if margin is not None else ''}"
    if margin is None:
        return "inconclusive", f"{said}, and the suite has no margin for it"
    return "inconclusive", f"{said}, which reaches below the margin of {margin:g}"


def _needed(differences: Sequence[float], margin: float, alpha: float) -> int | None:
    """Give how many groups would settle it: by what was seen, or by the usual discordance where that is too little."""
    if len(differences) < LEAST_GROUPS:
        return groups_needed(margin, alpha=alpha)
    return groups_needed(
        margin,
        difference=math.fsum(differences) / len(differences),
        variance=variance_of(differences),
        alpha=alpha,
    )


def _settling(needed: int | None, groups: int) -> str:
    if needed is None:
        return "; more than a million groups would be needed"
    assumed = ", if one outcome in ten differs" if groups < LEAST_GROUPS else ", if the rest is like these"
    return f"; about {needed:,} groups settle it{assumed}"


# ---------------------------------------------------------------- across scorers, and shown beside


def _corrected(found: Sequence[tuple[ComparedScore, float]], alpha: float) -> list[ComparedScore]:
    """Take back the claims of better and worse that do not stand after Holm's correction."""
    adjusted = holm({f"{number}": p for number, (_, p) in enumerate(found)})
    scores = []
    for number, (score, _) in enumerate(found):
        if score.claim in ("better", "worse") and adjusted[f"{number}"] > 2 * alpha:
            why = f"{score.why}; not so surely {score.claim} with {len(found)} comparisons made at once"
            kept = score.claim == "better" and score.margin is not None
            score = score.model_copy(update={"claim": "no_worse" if kept else "inconclusive", "why": why})
        scores.append(score)
    return scores


def _undecided(score: ComparedScore, unfit: Mapping[str, str]) -> ComparedScore:
    """Take back what a gated scorer claims when it may not decide."""
    if score.margin is None or score.scorer not in unfit:
        return score
    why = f"shown, but {unfit[score.scorer]}"
    return score.model_copy(update={"claim": "inconclusive", "why": why, "below": None, "needed": None})


@dataclass(frozen=True)
class _Shown:
    difference: float | None = None
    bootstrap: list[float] | None = None
    mcnemar: float | None = None


def _shown(pairs: Sequence[_Pair], alpha: float) -> _Shown:
    """Compute what is shown and decides nothing, from the cases that both sides measured."""
    known = [pair for pair in pairs if _mean(pair.candidate) is not None and _mean(pair.baseline) is not None]
    if not known:
        return _Shown()
    measured = [
        replace(
            pair,
            candidate=[value for value in pair.candidate if value is not None],
            baseline=[value for value in pair.baseline if value is not None],
        )
        for pair in known
    ]
    groups = _group_means(measured, candidate=0.0, baseline=0.0)
    differences = [pair.difference(0.0, 0.0) for pair in measured]
    yes_or_no = all(value in (0.0, 1.0) for pair in measured for value in (*pair.candidate, *pair.baseline))
    return _Shown(
        difference=math.fsum(groups) / len(groups),
        bootstrap=list(bootstrap(groups, alpha)),
        mcnemar=mcnemar(sum(d > 0 for d in differences), sum(d < 0 for d in differences)) if yes_or_no else None,
    )
