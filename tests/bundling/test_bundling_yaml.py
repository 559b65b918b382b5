from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlectl.bundling.yaml import MAX_BYTES, MAX_DEPTH, MAX_NODES, MAX_PROBLEMS, Ambiguous, parse_yaml

SUITE = Path(__file__).parents[3] / "shared" / "data" / "yaml-test-suite"


def refused(text: str | bytes, line: int, *words: str) -> None:
    document = parse_yaml(text.encode() if isinstance(text, str) else text, "f.yaml")
    assert [problem.line for problem in document.problems] == [line], [*map(str, document.problems)]
    for word in words:
        assert word in str(document.problems[0]), str(document.problems[0])


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", 2, ("tag", "python/object", "leave it out")),
        ("a: !!str 1\n", 1, ("tag",)),
        ("a: ! x\n", 1, ("tag",)),
        ("a: 1\nb: &anchor 2\n", 2, ("anchor &anchor", "leave it out")),
        ("a: [*b]\n", 1, ("alias *b", "write the value out")),
        ("a: 1\nb: 2\na: 3\n", 3, ("'a'", "second time", "first on line 1")),
        ("x: {a: 1, a: 2}\n", 1, ("second time",)),
        ("x:\n  <<: {a: 1}\n", 2, ("merge key",)),
        ("1: x\n", 1, ("key 1 is not text", 'quote it: "1"')),
        ("true: x\n", 1, ("not text",)),
        ("? \n: x\n", 1, ("key nothing is not text", "quote")),
        ("? [a]\n: b\n", 1, ("a key is a list", "text")),
        ("a: {{ input }}\n", 1, ("needs quotes",)),
        ("a: 1\n---\nb: 2\n", 2, ("second document",)),
        ("%YAML 1.2\n---\na: 1\n", 1, ("directive",)),
        ("%TAG ! tag:x,2000:\n---\na: 1\n", 1, ("directive",)),
        ("", 1, ("empty",)),
        ("# only a comment\n", 1, ("empty",)),
        ("a:\n\tb: 1\n", 2, ("not YAML", "spaces, not tabs")),
        ("a: b: c\n", 1, ("not YAML", "quotes")),
        ("a: [1, 2\nb: 3\n", 2, ("not YAML",)),
        ("a: @x\n", 1, ("quotes",)),
        ("a: 1\r\nb: 2\r\n", 1, ("CRLF", "LF")),
        (b"\xef\xbb\xbfa: 1\n", 1, ("byte order mark",)),
        (b"a: 1\nb: \xff\n", 2, ("not UTF-8",)),
        (b"a: \x00\n", 1, ("U+0000",)),
        ("a: 1\nb: x\u2028y\n", 2, ("U+2028", "\\u2028")),
        ("a\u0308: 1\n", 1, ("NFC",)),
        ('a: "\\ud800"\n', 1, ("surrogate",)),
        ('a: "\\UFFFFFFFF"\n', 1, ("not YAML",)),
        ("a: 1\nb: 9007199254740992\n", 2, ("2^53", "quote it")),
        ("a: 1e999\n", 1, ("too large",)),
        ("a: " + "9" * 5000, 1, ("2^53",)),
    ],
)
def test_refused_with_line_and_what_is_right(text: str | bytes, line: int, words: tuple[str, ...]) -> None:
    refused(text, line, *words)


def test_all_problems_of_a_file_are_given() -> None:
    document = parse_yaml(b"a: !x 1\nb: &b 2\nc: *b\na: 3\n", "f.yaml")
    assert [problem.line for problem in document.problems] == [1, 2, 3, 4]


def test_a_flood_of_problems_is_cut() -> None:
    assert len(parse_yaml(b"- *a\n" * 1000, "f.yaml").problems) == MAX_PROBLEMS


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("false", False),
        ("null", None),
        ("a:", {"a": None}),
        ("0", 0),
        ("-12", -12),
        ("+3", 3),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("2.14.0", "2.14.0"),
        ("8s", "8s"),
        ("'1'", "1"),
        ("2026-11-23T18:00:00Z", "2026-11-23T18:00:00Z"),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    document = parse_yaml(text.encode(), "f.yaml")
    assert not document.problems
    assert document.value == value and type(document.value) in (type(value), Ambiguous)


SURPRISES = """
no No NO yes on off y n True FALSE ~ Null 012 -012 0x1F 0o17 0b11 1_000 12:30:45 190:20 2024-01-01 .inf -.INF .nan
1. 01.5 2024-01-01T10:00:00Z
"""


