"""Markdown for a pull request: verdict, tables, the worst cases, and the rest folded away. No text of any answer."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from bundlectl.evaluation.reports.material import Material, amount, clean, moved, name_of, number, state_of
from bundlectl.evaluation.scorers.table import timed

MOST_WORST = 10
MOST_CASES = 200
_SIGN = {"pass": "✅", "fail": "❌", "error": "❌", "inconclusive": "⚠️"}
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-.!|~:/])")


def markdown(material: Material) -> str:
    """Give the file."""
    result = material.result
    why = f": {plain(result.why)}" if result.why else ""
    parts = [
        f"## {_SIGN[result.verdict]} {plain(result.suite)}: {result.verdict}",
        f"{plain(material.app)} `{material.report.bundle[:19]}`, {result.cases} cases{why}",
        _scores(material),
        _measures(material),
        _compared(material),
        _must(material),
        _worst(material),
        _details(material),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def plain(text: str) -> str:
    """Write text so that Markdown shows it as it is, on one line: no markup, no HTML, no link, nobody mentioned."""
    one_line = " ".join(clean(text).split())
    return html.escape(_SPECIAL.sub(r"\\\1", one_line)).replace("@", "&#64;")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def _scores(material: Material) -> str:
    rows = [
        (
            plain(score.scorer),
            plain(score.tag or ""),
            number(score.mean),
            "" if score.floor is None else number(score.floor),
            str(score.measured),
            str(score.unmeasured + score.errors),
            score.verdict,
        )
        for score in material.result.scores
    ]
    return _table(("scorer", "tag", "mean", "floor", "measured", "not measured", "verdict"), rows)


def _measures(material: Material) -> str:
    rows = [
        (
            found.measure,
            found.statistic,
            amount(found, found.value),
            "" if found.bound is None else amount(found, found.bound),
            str(found.missing),
            found.verdict,
        )
        for found in material.result.measures or ()
    ]
    return _table(("run", "statistic", "value", "bound", "not measured", "verdict"), rows) if rows else ""


def _compared(material: Material) -> str:
    comparison = material.result.comparison
    if comparison is None:
        return ""
    rows = [
        (
            plain(score.scorer),
            plain(score.tag or ""),
            number(score.candidate),
            number(score.baseline),
            f"{score.low:+.3f} to {score.high:+.3f}",
            "" if score.margin is None else number(score.margin),
            score.claim.replace("_", " "),
            "" if score.needed is None else f"{score.needed:,}",
        )
        for score in comparison.scores
    ]
    head = ("scorer", "tag", "candidate", "baseline", "difference", "margin", "claim", "groups needed")
    where = f", live in {plain(comparison.environment)}" if comparison.environment else ""
    return f"Beside `{comparison.baseline[:19]}`{where}:\n\n" + _table(head, rows)


def _must(material: Material) -> str:
    failed = material.result.must_pass_failed
    return f"**Must pass and did not:** {', '.join(plain(case) for case in failed)}" if failed else ""


def _worst(material: Material) -> str:
    lost = [change for change in material.changes if change.candidate < change.baseline]
    if not lost:
        return ""
    lines = [
        f"- {plain(change.case)}: {plain(change.scorer)} {change.baseline:g} → {change.candidate:g}"
        for change in lost[:MOST_WORST]
    ]
    if len(lost) > MOST_WORST:
        lines.append(f"- and {len(lost) - MOST_WORST} more")
    return "**Worse than the baseline:**\n\n" + "\n".join(lines)


def _details(material: Material) -> str:
    skip = timed(material.loaded.suite.scorers)
    rows = []
    for row in material.report.cases:
        state, change = state_of(row), moved(row, material.beside(row), skip)
        if state == "full" and change in (None, "same"):
            continue
        scores = ", ".join(
            f"{plain(key)} {number(score.value) if score.value is not None else score.outcome}"
            for key, score in row.scores.items()
        )
        rows.append((plain(name_of(row)), state, change or "", scores))
    if not rows:
        return ""
    more = f"\n\n{len(rows) - MOST_CASES} more are in report.html." if len(rows) > MOST_CASES else ""
    return (
        f"<details><summary>{len(rows)} of {len(material.report.cases)} rows are not full, or changed</summary>\n\n"
        + _table(("case", "state", "beside the baseline", "scores"), rows[:MOST_CASES])
        + more
        + "\n\n</details>"
    )
