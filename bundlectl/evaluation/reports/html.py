"""One HTML file to look at: works without a network, and nothing that a case or a model says becomes markup.

Two fences: every text is escaped, and the page's content security policy allows only the script and the style whose
hashes it names, and nothing from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from bundlectl.evaluation.dataset import tags_of
from bundlectl.evaluation.report import CaseResult
from bundlectl.evaluation.reports.material import Material, amount, clean, moved, name_of, number, state_of
from bundlectl.evaluation.scorers.table import timed
from bundlectl.model.contract import Answer
from bundlectl.model.suite import Case
from bundlectl.model.types import format_time

_FOLDER: Final = Path(__file__).resolve().parent
_CLASS: Final = {"below 1": "below"}


def page(material: Material) -> str:
    """Give the file."""
    style = (_FOLDER / "page.css").read_text("utf-8")
    script = (_FOLDER / "page.js").read_text("utf-8")
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'"
    result = material.result
    title = f"{material.app} {result.suite}: {result.verdict}"
    cases = {case.id: case for case in material.loaded.cases}
    rows = "\n".join(_row(material, row, cases.get(row.id)) for row in material.report.cases)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{text(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{style}</style></head><body>\n"
        f"<h1>{text(material.app)} {text(result.suite)}: {_word(result.verdict)}</h1>\n"
        f"<p>{text(result.why)}</p>\n{_facts(material)}\n"
        f"<h2>Scores</h2>\n{_scores(material)}\n{_measures(material)}\n{_compared(material)}\n"
        f"<h2>Cases</h2>\n{_filter(material)}\n{rows}\n"
        f"<script>{script}</script></body></html>\n"
    )


def text(value: str) -> str:
    """Escape a text, for content and for attributes in double quotes."""
    return html.escape(clean(value), quote=True)


def _hash(part: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()


def _word(value: str) -> str:
    return f'<span class="{text(_CLASS.get(value, value))}">{text(value.replace("_", " "))}</span>'


def _facts(material: Material) -> str:
    result, report = material.result, material.report
    facts = {
        "bundle": report.bundle,
        "baseline": report.baseline.bundle if report.baseline else "",
        "dataset": report.dataset_digest,
        "suite": report.suite_digest,
        "rows": str(len(report.cases)) + ("" if report.complete else ", not complete"),
        "not asked anew": str(result.cache_hits) if result.cache_hits else "",
        "must pass and did not": ", ".join(result.must_pass_failed),
        "flaky": ", ".join(result.flaky or ()),
        "measured by": f"{result.actor}, bundlectl {result.tool_version}, {result.finished.isoformat()}",
    }
    items = "".join(f"<dt>{text(key)}</dt><dd>{text(value)}</dd>" for key, value in facts.items() if value)
    return f"<dl>{items}</dl>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    heads = "".join(f"<th>{text(cell)}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'


def _cell(value: str) -> str:
    return f"<td>{text(value)}</td>"


def _figure(value: str) -> str:
    return f'<td class="n">{text(value)}</td>'


def _scores(material: Material) -> str:
    return _table(
        ("scorer", "tag", "mean", "floor", "measured", "unmeasured", "errors", "verdict"),
        [
            (
                _cell(score.scorer),
                _cell(score.tag or ""),
                _figure(number(score.mean)),
                _figure("" if score.floor is None else number(score.floor)),
                _figure(str(score.measured)),
                _figure(str(score.unmeasured)),
                _figure(str(score.errors)),
                f"<td>{_word(score.verdict)}</td>",
            )
            for score in material.result.scores
        ],
    )


def _measures(material: Material) -> str:
    rows = [
        (
            _cell(found.measure),
            _cell(found.statistic),
            _figure(amount(found, found.value)),
            _figure("" if found.bound is None else amount(found, found.bound)),
            _figure(str(found.missing)),
            f"<td>{_word(found.verdict)}</td>",
        )
        for found in material.result.measures or ()
    ]
    head = ("run", "statistic", "value", "bound", "missing", "verdict")
    return "<h2>The run as a whole</h2>\n" + _table(head, rows) if rows else ""


def _compared(material: Material) -> str:
    comparison = material.result.comparison
    if comparison is None:
        return ""
    rows = [
        (
            _cell(score.scorer),
            _cell(score.tag or ""),
            _figure(number(score.candidate)),
            _figure(number(score.baseline)),
            _figure("-" if score.difference is None else f"{score.difference:+.3f}"),
            _figure(f"{score.low:+.3f} to {score.high:+.3f}"),
            _figure("" if score.margin is None else number(score.margin)),
            _figure(str(score.groups)),
            f"<td>{_word(score.claim)}</td>",
            _figure("" if score.needed is None else f"{score.needed:,}"),
        )
        for score in comparison.scores
    ]
    head = [
        "scorer",
        "tag",
        "candidate",
        "baseline",
        "difference",
        "interval",
        "margin",
        "groups",
        "claim",
        "groups needed",
    ]
    return "<h2>Beside the baseline</h2>\n" + _table(head, rows)


def _filter(material: Material) -> str:
    states = ["full", "below 1", "unmeasured", "error", "must pass"]
    if material.report.baseline is not None:
        states = ["worse", "better", "mixed", "same", *states]
    tags = sorted({tag for case in material.loaded.cases for tag in tags_of(case)})
    scorers = [line.key for line in material.loaded.suite.scorers]
    return (
        "<form>"
        + _choice("verdict", "every verdict", states)
        + _choice("tag", "every tag", tags)
        + _choice("scorer", "any, full or not", scorers, label="below 1 by")
        + '<label>text <input name="text" type="search"></label> <output id="shown"></output></form>'
    )


def _choice(name: str, every: str, values: Iterable[str], label: str = "") -> str:
    options = "".join(f'<option value="{text(value)}">{text(value)}</option>' for value in values)
    return f'<label>{label or name} <select name="{name}"><option value="">{every}</option>{options}</select></label> '


def _row(material: Material, row: CaseResult, case: Case | None) -> str:
    beside = material.beside(row)
    skip = timed(material.loaded.suite.scorers)
    state, change = state_of(row), moved(row, beside, skip)
    low = [key for key, score in row.scores.items() if score.value is None or score.value < 1]
    must = row.id in material.result.must_pass_failed
    tags = sorted(tags_of(case)) if case is not None else row.tags
    data = (
        f'data-state="{text(state)}" data-moved="{text(change or "")}" data-must="{int(must)}" '
        f'data-tags="{text(json.dumps(tags))}" data-low="{text(json.dumps(low))}"'
    )
    marks = " ".join(f'<span class="tag">{text(tag)}</span>' for tag in tags)
    change_word = _word(change) if change else ""
    must_word = '<span class="fail">must pass</span>' if must else ""
    sides = _side("candidate", row, material.answers)
    if material.report.baseline is not None:
        sides += (
            _side("baseline", beside, material.baseline_answers)
            if beside
            else '<section class="side"><h3>baseline</h3><p class="none">not measured</p></section>'
        )
    return (
        f'<details class="case" {data}><summary><b>{text(name_of(row))}</b><span>{marks}</span>'
        f"{must_word} {change_word} {_word(state)}</summary>{_asked(case)}"
        f'<div class="sides">{sides}</div></details>'
    )


def _asked(case: Case | None) -> str:
    if case is None:
        return ""
    asked = "\n".join(
        f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in case.input.items()
    )
    expected = json.dumps(case.expected.form(), ensure_ascii=False, indent=1)
    who = f"{case.tenant}, {case.role}" + (f", {' '.join(case.scopes)}" if case.scopes else "")
    return (
        f"<dl><dt>asked</dt><dd><pre>{text(asked)}</pre></dd><dt>by</dt><dd>{text(who)}</dd>"
        f"<dt>expected</dt><dd><pre>{text(expected)}</pre></dd></dl>"
    )


def _side(title: str, row: CaseResult, answers: Mapping[tuple[str, int], Answer]) -> str:
    lines = "".join(
        f"<tr>{_cell(key)}{_figure(number(score.value) if score.value is not None else score.outcome)}"
        f"{_cell(score.why)}</tr>"
        for key, score in row.scores.items()
    )
    facts = {
        "error": row.error,
        "refused": row.refused,
        "degraded": row.degraded,
        "model": row.model,
        "cited": ", ".join(row.cited),
        "seconds": None if row.seconds is None else f"{row.seconds:.3f}",
        "answered before": format_time(row.time) if row.cached else None,
        "receipt": row.receipt,
    }
    items = "".join(f"<dt>{text(key)}</dt><dd>{text(value)}</dd>" for key, value in facts.items() if value)
    return (
        f'<section class="side"><h3>{title}</h3>{_answer(answers.get(row.row))}'
        f"<table>{lines}</table><dl>{items}</dl></section>"
    )


def _answer(answer: Answer | None) -> str:
    if answer is None:
        return '<p class="none">the answer was not captured</p>'
    if answer.refused is not None:
        return f"<pre>{text(answer.refused.reason)}</pre>"
    shown = answer.output if isinstance(answer.output, str) else json.dumps(answer.output, ensure_ascii=False, indent=1)
    return f"<pre>{text(shown)}</pre>"