@pytest.mark.parametrize("text", SURPRISES.split())
def test_what_another_reader_would_turn_into_something_stays_text_and_is_marked(text: str) -> None:
    document = parse_yaml(f"a: {text}\n".encode(), "f.yaml")
    assert not document.problems
    assert document.value == {"a": text}
    assert isinstance(document.value["a"], Ambiguous)
    quoted = parse_yaml(f"a: '{text}'\n".encode(), "f.yaml").value["a"]
    assert type(quoted) is str


def test_places() -> None:
    document = parse_yaml(b"a:\n  - x\n  - {b: 1}\nt: |\n  one\n  two\n", "f.yaml")
    assert document.place(("a", 1, "b")).line == 3
    assert document.key_place(("a",)).line == 1
    assert document.place(("a", 1, "missing", 0)).line == 3
    assert (document.place(("t",)).line, document.place(("t",)).text_line) == (4, 5)


@pytest.mark.parametrize(
    ("bomb", "word"),
    [
        (b"[" * 100_000, "deeper"),
        (b"- " * 100_000, "deeper"),
        (b"{a: " * 100_000, "deeper"),
        (b"".join(b" " * n + b"a:\n" for n in range(1000)), "deeper"),
        (b"- a\n" * (MAX_NODES + 10), f"{MAX_NODES:,}"),
        (b"a" * (MAX_BYTES + 1), "bytes"),
        (b"a: &a [x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", "anchor"),
    ],
)
def test_bombs_are_refused_early(bomb: bytes, word: str) -> None:
    began = time.process_time()
    document = parse_yaml(bomb, "f.yaml")
    assert word in str(document.problems[0])
    assert time.process_time() - began < 5


def test_the_caps_are_where_they_say() -> None:
    assert not parse_yaml(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, "f").problems
    assert parse_yaml(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "f").problems
    assert not parse_yaml(b"a\n" * (MAX_BYTES // 2), "f").problems


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcnoyes~_.", max_size=8), inner),
    max_leaves=12,
)


@given(json_values)
@settings(max_examples=150, deadline=None)
def test_json_is_read_as_json(value: Any) -> None:
    document = parse_yaml(json.dumps(value).encode(), "f.yaml")
    assert not document.problems, [*map(str, document.problems)]
    assert document.value == value
    assert json.dumps(document.value) == json.dumps(value)


@given(st.text(st.characters(), max_size=200) | st.text("-:?[]{}&*!|>'\"%@`#,~ \n\tab01.<=", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_gives_a_value_or_problems(text: str) -> None:
    document = parse_yaml(text.encode("utf-8", "surrogatepass"), "f.yaml")
    for problem in document.problems:
        assert problem.line >= 0 and problem.message


@given(st.binary(max_size=100))
@settings(max_examples=100, deadline=None)
def test_any_bytes_give_a_value_or_problems(data: bytes) -> None:
    parse_yaml(data, "f.yaml")


@pytest.mark.skipif(not SUITE.is_dir(), reason="../shared/data/yaml-test-suite is not there")
def test_yaml_test_suite_never_crashes_and_agrees_with_pyyaml_where_plain() -> None:
    inputs = [data for path in sorted(SUITE.rglob("*")) for data in _suite_inputs(path)]
    assert len(inputs) >= 300
    accepted = 0
    for data in inputs:
        document = parse_yaml(data, "f.yaml")
        if document.problems:
            continue
        accepted += 1
        if _surprising(document.value):
            continue
        # What we accept, PyYAML must read the same; it may not refuse it.
        assert yaml.safe_load(data) == document.value, data
    assert accepted >= 80


def _suite_inputs(path: Path) -> list[bytes]:
    if path.suffix != ".yaml":
        return []
    cases = yaml.safe_load(path.read_text("utf-8"))
    texts = [case["yaml"] for case in cases if isinstance(case, dict) and "yaml" in case]
    marks = {"␣": " ", "»": "\t", "—": "", "←": "\r", "⇔": "\ufeff", "↵": "", "∎\n": ""}
    made = []
    for text in texts:
        for mark, character in marks.items():
            text = text.replace(mark, character)
        made.append(text.encode())
    return made


def _surprising(value: Any) -> bool:
    """Say whether YAML 1.1 and 1.2 read it differently, or comparing means nothing."""
    if isinstance(value, dict):
        return any(_surprising(child) for pair in value.items() for child in pair)
    if isinstance(value, list):
        return any(_surprising(child) for child in value)
    return isinstance(value, Ambiguous) or (isinstance(value, float) and not math.isfinite(value))
