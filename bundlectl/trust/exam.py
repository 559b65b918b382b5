"""What a gate makes of an evaluation on the day: its age, its floors, and its margins against what is live.

Whether a result was signed and passed is evidence, which resolvers judge again; this is judged at promotion alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from bundlectl.model.attestation import ComparedScore, EvaluationResult, ScoreSummary
from bundlectl.model.keyring import EvaluationRequirement
from bundlectl.model.types import seconds
from bundlectl.model.verdict import Verdict, worst
from bundlectl.trust.check import Check
from bundlectl.trust.evidence import Attested, blocked_reason
from bundlectl.trust.requirements import newest_evaluations

if TYPE_CHECKING:
    from bundlectl.trust.gate import Situation

LEAST_GROUPS = 20
"""Groups of cases under which a comparison decides nothing; the evaluator's own rule, asked again here."""

LEAST_LABELS = 100
"""Answers that people labelled, under which a judge's scores decide nothing; the evaluator's own rule."""

CLOCK_SKEW = timedelta(minutes=5)
"""How far an evaluator's clock may be ahead of ours."""


def judge_exam(situation: Situation, requirement: EvaluationRequirement) -> list[Check]:
    """Judge what one requirement asks beside a signed pass: age, floors, margins; in the order of :func:`judge`."""
    usable = [item for item in situation.attested if blocked_reason(item, situation.keyring) is None]
    newest = newest_evaluations(requirement, usable, situation.keyring)
    again = f"bundlectl eval {situation.reference} --suite evals/{requirement.suite}.yaml --signer URI"
    checks = [_age(situation, requirement, newest, again), *_models(situation, requirement, newest, again)]
    for scorer, floor in sorted(requirement.floors.items()):
        name = f"floor:{requirement.suite}/{scorer}"
        results = [result for results in newest.values() for result in results]
        judged = [_floor(result, scorer, floor) for result in results]
        if not judged:
            checks.append(Check(name, "inconclusive", "There is no evaluation to judge it by.", again))
            continue
        verdict = worst(v for v, _ in judged)
        why = next(why for v, why in judged if v == verdict)
        checks.append(Check(name, verdict, why, "" if verdict == "pass" else _floor_fix(verdict, again)))
    checks += _margins(situation, requirement, _beside(situation, requirement, usable, newest), again)
    return [*checks, *_anchored(situation, requirement, usable)]


def _margins(
    situation: Situation,
    requirement: EvaluationRequirement,
    newest: Mapping[str, Sequence[EvaluationResult]],
    again: str,
) -> list[Check]:
    """Judge by the signed comparisons whether it is no worse than what is live; every evaluator's newest counts."""
    place = f"{situation.app}:{situation.environment}"
    fix = f"{again} --baseline {place}"
    checks = []
    for scorer, margin in sorted((requirement.no_worse or {}).items()):
        name = f"no-worse:{requirement.suite}/{scorer}"
        if situation.replaces is None:
            checks.append(Check(name, "inconclusive", f"It is not known what is live in {place}."))
            continue
        live = situation.replaces.bundle
        if live is None or live == situation.bundle:
            why = f"Nothing is live in {place} yet." if live is None else f"It is what is live in {place}."
            checks.append(Check(name, "pass", why))
            continue
        verdict, why = _compared_by(situation, requirement, newest, scorer, margin, live)
        mend = "Improve the bundle, or have the app's owners widen the margin."
        checks.append(Check(name, verdict, why, {"pass": "", "fail": mend}.get(verdict, fix)))
    return checks


def _beside(
    situation: Situation,
    requirement: EvaluationRequirement,
    usable: Sequence[Attested],
    newest: Mapping[str, Sequence[EvaluationResult]],
) -> Mapping[str, Sequence[EvaluationResult]]:
    """Give the results that are judged against what is live: the newest; with an anchor the newest beside what is live.

    A bundle with an anchor is evaluated twice, once beside each of the two, so that its newest result may be beside
    the anchor. Which of several results beside one baseline counts is not the candidate's to choose: the newest does.
    """
    live = situation.replaces.bundle if situation.replaces is not None else None
    if requirement.anchor is None or live is None:
        return newest
    beside = _compared(situation, requirement, usable, live)
    return newest_evaluations(requirement, beside, situation.keyring) or newest


