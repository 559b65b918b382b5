"""Headings and sections of Markdown, and the front matter above them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlectl.retrieval.frontmatter import parse_front_matter
from bundlectl.retrieval.markdown import cut_at, headings


def outline(text: str) -> list[tuple[tuple[str, ...], str]]:
    return [(section.path, text[section.start : section.end]) for section in cut_at(text, headings(text))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", [((), "plain")]),
        (
            "before\n\n# A\n\nunder a\n\n## B\n\nunder b\n",
            [((), "before"), (("A",), "under a"), (("A", "B"), "under b")],
        ),
        ("# A\n\n## B\n\nb\n\n# C\n\nc", [(("A", "B"), "b"), (("C",), "c")]),
        ("# A\n\n### Deep\n\nd\n\n## B\n\nb", [(("A", "Deep"), "d"), (("A", "B"), "b")]),
        ("Title\n=====\n\ntext\n\nSub\n---\n\nmore", [(("Title",), "text"), (("Title", "Sub"), "more")]),
        ("Two\nlines\n===\n\ntext", [(("Two lines",), "text")]),
        ("a\n\n---\n\nb", [((), "a\n\n---\n\nb")]),
        ("- item\n---\n\nb", [((), "- item\n---\n\nb")]),
        ("# A\n\n```sh\n# not a heading\n```\n\nx", [(("A",), "```sh\n# not a heading\n```\n\nx")]),
        ("# A\n\n~~~~\n~~~\n# no\n~~~~\n# B\nx", [(("A",), "~~~~\n~~~\n# no\n~~~~"), (("B",), "x")]),
        ("# A\n\n```\n# open to the end", [(("A",), "```\n# open to the end")]),
        ("# A\n\n    # indented code\n", [(("A",), "# indented code")]),
        ("<!--\n# hidden\n-->\n# A\nx", [((), "<!--\n# hidden\n-->"), (("A",), "x")]),
        ("#nospace\n\n####### seven", [((), "#nospace\n\n####### seven")]),
        ("## `code` and **bold** [link](x.md) ##\nx", [(("code and bold link",), "x")]),
        ("# snake_case_name\nx", [(("snake_case_name",), "x")]),
        ("# A\n\n# B\n\n", []),
    ],
)
def test_sections(text: str, expected: list[tuple[tuple[str, ...], str]]) -> None:
    assert outline(text) == expected


def test_same_path_twice_is_counted() -> None:
    text = "# A\n\n## B\n\none\n\n## B\n\ntwo\n"
    assert [(s.path, s.ordinal) for s in cut_at(text, headings(text))] == [(("A", "B"), 0), (("A", "B"), 1)]


markdown = st.lists(
    st.sampled_from(
        ["# A", "## B", "text here", "", "```", "~~~", "===", "---", "- item", "<!-- x", "-->", "    code", "| a | b |"]
    )
    | st.text(max_size=12).filter(lambda t: "\n" not in t)
).map("\n".join)


@given(markdown)
def test_sections_lie_in_order_and_hold_every_word(text: str) -> None:
    sections = cut_at(text, headings(text))
    ends = [0]
    for section in sections:
        body = text[section.start : section.end]
        assert body == body.strip() != ""
        assert section.start >= ends[-1]
        ends.append(section.end)
    assert len({(s.path, s.ordinal) for s in sections}) == len(sections)
    if not headings(text):
        assert "".join(outline(text)[0][1:] if sections else ()) == text.strip()


# ---------------------------------------------------------------- front matter


def test_labels() -> None:
    text = '---\ntitle: "A: b"\ntenant: acme\nscope: docs\nroles: [b, a]\nupdated: 2026-03-04\nweight: 3\n---\nbody\n'
    found, problems = parse_front_matter(text, "a.md")
    assert problems == []
    assert (found.title, found.tenant, found.scope) == ("A: b", "acme", "docs")
    assert found.roles == ("a", "b")
    assert found.updated == "2026-03-04"
    assert text[found.body :] == "body\n"


@pytest.mark.parametrize("text", ["", "no labels", "--- not a fence", "# A\n\n---\ntenant: x\n---\n"])
def test_no_front_matter(text: str) -> None:
    found, problems = parse_front_matter(text, "a.md")
    assert (found.body, found.tenant, problems) == (0, None, [])


@pytest.mark.parametrize(
    ("labels", "line", "message"),
    [
        ("tenant: no", 2, "YAML reads no as bool"),
        ("title: x\ntenant: 012", 3, "YAML reads 012 as int"),
        ("tenant: ~", 2, "YAML reads ~ as null"),
        ("tenant:", 2, "YAML reads nothing as null"),
        ("tenant: ' '", 2, "is empty"),
        ("tenant: [a]", 2, "must be a string"),
        ("tenant: a\ntenant: b", 3, "duplicate key 'tenant'"),
        ("tenat: acme", 2, "did you mean 'tenant'"),
        ("role: [a]", 2, "did you mean 'roles'"),
        ("roles: agent", 2, "must be a list"),
        ("roles: []", 2, "must be a list"),
        ("roles:\n  - a\n  - yes", 4, "YAML reads yes as bool"),
        ("scope: Product Docs", 2, "is no scope"),
        ("updated: yesterday", 2, "must be a date"),
        ("updated: 2026-3-4", 2, "must be a date"),
        ("tenant: &a acme", 2, "an anchor"),
        ("x: &a [1]\ny: *a", 2, "an anchor"),
        ("tenant: !!str acme", 2, "tag"),
        ("tenant: !!python/object/apply:os.system [id]", 2, "tag"),
        ("- a\n- b", 2, "no mapping"),
        ("[a]: b", 2, "no plain word"),
        ("tenant: [", 3, "not YAML"),
        ("x: " + "[" * 20 + "]" * 20, 2, "deeper than"),
        ("x: [" + "1," * 3000 + "]", 2, "more than 2000 values"),
        ("tenant: a\tb: c", 2, "not YAML"),
    ],
)
def test_bad_labels_name_file_and_line(labels: str, line: int, message: str) -> None:
    _, problems = parse_front_matter(f"---\n{labels}\n---\nbody", "a.md")
    assert problems
    assert (problems[0].file, problems[0].line) == ("a.md", line)
    assert message in str(problems[0])


def test_every_problem_is_told() -> None:
    _, problems = parse_front_matter("---\ntenant: no\nroles: x\nupdated: y\n---\n", "a.md")
    assert [problem.line for problem in problems] == [2, 3, 4]


def test_end_is_missing() -> None:
    _, problems = parse_front_matter("---\ntenant: acme\n\nbody", "a.md")
    assert "has no end" in str(problems[0])


def test_front_matter_too_large() -> None:
    _, problems = parse_front_matter("---\nx: " + "a" * 70_000 + "\n---\n", "a.md")
    assert "larger than" in str(problems[0])


@given(st.text(max_size=80))
def test_front_matter_never_crashes(text: str) -> None:
    parse_front_matter(f"---\n{text}\n---\n", "a.md")
