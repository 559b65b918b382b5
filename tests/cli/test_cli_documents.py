"""Every command line that README and docs show is one that the program takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli import commands
from tests.support.workspace import ROOT

FILES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_command_lines_parse(file: Path) -> None:
    wrong = [f"{line.place}\n    {line.problem()}" for line in commands.lines_of(file) if line.problem()]
    assert not wrong, "\n".join(wrong)


def test_command_lines_were_found() -> None:
    assert sum(len(commands.lines_of(file)) for file in FILES) > 50


def test_the_reference_has_a_section_for_every_verb() -> None:
    text = (ROOT / "docs" / "cli-reference.md").read_text(encoding="utf-8")
    headings = " ".join(line for line in text.splitlines() if line.startswith("## "))
    verbs = {words.split()[0] for words in commands.every() if words}
    assert sorted(verb for verb in verbs if verb not in headings.replace(",", " ").split()) == []


def test_a_wrong_line_is_found() -> None:
    for words in (["promot"], ["promote", "x", "--too", "dev"], ["index", "rebuild"], ["ask", "a:b", "--receipt"]):
        assert commands.Line("here", words, whole=False).problem()
    assert commands.Line("here", ["promote", "x", "--to", "dev"], whole=True).problem()
    assert commands.Line("here", ["promote", "x", "--to", "dev", "--reason", "y"], whole=True).problem() is None