def _anchored(situation: Situation, requirement: EvaluationRequirement, usable: Sequence[Attested]) -> list[Check]:
    """Judge by the signed comparisons whether it is no worse than the anchor."""
    anchor = requirement.anchor
    if anchor is None:
        return []
    suite = requirement.suite
    fix = (
        f"bundlectl eval {situation.reference} --suite evals/{suite}.yaml --signer URI "
        f"--baseline {situation.app}@{anchor}"
    )
    beside = _compared(situation, requirement, usable, anchor)
    newest = newest_evaluations(requirement, beside, situation.keyring)
    checks = []
    for scorer, margin in sorted((requirement.no_worse or {}).items()):
        name = f"anchor:{suite}/{scorer}"
        if anchor == situation.bundle:
            checks.append(Check(name, "pass", "It is the anchor."))
            continue
        verdict, why = _compared_by(situation, requirement, newest, scorer, margin, anchor)
        mend = "Improve the bundle, or have the app's owners name another anchor."
        checks.append(Check(name, verdict, why, {"pass": "", "fail": mend}.get(verdict, fix)))
    return checks


def _compared_by(
    situation: Situation,
    requirement: EvaluationRequirement,
    newest: Mapping[str, Sequence[EvaluationResult]],
    scorer: str,
    margin: float,
    baseline: str,
) -> tuple[Verdict, str]:
    """Judge one margin against one baseline: every evaluator's newest counts, and as many are needed as must pass."""
    judged = [_no_worse(result, scorer, margin, baseline) for results in newest.values() for result in results]
    if not judged:
        return "inconclusive", f"It was not compared with {baseline[:19]}."
    verdict = worst(v for v, _ in judged)
    found = situation.keyring.distinct(newest)
    if verdict == "pass" and found < requirement.threshold:
        needed = f"{found} of {requirement.threshold} needed evaluators"
        return "inconclusive", f"{needed} compared it with {baseline[:19]} (so far: {', '.join(newest)})."
    return verdict, next(why for v, why in judged if v == verdict)


def _compared(
    situation: Situation, requirement: EvaluationRequirement, usable: Sequence[Attested], baseline: str
) -> list[Attested]:
    """Give the results beside a baseline that are young enough; how old the newest of all is says nothing of them."""
    limit = timedelta.max if requirement.max_age is None else timedelta(seconds=seconds(requirement.max_age))
    return [
        item
        for item in usable
        if isinstance(result := item.predicate, EvaluationResult)
        and result.comparison is not None
        and result.comparison.baseline == baseline
        and situation.now - (result.oldest or result.finished) <= limit
    ]


def _no_worse(result: EvaluationResult, scorer: str, margin: float, live: str) -> tuple[Verdict, str]:
    comparison = result.comparison
    if comparison is None:
        return "inconclusive", "It was evaluated by itself, and not compared with what is live."
    if comparison.baseline != live:
        return (
            "inconclusive",
            f"It was compared with {comparison.baseline[:19]}, and {live[:19]} is live now.",
        )
    if (undecided := _undecided(result, scorer)) is not None:
        return "inconclusive", undecided
    found = [score for score in comparison.scores if score.scorer == scorer and score.tag is None]
    if len(found) != 1:
        return "inconclusive", f"The comparison has {'no' if not found else 'more than one'} score {scorer!r}."
    score = found[0]
    if not result.complete or not score.low <= score.high:
        return "inconclusive", f"The comparison by {scorer} is not whole."
    said = f"{scorer} differs by [{score.low:+.3f}, {score.high:+.3f}] over {score.groups} groups of cases"
    if score.groups < LEAST_GROUPS:
        return "inconclusive", f"{said}; fewer than {LEAST_GROUPS} decide nothing{_more(score)}."
    if score.low > -margin:
        return "pass", f"{said}; the margin is {margin:g}."
    if score.high < 0:
        return "fail", f"{said}: worse, beyond the margin of {margin:g}."
    return "inconclusive", f"{said}, which reaches below the margin of {margin:g}{_more(score)}."


def _undecided(result: EvaluationResult, scorer: str) -> str | None:
    """Say why a scorer that asks a judge may decide nothing; the evaluator's own rule, asked again here."""
    for said in result.scorers or []:
        if said.scorer != scorer or not ("judge" in said.identity or said.unfit):
            continue
        if said.unfit is not None:
            return f"{scorer} is shown and decides nothing: {said.unfit}."
        if said.calibration is None or said.calibration.labels < LEAST_LABELS:
            return f"{scorer} is judged by a model that was not held against {LEAST_LABELS} labels of people."
    return None


def _more(score: ComparedScore) -> str:
    return f"; about {score.needed:,} groups would settle it" if score.needed is not None else ""


