from __future__ import annotations

from pathlib import Path

import pytest

from bundlectl.bundling.lint import LINT_RULES, lint
from bundlectl.bundling.source import read_source
from bundlectl.model.bindings import Bindings
from tests.bundling.sources import edit, fixture

BUNDLE = "bundle.yaml"


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """The full fixture without a finding."""
    root = fixture("full", tmp_path)
    edit(root, BUNDLE, "{provider: sagemaker, model: my-endpoint}", "{provider: extractive}")
    with (root / "access" / "examples.yaml").open("a") as file:
        file.write("  - {name: ok, task: summarize, tenant: a, role: agent, profile: strict, expect: allow}\n")
    assert found(root) == []
    return root


def found(root: Path) -> list[tuple[str, str]]:
    return [(finding.rule, finding.place) for finding in lint(read_source(root).components)]


@pytest.mark.parametrize(
    ("old", "new", "rule", "place"),
    [
        ("model: qwen3-32b", "model: qwen3:latest", "floating-model", "models.large.model"),
        ("model: qwen3-32b", "model: mistral-small-latest", "floating-model", "models.large.model"),
        ("model: qwen3-32b", "model: latest", "floating-model", "models.large.model"),
        ("model: qwen3-32b", "model: gpt-4o", "floating-model", "models.large.model"),
        ("model: qwen3-32b", "model: anthropic/claude-sonnet", "floating-model", "models.large.model"),
        ("      temperature: 0.7\n", "", "temperature-not-set", "models.large"),
        ("      max_tokens: 1200\n", "", "max-tokens-not-set", "models.large"),
        (
            "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "following",
            "floating-snapshot",
            "retrieval.docs.snapshot",
        ),
        ("timeout: 60s, retries: 0, fallback: [fast, fallback]", "fallback: []", "no-fallback", "routes.complex"),
        ("task: summarize}, use: batch", "task: summarize}, use: fast", "unused-route", "routes.batch"),
        ("latency_class: batch, task", "task", "async-without-batch", "routes.select.1"),
        ("fallback: [fast, fallback]", "fallback: [batch]", "async-without-batch", "routes.complex.fallback.0"),
        ("evaluation: {suites: [answers, refusals]}", "evaluation: {}", "no-suite", "evaluation"),
        ("  plain: {", "  more: {provider: extractive}\n  plain: {", "unused-model", "models.more"),
        (
            "  phi_restricted: {",
            "  more: {output: {detectors: [{entity: iban, action: flag}]}}\n  phi_restricted: {",
            "unused-profile",
            "guardrails.more",
        ),
        (
            "  docs:\n",
            "  more: {index: i, snapshot: 'sha256:" + "0" * 64 + "'}\n  docs:\n",
            "unused-retrieval",
            "retrieval.more",
        ),
        (
            "{input: {detectors: [{entity: us_ssn, action: block}]}}",
            "{}",
            "empty-profile",
            "guardrails.phi_restricted",
        ),
        (
            "    output: {format: text",
            "    scopes: [product]\n    output: {format: text",
            "scopes-without-retrieval",
            "tasks.summarize.scopes",
        ),
    ],
)
def test_findings(full: Path, old: str, new: str, rule: str, place: str) -> None:
    edit(full, BUNDLE, old, new)
    assert (rule, place) in found(full)
    assert len(found(full)) == 1


@pytest.mark.parametrize("model", ["qwen3-8b", "gpt-4o-2024-08-06", "eu.anthropic.claude-3-5-sonnet-20241022-v2:0"])
def test_full_ids_do_not_float(full: Path, model: str) -> None:
    edit(full, BUNDLE, "model: qwen3-32b", f'model: "{model}"')
    assert found(full) == []


def test_retrieval_without_scopes(full: Path) -> None:
    edit(full, BUNDLE, "    scopes: [product, tickets]\n", "")
    edit(full, "access/examples.yaml", "    scopes: [product, tickets]\n", "")
    assert found(full) == [("retrieval-without-scopes", "tasks.answer")]


def test_access_cases(full: Path) -> None:
    path = full / "access" / "examples.yaml"
    head, cases = path.read_text().split("cases:\n")
    kept = [case for case in ("  - " + part for part in cases[4:].split("\n  - ")) if "deny" not in case]
    path.write_text(head + "cases:\n" + "\n".join(kept))
    assert found(full) == [("no-access-deny-case", "access")]


@pytest.mark.parametrize(
    ("old", "new"),
    [('  "additionalProperties": false\n', '  "additionalProperties": true\n'), ('["answer"]', "[]")],
)
def test_loose_schema(full: Path, old: str, new: str) -> None:
    edit(full, "output/answer.schema.json", old, new)
    assert found(full) == [("loose-schema", "tasks.answer.output.schema")]


def test_draft_guardrail_in_bindings(full: Path) -> None:
    components = read_source(full).components
    bindings = Bindings(guards={"bedrock": {"id": "x", "version": "DRAFT"}})
    assert [(f.rule, f.place) for f in lint(components, bindings)] == [
        ("floating-guardrail", "bindings.guards.bedrock.version")
    ]


def test_places_have_lines(full: Path) -> None:
    line = edit(full, BUNDLE, "model: qwen3-32b", "model: qwen3:latest")
    source = read_source(full)
    assert source.where("models.large.model") == f"{full}/bundle.yaml:{line}"
    assert source.where("routes.select.3") == f"{full}/bundle.yaml:{_line(full, '    - {use: fast}')}"
    assert source.where("routes.fast.fallback") == f"{full}/bundle.yaml:{_line(full, '  fast: {')}"
    assert source.where("bindings.guards.x") == f"{full}/bundle.yaml"


def _line(root: Path, start: str) -> int:
    lines = (root / BUNDLE).read_text().split("\n")
    return next(number for number, line in enumerate(lines, start=1) if line.startswith(start))


def test_every_finding_has_a_documented_rule(full: Path) -> None:
    edit(full, BUNDLE, "      temperature: 0.7\n      max_tokens: 1200\n", "")
    for finding in lint(read_source(full).components):
        assert finding.rule in LINT_RULES
        assert set(finding.to_dict()) == {"rule", "place", "message"}
    assert all(text.endswith(".") for text in LINT_RULES.values())
