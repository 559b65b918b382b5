"""Parameters and guards that a provider does not take, at their file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundlectl.bundling.source import read_source
from tests.bundling.sources import edit, fixture, only

SMALL = "{temperature: 0, max_tokens: 600}"
GUARD = '{bedrock: {id: abc, version: "3"}}'


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ("{max_tokns: 600}", ("max_tokns", "max_tokens")),
        ("{temperature: warm}", ("temperature",)),
        ("{structured_output: yaml}", ("structured_output",)),
        ("{prompt_cache: 2h}", ("prompt_cache",)),
        ("{maxTokens: 600}", ("maxTokens", "max_tokens")),
    ],
)
def test_parameters_of_a_bedrock_model(tmp_path: Path, parameters: str, words: tuple[str, ...]) -> None:
    root = fixture("full", tmp_path)
    line = edit(root, "bundle.yaml", SMALL, parameters)
    only(root, "bundle.yaml", line, *words)


def test_all_that_it_takes(tmp_path: Path) -> None:
    root = fixture("full", tmp_path)
    edit(
        root,
        "bundle.yaml",
        SMALL,
        "{max_tokens: 5, temperature: 0.5, top_p: 1, stop: [END], additional: {top_k: 5}, structured_output: tool, "
        "prompt_cache: 1h, service_tier: flex, latency: standard}",
    )
    read_source(root)


@pytest.mark.parametrize("guard", ["{bedrock: {id: abc}}", '{bedrock: {id: abc, version: "v3"}}'])
def test_a_guard_that_names_no_guardrail(tmp_path: Path, guard: str) -> None:
    root = fixture("full", tmp_path)
    line = edit(root, "environments/prod.yaml", GUARD, guard)
    only(root, "environments/prod.yaml", line, "version")
