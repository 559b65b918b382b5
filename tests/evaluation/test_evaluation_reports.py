"""Reports: what they say, that they stand alone, and that no text of a case becomes markup."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlectl.evaluation.comparison import Change
from bundlectl.evaluation.report import Beside, CaseResult, Report, make_report, report_bytes, report_digest
from bundlectl.evaluation.reports.html import page
from bundlectl.evaluation.reports.junit import junit
from bundlectl.evaluation.reports.markdown import markdown, plain
from bundlectl.evaluation.reports.material import Material, moved, state_of
from bundlectl.evaluation.result import summarise
from bundlectl.evaluation.scorers.score import failed, measured, unmeasured
from bundlectl.evaluation.suite import LoadedSuite, read_suite
from bundlectl.model.canonical import canonical, digest
from tests.evaluation.builders import BINDINGS, BUNDLE, NOW, D, answer, result, write_suite

OTHER = "sha256:" + "e" * 64


def row(id_: str, score: Any, **more: Any) -> CaseResult:
    return CaseResult(id=id_, scores={"exact": score}, time=NOW, **more)


def loaded(folder: Path, ids: list[str], question: str = "?") -> LoadedSuite:
    cases = [{"id": i, "input": {"question": question}, "tags": ["t"], "expected": {"exact": "yes"}} for i in ids]
    return read_suite(write_suite(folder, cases, [{"name": "exact", "floor": 0.9}], must_pass=[ids[0]]))


def material(folder: Path, text: str = "plain") -> Material:
    """Four rows beside a baseline; ``text`` is in every place that a case, a scorer or a model can write to."""
    ids = ["a", f"b {text}", "c", "d"]
    suite = loaded(folder, ids, text)
    rows = [
        row(ids[0], measured(0, text), cited=[text], degraded=text),
        row(ids[1], measured(1)),
        row("c", unmeasured(text)),
        row("d", failed(text), error=text),
    ]
    beside = Beside(bundle=OTHER, bindings=BINDINGS, cases=[row("a", measured(1)), row(ids[1], measured(1))])
    report = make_report(suite, rows, bundle=BUNDLE, bindings=BINDINGS, baseline=beside)
    result = summarise(suite, rows, bindings=BINDINGS, actor="eve", started=NOW, finished=NOW)
    answers = {(ids[0], 1): answer(text), (ids[1], 1): answer({"answer": text, text: 1})}
    changes = [Change(case=ids[0], scorer="exact", candidate=0, baseline=1)]
    return Material("support", suite, report, result, changes, answers, {(ids[0], 1): answer(f"was {text}")})


class Tags(HTMLParser):
    """Collects the elements and their attributes' names, and the text outside of script and style."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def tags(html: str) -> Tags:
    parser = Tags()
    parser.feed(html)
    parser.close()
    return parser


TEXTS = st.text(min_size=1, max_size=40, alphabet=st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["<script>alert(1)</script>", '" onload="x', "'><img src=x onerror=x>", "</pre>", "]]>", "&lt;", "\0", "<!--"]
)


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_no_text_becomes_markup(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    safe = tags(page(material(tmp_path_factory.mktemp("safe"))))
    found = tags(page(material(tmp_path_factory.mktemp("found"), text)))
    assert found.tags == safe.tags
    root = fromstring(junit(material(tmp_path_factory.mktemp("junit"), text)))
    assert len(root.findall(".//testcase")) == 1 + 1 + 4
    shown = markdown(material(tmp_path_factory.mktemp("md"), text))
    assert set(re.findall(r"(?<!\\)<[^>]*>", shown)) <= {"<details>", "<summary>", "</summary>", "</details>"}


@given(text=TEXTS)
def test_markdown_text_is_one_line_without_markup(text: str) -> None:
    shown = plain(text)
    assert "\n" not in shown and "<" not in shown and "@" not in shown
    assert not re.search(r"(?<!\\)[|`*\[\]]", shown.replace("\\\\", ""))


def test_the_page_stands_alone(tmp_path: Path) -> None:
    shown = page(material(tmp_path))
    assert "default-src 'none'" in shown.replace("&#x27;", "'")
    assert not re.search(r"""(src|href|url)\s*[=(]""", shown) and "http://" not in shown and "https://" not in shown
    assert "was plain" in shown and "the answer was not captured" in shown and "must pass" in shown


def test_states_and_movements() -> None:
    assert [state_of(row("a", s)) for s in (measured(1), measured(0.5), unmeasured(""), failed(""))] == [
        "full",
        "below 1",
        "unmeasured",
        "error",
    ]
    ones = [moved(row("a", measured(v)), row("a", measured(0.5))) for v in (0.2, 0.5, 0.9)]
    assert ones == ["worse", "same", "better"] and moved(row("a", measured(1)), None) is None
    assert moved(row("a", measured(0)), row("a", measured(1)), frozenset({"exact"})) == "same"


def test_junit_fails_what_stops_the_verdict(tmp_path: Path) -> None:
    root = fromstring(junit(material(tmp_path)))
    bad = {test.get("name"): [part.tag for part in test if part.tag != "system-out"] for test in root.iter("testcase")}
    assert bad["a"] == ["failure"] and bad["d"] == ["error"] and bad["b plain"] == [] and bad["c"] == []
    assert bad["verdict"] and bad["exact at least 0.9"]
    suite = root.find("testsuite")
    assert suite is not None and suite.get("tests") == "6"


def test_markdown_names_the_worst_case(tmp_path: Path) -> None:
    shown = markdown(material(tmp_path))
    assert "**Worse than the baseline:**" in shown and "- a: exact 1 → 0" in shown
    assert "3 of 4 rows are not full, or changed" in shown


def test_without_a_baseline_there_is_one_side(tmp_path: Path) -> None:
    suite = loaded(tmp_path, ["a"])
    rows = [row("a", measured(1))]
    report = make_report(suite, rows, bundle=BUNDLE, bindings=BINDINGS)
    now = datetime.now(UTC)
    result = summarise(suite, rows, bindings=BINDINGS, actor="eve", started=now, finished=now)
    shown = page(Material("support", suite, report, result))
    assert shown.count('<section class="side">') == 1 and 'value="worse"' not in shown
    assert report_bytes(report)


def test_a_report_is_written_row_by_row_as_its_canonical_form() -> None:
    rows = [result("b", exact=1.0), result("a", exact=0.25, latency=None)]
    for beside in (None, Beside(bundle=D, bindings=D, cases=[]), Beside(bundle=D, bindings=D, cases=rows[:1])):
        for cases in ([], rows):
            report = Report(
                suite="s",
                suite_digest=D,
                dataset_digest=D,
                bundle=D,
                bindings=D,
                complete=True,
                cases=cases,
                baseline=beside,
            )
            assert report_bytes(report) == canonical(report.form())
            assert report_digest(report) == digest(report_bytes(report))
