"""Whether the scores of a judge may decide what the suite gates by them. Rules without I/O. DESIGN section 10.

A judged scorer that gates (a floor, a margin, must_pass) counts only while all of this holds:

    1. it is calibrated, by a record beside the suite, on at least 100 labels, both good and bad
    2. it tells good from bad: the lower ends of sensitivity and specificity add up to more than 1. A judge that calls
       everything good has a sensitivity of 1; it must not be able to open a gate
    3. the record is of this judge and this rubric: the same identity
    4. every model id that the provider returned in this run was returned at the calibration
    5. the baseline, where there is one, was judged by the same model ids

Otherwise its scores are shown and its gate is inconclusive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bundlectl.evaluation.calibration import Calibration, weakness
from bundlectl.evaluation.report import CaseResult
from bundlectl.evaluation.scorers.judged import JudgedScorer
from bundlectl.evaluation.scorers.score import AnyScorer, AwaitedScorer, Score
from bundlectl.evaluation.scorers.table import decides
from bundlectl.model.attestation import ScorerIdentity
from bundlectl.model.suite import Scorer as Line
from bundlectl.model.suite import Suite


def gating(line: Line) -> bool:
    """Say whether a line of a suite takes part in the verdict by a demand of its own."""
    return bool(line.floor is not None or line.tags or line.margin is not None or line.tag_margins or decides(line))


def unfit(
    suite: Suite,
    scorers: Mapping[str, AnyScorer],
    calibrations: Mapping[str, Calibration],
    candidate: Iterable[CaseResult],
    baseline: Iterable[CaseResult] = (),
    *,
    every: bool = False,
) -> dict[str, str]:
    """Say which judged scorers may not decide what they gate, and why.

    Args:
        suite: the suite.
        scorers: its scorers, with their judges.
        calibrations: the records beside the suite, by scorer.
        candidate: rows that count for the candidate, those of earlier looks among them.
        baseline: rows that count for the baseline.
        every: look at those that gate nothing as well.
    """
    if not any(isinstance(scorer, JudgedScorer) for scorer in scorers.values()):
        return {}
    ours, theirs = _models(candidate), _models(baseline)
    found: dict[str, str] = {}
    for line in suite.scorers:
        scorer = scorers.get(line.key)
        if isinstance(scorer, JudgedScorer) and (every or gating(line)):
            why = _unfit(scorer, calibrations.get(line.key), ours.get(line.key, set()), theirs.get(line.key, set()))
            if why is not None:
                found[line.key] = why
    return found


def _unfit(scorer: JudgedScorer, record: Calibration | None, ours: set[str], theirs: set[str]) -> str | None:
    if scorer.judge is None:
        return f"its judge {scorer.options.judge} has no address here"
    if record is None:
        return "its judge is not calibrated against people's labels (bundlectl judge calibrate)"
    if (weak := weakness(record.figures)) is not None:
        return f"its judge may not decide: {weak}"
    if record.good != scorer.options.good:
        return "its judge was calibrated for another 'good'"
    if changed := _differing(record.identity, dict(scorer.identity)):
        return f"its judge is not the one that was calibrated: {', '.join(changed)} differ"
    if strange := sorted(ours - set(record.models)):
        return f"its judge was {', '.join(record.models) or 'unnamed'} when calibrated, and is {', '.join(strange)}"
    if theirs and ours != theirs:
        before, now = (", ".join(sorted(ids)) or "unnamed" for ids in (theirs, ours))
        return f"the baseline was judged by {before}, and the candidate by {now}"
    return None


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any], at: str = "") -> list[str]:
    found: list[str] = []
    for key in sorted({*ours, *theirs}):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict) and key != "parameters":
            found += _differing(a, b, f"{at}{key}.")
        elif a != b:
            found.append(f"{at}{key}")
    return found


def models_of(scores: Iterable[Score]) -> set[str]:
    """Give the ids of the models that judged, as they were returned; of a judge that returns none, nothing."""
    return {model for score in scores if score.judge is not None for model in score.judge.split(", ")}


def _models(rows: Iterable[CaseResult]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in rows:
        for key, score in row.scores.items():
            if score.judge is not None:
                found.setdefault(key, set()).update(models_of([score]))
    return found


def identities(
    scorers: Mapping[str, AnyScorer],
    calibrations: Mapping[str, Calibration],
    candidate: Iterable[CaseResult],
    baseline: Iterable[CaseResult] = (),
) -> list[ScorerIdentity] | None:
    """Give what a signed result says of scorers that ask: who they are, which models judged, how well they agree."""
    if not any(isinstance(scorer, AwaitedScorer) for scorer in scorers.values()):
        return None
    ours, theirs = _models(candidate), _models(baseline)
    found = []
    for key, scorer in scorers.items():
        if not isinstance(scorer, AwaitedScorer):
            continue
        said = ScorerIdentity(scorer=key, identity=dict(scorer.identity))
        if isinstance(scorer, JudgedScorer):
            record, models = calibrations.get(key), (ours.get(key, set()), theirs.get(key, set()))
            said = said.model_copy(
                update={
                    "models": sorted(models[0] | models[1]),
                    "unfit": _unfit(scorer, record, *models),
                    "calibration": record.figures if record is not None else None,
                    "calibration_digest": record.digest if record is not None else None,
                }
            )
        found.append(said)
    return found or None
