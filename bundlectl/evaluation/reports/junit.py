"""JUnit XML: a test for each gate of the suite, and one for each case. Only what stops the verdict fails.

A case fails where it must pass and did not. It is an error where it was not answered. Every other case is a success
with its scores in ``system-out``: means decide there, not single cases.
"""

from __future__ import annotations

from collections import Counter
from xml.etree.ElementTree import Element, SubElement, tostring

from bundlectl.evaluation.reports.material import Material, clean, name_of, number
from bundlectl.model.verdict import Verdict


def junit(material: Material) -> bytes:
    """Give the file."""
    result = material.result
    suite = Element("testsuite", name=clean(f"{material.app} {result.suite}"), timestamp=result.started.isoformat())
    counts: Counter[str] = Counter()
    _verdict(_test(suite, "verdict", result.suite, counts), result.verdict, result.why, counts)
    for score in result.scores:
        if score.floor is not None:
            name = f"{score.scorer}{f' [{score.tag}]' if score.tag else ''} at least {score.floor:g}"
            why = score.why or f"the mean is {number(score.mean)}"
            _verdict(_test(suite, name, f"{result.suite}.floors", counts), score.verdict, why, counts)
    for measure in result.measures or ():
        if measure.bound is not None:
            name = f"{measure.measure} {measure.statistic} at most {measure.bound:g}"
            _verdict(_test(suite, name, f"{result.suite}.bounds", counts), measure.verdict, measure.why, counts)
    for compared in result.comparison.scores if result.comparison else ():
        if compared.margin is not None:
            name = f"{compared.scorer}{f' [{compared.tag}]' if compared.tag else ''} within {compared.margin:g}"
            passed: Verdict = "pass" if compared.claim in ("better", "no_worse") else "fail"
            why = f"{compared.claim}: {compared.why}" if compared.why else compared.claim
            _verdict(_test(suite, name, f"{result.suite}.margins", counts), passed, why, counts)
    _cases(material, suite, counts)
    for key in ("tests", "failures", "errors"):
        suite.set(key, str(counts[key]))
    root = Element("testsuites")
    root.append(suite)
    written: bytes = tostring(root, encoding="utf-8", xml_declaration=True)
    return written


def _cases(material: Material, suite: Element, counts: Counter[str]) -> None:
    must = set(material.result.must_pass_failed)
    for row in material.report.cases:
        test = _test(suite, name_of(row), f"{material.result.suite}.cases", counts)
        test.set("time", f"{row.seconds or 0:.6f}")
        if row.error is not None:
            _verdict(test, "error", row.error, counts)
        elif row.id in must:
            _verdict(test, "fail", "the case must pass and did not", counts)
        lines = [
            f"{key}: {number(score.value) if score.value is not None else score.outcome}"
            + (f" ({score.why})" if score.why else "")
            for key, score in row.scores.items()
        ]
        SubElement(test, "system-out").text = clean("\n".join(lines))


def _test(suite: Element, name: str, group: str, counts: Counter[str]) -> Element:
    counts["tests"] += 1
    return SubElement(suite, "testcase", name=clean(name), classname=clean(group))


def _verdict(test: Element, verdict: Verdict, why: str, counts: Counter[str]) -> None:
    if verdict == "pass":
        return
    kind = "error" if verdict == "error" else "failure"
    counts["errors" if kind == "error" else "failures"] += 1
    SubElement(test, kind, message=clean(why or verdict), type=verdict)