def _age(
    situation: Situation,
    requirement: EvaluationRequirement,
    newest: Mapping[str, Sequence[EvaluationResult]],
    again: str,
) -> Check:
    name = f"age:{requirement.suite}"
    if not newest:
        return Check(name, "inconclusive", "There is no evaluation whose age could be judged.", again)
    ahead = [evaluator for evaluator, found in newest.items() if situation.now - found[0].finished < -CLOCK_SKEW]
    # An answer that an earlier run got is as old as it is, whenever it was signed.
    ages = {who: situation.now - (found[0].oldest or found[0].finished) for who, found in newest.items()}
    if ahead:
        why = f"The newest result of {', '.join(ahead)} lies in the future: a clock is wrong, theirs or this one."
        return Check(name, "inconclusive", why, "Set the clock right and evaluate again.")
    youngest = span(max(min(ages.values()), timedelta(0)))
    if requirement.max_age is None:
        return Check(name, "pass", f"Evaluated {youngest} ago; the policy sets no limit.")
    limit = timedelta(seconds=seconds(requirement.max_age))
    fresh = [evaluator for evaluator, age in ages.items() if age <= limit]
    if situation.keyring.distinct(fresh) >= requirement.threshold:
        return Check(name, "pass", f"Evaluated {youngest} ago; the policy allows {requirement.max_age}.")
    why = (
        f"{len(fresh)} of {requirement.threshold} needed evaluations are young enough: "
        f"the newest is {youngest} old and the policy allows {requirement.max_age}."
    )
    return Check(name, "fail", why, again)


def _models(
    situation: Situation,
    requirement: EvaluationRequirement,
    newest: Mapping[str, Sequence[EvaluationResult]],
    again: str,
) -> list[Check]:
    """Judge whether a model answers here that an evaluation left out; no check where none was left out."""
    skipped = {model for results in newest.values() for result in results for model in result.skipped or ()}
    if not skipped:
        return []
    name, place = f"models:{requirement.suite}", f"{situation.app}:{situation.environment}"
    if situation.switched_off is None:
        return [Check(name, "inconclusive", f"It is not known which models are switched off in {place}.")]
    unknown = sorted(skipped.difference(situation.switched_off))
    if not unknown:
        return [Check(name, "pass", f"Evaluated without {', '.join(sorted(skipped))}, switched off here as well.")]
    why = f"It was evaluated without {', '.join(unknown)}, and {place} may ask it."
    return [Check(name, "inconclusive", why, f"{again} --bindings FILE, or switch it off with disabled_models")]


def _floor(result: EvaluationResult, scorer: str, floor: float) -> tuple[Verdict, str]:
    """Judge one floor. Cases without a score count 0 for a pass and 1 for a fail: what is unknown never helps."""
    if (undecided := _undecided(result, scorer)) is not None:
        return "inconclusive", undecided
    found = [score for score in result.scores if score.scorer == scorer and score.tag is None]
    if len(found) != 1:
        return "inconclusive", f"The evaluation has {'no' if not found else 'more than one'} score {scorer!r}."
    score: ScoreSummary = found[0]
    if score.mean is None or score.measured == 0:
        return "inconclusive", f"{scorer} was measured on no case."
    if not 0 <= score.mean <= 1:
        return "inconclusive", f"{scorer} is {score.mean}, which is no mean of scores in [0, 1]."
    missing = score.unmeasured + score.errors
    share = score.measured / (score.measured + missing)  # exactly 1.0 where none is missing
    least = score.mean * share
    most = least + (1 - share)
    said = f"{scorer} is {score.mean:.4g} over {score.measured} cases"
    if least >= floor:
        note = f"; {missing} more have no score, and it holds if all of them are wrong" if missing else ""
        return "pass", f"{said}; the floor is {floor:g}{note}."
    if most < floor:
        return "fail", f"{said}; the floor is {floor:g}."
    return (
        "inconclusive",
        f"{said}, but {missing} more have no score: it may be as low as {least:.4g}, under {floor:g}.",
    )


def _floor_fix(verdict: Verdict, again: str) -> str:
    return again if verdict == "inconclusive" else "Improve the bundle, or have the app's owners lower the floor."


def span(length: timedelta) -> str:
    """Write a length of time in the largest unit that it has at least two of: ``3 h``."""
    total = int(length.total_seconds())
    for size, word in ((86400, "d"), (3600, "h"), (60, "min")):
        if total >= 2 * size:
            return f"{total // size} {word}"
    return f"{total} s"
