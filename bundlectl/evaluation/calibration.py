"""How well a judge agrees with people, and whether its scores may decide. Rules without I/O. DESIGN section 10.

People say of at least 100 answers whether they are good. The judge scores the same answers, blind. Of the answers that
people call good, sensitivity is the share that the judge calls good; of those that they call bad, specificity is the
share that it calls bad; both with Wilson's 95 % interval. Cohen's kappa is agreement beyond chance. A judge that gave
no ruling, or a tie where people had a preference, was wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from bundlectl.bundling.messages import suggest
from bundlectl.bundling.yaml import Document
from bundlectl.evaluation.beside import read_beside
from bundlectl.evaluation.scorers.judged import JudgedOptions, Sense
from bundlectl.evaluation.scorers.table import KINDS
from bundlectl.model.attestation import CalibrationFigures, Rate
from bundlectl.model.canonical import canonical, digest, parse_json
from bundlectl.model.errors import Problem, SourceError, VerificationFailed
from bundlectl.model.suite import Suite
from bundlectl.model.types import Digest, Name, Strict, Time

LEAST_LABELS = 100
MAX_BYTES = 256 * 1024
Z = 1.959963984540054
"""Normal quantile of .975."""


class Calibration(Strict):
    """The record of one calibration; a file beside the suite, written by `judge calibrate`.

    ``labels``: digest of the labels' file. ``models``: ids of the judge as its provider returned them.
    """

    apiVersion: Literal["bundlectl/v1"] = "bundlectl/v1"
    kind: Literal["JudgeCalibration"] = "JudgeCalibration"
    scorer: Name
    identity: dict[str, Any]
    models: list[str]
    labels: Digest
    good: Annotated[float, Field(gt=0, le=1)]
    figures: CalibrationFigures
    tool_version: str
    time: Time

    @property
    def digest(self) -> str:
        """Digest of its canonical form."""
        return digest(canonical(self.form()))


@dataclass(frozen=True, slots=True)
class Judged:
    """One label: what a person said of an answer, and the judge; None where the judge gave no ruling."""

    human: Sense
    judge: Sense | None


def figures(pairs: Sequence[Judged]) -> CalibrationFigures:
    """Count."""
    good = [pair for pair in pairs if pair.human == "good"]
    bad = [pair for pair in pairs if pair.human == "bad"]
    return CalibrationFigures(
        labels=len(pairs),
        good=len(good),
        bad=len(bad),
        errors=sum(pair.judge is None for pair in pairs),
        sensitivity=rate(sum(pair.judge == "good" for pair in good), len(good)),
        specificity=rate(sum(pair.judge == "bad" for pair in bad), len(bad)),
        kappa=kappa([(pair.human, pair.judge or "no ruling") for pair in pairs]),
    )


def rate(hits: int, of: int) -> Rate | None:
    """Give a share with Wilson's 95 % interval; None of nothing."""
    if not of:
        return None
    share = hits / of
    middle = (share + Z * Z / (2 * of)) / (1 + Z * Z / of)
    half = Z / (1 + Z * Z / of) * math.sqrt(share * (1 - share) / of + Z * Z / (4 * of * of))
    low = 0.0 if hits == 0 else max(0.0, middle - half)
    high = 1.0 if hits == of else min(1.0, middle + half)
    return Rate(value=round(share, 6), low=round(low, 6), high=round(high, 6))


def kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Give Cohen's kappa: agreement beyond chance; None where chance alone agrees always, or nothing was labelled."""
    if not pairs:
        return None
    n = len(pairs)
    observed = sum(a == b for a, b in pairs) / n
    words = {word for pair in pairs for word in pair}
    chance = sum(sum(a == word for a, _ in pairs) * sum(b == word for _, b in pairs) for word in words) / (n * n)
    return None if chance >= 1 else round((observed - chance) / (1 - chance), 6)


def weakness(found: CalibrationFigures) -> str | None:
    """Say what a calibration lacks to let its judge decide; None: nothing."""
    if found.labels < LEAST_LABELS:
        return f"it was held against {found.labels} labels, and {LEAST_LABELS} are needed"
    if found.sensitivity is None or found.specificity is None:
        return "people called all labelled answers good, or all bad, so one half of what it gets wrong is unknown"
    if found.sensitivity.low + found.specificity.low <= 1:
        return (
            f"it does not tell good from bad: sensitivity {found.sensitivity.value:.2f}, "
            f"specificity {found.specificity.value:.2f}"
        )
    return None


def judged_options(suite: Suite) -> dict[str, JudgedOptions]:
    """Give the options of the scorers that ask a judge, by their keys; the lines were checked before."""
    found = {line.key: KINDS[line.name].options.model_validate(line.options) for line in suite.scorers}
    return {key: options for key, options in found.items() if isinstance(options, JudgedOptions)}


def judge_problems(suite: Suite, document: Document) -> list[Problem]:
    """Find scorers whose judge the suite does not have."""
    judges = suite.judges or {}
    problems = []
    for position, line in enumerate(suite.scorers):
        options = judged_options(suite.model_copy(update={"scorers": [line]})).get(line.key)
        if options is not None and options.judge not in judges:
            at = ("scorers", position, "options", "judge")
            right = suggest(options.judge, judges) if judges else "judges: {main: {provider: …, model: …}}"
            problems.append(document.problem(at, f"the suite has no judge {options.judge!r}", right))
    return problems


def read_calibrations(suite: Suite, folder: Path) -> tuple[dict[str, Calibration], list[Problem]]:
    """Read the records beside a suite; one that was not made yet is left out."""
    found: dict[str, Calibration] = {}
    problems: list[Problem] = []
    for key, options in judged_options(suite).items():
        if options.calibration is None or not (folder / options.calibration).exists():
            continue
        shown = str(folder / options.calibration)
        try:
            data = read_beside(folder, options.calibration, "the calibration", MAX_BYTES)
            record = Calibration.model_validate(parse_json(data, what=shown), by_alias=True, by_name=False)
        except SourceError as error:
            problems += error.problems
        except (ValidationError, VerificationFailed):
            right = "remove it, and make it again with: bundlectl judge calibrate SUITE"
            problems.append(Problem(shown, 0, "this is no record of a calibration", right))
        else:
            if record.scorer == key:
                found[key] = record
            else:
                message = f"this is the calibration of {record.scorer!r}, and not of {key!r}"
                problems.append(Problem(shown, 0, message, "a file for each scorer"))
    return found, problems
